"""Tiny Parakeet-CTC checkpoints with random weights: as transformers writes them, and as .nemo archives.

Importing this file skips the test file that does so where transformers or sentencepiece is missing.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as HFTokenizer

transformers = pytest.importorskip("transformers", minversion="5.0", reason="transformers is not installed")
sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")

TEXTS = [
    "the quick brown fox jumps over the lazy dog", "she sells sea shells by the sea shore", "it's a long way home",
    "how much wood would a woodchuck chuck", "peter piper picked a peck of pickled peppers",
]  # fmt: skip
PIECES = 60


def network(**changes: object) -> Any:
    """A tiny ParakeetForCTC none of whose weights is at its start: a zero bias or a unit variance hides a mix-up."""
    values = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "subsampling_conv_channels": 8,
    }  # fmt: skip
    encoder = transformers.ParakeetEncoderConfig(**values | changes)
    torch.manual_seed(3)
    model = transformers.ParakeetForCTC(
        transformers.ParakeetCTCConfig(vocab_size=PIECES + 1, pad_token_id=PIECES, encoder_config=encoder)
    ).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif value.dim() > 1 and "bias_" not in name:
                value.normal_(std=1.5 * value[0].numel() ** -0.5)
            elif value.is_floating_point():
                value.normal_(mean=float("norm" in name and name.endswith(".weight")), std=0.2)
        # no output is always the best one, so that there are texts to compare
        model.ctc_head.bias -= model(torch.randn(1, 800, encoder.num_mel_bins)).logits.mean((0, 1))
    return model


def hugging_face_tokenizer() -> HFTokenizer:
    """As transformers writes Parakeet's: <unk> first, and <pad>, the blank, after the last piece."""
    tokenizer = HFTokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=PIECES, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens([AddedToken("<pad>", special=True, normalized=False)])
    assert tokenizer.get_vocab_size() == PIECES + 1
    return tokenizer


def sentencepiece_model(kind: str = "bpe", size: int = PIECES, **options: object) -> bytes:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=written, vocab_size=size, model_type=kind, bos_id=-1, eos_id=-1,
        minloglevel=2, hard_vocab_limit=False, **options,
    )  # fmt: skip
    return written.getvalue()


def write_folder(folder: Path, model: Any, shard_size: str = "1GB") -> Path:
    model.save_pretrained(folder, max_shard_size=shard_size)
    n_mels = model.config.encoder_config.num_mel_bins
    transformers.ParakeetFeatureExtractor(feature_size=n_mels).save_pretrained(folder)
    hugging_face_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def nemo_config(encoder: Any) -> dict[str, Any]:
    """What model_config.yaml holds, in NeMo's words."""
    return {
        "target": "nemo.collections.asr.models.ctc_bpe_models.EncDecCTCModelBPE", "sample_rate": 16000,
        "log_prediction": True,
        "preprocessor": {
            "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor", "sample_rate": 16000,
            "normalize": "per_feature", "window_size": 0.025, "window_stride": 0.01, "window": "hann",
            "features": encoder.num_mel_bins, "n_fft": 512, "log": True, "frame_splicing": 1, "dither": 1e-05,
            "pad_to": 0, "pad_value": 0.0,
        },
        "encoder": {
            "_target_": "nemo.collections.asr.modules.ConformerEncoder", "feat_in": encoder.num_mel_bins,
            "feat_out": -1, "n_layers": encoder.num_hidden_layers, "d_model": encoder.hidden_size,
            "subsampling": "dw_striding", "subsampling_factor": 8, "causal_downsampling": False,
            "subsampling_conv_channels": encoder.subsampling_conv_channels,
            "ff_expansion_factor": encoder.intermediate_size // encoder.hidden_size,
            "self_attention_model": "rel_pos", "n_heads": encoder.num_attention_heads, "att_context_size": [-1, -1],
            "att_context_style": "regular", "xscaling": encoder.scale_input, "untie_biases": True,
            "use_bias": encoder.attention_bias, "pos_emb_max_len": 5000, "conv_kernel_size": encoder.conv_kernel_size,
            "conv_norm_type": "batch_norm", "conv_context_size": None, "dropout": 0.1, "dropout_pre_encoder": 0.1,
            "dropout_emb": 0.0, "dropout_att": 0.1, "stochastic_depth_drop_prob": 0.0,
        },
        "decoder": {
            "_target_": "nemo.collections.asr.modules.ConvASRDecoder", "feat_in": encoder.hidden_size,
            "num_classes": PIECES, "vocabulary": [f"piece {i}" for i in range(PIECES)],
        },
        "tokenizer": {"dir": "tokenizers", "type": "bpe", "model_path": "nemo:0a1b2c_tokenizer.model"},
        "optim": {"name": "adamw", "lr": 1e-3},
    }  # fmt: skip


