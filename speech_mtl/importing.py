"""A public Parakeet-CTC checkpoint -> an ordinary model folder.

Sources: a folder as the transformers package writes it (config.json, safetensors weights in one or several files,
preprocessor_config.json or processor_config.json, tokenizer.json), the hub name of such a folder, or a .nemo archive.
The recogniser that comes out gives the checkpoint's logits and texts (parity.py compares them), runs without
transformers, and is a start for training: `train.init`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from speech_mtl.checkpoint import (
    CheckpointError,
    check_memory,
    check_new,
    empty_model,
    load_weights,
    read_object,
    save_model,
)
from speech_mtl.config import Config, TextConfig
from speech_mtl.model import SpeechModel
from speech_mtl.nemo import read_nemo
from speech_mtl.parakeet import (
    ANY_IGNORED,
    CTC_IGNORED,
    Source,
    our_config,
    our_weights,
    read_encoder_options,
    read_options,
    read_preprocessor_options,
)
from speech_mtl.pieces import from_hugging_face, text_policy
from speech_mtl.text import Tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NEEDED = (
    "config.json, model.safetensors (or its shards with model.safetensors.index.json), preprocessor_config.json or "
    "processor_config.json, tokenizer.json"
)


def import_model(source: str | Path, out: Path, tell: Callable[[str], object] = lambda note: None) -> SpeechModel:
    """Write the checkpoint that `source` names as a model folder `out`; returns the model. Raises CheckpointError.

    `tell` is called with what a person should know of it.
    """
    check_new(out)
    found = read_source(locate(source))
    plain = Tokenizer(found.tokenizer, TextConfig())
    tokenizer = Tokenizer(found.tokenizer, text_policy(plain.pieces))
    config = our_config(found, tokenizer.config)
    model = empty_model(config, tokenizer, {})
    expected = model.state_dict()
    weights = our_weights(found, expected)
    ours_alone = {name: value for name, value in expected.items() if name.startswith("features.")}
    load_weights(model, weights | ours_alone, found.origin, convert=False)
    save_model(model, out, _card(found, config, model))
    if found.note:
        tell(found.note)
    return model


def locate(source: str | Path) -> Path:
    """The folder or .nemo file that `source` names, downloaded where it is the name of a model on the hub."""
    path = Path(source)
    if path.exists():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) or path.suffix == ".nemo":
        raise CheckpointError(f"{source} does not exist; accepted: a folder, a .nemo file, or a hub name OWNER/MODEL")
    from huggingface_hub import snapshot_download

    wanted = ["config.json", "*.safetensors", INDEX, "preprocessor_config.json", "processor_config.json"]
    try:
        return Path(snapshot_download(str(source), allow_patterns=[*wanted, "tokenizer.json"]))
    except Exception as error:  # no network, no such name, no right to it: each library below has its own exceptions
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{source} is no folder here and could not be fetched from the hub ({type(error).__name__}: {reason}); "
            f"fetch {NEEDED} of the model {source} where there is a network, put them in a folder, and give that folder"
        ) from None


def read_source(path: Path) -> Source:
    """The checkpoint at a path. Raises CheckpointError."""
    if path.is_file():
        if path.suffix != ".nemo":
            raise CheckpointError(f"{path}: a file of type '{path.suffix}'; accepted: a .nemo file, or a folder")
        return read_nemo(path)
    archives = sorted(path.glob("*.nemo"))
    if not (path / "config.json").is_file() and len(archives) == 1:
        return read_nemo(archives[0])
    return _read_folder(path)


def _read_folder(folder: Path) -> Source:
    """A folder as transformers writes it."""
    config = _read_json(folder / "config.json")
    origin = f"{folder}/config.json"
    if config.get("model_type") != "parakeet_ctc":
        found = config.get("model_type") or ", ".join(config.get("architectures") or []) or "not named"
        raise CheckpointError(f"{origin}: the architecture is {found}; accepted: parakeet_ctc")
    defaults = {"vocab_size": 1025, "pad_token_id": 1024}
    head = read_options(config, defaults, {}, CTC_IGNORED | ANY_IGNORED, origin)
    outputs, blank = head["vocab_size"], head["pad_token_id"]
    if blank != outputs - 1:
        raise CheckpointError(
            f"{origin}: pad_token_id, the CTC blank, is {blank}; accepted: {outputs - 1}, the last output"
        )
    weights = _read_weights(folder)
    encoder = config.get("encoder_config")
    if not isinstance(encoder, dict):
        raise CheckpointError(f"{origin}: encoder_config is {encoder!r}; expected the encoder's options")
    if (folder / "preprocessor_config.json").is_file():
        where = f"{folder}/preprocessor_config.json"
        preprocessor: Any = _read_json(folder / "preprocessor_config.json")
    else:
        preprocessor = _read_json(folder / "processor_config.json").get("feature_extractor")
        where = f"{folder}/processor_config.json"
        if not isinstance(preprocessor, dict):
            raise CheckpointError(f"{where}: feature_extractor is {preprocessor!r}; expected the features' options")
    text = _read_text(folder / "tokenizer.json")
    return Source(
        folder.resolve().name,
        str(folder),
        read_encoder_options(encoder, weights, f"{origin}: encoder_config"),
        read_preprocessor_options(preprocessor, where),
        outputs,
        from_hugging_face(text, blank, f"{folder}/tokenizer.json"),
        weights,
    )


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors, mapped from their files: none is in memory before it is used."""
    shards = [WEIGHTS]
    listed: Any = {}
    if (folder / INDEX).is_file():
        listed = _read_json(folder / INDEX).get("weight_map", {})
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise CheckpointError(f"{folder}/{INDEX}: weight_map is {str(listed)[:60]}; expected tensor: file")
        shards = sorted(set(listed.values()))
        if odd := [name for name in shards if Path(name).name != name]:
            raise CheckpointError(f"{folder}/{INDEX}: the shard '{odd[0]}' is not a file of this folder")
    for name in shards:
        _check_is_there(folder / name)
    size = sum((folder / name).stat().st_size for name in shards)
    check_memory(size, f"{folder}: importing its weights")
    weights: dict[str, Tensor] = {}
    for name in shards:
        try:
            weights |= load_file(folder / name)
        except SafetensorError as error:
            found = f"{(folder / name).stat().st_size} bytes"
            raise CheckpointError(
                f"{folder}/{name}: not a whole safetensors file ({error}); found {found}; fetch it again"
            ) from None
    if absent := sorted(listed.keys() - weights.keys()):
        raise CheckpointError(f"{folder}/{listed[absent[0]]}: tensor {absent[0]} is missing, {INDEX} names it")
    return weights


