"""A corpus of synthetic English speech with exact word times and any number of speakers; nothing is downloaded.

``source`` is the folder the 16 kHz FLAC files are written to. Returns train, dev and test; the speakers of dev and test
are not in train. A speaker is an accent, a voice variant, a pitch, a rate and a vocal-tract length, drawn without
repetition; an utterance varies pace, level, silence around it and a noise floor. Texts are AN4's kinds and plain
English (synthetic_text.py) or the lines of a file. Everything follows from the seed. Word times stand in
``supervision.alignment["word"]``, in seconds of the recording; labels: gender, accent.

Source: espeak-ng (see espeak.py).
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
from lhotse import MonoCut
from lhotse.supervision import AlignmentItem

from data_prep.common import (
    LeftOut,
    Prepared,
    PrepareError,
    check_counts,
    make_cut,
    open_recording,
    progress,
    read_lines,
    to_cuts,
    write_flac,
)
from data_prep.espeak import ACCENTS, FEMALE_VARIANTS, MALE_VARIANTS, SAMPLE_RATE, Voice, synthesize
from data_prep.synthetic_text import Sentence, sentence

GENERATES = True
# AN4's speakers are Americans: half of ours, too.
ACCENT_WEIGHTS = {accent: 7 if accent == "en-us" else 1 for accent in ACCENTS}


def prepare(
    source: Path,
    *,
    speakers: int = 120,
    utterances: int = 40,
    dev_speakers: int = 6,
    test_speakers: int = 10,
    held_out_utterances: int = 20,
    texts: Path | None = None,
    seed: int = 0,
) -> Prepared:
    check_counts(1, speakers=speakers, utterances=utterances)
    check_counts(0, dev_speakers=dev_speakers, test_speakers=test_speakers, held_out_utterances=held_out_utterances)
    left_out: list[LeftOut] = []
    lines = _read_texts(texts, left_out) if texts is not None else None
    voices = draw_voices(speakers + dev_speakers + test_speakers, seed)
    split_of = ["dev"] * dev_speakers + ["test"] * test_speakers + ["train"] * speakers
    splits: dict[str, list[MonoCut]] = {"train": [], "dev": [], "test": []}
    for index, (voice, split) in enumerate(zip(progress(voices, "synthetic speakers"), split_of, strict=True)):
        for number in range(utterances if split == "train" else held_out_utterances):
            # A stream of its own for every utterance: more speakers or utterances leave the others as they were.
            rng = Random(f"{seed}/{index}/{number}")
            spoken = Sentence(rng.choice(lines), dictated=rng.random() < 0.3) if lines else sentence(rng)
            splits[split].append(_utterance(source, f"{seed}-{index:04d}", number, spoken, voice, rng))
    return Prepared({split: to_cuts(cuts) for split, cuts in splits.items() if cuts}, left_out)


def draw_voices(count: int, seed: int) -> list[Voice]:
    """Distinct voices, women and men by turns; the first n do not depend on how many are drawn."""
    rng = Random(f"voices/{seed}")
    voices: list[Voice] = []
    taken: set[tuple[str, str, int]] = set()
    while len(voices) < count:
        female = len(voices) % 2 == 0
        voice = Voice(
            accent=rng.choices(list(ACCENT_WEIGHTS), weights=list(ACCENT_WEIGHTS.values()))[0],
            variant=rng.choice(FEMALE_VARIANTS if female else MALE_VARIANTS),
            pitch=rng.randint(30, 70),
            pitch_range=rng.randint(25, 75),
            rate_wpm=rng.randint(135, 215),
            tract=round(rng.uniform(0.88, 1.14), 3),
        )
        # Two voices of one variant must differ in the vocal tract, which is what tells speakers apart.
        key = (voice.accent, voice.variant, round(voice.tract * 25))
        if key not in taken or len(taken) > 10_000:
            taken.add(key)
            voices.append(voice)
    return voices


def _read_texts(path: Path, left_out: list[LeftOut]) -> list[str]:
    if not path.is_file():
        raise PrepareError(f"option texts: {path} is no file; expected a text file with a sentence a line")
    kept = []
    for number, line in enumerate(read_lines(path), start=1):
        if any(character.isdigit() for character in line):
            left_out.append(LeftOut(f"{path.name} line {number}", "text holds figures; write numbers as words"))
        elif any(character.isalpha() for character in line):
            kept.append(line.strip())
    if not kept:
        raise PrepareError(f"option texts: {path} holds no usable sentence; expected words, numbers written as words")
    return kept


def _utterance(source: Path, speaker: str, number: int, spoken: Sentence, voice: Voice, rng: Random) -> MonoCut:
    gap_s = rng.choice([0.0, 0.0, rng.uniform(0.02, 0.25)]) if spoken.dictated else 0.0
    pace = rng.uniform(0.75, 1.0) if spoken.dictated else rng.uniform(0.9, 1.15)
    rate_wpm, pitch = round(voice.rate_wpm * pace), voice.pitch + rng.randint(-3, 3)
    synthesis = synthesize(spoken.text, replace(voice, rate_wpm=rate_wpm, pitch=pitch), word_gap_s=gap_s)
    lead_s = rng.uniform(0.05, 0.4)
    samples = in_a_room(synthesis.samples, lead_s, rng.uniform(0.05, 0.4), rng)
    # a preparation with other options leaves the sound of this one, to which manifests point, alone
    digest = hashlib.sha256(samples.tobytes()).hexdigest()[:8]
    path = source / speaker / f"{speaker}-{number:03d}-{digest}.flac"
    if not path.exists():
        write_flac(path, samples, SAMPLE_RATE)
    cut_id = f"synthetic-{speaker}-{number:03d}"
    cut = make_cut(
        open_recording(path, cut_id),
        cut_id,
        "synthetic",
        text=" ".join(word.word for word in synthesis.words),
        speaker=speaker,
        gender=voice.gender,
        labels={"accent": voice.accent},
    )
    shift_s = round(lead_s * SAMPLE_RATE) / SAMPLE_RATE
    alignment = [AlignmentItem(w.word, round(w.start_s + shift_s, 4), w.duration_s) for w in synthesis.words]
    cut.supervisions = [cut.supervisions[0].with_alignment("word", alignment)]
    return cut


def in_a_room(samples: np.ndarray, lead_s: float, tail_s: float, rng: Random) -> np.ndarray:
    """Silence around, a level as of a real microphone, and noise in place of digital zeros."""
    level = 10 ** (rng.uniform(-16, -3) / 20) / max(float(np.abs(samples).max()), 1e-4)
    lead, tail = (round(seconds * SAMPLE_RATE) for seconds in (lead_s, tail_s))
    padded = np.pad(samples * level, (lead, tail))
    noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(len(padded))
    # Falls with frequency as room noise does.
    noise = noise + np.concatenate([[0.0], noise[:-1]])
    floor = 10 ** (rng.uniform(-75, -50) / 20) / np.sqrt(2)
    return np.clip(padded + floor * noise, -1.0, 1.0).astype(np.float32)
