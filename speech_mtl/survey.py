"""What a person should know of manifests before training: labels, their overlap, lengths, vocabulary, imbalance.

Cuts go through `data.take_inventory`, which training uses too, so the figures are those that training will see.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from lhotse.cut import Cut

from speech_mtl.config import Config, parse_config
from speech_mtl.data import Inventory, read_cuts, take_inventory, usable
from speech_mtl.tasks import FIELDS, label_of
from speech_mtl.tasks.asr import frames_needed
from speech_mtl.text import Tokenizer, normalize

LOOKED_AT = 1000
"""Cuts in which further labels (gender, accent, ...) are looked for."""
IMBALANCE = 10
"""A task, or a class, with so many times the data of another is warned of."""


@dataclass
class Survey:
    inventory: Inventory
    config: Config
    """The default config with one task for every label found."""
    hours: dict[str, float] = field(default_factory=dict)
    """Labelled hours by task."""
    overlap: Counter[tuple[str, ...]] = field(default_factory=Counter)
    """Utterances by the tasks they have a label for."""
    durations_s: list[float] = field(default_factory=list)
    vocabulary: Counter[str] = field(default_factory=Counter)
    """Words of the normalised texts."""
    characters: int = 0
    too_long: list[str] = field(default_factory=list)
    """Ids of the cuts whose text needs more encoder frames than their audio has."""

    def warnings(self) -> list[str]:
        """What will hurt in training, in words."""
        total, found = self.inventory.utterances, []
        for reason, count in self.inventory.left_out.items():
            found.append(f"{count} utterances are left out: {reason}")
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
        if total and not any(len(tasks) > 1 for tasks in self.overlap):
            found.append("no utterance has labels for two tasks: they are learnt from separate utterances")
        return found


def survey(manifests: list[str]) -> Survey:
    """Read every cut once. Raises DataError."""
    config = _config(islice(read_cuts(manifests), LOOKED_AT))
    found = Survey(Inventory(), config, hours=dict.fromkeys(config.tasks, 0.0))
    frames: list[tuple[str, str, int]] = []
    found.inventory = take_inventory(_watched(read_cuts(manifests), found, frames), config)
    if found.inventory.texts and any(text.strip() for text in found.inventory.texts):
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
                if isinstance(value, str | bool) and name not in ("text", "speaker", "asr"):
                    values.setdefault(name, []).append(str(value))
    # a value of its own for almost every utterance (a path, an id) is no class
    extra = [name for name, seen in sorted(values.items()) if len(set(seen)) <= max(2, len(seen) // 2)]
    tasks = {"asr": {"type": "asr"}, "speaker": {"type": "speaker"}} | {name: {"type": "classify"} for name in extra}
    return parse_config({"tasks": tasks}, "inspect")


def _watched(cuts: Iterable[Cut], found: Survey, frames: list[tuple[str, str, int]]) -> Iterator[Cut]:
    """The cuts as they pass; those that training uses are counted."""
    labels = {name: {"asr": "text"}.get(name, name) for name in found.config.tasks}
    for cut in cuts:
        if usable(cut, found.config.data) is None:
            has = tuple(task for task, name in labels.items() if label_of(cut, name) is not None)
            found.overlap[has] += 1
            found.durations_s.append(cut.duration)
            for task in has:
                found.hours[task] += cut.duration / 3600
            if (text := label_of(cut, "text")) is not None:
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
