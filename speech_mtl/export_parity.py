"""Does an export give what its model gives? Largest differences, error rates, sizes, and time, on a manifest's cuts.

Both run every batch in turns, so that whatever else the machine does meets them both.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

import torch
from torch import Tensor

from speech_mtl import metrics
from speech_mtl.checkpoint import load_model
from speech_mtl.data import DataError, batches, read_cuts
from speech_mtl.engine import OnnxModel
from speech_mtl.features import frame_mask
from speech_mtl.tasks import label_of
from speech_mtl.text import normalize

FP32_LIMIT, INT8_POINTS, INT8_COSINE = 1e-4, 0.5, 0.99
"""How far an output of an fp32 export, and the WER in points of an int8 one, may be from the model's; and how near the
embeddings of an int8 one must be."""


@dataclass
class Side:
    """The model, or its export."""

    name: str
    folder: Path
    seconds: float = 0.0
    counts: list[dict[str, int]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def size_mb(self) -> float:
        return sum(file.stat().st_size for file in self.folder.iterdir() if file.is_file()) / 1e6

    @property
    def wer(self) -> float | None:
        """In per cent; None where no cut has a text."""
        wer = metrics.error_rates(self.counts)["wer"] if self.counts else None
        return None if wer is None else 100 * wer


@dataclass
class Comparison:
    model: Side
    export: Side
    precision: str
    differences: dict[str, float] = field(default_factory=dict)
    """The largest by output, such as 'asr.log_probs'."""
    least_cosine: float = 1.0
    """Between the two embeddings of a recording."""
    audio_s: float = 0.0

    def failures(self) -> list[str]:
        """What is further from the model than it may be."""
        if self.precision == "fp32":
            wrong = {name: value for name, value in self.differences.items() if not value <= FP32_LIMIT}
            return [f"{name}: {value:.2g} from the model's; accepted: {FP32_LIMIT:g}" for name, value in wrong.items()]
        found = [f"{name}: not a number" for name, value in self.differences.items() if value == inf]
        points = 0.0 if self.model.wer is None or self.export.wer is None else self.export.wer - self.model.wer
        if points > INT8_POINTS:
            found.append(f"WER: {points:.2f} points above the model's; accepted: {INT8_POINTS}")
        if self.least_cosine < INT8_COSINE:
            found.append(f"embeddings: least cosine {self.least_cosine:.3f}; accepted: {INT8_COSINE} or more")
        return found


@torch.inference_mode()
def compare(folder: Path, exported: Path, manifests: list[str]) -> Comparison:
    """The model of a folder and its export on all cuts of the manifests. Raises CheckpointError and DataError."""
    models = [load_model(folder), export := load_model(exported)]
    assert isinstance(export, OnnxModel)
    result = Comparison(Side("torch", folder), Side("onnxruntime", exported), export.exported["precision"])
    sides = [result.model, result.export]
    config = models[0].config
    for number, batch in enumerate(batches(read_cuts(manifests), config)):
        if batch.failed:
            raise DataError(f"{batch.failed[0][0]}: {batch.failed[0][1]}")
        outputs = []
        for model, side in zip(models, sides, strict=True):
            if number == 0:
                model(batch.audio_BN, batch.samples_B)  # the first run makes kernels and takes memory
            start = time.perf_counter()
            outputs.append(model(batch.audio_BN, batch.samples_B))
            side.seconds += time.perf_counter() - start
        result.audio_s += batch.samples_B.sum().item() / config.features.sample_rate
        _note_differences(result, outputs)
        for name, task in config.tasks.items():
            if task.type != "asr":
                continue
            for side, output in zip(sides, outputs, strict=True):
                texts = [said["text"] for said in models[0].task(name).predict(output[name])]
                side.texts += texts
                for cut, text in zip(batch.cuts, texts, strict=True):
                    if (truth := label_of(cut, "text")) is not None:
                        side.counts.append(metrics.word_errors(normalize(truth, config.text), text))
    return result


def _note_differences(result: Comparison, outputs: list[dict[str, dict[str, Tensor]]]) -> None:
    ours, theirs = outputs
    for task, output in ours.items():
        for key in ("log_probs", "embedding"):
            if key not in output:
                continue
            a, b = output[key], theirs[task][key]
            difference = torch.nan_to_num((a - b).abs(), nan=inf)
            if "lengths" in output:
                difference = difference[frame_mask(output["lengths"], a.size(1))]
            name = f"{task}.{key}"
            result.differences[name] = max(result.differences.get(name, 0.0), difference.max().item())
            if key == "embedding":
                cosine_B = torch.nan_to_num((a * b).sum(1), nan=-1.0)
                result.least_cosine = min(result.least_cosine, cosine_B.min().item())
