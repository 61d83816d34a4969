"""Manifests to batches: validated cuts, buckets of like length, augmentation, padding.

A manifest is a lhotse CutSet of JSON lines; a cut is one utterance. What a cut is turned into in an epoch depends on
the seed, the epoch and the cut's id alone, never on which worker, process or run asks, so that a resumed run sees what
an uninterrupted one would have seen.
"""

from __future__ import annotations

import atexit
import gzip
import json
import random
import signal
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any, Protocol
from weakref import WeakSet

import numpy as np
import torch
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset import DynamicBucketingSampler, SimpleCutSampler
from lhotse.dataset.sampling.base import CutSampler
from lhotse.lazy import LazyIteratorChain
from lhotse.serialization import deserialize_item
from lhotse.utils import fastcopy
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from speech_mtl.audio import averaged, centred, reason_of
from speech_mtl.augment import Augmentation
from speech_mtl.config import Config, DataConfig
from speech_mtl.cuts import MatchedLengths, StrungTogether, seeded
from speech_mtl.lift import lifted
from speech_mtl.tasks import Frames, label_of

KINDS = "a lhotse cut on every line of a .jsonl or .jsonl.gz file"


class DataError(ValueError):
    """A manifest or a recording that cannot be used; the message names the file, the item, and what is accepted."""


