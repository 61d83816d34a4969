"""Cuts of an epoch -> the same cuts with the labels and the lengths that they are trained with.

Utterances with a text are strung together with others of their voice, so that the recogniser hears longer ones. Those
without a text can be cut anywhere: they are cropped or strung together to lengths of the ones that have a text, because
a trunk that can tell the tasks' utterances apart by their length learns each task by itself (Vaessen & van Leeuwen
2023, 2302.12773). What happens to a cut follows from the seed, the epoch and its id.
"""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from zlib import crc32

from lhotse import SupervisionSegment
from lhotse.cut import Cut, MixedCut, PaddingCut
from lhotse.utils import fastcopy

from speech_mtl.config import Config
from speech_mtl.tasks import FIELDS, label_of
from speech_mtl.tasks.speaker import VECTORS, speed_label, voice_vector

VOICE = "heard_speaker"
"""Where a cut whose speaker label was exchanged for another keeps the name of who is heard."""
PARTNERS = 20
"""Utterances of a speaker that are held in memory to be strung to others."""


def label_names(config: Config) -> dict[str, str]:
    """Every task's label, as `label_of` knows it."""
    fixed = {"asr": "text", "speaker": "speaker"}
    return {task: fixed.get(t.type) or t.label or task for task, t in config.tasks.items()}


def with_labels(cut: Cut, values: Mapping[str, str | None]) -> Cut:
    """The cut with these labels in all its supervisions, whether fields of theirs or custom; a text in the first."""
    fields = {name: value for name, value in values.items() if name in FIELDS}
    custom = {name: value for name, value in values.items() if name not in FIELDS}
    later = fields | {"text": ""} if "text" in fields else fields
    first = True

    def changed(supervision: SupervisionSegment) -> SupervisionSegment:
        nonlocal first
        mine, first = fields if first else later, False
        return fastcopy(supervision, **mine, custom=(supervision.custom or {}) | custom or None)

    return _mapped(cut, changed)


def _mapped(cut: Cut, change: Callable[[SupervisionSegment], SupervisionSegment]) -> Cut:
    """The cut with its supervisions changed; lhotse would change those of a mixed cut where they are."""
    if not isinstance(cut, MixedCut):
        return cut.map_supervisions(change)
    tracks = [fastcopy(track, cut=_mapped(track.cut, change)) for track in cut.tracks]
    return fastcopy(cut, tracks=tracks)


def voice_of(cut: Cut) -> str | None:
    """Who is heard, whatever the speaker label says."""
    return label_of(cut, VOICE) or label_of(cut, "speaker")


def seeded(*parts: object) -> random.Random:
    """A generator for these parts alone."""
    return random.Random(crc32(" ".join(map(str, parts)).encode()))


def labels_at_speed(cut: Cut, factor: float) -> Cut:
    """The labels of a cut under the speaker's name at that speed."""
    return _mapped(cut, partial(_at_speed, factor=factor))


def at_all_speeds(cuts: Iterable[Cut], factors: Iterable[float]) -> Iterator[Cut]:
    """The cuts as they are, and at every other speed, where the speaker is another one."""
    for cut in cuts:
        yield cut
        for factor in sorted(set(factors) - {1.0}):
            yield cut.perturb_speed(factor).map_supervisions(partial(_at_speed, factor=factor))


def _at_speed(supervision: SupervisionSegment, factor: float) -> SupervisionSegment:
    speaker = None if supervision.speaker is None else speed_label(supervision.speaker, factor)
    custom = supervision.custom
    if custom and VECTORS in custom:
        vector = voice_vector(supervision, factor)
        custom = custom | {VECTORS: {"1": vector} if vector else {}}
    return fastcopy(supervision, speaker=speaker, custom=custom)


