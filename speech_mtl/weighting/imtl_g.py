"""Impartial multi-task learning, the gradients' part: Liu et al. 2021 (openreview IMPnRXEWpvr).

In: the Gram matrix. Out: weights of the sum that has the same cosine with every task's gradient; with two tasks
w ∝ 1/‖g‖, the bisector. The weights' absolute values sum to 1. (The paper's sum to 1; from three tasks on some may be
negative, and a sum near or below zero would blow the update up or turn it round.)

Where no direction agrees with all the gradients, as with opposed ones, it is the nearest in the sense of least squares;
where even that is nothing, every gradient counts with the same length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speech_mtl.weighting import Weighting
from speech_mtl.weighting.inputs import cosines, from_gram

RESOLUTION = 1e-7
"""Relative precision of gradients in float32; directions in which they differ by less than this are noise."""


class IMTLG(Weighting):
    needs_gram = True

    def weights(self, gram_KK: Tensor | None, present_K: Tensor) -> Tensor:
        return from_gram(equal_cosines, gram_KK, present_K)


def equal_cosines(gram_PP: Tensor) -> Tensor:
    """(P,) weights from the Gram matrix of P nonzero gradients."""
    cosines_PP, norms_P = cosines(gram_PP)
    lengths_P = torch.ones_like(norms_P)  # of each gradient's unit vector in the sum
    if len(norms_P) > 2:
        solution_P = torch.linalg.pinv(cosines_PP, rtol=RESOLUTION, hermitian=True) @ lengths_P
        if solution_P.abs().max() > RESOLUTION:
            lengths_P = solution_P
    weights_P = lengths_P / norms_P
    return weights_P / weights_P.abs().sum()
