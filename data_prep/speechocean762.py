"""speechocean762: read English by Mandarin speakers, children and adults, half of each gender, 16 kHz.

Takes the corpus folder (``WAVE/SPEAKERxxxx/*.WAV`` and Kaldi files in ``train/`` and, where present, ``test/``) or its
parent. The corpus's own train and test have different speakers; we pool both and divide anew. Every fourth speaker is
held out, for enrolment of unseen speakers; the others are divided inside each speaker, for closed-set identification.
With a speaker's utterances in the order of their names:
  train, dev, test         the 5th of every ten is dev, the 10th is test, the others are train
  dev_enroll, dev_trial    half of the speakers held out: the first three utterances enrol, the others are trials
  enroll, trial            the same of the other half

Texts are the prompts; learners do mispronounce them. Labels: gender, age.

Source: https://www.openslr.org/101, paper arXiv:2104.01378, free for commercial and non-commercial use.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from lhotse import MonoCut

from data_prep.common import (
    LeftOut,
    Prepared,
    Unusable,
    find_folder,
    make_cut,
    open_recording,
    progress,
    read_table,
    to_cuts,
)
from data_prep.download import Archive

ENROLMENT_UTTERANCES = 3


def archives() -> list[Archive]:
    return [Archive("https://www.openslr.org/resources/101/speechocean762.tar.gz")]


def prepare(source: Path) -> Prepared:
    root = find_folder(source, (".", "speechocean762"), "train/wav.scp")
    left_out: list[LeftOut] = []
    of_speaker: dict[str, list[MonoCut]] = defaultdict(list)
    listed: set[Path] = set()
    for part in ("train", "test"):
        tables = {name: read_table(root / part / name) for name in ("text", "utt2spk", "spk2age", "spk2gender")}
        wavs = read_table(root / part / "wav.scp")
        listed |= {root / wav for wav in wavs.values()}
        for utterance, wav in progress(wavs.items(), f"speechocean762 {part}", total=len(wavs)):
            try:
                cut = _cut(root / wav, utterance, tables)
            except Unusable as unusable:
                left_out.append(LeftOut(utterance, str(unusable)))
            else:
                of_speaker[cut.supervisions[0].speaker].append(cut)
    for path in sorted(set(root.glob("WAVE/*/*.WAV")) - listed):
        left_out.append(LeftOut(path.name, "file is in no wav.scp"))
    names = ("train", "dev", "test", "dev_enroll", "dev_trial", "enroll", "trial")
    splits: dict[str, list[MonoCut]] = {name: [] for name in names}
    for place, speaker in enumerate(sorted(of_speaker)):
        unseen = {3: "dev_", 7: ""}.get(place % 8)
        for index, cut in enumerate(sorted(of_speaker[speaker], key=lambda cut: cut.id)):
            closed_set = {4: "dev", 9: "test"}.get(index % 10, "train")
            enrols = "enroll" if index < ENROLMENT_UTTERANCES else "trial"
            splits[closed_set if unseen is None else unseen + enrols].append(cut)
    return Prepared({split: to_cuts(cuts) for split, cuts in splits.items() if cuts}, left_out)


def _cut(path: Path, utterance: str, tables: dict[str, dict[str, str]]) -> MonoCut:
    speaker = tables["utt2spk"].get(utterance)
    if speaker is None:
        raise Unusable("utterance is not in utt2spk; a split inside each speaker needs it")
    age = tables["spk2age"].get(speaker, "")
    cut_id = f"speechocean762-{utterance}"
    return make_cut(
        open_recording(path, cut_id),
        cut_id,
        "speechocean762",
        text=tables["text"].get(utterance),
        speaker=speaker,
        gender=tables["spk2gender"].get(speaker),
        labels={"age": int(age) if age.isdecimal() else None},
    )
