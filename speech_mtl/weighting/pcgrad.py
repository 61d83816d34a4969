"""Gradient surgery: Yu et al. 2020 (2001.06782).

In: the Gram matrix. Out: weights of the sum in which every task's gradient has lost what points against another's: of
g_k the part along g_j is taken away where the two conflict, for all j ≠ k one after the other. With two tasks
w₁ = 1 + max(0, -c/a), a = ‖g₁‖², c = g₁·g₂; tasks without conflict all keep weight 1.

The paper draws the order of the j's at random in every step. Here the result is the mean over all orders, which is what
the draws come to on average: no randomness to keep equal between processes, and no task is favoured by its place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speech_mtl.weighting import Weighting
from speech_mtl.weighting.inputs import from_gram

MOST_TASKS = 6
"""Each task meets the others in (K-1)! orders; where 6 tasks all conflict, that takes some 10 ms a step, and 7 times as
much with one more."""


class PCGrad(Weighting):
    needs_gram = True

    def __init__(self, tasks: int) -> None:
        super().__init__(tasks)
        if tasks > MOST_TASKS:
            raise ValueError(f"weighting 'pcgrad' takes up to {MOST_TASKS} tasks, found {tasks}; take 'torchjd.PCGrad'")

    def weights(self, gram_KK: Tensor | None, present_K: Tensor) -> Tensor:
        return from_gram(surgery, gram_KK, present_K)


def surgery(gram_PP: Tensor) -> Tensor:
    """(P,) weights from the Gram matrix of P nonzero gradients."""
    gram, count = gram_PP.tolist(), len(gram_PP)
    kept = [
        _mean_over_orders(gram, [float(j == k) for j in range(count)], [j for j in range(count) if j != k])
        for k in range(count)
    ]
    return torch.tensor(kept, dtype=torch.float64).sum(dim=0)


def _mean_over_orders(gram: list[list[float]], mix: list[float], others: list[int]) -> list[float]:
    """One task's gradient, as its coefficients `mix`, after meeting each of `others`, averaged over their orders."""
    inner = [sum(g * m for g, m in zip(gram[j], mix, strict=True)) for j in others]
    if all(value >= 0 for value in inner):
        return mix  # no conflict left, so no order changes it further
    total = [0.0] * len(mix)
    for j, value in zip(others, inner, strict=True):
        after = list(mix)
        after[j] -= min(value, 0.0) / gram[j][j]
        for i, weight in enumerate(_mean_over_orders(gram, after, [other for other in others if other != j])):
            total[i] += weight / len(others)
    return total