def _check_is_there(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path.parent}: {path.name} is missing; needed: {NEEDED}")


def _read_text(path: Path) -> str:
    _check_is_there(path)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    _check_is_there(path)
    return read_object(path)


def _card(source: Source, config: Config, model: SpeechModel) -> str:
    """The model folder's README.md."""
    encoder, features, size = config.encoder, config.features, model.n_parameters
    return "\n".join([
        f"# {source.name}, imported\n",
        f"A recogniser made of the public checkpoint '{source.name}' (Parakeet-CTC: a FastConformer with a CTC head).",
        f"Its weights, {size / 1e6:.1f} million parameters, are here under this project's names and otherwise as they",
        "were; its licence goes with them.\n",
        *([f"It is {source.note}.\n"] if source.note else []),
        f"- {encoder.n_blocks} blocks, {encoder.d_model} wide, {encoder.n_heads} heads, kernel {encoder.kernel_size}",
        f"- {features.n_mels} mel bins at {features.sample_rate} Hz; an output every {1000 * model.frame_s:g} ms",
        f"- {len(model.tokenizer or [])} pieces, and the blank as the last output\n",
        "`speech-mtl transcribe`, `evaluate` and `train` work on this folder as on any other. Named speakers are",
        "added by a branch beside the recogniser, which stays as it is to the last bit:\n",
        "```",
        "speech-mtl train speaker-branch --init THIS_FOLDER --out runs/branch",
        "```\n",
        "To train the recogniser itself, with the dev WER watched, a recipe needs data and these lines; its features,",
        "encoder and text are then this model's:\n",
        "```toml",
        "[tasks.asr]",
        'type = "asr"',
        "intermediate = 0  # no loss at a block that never had one",
        "",
        "[trunk]",
        "lr_decay = 0.9  # lower blocks learn more slowly",
        "max_wer_increase = 1  # percentage points of dev WER beyond which the run stops",
        "",
        "[train]",
        'init = "..."  # this folder',
        "```",
        "",
    ])  # fmt: skip
