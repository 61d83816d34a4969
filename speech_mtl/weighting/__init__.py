"""How the tasks' losses become one update of the shared trunk. A method is one file and one line in METHODS.

In each training step the trainer asks for one weight a task, and the trunk gets the weighted sum of the tasks'
gradients; every head always keeps its own task's gradient. Everything here is computed in float64 on the CPU from a few
numbers (K losses, a K x K Gram matrix) that are the same in every process, so every process gets the same weights.
"""

from __future__ import annotations

import difflib
import importlib
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from speech_mtl.config import ConfigError


class Weighting(ABC):
    """The contract. K tasks in a fixed order; gram_KK holds the inner products of their gradients.

    `present_K` (bool) says which tasks have a labelled utterance in this step. An absent task is left out, not counted
    as zero: its weight is 0, and its loss, gradient and state neither change nor are read.
    """

    needs_gram: bool = False
    """Whether weights() reads the Gram matrix."""

    STATE: tuple[str, ...] = ()
    """The attributes, all tensors, that a method carries from step to step."""

    def __init__(self, tasks: int) -> None:
        """`tasks` is K. Raises ValueError where it is below 1."""
        if tasks < 1:
            raise ValueError(f"a weighting needs at least 1 task, found {tasks}")
        self.tasks = tasks

    @abstractmethod
    def weights(self, gram_KK: Tensor | None, present_K: Tensor) -> Tensor:
        """(K,) float64 weights on the CPU, always finite, 0 for absent tasks; changes no state.

        Raises ValueError where a method that needs the Gram matrix gets none, or one of another shape.
        """

    def after_step(self, losses_K: Tensor, present_K: Tensor) -> None:  # noqa: B027 (most methods learn nothing here)
        """Takes the step's mean losses over all processes; one that is not finite is passed over as if absent.

        Raises ValueError where there is not one loss a task.
        """

    def after_epoch(self) -> None:  # noqa: B027
        """Marks the end of an epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors from which load_state_dict continues exactly."""
        return {name: getattr(self, name).clone() for name in self.STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError where the state is of another method or another number of tasks."""
        if set(state) != set(self.STATE):
            found, accepted = sorted(state), sorted(self.STATE)
            raise ValueError(f"the state of another weighting method: it holds {found}, accepted is {accepted}")
        for name in self.STATE:
            own = getattr(self, name)
            if state[name].shape != own.shape:
                found, accepted = list(state[name].shape), list(own.shape)
                raise ValueError(
                    f"weighting state '{name}' has shape {found}, accepted for {self.tasks} tasks: {accepted}"
                )
            setattr(self, name, state[name].to("cpu", own.dtype, copy=True))


METHODS: dict[str, str] = {
    "fixed": "fixed.Fixed",
    "uncertainty": "uncertainty.Uncertainty",
    "dwa": "dwa.DWA",
    "famo": "famo.FAMO",
    "pcgrad": "pcgrad.PCGrad",
    "imtl-g": "imtl_g.IMTLG",
    "mgda": "mgda.MGDA",
}
"""Name in a config -> file and class of this package; a file is imported when its method is asked for."""


def build_weighting(name: str, tasks: int) -> Weighting:
    """The method of that name for `tasks` tasks: a key of METHODS, or 'torchjd.<Name>' for one of torchjd's.

    Raises ConfigError for an unknown name, for a number of tasks the method does not take, and for a torchjd method
    whose packages are not installed.
    """
    try:
        return _build(name, tasks)
    except ValueError as error:
        raise ConfigError(f"train.weighting: {error}") from None


def _build(name: str, tasks: int) -> Weighting:
    if name.startswith("torchjd."):
        from speech_mtl.weighting.from_torchjd import FromTorchJD

        return FromTorchJD(name.removeprefix("torchjd."), tasks)
    if name not in METHODS:
        raise ValueError(unknown_name(name, [*METHODS, "torchjd.UPGrad"]) + " and torchjd's other methods")
    module, kind = METHODS[name].split(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), kind)(tasks)


def unknown_name(name: str, accepted: list[str]) -> str:
    """The sentence that refuses `name`: the nearest accepted name where one is near, and all of them."""
    by_lower = {known.lower(): known for known in accepted}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    hint = f"did you mean '{by_lower[near[0]]}'? " if near else ""
    return f"unknown weighting '{name}'; {hint}accepted: {', '.join(accepted)}"


def ones(tasks: int) -> Tensor:
    """(K,) float64 ones on the CPU, the type that all weights and states have."""
    return torch.ones(tasks, dtype=torch.float64)
