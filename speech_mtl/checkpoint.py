"""A model is a folder: config.json, model.safetensors, tokenizer.json, labels.json, README.md. Nothing is pickled.

A folder that was exported (export.py) has a graph and the heads' weights in the place of model.safetensors.

config.json also holds the SHA-256 of the other files, so that a missing or altered one is noticed. All are written
beside their place and synced before the first is renamed: a full disk or a crash leaves the last good ones.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from safetensors.torch import load_file, save_file

from speech_mtl.config import Config, ConfigError, parse_config
from speech_mtl.engine import GRAPH, HEADS, OnnxModel
from speech_mtl.model import SpeechModel
from speech_mtl.text import Tokenizer

FORMAT = 1
CONFIG, WEIGHTS, TOKENIZER, LABELS = "config.json", "model.safetensors", "tokenizer.json", "labels.json"
LM = "lm.arpa"
"""The language model that `--lm own` takes; a folder may lack it."""


class CheckpointError(ValueError):
    """A model folder that cannot be used; the message names the file, what was found and what was expected."""


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a temporary path beside `path`, sync it to disk, then rename it into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)  # what a person knows; a full disk names none
        raise
    finally:
        temporary.unlink(missing_ok=True)


def keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the other lines of a file of JSON lines, if there is one, and what a full disk or a crash left of a line."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and keep(json.loads(line))]
        path.write_text("".join(kept), encoding="utf-8")


def sync(path: Path) -> None:
    """Have the disk hold what was written."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """safetensors' `save_file` makes a file that nobody else may read; this one has a new file's usual permissions."""
    path.touch()
    usual = path.stat().st_mode
    save_file(tensors, path)
    path.chmod(usual)


def save_model(model: SpeechModel, folder: Path, card: str) -> None:
    """Write the model folder; `card` is its README.md. Weights are stored in the types that they have."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    with TemporaryDirectory(dir=folder, prefix=".saving.") as temporary:
        new = Path(temporary)
        save_tensors(weights, new / WEIGHTS)
        if model.tokenizer is not None:
            model.tokenizer.save(new / TOKENIZER)
        (new / LABELS).write_text(json.dumps(model.labels, indent=1) + "\n", encoding="utf-8")
        (new / "README.md").write_text(card, encoding="utf-8")
        describe(new, model.config, [WEIGHTS, TOKENIZER, LABELS])
        for path in new.iterdir():
            sync(path)
        for path in sorted(new.iterdir(), key=lambda path: path.name == CONFIG):  # config.json says what holds: last
            path.replace(folder / path.name)


def check_new(folder: Path) -> None:
    """Raises CheckpointError for a folder in which a model would replace what is there."""
    for name in (CONFIG, WEIGHTS, TOKENIZER, LABELS, "README.md"):
        if (folder / name).exists():
            held = "a model" if name == CONFIG else f"a {name}, which the model's would replace"
            raise CheckpointError(f"{folder} already holds {held}; choose another folder")


def describe(folder: Path, config: Config, names: list[str], **more: Any) -> None:
    """Write config.json: the config, the SHA-256 of those files that there are, and what else there is to say."""
    files = {name: _sha256(folder / name) for name in names if (folder / name).exists()}
    described = {"format": FORMAT, "files": files, **more, "config": config.model_dump()}
    (folder / CONFIG).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def load_model(folder: str | Path, device: str | torch.device = "cpu") -> SpeechModel:
    """The model of a folder, in eval mode. Raises CheckpointError."""
    folder = Path(folder)
    described = _read_described(folder)
    for name, expected in described["files"].items():
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} is not complete: {name} is missing")
        if _sha256(folder / name) != expected:
            raise CheckpointError(f"{folder}/{name} was altered: its SHA-256 is not the one in config.json")
    try:
        config = parse_config(described["config"], f"{folder}/config.json")
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    has_text = any(task.type == "asr" for task in config.tasks.values())
    tokenizer = Tokenizer.load(folder / TOKENIZER, config.text) if has_text else None
    labels, exported = read_object(folder / LABELS), described.get("exported")
    if exported and torch.device(device).type != "cpu":
        raise CheckpointError(f"{folder} is an export, which runs on the cpu, not on {device}")
    if exported:
        check_memory(sum(file.stat().st_size for file in folder.iterdir()), f"{folder}: loading the model")
        with torch.device("meta"):
            model: SpeechModel = OnnxModel(config, tokenizer, labels, folder / GRAPH, exported)
    else:
        model = empty_model(config, tokenizer, labels)
        check_memory(4 * sum(value.numel() for value in model.state_dict().values()), f"{folder}: loading the model")
    weights = HEADS if exported else WEIGHTS
    load_weights(model, load_file(folder / weights), f"{folder}/{weights}")
    model.fingerprint = fingerprint_of(folder)
    return model.to(device).eval()


def fingerprint_of(folder: Path) -> str:
    """What identifies a model folder's weights; that of an export is its own word, see export.py."""
    described = _read_described(folder)
    return described["exported"]["fingerprint"] if "exported" in described else described["files"][WEIGHTS][:16]


def empty_model(config: Config, tokenizer: Tokenizer | None, labels: dict[str, list[str]]) -> SpeechModel:
    """A model whose weights have shapes and types but take no memory and no time to draw; see `load_weights`."""
    with torch.device("meta"):
        return SpeechModel(config, tokenizer, labels).float()  # whatever torch's default type is


def check_memory(needed: int, what: str) -> None:
    """Raises CheckpointError where fewer bytes are available: better than a machine that stands still."""
    if needed > (available := psutil.virtual_memory().available):
        raise CheckpointError(f"{what} needs {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are available")


def load_weights(model: SpeechModel, weights: dict[str, torch.Tensor], origin: str, convert: bool = True) -> None:
    """Make the tensors the model's own; names and shapes must agree. Raises CheckpointError.

    A tensor of the right type is used where it lies, so that a mapped file is read as its parts are needed and takes no
    second place in memory. Without `convert` each keeps its type, to be stored and not to be run.
    """
    expected = model.state_dict()
    missing, extra = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or extra:
        raise CheckpointError(f"{origin}: missing tensors {missing[:5]}, unexpected tensors {extra[:5]}")
    for name, value in weights.items():
        if value.shape != expected[name].shape:
            shapes = f"{tuple(value.shape)}, the config asks for {tuple(expected[name].shape)}"
            raise CheckpointError(f"{origin}: {name} has shape {shapes}")
    if convert:
        weights = {name: _like(value, expected[name]) for name, value in weights.items()}
    model.load_state_dict(weights, assign=True)


def _like(value: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """The value in the expected type and order of memory (channels last, for some); itself where it has both."""
    if value.dtype == expected.dtype and value.stride() == expected.stride():
        return value
    return torch.empty_like(expected, device=value.device).copy_(value)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_described(folder: Path) -> dict[str, Any]:
    """What config.json says. Raises CheckpointError."""
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a model folder: {CONFIG} is missing")
    described = read_object(path)
    if described.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format {described.get('format')!r}, this version reads {FORMAT}")
    for key in ("files", "config"):
        if not isinstance(described.get(key), dict):
            raise CheckpointError(f"{path}: '{key}' is {described.get(key)!r}; expected an object")
    return described


def read_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file. Raises CheckpointError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds {type(values).__name__}; expected an object")
    return values
