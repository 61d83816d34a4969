"""The demo's recordings: a conversation of four synthetic voices, and clips that enrol three of them.

`python -m data_prep.demo FOLDER` writes conversation.flac, truth.json (who says what, when) and {name}_{n}.flac there.
The voices are drawn with a seed of their own: none of them is in the synthetic training corpus. Source: espeak-ng.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile

from data_prep.espeak import SAMPLE_RATE, Voice, synthesize

VOICES = {
    "anna": Voice("en-us", "f1", pitch=60, rate_wpm=160, tract=1.08),
    "ben": Voice("en-us", "m3", pitch=40, rate_wpm=150, tract=0.92),
    "carla": Voice("en-us", "f4", pitch=38, rate_wpm=165, tract=0.95),
    "guest": Voice("en-us", "m7", pitch=62, rate_wpm=155, tract=1.06),
}
TURNS = [
    ("anna", "enter four seven one nine"),
    ("ben", "repeat"),
    ("anna", "four seven one nine"),
    ("carla", "my name is s m i t h"),
    ("ben", "september third nineteen sixty two"),
    ("guest", "twenty eight forest drive"),
    ("carla", "erase g e k three five"),
    ("anna", "yes"),
    ("ben", "area code four one two five five five two six eight one"),
    ("guest", "stop"),
    ("carla", "one five two three zero"),
    ("ben", "rubout t b r n six"),
]
CLIPS = {
    "anna": ["enter nine two six", "j o h n s o n", "my number is five five five eight three"],
    "ben": ["start", "p i t t s b u r g h", "november twelfth nineteen fifty"],
    "carla": ["help", "seventeen hundred maple street", "w o o d eight four"],
}


@dataclass
class Turn:
    start_s: float
    end_s: float
    speaker: str
    text: str


def speak(name: str, text: str, rng: np.random.Generator) -> np.ndarray:
    """One turn, levelled, with the noise floor of a room."""
    spelled = any(len(word) == 1 for word in text.split())
    samples = synthesize(text, VOICES[name], word_gap_s=0.12 if spelled else 0.05).samples
    samples = 0.35 * samples / np.abs(samples).max()
    return samples + 0.0005 * rng.standard_normal(len(samples)).astype(np.float32)


def make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    for name, texts in CLIPS.items():
        for number, text in enumerate(texts, start=1):
            _write(folder / f"{name}_{number}.flac", speak(name, text, rng))
    parts, turns, place = [_pause(0.4, rng)], [], 0.4
    for name, text in TURNS:
        samples = speak(name, text, rng)
        end = place + len(samples) / SAMPLE_RATE
        turns.append(Turn(round(place, 3), round(end, 3), name if name in CLIPS else "unknown", text))
        parts += [samples, _pause(0.75, rng)]
        place = end + 0.75
    _write(folder / "conversation.flac", np.concatenate(parts))
    (folder / "truth.json").write_text(json.dumps([asdict(turn) for turn in turns], indent=1) + "\n")


def _pause(seconds: float, rng: np.random.Generator) -> np.ndarray:
    return 0.0005 * rng.standard_normal(round(seconds * SAMPLE_RATE)).astype(np.float32)


def _write(path: Path, samples: np.ndarray) -> None:
    soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
