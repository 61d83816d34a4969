"""compare.json -> compare.md, one self-contained compare.html, and a summary for the terminal.

Takes what `speech_mtl.compare` writes. The pages answer, in this order: should these tasks be learnt together, where
should they part, how should they be weighed? Imports no torch: a report can be written again anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from speech_mtl.report import ABSENT, markdown_rows, number, percent
from speech_mtl.report.advice import Advice, advice
from speech_mtl.report.advice_words import QUESTIONS, deciding
from speech_mtl.report.compare_facts import (
    GOOD,
    Arm,
    Comparison,
    Interference,
    facts,
    listed,
    points,
    read_compare,
    scientific,
    signed,
    span,
    spread,
)  # fmt: skip

MOST_TIMES = 48
"""Columns of a heat map; finer times are averaged."""


def write_comparison(folder: Path) -> Path:
    """Write compare.md and compare.html beside compare.json; returns the HTML's path.

    Raises FileNotFoundError where compare.json is missing, ValueError where it is broken or lacks a key.
    """
    folder = Path(folder)
    c = facts(read_compare(folder), str(folder / "compare.json"))
    told = advice(c)
    (folder / "compare.md").write_text(_markdown(c, told), encoding="utf-8")
    page = folder / "compare.html"
    page.write_text(_html(c, told), encoding="utf-8")
    return page


def terminal_summary(compare: dict[str, Any]) -> str:
    """Markdown for the terminal: the verdicts, every arm's in brief, a line of cost and the proposed branch point.

    Raises ValueError where the dictionary lacks a key or a value is of the wrong kind.
    """
    return _summary(facts(compare))


def _summary(c: Comparison) -> str:
    parts = [f"### {c.recipe}: learnt together or apart?", *_warnings(c)]
    if head := _headline_rows(c):
        parts.append(markdown_rows(["task", "set", "arm", "error", "against", "its error", "difference", c.interval,
                                    "margin", "verdict"], head))  # fmt: skip
    else:
        parts.append("No arm that learns all the tasks together has a verdict.")
    if rows := _brief_rows(c):
        parts.append(markdown_rows(["arm", *(f"{task}, {c.home}" for task in c.tasks), "Δm"], rows))
    parts.append("Differences, intervals and margins are in percentage points; below 0 the arm is better.")
    return "\n\n".join([*parts, f"Cost: {cost_line(c)}", f"Proposal: {proposal_line(c)}"])


def _warnings(c: Comparison) -> list[str]:
    told = []
    if not c.complete:
        told.append("**Not complete**: arms or seeds are missing; every verdict may still change.")
    if c.quick:
        told.append("**Quick form**: short training, a rehearsal and no evidence.")
    if failed := _failed(c):
        named = ", ".join(f"{arm} (seed {seed})" for arm, seed, _ in failed[:6]) + (" …" if len(failed) > 6 else "")
        told.append(f"**Failed runs: {len(failed)}**: {named}")
    return told


def _headline_rows(c: Comparison) -> list[list[str]]:
    """A row a task and set for the joint arm."""
    joint = c.joint
    rows = []
    for task in c.tasks:
        for place in c.sets:
            found = joint.verdict(place, task) if joint else None
            if joint and found:
                other = c.arm(found.against)
                theirs = spread(other.score(place, task)) if other else ABSENT
                rows.append([task, place, joint.name, spread(joint.score(place, task)), found.against, theirs,
                             points(found.difference), span(found), points(found.margin, sign=False),
                             found.verdict])  # fmt: skip
    return rows


def _brief_rows(c: Comparison) -> list[list[str]]:
    """Every arm's error in domain with its verdict, and Δm beside them."""
    rows = []
    for arm in c.arms:
        cells = []
        for task in c.tasks:
            found = arm.verdict(c.home, task)
            cells.append(spread(arm.score(c.home, task)) + (f" · {found.verdict}" if found else ""))
        rows.append([arm.name, *cells, _delta_m(arm, c.home)])
    return rows


def _delta_m(arm: Arm, place: str) -> str:
    value = arm.delta_m.get(place)
    return ABSENT if value is None else f"{signed(100 * value, '+.1f')} %"


def _failed(c: Comparison) -> list[tuple[str, str, str]]:
    """(arm, seed, reason) of every run that died."""
    return [(arm.name, seed, " ".join(why.split())) for arm in c.arms for seed, why in arm.failed.items()]


def cost_line(c: Comparison) -> str:
    """Time and parameters of one joint pass beside separate passes, in a sentence."""
    if c.cost is None:
        return "not measured"
    joint, apart = c.cost.joint, c.cost.apart
    return (
        f"one joint pass takes {percent(c.cost.time_ratio)} of the time of {len(apart.arms)} separate passes "
        f"(real-time factor {number(joint.rtf)} against {number(apart.rtf)}) and {percent(c.cost.parameter_ratio)} "
        f"of their parameters ({number(joint.parameters)} against {number(apart.parameters)})"
    )


