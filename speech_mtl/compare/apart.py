"""Are test, dev and training data apart? Found by the sound: one recording, and stretches of it that overlap."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from lhotse.cut import Cut, MixedCut, MultiCut

from speech_mtl.config import Config
from speech_mtl.data import DataError, read_cuts

ROUNDING_S = 1e-3
"""Neighbours in a recording overlap by less."""


def check_apart(config: Config) -> str | None:
    """What to beware of, where dev data are training data. Raises DataError where test data are train or dev data."""
    for name in ("test", "out_of_domain"):
        tested = getattr(config.compare, name)
        for role in ("train", "dev") if tested else ():
            if found := _shared(tested, getattr(config.data, role)):
                raise DataError(
                    f"compare.{name}: {found} also in data.{role}; accepted are utterances that no arm is trained or "
                    "chosen on"
                )
    if found := _shared(config.data.dev, config.data.train):
        return f"data.dev: {found} also in data.train; models are chosen by what they have learnt by heart"
    return None


def _shared(manifests: list[str], others: list[str]) -> str:
    """Such as "2 of 300 utterances, such as 'u1', are", of those that the other manifests hold too; '' where none."""
    known = defaultdict(list)
    total = 0
    for cut in read_cuts(manifests):
        total += 1
        for sound, start, end in _stretches(cut):
            known[sound].append((start, end, cut.id))
    shared: dict[str, None] = {}
    for cut in read_cuts(others):
        for sound, start, end in _stretches(cut):
            for other_start, other_end, name in known.get(sound, ()):
                if min(end, other_end) - max(start, other_start) > ROUNDING_S:
                    shared[name] = None
    return f"{len(shared)} of {total} utterances, such as '{next(iter(shared))}', are" if shared else ""


def _stretches(cut: Cut) -> Iterator[tuple[str, float, float]]:
    """(sound, start, end) of what a cut is made of: a channel of a recording's files, wherever they are named from."""
    for part in [track.cut for track in cut.tracks] if isinstance(cut, MixedCut) else [cut]:
        if (recording := getattr(part, "recording", None)) is None:
            continue
        sources = [str(Path(s.source).resolve()) if s.type == "file" else str(s.source) for s in recording.sources]
        for channel in part.channel if isinstance(part, MultiCut) else [part.channel]:
            yield f"{sources} {channel}", part.start, part.end
