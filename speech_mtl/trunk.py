"""A trained trunk under a new task: what of it is averaged, how fast each block learns, whether it still recognises."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from speech_mtl.config import Config
from speech_mtl.model import SpeechModel


class RecognitionLost(RuntimeError):
    """Dev WER passed trunk.max_wer_increase and the run ended; the message says by how much, and what was kept."""


def recognition_lost(start_wer: float, wer: float, limit_points: float | None) -> str:
    """That `wer` is more than `limit_points` percentage points above `start_wer`; '' where it is not."""
    # a hundred-thousandth of a point of room: 0.12 - 0.10 is more than 0.02 in binary
    if limit_points is None or (points := 100 * (wer - start_wer)) <= limit_points + 1e-5:
        return ""
    return (
        f"dev WER {100 * wer:.2f} % is {points:.2f} points above the {100 * start_wer:.2f} % before training; "
        f"trunk.max_wer_increase accepts {limit_points:g}"
    )


def parameter_groups(model: SpeechModel, config: Config) -> list[dict[str, Any]]:
    """The trained weights by weight decay and learning rate, the latter as a 'factor' of train.lr.

    Layer-wise decay as in ULMFiT (Howard & Ruder 2018, arXiv 1801.06146). Biases and norms have no weight decay.
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((_steps_below_heads(name, config), parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": groups[steps, is_matrix],
            "weight_decay": config.train.weight_decay if is_matrix else 0.0,
            "factor": config.trunk.lr_decay**steps,
        }
        for steps, is_matrix in sorted(groups, key=lambda key: (key[0], not key[1]))
    ]


def _steps_below_heads(name: str, config: Config) -> int:
    """How many times trunk.lr_decay applies to a weight; 0 for all where it changes nothing."""
    part, *rest = name.split(".")
    if part not in ("encoder", "branches") or config.trunk.lr_decay == 1:
        return 0
    is_block = "blocks" in rest
    return config.encoder.n_blocks - int(rest[rest.index("blocks") + 1]) if is_block else config.encoder.n_blocks + 1


class Average:
    """`module`: a model whose weights are the moving average of another's; what is frozen is that model's own.

    Its memory grows with the updates, so that it forgets the random start.
    """

    def __init__(self, model: SpeechModel, decay: float):
        self.decay, self.updates = decay, 0
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        frozen = {name for name in tensors if name.startswith(model.config.frozen_parts())}
        self.module = copy.deepcopy(model, {id(tensors[name]): tensors[name] for name in frozen})

        def changing(named: Iterable[tuple[str, Tensor]]) -> list[Tensor]:
            return [value.detach() for name, value in named if name not in frozen]

        # once and not at every step: a large frozen trunk has thousands of them to pass over
        self.means, self.now = changing(self.module.named_parameters()), changing(model.named_parameters())
        self.buffers = list(zip(changing(self.module.named_buffers()), changing(model.named_buffers()), strict=True))

    @torch.no_grad()
    def update(self) -> None:
        """Take the model's weights of now in."""
        share = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.updates else 1.0
        torch._foreach_lerp_(self.means, self.now, share)
        for mean, value in self.buffers:
            mean.copy_(value)
        self.updates += 1
