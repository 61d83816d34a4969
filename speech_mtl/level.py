"""How loud a recording is, as far as it was read: silent, soft or clipped, and what a person should know of that."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CLIPPED_SHARE = 0.001
"""Share of the samples at full scale from which a recording is said to be clipped."""
SILENCE_PEAK_TO_PEAK = 2 / 32768
"""Two steps of 16 bits: below it a recording holds dither at most."""
SOFT_DB = -54.0
"""A recording whose highest sample is lower, relative to full scale, is said to be soft: in conversations 42 dB softer
than AN4's more words than usual are under a wrong voice, 48 dB softer three times as many."""


@dataclass
class FullScale:
    """How many samples of a file there are, and how many are at full scale in one of its channels."""

    samples: int = 0
    clipped: int = 0

    def add(self, block: np.ndarray) -> None:
        """(N,) or (N, channels) as they are in the file: averaged, centred or resampled they show it no more."""
        self.samples += len(block)
        self.clipped += int((np.abs(block.reshape(len(block), -1)) >= 0.999).any(axis=1).sum())

    @property
    def share(self) -> float:
        return self.clipped / max(1, self.samples)


@dataclass
class Level:
    """What blocks of float32 samples are like together."""

    samples: int = 0
    clipped_share: float = 0.0
    """Of the file's samples, see FullScale."""
    low: float = np.inf
    high: float = -np.inf

    def add(self, block: np.ndarray) -> None:
        if len(block):
            self.samples += len(block)
            self.low, self.high = min(self.low, float(block.min())), max(self.high, float(block.max()))

    @property
    def is_silent(self) -> bool:
        """Whether all is digital silence: constant up to dither."""
        return self.high - self.low < SILENCE_PEAK_TO_PEAK

    @property
    def note(self) -> str | None:
        """What a person should know; None where nothing."""
        if self.is_silent:
            return "digital silence: no text, no speaker"
        if self.clipped_share >= CLIPPED_SHARE:
            share = f"{100 * self.clipped_share:.1f} % of the samples are at full scale"
            return f"clipped: {share}; text and speaker may suffer"
        if (peak_db := 20 * np.log10(max(-self.low, self.high))) < SOFT_DB:
            return f"soft: its highest sample is at {peak_db:.0f} dB of full scale; text and speaker may suffer"
        return None