def proposal_line(c: Comparison) -> str:
    if c.proposal is None:
        return "none; no branch point was proposed from the measured conflict"
    trained = any(point.branch == c.proposal.branch for point in c.proposal.tested)
    state = {
        True: "confirmed by training",
        False: "refuted by training",
        None: "neither confirmed nor refuted by training" if trained else "not yet tested by training",
    }
    why = f" {c.proposal.why.rstrip('. ')};" if c.proposal.why else ""
    return f"branch point {c.proposal.branch}:{why} {state[c.proposal.confirmed]}"


def _markdown(c: Comparison, told: list[Advice]) -> str:
    parts = [_summary(c), "## Advice"]
    for topic, question in QUESTIONS.items():
        if items := [item for item in told if item.topic == topic]:
            parts.append(f"### {question}")
            parts.append("\n".join(f"- {item.text} *({'; '.join(item.figures)})*" for item in items))
    parts.append("## The arms")
    for place in c.sets:
        parts.append(f"### Scores and verdicts, {place}")
        columns = [(f"{task}: {c.metric(task, place)}", "difference", "verdict") for task in c.tasks]
        header = ["arm", *(name for task_columns in columns for name in task_columns), "Δm"]
        parts.append(markdown_rows(header, [_score_row(c, arm, place) for arm in c.arms]))
    parts.append("### What each arm is")
    header = ["arm", "title", "shared blocks", "weights", "method", "examples", "parameters", "FLOPs per s of audio",
              "training FLOPs", "training min"]  # fmt: skip
    parts.append(markdown_rows(header, [_effort_row(arm) for arm in c.arms]))
    if c.cost:
        parts += ["## Cost of running", markdown_rows(["", "joint", "apart", "joint / apart"], _cost_rows(c))]
    if failed := _failed(c):
        parts += ["## Failed runs", markdown_rows(["arm", "seed", "reason"], [list(row) for row in failed])]
    parts += ["## How this was made", markdown_rows(["", ""], [list(row) for row in _made(c)])]
    return "\n\n".join(parts) + "\n"


def _score_row(c: Comparison, arm: Arm, place: str) -> list[str]:
    cells = [arm.name]
    for task in c.tasks:
        found = arm.verdict(place, task)
        cells.append(spread(arm.score(place, task)))
        cells += [f"{points(found.difference)} ({span(found)})", found.verdict] if found else [ABSENT, ABSENT]
    return [*cells, _delta_m(arm, place)]


def _effort_row(arm: Arm) -> list[str]:
    weights = ", ".join(f"{task}\u00a0{number(weight)}" for task, weight in arm.weights.items())
    examples = ", ".join(f"{task}\u00a0{number(count)}" for task, count in arm.examples.items())
    return [arm.name, arm.title or arm.name, number(arm.branch), weights or ABSENT, arm.method,
            examples or ABSENT, number(arm.parameters), scientific(arm.flops_per_s), scientific(arm.train_flops),
            number(arm.train_minutes)]  # fmt: skip


def _cost_rows(c: Comparison) -> list[list[str]]:
    assert c.cost is not None
    joint, apart = c.cost.joint, c.cost.apart
    rows = [["model", joint.arm or ABSENT, " + ".join(apart.arms) or ABSENT, ""]]
    given = {"parameters": c.cost.parameter_ratio, "rtf": c.cost.time_ratio}
    for key, label, shown in (("parameters", "parameters", number), ("flops_per_s", "FLOPs per s of audio", scientific),
                              ("rtf", "real-time factor", number), ("peak_mb", "peak memory, MB", number)):  # fmt: skip
        mine, theirs = getattr(joint, key), getattr(apart, key)
        ratio = given.get(key, mine / theirs if mine is not None and theirs else None)
        rows.append([label, shown(mine), shown(theirs), ABSENT if ratio is None else f"{ratio:.2f}"])
    return rows


def _made(c: Comparison) -> list[tuple[str, str]]:
    sets = "; ".join(
        f"{place}: {number(data.utterances)} utterances" + (f" ({', '.join(data.manifests)})" if data.manifests else "")
        for place, data in c.sets.items()
    )
    minutes = ABSENT if c.minutes is None else f"{number(c.minutes)} min"
    return [
        ("command", c.command or ABSENT), ("commit", c.commit or ABSENT), ("machine", c.machine or ABSENT),
        ("time", minutes), ("seeds", ", ".join(map(str, c.seeds))), ("test data", sets),
        ("margin, set beforehand", f"the larger of {percent(c.margin)} of the reference's error and "
                                   f"{c.margin_points:g} percentage points"),
        ("confidence", f"{100 * c.confidence:g} %"),
        ("statistics (A: the arm, B: its reference)", "; ".join(_statistics(c)) or ABSENT),
        ("measuring the conflict", ABSENT if c.overhead is None else f"{percent(c.overhead)} of training time"),
    ]  # fmt: skip


