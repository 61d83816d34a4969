"""CMU AN4 (the census database): people spell names, say numbers, dates, addresses and a few commands.

Takes the ``an4`` folder of any of CMU's downloads (or its parent): ``etc/an4_{train,test}.{fileids,transcription}`` and
``wav/`` with .wav, .sph or .flac files. Returns
  train, dev       the training speakers; dev holds six of the 74 out (every twelfth in sorted order, from the sixth)
  test             the ten test speakers, none of whom is in training
  enroll, trial    test divided inside each speaker: the first three files by name enrol, the others are trials
  dev_enroll, dev_trial    the same of dev

Headerless .raw files say neither sampling rate nor byte order and are left out: take CMU's an4_sphere download.
Source: http://www.speech.cs.cmu.edu/databases/an4/ (also https://github.com/cmusphinx/an4), BSD-style licence.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from lhotse import MonoCut

from data_prep.common import (
    LeftOut,
    Prepared,
    PrepareError,
    Unusable,
    find_folder,
    make_cut,
    open_recording,
    progress,
    read_lines,
    to_cuts,
)
from data_prep.download import Archive

ENROLMENT_UTTERANCES = 3
READABLE_SUFFIXES = (".wav", ".sph", ".flac")
MARKER = re.compile(r"</?s>|<sil>", re.IGNORECASE)
LINE = re.compile(r"(?P<text>.*?)\s*\((?P<utterance>[^()\s]+)\)\s*")


def archives() -> list[Archive]:
    return [Archive("http://www.speech.cs.cmu.edu/databases/an4/an4_sphere.tar.gz")]


def prepare(source: Path) -> Prepared:
    root = find_folder(source, (".", "an4"), "etc/an4_train.fileids")
    left_out = _unlisted(root)
    train = _read(root, "train", left_out)
    test = _read(root, "test", left_out)
    dev_speakers = set(sorted({cut.supervisions[0].speaker for cut in train})[5::12])
    dev = [cut for cut in train if cut.supervisions[0].speaker in dev_speakers]
    train = [cut for cut in train if cut.supervisions[0].speaker not in dev_speakers]
    splits = {"train": train, "dev": dev, "test": test}
    splits["enroll"], splits["trial"] = _enroll_and_trial(test)
    splits["dev_enroll"], splits["dev_trial"] = _enroll_and_trial(dev)
    return Prepared({split: to_cuts(cuts) for split, cuts in splits.items()}, left_out)


def _read(root: Path, part: str, left_out: list[LeftOut]) -> list[MonoCut]:
    file_ids = _file_ids(root, part)
    texts = _transcripts(root / "etc" / f"an4_{part}.transcription", left_out)
    cuts = []
    for file_id in progress(file_ids, f"an4 {part}"):
        try:
            cuts.append(_cut(root / "wav" / file_id, texts))
        except Unusable as unusable:
            left_out.append(LeftOut(file_id, str(unusable)))
    return cuts


def _file_ids(root: Path, part: str) -> list[str]:
    path = root / "etc" / f"an4_{part}.fileids"
    if not path.is_file():
        raise PrepareError(f"source {root}: etc/{path.name} is missing; expected the lists of CMU's download")
    return [file_id for line in read_lines(path) for file_id in line.split()]


def _unlisted(root: Path) -> list[LeftOut]:
    listed = {file_id for part in ("train", "test") for file_id in _file_ids(root, part)}
    audio = (path for path in sorted((root / "wav").rglob("*")) if path.suffix in (*READABLE_SUFFIXES, ".raw"))
    names = [path.relative_to(root / "wav").as_posix() for path in audio]
    return [LeftOut(name, "file is in neither list of etc/") for name in names if name.rsplit(".", 1)[0] not in listed]


def _transcripts(path: Path, left_out: list[LeftOut]) -> dict[str, str]:
    texts = {}
    for number, line in enumerate(read_lines(path) if path.is_file() else [], start=1):
        match = LINE.fullmatch(line)
        if match is not None:
            texts[match["utterance"]] = " ".join(MARKER.sub(" ", match["text"]).split())
        elif line.strip():
            left_out.append(LeftOut(f"{path.name} line {number}", "transcript line is not 'TEXT (utterance)'"))
    return texts


def _cut(path: Path, texts: dict[str, str]) -> MonoCut:
    speaker = path.parent.name
    cut_id = f"an4-{path.name}"
    return make_cut(
        open_recording(_audio_file(path), cut_id),
        cut_id,
        "an4",
        text=texts.get(path.name),
        speaker=speaker,
        gender=speaker[0],
    )


def _audio_file(path: Path) -> Path:
    for suffix in READABLE_SUFFIXES:
        if (audio := path.with_name(path.name + suffix)).is_file():
            return audio
    if path.with_name(path.name + ".raw").is_file():
        raise Unusable("audio file is headerless .raw; accepted: .wav, .sph (CMU's an4_sphere.tar.gz), .flac")
    return path.with_name(path.name + READABLE_SUFFIXES[0])


def _enroll_and_trial(cuts: Iterable[MonoCut]) -> tuple[list[MonoCut], list[MonoCut]]:
    of_speaker = defaultdict(list)
    for cut in sorted(cuts, key=lambda cut: cut.id):
        of_speaker[cut.supervisions[0].speaker].append(cut)
    enroll = [cut for of_one in of_speaker.values() for cut in of_one[:ENROLMENT_UTTERANCES]]
    trial = [cut for of_one in of_speaker.values() for cut in of_one[ENROLMENT_UTTERANCES:]]
    return enroll, trial
