"""Free Spoken Digit Dataset: six speakers say the ten digits fifty times each, one digit a file, 8 kHz.

Takes the repository's root or its ``recordings`` folder; returns the splits train, dev and test. The corpus defines
its test set: indices 0-4 of every speaker and digit. Indices 5-9 are our dev set, the rest is train, so that every
speaker is in every split (closed-set identification).

Source: https://github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0. Gender and accent: its metadata.py.
"""

from __future__ import annotations

import re
from pathlib import Path

from lhotse import MonoCut

from data_prep.common import LeftOut, Prepared, PrepareError, Unusable, make_cut, open_recording, progress, to_cuts
from data_prep.download import Archive

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FILE_NAME = re.compile(r"(?P<digit>[0-9])_(?P<speaker>[a-z0-9-]+)_(?P<index>[0-9]+)\.wav", re.IGNORECASE)
ACCENTS = {
    "jackson": "USA/neutral",
    "nicolas": "BEL/French",
    "theo": "USA/neutral",
    "yweweler": "DEU/German",
    "george": "GRC/Greek",
    "lucas": "DEU/German",
}


def archives() -> list[Archive]:
    url = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/heads/master.zip"
    return [Archive(url, file_name="free-spoken-digit-dataset.zip")]


def prepare(source: Path) -> Prepared:
    splits: dict[str, list[MonoCut]] = {"train": [], "dev": [], "test": []}
    left_out = []
    for path in progress(_wav_files(source), "fsdd"):
        name = FILE_NAME.fullmatch(path.name)
        if name is None:
            left_out.append(LeftOut(path.name, "file name is not {digit}_{speaker}_{index}.wav"))
            continue
        try:
            cut = _cut(path, name)
        except Unusable as unusable:
            left_out.append(LeftOut(path.name, str(unusable)))
        else:
            splits[_split(int(name["index"]))].append(cut)
    return Prepared({split: to_cuts(cuts) for split, cuts in splits.items()}, left_out)


def _wav_files(source: Path) -> list[Path]:
    places = [source / "recordings", source, *sorted(source.glob("*/recordings"))]
    for folder in places:
        files = sorted(path for path in folder.glob("*") if path.suffix.lower() == ".wav")
        if files:
            return files
    raise PrepareError(f"source {source}: no .wav files; expected the FSDD repository or its recordings folder")


def _split(index: int) -> str:
    return "test" if index < 5 else "dev" if index < 10 else "train"


def _cut(path: Path, name: re.Match[str]) -> MonoCut:
    cut_id = f"fsdd-{path.stem}"
    accent = ACCENTS.get(name["speaker"].lower())
    return make_cut(
        open_recording(path, cut_id),
        cut_id,
        "fsdd",
        text=DIGITS[int(name["digit"])],
        speaker=name["speaker"],
        # The metadata lists all six as male; a speaker added later is not in it.
        gender="male" if accent else None,
        labels={"accent": accent},
    )
