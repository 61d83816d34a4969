"""What a person should know of manifests before training: labels, their overlap, lengths, vocabulary, imbalance.

Cuts go through `take_inventory`, which training uses too, so the figures are those that training will see.
`disjoint_tasks` says where the encoder could tell the tasks' utterances apart; what that does to joint training is in
Vaessen & van Leeuwen 2023 (2302.12773).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations, islice

import numpy as np
from lhotse.cut import Cut

from speech_mtl.config import ROW_FIELDS, Config, parse_config
from speech_mtl.cuts import label_names
from speech_mtl.data import is_usable, read_cuts
from speech_mtl.decode import frames_needed
from speech_mtl.inventory import Inventory, take_inventory
from speech_mtl.tasks import FIELDS, label_of
from speech_mtl.text import Tokenizer, normalize

LOOKED_AT = 1000
"""Cuts in which further labels (gender, accent, ...) are looked for."""
IMBALANCE = 10
"""A task, or a class, with so many times the data of another is warned of."""
FEW_SHARED = 0.05
"""Tasks with a smaller share of utterances labelled for both are called disjoint."""
TOLD_APART_AUC = 0.8
"""So surely does the length of an utterance of one task and one of the other say which is which."""
INTERVAL_NEEDS = 10
"""Utterances of a label, speakers of a task: 10 without error may still have a rate of a quarter (0.74^10 = 0.05)."""

Groups = dict[tuple[str, tuple[str, ...]], list[float]]
"""(manifest, tasks that an utterance has a label for) -> lengths in seconds."""


@dataclass
class Survey:
    inventory: Inventory
    config: Config
    """The default config with one task for every label found."""
    hours: dict[str, float] = field(default_factory=dict)
    """Labelled hours by task."""
    groups: Groups = field(default_factory=dict)
    """Lengths of the utterances by their manifest and the tasks they have a label for."""
    vocabulary: Counter[str] = field(default_factory=Counter)
    """Words of the normalised texts."""
    characters: int = 0
    too_long: list[str] = field(default_factory=list)
    """Ids of the cuts whose text needs more encoder frames than their audio has."""

    @property
    def overlap(self) -> Counter[tuple[str, ...]]:
        """Utterances by the tasks they have a label for."""
        counts: Counter[tuple[str, ...]] = Counter()
        for (_, has), durations in self.groups.items():
            counts[has] += len(durations)
        return counts

    @property
    def durations_s(self) -> list[float]:
        return [duration for durations in self.groups.values() for duration in durations]

    def warnings(self) -> list[str]:
        """What will hurt in training, in words."""
        found = []
        for reason, count in self.inventory.left_out.items():
            found.append(f"{count} utterances are left out: {reason}")
        for reason, count in self.inventory.texts_left_out.items():
            found.append(f"the text of {count} utterances is left out: it {reason}")
        if self.too_long:
            found.append(
                f"{len(self.too_long)} texts need more encoder frames than their audio has and will not count as "
                f"labelled, such as that of {self.too_long[0]}"
            )
        hours = {task: h for task, h in self.hours.items() if h}
        if hours and max(hours.values()) > IMBALANCE * min(hours.values()):
            ordered = sorted(hours.items(), key=lambda item: item[1])
            found.append(
                "imbalance: {1:.3f} h for {0}".format(*ordered[-1]) + ", {1:.3f} h for {0}".format(*ordered[0])
            )
        for task, counts in self.inventory.classes.items():
            if len(counts) == 1:
                found.append(f"{task}: a single class, {next(iter(counts))}; a task needs at least two")
            elif counts and max(counts.values()) > IMBALANCE * min(counts.values()):
                (top, most), (low, least) = counts.most_common()[0], counts.most_common()[-1]
                found.append(f"imbalance in {task}: {most} utterances of {top}, {least} of {low}")
        for task, counts in self.inventory.classes.items():
            found += _too_rare(task, counts, is_speaker=self.config.tasks[task].type == "speaker")
        return found + disjoint_tasks(self.groups)


def _too_rare(task: str, counts: Counter[str], is_speaker: bool) -> list[str]:
    """Labels that too few utterances carry for an interval that decides anything, and speakers too few to speak for
    others (statistics.FEWEST_SPEAKERS)."""
    rare = [(count, label) for label, count in counts.items() if count < INTERVAL_NEEDS]
    found = []
    if rare and len(counts) > 1:
        count, label = min(rare)
        found.append(
            f"{task}: {len(rare)} of {len(counts)} labels have fewer than {INTERVAL_NEEDS} utterances, such as {label} "
            f"with {count}: too rare for an interval, a verdict on them alone will be 'undecided'"
        )
    if is_speaker and 1 < len(counts) < INTERVAL_NEEDS:
        found.append(
            f"{task}: {len(counts)} speakers; an interval over speakers needs {INTERVAL_NEEDS} or more, with fewer it "
            "is over their utterances, and the verdict holds for these speakers only"
        )
    return found


def label_groups(manifests: Iterable[str], config: Config) -> Groups:
    """One pass over the manifests for `disjoint_tasks`, with the tasks of the config. Raises DataError."""
    groups: Groups = {}
    for path, cut in _located(manifests):
        _count(groups, path, cut, config)
    return groups


def disjoint_tasks(groups: Groups, config: Config | None = None) -> list[str]:
    """A warning for every two tasks that (almost) no utterance has both labels for: can the encoder tell them apart?

    Where `config` is given its data.match_lengths is taken into account.
    """
    return [
        warning
        for one, other in combinations(list(dict.fromkeys(task for _, has in groups for task in has)), 2)
        if (warning := _disjoint(groups, one, other, config))
    ]


def _disjoint(groups: Groups, one: str, other: str, config: Config | None) -> str | None:
    both = sum(len(durations) for (_, has), durations in groups.items() if one in has and other in has)
    ones, others = _with_only(groups, one, other), _with_only(groups, other, one)
    fewer = both + min(sum(map(len, ones.values())), sum(map(len, others.values())))
    if both >= FEW_SHARED * fewer:
        return None
    shared = f"{one} and {other} are disjoint: {both or 'no'} utterances have labels for both"
    tells = _tells(ones, others, matched=_lengths_are_matched(config, one, other))
    if not tells:
        return f"{shared}; neither length nor manifest tells them apart"
    return (
        f"{shared}, and the encoder can tell the two apart by {' and '.join(tells)}: it may learn each by itself, and "
        "joint training may harm on other data. Add utterances with both labels, and trust a verdict out of domain only"
    )


def _tells(ones: dict[str, list[float]], others: dict[str, list[float]], matched: bool) -> list[str]:
    """What says of an utterance which of two tasks it is for."""
    found, one_s, other_s = [], np.concatenate(list(ones.values())), np.concatenate(list(others.values()))
    if not matched and (auc := length_auc(one_s, other_s)) > TOLD_APART_AUC:
        medians = f"median {np.median(one_s):.1f} s against {np.median(other_s):.1f} s"
        found.append(f"length ({medians}, AUC {auc:.2f}; for utterances without a text, set data.match_lengths = true)")
    if _shared_part(ones, others) < FEW_SHARED:
        found.append("corpus (they are from different manifests)")
    return found


def _with_only(groups: Groups, task: str, without: str) -> dict[str, list[float]]:
    """Manifest -> lengths of the utterances labelled for one task and not for the other."""
    found: dict[str, list[float]] = {}
    for (path, has), durations in groups.items():
        if task in has and without not in has:
            found.setdefault(path, []).extend(durations)
    return found


def _lengths_are_matched(config: Config | None, *tasks: str) -> bool:
    """Whether training brings the two tasks' utterances to the same lengths: those without a text to the others'."""
    return config is not None and config.data.match_lengths and any(config.tasks[t].type == "asr" for t in tasks)


def _shared_part(ones: Mapping[str, list[float]], others: Mapping[str, list[float]]) -> float:
    """How much of two tasks' utterances is spread over the manifests alike: 0 none, 1 all."""
    n_one, n_other = sum(map(len, ones.values())), sum(map(len, others.values()))
    return sum(min(len(ones[path]) / n_one, len(others[path]) / n_other) for path in ones.keys() & others.keys())


