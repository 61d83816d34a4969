"""A .nemo archive -> a Source in transformers' names.

A .nemo file is a tar archive with model_config.yaml, model_weights.ckpt and a sentencepiece model. It comes from
anywhere, so nothing is unpacked: the three files are read in place, the config by YAML's safe loader, the weights by
torch's loader that builds tensors and nothing else. Of a hybrid, which has a transducer (RNN-T or TDT) beside its CTC
decoder, the transducer is left out. The names are those of NeMo's ConformerEncoder and ConvASRDecoder
(NVIDIA/NeMo, examples/asr/conf/fastconformer/fast-conformer_ctc_bpe.yaml and, for hybrids,
hybrid_transducer_ctc/fastconformer_hybrid_transducer_ctc_bpe.yaml).
"""

from __future__ import annotations

import pickle
import re
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import yaml
from torch import Tensor

from speech_mtl.checkpoint import CheckpointError, check_memory
from speech_mtl.features import mel_filters
from speech_mtl.parakeet import Source, read_options
from speech_mtl.pieces import from_sentencepiece

CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"
MAX_SMALL_FILE = 64 * 2**20  # bytes: a config or a tokenizer that is larger is neither
TARGET, HYBRID = "EncDecCTCModelBPE", "EncDecHybridRNNTCTCBPEModel"
TRANSDUCER = ("decoder.", "joint.")
"""A hybrid's prediction and joint networks; its CTC decoder has a name and a section of its own."""

ENCODER = {
    "feat_in": 80, "n_layers": 17, "d_model": 512, "n_heads": 8, "ff_expansion_factor": 4, "subsampling_factor": 8,
    "subsampling_conv_channels": 256, "conv_kernel_size": 9, "xscaling": True, "use_bias": True, "dropout": 0.1,
}  # fmt: skip
ENCODER_REQUIRED = {
    "feat_in", "n_layers", "d_model", "n_heads", "subsampling", "subsampling_factor", "subsampling_conv_channels",
    "conv_kernel_size",
}  # fmt: skip
ENCODER_FIXED = {
    "_target_": ["nemo.collections.asr.modules.ConformerEncoder"], "subsampling": ["dw_striding"],
    "causal_downsampling": [False], "self_attention_model": ["rel_pos"], "att_context_style": ["regular"],
    "att_context_size": [[-1, -1], None], "untie_biases": [True], "conv_norm_type": ["batch_norm"],
    "conv_context_size": [None], "reduction": [None], "reduction_position": [None], "global_tokens": [0],
}  # fmt: skip
ENCODER_IGNORED = {
    "feat_out", "pos_emb_max_len", "dropout_pre_encoder", "dropout_emb", "dropout_att", "stochastic_depth_drop_prob",
    "stochastic_depth_mode", "stochastic_depth_start_layer", "reduction_factor", "att_context_probs",
    "subsampling_conv_chunking_factor", "global_tokens_spacing", "global_attn_separate", "use_pytorch_sdpa",
    "use_pytorch_sdpa_backends", "sync_max_audio_length",
}  # fmt: skip
PREPROCESSOR = {
    "sample_rate": 16000, "features": 80, "n_fft": 512, "window_size": 0.025, "window_stride": 0.01, "preemph": 0.97,
}  # fmt: skip
PREPROCESSOR_FIXED = {
    "_target_": ["nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor"], "normalize": ["per_feature"],
    "window": ["hann"], "log": [True], "frame_splicing": [1], "pad_value": [0, 0.0], "lowfreq": [0], "highfreq": [None],
    "log_zero_guard_type": ["add"], "log_zero_guard_value": [2.0**-24], "mag_power": [2.0], "mel_norm": ["slaney"],
    "exact_pad": [False], "n_window_size": [None], "n_window_stride": [None],
}  # fmt: skip
# dither is for training; padded frames are masked, so that their number means nothing
PREPROCESSOR_IGNORED = {
    "dither", "pad_to", "rng", "nb_augmentation_prob", "nb_max_freq", "use_grads", "stft_conv", "stft_exact_pad",
}  # fmt: skip

RENAMED = {
    r"^encoder\.pre_encode\.conv\.": "encoder.subsampling.layers.",
    r"^encoder\.pre_encode\.out\.": "encoder.subsampling.linear.",
    r"\.self_attn\.linear_([qkv])\.": r".self_attn.\1_proj.",
    r"\.self_attn\.linear_out\.": ".self_attn.o_proj.",
    r"\.self_attn\.linear_pos\.": ".self_attn.relative_k_proj.",
    r"\.self_attn\.pos_bias_([uv])$": r".self_attn.bias_\1",
    r"\.conv\.batch_norm\.": ".conv.norm.",
    r"^decoder\.decoder_layers\.0\.": "ctc_head.",
}


