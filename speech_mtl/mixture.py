"""Training manifests -> the cuts of an epoch: how much of each corpus, and with which labels.

An epoch has as many utterances as the manifests of data.train have usable ones together. A corpus's share of them is
its entry in data.shares, or grows with the number n of its utterances as n^(1/data.temperature) (Arivazhagan et al.
2019, 1907.05019). It is read in whole passes, and for the rest a part that goes on where the epoch before stopped, so
that over the epochs all its utterances are used equally often. Which ones an epoch has follows from the seed and the
epoch alone.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path

import numpy as np
from lhotse import CutSet
from lhotse.cut import Cut

from speech_mtl.config import Config, DataConfig
from speech_mtl.cuts import VOICE, label_names, seeded, with_labels
from speech_mtl.data import Chain, Corpus, DataError, Manifest, is_usable, repetition
from speech_mtl.inventory import check_ids
from speech_mtl.tasks import label_of

Labels = dict[str, dict[str, str]]
"""Cut id -> label name -> value."""


def read_training(config: Config) -> CutSet:
    """The manifests of data.train one after another, with the labels that training sees (data.permute), lazily.

    Raises DataError.
    """
    return CutSet(Chain(_parts(config)))


def training_corpora(config: Config) -> list[CutSet]:
    """The manifests of data.train, each once, with the same labels. Raises DataError."""
    return [CutSet(part) for part in _distinct(_parts(config))]


def corpus_shares(config: Config) -> list[float] | None:
    """Of each of `training_corpora`, its entries in data.shares together; None without them."""
    if not config.data.shares:
        return None
    shares: dict[Path, float] = {}
    for path, share in zip(config.data.train, config.data.shares, strict=True):
        shares[Path(path)] = shares.get(Path(path), 0.0) + share
    return list(shares.values())


def training_cuts(config: Config, epoch: int) -> CutSet:
    """The cuts of an epoch in the shares of data.shares or data.temperature, lazily; by default `read_training`'s.

    With shares or a temperature these are exactly as many cuts as data.train has usable ones, all of them usable, the
    corpora evenly mixed. Raises DataError.
    """
    parts = _parts(config)
    if not config.data.shares and config.data.temperature == 1:
        return CutSet(Chain(parts))
    return CutSet(_Mixture(parts, config, epoch))


def apportion(total: int, shares: Sequence[float]) -> list[int]:
    """`total` in parts proportional to the shares, rounded so that the parts sum to it (largest remainders)."""
    exact = [total * share / sum(shares) for share in shares]
    parts = [int(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: parts[i] - exact[i])
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts


class _Mixture:
    def __init__(self, parts: Sequence[Corpus], config: Config, epoch: int):
        self.parts, self.config, self.epoch = parts, config, epoch
        counts = {part.path: sum(1 for _ in _usable(part, config.data)) for part in _distinct(parts)}
        self.counts = [counts[part.path] for part in parts]
        self.wanted = self._wanted()

    def _wanted(self) -> list[int]:
        """Utterances of each corpus in an epoch."""
        data, total = self.config.data, sum(self.counts)
        if not data.shares:
            return (
                apportion(total, [count ** (1 / data.temperature) for count in self.counts]) if total else self.counts
            )
        for part, count in zip(self.parts, self.counts, strict=True):
            if not count:
                raise DataError(f"{part.path} has a share in data.shares, but no usable utterance")
        wanted = apportion(total, data.shares)
        for part, share, number in zip(self.parts, data.shares, wanted, strict=True):
            if not number:
                raise DataError(f"data.shares: {share:g} is none of {total} utterances an epoch for {part.path}")
        return wanted

    def __iter__(self) -> Iterator[Cut]:
        streams, passes = [], Counter[Path]()
        for i, part in enumerate(self.parts):
            if self.wanted[i]:
                streams.append(self._corpus(i, passes[part.path]))
                passes[part.path] += -(-self.wanted[i] // self.counts[i])
        # by how far each corpus has come: every stretch of the epoch has all of them in their shares
        return (cut for _, cut in heapq.merge(*streams, key=itemgetter(0)))

    def _corpus(self, i: int, passes_before: int) -> Iterator[tuple[float, Cut]]:
        """One corpus's cuts of the epoch, each with the part of the corpus's share that is read by then."""
        count, wanted, read = self.counts[i], self.wanted[i], 0
        whole, rest = divmod(wanted, count)
        order = np.random.default_rng(seeded(self.config.train.seed, "mixture", i).getrandbits(32)).permutation(count)
        in_part = np.zeros(count, dtype=bool)
        in_part[order[(self.epoch * rest + np.arange(rest)) % count]] = True
        for n in range(whole + (rest > 0)):
            for k, cut in enumerate(_usable(self.parts[i], self.config.data)):
                if n < whole or in_part[k]:
                    yield (read + 0.5) / wanted, repetition(cut, passes_before + n + 1)
                    read += 1


def _usable(part: Corpus, config: DataConfig) -> Iterator[Cut]:
    return (cut for cut in part if is_usable(cut, config))


def _distinct(parts: Iterable[Corpus]) -> list[Corpus]:
    """The corpora, each once, however often it is listed."""
    return list({part.path: part for part in parts}.values())


def _parts(config: Config) -> Sequence[Corpus]:
    """The corpora of data.train as they are listed."""
    manifests = [Manifest(path) for path in config.data.train]
    if not config.data.permute:
        return manifests
    table = _permutation(_distinct(manifests), config)
    return [Relabelled(manifest, table[manifest.path]) for manifest in manifests]


class Relabelled:
    """A manifest's cuts with other labels; who is heard is kept beside another speaker's name."""

    def __init__(self, manifest: Manifest, labels: Labels):
        self.manifest, self.labels, self.path = manifest, labels, manifest.path

    def __iter__(self) -> Iterator[Cut]:
        for cut in self.manifest:
            values: dict[str, str | None] = {**self.labels.get(cut.id, {})}
            if "speaker" in values:
                values[VOICE] = label_of(cut, "speaker")
            yield with_labels(cut, values) if values else cut


def _permutation(manifests: list[Corpus], config: Config) -> dict[Path, Labels]:
    """The values of every label of data.permute, shuffled by the seed among the usable utterances that carry it."""
    names = config.data.permute
    owners: dict[str, list[tuple[Path, str]]] = {name: [] for name in names}
    values: dict[str, list[str]] = {name: [] for name in names}
    for manifest in manifests:
        check_ids((cut.id for cut in _usable(manifest, config.data)), f"data.permute: manifest {manifest.path}")
        for cut in _usable(manifest, config.data):
            for name in names:
                if (value := label_of(cut, name)) is not None:
                    owners[name].append((manifest.path, cut.id))
                    values[name].append(value)
    table: dict[Path, Labels] = {manifest.path: {} for manifest in manifests}
    for name in names:
        if not values[name]:
            accepted = ", ".join(label_names(config).values())
            raise DataError(f"data.permute: no training utterance has a label '{name}'; the tasks' labels: {accepted}")
        seeded(config.train.seed, "permute", name).shuffle(values[name])
        for (path, cut_id), value in zip(owners[name], values[name], strict=True):
            table[path].setdefault(cut_id, {})[name] = value
    return table
