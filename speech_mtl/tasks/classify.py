"""Classify an utterance by any label it carries: gender, language, accent, emotion, age group.

Pooled frames -> linear -> softmax cross-entropy. Output 'log_probs' (B, classes).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtl.tasks import Frames, Task, label_of
from speech_mtl.tasks.pooling import Pooling
from speech_mtl.tasks.speaker import speed_label

if TYPE_CHECKING:
    from lhotse.cut import Cut

    from speech_mtl.config import Config


class Classify(Task):
    def __init__(self, name: str, config: Config, classes: list[str]):
        super().__init__()
        task, D = config.tasks[name], config.encoder.d_model
        self.label, self.classes = task.label or name, classes
        # a speaker at another speed has another name, see cuts.py, and is the same label
        speeds = [*config.augment.speeds, 1.0] if self.label == "speaker" else [1.0]
        self.index = {speed_label(label, factor): i for factor in speeds for i, label in enumerate(classes)}
        n_blocks = len(config.blocks_read(name))
        ratio = config.encoder.subsampling
        self.pooling = Pooling(D, config.features.n_mels, n_blocks, ratio, task.spectrum, task.adaptor_dim)
        self.dropout = nn.Dropout(task.dropout)
        self.linear = nn.Linear(self.pooling.size, len(classes))

    def targets(self, cuts: list[Cut], lengths_B: Tensor) -> dict[str, Tensor]:
        classes_B = torch.tensor([self.index.get(label_of(cut, self.label) or "", -1) for cut in cuts])
        return {"classes": classes_B, "mask": classes_B >= 0}

    def forward(self, frames: Frames, rows_B: Tensor | None = None) -> dict[str, Tensor]:
        return self._log_probs(self.pooling.statistics(frames.of_rows(rows_B)))

    def over_spans(self, frames: Frames, spans: list[tuple[int, int]]) -> dict[str, Tensor]:
        """The output for each span (first, last) of one utterance's encoder frames."""
        return self._log_probs(self.pooling.span_statistics(frames, spans))

    def _log_probs(self, statistics_BP: Tensor) -> dict[str, Tensor]:
        pooled_BP = self.dropout(self.pooling.norm(statistics_BP))
        return {"log_probs": F.log_softmax(self.linear(pooled_BP).float(), dim=1)}

    def loss(self, output: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        return F.nll_loss(output["log_probs"], targets["classes"][targets["mask"]], reduction="sum")

    def predict(self, output: dict[str, Tensor]) -> list[dict[str, Any]]:
        """label, probability."""
        probability, best = output["log_probs"].exp().max(dim=1)
        return [
            {"label": self.classes[i], "probability": round(p, 4)}
            for i, p in zip(best.tolist(), probability.tolist(), strict=True)
        ]
