"""Methods of torchjd (https://torchjd.org), an optional package, for names such as 'torchjd.UPGrad'.

In: the Gram matrix. Out: the weights of torchjd's `<Name>Weighting`, at torchjd's own scale: that of a mean for most,
so UPGrad's weights for two tasks are half of PCGrad's. Accepted are the methods that take a Gram matrix and keep no
state between steps: a step in which a task is absent resets that of GradVac and PCD.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from speech_mtl.weighting import Weighting, unknown_name
from speech_mtl.weighting.inputs import cosines, from_gram

OPTIONS: dict[str, Any] = {"c": 0.4, "alpha": 1.0, "norm_eps": 1e-8}
"""What a method's constructor is given where it asks for it: CAGrad's c as in its paper (2110.14048), FairGrad's alpha
that makes it proportionally fair (2402.15638); with torchjd's own norm_eps, small gradients count as none."""

SEED = 0


class FromTorchJD(Weighting):
    """`name` without the prefix. Raises ValueError where torchjd or a package the method needs is not installed, or
    torchjd has no such method."""

    needs_gram = True

    def __init__(self, name: str, tasks: int) -> None:
        super().__init__(tasks)
        self.rule = _build(name)

    def weights(self, gram_KK: Tensor | None, present_K: Tensor) -> Tensor:
        return from_gram(self._apply, gram_KK, present_K)

    def _apply(self, gram_PP: Tensor) -> Tensor:
        # PCGrad draws orders at random: here the same ones in every step and process, so that weights() stays free of
        # state and nobody else's random numbers change.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(SEED)
            return self.rule(_scaled(gram_PP))


def _scaled(gram_PP: Tensor) -> Tensor:
    """With a mean squared norm of 1, for all thresholds in torchjd are absolute; without negative eigenvalues, which
    rounding in float32 leaves and quadratic programming refuses."""
    cosines_PP, norms_P = cosines(gram_PP)
    values_P, vectors_PP = torch.linalg.eigh(cosines_PP)
    if values_P[0] < 0:
        cosines_PP = vectors_PP @ (values_P.clamp(min=0)[:, None] * vectors_PP.T)
    norms_P = norms_P / norms_P.square().mean().sqrt()
    return cosines_PP * norms_P[:, None] * norms_P


def _build(name: str) -> nn.Module:
    try:
        from torchjd import aggregation
        from torchjd.linalg import QuadprogProjector
    except ImportError as error:
        raise ValueError(
            f"weighting 'torchjd.{name}' needs torchjd: pip install 'speech_mtl[torchjd]' ({error})"
        ) from None
    accepted = [known.removesuffix("Weighting") for known in aggregation.__all__ if _usable(aggregation, known)]
    if name not in accepted:
        refusal = unknown_name(f"torchjd.{name}", [f"torchjd.{known}" for known in accepted])
        raise ValueError(f"{refusal} (those of torchjd that take a Gram matrix and keep no state)")
    kind = getattr(aggregation, f"{name}Weighting")
    wanted = inspect.signature(kind).parameters
    try:
        options = {option: value for option, value in OPTIONS.items() if option in wanted}
        if "projector" in wanted:
            options["projector"] = QuadprogProjector(norm_eps=0.0, reg_eps=1e-8)
        return kind(**options)
    except ImportError as error:
        raise ValueError(f"weighting 'torchjd.{name}': {error}") from None


def _usable(aggregation: Any, known: str) -> bool:
    """Whether torchjd's class of that name maps a Gram matrix to weights, keeps no state, and needs no other option."""
    method = getattr(aggregation, known.removesuffix("Weighting"), None)
    if not known.endswith("Weighting") or not inspect.isclass(method):
        return False
    needed = [
        parameter.name
        for parameter in inspect.signature(getattr(aggregation, known)).parameters.values()
        if parameter.default is inspect.Parameter.empty
    ]
    takes_gram = issubclass(method, aggregation.GramianWeightedAggregator)
    return takes_gram and not hasattr(method, "reset") and set(needed) <= set(OPTIONS)
