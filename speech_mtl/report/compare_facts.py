"""compare.json -> checked facts: arms with scores and verdicts, and the words in which figures are told.

Takes the folder of a comparison or the dictionary itself; gives `Comparison`. What may be absent or null in the file
has a default here, so that pages and advice need not ask. Every error in it is a rate (0.01 is 1 %), lower is better.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from speech_mtl import verdicts
from speech_mtl.report import ABSENT, percent

VERDICTS = get_args(verdicts.Verdict)
GOOD = ("helps", "no worse")
METRICS = {
    "wer": "word error rate",
    "eer": "equal error rate",
    "accuracy error": "share answered wrongly",
}


class Part(BaseModel):
    """A piece of the file. Null and NaN count as absent; keys that are not known are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _absent(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {key: value for key, value in given.items() if value is not None and not _nan(value)}


def _nan(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


class Task(Part):
    type: str = ""
    metric: str = "error"
    """What is not in `metrics`, as in a file from before these."""
    metrics: dict[str, str] = {}
    """By test set, and 'dev': what the task's error is there."""


class DataSet(Part):
    manifests: list[str] = []
    utterances: int | None = None


class Score(Part):
    """One task's error on one set, per seed (by the seed's name) and over seeds."""

    per_seed: dict[str, float | None] = {}
    mean: float | None = None
    std: float | None = None


class Verdict(Part):
    """difference, low, high, margin: error of the arm minus that of `against`; below 0 the arm is better."""

    against: str = "its reference"
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    margin: float | None = None
    verdict: str
    p: float | None = None
    test: str = ""
    needed_utterances: int | None = None
    needed_speakers: int | None = None
    """How many voices those utterances must be of, where speakers were drawn."""

    @model_validator(mode="after")
    def _known(self) -> Verdict:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict is {self.verdict!r}; accepted are {', '.join(VERDICTS)}")
        return self


class Arm(Part):
    """One setting, trained once per seed. scores and verdicts: set -> task -> figures."""

    name: str
    title: str = ""
    group: str = "user"
    tasks: list[str]
    branch: int | None = None
    weights: dict[str, float | None] = {}
    method: str = "fixed"
    examples: dict[str, int | None] = {}
    parameters: int | None = None
    flops_per_s: float | None = None
    train_flops: float | None = None
    train_minutes: float | None = None
    failed: dict[str, str] = {}
    scores: dict[str, dict[str, Score]] = {}
    verdicts: dict[str, dict[str, Verdict]] = {}
    delta_m: dict[str, float | None] = {}

    def score(self, set_name: str, task: str) -> Score:
        return self.scores.get(set_name, {}).get(task) or Score()

    def error(self, set_name: str, task: str) -> float | None:
        return self.score(set_name, task).mean

    def verdict(self, set_name: str, task: str) -> Verdict | None:
        return self.verdicts.get(set_name, {}).get(task)


class Interference(Part):
    """Gradients of two tasks, per block; cosine and rho have a row a block and a column a time."""

    arm: str
    tasks: tuple[str, str]
    blocks: list[str]
    epochs: list[float] = []
    cosine: list[list[float | None]] = []
    rho: list[list[float | None]] = []
    conflict_frequency: list[float | None] = []
    magnitude_similarity: list[float | None] = []
    rho_mean: list[float | None] = []
    rho_low: list[float | None] = []
    rho_high: list[float | None] = []
    affinity: dict[str, list[float | None]] = {}


class Trained(Part):
    branch: int
    arm: str


class Proposal(Part):
    branch: int
    why: str = ""
    tested: list[Trained] = []
    confirmed: bool | None = None


class Likeness(Part):
    a: str
    b: str
    blocks: list[float | None] = []


class Probe(Part):
    arm: str
    task: str
    blocks: list[float | None] = []


class Pass(Part):
    """What running over the same audio took: one model, or several one after another."""

    arm: str = ""
    arms: list[str] = []
    parameters: int | None = None
    flops_per_s: float | None = None
    rtf: float | None = None
    peak_mb: float | None = None


class Cost(Part):
    audio_s: float | None = None
    joint: Pass = Pass()
    apart: Pass = Pass()
    time_ratio: float | None = None
    parameter_ratio: float | None = None


class Comparison(Part):
    recipe: str
    command: str = ""
    commit: str | None = None
    machine: str | None = None
    minutes: float | None = None
    quick: bool = False
    seeds: list[int]
    complete: bool = True
    margin: float
    margin_points: float = 0.0
    confidence: float
    tasks: dict[str, Task] = Field(min_length=1)
    sets: dict[str, DataSet] = Field(min_length=1)
    arms: list[Arm]
    interference: list[Interference] = []
    overhead: float | None = None
    proposal: Proposal | None = None
    cka: list[Likeness] = []
    probe: list[Probe] = []
    curves: dict[str, list[dict[str, float | None]]] = {}
    cost: Cost | None = None

    @property
    def home(self) -> str:
        """The set that is in domain: the first."""
        return next(iter(self.sets))

    @property
    def abroad(self) -> list[str]:
        return list(self.sets)[1:]

    @property
    def interval(self) -> str:
        return f"{100 * self.confidence:g} % interval"

    def metric(self, task: str, place: str) -> str:
        """What a task's error on a test set, or 'dev', is, in words."""
        found = self.tasks[task].metrics.get(place, self.tasks[task].metric)
        return METRICS.get(found, found)

    def arm(self, name: str) -> Arm | None:
        return next((arm for arm in self.arms if arm.name == name), None)

    def alone(self, task: str) -> Arm | None:
        return next((arm for arm in self.arms if arm.group == "single" and arm.tasks == [task]), None)

    @property
    def joint(self) -> Arm | None:
        """The arm the first question is about: everything shared, else the first arm that learns all tasks."""
        everything = [arm for arm in self.arms if self.learns_all(arm) and arm.group not in ("control", "transfer")]
        by_group = [arm for arm in everything if arm.group == "joint"]
        return next(iter(by_group or everything), None)

    def learns_all(self, arm: Arm) -> bool:
        return set(arm.tasks) == set(self.tasks)

    def shares(self, arm: Arm) -> bool:
        """Whether the arm is one model for all tasks, learnt together on true labels."""
        return self.learns_all(arm) and arm.branch != 0 and arm.group not in ("control", "transfer", "small", "single")

    def good_everywhere(self, arm: Arm) -> bool:
        """Whether every task has a verdict in domain, and each is 'helps' or 'no worse'."""
        found = [arm.verdict(self.home, task) for task in self.tasks]
        return all(verdict is not None and verdict.verdict in GOOD for verdict in found)

    def sweep(self) -> list[tuple[int, Arm]]:
        """(branch point, arm), by branch point: the branch arms, and the joint arm where none stands in its place."""
        found = {arm.branch: arm for arm in self.arms if arm.group == "branch" and arm.branch is not None}
        if self.joint and self.joint.branch is not None:
            found.setdefault(self.joint.branch, self.joint)
        return sorted(found.items())

    def fixed_weights(self) -> list[Arm]:
        """The weight sweep with the joint arm in it: fixed weights, one sharing."""
        return [arm for arm in self._weighted() if arm.method == "fixed" and arm.group in ("joint", "weight", "method")]

    def methods(self) -> list[Arm]:
        return [arm for arm in self._weighted() if arm.method != "fixed"]

    def _weighted(self) -> list[Arm]:
        """Arms that differ from the joint one in weighting alone, so that one front can hold them."""
        branch = self.joint.branch if self.joint else None
        return [arm for arm in self.arms if self.shares(arm) and arm.branch in (None, branch)]


def facts(compare: dict[str, Any], where: str = "the comparison") -> Comparison:
    """Checked facts. Raises ValueError that names the key, the value found and what is accepted."""
    if not isinstance(compare, dict):
        raise ValueError(f"{where} holds a {type(compare).__name__}, where an object with the comparison is expected")
    try:
        return Comparison.model_validate(compare)
    except ValidationError as error:
        raise ValueError(f"{where}: {_told(error)}") from error


def _told(error: ValidationError) -> str:
    told = []
    for problem in error.errors()[:5]:
        place = ".".join(map(str, problem["loc"])) or "the file"
        lacks = problem["type"] == "missing"
        told.append(f"'{place}' is missing" if lacks else f"'{place}' is {problem['input']!r:.60}: {problem['msg']}")
    rest = error.error_count() - len(told)
    return "; ".join(told) + (f"; and {rest} more" if rest else "")


def read_compare(folder: Path) -> dict[str, Any]:
    """compare.json of a folder, NaN as null. Raises FileNotFoundError, or ValueError where it is no JSON."""
    path = folder / "compare.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; `speech-mtl compare RECIPE --out {folder}` writes it")
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON ({error}); accepted is the file `speech-mtl compare` writes") from error


def signed(value: float, digits: str = "+.2f") -> str:
    """With a sign, and the minus that is as wide as the plus."""
    return format(value, digits).replace("-", "−")


def points(value: float | None, sign: bool = True) -> str:
    """A rate as percentage points, with two digits that count where two decimals would hide it."""
    if value is None:
        return ABSENT
    shown = 100 * value
    if abs(shown) < 1e-6:  # what rounding leaves of a difference of nothing
        return "0.00"
    text = signed(shown, "+.2g" if abs(shown) < 0.005 else "+.2f")
    return text if sign else text.lstrip("+")


def span(verdict: Verdict) -> str:
    """The interval of a difference, such as '−0.30 to +0.05'."""
    if verdict.low is None or verdict.high is None:
        return "no interval"
    return f"{points(verdict.low)} to {points(verdict.high)}"


def spread(score: Score) -> str:
    """Such as '1.20 ± 0.10 %', the mean and standard deviation over seeds."""
    if score.mean is None:
        return ABSENT
    return percent(score.mean) if score.std is None else f"{100 * score.mean:.2f} ± {points(score.std, sign=False)} %"


def listed(names: list[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def scientific(value: float | None) -> str:
    """Such as '3.1e15'."""
    return ABSENT if value is None else f"{value:.2e}".replace("e+0", "e").replace("e+", "e")
