"""The arms of a comparison: which models are trained, from one recipe.

An arm is the recipe with overrides, for one purpose: a task alone, everything shared, transfer, a control, a sweep over
the branch point, the weights or the weighting methods, or whatever a user writes under [compare.arms]. All arms see the
same labelled utterances for the tasks they train.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from itertools import permutations

import torch

from speech_mtl.config import Config, ConfigError, DataConfig, parse_config
from speech_mtl.cuts import label_names
from speech_mtl.encoder import Conformer
from speech_mtl.recipe import override_values
from speech_mtl.weighting import build_weighting

SAME_DATA = ("train", "shares", "temperature", "min_utterance_s", "max_utterance_s", "dev", "dev_enroll")
"""What of the data section all arms must have in common."""


@dataclass(frozen=True)
class Arm:
    name: str
    title: str
    group: str
    """single, joint, transfer, control, small, branch, weight, method or user."""
    tasks: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    start_from: str = ""
    """The arm whose model of the same seed it starts from."""

    @property
    def folder(self) -> str:
        return re.sub(r"[^\w.+-]+", "-", self.name)


@dataclass
class Plan:
    """The arms in the order of training: an arm comes after the one it starts from."""

    config: Config
    arms: list[Arm] = field(default_factory=list)

    def add(self, arm: Arm) -> None:
        if any(known.name == arm.name or known.folder == arm.folder for known in self.arms):
            raise ConfigError(f"compare: two arms are called '{arm.name}'; give one of them another name")
        self.arms.append(arm)

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def config_of(self, arm: Arm, seed: int, start_folder: str = "") -> Config:
        """The arm's recipe. Raises ConfigError for an override that does not fit.

        An arm of another width starts anew, since nothing of train.init fits it. A task alone has weight 1 where it is
        a probe or an adversary in the recipe: with those weights nobody would train its encoder.
        """
        values = self.config.model_dump()
        values["tasks"] = {name: values["tasks"][name] for name in arm.tasks}
        if len(arm.tasks) == 1 and values["tasks"][arm.tasks[0]]["weight"] <= 0:
            values["tasks"][arm.tasks[0]]["weight"] = 1.0
        absent = [f"{part}.{n}." for n in self.config.tasks if n not in arm.tasks for part in ("tasks", "branches")]
        freeze = [part for part in values["train"]["freeze"] if not part.startswith(tuple(absent))]
        values["train"] |= {"seed": seed, "freeze": freeze}
        if start_folder:
            values["train"]["init"] = start_folder
        if not any(task["type"] == "asr" for task in values["tasks"].values()):
            values["trunk"] = {}  # of a recogniser
        if values["train"]["select"] not in (*arm.tasks, "mean"):
            values["train"]["select"] = "mean"
        for override in arm.overrides:
            override_values(values, override)
        if not start_folder and values["encoder"]["d_model"] != self.config.encoder.d_model:
            values["train"] |= {"init": "", "freeze": []}
            values["trunk"] = {}
        return parse_config(values, f"arm '{arm.name}'")


def plan_arms(config: Config) -> Plan:
    """All the arms that the recipe's [compare] section asks for. Raises ConfigError."""
    plan, names = Plan(config), list(config.tasks)
    if len(names) < 2:
        raise ConfigError(f"compare: at least two tasks are needed, the recipe has {names}")
    everything = tuple(names)
    for name in names:
        plan.add(Arm(_alone(name), f"{name} alone", "single", (name,)))
    plan.add(Arm("joint", "joint, as the recipe has it", "joint", everything))
    for source, target in permutations(names, 2):
        title = f"{target} alone, started from the encoder of {source} alone"
        plan.add(Arm(f"{source} to {target}", title, "transfer", (target,), start_from=_alone(source)))
    first, rest = names[0], names[1:]
    frozen = f'train.freeze=["encoder", "tasks.{first}."]'
    title = f"heads of {', '.join(rest)} on the frozen encoder of {first} alone"
    name = f"frozen {first} + {' + '.join(rest)}"
    # the blocks that the first task alone lacks are trained: they are the others' own
    shared = tuple(f"tasks.{n}.branch={config.depth(first)}" for n in names)
    plan.add(Arm(name, title, "transfer", everything, (frozen, *shared), start_from=_alone(first)))
    labels = label_names(config)
    for name in rest:
        title = f"joint, the labels of {name} shuffled among the utterances"
        untaught = (f"tasks.{name}.teacher=0",) if config.tasks[name].teacher else ()
        overrides = (*untaught, f'data.permute=["{labels[name]}"]')
        plan.add(Arm(f"permuted {name}", title, "control", everything, overrides))
    width = _small_width(plan)
    for name in names:
        title = f"{name} alone, so small that the {len(names)} of them have the joint model's size"
        plan.add(Arm(f"small {name}", title, "small", (name,), (f"encoder.d_model={width}",)))
    for branch in config.compare.branches:
        if branch > config.encoder.n_blocks:
            raise ConfigError(
                f"compare.branches: {branch} is beyond the trunk's last block, accepted: 0 to {config.encoder.n_blocks}"
            )
        overrides = tuple(f"tasks.{name}.branch={branch}" for name in names)
        plan.add(Arm(f"branch {branch}", f"blocks 1..{branch} shared", "branch", everything, overrides))
    for name, factors in config.compare.weights.items():
        if name not in config.tasks:
            raise ConfigError(f"compare.weights: no task '{name}'; accepted: {', '.join(names)}")
        if factors and not config.tasks[name].weight:
            raise ConfigError(
                f"compare.weights: the weight of '{name}' is 0 in the recipe, every factor gives 0; "
                f"accepted: no factors for it, or arms with tasks.{name}.weight under compare.arms"
            )
        for factor in factors:
            weight = factor * config.tasks[name].weight
            plan.add(Arm(
                f"{name} x{factor:g}", f"weight of {name} {weight:g}", "weight", everything,
                (f"tasks.{name}.weight={weight!r}",),
            ))  # fmt: skip
    for method in config.compare.methods:
        plan.add(Arm(
            method, f"weighting by {method}", "method", everything,
            (f'train.weighting="{method}"', *(f"tasks.{n}.weight=1.0" for n in names if config.tasks[n].weight > 0)),
        ))  # fmt: skip
    for name, own in config.compare.arms.items():
        plan.add(Arm(name, name, "user", everything, tuple(own)))
    unknown = set(config.compare.leave_out) - {arm.name for arm in plan.arms} - {arm.group for arm in plan.arms}
    if unknown:
        accepted = ", ".join([*dict.fromkeys(arm.group for arm in plan.arms), *(arm.name for arm in plan.arms)])
        raise ConfigError(f"compare.leave_out: no arm or group '{sorted(unknown)[0]}'; accepted: {accepted}")
    left_out = config.compare.leave_out
    plan.arms = [arm for arm in plan.arms if not {arm.name, arm.group} & set(left_out)]
    known = {arm.name for arm in plan.arms}
    plan.arms = [arm for arm in plan.arms if not arm.start_from or arm.start_from in known]
    for arm in plan.arms:  # what does not fit is said before anything is trained
        its = plan.config_of(arm, config.compare.seeds[0])
        _check_same_data(arm.name, its.data, config.data)
        build_weighting(its.train.weighting, len(arm.tasks))
    return plan


