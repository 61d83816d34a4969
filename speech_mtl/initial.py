"""A config and its training data -> the model that training starts from: new, or from another run's weights."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn

from speech_mtl.checkpoint import CheckpointError, load_model
from speech_mtl.config import Config, ConfigError
from speech_mtl.data import DataError, SpeechDataset, is_usable, read_cuts
from speech_mtl.engine import OnnxModel
from speech_mtl.inventory import Inventory, check_dev, check_labels, take_inventory
from speech_mtl.mixture import read_training
from speech_mtl.model import SpeechModel
from speech_mtl.tasks.asr import ASR
from speech_mtl.text import Tokenizer

# settings that change nothing in use
ONLY_IN_TRAINING = {"dropout", "weight", "warmup_epochs", "intermediate", "consistency"}


def prepare_model(config: Config) -> tuple[SpeechModel, Inventory]:
    """A new model for the training data: tokenizer, classes and feature statistics are taken from it.

    The statistics are those of train.init where that model has the same features, which its weights are used to.
    """
    if not config.data.train:
        raise DataError("data.train names no manifest")
    check_names(config)
    taught = [name for name, task in config.tasks.items() if task.teacher]
    if taught and "speaker" in config.data.permute:
        accepted = f"tasks.{taught[0]}.teacher=0"
        raise ConfigError(f"data.permute: a teacher's vectors stay with their voices; set {accepted}")
    inventory = take_inventory(read_training(config), config)
    start = load_model(config.train.init) if config.train.init else None
    if start is not None:
        keep_frozen_classes(inventory, config, start)
    check_labels(inventory, config)
    check_dev(inventory, config)
    if start is not None and config.trunk.frozen:
        check_frozen(config, start)
    recognises = any(task.type == "asr" for task in config.tasks.values())
    tokenizer = choose_tokenizer(inventory.texts, config, start) if recognises else None
    model = SpeechModel(config, tokenizer, inventory.labels())
    check_freeze(config, model)
    model.seed_weights(config.train.seed)
    if start is not None:
        check_features(model, start, config)
        start_from(model, start, config.train.init)
    if start is None or start.config.features != config.features:
        _measure_features(model, config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(config.frozen_parts()))
    count_texts_left_out(model, inventory)
    return model, inventory


def count_texts_left_out(model: SpeechModel, inventory: Inventory) -> None:
    """Add to `inventory` the texts that the recogniser cannot learn from, at the speed of the recordings."""
    rate = model.config.features.sample_rate
    lengths = model.lengths(torch.tensor([round(seconds * rate) for seconds in inventory.texts_s], dtype=torch.long))
    for task in map(model.task, model.learning()):
        if isinstance(task, ASR):
            for text, length in zip(inventory.texts, lengths.tolist(), strict=True):
                if reason := task.refused(text, task.tokenizer.encode(text), length):
                    inventory.texts_left_out[reason] += 1


def check_names(config: Config) -> None:
    """Raises ConfigError where a task's name cannot be that of a part of the model: PyTorch has it, or a dot in it."""
    for name in config.tasks:
        if not name or "." in name or hasattr(nn.ModuleDict(), name):
            raise ConfigError(
                f"tasks: found '{name}', accepted: names without a dot that torch.nn.ModuleDict does not have itself, "
                f"such as 'my_{name.replace('.', '_') or 'task'}'"
            )


def keep_frozen_classes(inventory: Inventory, config: Config, start: SpeechModel) -> None:
    """A head that is not trained has the classes it knows; utterances of others have no label for it."""
    for name, labels in start.labels.items():
        if name in inventory.classes and f"tasks.{name}.".startswith(config.frozen_parts()):
            inventory.classes[name] = Counter({label: inventory.classes[name][label] for label in labels})


def check_freeze(config: Config, model: SpeechModel) -> None:
    """Raises ConfigError where train.freeze names nothing of the model, or all of it."""
    names = list(model.state_dict())
    for part in config.train.freeze:
        if not any(name.startswith(part) for name in names):
            blocks = [f"encoder.blocks.{place}." for place in model.encoder.blocks]
            parts = ["encoder.", *blocks, *(f"branches.{name}." for name in model.branches)]
            accepted = ", ".join([*parts, *(f"tasks.{name}." for name in model.tasks)])
            raise ConfigError(f"train.freeze: no weight's name begins with '{part}'; accepted: {accepted}, or longer")

    if all(name.startswith(config.frozen_parts()) for name, _ in model.named_parameters()):
        raise ConfigError(f"train.freeze: found {config.train.freeze}, which leaves nothing to train; take one out")


def check_features(model: SpeechModel, start: SpeechModel, config: Config) -> None:
    """Raises CheckpointError where the features' mean and scale are frozen, and were measured with other settings."""
    if not any(name.startswith("features.") and name.startswith(config.frozen_parts()) for name in model.state_dict()):
        return
    theirs = start.config.features
    if wrong := [
        f"features.{key} is {value!r}, accepted: {accepted!r}"
        for key, value in config.features
        if value != (accepted := getattr(theirs, key))
    ]:
        raise CheckpointError(f"train.freeze: {'; '.join(wrong)}, as train.init {config.train.init} has")


