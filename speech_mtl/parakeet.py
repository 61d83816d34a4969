"""A Parakeet-CTC checkpoint's options and tensors -> our config and weights, each of them accounted for.

The FastConformer of arXiv 2305.05084, in the names that the transformers package gives its parts; nemo.py brings NeMo's
own names into these. Our encoder has the same layers, so that a checkpoint's tensors only take other names: three
projections are joined into one, and convolutions over a single frame are linear layers.
An option that is not known, a tensor that nothing asks for, a missing one and a wrong shape are errors: what is passed
over in silence is a model that hears worse than it should.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import ValidationError
from tokenizers import Tokenizer as HFTokenizer
from torch import Tensor

from speech_mtl.checkpoint import CheckpointError
from speech_mtl.config import Config, EncoderConfig, FeatureConfig, TaskConfig, TextConfig, explain

# Options with the values they have where a config leaves them out (transformers' ParakeetEncoderConfig) ...
ENCODER = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 8, "intermediate_size": 4096,
    "attention_bias": True, "convolution_bias": True, "conv_kernel_size": 9, "subsampling_factor": 8,
    "subsampling_conv_channels": 256, "num_mel_bins": 80, "scale_input": True, "dropout": 0.1,
}  # fmt: skip
PREPROCESSOR = {
    "feature_size": 80, "sampling_rate": 16000, "hop_length": 160, "n_fft": 512, "win_length": 400, "preemphasis": 0.97,
}  # fmt: skip
# ... those that have but one value here ...
ENCODER_FIXED = {
    "model_type": ["parakeet_encoder"], "hidden_act": ["silu"],
    "subsampling_conv_kernel_size": [3], "subsampling_conv_stride": [2],
}  # fmt: skip
PREPROCESSOR_FIXED = {
    "feature_extractor_type": ["ParakeetFeatureExtractor"], "padding_value": [0, 0.0], "padding_side": ["right"],
}  # fmt: skip
# ... and those that do not change what a trained model gives: regularisation, and what transformers adds to any config
ENCODER_IGNORED = {
    "activation_dropout", "attention_dropout", "dropout_positions", "layerdrop", "initializer_range",
    "max_position_embeddings",
}  # fmt: skip
PREPROCESSOR_IGNORED = {"return_attention_mask", "processor_class"}
CTC_IGNORED = {"ctc_loss_reduction", "ctc_zero_infinity", "initializer_range", "encoder_config", "model_type"}
ANY_IGNORED = {
    "architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "return_dict", "use_cache",
    "output_hidden_states", "output_attentions", "tie_word_embeddings", "chunk_size_feed_forward", "id2label",
    "label2id", "problem_type", "is_encoder_decoder", "_attn_implementation_autoset", "torchscript", "use_bfloat16",
    "bos_token_id", "eos_token_id", "sep_token_id", "decoder_start_token_id",
}  # fmt: skip


@dataclass
class Source:
    """A checkpoint in transformers' names, as found: nothing in it was checked against anything else yet."""

    name: str
    """What it is called in the model's card."""
    origin: str
    """Where it is, for messages."""
    encoder: dict[str, Any]
    """Options of the encoder: ENCODER's."""
    preprocessor: dict[str, Any]
    """PREPROCESSOR's."""
    outputs: int
    """Columns of the CTC head; the last is the blank."""
    tokenizer: HFTokenizer
    weights: dict[str, Tensor]
    called: dict[str, str] = field(default_factory=dict)
    """A tensor's name in the checkpoint, where it is another than in `weights`."""
    note: str = ""
    """What a person should know of how it was read."""


