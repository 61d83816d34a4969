"""Neural synthetic English speech: Kokoro's voices, and mixtures of them, saying what AN4's speakers say.

``source`` is a folder with Kokoro-82M's ONNX model (``*.onnx``) and its voices (``voices*``); the package kokoro-onnx
(extra ``kokoro``), whose releases hold the two files, speaks them. Returns train only: most speakers are mixtures of
two voices, so that no speaker would be new to a model that has heard the others. A speaker is a voice, or two of one
gender mixed and heard with another vocal-tract length, and a rate; texts, level, the silence around and the noise floor
are those of the corpus synthetic, which has word times, too. Labels: gender, voice. Everything follows from the seed.

It takes 0.6 of the speech's time on two cores. What is already in the output folder is not spoken again, so a
preparation that was stopped goes on where it was.

Sources: https://github.com/thewh1teagle/kokoro-onnx (MIT); https://huggingface.co/hexgrad/Kokoro-82M (Apache 2.0).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from random import Random
from typing import Any
from zipfile import BadZipFile

import numpy as np
import soxr
from lhotse import MonoCut

from data_prep.common import (
    Prepared,
    PrepareError,
    check_counts,
    make_cut,
    open_recording,
    progress,
    to_cuts,
    write_flac,
)
from data_prep.download import Archive
from data_prep.synthetic import SAMPLE_RATE, in_a_room
from data_prep.synthetic_text import sentence

RELEASE = "https://github.com/thewh1teagle/kokoro-onnx/releases/download/model-files-v1.0"
SHA256 = {
    "kokoro-v1.0.int8.onnx": "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb",
    "voices-v1.0.bin": "bca610b8308e8d99f32e6fe4197e7ec01679264efed0cac9140fe9c29f1fbf7d",
}
SPOKEN_AS = {"rubout": "rub out"}
"""Words that espeak, which makes the phonemes, says otherwise than people do."""
SHARES = range(25, 51)
"""Per cent of a mixture that are of its second voice."""
PAUSED = 0.35
"""Share of dictated texts with a pause after every letter and word."""


@dataclass(frozen=True)
class Speaker:
    """One speaker: a voice of Kokoro's, or two mixed."""

    voice: str
    other: str
    share: float
    """Of `other`; 0 where there is but one voice."""
    tract: float
    """Factor on all formants and the pitch: above 1 a shorter vocal tract."""
    speed: float

    @property
    def name(self) -> str:
        return f"{self.voice}-{self.other}-{100 * self.share:.0f}" if self.share else self.voice

    @property
    def language(self) -> str:
        """Of the phonemes: British voices (b) speak British English, all others American, foreigners with an accent."""
        return "en-gb" if self.voice.startswith("b") else "en-us"


def archives() -> list[Archive]:
    return [Archive(f"{RELEASE}/{name}", sha256=sha256, unpack=False) for name, sha256 in SHA256.items()]


def prepare(source: Path, audio: Path, *, speakers: int = 100, utterances: int = 20, seed: int = 0) -> Prepared:
    check_counts(1, speakers=speakers, utterances=utterances)
    model, voices = _found(source, "*.onnx"), _found(source, "voices*")
    drawn = draw_speakers(_names(voices), speakers, seed)
    kokoro = _kokoro(model, voices)
    cuts: list[MonoCut] = []
    for speaker in progress(drawn, "kokoro speakers"):
        cuts += _utterances(speaker, audio / speaker.name, utterances, seed, kokoro)
    return Prepared({"train": to_cuts(cuts)})


