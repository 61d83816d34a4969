"""LibriSpeech: read English audiobooks, 16 kHz; whichever of its subsets are on the disk.

Takes the ``LibriSpeech`` folder, its parent, or a folder of subsets in its layout
(``subset/speaker/chapter/speaker-chapter-number.flac`` with ``speaker-chapter.trans.txt``). Returns one split per
subset (``dev-clean``, ``train-clean-100``, ...). Labels: gender from SPEAKERS.TXT where it is there, chapter.

Source: https://www.openslr.org/12, CC BY 4.0. The SHA-256 sums are those of torchaudio.datasets.LIBRISPEECH.
"""

from __future__ import annotations

from pathlib import Path

from lhotse import MonoCut

from data_prep.common import (
    LeftOut,
    Prepared,
    PrepareError,
    Unusable,
    make_cut,
    open_recording,
    progress,
    read_lines,
    to_cuts,
)
from data_prep.download import Archive

SHA256 = {
    "dev-clean": "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
    "dev-other": "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365",
    "test-clean": "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
    "test-other": "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29",
    "train-clean-100": "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
    "train-clean-360": "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
    "train-other-500": "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
}


def archives(subsets: tuple[str, ...] = ()) -> list[Archive]:
    """The subsets asked for; without a choice the three that make a first experiment (7 GB)."""
    chosen = subsets or ("train-clean-100", "dev-clean", "test-clean")
    for subset in chosen:
        if subset not in SHA256:
            raise PrepareError(f"option subsets: {subset!r} cannot be downloaded; accepted: {', '.join(SHA256)}")
    return [Archive(f"https://www.openslr.org/resources/12/{s}.tar.gz", sha256=SHA256[s]) for s in chosen]


def prepare(source: Path, *, subsets: tuple[str, ...] = ()) -> Prepared:
    """``subsets``: names to prepare, separated by commas on the command line; without it all that are found."""
    root, found = _find(source)
    missing = [subset for subset in subsets if subset not in found]
    if missing:
        raise PrepareError(f"option subsets: {missing[0]!r} is not in {root}; found: {', '.join(found)}")
    genders = _genders(root / "SPEAKERS.TXT")
    left_out: list[LeftOut] = []
    splits = {subset: to_cuts(_read(root / subset, genders, left_out)) for subset in subsets or found}
    return Prepared(splits, left_out)


def _find(source: Path) -> tuple[Path, list[str]]:
    for root in (source / "LibriSpeech", source):
        found = sorted({path.parents[2].name for path in root.glob("*/*/*/*.trans.txt")})
        if found:
            return root, found
    expected = "subset/speaker/chapter/*.trans.txt or LibriSpeech/subset/speaker/chapter/*.trans.txt"
    raise PrepareError(f"source {source}: no LibriSpeech subset found; expected {expected}")


def _genders(path: Path) -> dict[str, str]:
    """SPEAKERS.TXT: ``14 | F | train-clean-360 | 25.03 | name``; lines that begin with ';' are comments."""
    if not path.is_file():
        return {}
    rows = [line.split("|") for line in read_lines(path) if not line.startswith(";")]
    return {row[0].strip(): row[1].strip() for row in rows if len(row) > 1}


def _read(folder: Path, genders: dict[str, str], left_out: list[LeftOut]) -> list[MonoCut]:
    cuts = []
    for chapter in progress(sorted(folder.glob("*/*/")), f"librispeech {folder.name}"):
        texts = _transcripts(chapter, left_out)
        audio = {path.stem: path for path in chapter.glob("*.flac")}
        for utterance in sorted(texts.keys() | audio.keys()):
            try:
                path = audio.get(utterance, chapter / f"{utterance}.flac")
                cuts.append(_cut(path, texts.get(utterance), genders))
            except Unusable as unusable:
                left_out.append(LeftOut(utterance, str(unusable)))
    return cuts


def _transcripts(chapter: Path, left_out: list[LeftOut]) -> dict[str, str]:
    texts = {}
    for path in chapter.glob("*.trans.txt"):
        for number, line in enumerate(read_lines(path), start=1):
            utterance, _, text = line.strip().partition(" ")
            if text:
                texts[utterance] = text
            elif utterance:
                left_out.append(LeftOut(f"{path.name} line {number}", "transcript line is not 'UTTERANCE TEXT'"))
    return texts


def _cut(path: Path, text: str | None, genders: dict[str, str]) -> MonoCut:
    cut_id = f"librispeech-{path.stem}"
    chapter = path.parent
    return make_cut(
        open_recording(path, cut_id),
        cut_id,
        "librispeech",
        text=text,
        speaker=chapter.parent.name,
        gender=genders.get(chapter.parent.name),
        labels={"chapter": chapter.name},
    )