def read_nemo(path: Path) -> Source:
    """The checkpoint in a .nemo archive. Raises CheckpointError."""
    try:
        with tarfile.open(path) as archive:
            files = _files(archive, path)
            config = _config(archive, files, path)
            target = str(config.get("target", "an unknown architecture")).rpartition(".")[2]
            if target not in (TARGET, HYBRID):
                accepted = f"{TARGET} (Parakeet-CTC), {HYBRID} (its CTC decoder)"
                raise CheckpointError(f"{path}: the architecture is {target}; accepted: {accepted}")
            found, note = _weights(archive, files, path), ""
            if target == HYBRID:
                config, found, note = _without_transducer(config, found, path)
            outputs = _outputs(config, path)
            data, origin = _tokenizer(archive, files, config, path)
            tokenizer = from_sentencepiece(data, outputs - 1, origin)
    except (tarfile.TarError, EOFError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(":")
        raise CheckpointError(f"{path}: not a whole .nemo archive: {reason}; expected a tar file") from None
    preprocessor = _preprocessor(config, path)
    _check_preprocessor_tensors(found, preprocessor, path)
    hybrid = "ctc_" if target == HYBRID else ""
    called = {_rename(name): f"{hybrid}{name}" if name.startswith("decoder.") else name for name in found}
    weights = {_rename(name): value for name, value in found.items()}
    encoder = _encoder(config, path)
    return Source(path.stem, str(path), encoder, preprocessor, outputs, tokenizer, weights, called, note)


def _without_transducer(
    config: dict[str, Any], found: dict[str, Tensor], path: Path
) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """A hybrid's config and tensors as those of the CTC recogniser within it, and what was left out, for a person."""
    left = {name: value for name, value in found.items() if name.startswith(TRANSDUCER)}
    size = sum(value.numel() for value in left.values())
    kept = {re.sub(r"^ctc_decoder\.", "decoder.", name): value for name, value in found.items() if name not in left}
    decoder = _section(_section(config, "aux_ctc", path), "decoder", path)
    note = f"a hybrid: its encoder and CTC decoder were taken, its transducer ({size / 1e6:.1f} M parameters) left out"
    return {**config, "decoder": decoder}, kept, note


def _files(archive: tarfile.TarFile, path: Path) -> dict[str, tarfile.TarInfo]:
    """The archive's files by name; one that would lie elsewhere when unpacked condemns the whole archive."""
    files = {}
    for member in archive.getmembers():
        place = PurePosixPath(member.name)
        if place.is_absolute() or ".." in place.parts or not (member.isfile() or member.isdir()):
            raise CheckpointError(f"{path}: the entry '{member.name}' is a link or leads out of the archive; not read")
        if member.isfile():
            files[str(place)] = member
    for name in (CONFIG, WEIGHTS):
        if name not in files:
            raise CheckpointError(f"{path}: {name} is missing; found: {', '.join(sorted(files)) or 'nothing'}")
    return files


def _small_file(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bytes:
    if member.size > MAX_SMALL_FILE:
        raise CheckpointError(f"{path}: {member.name} has {member.size} bytes; accepted: at most {MAX_SMALL_FILE}")
    file = archive.extractfile(member)
    assert file is not None  # a regular file, see _files
    return file.read()


def _config(archive: tarfile.TarFile, files: dict[str, tarfile.TarInfo], path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(_small_file(archive, files[CONFIG], path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: {CONFIG} is not valid: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: {CONFIG} holds {type(config).__name__}; expected sections")
    return config


def _section(config: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    section = config.get(name)
    if not isinstance(section, dict):
        raise CheckpointError(f"{path}: {CONFIG} has no section '{name}'")
    return section


def _weights(archive: tarfile.TarFile, files: dict[str, tarfile.TarInfo], path: Path) -> dict[str, Tensor]:
    """The state dict, read where it lies; `weights_only` builds tensors and refuses every other object unseen."""
    check_memory(files[WEIGHTS].size, f"{path}: importing its weights")
    try:
        weights = torch.load(archive.extractfile(files[WEIGHTS]), map_location="cpu", weights_only=True)  # type: ignore[arg-type]
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path}: {WEIGHTS} is damaged or holds more than tensors; nothing of it was run ({reason})"
        ) from None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(f"{path}: {WEIGHTS} is not a table of tensors")
    return weights


def _outputs(config: dict[str, Any], path: Path) -> int:
    """Columns of the CTC head: one a class, and the blank, which NeMo has last as we do."""
    decoder = _section(config, "decoder", path)
    defaults = {"num_classes": 1024, "vocabulary": [""]}
    fixed = {"_target_": ["nemo.collections.asr.modules.ConvASRDecoder"], "add_blank": [True]}
    options = read_options(decoder, defaults, fixed, {"feat_in", "init_mode"}, f"{path}: decoder", ["num_classes"])
    named = len(options["vocabulary"]) if "vocabulary" in decoder else options["num_classes"]
    if named != options["num_classes"]:
        raise CheckpointError(f"{path}: decoder.num_classes is {options['num_classes']}, its vocabulary has {named}")
    return options["num_classes"] + 1


def _tokenizer(
    archive: tarfile.TarFile, files: dict[str, tarfile.TarInfo], config: dict[str, Any], path: Path
) -> tuple[bytes, str]:
    """The sentencepiece model's bytes, and its name for messages."""
    described = _section(config, "tokenizer", path)
    if described.get("type") != "bpe":
        raise CheckpointError(f"{path}: tokenizer.type is {described.get('type')!r}; accepted: 'bpe' (sentencepiece)")
    named = str(described.get("model_path") or "").removeprefix("nemo:")
    found = [named] if named in files else sorted(name for name in files if name.endswith("tokenizer.model"))
    if len(found) != 1:
        raise CheckpointError(f"{path}: {len(found)} files *tokenizer.model; expected one: {named or 'any name'}")
    return _small_file(archive, files[found[0]], path), f"{path}: {found[0]}"


def _encoder(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """NeMo's options of the encoder in transformers' names."""
    section, origin = _section(config, "encoder", path), f"{path}: encoder"
    o = read_options(section, ENCODER, ENCODER_FIXED, ENCODER_IGNORED, origin, ENCODER_REQUIRED)
    if section.get("feat_out") not in (None, -1, o["d_model"]):
        raise CheckpointError(f"{origin}: feat_out is {section['feat_out']}; accepted: -1, {o['d_model']}")
    return {
        "hidden_size": o["d_model"], "num_hidden_layers": o["n_layers"], "num_attention_heads": o["n_heads"],
        "intermediate_size": o["d_model"] * o["ff_expansion_factor"], "attention_bias": o["use_bias"],
        "convolution_bias": o["use_bias"], "conv_kernel_size": o["conv_kernel_size"],
        "subsampling_factor": o["subsampling_factor"], "num_mel_bins": o["feat_in"], "scale_input": o["xscaling"],
        "subsampling_conv_channels":
            o["d_model"] if o["subsampling_conv_channels"] == -1 else o["subsampling_conv_channels"],
        "dropout": o["dropout"],
    }  # fmt: skip


def _preprocessor(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """NeMo's options of the features in transformers' names; NeMo counts the window in seconds."""
    section, origin = _section(config, "preprocessor", path), f"{path}: preprocessor"
    section = {**section, "preemph": section.get("preemph", 0.97) or 0.0}  # null: none
    o = read_options(section, PREPROCESSOR, PREPROCESSOR_FIXED, PREPROCESSOR_IGNORED, origin)
    return {
        "feature_size": o["features"], "sampling_rate": o["sample_rate"], "n_fft": o["n_fft"],
        "hop_length": int(o["window_stride"] * o["sample_rate"]), "preemphasis": o["preemph"],
        "win_length": int(o["window_size"] * o["sample_rate"]),
    }  # fmt: skip


def _check_preprocessor_tensors(weights: dict[str, Tensor], o: dict[str, Any], path: Path) -> None:
    """Take the constants of NeMo's featurizer out of the weights; they must be those that our features have."""
    rate = o["sampling_rate"]
    filters_KF = mel_filters(o["n_fft"], o["feature_size"], rate, rate / 2)
    constants = {"fb": filters_KF.T[None], "window": torch.hann_window(o["win_length"], periodic=False)}
    for name, ours in constants.items():
        found = weights.pop(f"preprocessor.featurizer.{name}", None)
        if found is None:
            continue
        if found.shape != ours.shape or not torch.allclose(found.float(), ours, atol=1e-5):
            raise CheckpointError(
                f"{path}: preprocessor.featurizer.{name} of shape {tuple(found.shape)} is not what the config says; "
                f"accepted: {'slaney mel filters' if name == 'fb' else 'a Hann window'} of shape {tuple(ours.shape)}"
            )


def _rename(name: str) -> str:
    for theirs, ours in RENAMED.items():
        name = re.sub(theirs, ours, name)
    return name
