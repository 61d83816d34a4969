"""What a training step hands over, made safe: absent tasks cut out, float64 on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def known_losses(losses_K: Tensor, present_K: Tensor, floor: float = 0.0) -> tuple[Tensor, Tensor]:
    """(losses_K, known_K): the losses as float64, not below `floor`, and which of them are present and finite.

    The others hold 1, a harmless number, so that whatever stood there cannot get into a sum.
    Raises ValueError where the two shapes differ.
    """
    if losses_K.shape != present_K.shape:
        raise ValueError(f"losses have shape {list(losses_K.shape)}, accepted: {list(present_K.shape)}, one per task")
    losses_K, present_K = losses_K.detach().to("cpu", torch.float64), present_K.to("cpu", torch.bool)
    known_K = present_K & losses_K.isfinite()
    return torch.where(known_K, losses_K, 1.0).clamp(min=floor), known_K


def masked(weights_K: Tensor, present_K: Tensor) -> Tensor:
    """The weights, 0 where the task is absent."""
    return torch.where(present_K.to("cpu", torch.bool), weights_K, 0.0)


def from_gram(rule: Callable[[Tensor], Tensor], gram_KK: Tensor | None, present_K: Tensor) -> Tensor:
    """(K,) weights: `rule` maps the Gram matrix of the P tasks that are present and have a gradient to P weights.

    A task whose gradient is exactly zero gets weight 0 and stays out of the rule: nothing of it can enter the sum,
    while the shortest combination, for one, would be its zero, and training would stand still for the others too.
    Where an entry is not finite (an overflow under fp16), the present tasks get weight 1: the gradients are then not
    finite either, and whoever guards the step against that must see it. Raises ValueError for a missing or misshapen
    matrix.
    """
    tasks = len(present_K)
    if gram_KK is None or gram_KK.shape != (tasks, tasks):
        found = "none" if gram_KK is None else str(list(gram_KK.shape))
        raise ValueError(f"the gradients' Gram matrix has shape {found}, accepted: [{tasks}, {tasks}]")
    gram_KK, present_K = gram_KK.detach().to("cpu", torch.float64), present_K.to("cpu", torch.bool)
    if not gram_KK[present_K][:, present_K].isfinite().all():
        return present_K.to(torch.float64)
    weights_K = torch.zeros(tasks, dtype=torch.float64)
    active_K = present_K & (gram_KK.diagonal() > 0)
    if active_K.any():
        weights_K[active_K] = rule(gram_KK[active_K][:, active_K])
    return weights_K


def cosines(gram_PP: Tensor) -> tuple[Tensor, Tensor]:
    """(cosines_PP, norms_P) of a Gram matrix with a positive diagonal: everything scale-free is computed from these."""
    norms_P = gram_PP.diagonal().sqrt()
    return gram_PP / norms_P[:, None] / norms_P, norms_P
