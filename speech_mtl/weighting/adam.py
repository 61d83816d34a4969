"""Adam (Kingma & Ba, 1412.6980) for one number a task, in which an absent task takes no part.

torch.optim.Adam would go on moving an absent task's number by its momentum.
"""

from __future__ import annotations

import torch
from torch import Tensor

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


def adam_state(tasks: int) -> Tensor:
    """(3, K): per task the mean gradient, the mean squared gradient, and the number of steps it took part in."""
    return torch.zeros(3, tasks, dtype=torch.float64)


def adam_step(state_3K: Tensor, gradient_K: Tensor, known_K: Tensor, rate: float) -> Tensor:
    """(K,) change to add, 0 where known_K is False; `state_3K` is updated in place."""
    mean_K, square_K, steps_K = state_3K
    mean_K.copy_(torch.where(known_K, BETA_1 * mean_K + (1 - BETA_1) * gradient_K, mean_K))
    square_K.copy_(torch.where(known_K, BETA_2 * square_K + (1 - BETA_2) * gradient_K**2, square_K))
    steps_K += known_K
    steps = steps_K.clamp(min=1)  # a task that never took part has no bias to correct
    change_K = -rate * (mean_K / (1 - BETA_1**steps)) / ((square_K / (1 - BETA_2**steps)).sqrt() + EPSILON)
    return torch.where(known_K, change_K, 0.0)
