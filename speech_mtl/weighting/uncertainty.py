"""Weights from learnt variances: Kendall, Gal & Cipolla 2018 (1705.07115), as Liebel & Körner 2018 (1805.06334) keep it
positive: sum of L / 2σ² + ln(1 + σ²).

In: the step's losses. Out: weights 1 / 2σ², where σ² moves towards the point where L = 2σ⁴ / (1 + σ²), so that a task
with a large loss counts less. The losses are constants to σ; the model learns nothing from the variances.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from speech_mtl.weighting import Weighting, ones
from speech_mtl.weighting.adam import adam_state, adam_step
from speech_mtl.weighting.inputs import known_losses, masked

LEARNING_RATE = 0.01
"""Adam moves log σ² by about this much a step at most, so a weight takes 100 steps or more to change by a factor e: too
slow to follow single batches, yet fast enough to cross a factor of 100 in 500 steps, a small corpus's first epochs.
At a model's usual rate, around 1e-3, that would take 5000 steps, more than a small corpus is trained for."""

START = -math.log(2)
"""Log σ² at which the weight 1 / 2σ² is 1: training begins as the plain sum."""

BOUND = math.log(1e4)
"""Log σ² stays within ± this: a task whose loss has reached 0 would raise its weight without end."""


class Uncertainty(Weighting):
    STATE = ("log_variance_K", "adam_3K")

    def __init__(self, tasks: int) -> None:
        super().__init__(tasks)
        self.log_variance_K = START * ones(tasks)
        self.adam_3K = adam_state(tasks)

    def weights(self, gram_KK: Tensor | None, present_K: Tensor) -> Tensor:
        return masked(0.5 * torch.exp(-self.log_variance_K), present_K)

    def after_step(self, losses_K: Tensor, present_K: Tensor) -> None:
        losses_K, known_K = known_losses(losses_K, present_K)
        # d/ds of L e^-s / 2 + ln(1 + e^s), with s = log σ²
        gradient_K = torch.sigmoid(self.log_variance_K) - 0.5 * losses_K * torch.exp(-self.log_variance_K)
        self.log_variance_K += adam_step(self.adam_3K, gradient_K, known_K, LEARNING_RATE)
        self.log_variance_K.clamp_(-BOUND, BOUND)
