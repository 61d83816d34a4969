"""Fast adaptive multitask optimization: Liu, Feng, Stone & Liu 2023 (2306.03792), which lets all log losses fall alike.

In: the step's losses. Out: weights in proportion to softmax(ξ) / L, scaled to a mean of 1 (the paper's sum to 1). The
logits ξ follow the change of the log losses: a task whose loss fell more than the others' counts less from then on.

The paper measures that change on one batch, before and after the update, which takes a second forward pass. Here it is
taken between consecutive batches, so it also holds how the two batches differ: noise that averages out, because a hard
batch raises the change in one step and lowers it in the next. For the same reason the L that divides a weight is the
task's last known loss, that of an earlier batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from speech_mtl.weighting import Weighting, ones
from speech_mtl.weighting.adam import adam_state, adam_step
from speech_mtl.weighting.inputs import known_losses, masked

LEARNING_RATE = 0.025
DECAY = 1e-3
"""Both as in the paper's Algorithm 2, which steps ξ with Adam and adds DECAY · ξ to its gradient."""

SMALLEST_LOSS = 1e-8
"""A lower loss counts as this, so that its logarithm can be taken."""


class FAMO(Weighting):
    """Until a task's first loss is known it has weight 1; a change needs two tasks that are known before and now."""

    STATE = ("logits_K", "losses_K", "adam_3K")

    def __init__(self, tasks: int) -> None:
        super().__init__(tasks)
        self.logits_K = 0 * ones(tasks)
        self.losses_K = math.nan * ones(tasks)
        self.adam_3K = adam_state(tasks)

    def weights(self, gram_KK: Tensor | None, present_K: Tensor) -> Tensor:
        weights_K = ones(self.tasks)
        seen_K = ~self.losses_K.isnan()
        shares = torch.softmax(self.logits_K[seen_K], dim=0) / self.losses_K[seen_K]
        weights_K[seen_K] = len(shares) * shares / shares.sum()
        return masked(weights_K, present_K)

    def after_step(self, losses_K: Tensor, present_K: Tensor) -> None:
        losses_K, known_K = known_losses(losses_K, present_K, floor=SMALLEST_LOSS)
        both_K = known_K & ~self.losses_K.isnan()
        if both_K.sum() > 1:
            fall = self.losses_K[both_K].log() - losses_K[both_K].log()
            shares = torch.softmax(self.logits_K[both_K], dim=0)
            gradient_K = DECAY * self.logits_K
            gradient_K[both_K] += shares * (fall - (shares * fall).sum())  # the softmax's Jacobian times the fall
            self.logits_K += adam_step(self.adam_3K, gradient_K, both_K, LEARNING_RATE)
        self.losses_K = torch.where(known_K, losses_K, self.losses_K)
