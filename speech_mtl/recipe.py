"""A recipe, one that comes with the package or a TOML file, with its overrides -> a Config.

A recipe that starts from a model (train.init) need not repeat what that model is: see `inherit`. This file imports no
torch, so that a wrong call is answered at once.
"""

from __future__ import annotations

import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from speech_mtl.config import Config, ConfigError, TaskConfig, parse_config

TASK_KEYS = {
    **dict.fromkeys(["intermediate", "consistency"], ["asr"]),
    **dict.fromkeys(["crop_s", "embedding_dim", "margin", "scale", "teacher", "lda_dim"], ["speaker"]),
    **dict.fromkeys(["adaptor_dim", "spectrum"], ["speaker", "classify"]),
    "label": ["classify"],
}
"""Settings that belong to some types of tasks alone."""


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("speech_mtl") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(recipe: str | Path, overrides: list[str] | None = None) -> Config:
    """A recipe's name or TOML file, with overrides such as 'train.epochs=20', as a Config. Raises ConfigError."""
    path = Path(recipe)
    if path.suffix == ".toml":
        if not path.is_file():
            raise ConfigError(f"recipe file {path} does not exist")
        data = path.read_bytes()
    elif str(recipe) in recipe_names():
        data = (resources.files("speech_mtl") / "recipes" / f"{recipe}.toml").read_bytes()
    else:
        raise ConfigError(f"no recipe '{recipe}'; accepted: {', '.join(recipe_names())}, or the path of a .toml file")
    try:
        values = tomllib.loads(data.decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {recipe}: not valid TOML: {error}") from None
    for override in overrides or []:
        override_values(values, override)
    config = parse_config(inherit(values), str(recipe))
    _check_task_keys(config, str(recipe))
    half = config.features.sample_rate / 2
    if config.features.f_max_hz > half and not config.train.init:  # models trained so before still load and learn on
        found = f"found {config.features.f_max_hz:g}, accepted: half of sample_rate, {half:g}, or less"
        raise ConfigError(f"recipe {recipe}: features.f_max_hz: {found}; mel bins above it would stay empty")
    return config


def _check_task_keys(config: Config, origin: str) -> None:
    """Raises ConfigError for a setting of a task that is for tasks of another type: it would do nothing."""
    for name, task in config.tasks.items():
        for key, types in TASK_KEYS.items():
            value = getattr(task, key)
            if task.type not in types and value != TaskConfig.model_fields[key].default:
                raise ConfigError(
                    f"{origin}: tasks.{name}.{key} is {value!r}, and '{name}' is of type {task.type}; take it out: "
                    f"it is for tasks of type {' and '.join(types)}"
                )


def override_values(values: dict[str, Any], override: str) -> None:
    """Set 'section.key=value' in plain values. Raises ConfigError where it is not of that form."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override}: expected section.key=value, such as train.epochs=20")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string
    node = values
    for part in parts[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override}: '{part}' is a value, not a section")
    node[parts[-1]] = value


def inherit(values: dict[str, Any]) -> dict[str, Any]:
    """What the recipe leaves open of features, encoder and text is as in the model of train.init, where there is one.

    On a frozen trunk that model's asr task is added as well. Raises ConfigError.
    """
    train, trunk = values.get("train"), values.get("trunk")
    folder = train.get("init") if isinstance(train, dict) else None
    if not folder:
        return values
    if not (path := Path(str(folder)) / "config.json").is_file():
        raise ConfigError(f"train.init {folder} is not a model folder: config.json is missing")
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))["config"]
        sections = {name: theirs[name] | values.get(name, {}) for name in ("features", "encoder", "text")}
        recognisers = {name: task for name, task in theirs["tasks"].items() if task["type"] == "asr"}
        if isinstance(trunk, dict) and trunk.get("frozen"):
            tasks = dict(values.get("tasks", {"speaker": {"type": "speaker"}}))
            own = {name: tasks.pop(name, {}) for name in recognisers}
            sections["tasks"] = {name: task | own[name] for name, task in recognisers.items()} | tasks
    except (ValueError, TypeError, KeyError):  # load_model and parse_config say what is wrong with them
        return values
    return values | sections