def nemo_weights(model: Any) -> dict[str, torch.Tensor]:
    """The network's weights under the names that NeMo's modules give them, with its featurizer's constants."""
    parts = [
        ("encoder.subsampling.layers", "encoder.pre_encode.conv"),
        ("encoder.subsampling.linear", "encoder.pre_encode.out"),
        ("self_attn.q_proj", "self_attn.linear_q"), ("self_attn.k_proj", "self_attn.linear_k"),
        ("self_attn.v_proj", "self_attn.linear_v"), ("self_attn.o_proj", "self_attn.linear_out"),
        ("self_attn.relative_k_proj", "self_attn.linear_pos"), ("self_attn.bias_u", "self_attn.pos_bias_u"),
        ("self_attn.bias_v", "self_attn.pos_bias_v"), ("conv.norm", "conv.batch_norm"),
        ("ctc_head", "decoder.decoder_layers.0"),
    ]  # fmt: skip
    extractor = transformers.ParakeetFeatureExtractor(feature_size=model.config.encoder_config.num_mel_bins)
    renamed = {
        "preprocessor.featurizer.window": torch.hann_window(400, periodic=False),
        "preprocessor.featurizer.fb": extractor.mel_filters[None],
    }
    for name, value in model.state_dict().items():
        for theirs, nemos in parts:
            name = name.replace(theirs, nemos)
        renamed[name] = value
    return renamed


def as_hybrid(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    """An archive's content as that of a TDT-CTC hybrid: a transducer, and the CTC decoder as the auxiliary one."""
    hybrid = {
        **config, "target": "nemo.collections.asr.models.hybrid_rnnt_ctc_bpe_models.EncDecHybridRNNTCTCBPEModel",
        "decoder": {"_target_": "nemo.collections.asr.modules.RNNTDecoder", "prednet": {"pred_hidden": 8}},
        "joint": {"_target_": "nemo.collections.asr.modules.RNNTJoint", "num_extra_outputs": 5},
        "aux_ctc": {"ctc_loss_weight": 0.3, "decoder": config["decoder"], "decoding": {"strategy": "greedy"}},
    }  # fmt: skip
    transducer = {
        "decoder.prediction.embed.weight": torch.randn(PIECES + 1, 8),
        "decoder.prediction.dec_rnn.lstm.weight_ih_l0": torch.randn(32, 8),
        "joint.enc.weight": torch.randn(8, 32), "joint.joint_net.2.bias": torch.randn(PIECES + 6),
    }  # fmt: skip
    renamed = {name.replace("decoder.decoder_layers", "ctc_decoder.decoder_layers"): w for name, w in weights.items()}
    return hybrid, renamed | transducer


def write_nemo(
    path: Path, config: dict[str, Any], weights: object, tokenizer: bytes | None = None, **more: bytes
) -> Path:
    saved = io.BytesIO()
    torch.save(weights, saved)
    files = {
        "./model_config.yaml": yaml.safe_dump(config).encode(),
        "./0a1b2c_tokenizer.model": tokenizer or sentencepiece_model(),
        "./model_weights.ckpt": saved.getvalue(), **more,
    }  # fmt: skip
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path