def length_auc(one_s: np.ndarray, other_s: np.ndarray) -> float:
    """How often the lengths of an utterance of each say which is which, 0.5 to 1 (Mann-Whitney's U; ties half)."""
    ordered = np.sort(other_s)
    below, not_above = np.searchsorted(ordered, one_s, "left"), np.searchsorted(ordered, one_s, "right")
    auc = float((below + not_above).mean() / 2 / len(other_s))
    return max(auc, 1 - auc)


def survey(manifests: list[str]) -> Survey:
    """Read every cut once. Raises DataError."""
    config = _config(cut for path in manifests for cut in islice(read_cuts([path]), LOOKED_AT))
    found = Survey(Inventory(), config, hours=dict.fromkeys(config.tasks, 0.0))
    frames: list[tuple[str, str, int]] = []
    found.inventory = take_inventory(_watched(_located(manifests), found, frames), config)
    if any(normalize(text, config.text) for text in found.inventory.texts):
        tokenizer = Tokenizer.train(found.inventory.texts, config.text)
        found.characters = len(tokenizer) - 1  # less the word mark
        found.too_long = [cut for cut, text, length in frames if frames_needed(tokenizer.encode(text)) > length]
    return found


def _config(cuts: Iterable[Cut]) -> Config:
    """The defaults with a classify task for each further label that the cuts carry."""
    values: dict[str, list[str]] = {}
    for cut in cuts:
        for supervision in cut.supervisions:
            labels = (supervision.custom or {}) | {name: getattr(supervision, name, None) for name in FIELDS}
            for name, value in labels.items():
                if isinstance(value, str | int) and name not in ("text", "speaker", "asr"):
                    values.setdefault(name, []).append(str(value))
    # a value of its own for almost every utterance (a path, an id) is no class; a row's field is no task's name
    of_classes = [name for name, seen in sorted(values.items()) if len(set(seen)) <= max(2, len(seen) // 2)]
    extra = [name for name in of_classes if name not in ROW_FIELDS]
    tasks = {"asr": {"type": "asr"}, "speaker": {"type": "speaker"}} | {name: {"type": "classify"} for name in extra}
    return parse_config({"tasks": tasks}, "inspect")


def _located(manifests: Iterable[str]) -> Iterator[tuple[str, Cut]]:
    """The cuts with the manifest that each is from."""
    return ((str(path), cut) for path in manifests for cut in read_cuts([path]))


def _count(groups: Groups, path: str, cut: Cut, config: Config) -> tuple[str, ...]:
    """Add a cut that training uses to the groups; returns the tasks that it has a label for."""
    if not is_usable(cut, config.data):
        return ()
    has = tuple(task for task, name in label_names(config).items() if label_of(cut, name) is not None)
    groups.setdefault((path, has), []).append(cut.duration)
    return has


def _watched(cuts: Iterable[tuple[str, Cut]], found: Survey, frames: list[tuple[str, str, int]]) -> Iterator[Cut]:
    """The cuts as they pass; those that training uses are counted."""
    for path, cut in cuts:
        for task in _count(found.groups, path, cut, found.config):
            found.hours[task] += cut.duration / 3600
            if task == "asr":
                text = label_of(cut, "text") or ""
                found.vocabulary.update(normalize(text, found.config.text).split())
                frames.append((cut.id, text, _encoder_frames(cut.duration, found.config)))
        yield cut


def _encoder_frames(duration_s: float, config: Config) -> int:
    """As LogMel.lengths and Conformer.lengths count them."""
    frames = round(duration_s * config.features.sample_rate) // config.features.hop_samples
    for _ in range(config.encoder.subsampling.bit_length() - 1):
        frames = (frames + 1) // 2
    return frames


def tables(found: Survey) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, column heads, rows) of what was found."""
    inventory, total = found.inventory, max(found.inventory.utterances, 1)
    labelled = {task: sum(n for tasks, n in found.overlap.items() if task in tasks) for task in found.config.tasks}
    tasks = []
    for task, count in labelled.items():
        classes = inventory.classes.get(task, Counter())
        kinds = f"{len(found.vocabulary)} words, {found.characters} characters" if task == "asr" else _classes(classes)
        tasks.append([task, str(count), f"{100 * count / total:.1f} %", f"{found.hours[task]:.3f}", kinds])
    overlap = [
        [" + ".join(has) or "no label", str(count), f"{100 * count / total:.1f} %"]
        for has, count in found.overlap.most_common()
    ]
    shown = [("Tasks", ["task", "labelled", "share", "hours", "classes or vocabulary"], tasks)]
    shown.append(("Overlap of labels", ["utterances with exactly", "number", "share"], overlap))
    if speakers := inventory.classes.get("speaker"):
        spread = np.percentile(list(speakers.values()), [0, 50, 100])
        per_hour = len(speakers) / found.hours["speaker"]
        heads = ["speakers", "per labelled hour", "utterances each: fewest", "median", "most"]
        shown.append(("Speakers", heads, [[str(len(speakers)), f"{per_hour:.1f}", *(f"{n:g}" for n in spread)]]))
    if found.durations_s:
        cells = [f"{value:.2f}" for value in np.percentile(found.durations_s, [0, 5, 50, 95, 100])]
        cells += [f"{inventory.duration_s / 3600:.3f}", str(inventory.utterances)]
        heads = ["shortest", "5 %", "median", "95 %", "longest", "hours in all", "utterances"]
        shown.append(("Lengths in seconds", heads, [cells]))
    return shown


def _classes(counts: Counter[str]) -> str:
    if not counts:
        return "no label"
    ordered = counts.most_common()
    if len(ordered) <= 4:
        return ", ".join(f"{label} {count}" for label, count in ordered)
    return f"{len(ordered)} classes, {ordered[-1][1]} to {ordered[0][1]} utterances each"
