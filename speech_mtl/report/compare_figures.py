"""A comparison's facts -> its figures as SVG text: verdicts, fronts, branch points, blocks and learning curves.

Every function takes the facts, a `name` that keeps the ids of its figure apart from others' on the page, and what it
shows; it returns None where the facts hold nothing to draw. Errors are drawn in percent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from speech_mtl.report.compare_facts import Arm, Comparison, Interference, points, span
from speech_mtl.report.figures import ACCENT, CONTRAST, INK, LINE, MUTED, SERIES, panels, svg
from speech_mtl.report.front import pareto_front

ROW_IN = 0.27
"""Height of an arm's row in a forest plot."""
LOOKS = {"helps": (ACCENT, "o", ACCENT), "no worse": (ACCENT, "o", "none"), "harms": (CONTRAST, "X", CONTRAST),
         "undecided": (MUTED, "D", "none")}  # fmt: skip
"""Verdict -> colour, marker, fill: told apart without colour too."""
STYLES = ("-", "--", "-.", ":")
MARKERS = "osD^vP*X"
LOG_FROM = 20
"""A range of errors this wide is drawn on a logarithmic axis."""
LABEL_LIMIT = 28
LABEL_PLACES = ((7, 0), (-7, 0), (7, 9), (7, -9), (-7, 9), (-7, -9), (0, 12), (0, -12), (7, 19), (-7, 19), (7, -19))
"""Where a name may stand beside its point, in printer's points; the first is liked best."""