def check_frozen(config: Config, start: SpeechModel) -> None:
    """Raises CheckpointError where the recogniser could not stay what it is: a setting differs, or it is none."""
    theirs, folder = start.config, config.train.init
    (name,) = (name for name, task in config.tasks.items() if task.type == "asr")
    if name not in theirs.tasks or theirs.tasks[name].type != "asr":
        raise CheckpointError(
            f"trunk.frozen: train.init {folder} has no asr task '{name}'; it has {list(theirs.tasks)}"
        )
    pairs = {"features": (config.features, theirs.features), "encoder": (config.encoder, theirs.encoder)}
    pairs |= {"text": (config.text, theirs.text), f"tasks.{name}": (config.tasks[name], theirs.tasks[name])}
    for section, (ours, other) in pairs.items():
        for key, value in ours:
            if key not in ONLY_IN_TRAINING and value != (accepted := getattr(other, key)):
                raise CheckpointError(
                    f"trunk.frozen: {section}.{key} is {value!r}; accepted: {accepted!r}, as train.init {folder} has"
                )


def choose_tokenizer(texts: list[str], config: Config, start: SpeechModel | None) -> Tokenizer:
    """The tokenizer of the model to start from, whose head writes its pieces; else one learnt from the training texts.

    Raises CheckpointError where that one writes in another way, or where it cannot write the training texts.
    """
    if start is None or start.tokenizer is None:
        try:
            return Tokenizer.train(texts, config.text)
        except ValueError as error:
            raise DataError(f"data.train: {error}") from None
    if config.trunk.frozen:  # nothing learns to write them
        return start.tokenizer
    for key in ("case", "punctuation", "units", *(["vocab_size"] if config.text.units == "bpe" else [])):
        found, accepted = getattr(config.text, key), getattr(start.config.text, key)
        if found != accepted:
            raise CheckpointError(
                f"text.{key} is {found!r}; accepted: {accepted!r}, as train.init {config.train.init} has"
            )
    unknown = [lacking for text in texts if (lacking := start.tokenizer.unknown(text))]
    if len(unknown) > 0.05 * len(texts):  # a few odd texts are merely not learnt from, see tasks/asr.py
        raise CheckpointError(
            f"train.init {config.train.init}: its tokenizer has no pieces for {len(unknown)} of {len(texts)} training "
            f"texts, which have characters such as {sorted(set.union(*unknown))[:5]}; accepted: 5 % of them"
        )
    return start.tokenizer


def start_from(model: SpeechModel, other: SpeechModel, folder: str) -> None:
    """Take all weights of another model, the one of `folder`, that have their place here. Raises CheckpointError.

    A block of the stack keeps its place: one that was shared there may be a task's own here, and the other way round.
    On a frozen recogniser the other tasks' heads start anew.
    """
    if isinstance(other, OnnxModel):
        raise CheckpointError(f"{folder} is an export, which cannot learn; give the folder it was made from")
    own, theirs = model.state_dict(), other.state_dict()
    taken = {}
    frozen = model.config.frozen_parts() if model.config.trunk.frozen else ()
    for name, value in own.items():
        if frozen and name.startswith("tasks.") and not name.startswith(frozen):
            continue
        candidates = [name]
        if name.startswith(("encoder.", "branches.")):
            stem = name.split(".", 1 if name.startswith("encoder.") else 2)[-1]
            candidates += [f"encoder.{stem}", *(f"branches.{task}.{stem}" for task in other.branches)]
        for candidate in candidates:
            if candidate in theirs and theirs[candidate].shape == value.shape:
                taken[name] = theirs[candidate]
                break
    # matrices only: a counter fits anywhere
    if not any(name.startswith(("encoder.blocks", "branches.")) and value.dim() > 1 for name, value in taken.items()):
        raise CheckpointError(f"{folder}: none of its encoder's weights fits this config's encoder")
    untrained = model.config.frozen_parts()
    if lacking := [name for name in own if untrained and name.startswith(untrained) and name not in taken]:
        raise CheckpointError(
            f"{'trunk.frozen' if frozen else 'train.freeze'}: {folder} has nothing that fits {lacking[0]}, and nothing "
            "would train it"
        )
    model.load_state_dict(own | taken)


def _measure_features(model: SpeechModel, config: Config, utterances: int = 500) -> None:
    """The fixed mean and scale of the mel bins, from utterances spread over the training data."""
    cuts = [cut for cut in read_cuts(config.data.train) if is_usable(cut, config.data)]
    dataset = SpeechDataset(config)
    log_mels, failed = [], []
    for cut in cuts[:: max(1, len(cuts) // utterances)]:
        batch = dataset[0, [cut]]  # type: ignore[index]
        failed += batch.failed
        if batch.cuts:
            log_mels.append(model.features.log_mel(batch.audio_BN, batch.samples_B)[0][0])
    if not log_mels:
        raise DataError(f"data.train: none of {len(failed)} recordings could be read; the first: {failed[0][1]}")
    model.features.measure(log_mels)
