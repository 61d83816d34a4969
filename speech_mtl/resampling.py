"""Samples from one rate to another, all at once or block by block with the same result. Imports torch when called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import ceil, gcd

import numpy as np

LARGEST_KERNEL = 16_000_000
"""Taps torchaudio's resampler may hold (64 MB); it holds one filter for every phase of the rates' ratio."""
FILTER_ZEROS = 6
"""Zero crossings of torchaudio's resampling filter to either side."""


def resample(samples: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """float32 (N,) from one rate in Hz to another, by the resampler that the training data went through (lhotse's).

    Another one would fill the bands above the old Nyquist frequency differently, which the log-mel features show.
    """
    if rate == sample_rate:
        return samples
    old, new = rate // gcd(rate, sample_rate), sample_rate // gcd(rate, sample_rate)
    if old * new > LARGEST_KERNEL:  # rates without a common factor, such as 47999 Hz
        import soxr

        return soxr.resample(samples, rate, sample_rate)
    import torch

    from speech_mtl.torchaudio_pair import torchaudio

    return torchaudio.functional.resample(torch.from_numpy(samples), rate, sample_rate).numpy()


def resampled(blocks: Iterable[np.ndarray], rate: int, sample_rate: int) -> Iterator[np.ndarray]:
    """Blocks of one recording from one rate in Hz to another: the samples that `resample` gives for all of it."""
    if rate == sample_rate:
        yield from blocks
        return
    old, new = rate // gcd(rate, sample_rate), sample_rate // gcd(rate, sample_rate)
    if old * new > LARGEST_KERNEL:
        yield from _resampled_by_soxr(blocks, rate, sample_rate)
        return
    # whole periods of the rates' ratio, as many as the filter reaches over
    context = old * (1 + ceil(FILTER_ZEROS * old / (0.99 * min(old, new)) / old))
    held, before = np.zeros(0, dtype=np.float32), 0
    for block in blocks:
        held = np.concatenate([held, block])
        usable = (len(held) - context) // old * old
        if usable > before:
            yield resample(held[: usable + context], rate, sample_rate)[before // old * new : usable // old * new]
            keep = max(0, usable - context)
            held, before = held[keep:], usable - keep
    if len(held) > before:
        yield resample(held, rate, sample_rate)[before // old * new :]


def _resampled_by_soxr(blocks: Iterable[np.ndarray], rate: int, sample_rate: int) -> Iterator[np.ndarray]:
    import soxr

    stream = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