def draw_speakers(voices: list[str], count: int, seed: int) -> list[Speaker]:
    """Every voice once, then mixtures of two of one gender; the first n do not depend on how many are drawn.

    A voice's name is its language, its gender (f, m) and a name, such as af_heart. Raises PrepareError.
    """
    if odd := [voice for voice in voices if voice[1:3] not in ("f_", "m_")]:
        raise PrepareError(f"voice {odd[0]!r}: expected a language, a gender and a name, such as af_heart")
    rng = Random(f"kokoro/{seed}")
    drawn = [Speaker(voice, voice, 0.0, 1.0, round(rng.uniform(0.85, 1.2), 2)) for voice in sorted(voices)]
    rng.shuffle(drawn)
    pairs = [(a, b) for a in sorted(voices) for b in sorted(voices) if a[1] == b[1] and a != b]
    most = len(voices) + len(SHARES) * len(pairs)
    if count > most:
        raise PrepareError(f"option speakers: {count} given; {len(voices)} voices and their mixtures make {most}")
    while len(drawn) < count:
        voice, other = rng.choice(pairs)
        share, tract = rng.choice(SHARES) / 100, round(rng.uniform(0.92, 1.1), 3)
        speaker = Speaker(voice, other, share, tract, round(rng.uniform(0.85, 1.2), 2))
        if speaker.name not in {known.name for known in drawn}:
            drawn.append(speaker)
    return drawn[:count]


def phonemes_of(text: str, paused: bool, language: str, tokenizer: Any) -> str:
    """A text's phonemes: letters by their names ('A' is one, 'a' the article), or with a pause after every word."""
    words = (text.replace(",", "") if paused else text).split()
    parts: list[str] = []
    for alone, run in groupby(words, key=lambda word: paused or len(word) == 1 and word != "a"):
        said = [word.upper() if len(word) == 1 and word != "a" else SPOKEN_AS.get(word, word) for word in run]
        parts += [tokenizer.phonemize(one, language).strip() for one in (said if alone else [" ".join(said)])]
    return (", " if paused else " ").join(parts)


def _found(source: Path, pattern: str) -> Path:
    if not (found := sorted(source.glob(pattern))):
        names = ", ".join(sorted(path.name for path in source.iterdir())[:8]) if source.is_dir() else "no folder"
        raise PrepareError(f"source {source}: holds {names or 'nothing'}; expected Kokoro's {pattern} in it")
    return found[0]


def _names(voices: Path) -> list[str]:
    try:
        with np.load(voices) as found:
            return sorted(found.files)
    except (ValueError, OSError, TypeError, BadZipFile) as error:
        raise PrepareError(f"{voices}: {error}; expected Kokoro's voices as numpy's npz") from None


def _kokoro(model: Path, voices: Path) -> Any:
    """The synthesiser. Raises PrepareError."""
    try:
        import onnxruntime
        from kokoro_onnx import Kokoro
    except ImportError as error:
        raise PrepareError(f"{error.name} is missing; expected pip install 'speech_mtl[kokoro]'") from None
    try:
        session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors have no other base
        raise PrepareError(f"{model}: {str(error).splitlines()[0]}; expected Kokoro's ONNX model") from None
    return Kokoro.from_session(session, str(voices))


def _utterances(speaker: Speaker, folder: Path, utterances: int, seed: int, kokoro: Any) -> Iterator[MonoCut]:
    style = (1 - speaker.share) * kokoro.voices[speaker.voice] + speaker.share * kokoro.voices[speaker.other]
    for number in range(utterances):
        rng = Random(f"{seed}/{speaker.name}/{number}")
        spoken = sentence(rng)
        paused = spoken.dictated and rng.random() < PAUSED
        phonemes = phonemes_of(spoken.text, paused, speaker.language, kokoro.tokenizer)
        speed = round(speaker.speed * rng.uniform(0.92, 1.08), 3)
        digest = hashlib.sha256(f"{phonemes}/{speaker}/{speed}".encode()).hexdigest()[:8]
        path = folder / f"{number:03d}-{digest}.flac"
        if not path.exists():
            samples, rate = kokoro.create(phonemes, style.astype(np.float32), speed, is_phonemes=True)
            samples = soxr.resample(samples.astype(np.float32), rate * speaker.tract, SAMPLE_RATE)
            samples = in_a_room(samples, rng.uniform(0.05, 0.4), rng.uniform(0.05, 0.4), rng)
            write_flac(path, samples, SAMPLE_RATE)
        cut_id = f"kokoro-{speaker.name}-{number:03d}"
        yield make_cut(
            open_recording(path, cut_id),
            cut_id,
            "kokoro",
            text=spoken.text.replace(",", "").lower(),
            speaker=speaker.name,
            gender=speaker.voice[1],
            labels={"voice": speaker.voice},
        )
