"""A recording of any length -> its log-probabilities and frames, from one run of the encoder a window, in flat memory.

Blocks of samples come in, `Stretch`es go out: what lies between two pauses, with the stitched log-probabilities to be
decoded and the frames that the speaker and classify tasks read. A window is a core with context on both sides, of which
only the core's frames are kept. Attention sees a few seconds to either side (`encoder.reach_s`) and cores end where it
is quiet, so that windows give what one piece would give. Digital silence is skipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from speech_mtl.level import SILENCE_PEAK_TO_PEAK
from speech_mtl.lift import Lift
from speech_mtl.model import SpeechModel
from speech_mtl.tasks import Frames
from speech_mtl.text import WORD_MARK

CORE_S = 30.0
"""A window's core, at most; its end is looked for in the last quarter."""
CONTEXT_S = 4.0
"""What the encoder hears on either side of a core. The blocks together reach further, but no word changes with more."""
GRID_S = 1.0
"""Windows last a multiple of this where there is more to hear: the kernels made for a length serve again, and their
number, which is kept in memory, does not grow with the recording."""
SKIPPED_S = 1.0
"""Digital silence from this length on is not listened to."""
MARGIN_S = 0.24
"""What is kept of it on either side of the sound."""
PAUSE_S = 0.5
"""Without a token for so long, what came before can be decoded by itself."""
STRETCH_S = 60.0
"""Longer than this nothing is held back for want of a pause."""
BATCH_S = 20.0
"""Windows heard together last no longer than this with their padding, and longer ones are heard alone: on one thread
windows of 1 to 3 s take 0.5 to 0.7 of the time in batches of 8, from 10 s on batches gain nothing."""
POOL = 64
"""Short windows are gathered, so many at most, to be batched with those of their length."""

K = TypeVar("K")


@dataclass(frozen=True)
class Window:
    """Samples from `start` on, of which first..last is the core; all counted from the recording's first sample."""

    samples: np.ndarray
    start: int
    first: int
    last: int
    ends: bool
    """Whether the sound ends here: digital silence, or the recording's end."""


@dataclass(frozen=True)
class Stretch:
    """Frames in a row, the first of which is the recording's frame number `start`."""

    start: int
    log_probs_SV: Tensor
    frames: dict[str, Frames]
    """What each of the other tasks' heads reads, as a batch of one."""