def _statistics(c: Comparison) -> list[str]:
    found = [v.test for arm in c.arms for tasks in arm.verdicts.values() for v in tasks.values() if v.test]
    return list(dict.fromkeys(found))


def _html(c: Comparison, told: list[Advice]) -> str:
    from speech_mtl.report.page import environment

    env = environment()
    env.filters |= {
        "points": points,
        "spread": spread,
        "span": span,
        "scientific": scientific,
        "deciding": deciding,
        "signed": signed,
    }
    joint = c.joint
    return env.get_template("compare.html.j2").render(
        c=c,
        joint=joint,
        names=listed(list(c.tasks)),
        delta_m=_delta_m,
        advice=[(question, [item for item in told if item.topic == topic]) for topic, question in QUESTIONS.items()],
        figures=_figures(c),
        heats=[_heat(found) for found in c.interference if found.epochs],
        apart=_contrasts(c),
        failed=_failed(c),
        cost_rows=_cost_rows(c) if c.cost else [],
        made=_made(c),
        effort=[_effort_row(arm) for arm in c.arms],
        cost_line=cost_line(c),
        proposal_line=proposal_line(c),
    )  # fmt: skip


def _figures(c: Comparison) -> dict[str, list[tuple[str, Any]]]:
    """Section -> (caption's subject, figure); a section without anything to draw is an empty list."""
    from speech_mtl.report import compare_figures as draw

    sets, tasks = list(enumerate(c.sets)), list(enumerate(c.tasks))
    arms = dict.fromkeys(found.arm for found in c.interference)
    cka = [(f"{found.a} – {found.b}", found.blocks) for found in c.cka]
    probe = [(f"{found.task} from {found.arm}", found.blocks) for found in c.probe]
    return {
        "forest": _drawn(
            (f"{task}, {place}", draw.forest(c, task, place, f"forest-{i}-{k}"))
            for i, task in tasks for k, place in sets
        ),
        "pareto": _drawn((place, draw.pareto(c, place, f"pareto-{k}")) for k, place in sets),
        "sweep": _drawn((place, draw.branch_sweep(c, place, f"sweep-{k}")) for k, place in sets),
        "curves": _drawn([("learning curves", draw.curves(c, "curves"))]),
        "blocks": _drawn(
            (arm, draw.block_conflict([found for found in c.interference if found.arm == arm], f"blocks-{i}"))
            for i, arm in enumerate(arms)
        ),
        "inside": _drawn([("likeness", draw.by_block(cka, "CKA (1: alike)", "cka")),
                          ("probe", draw.by_block(probe, "probe, share right", "probe"))]),
    }  # fmt: skip


def _drawn(figures: Iterable[tuple[str, str | None]]) -> list[tuple[str, Any]]:
    from markupsafe import Markup

    return [(subject, Markup(figure)) for subject, figure in figures if figure is not None]


def _contrasts(c: Comparison) -> list[tuple[Arm, list[tuple[str, bool]]]]:
    """(arm, a verdict per task and set, 'contradicts' where a set says 'harms' and another one of GOOD)."""
    rows = []
    for arm in c.arms:
        cells = []
        for task in c.tasks:
            words = [found.verdict if (found := arm.verdict(place, task)) else ABSENT for place in c.sets]
            contradicts = "harms" in words and bool({*GOOD} & {*words})
            cells += [(word, contradicts) for word in words]
        if len(c.sets) > 1 and any(word != ABSENT for word, _ in cells):
            rows.append((arm, cells))
    return rows


def _heat(found: Interference) -> dict[str, Any]:
    """A heat map's cells: rho where it could be measured, else the plain cosine, marked as such."""
    times = len(found.epochs)
    step = -(-times // MOST_TIMES)
    starts = range(0, times, step)
    rows = []
    for i, block in enumerate(found.blocks):
        rho = found.rho[i] if i < len(found.rho) else []
        cosine = found.cosine[i] if i < len(found.cosine) else []
        cells = []
        for start in starts:
            measured = _mean(rho[start : start + step])
            value = _mean(cosine[start : start + step]) if measured is None else measured
            cells.append({"value": value, "kind": "rho" if measured is not None else "cosine"})
        rows.append((block, cells))
    return {"found": found, "rows": rows, "epochs": [found.epochs[start] for start in starts], "step": step}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