def _check_same_data(arm: str, own: DataConfig, common: DataConfig) -> None:
    """An arm that sees other utterances, or is chosen on others, says nothing about sharing. Raises ConfigError."""
    for key in SAME_DATA:
        if getattr(own, key) != getattr(common, key):
            raise ConfigError(
                f"arm '{arm}': data.{key} is {getattr(own, key)}, the other arms have {getattr(common, key)}; "
                "all arms of a comparison train on the same utterances and are chosen on the same"
            )


def _alone(task: str) -> str:
    return f"{task} alone"


def common_branch(config: Config) -> int | None:
    """The branch point that all tasks have; None for one task, and where they have none in common."""
    points = {config.branch_point(name) for name in config.tasks}
    return points.pop() if len(points) == 1 < len(config.tasks) else None


def _small_width(plan: Plan) -> int:
    """The widest d_model at which the single models together have no more encoder weights than the joint one."""
    config = plan.config
    target, step = encoder_weights(config), 2 * config.encoder.n_heads
    widths = range(config.encoder.d_model // step * step, 0, -step)
    alone = [Arm(name, name, "small", (name,)) for name in config.tasks]

    def apart(width: int) -> int:
        own = (replace(arm, overrides=(f"encoder.d_model={width}",)) for arm in alone)
        return sum(encoder_weights(plan.config_of(arm, config.train.seed)) for arm in own)

    return next((width for width in widths if apart(width) <= target), step)


def encoder_stacks(config: Config) -> list[tuple[int, Conformer]]:
    """The trunk and the tasks' own blocks, each with the number of blocks that it follows."""
    parts = [(0, config.trunk_depth())] + [(config.branch_point(n), config.depth(n)) for n in config.tasks]
    mels = config.features.n_mels
    return [(first, Conformer(config.encoder, mels, first, last)) for first, last in parts if first < last]


def encoder_weights(config: Config) -> int:
    """How many weights these have."""
    with torch.device("meta"):
        return sum(weight.numel() for _, stack in encoder_stacks(config) for weight in stack.parameters())