class Manifest:
    """The cuts of one manifest file (.jsonl or .jsonl.gz), read lazily and checked line by line. Raises DataError."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.is_dir():
            inside = ", ".join(sorted(str(file) for file in self.path.glob("*.jsonl*"))) or "none"
            raise DataError(f"{self.path} is a folder; expected a manifest, of which it holds: {inside}")
        if not self.path.is_file():
            raise DataError(f"manifest {self.path} does not exist; `speech-mtl prepare` makes one")

    def __iter__(self) -> Iterator[Cut]:
        count = 0
        with _open(self.path) as lines:
            try:
                for count, line in enumerate(lines, start=1):
                    yield _parse_cut(line, f"{self.path}, line {count}")
            except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
                raise DataError(f"{self.path}: unreadable after line {count}: {error}; expected {KINDS}") from None
        if not count:
            raise DataError(f"manifest {self.path} is empty; expected {KINDS}")


def _open(path: Path) -> IO[str]:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8")


def _parse_cut(line: str, where: str) -> Cut:
    try:
        cut = deserialize_item(json.loads(line))
        if isinstance(cut, Cut):
            _check_cut(cut, where)
    except DataError:
        raise
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON: {error}; expected {KINDS}") from None
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        made = "`speech-mtl prepare jsonl` makes cuts of lines with an audio_filepath"
        raise DataError(f"{where}: not a lhotse cut: {type(error).__name__}: {error}; {made}") from None
    if not isinstance(cut, Cut):
        raise DataError(f"{where}: expected a cut, found a {type(cut).__name__}; `lhotse cut simple` makes cuts")
    return cut


def _check_cut(cut: Cut, where: str) -> None:
    """That times are numbers, ids and texts are text; lhotse takes whatever stands there."""
    if not isinstance(cut.id, str):
        raise DataError(f"{where}: a cut's id is {cut.id!r}; expected text in quotes")
    if not isinstance(cut.duration, int | float):
        raise DataError(f"{where}: cut '{cut.id}': duration is {cut.duration!r}; expected seconds, a number")
    if not cut.duration > 0:
        raise DataError(f"{where}: cut '{cut.id}' ends before it starts: duration {cut.duration} s")
    for supervision in cut.supervisions:
        name = f"{where}: supervision '{supervision.id}'"
        if not isinstance(supervision.duration, int | float):
            raise DataError(f"{name}: duration is {supervision.duration!r}; expected seconds, a number")
        if not isinstance(supervision.start, int | float):
            raise DataError(f"{name}: start is {supervision.start!r}; expected seconds, a number")
        if not supervision.duration >= 0:
            raise DataError(f"{name} ends before it starts: {supervision.duration} s")
        if not isinstance(supervision.text, str | None):
            raise DataError(f"{name}: text is {supervision.text!r}; expected text in quotes, or null")


def read_cuts(paths: Iterable[str | Path]) -> CutSet:
    """The cuts of several manifests, one after another, lazily. One listed n times is read n times."""
    return CutSet(Chain([Manifest(path) for path in paths]))


class Corpus(Protocol):
    """A manifest, or one whose cuts are changed as they are read."""

    path: Path

    def __iter__(self) -> Iterator[Cut]: ...


class Chain:
    """The cuts of several corpora, one after another; those of a path that was there before have ids of their own."""

    def __init__(self, parts: Sequence[Corpus]):
        self.parts = parts

    def __iter__(self) -> Iterator[Cut]:
        times: Counter[Path] = Counter()
        for part in self.parts:
            times[part.path] += 1
            for cut in part:
                yield repetition(cut, times[part.path])


def repetition(cut: Cut, n: int) -> Cut:
    """The cut as it is met for the n-th time in an epoch: with an id of its own, so that it is augmented otherwise."""
    return fastcopy(cut, id=f"{cut.id}~{n}") if n > 1 else cut


def why_left_out(cut: Cut, config: DataConfig) -> str | None:
    """Why a training utterance is left out; None where it is not."""
    if cut.duration > config.max_utterance_s:
        return f"longer than data.max_utterance_s = {config.max_utterance_s:g} s"
    if cut.duration < config.min_utterance_s:
        return f"shorter than data.min_utterance_s = {config.min_utterance_s:g} s"
    return None


def is_usable(cut: Cut, config: DataConfig) -> bool:
    """Whether an utterance takes part in training."""
    return why_left_out(cut, config) is None


@dataclass
class Batch:
    """Padded utterances: audio_BN float32, samples_B, their cuts; `failed`: (cut id, reason) of unreadable ones.

    `frames`: the trunk's, where they are kept (frame_cache.py), and audio_BN is empty then.
    """

    audio_BN: Tensor
    samples_B: Tensor
    cuts: list[Cut]
    failed: list[tuple[str, str]]
    frames: Frames | None = None

    def twice(self) -> Batch:
        """Every utterance once more, in a second half."""
        audio_BN, samples_B = self.audio_BN.repeat(2, 1), self.samples_B.repeat(2)
        rows_B = torch.arange(len(self.cuts)).repeat(2)
        frames = None if self.frames is None else self.frames.of_rows(rows_B)
        return Batch(audio_BN, samples_B, self.cuts * 2, self.failed, frames)


class SpeechDataset(Dataset):
    """(epoch, cuts) -> Batch. With `augment` the cuts are changed as the config says."""

    def __init__(self, config: Config, augment: bool = False):
        self.sample_rate, self.seed = config.features.sample_rate, config.train.seed
        # fewer samples than a hop give no frame; those of training are long enough, and at a higher speed shorter
        least_samples = 0.0 if augment else config.data.min_utterance_s * self.sample_rate
        self.least_samples = max(least_samples, config.features.hop_samples)
        self.augmentation = None
        if augment:  # read before the first batch, so that a wrong path is not taken for an unreadable utterance
            files = (config.augment.noise, config.augment.rooms)
            noises, rooms = (list(Manifest(file)) if file else [] for file in files)
            self.augmentation = Augmentation(config.augment, self.sample_rate, noises, rooms)

    def __getitem__(self, item: tuple[int, Iterable[Cut]]) -> Batch:
        epoch, cuts = item
        audios, kept, failed = [], [], []
        for cut in cuts:
            rng = seeded(self.seed, epoch, cut.id)
            try:
                audio, cut = self._utterance(cut, epoch, rng)
            except Exception as error:  # lhotse raises many kinds; the file's name is what the user needs
                failed.append((cut.id, f"{_source(cut)}: {reason_of(error)}"))
                continue
            audios.append(torch.from_numpy(audio))
            kept.append(cut)
        samples = torch.tensor([len(audio) for audio in audios], dtype=torch.long)
        padded = torch.nn.utils.rnn.pad_sequence(audios, batch_first=True) if audios else torch.zeros(0, 0)
        if self.augmentation is None:
            # to half seconds: the CPU's kernels are made, and kept, for every new length, which looks like a leak
            padded = torch.nn.functional.pad(padded, (0, -padded.size(1) % (self.sample_rate // 2)))
        return Batch(padded, samples, kept, failed)

    def _utterance(self, cut: Cut, epoch: int, rng: random.Random) -> tuple[np.ndarray, Cut]:
        if self.augmentation is None:
            audio = self._load(cut)
        else:
            heard, cut = self.augmentation.cut(cut, epoch, rng)
            audio = self.augmentation.sound(self._load(heard), epoch, rng)
        return lifted(audio, self.sample_rate), cut

    def _load(self, cut: Cut) -> np.ndarray:
        audio = averaged(cut.resample(self.sample_rate).load_audio().T)
        if not np.isfinite(audio).all():
            raise DataError("holds samples that are not numbers (NaN or infinite)")
        if len(audio) < self.least_samples:
            least_s = self.least_samples / self.sample_rate
            raise DataError(f"{len(audio) / self.sample_rate:.3f} s, shorter than {least_s:g} s")
        return centred(audio)


def _source(cut: Cut) -> str:
    recording = getattr(cut, "recording", None)
    return str(recording.sources[0].source) if recording else cut.id


class _EpochBatches(Sampler):
    """lhotse's batches, each with the epoch, from batch `skip` on."""

    def __init__(self, sampler: CutSampler, epoch: int, skip: int):
        self.sampler, self.epoch, self.skip = sampler, epoch, skip

    def __iter__(self) -> Iterator[tuple[int, CutSet]]:
        self.sampler.set_epoch(self.epoch)
        for i, cuts in enumerate(self.sampler):
            if i >= self.skip:
                yield self.epoch, cuts