def forest(c: Comparison, task: str, set_name: str, name: str) -> str | None:
    """Difference to the reference with its interval, an arm a row, over the band of the margin."""
    rows = [(arm, found) for arm in c.arms if (found := arm.verdict(set_name, task)) and found.difference is not None]
    if not rows:
        return None
    figure, (axes,) = panels(9.2, 0.9 + ROW_IN * len(rows), 1)
    figure.set_layout_engine("none")  # one axes and long labels: saving crops to what is drawn
    limit = _forest_limit([found for arm, found in rows if arm.group != "control"] or [found for _, found in rows])
    for y, (_, found) in enumerate(rows):
        color, marker, fill = LOOKS[found.verdict]
        band = 100 * (found.margin or 0.0)
        axes.fill_betweenx([y - 0.5, y + 0.5], -band, band, color=MUTED, alpha=0.22, linewidth=0)
        middle = 100 * (found.difference or 0.0)
        if found.low is not None and found.high is not None:
            low, high = np.clip([100 * found.low, 100 * found.high], -limit, limit)
            axes.plot([low, high], [y, y], color=color, linewidth=1.6)
        if abs(middle) <= limit:
            axes.plot(middle, y, marker, color=color, markerfacecolor=fill, markersize=6)
        else:  # beyond the axis: an arrow head, the figure stands at the right
            axes.plot(math.copysign(limit, middle), y, ">" if middle > 0 else "<", color=color, markersize=7)
        text = f"{points(found.difference)} ({span(found)}) {found.verdict}"
        axes.text(1.02, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=INK)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set(xlim=(-1.04 * limit, 1.04 * limit), ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), [_short(arm.name) for arm, _ in rows])
    axes.set_xlabel(f"← better · {task}: difference in {c.metric(task, set_name)}, percentage points · worse →")
    axes.grid(axis="x", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    return _done(figure, name)


def _forest_limit(found: list[Any]) -> float:
    """Points up to which the axis reaches: most intervals fit, a single wild arm does not flatten the others."""
    reach = [100 * max(abs(v) for v in (f.difference, f.low, f.high, f.margin) if v is not None) for f in found]
    return max(min(max(reach), 4 * float(np.median(reach))), 1e-6)


def pareto(c: Comparison, set_name: str, name: str) -> str | None:
    """Two tasks' errors against each other, a panel a pair: the fixed weights with their front, methods beside them."""
    known = {
        kind: [arm for arm in arms if all(arm.error(set_name, task) is not None for task in c.tasks)]
        for kind, arms in (("fixed", c.fixed_weights()), ("method", c.methods()))
    }
    pairs = list(combinations(c.tasks, 2))
    if not pairs or len(known["fixed"]) + len(known["method"]) < 2:
        return None
    columns = min(2, len(pairs))
    figure, every = panels(9.2, 4.6 * -(-len(pairs) // columns), len(pairs), columns)
    for axes, pair in zip(every, pairs, strict=True):
        _front_line(axes, [[_percent(arm, set_name, task) for task in pair] for arm in known["fixed"]])
        labels = []
        for kind, color, marker, fill in (("fixed", ACCENT, "o", ACCENT), ("method", CONTRAST, "D", "none")):
            for arm in known[kind]:
                x, y = (_percent(arm, set_name, task) for task in pair)
                errors = [100 * (arm.score(set_name, task).std or 0.0) for task in pair]
                axes.errorbar(x, y, *errors[::-1], fmt="none", ecolor=MUTED, elinewidth=0.7)
                axes.plot(x, y, marker, color=color, markerfacecolor=fill, markersize=6.5, markeredgewidth=1.5)
                labels.append((x, y, _short(arm.name), color))
        axes.set_xlabel(f"{pair[0]}: {c.metric(pair[0], set_name)}, %")
        axes.set_ylabel(f"{pair[1]}: {c.metric(pair[1], set_name)}, %")
        axes.grid(color=LINE, linewidth=0.6)
        axes.margins(0.16)
        _place_labels(figure, axes, labels)
    return _done(figure, name)


def _front_line(axes: Any, fixed_N2: list[list[float]]) -> None:
    front = sorted(fixed_N2[i] for i in pareto_front(fixed_N2)) if fixed_N2 else []
    if front:
        axes.plot(*zip(*front, strict=True), color=ACCENT, linewidth=1.4)


def _place_labels(figure: Any, axes: Any, labels: list[tuple[float, float, str, str]]) -> None:
    """Names beside their points, each where it covers fewest other names and points."""
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    at = axes.transData.transform([(x, y) for x, y, *_ in labels])
    taken = [(px - 5, py - 5, px + 5, py + 5) for px, py in at]
    frame = axes.bbox
    for (x, y, text, color), (px, py) in zip(labels, at, strict=True):
        width, height = 4.6 * scale * len(text), 9 * scale
        best: tuple[float, Any, Any] | None = None
        for dx, dy in LABEL_PLACES:
            left = px + dx * scale - (width if dx < 0 else width / 2 if dx == 0 else 0)
            low = py + dy * scale - height / 2
            box = (left, low, left + width, low + height)
            cover = sum(_overlap(box, other) for other in taken) + 0.01 * abs(dy)
            cover += 50 * (max(0, frame.x0 - box[0]) + max(0, box[2] - frame.x1))
            if best is None or cover < best[0]:
                best = (cover, box, (dx, dy))
        assert best is not None
        taken.append(best[1])
        dx, dy = best[2]
        axes.annotate(
            text, (x, y), (dx, dy), textcoords="offset points", fontsize=7.5, color=color, va="center",
            ha="right" if dx < 0 else "left" if dx else "center",
        )  # fmt: skip


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def branch_sweep(c: Comparison, set_name: str, name: str) -> str | None:
    """Error by branch point, a panel a task: each seed, their mean, the task alone, and the proposed point."""
    sweep = [(branch, arm) for branch, arm in c.sweep() if arm.scores.get(set_name)]
    if len(sweep) < 2:
        return None
    columns = min(3, len(c.tasks))
    figure, every = panels(9.2, 3.1 * -(-len(c.tasks) // columns), len(c.tasks), columns)
    for axes, task in zip(every, c.tasks, strict=True):
        known = [(branch, arm.score(set_name, task)) for branch, arm in sweep if arm.error(set_name, task) is not None]
        for branch, score in known:
            seeds = [100 * value for value in score.per_seed.values() if value is not None]
            axes.plot([branch] * len(seeds), seeds, "o", color=ACCENT, alpha=0.45, markersize=4, markeredgewidth=0)
        if known:
            means = [100 * (score.mean or 0.0) for _, score in known]
            axes.plot([branch for branch, _ in known], means, "-o", color=ACCENT, markersize=6, label="mean over seeds")
        _alone_line(axes, c, task, set_name)
        if c.proposal:
            axes.axvline(
                c.proposal.branch, color=CONTRAST, linestyle="--", linewidth=1.4, label="proposed from conflict"
            )
        axes.set_title(task, fontsize=9)
        axes.set_xticks([branch for branch, _ in sweep])
        axes.set_xlabel("blocks shared (0: none)")
        axes.set_ylabel(f"{c.metric(task, set_name)}, %")
        axes.grid(axis="y", color=LINE, linewidth=0.6)
    _legend(figure, every, 3)
    return _done(figure, name)


def _alone_line(axes: Any, c: Comparison, task: str, set_name: str) -> None:
    alone = c.alone(task)
    score = alone.score(set_name, task) if alone else None
    if score and score.mean is not None:
        axes.axhline(100 * score.mean, color=INK, linestyle=":", linewidth=1.3, label="the task alone, ± its spread")
        if score.std is not None:
            low, high = 100 * (score.mean - score.std), 100 * (score.mean + score.std)
            axes.axhspan(low, high, color=MUTED, alpha=0.18, linewidth=0)


def curves(c: Comparison, name: str) -> str | None:
    """Dev error by epoch, a panel a task; the arms that matter most in colour, the rest thin and grey."""
    drawn = {arm: rows for arm, rows in c.curves.items() if rows}
    if not drawn:
        return None
    ranks = {"joint": 0, "single": 1, "transfer": 2, "method": 3}
    groups = {arm.name: arm.group for arm in c.arms}
    loud = sorted(drawn, key=lambda arm: ranks.get(groups.get(arm, ""), 9))[: len(SERIES)]
    looks = {arm: (SERIES[i], STYLES[i % len(STYLES)]) for i, arm in enumerate(loud)}
    columns = min(2, len(c.tasks))
    figure, every = panels(9.2, 3.4 * -(-len(c.tasks) // columns), len(c.tasks), columns)
    for axes, task in zip(every, c.tasks, strict=True):
        values = []
        for arm in sorted(drawn, key=lambda arm: arm in looks):
            pairs = [(row.get("epoch"), row.get(task)) for row in drawn[arm]]
            epochs = [epoch for epoch, error in pairs if epoch is not None and error is not None]
            errors = [100 * error for epoch, error in pairs if epoch is not None and error is not None]
            if errors:
                color, style = looks.get(arm, (MUTED, "-"))
                quiet = {"linewidth": 1.7} if arm in looks else {"linewidth": 0.7, "alpha": 0.5}
                handle = axes.plot(epochs, errors, style, color=color, **quiet)[0]
                handle.set_label(_label(arm) if arm in looks else "other arms")
                values += errors
        if values and min(values) > 0 and max(values) > LOG_FROM * min(values):
            axes.set_yscale("log")
            axes.tick_params(which="minor", colors=MUTED, labelcolor=INK, labelsize=8)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_title(task, fontsize=9)
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"dev {c.metric(task, 'dev')}, %")
        axes.grid(color=LINE, linewidth=0.6)
    _legend(figure, every, 4)
    return _done(figure, name)


def block_conflict(measured: list[Interference], name: str) -> str | None:
    """One arm's gradients by block, a line a pair of tasks: rho with its interval, conflict frequency, magnitudes."""
    figure, every = panels(9.2, 3.0, 3, 3)
    drawn = False
    for i, found in enumerate(measured):
        style = {"color": SERIES[i % 8], "marker": MARKERS[i % 8], "linestyle": STYLES[i % 4], "markersize": 5}
        label = _label(" and ".join(found.tasks))
        places = np.arange(len(found.blocks)) + 0.06 * (i - (len(measured) - 1) / 2)
        for axes, values, factor in ((every[0], found.rho_mean, 1), (every[1], found.conflict_frequency, 100),
                                     (every[2], found.magnitude_similarity, 1)):  # fmt: skip
            if any(value is not None for value in values):
                axes.plot(places[: len(values)], factor * np.array(values, dtype=float), label=label, **style)
                drawn = True
        for place, low, high in zip(places, found.rho_low, found.rho_high, strict=False):
            if low is not None and high is not None:
                every[0].plot([place, place], [low, high], color=SERIES[i % 8], linewidth=1.2)
    if not drawn:
        return None
    every[0].axhline(0, color=INK, linewidth=0.8)
    every[1].set_ylim(0, 100)
    every[2].set_ylim(0, 1.02)
    for axes, title in zip(every, ("rho (below 0: conflict)", "conflict frequency, % of steps",
                                   "magnitude similarity"), strict=True):  # fmt: skip
        axes.set_title(title, fontsize=9)
        if not axes.get_legend_handles_labels()[0]:
            axes.text(0.5, 0.6, "not measurable", transform=axes.transAxes, ha="center", color=MUTED)
        axes.set_xticks(
            range(len(measured[0].blocks)), [_short(b) for b in measured[0].blocks], rotation=35, ha="right"
        )
        axes.set_xlabel("block")
        axes.grid(axis="y", color=LINE, linewidth=0.6)
    longest = min(max(len(block) for block in measured[0].blocks), LABEL_LIMIT)
    _legend(figure, every, 3, below_in=0.55 + 0.04 * longest)
    return _done(figure, name)


def by_block(lines: list[tuple[str, list[float | None]]], title: str, name: str) -> str | None:
    """Values between 0 and 1 by block, a line each: CKA of two models, or a probe's accuracy."""
    lines = [(label, values) for label, values in lines if any(value is not None for value in values)]
    if not lines:
        return None
    figure, (axes,) = panels(4.8, 3.2, 1)
    figure.set_layout_engine("none")
    for i, (label, values) in enumerate(lines):
        handle = axes.plot(range(1, len(values) + 1), np.array(values, dtype=float), color=SERIES[i % 8],
                           marker=MARKERS[i % 8], linestyle=STYLES[i // 8 % 4], markersize=5)[0]  # fmt: skip
        handle.set_label(_label(label))
    axes.set_xticks(range(1, max(len(values) for _, values in lines) + 1))
    axes.set_xlabel("block")
    axes.set_ylabel(title)
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    _legend(figure, [axes], 1 if max(len(label) for label, _ in lines) > LABEL_LIMIT else 2)
    return _done(figure, name)


def _percent(arm: Arm, set_name: str, task: str) -> float:
    return 100 * (arm.error(set_name, task) or 0.0)


def _short(text: str) -> str:
    return text if len(text) <= LABEL_LIMIT else text[: LABEL_LIMIT - 1] + "…"


def _label(text: str) -> str:
    """A legend leaves out names that begin with an underscore; a space before it is not seen."""
    return f" {text}" if text.startswith("_") else text


def _legend(figure: Any, every: list[Any], columns: int, below_in: float = 0.5) -> None:
    """One legend for all panels, `below_in` inches below the lowest."""
    found: dict[str, Any] = {}
    for axes in every:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        low = min(axes.get_position().y0 for axes in every) - below_in / figure.get_figheight()
        figure.legend(
            list(found.values()), list(found), loc="upper center", bbox_to_anchor=(0.5, low), frameon=False, fontsize=8,
            labelcolor=INK, ncols=min(columns, len(found)),
        )  # fmt: skip


def _done(figure: Any, name: str) -> str:
    from matplotlib.text import Text

    for text in figure.findobj(Text):  # names are shown as they are: '$' starts no formula
        text.set_parse_math(False)
    for axes in figure.axes:
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set_fontsize(9)
    return svg(figure, name)
