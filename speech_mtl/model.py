"""audio_BN -> log-mel -> shared Conformer -> every task's output, in one pass.

`SpeechModel` is all there is at run time: `forward` for training, `predict` for use.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from speech_mtl.config import Config
from speech_mtl.encoder import Conformer
from speech_mtl.features import LogMel, SpecAugment
from speech_mtl.tasks import Task, build_tasks
from speech_mtl.text import Tokenizer


class SpeechModel(nn.Module):
    """The trunk and its heads. `labels` holds the classes of the speaker and classify tasks by task name."""

    fingerprint: str = ""
    """Set by checkpoint.load_model: identifies the weights, so that embeddings of two models are never compared."""

    def __init__(self, config: Config, tokenizer: Tokenizer | None, labels: dict[str, list[str]]):
        super().__init__()
        self.config, self.tokenizer, self.labels = config, tokenizer, labels
        self.features = LogMel(config.features)
        self.spec_augment = SpecAugment(config.augment)
        self.encoder = Conformer(config.encoder, config.features.n_mels)
        self.tasks = build_tasks(config, tokenizer, labels)

    def lengths(self, samples_B: Tensor) -> Tensor:
        """Encoder frames for utterances of so many samples."""
        return self.encoder.lengths(self.features.lengths(samples_B))

    def forward(
        self, audio_BN: Tensor, samples_B: Tensor, *, mask_features: bool = False, rows: dict[str, Tensor] | None = None
    ) -> dict[str, dict[str, Tensor]]:
        """Every task's output. In training: `mask_features` for SpecAugment, `rows`: each task's labelled rows."""
        mel_BTF, lengths_B = self.features(audio_BN, samples_B)
        if mask_features:
            mel_BTF = self.spec_augment(mel_BTF)
        blocks, lengths_B = self.encoder(mel_BTF, lengths_B)
        return {name: task(blocks, lengths_B, rows and rows[name]) for name, task in self.tasks.items()}

    def targets(self, cuts: list, samples_B: Tensor) -> dict[str, dict[str, Tensor]]:
        """Every task's labels and mask for a batch of cuts."""
        lengths_B = self.lengths(samples_B)
        return {name: self.task(name).targets(cuts, lengths_B) for name in self.tasks}

    def task(self, name: str) -> Task:
        return self.tasks[name]  # type: ignore[return-value]

    @torch.inference_mode()
    def predict(self, audio_BN: Tensor, samples_B: Tensor) -> list[dict[str, Any]]:
        """One {task: prediction} an utterance, all of them from one run of the encoder; see each task's `predict`."""
        outputs = self(audio_BN, samples_B)
        by_task = {name: self.task(name).predict(output) for name, output in outputs.items()}
        return [dict(zip(by_task, row, strict=True)) for row in zip(*by_task.values(), strict=True)]