def batches(
    cuts: CutSet,
    config: Config,
    *,
    train: bool = False,
    epoch: int = 0,
    skip: int = 0,
    rank: int = 0,
    processes: int = 1,
) -> DataLoader:
    """Batches of one epoch, of at most data.max_duration_s of audio each; in training shuffled and augmented.

    A longer utterance is a batch of its own.
    """
    # a batch of one long utterance is meant to be; lhotse warns of every one
    warnings.filterwarnings("ignore", "We have exceeded the max_duration constraint", module=r"lhotse\.dataset")
    shared: dict[str, Any] = {"max_duration": config.data.max_duration_s, "rank": rank, "world_size": processes}
    sampler: CutSampler
    if train and config.trunk.frozen:
        items = [(epoch, cuts) for cuts in length_batches(cuts, config, epoch, rank, processes)[skip:]]
        return _loader(SpeechDataset(config, augment=True), items, config)
    if train:
        cuts = _at_their_lengths(cuts, config, epoch)
    if train and epoch < config.data.sorted_epochs:
        sampler = SimpleCutSampler(CutSet.from_cuts(sorted(cuts, key=lambda cut: (cut.duration, cut.id))), **shared)
    else:
        shared |= {"shuffle": train, "seed": config.train.seed}
        known = sum(1 for _ in islice(cuts, max(3, config.data.n_buckets)))
        buckets = min(config.data.n_buckets, known)
        if buckets > 1 and known > 2:  # lhotse wants a cut for every bucket, and makes no two of two cuts
            if not cuts.is_lazy:  # and to be fed from a stream
                cuts = CutSet(LazyIteratorChain(cuts))
            sampler = DynamicBucketingSampler(cuts, num_buckets=buckets, **shared)
        else:
            sampler = SimpleCutSampler(cuts, **shared)
    return _loader(SpeechDataset(config, augment=train), _EpochBatches(sampler, epoch, skip), config)


