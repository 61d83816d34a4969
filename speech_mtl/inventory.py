"""What training data hold: the labels for the model to build from, and whether every task has something to learn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from lhotse.cut import Cut

from speech_mtl.config import Config
from speech_mtl.cuts import label_names
from speech_mtl.data import DataError, read_cuts, why_left_out
from speech_mtl.tasks import label_of
from speech_mtl.tasks.speaker import VECTORS


@dataclass
class Inventory:
    """What a pass over the cuts found: the labels for the model to build from, and figures for a person to read."""

    utterances: int = 0
    duration_s: float = 0.0
    texts: list[str] = field(default_factory=list)
    texts_s: list[float] = field(default_factory=list)  # the lengths of their utterances
    classes: dict[str, Counter[str]] = field(default_factory=dict)
    taught: int = 0  # utterances with a teacher's vector, where a task learns from it
    left_out: Counter[str] = field(default_factory=Counter)
    texts_left_out: Counter[str] = field(default_factory=Counter)  # of utterances that are used for other tasks

    def labels(self) -> dict[str, list[str]]:
        return {task: sorted(counts) for task, counts in self.classes.items()}


def take_inventory(cuts: Iterable[Cut], config: Config) -> Inventory:
    """Read all the cuts once and collect every task's labels."""
    names = {task: name for task, name in label_names(config).items() if config.tasks[task].type != "asr"}
    taught = {task.embedding_dim for task in config.tasks.values() if task.type == "speaker" and task.teacher}
    found = Inventory(classes={task: Counter() for task in names})
    for cut in cuts:
        if reason := why_left_out(cut, config.data):
            found.left_out[reason] += 1
            continue
        found.utterances += 1
        found.duration_s += cut.duration
        if (text := label_of(cut, "text")) is not None:
            found.texts.append(text)
            found.texts_s.append(cut.duration)
        elif any(supervision.text for supervision in cut.supervisions):
            found.texts_left_out["is not that of the cut: a supervision has none, or reaches beyond the cut"] += 1
        for task, name in names.items():
            if (label := label_of(cut, name)) is not None:
                found.classes[task][label] += 1
        for size in taught:
            found.taught += _is_taught(cut, size)
    return found


def check_ids(ids: Iterable[str], where: str) -> None:
    """Raises DataError where two cuts of a manifest have the same id, and something is kept for each by its id."""
    cut_id, times = max(Counter(ids).items(), key=lambda item: item[1], default=("", 0))
    if times > 1:
        raise DataError(f"{where}: cut '{cut_id}' is there {times} times; ids within a manifest must differ")


def _is_taught(cut: Cut, size: int) -> bool:
    """Whether the cut has a teacher's vector. Raises DataError for one of another size."""
    found = {len(vector) for s in cut.supervisions for vector in (s.custom or {}).get(VECTORS, {}).values()}
    if wrong := found - {size}:
        raise DataError(
            f"cut '{cut.id}': the teacher's vector has {min(wrong)} numbers, and the embedding {size}; "
            f"set embedding_dim = {min(wrong)} for the speaker task"
        )
    return bool(found)


def check_labels(inventory: Inventory, config: Config) -> None:
    """Raises DataError where a task of the config has nothing to learn from."""
    if not inventory.utterances:
        raise DataError(f"no usable training utterance in {', '.join(config.data.train)}: {dict(inventory.left_out)}")
    for name, task in config.tasks.items():
        if task.type == "asr":
            if not inventory.texts and not config.trunk.frozen:
                raise DataError(f"task '{name}': no training utterance has a text")
            continue
        if task.type == "speaker" and task.teacher and not inventory.taught:
            raise DataError(
                f"task '{name}': teacher = {task.teacher:g}, and no training utterance has a teacher's vector; "
                "`speech-mtl teach` writes them"
            )
        if len(inventory.classes[name]) < 2:
            found = list(inventory.classes[name]) or "none"
            raise DataError(f"task '{name}': at least two different labels are needed in training, found {found}")


def check_dev(inventory: Inventory, config: Config) -> None:
    """Raises DataError where a manifest of data.dev or data.dev_enroll cannot be used, or train.select has no label.

    It would be found after the first epoch, and a run whose settings are mended then is another.
    """
    has_speakers = any(task.type == "speaker" for task in config.tasks.values())
    for cut in read_cuts(config.data.dev_enroll if has_speakers else []):
        if label_of(cut, "speaker") is None:
            raise DataError(f"data.dev_enroll: cut '{cut.id}' has no speaker label")
    name, known = config.train.select, None
    label = label_names(config).get(name, "text")
    labels = {label_of(cut, label) for cut in read_cuts(config.data.dev)} - {None}
    if name == "mean":
        return
    if config.tasks[name].type == "speaker" and not config.data.dev_enroll:
        known = inventory.classes[name]  # strangers are not scored
    if not (labels if known is None else labels & known.keys()):
        rest = "" if known is None else " of a training speaker, and data.dev_enroll is empty"
        raise DataError(
            f"train.select is '{name}', and no utterance of data.dev = {config.data.dev} has a label for it{rest}; "
            "accepted: mean, or a task with labels there"
        )
