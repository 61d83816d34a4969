"""Does an imported model give what transformers' ParakeetForCTC gives? Features, every block, logits and text.

transformers reads the checkpoint by its own code where it is a folder of its kind; a .nemo archive, which it cannot
read, goes through our reading of it, so that there the comparison covers the network and not the options. Every
recording is compared alone, and all of them in one padded batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer as HFTokenizer
from torch import Tensor

from speech_mtl.audio import load_audio
from speech_mtl.checkpoint import CheckpointError, load_model
from speech_mtl.importing import read_source
from speech_mtl.model import SpeechModel

LIMIT = 1e-4
NOISE_S = (1.9, 3.3, 5.04)


@dataclass
class Row:
    """The largest difference of one step over all utterances; `limit` is None where it is shown for orientation."""

    step: str
    difference: float
    limit: float | None

    @property
    def passed(self) -> bool:
        return self.limit is None or self.difference <= self.limit


@dataclass
class Outputs:
    """One utterance's, without its padding."""

    mel_TF: Tensor
    blocks: list[Tensor]
    logits_SV: Tensor
    text: str


def noise(sample_rate: int) -> list[np.ndarray]:
    """Recordings of noise that swells and fades, for want of others."""
    rng = np.random.default_rng(0)
    recordings = []
    for duration_s in NOISE_S:
        time_s = np.arange(int(duration_s * sample_rate)) / sample_rate
        swell = 0.1 * np.sin(2 * np.pi * 1.3 * time_s) ** 2
        recordings.append((swell * rng.standard_normal(len(time_s))).astype(np.float32))
    return recordings


def compare(checkpoint: Path, folder: Path, files: list[Path]) -> list[Row]:
    """The steps of a model folder beside those of the checkpoint it came from, on recordings, or on noise for none.

    Raises AudioError, and CheckpointError, also where transformers is not installed.
    """
    model = load_model(folder)
    rate = model.config.features.sample_rate
    recordings = [load_audio(file, rate) for file in files] or noise(rate)
    theirs = _reference(checkpoint)
    batches = [[recording] for recording in recordings] + [recordings] * (len(recordings) > 1)
    largest: dict[str, float] = {}
    for batch in batches:
        for ours, reference in zip(_ours(model, batch), theirs(batch), strict=True):
            if len(ours.blocks) != len(reference.blocks):
                found = f"{len(ours.blocks)} blocks, the checkpoint {checkpoint} has {len(reference.blocks)}"
                raise CheckpointError(f"{folder} has {found}: it was not made from it")
            for step, difference in _differences(ours, reference):
                largest[step] = max(largest.get(step, 0.0), difference)
    limits = {"features": LIMIT, "logits": LIMIT, "texts that differ": 0.0}
    return [Row(step, difference, limits.get(step)) for step, difference in largest.items()]


def _differences(ours: Outputs, theirs: Outputs) -> list[tuple[str, float]]:
    blocks = zip(ours.blocks, theirs.blocks, strict=True)
    return [
        ("features", _largest(ours.mel_TF, theirs.mel_TF)),
        *((f"block {i}", _largest(*pair)) for i, pair in enumerate(blocks, 1)),
        ("logits", _largest(ours.logits_SV, theirs.logits_SV)),
        ("texts that differ", float(ours.text != theirs.text)),
    ]


def _largest(a: Tensor, b: Tensor) -> float:
    """The largest difference; infinite where the shapes differ or a value is not a number."""
    if a.shape != b.shape:
        return float("inf")
    return torch.nan_to_num((a - b).abs(), nan=float("inf")).max().item()


@torch.inference_mode()
def _ours(model: SpeechModel, batch: list[np.ndarray]) -> list[Outputs]:
    samples_B = torch.tensor([len(recording) for recording in batch])
    audio_BN = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(r) for r in batch], batch_first=True)
    shared = model.trunk(audio_BN, samples_B)
    head: Any = model.task("asr")
    logits_BSV = head.linear(shared.blocks[-1])
    texts = [prediction["text"] for prediction in head.predict(head(shared))]
    return _apart(shared.mel_BTF, shared.mel_lengths_B, shared.blocks, shared.lengths_B, logits_BSV, texts)


def _apart(
    mel_BTF: Tensor,
    mel_lengths_B: Tensor,
    blocks: list[Tensor],
    lengths_B: Tensor,
    logits_BSV: Tensor,
    texts: list[str],
) -> list[Outputs]:
    return [
        Outputs(mel_BTF[i, :T], [block[i, :S] for block in blocks], logits_BSV[i, :S], texts[i])
        for i, (T, S) in enumerate(zip(mel_lengths_B.tolist(), lengths_B.tolist(), strict=True))
    ]


def _reference(checkpoint: Path) -> Callable[[list[np.ndarray]], list[Outputs]]:
    """transformers' own model of the checkpoint, as a function of a batch."""
    try:
        import transformers
        from transformers import ParakeetForCTC
    except ImportError as error:
        raise CheckpointError(
            f"the comparison needs transformers 5 or newer: pip install 'speech_mtl[check]' ({error})"
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if (checkpoint / "config.json").is_file():
        network = ParakeetForCTC.from_pretrained(checkpoint, dtype=torch.float32).eval()
        extractor = _extractor(checkpoint)
        tokenizer = HFTokenizer.from_file(str(checkpoint / "tokenizer.json"))
    else:
        network, extractor, tokenizer = _from_nemo(checkpoint)
    collected: list[Tensor] = []
    for layer in network.encoder.layers:
        layer.register_forward_hook(lambda module, inputs, output: collected.append(output))

    @torch.inference_mode()
    def run(batch: list[np.ndarray]) -> list[Outputs]:
        collected.clear()
        inputs = extractor(batch, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        mask_BT = inputs["attention_mask"]
        logits_BSV = network(inputs["input_features"], attention_mask=mask_BT).logits
        mel_lengths_B = mask_BT.sum(-1)
        lengths_B = network._get_subsampling_output_length(mel_lengths_B)
        texts = [
            _text(tokenizer, logits_SV[:length], network.config.pad_token_id)
            for logits_SV, length in zip(logits_BSV, lengths_B.tolist(), strict=True)
        ]
        return _apart(inputs["input_features"], mel_lengths_B, list(collected), lengths_B, logits_BSV, texts)

    return run


def _extractor(folder: Path) -> Any:
    from transformers import ParakeetFeatureExtractor, ParakeetProcessor

    if (folder / "preprocessor_config.json").is_file():
        return ParakeetFeatureExtractor.from_pretrained(folder)
    return ParakeetProcessor.from_pretrained(folder).feature_extractor


def _from_nemo(path: Path) -> tuple[Any, Any, HFTokenizer]:
    from transformers import ParakeetCTCConfig, ParakeetEncoderConfig, ParakeetFeatureExtractor, ParakeetForCTC

    source = read_source(path)
    encoder = ParakeetEncoderConfig(**source.encoder)
    config = ParakeetCTCConfig(vocab_size=source.outputs, pad_token_id=source.outputs - 1, encoder_config=encoder)
    network = ParakeetForCTC(config)
    network.load_state_dict(source.weights)
    return network.eval(), ParakeetFeatureExtractor(**source.preprocessor), source.tokenizer


def _text(tokenizer: HFTokenizer, logits_SV: Tensor, blank: int) -> str:
    """The best path's text by the checkpoint's own tokenizer, with single spaces."""
    ids = torch.unique_consecutive(logits_SV.argmax(-1))
    return " ".join(tokenizer.decode(ids[ids != blank].tolist(), skip_special_tokens=True).split())