class _Held:
    """Samples read and not yet done with; `origin` is the first one's place in the recording, a multiple of `cell`."""

    def __init__(self, blocks: Iterable[np.ndarray], rate: int, cell: int):
        self.blocks, self.cell = iter(blocks), cell
        self.samples = np.zeros(0, dtype=np.float32)
        self.origin = 0
        self.complete = False
        self.lift = Lift(rate)

    @property
    def end(self) -> int:
        return self.origin + len(self.samples)

    def read_to(self, end: int) -> None:
        parts = [self.samples]
        reached = self.end
        while reached < end and not self.complete:
            block = next(self.blocks, None)
            self.complete = block is None
            if block is not None:
                parts.append(block)
                self.lift.add(block)
                reached += len(block)
        self.samples = np.concatenate(parts)

    def forget_before(self, place: int) -> None:
        place = max(self.origin, place // self.cell * self.cell)
        self.samples, self.origin = self.samples[place - self.origin :].copy(), place

    def part(self, start: int, end: int) -> np.ndarray:
        return self.samples[start - self.origin : end - self.origin]

    def silent_run(self, start: int, least: int) -> tuple[int, int] | None:
        """The first run of `least` cells of digital silence from `start` on: (first sample, first sample after it)."""
        count = (self.end - start) // self.cell
        cells = self.part(start, start + count * self.cell).reshape(count, self.cell)
        edges = np.diff(np.r_[0, (np.ptp(cells, axis=1) < SILENCE_PEAK_TO_PEAK).astype(int), 0])
        for first, last in zip(np.flatnonzero(edges > 0), np.flatnonzero(edges < 0), strict=True):
            if last - first >= least:
                return start + int(first) * self.cell, start + int(last) * self.cell
        return None


def windows(
    blocks: Iterable[np.ndarray], rate: int, cell: int, core_s: float = CORE_S, context_s: float = CONTEXT_S
) -> Iterator[Window]:
    """Blocks of a recording -> overlapping windows whose cores cover all that is not digital silence.

    `cell` is the number of samples in an encoder frame; windows and cores start at multiples of it.
    """
    held = _Held(blocks, rate, cell)
    core, context, grid = (max(1, round(seconds * rate / cell)) * cell for seconds in (core_s, context_s, GRID_S))
    least, margin = round(SKIPPED_S * rate / cell), round(MARGIN_S * rate / cell) * cell
    sound_start = first = 0
    while True:
        held.read_to(first + core + context + grid)
        if first >= held.end:
            return
        run = held.silent_run(first, least)
        # a run that goes on to the end of what was read may go on beyond it, too
        if run is not None and run[0] == first:
            while run[1] + cell > held.end and not held.complete:
                held.forget_before(held.end - 2 * least * cell)
                held.read_to(held.end + core)
                run = held.silent_run(held.origin, least) or run
            if run[1] + cell > held.end:  # nothing but a part of a cell is left
                return
            sound_start = first = max(first, run[1] - margin)
            held.forget_before(first)
            continue
        limit = held.end if run is None else min(run[0] + margin, held.end)
        # where a silence begins, without the margin, decides: a cut within it would leave no sound to end
        ends = held.complete and limit - first <= core if run is None else run[0] - first <= core
        last = limit if ends else _quietest(held, first + core * 3 // 4, min(first + core, limit))
        start = max(sound_start, first - context)
        heard_to = start - (start - last - context) // grid * grid
        yield Window(held.lift.of(held.part(start, min(limit, heard_to))), start, first, last, ends)
        first = run[0] if ends and run is not None else last
        held.forget_before(first - context)


def _quietest(held: _Held, low: int, high: int) -> int:
    """Where between two places the level in dB, averaged over half a second, is lowest; at a multiple of a cell."""
    low, high = low // held.cell * held.cell, high // held.cell * held.cell
    level_db = 10 * np.log10(np.square(held.part(low, high)).reshape(-1, held.cell).mean(axis=1) + 1e-10)
    smooth_db = np.convolve(np.pad(level_db, 6, mode="edge"), np.ones(13) / 13, mode="valid")
    return low + int(np.argmin(smooth_db)) * held.cell


def cores(
    model: SpeechModel, blocks: Iterable[np.ndarray], asr: str | None, others: list[str], **sizes: float
) -> Iterator[tuple[Stretch, bool]]:
    """One run of the encoder a window -> the frames of its core, and whether the sound ends there.

    `asr` and `others` name the tasks; without `asr` there are no log-probabilities. `sizes` are those of `windows`.
    """
    for window in windows(blocks, model.config.features.sample_rate, model.frame_samples, **sizes):
        yield hear(model, [window], asr, others)[0], window.ends


@torch.inference_mode()
def hear(model: SpeechModel, batch: list[Window], asr: str | None, others: list[str]) -> list[Stretch]:
    """One run of the encoder for some windows -> the frames of each one's core. The names are those of `cores`."""
    device = next(model.parameters()).device
    cell, ratio = model.frame_samples, model.config.encoder.subsampling
    sizes = [len(window.samples) for window in batch]
    audio_BN = torch.zeros(len(batch), max(sizes), dtype=torch.float32, device="cpu")
    for row, window in enumerate(batch):
        audio_BN[row, : sizes[row]] = torch.from_numpy(window.samples)
    shared = model.trunk(audio_BN.to(device), torch.tensor(sizes, device=device))
    read = {name: model.up_to_head(name, shared) for name in others}
    log_probs_BSV = None if asr is None else model.task(asr)(model.up_to_head(asr, shared))["log_probs"].cpu()
    found = []
    for row, window in enumerate(batch):
        low, high = (window.first - window.start) // cell, (window.last - window.start) // cell
        if window.start + sizes[row] == window.last:
            high = int(shared.lengths_B[row])  # a last frame of fewer samples
        own = slice(row, row + 1)
        frames = {name: cut_frames(whole.of_rows(own), low, high, ratio) for name, whole in read.items()}
        log_probs_SV = torch.zeros(high - low, 0) if log_probs_BSV is None else log_probs_BSV[row, low:high]
        found.append(Stretch(window.first // cell, log_probs_SV, frames))
    return found


def heard_together(
    model: SpeechModel, items: Iterable[tuple[K, Window | None]], asr: str, others: list[str], at_once: bool = False
) -> Iterator[tuple[K, Window | None, Stretch | None]]:
    """Windows of several recordings, each with its recording -> the same with their cores, in the order given.

    An item without a window, such as a recording's end, is handed on in its place. `at_once` hands every window on
    before the next is read; otherwise short ones are heard several at a time.
    """
    limit = round(BATCH_S * model.config.features.sample_rate)
    pool: list[tuple[K, Window | None]] = []
    for item in items:
        pool.append(item)
        window = item[1]
        if at_once or len(pool) >= POOL or (window is not None and 2 * len(window.samples) > limit):
            yield from _heard_pool(model, pool, limit, asr, others)
            pool = []
    yield from _heard_pool(model, pool, limit, asr, others)


def _heard_pool(
    model: SpeechModel, pool: list[tuple[K, Window | None]], limit: int, asr: str, others: list[str]
) -> Iterator[tuple[K, Window | None, Stretch | None]]:
    sizes = {place: len(window.samples) for place, (_, window) in enumerate(pool) if window is not None}
    batches: list[list[int]] = []
    for place in sorted(sizes, key=lambda place: -sizes[place]):
        if not batches or (len(batches[-1]) + 1) * sizes[batches[-1][0]] > limit:
            batches.append([])
        batches[-1].append(place)
    heard: dict[int, Stretch] = {}
    for batch in batches:
        windows_ = [window for place in batch if (window := pool[place][1]) is not None]
        heard |= zip(batch, hear(model, windows_, asr, others), strict=True)
    yield from ((key, window, heard.get(place)) for place, (key, window) in enumerate(pool))


def stretches(
    model: SpeechModel, blocks: Iterable[np.ndarray], asr: str, others: list[str], **sizes: float
) -> Iterator[Stretch]:
    """Blocks of a recording -> what lies between its pauses, stitched. The arguments are those of `cores`."""
    stitch = Stitch(model)
    for core, ends in cores(model, blocks, asr, others, **sizes):
        complete, bounds = stitch.add(core, ends)
        yield from (stitch.part(complete, first, last) for first, last in bounds)


class Stitch:
    """The cores of one recording, in a row -> what is complete, and what of it lies between two pauses."""

    def __init__(self, model: SpeechModel):
        self.model, self.opens_word = model, _word_openers(model)
        self.pending: list[Stretch] = []

    def add(self, core: Stretch, ends: bool) -> tuple[Stretch, list[tuple[int, int]]]:
        """What is complete with this core, maybe nothing, and its frames first..last that can be decoded by themselves.

        Where the sound ends all of it is complete, and is not cut.
        """
        whole = joined([*self.pending, core])
        size = len(whole.log_probs_SV)
        bounds = [0, size] if ends else [0, *_pauses(self.model, whole.log_probs_SV, self.opens_word)]
        rest = self.part(whole, bounds[-1], size)
        self.pending = [] if ends else [_copied(rest)]  # a view would keep all of it in memory
        parts = [(first, last) for first, last in pairwise(bounds) if first < last]
        return self.part(whole, 0, bounds[-1]), parts

    def part(self, stretch: Stretch, low: int, high: int) -> Stretch:
        """Frames low..high of a stretch."""
        ratio = self.model.config.encoder.subsampling
        frames = {name: cut_frames(whole, low, high, ratio) for name, whole in stretch.frames.items()}
        return Stretch(stretch.start + low, stretch.log_probs_SV[low:high], frames)


def cut_frames(frames: Frames, low: int, high: int, ratio: int) -> Frames:
    """Encoder frames low..high of a batch of one, with the mel frames they were made of, `ratio` each."""
    mel_BTF = frames.mel_BTF[:, low * ratio : min(high * ratio, int(frames.mel_lengths_B[0]))]
    blocks = [block[:, low:high] for block in frames.blocks]
    lengths = torch.tensor([high - low], device=mel_BTF.device)
    return Frames(mel_BTF, torch.tensor([mel_BTF.size(1)], device=mel_BTF.device), blocks, lengths)


def joined(parts: list[Stretch]) -> Stretch:
    """Stretches in a row as one."""
    if len(parts) == 1:
        return parts[0]
    frames = {name: _chained([part.frames[name] for part in parts]) for name in parts[0].frames}
    return Stretch(parts[0].start, torch.cat([part.log_probs_SV for part in parts]), frames)


def _chained(parts: list[Frames]) -> Frames:
    mel_BTF = torch.cat([part.mel_BTF for part in parts], dim=1)
    blocks = [torch.cat(block, dim=1) for block in zip(*(part.blocks for part in parts), strict=True)]
    mel_lengths_B = torch.stack([part.mel_lengths_B for part in parts]).sum(0)
    return Frames(mel_BTF, mel_lengths_B, blocks, torch.stack([part.lengths_B for part in parts]).sum(0))


def _copied(stretch: Stretch) -> Stretch:
    frames = {
        name: own._replace(mel_BTF=own.mel_BTF.clone(), blocks=[block.clone() for block in own.blocks])
        for name, own in stretch.frames.items()
    }
    return Stretch(stretch.start, stretch.log_probs_SV.clone(), frames)


def _word_openers(model: SpeechModel) -> Tensor:
    """(V+1,): which tokens begin a word."""
    assert model.tokenizer is not None
    return torch.tensor([piece.startswith(WORD_MARK) for piece in model.tokenizer.pieces] + [False], device="cpu")


def _pauses(model: SpeechModel, log_probs_SV: Tensor, opens_word: Tensor) -> list[int]:
    """Frames at which the log-probabilities can be cut so that the parts, decoded by themselves, give the same words.

    They lie in the middle of pauses before a token that opens a word; of shorter ones where there is none for too long.
    """
    ids_S = log_probs_SV.argmax(dim=1)
    spoken = torch.nonzero(ids_S != log_probs_SV.size(1) - 1).flatten()
    gaps = spoken.diff() - 1
    wanted = opens_word[ids_S[spoken[1:]]]
    places = (spoken[:-1] + 1 + gaps // 2)[wanted & (gaps >= PAUSE_S / model.frame_s)].tolist()
    limit = round(STRETCH_S / model.frame_s)
    while len(log_probs_SV) - (begin := places[-1] if places else 0) > limit:
        within = (spoken[:-1] >= begin) & (spoken[1:] < begin + limit)
        if not bool(within.any()):  # noise, or a single token: there is nothing that a cut could part
            places.append(begin + limit)
            continue
        inside = within & wanted if bool((within & wanted).any()) else within  # some scripts write no spaces
        best = int(torch.where(inside, gaps, -1).argmax())
        places.append(int(spoken[best] + 1 + gaps[best] // 2))
    return places
