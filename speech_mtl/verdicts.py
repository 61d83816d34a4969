"""Intervals of differences into words: what an arm of a comparison may be called, and on how much that rests.

The intervals are those of statistics.py; the margin is what was declared not to matter before anything was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

Verdict = Literal["helps", "no worse", "harms", "undecided"]


def verdict(difference: float, low: float, high: float, margin: float) -> Verdict:
    """One of four words for an arm against its reference; difference = error of the arm - error of the reference.

    With low <= difference <= high and margin >= 0, the largest loss that was declared not to matter beforehand:
    - 'helps': high < 0, the whole interval is on the better side;
    - 'no worse': 0 <= high <= margin, any loss is within the margin (non-inferiority, ICH E9 section 3.3.2);
    - 'harms': low > 0 and high > margin, a loss is certain and may exceed the margin;
    - 'undecided': low <= 0 and high > margin.
    The first two and the last two part at high = 0 and low = 0, the pairs at high = margin: every interval has one.
    Raises ValueError for NaN, ends in the wrong order, or a margin that is negative or infinite.
    """
    for name, value in {"difference": difference, "low": low, "high": high, "margin": margin}.items():
        if not math.isfinite(value):
            raise ValueError(f"{name}: {value}; a finite number is needed")
    if not low <= difference <= high:
        raise ValueError(f"difference {difference} outside its interval {low} to {high}")
    if margin < 0:
        raise ValueError(f"margin: {margin}; 0 or more is accepted")
    if high < 0:
        return "helps"
    if high <= margin:
        return "no worse"
    return "harms" if low > 0 else "undecided"


def utterances_needed(
    low: float, high: float, difference: float, margin: float, utterances: int, *, training_share: float = 0.0
) -> int | None:
    """How many test utterances would decide an 'undecided' interval, if the difference stayed what it is.

    The variance falls as 1 / n, so both sides of the interval shrink as 1 / sqrt(n); of it the part training_share
    (see `Comparison`) stays, which only more training runs lower. None where the interval is decided already, and
    where no number of utterances decides: the difference is exactly at an edge, or training noise alone is too wide.
    Raises ValueError as `verdict` does, and for utterances < 1 or a training_share outside 0..1.
    """
    if utterances < 1:
        raise ValueError(f"utterances: {utterances}; at least 1 is needed")
    if not 0 <= training_share <= 1:
        raise ValueError(f"training_share: {training_share}; a share from 0 to 1 is accepted")
    if verdict(difference, low, high, margin) != "undecided":
        return None
    counts = []  # undecided means low <= 0 and margin < high: shrink until high <= margin, or until low > 0
    if difference < margin:
        counts.append(utterances * _times_the_data((margin - difference) / (high - difference), training_share))
    if difference > 0:  # the next number above, for low must pass 0
        count = utterances * _times_the_data(difference / (difference - low), training_share)
        counts.append(math.floor(count) + 1 if math.isfinite(count) else math.inf)
    fewest = min(counts, default=math.inf)
    return math.ceil(fewest) if math.isfinite(fewest) else None


def delta_m(errors: Mapping[str, float], reference_errors: Mapping[str, float]) -> float | None:
    """Mean relative gain over the tasks, (reference - error) / reference (Maninis et al., CVPR 2019, arXiv 1904.08918).

    One error a task by name, lower is better; above 0 is better than the single-task references, 0.1 is 10 percent.
    Never to be read alone: one task with a tiny reference rules the mean. None where a reference is 0.
    Raises ValueError where the tasks differ, none is given, or an error is negative or not finite.
    """
    if not errors or set(errors) != set(reference_errors):
        raise ValueError(f"errors of tasks {sorted(errors)}, references of {sorted(reference_errors)}; both must match")
    for name in errors:
        for error in (errors[name], reference_errors[name]):
            if not (math.isfinite(error) and error >= 0):
                raise ValueError(f"error of task '{name}': {error:g} found; finite, non-negative numbers only")
    if any(reference_errors[name] == 0 for name in errors):
        return None
    return sum(1 - errors[name] / reference_errors[name] for name in errors) / len(errors)


def _times_the_data(scale: float, training_share: float) -> float:
    """By how much the data must grow for the interval to shrink to `scale` of its width; inf where none suffices."""
    shrinking = scale**2 - training_share
    return (1 - training_share) / shrinking if shrinking > 0 else math.inf
