"""Pareto fronts of error rates: which settings no other beats, and where a further one lies against them.

Takes points (N settings, K tasks), lower is better. A method helps only if it lies beyond what fixed weights reach
(Kurin et al. 2022, arXiv 2201.04122; Xin et al. 2022, arXiv 2209.11379). The front is taken with the straight lines
(for K > 2 the planes) between its points, so that a sweep of few weights is not beaten in the gaps between them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TOLERANCE = 1e-9
"""Of the widest gap: what the solver may leave of a zero."""


def pareto_front(points_NK: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points that no other equals or beats in every task and beats in one; of equal points, all."""
    points = np.asarray(points_NK, dtype=float)
    return [
        i
        for i, point in enumerate(points)
        if not any((other <= point).all() and (other < point).any() for other in points)
    ]


def place_against_front(
    point_K: Sequence[float],
    std_K: Sequence[float | None],
    fixed_NK: Sequence[Sequence[float]],
    fixed_std_NK: Sequence[Sequence[float | None]],
) -> str:
    """Where a method lies: 'outside', 'outside by less than the spread', 'on' or 'inside'.

    inside: some mix of fixed settings is as good or better in every task. outside: no mix is, and it beats some mix in
    every task. on: neither, a compromise further out than the fixed settings reach. The spread is both sides' standard
    deviation over seeds, the fixed settings' the largest on the front; where one is unknown, nothing is 'outside'.
    """
    front = pareto_front(fixed_NK)
    fixed = np.asarray(fixed_NK, dtype=float)[front]
    point = np.asarray(point_K, dtype=float)
    if _worst_excess(fixed, point) <= 0:
        return "inside"
    if _best_lead(fixed, point) <= 0:
        return "on"
    stds = [fixed_std_NK[i] for i in front]
    if any(std is None for row in (std_K, *stds) for std in row):
        return "outside by less than the spread"
    spread = np.hypot(np.asarray(std_K, dtype=float), np.asarray(stds, dtype=float).max(axis=0))
    return "outside" if _worst_excess(fixed, point + spread) > 0 else "outside by less than the spread"


def _worst_excess(fixed_NK: np.ndarray, point_K: np.ndarray) -> float:
    """The least t such that a mix of the fixed settings is at most t above the point in every task."""
    return _extreme(fixed_NK - point_K)


def _best_lead(fixed_NK: np.ndarray, point_K: np.ndarray) -> float:
    """The greatest t such that a mix of the fixed settings is at least t above the point in every task."""
    return -_extreme(point_K - fixed_NK)


def _extreme(gap_NK: np.ndarray) -> float:
    """min over mixes w (w >= 0, sum 1) of the largest entry of w @ gap: a linear programme in (w, t)."""
    from scipy.optimize import linprog

    count, tasks = gap_NK.shape
    scale = np.abs(gap_NK).max() or 1.0  # the solver's tolerances are absolute
    upper = np.hstack([gap_NK.T / scale, -np.ones((tasks, 1))])
    found = linprog(
        np.r_[np.zeros(count), 1.0], A_ub=upper, b_ub=np.zeros(tasks), A_eq=np.r_[np.ones(count), 0.0][None],
        b_eq=[1.0], bounds=[(0, None)] * count + [(None, None)],
    )  # fmt: skip
    return 0.0 if abs(found.fun) < TOLERANCE else float(found.fun * scale)
