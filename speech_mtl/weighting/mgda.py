"""The multiple-gradient descent algorithm: Désidéri 2012; Sener & Koltun 2018 (1810.04650).

In: the Gram matrix. Out: weights, none negative, with sum 1, of the shortest combination of the gradients. No task's
loss rises along it; where it is zero no update helps all tasks. With two tasks w₁ = clip((b-c) / (a+b-2c), 0, 1), with
a = ‖g₁‖², b = ‖g₂‖², c = g₁·g₂. It leans to the task with the smallest gradient.
"""

from __future__ import annotations

import torch
from scipy.optimize import nnls
from torch import Tensor

from speech_mtl.weighting import Weighting
from speech_mtl.weighting.inputs import cosines, from_gram


class MGDA(Weighting):
    needs_gram = True

    def weights(self, gram_KK: Tensor | None, present_K: Tensor) -> Tensor:
        return from_gram(shortest, gram_KK, present_K)


def shortest(gram_PP: Tensor) -> Tensor:
    """(P,) weights from the Gram matrix of P nonzero gradients, exact up to rounding."""
    if len(gram_PP) == 2:
        (a, c), (_, b) = gram_PP
        span = a + b - 2 * c
        first = ((b - c) / span).clamp(0, 1) if span > 0 else torch.full_like(span, 0.5)  # else they are the same
        return torch.stack([first, 1 - first])
    # The shortest point of a hull, as non-negative least squares: for weights w = x / sum(x), the best scale of x in
    # ‖Σ x g‖² + (sum(x) - 1)² leaves ‖Σ w g‖² / (1 + ‖Σ w g‖²), which has its minimum where ‖Σ w g‖ has. The unknowns
    # are the lengths x ‖g‖, so that gradients of very different norms make no badly scaled problem.
    cosines_PP, norms_P = cosines(gram_PP)
    values_P, vectors_PP = torch.linalg.eigh(cosines_PP)
    units_PP = values_P.clamp(min=0).sqrt()[:, None] * vectors_PP.T  # column k is the unit vector along g_k
    system = torch.cat([units_PP, (norms_P.min() / norms_P)[None]])
    target = torch.zeros(len(system), dtype=torch.float64)
    target[-1] = 1
    lengths, _ = nnls(system.numpy(), target.numpy(), maxiter=100 * len(gram_PP))
    weights_P = torch.from_numpy(lengths) * (norms_P.min() / norms_P)
    return weights_P / weights_P.sum()