def _loader(dataset: SpeechDataset, items: Iterable[tuple[int, Iterable[Cut]]], config: Config) -> DataLoader:
    return _Loader(
        dataset, sampler=items, batch_size=None,
        num_workers=config.data.workers, worker_init_fn=_leave_signals_to_the_loop,
        # a generator of its own: the loader draws a seed at every start, which must not move the model's random state
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


def utterances(cuts: Iterable[Cut], config: Config) -> DataLoader:
    """Every cut as a batch of its own, in their order, as it is."""
    return _loader(SpeechDataset(config), [(0, [cut]) for cut in cuts], config)


def length_batches(cuts: CutSet, config: Config, epoch: int, rank: int = 0, processes: int = 1) -> list[list[Cut]]:
    """The usable cuts in batches as `batches` would have them, drawn in one go: for training on a frozen trunk.

    The order is the same whether frames are kept or not. lhotse's sampler would take most of the time of training from
    kept frames (1.5 ms an utterance on a busy core); the epoch's cuts are all in memory instead.
    """
    rng, found = seeded(config.train.seed, epoch, "batches"), []
    ordered = sorted(_at_their_lengths(cuts, config, epoch), key=lambda cut: (cut.duration, cut.id))
    shuffled = epoch >= config.data.sorted_epochs
    size = max(1, -(-len(ordered) // config.data.n_buckets)) if shuffled else len(ordered)
    for first in range(0, len(ordered), max(1, size)):
        bucket = ordered[first : first + size]
        if shuffled:
            rng.shuffle(bucket)
        found += filled(bucket, config.data.max_duration_s)
    if shuffled:
        rng.shuffle(found)
    return (found + found[: -len(found) % processes])[rank::processes]  # as many for every process


def filled(cuts: Iterable[Cut], max_duration_s: float) -> list[list[Cut]]:
    """Cuts in batches of at most so much audio, padding included, in their order."""
    found: list[list[Cut]] = []
    longest_s = 0.0
    for cut in cuts:
        longest_s = max(longest_s, cut.duration)
        if not found or longest_s * (len(found[-1]) + 1) > max_duration_s:
            found.append([])
            longest_s = cut.duration
        found[-1].append(cut)
    return found


def _at_their_lengths(cuts: CutSet, config: Config, epoch: int) -> CutSet:
    """The usable cuts at the lengths they have in this epoch."""
    cuts = cuts.filter(partial(is_usable, config=config.data))
    if config.augment.concat_prob and epoch >= config.data.sorted_epochs:
        cuts = CutSet(StrungTogether(cuts, config, epoch))
    if config.data.match_lengths:
        cuts = CutSet(MatchedLengths(cuts, config, epoch))
    return cuts


class _Loader(DataLoader):
    """Its workers end with the process, whatever holds on to them then.

    An error's traceback does; and at the exit multiprocessing asks workers to end by the very signal that they ignore,
    and waits for them.
    """

    def __iter__(self) -> Any:
        before = set(active_children())
        iterator = super().__iter__()
        WORKERS.update(set(active_children()) - before)
        return iterator


WORKERS: WeakSet[BaseProcess] = WeakSet()


@atexit.register
def _end_workers() -> None:
    for worker in WORKERS:
        worker.kill()


def _leave_signals_to_the_loop(worker: int) -> None:
    """Ctrl-C reaches every process of the terminal; the training loop still needs its batch to finish the step."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def describe_cut(cut: Cut) -> dict[str, Any]:
    """The fields of an utterance that a row of results carries; 'altered' where it is not just a stretch of a file."""
    described = {
        "id": cut.id, "audio": _source(cut), "start_s": cut.start, "duration_s": round(cut.duration, 4),
        "true_speaker": label_of(cut, "speaker"),
    }  # fmt: skip
    return described if _is_as_recorded(cut) else described | {"altered": True}


def _is_as_recorded(cut: Cut) -> bool:
    """Whether a cut is a stretch of one file as it is, with all its channels."""
    recording = getattr(cut, "recording", None)
    return recording is not None and not recording.transforms and recording.num_channels == cut.num_channels
