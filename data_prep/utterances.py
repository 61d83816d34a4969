"""A manifest of single utterances as the source of recordings made of them: read, by speaker, as samples."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from lhotse.cut import Cut

from data_prep.common import LeftOut, PrepareError
from speech_mtl.audio import averaged, reason_of
from speech_mtl.data import DataError, Manifest

SAMPLE_RATE = 16000


def read(manifest: Path) -> list[Cut]:
    """Raises PrepareError."""
    if not manifest.is_file():
        raise PrepareError(f"source {manifest}: is no file; expected a manifest of cuts (jsonl.gz)")
    try:
        return list(Manifest(manifest))
    except DataError as error:
        raise PrepareError(f"source {error}") from None


def by_speaker(cuts: Iterable[Cut], left_out: list[LeftOut]) -> dict[str, list[Cut]]:
    """The cuts that are one utterance with a text and a speaker; the others go to `left_out`."""
    found: dict[str, list[Cut]] = {}
    for cut in cuts:
        if len(cut.supervisions) != 1 or not cut.supervisions[0].text or not cut.supervisions[0].speaker:
            left_out.append(LeftOut(cut.id, "is not one utterance with a text and a speaker"))
        else:
            found.setdefault(cut.supervisions[0].speaker, []).append(cut)
    return found


def samples(cut: Cut) -> np.ndarray:
    """(N,) at SAMPLE_RATE, channels averaged. Raises PrepareError."""
    try:
        return averaged(cut.resample(SAMPLE_RATE).load_audio().T)
    except Exception as error:  # lhotse raises many kinds, over many lines
        recording = getattr(cut, "recording", None)
        path = recording.sources[0].source if recording else "its sound"
        raise PrepareError(f"cut '{cut.id}': {path} cannot be read: {reason_of(error)}") from None
