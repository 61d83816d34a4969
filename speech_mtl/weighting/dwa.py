"""Dynamic weight average: Liu, Johns & Davison 2019 (1803.10704).

In: the losses of every step. Out: K · softmax(r / T), where r = L(t-1) / L(t-2) is how much of a task's mean loss was
left after the last epoch; a task whose loss falls slowly counts more. Ones for the first two epochs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from speech_mtl.weighting import Weighting, ones
from speech_mtl.weighting.inputs import known_losses, masked

TEMPERATURE = 2.0
"""The paper's; a larger one brings the weights nearer to each other."""

SMALLEST_LOSS = 1e-8
"""A mean loss of 0 counts as this, so that a ratio can be taken."""


class DWA(Weighting):
    """A task's two epochs are the last two in which it had a label. A task with fewer has weight 1 and, as long as that
    is so, no part in the others' softmax."""

    STATE = ("means_2K", "sums_K", "steps_K")

    def __init__(self, tasks: int) -> None:
        super().__init__(tasks)
        self.means_2K = torch.full((2, tasks), math.nan, dtype=torch.float64)  # the last epoch's, the one before's
        self.sums_K = 0 * ones(tasks)
        self.steps_K = 0 * ones(tasks)

    def weights(self, gram_KK: Tensor | None, present_K: Tensor) -> Tensor:
        weights_K = ones(self.tasks)
        known_K = ~self.means_2K.isnan().any(dim=0)
        ratios = self.means_2K[0, known_K] / self.means_2K[1, known_K]
        weights_K[known_K] = len(ratios) * torch.softmax(ratios / TEMPERATURE, dim=0)
        return masked(weights_K, present_K)

    def after_step(self, losses_K: Tensor, present_K: Tensor) -> None:
        losses_K, known_K = known_losses(losses_K, present_K)
        self.sums_K += torch.where(known_K, losses_K, 0.0)
        self.steps_K += known_K

    def after_epoch(self) -> None:
        seen_K = self.steps_K > 0
        means_K = (self.sums_K / self.steps_K).clamp(min=SMALLEST_LOSS)
        self.means_2K = torch.where(seen_K, torch.stack([means_K, self.means_2K[0]]), self.means_2K)
        self.sums_K.zero_()
        self.steps_K.zero_()