class StrungTogether:
    """The cuts of an epoch, a share of those with a text with random others of their voice and labels appended."""

    def __init__(self, cuts: Iterable[Cut], config: Config, epoch: int):
        self.cuts, self.config, self.seed, self.epoch = cuts, config.augment, config.train.seed, epoch
        self.permuted, self.agreed = config.data.permute, _agreed(config)
        self.partners: dict[tuple, list[Cut]] = {}
        for cut in cuts:
            if label_of(cut, "text") is not None and (kin := _kin(cut, self.agreed)):
                self.partners.setdefault(kin, []).append(cut)

    def __iter__(self) -> Iterator[Cut]:
        for cut in self.cuts:
            rng = seeded(self.seed, self.epoch, "concat", cut.id)
            if rng.random() < self.config.concat_prob and label_of(cut, "text") is not None:
                cut = self._append(cut, self.partners.get(_kin(cut, self.agreed) or (), []), rng)
            yield cut

    def _append(self, cut: Cut, partners: list[Cut], rng: random.Random) -> Cut:
        first, limit_s = cut, rng.uniform(0, self.config.concat_max_s)
        while partners:
            other = rng.choice(partners)
            if cut.duration + other.duration > limit_s:
                break
            cut = cut.append(_labelled_as(first, other, self.permuted))
        return cut.with_id(first.id)


class MatchedLengths:
    """The cuts of an epoch, those without a text at lengths drawn from those that have one.

    Too long ones are cropped at a random place; too short ones have others of the same voice and labels appended first,
    as far as there are any. Where every cut has a text, or none, all stay as they are.
    """

    def __init__(self, cuts: Iterable[Cut], config: Config, epoch: int):
        self.cuts, self.seed, self.epoch = cuts, config.train.seed, epoch
        self.permuted, self.agreed = config.data.permute, _agreed(config)
        self.durations_s = array("d")
        self.partners: dict[tuple, list[Cut]] = {}
        seen: Counter[tuple] = Counter()
        rng = seeded(self.seed, epoch, "partners")
        for cut in cuts:
            if label_of(cut, "text") is not None:
                self.durations_s.append(cut.duration)
            elif kin := _kin(cut, self.agreed):
                seen[kin] += 1
                held = self.partners.setdefault(kin, [])
                if len(held) < PARTNERS:
                    held.append(cut)
                elif (place := rng.randrange(seen[kin])) < PARTNERS:  # a fair sample of all that pass
                    held[place] = cut

    def __iter__(self) -> Iterator[Cut]:
        for cut in self.cuts:
            yield self._matched(cut) if self.durations_s and label_of(cut, "text") is None else cut

    def _matched(self, cut: Cut) -> Cut:
        rng = seeded(self.seed, self.epoch, "length", cut.id)
        target_s = rng.choice(self.durations_s)
        whole, partners = _labelled_throughout(cut), self.partners.get(_kin(cut, self.agreed) or (), [])
        for other in rng.sample(partners, len(partners)):
            if whole.duration >= target_s:
                break
            if other.id != cut.id:
                whole = whole.append(_labelled_throughout(_labelled_as(cut, other, self.permuted)))
        spare_samples = int((whole.duration - target_s) * whole.sampling_rate)
        if spare_samples > 0:
            offset_s = rng.randrange(spare_samples + 1) / whole.sampling_rate
            cropped = whole.truncate(offset=offset_s, duration=target_s)
            whole = whole if isinstance(cropped, PaddingCut) else cropped  # nothing else was there
        return whole.with_id(cut.id)


def _agreed(config: Config) -> list[str]:
    """The tasks' labels that utterances must have in common to be strung together; texts follow one another."""
    return sorted(set(label_names(config).values()) - {"text", *config.data.permute})


def _kin(cut: Cut, names: list[str]) -> tuple | None:
    """What utterances must have in common to be strung together without losing one of these labels."""
    if (voice := voice_of(cut)) is None:
        return None
    return (cut.sampling_rate, voice, *(label_of(cut, name) for name in names))


def _labelled_as(first: Cut, other: Cut, names: list[str]) -> Cut:
    """The other cut with the first one's permuted labels: one voice may have many of them."""
    values = {name: label_of(first, name) for name in names if name != "text"}
    return with_labels(other, values) if values else other


def _labelled_throughout(cut: Cut) -> Cut:
    """Labels hold for the whole cut, so that no part of it is without them; what of a text is in it is not known."""
    if isinstance(cut, MixedCut) or not cut.supervisions:
        return cut
    whole = {"start": 0.0, "duration": cut.duration, "text": None}
    return fastcopy(cut, supervisions=[fastcopy(supervision, **whole) for supervision in cut.supervisions])