def read_options(
    found: Mapping[str, Any], defaults: Mapping[str, Any], fixed: Mapping[str, Any], ignored: Collection[str],
    origin: str, required: Collection[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """The options in `found`, with `defaults` for those it lacks; every other key must be `fixed` or `ignored`.

    Raises CheckpointError for an unknown key, a value of another type, and a fixed option with another value.
    """
    if absent := sorted(set(required) - found.keys()):
        raise CheckpointError(f"{origin}: the option '{absent[0]}' is missing")
    for key, value in found.items():
        if key in fixed:
            if value not in fixed[key]:
                accepted = ", ".join(repr(option) for option in fixed[key])
                raise CheckpointError(f"{origin}: {key} is {value!r}; accepted: {accepted}")
        elif key in defaults:
            kind = type(defaults[key])
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise CheckpointError(f"{origin}: {key} is {value!r}; accepted: a value like {defaults[key]!r}")
        elif key not in ignored:
            near = difflib.get_close_matches(key, [*defaults, *fixed], n=1, cutoff=0.7)
            hint = f"; did you mean '{near[0]}'?" if near else f"; accepted: {', '.join([*defaults, *fixed])}"
            raise CheckpointError(f"{origin}: unknown option '{key}' with value {value!r}{hint}")
    return {**defaults, **{key: found[key] for key in defaults if key in found}}


def read_encoder_options(found: Mapping[str, Any], weights: Collection[str], origin: str) -> dict[str, Any]:
    """The `encoder_config` of a transformers config. Raises CheckpointError."""
    heads = found.get("num_attention_heads", ENCODER["num_attention_heads"])
    fixed = {**ENCODER_FIXED, "num_key_value_heads": [heads]}
    # releases before the option existed wrote the biases or did not, without saying so
    stated = {"convolution_bias": "encoder.layers.0.conv.pointwise_conv1.bias" in weights}
    return read_options(found, {**ENCODER, **stated}, fixed, ENCODER_IGNORED | ANY_IGNORED, origin)


def read_preprocessor_options(found: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """A transformers preprocessor_config.json. Raises CheckpointError."""
    found = {**found, "preemphasis": found.get("preemphasis", 0.97) or 0.0}  # null: none
    return read_options(found, PREPROCESSOR, PREPROCESSOR_FIXED, PREPROCESSOR_IGNORED, origin)


def our_config(source: Source, text: TextConfig) -> Config:
    """The checkpoint's options as ours, without training settings. Raises CheckpointError."""
    encoder, preprocessor = source.encoder, source.preprocessor
    width, inner = encoder["hidden_size"], encoder["intermediate_size"]
    if width < 1 or inner < 1 or inner % width:
        raise CheckpointError(
            f"{source.origin}: intermediate_size is {inner}; accepted: multiples of hidden_size {width}"
        )
    if preprocessor["feature_size"] != encoder["num_mel_bins"]:
        raise CheckpointError(
            f"{source.origin}: the preprocessor's feature_size is {preprocessor['feature_size']}; "
            f"accepted: {encoder['num_mel_bins']}, the encoder's num_mel_bins"
        )
    rate = preprocessor["sampling_rate"]
    try:
        return Config(
            features=FeatureConfig(
                sample_rate=rate, n_mels=preprocessor["feature_size"], n_fft=preprocessor["n_fft"],
                window_samples=preprocessor["win_length"], hop_samples=preprocessor["hop_length"],
                f_max_hz=rate / 2, preemphasis=preprocessor["preemphasis"], normalize="utterance",
            ),
            encoder=EncoderConfig(
                d_model=width, n_blocks=encoder["num_hidden_layers"], n_heads=encoder["num_attention_heads"],
                ff_factor=inner // width, kernel_size=encoder["conv_kernel_size"],
                subsampling=encoder["subsampling_factor"], subsampling_channels=encoder["subsampling_conv_channels"],
                positions="relative", conv_norm="batch", reach_s=0, scale_input=encoder["scale_input"],
                attention_bias=encoder["attention_bias"], convolution_bias=encoder["convolution_bias"],
                dropout=encoder["dropout"],
            ),
            text=text,
            # its own training had no loss at a middle block, and no dropout before the head
            tasks={"asr": TaskConfig(type="asr", intermediate=0.0, dropout=0.0)},
        )  # fmt: skip
    except ValidationError as error:  # of our key, which says enough: the two share most of their names
        raise CheckpointError(f"{source.origin}: {'; '.join(map(explain, error.errors()))}") from None


# Our blocks' parts and transformers' names of them
RENAMED = {
    r"encoder\.subsampling\.first\.": "encoder.subsampling.layers.0.",
    r"encoder\.blocks\.": "encoder.layers.",
    r"\.norm_attention\.": ".norm_self_att.",
    r"\.norm_convolution\.": ".norm_conv.",
    r"\.attention\.out_proj\.": ".self_attn.o_proj.",
    r"\.attention\.position_proj\.": ".self_attn.relative_k_proj.",
    r"\.attention\.": ".self_attn.",
    r"\.convolution\.pointwise": ".conv.pointwise_conv",
    r"\.convolution\.depthwise\.": ".conv.depthwise_conv.",
    r"\.convolution\.": ".conv.",
    r"tasks\.asr\.linear\.": "ctc_head.",
}


def names_in_source(name: str) -> list[str]:
    """The tensors of a checkpoint that one of ours is made of: three for queries, keys and values, else one."""
    if part := re.fullmatch(r"encoder\.subsampling\.(depthwise|pointwise)\.(\d+)\.(\w+)", name):
        # its layers are counted with the ReLUs between them: 0, then depthwise 2, 5 and pointwise 3, 6
        place = 3 * int(part[2]) + (2 if part[1] == "depthwise" else 3)
        return [f"encoder.subsampling.layers.{place}.{part[3]}"]
    for ours, theirs in RENAMED.items():
        name = re.sub(ours, theirs, name)
    return [name.replace("qkv_proj", f"{letter}_proj") for letter in "qkv"] if "qkv_proj" in name else [name]


def shape_in_source(name: str, shape: torch.Size) -> tuple[int, ...]:
    """The shape of each of those tensors, for one of ours."""
    if "qkv_proj" in name:
        return (shape[0] // 3, *shape[1:])
    if name.endswith((".bias_u", ".bias_v")):
        return (shape[0], shape[2])
    if re.search(r"\.convolution\.pointwise\d\.weight$|^tasks\.asr\.linear\.weight$", name):
        return (*shape, 1)
    return tuple(shape)


def our_weights(source: Source, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint's tensors under our names, in the shapes of `expected`; nothing is copied that need not be.

    Raises CheckpointError for a tensor that is missing, left over, of another shape, or no floating-point one.
    """
    weights: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, value in expected.items():
        if name.startswith("features."):
            continue  # ours alone: Parakeet measures nothing on its training data
        names, shape = names_in_source(name), shape_in_source(name, value.shape)
        for theirs in names:
            _check_tensor(source, theirs, shape, value.is_floating_point())
        used.update(names)
        parts = [source.weights[theirs].reshape(-1, *value.shape[1:]) for theirs in names]
        weights[name] = (torch.cat(parts) if len(parts) > 1 else parts[0]).reshape(value.shape)
    if extra := sorted(source.weights.keys() - used):
        raise CheckpointError(
            f"{source.origin}: unknown tensor {source.called.get(extra[0], extra[0])} of shape "
            f"{tuple(source.weights[extra[0]].shape)}: no part of a Parakeet-CTC with these options needs it "
            f"({_switches(source)})"
        )
    return weights


def _check_tensor(source: Source, name: str, shape: tuple[int, ...], floating: bool) -> None:
    shown = source.called.get(name, name)
    if name not in source.weights:
        raise CheckpointError(
            f"{source.origin}: tensor {shown} is missing; expected with shape {shape} ({_switches(source)})"
        )
    found = source.weights[name]
    if tuple(found.shape) != shape:
        raise CheckpointError(f"{source.origin}: {shown} has shape {tuple(found.shape)}, the config asks for {shape}")
    if found.is_floating_point() != floating:
        kind = "floating-point numbers" if floating else "integers"
        raise CheckpointError(f"{source.origin}: {shown} is of type {found.dtype}; accepted: {kind}")


def _switches(source: Source) -> str:
    """The options that decide which tensors there are."""
    names = ("num_hidden_layers", "attention_bias", "convolution_bias", "subsampling_factor")
    return ", ".join(f"{name} {source.encoder[name]}" for name in names)
