"""Advice on the data, the cost and the limits of a comparison: what it cannot show, and where its figures mislead."""

from __future__ import annotations

from speech_mtl.report import number, percent
from speech_mtl.report.advice_words import Advice, deciding, evidence, figure
from speech_mtl.report.compare_facts import GOOD, Arm, Comparison, listed, scientific, signed

NEAR_ZERO = 0.01
"""Below this error of a baseline, a relative measure such as Δm turns small differences into large percentages."""
IMBALANCE = 3
"""From this ratio of labelled examples on, one task's data outweigh another's."""
FEW_SEEDS = 3


def data(c: Comparison) -> list[Advice]:
    told = []
    examples = {task: n for task, n in (c.joint.examples if c.joint else {}).items() if n}
    if len(examples) > 1 and max(examples.values()) >= IMBALANCE * min(examples.values()):
        few, many = min(examples, key=lambda t: examples[t] or 0), max(examples, key=lambda t: examples[t] or 0)
        ratio = (examples[many] or 0) / (examples[few] or 1)
        text = f"The labelled data are out of balance: {many} has {ratio:.1f} times the examples of {few}."
        told.append(Advice(text, tuple(f"{task}: {n:,} labelled examples" for task, n in examples.items()), "data"))
    verdicts = [(arm, task, found) for arm in c.arms for task, found in arm.verdicts.get(c.home, {}).items()]
    undecided = [item for item in verdicts if item[2].verdict == "undecided"]
    if undecided:
        needed = [(n, arm.name, task) for arm, task, found in undecided if (n := found.needed_utterances)]
        text = f"{len(undecided)} of {len(verdicts)} verdicts {c.home} are undecided"
        figures = [f"{c.home}: {number(c.sets[c.home].utterances)} test utterances"]
        if needed:
            text += f"; {max(needed)[0]:,} test utterances would decide {len(needed)} of them"
            figures += [f"{task}, {name}: {n:,} needed" for n, name, task in sorted(needed)[-3:]]
        if seeds := len(undecided) - len(needed):
            text += f"; {seeds} of them only more seeds may decide"
        told.append(Advice(f"{text}.", tuple(figures), "data"))
    return told


def cost_of_sharing(c: Comparison) -> list[Advice]:
    told = []
    cost = c.cost
    if cost and cost.time_ratio is not None:
        saves = cost.time_ratio < 1
        text = f"One joint pass takes {percent(cost.time_ratio)} of the time of separate passes over the same audio"
        text += "." if saves else ": it saves no time."
        rtf = f"real-time factor {number(cost.joint.rtf)} joint, {number(cost.apart.rtf)} apart"
        told.append(Advice(text, (f"time ratio {number(cost.time_ratio)}", rtf), "cost"))
    if cost and cost.parameter_ratio is not None:
        text = f"The joint model has {percent(cost.parameter_ratio)} of the parameters of the separate models together."
        figures = (f"parameters {number(cost.joint.parameters)} joint, {number(cost.apart.parameters)} apart",)
        told.append(Advice(text, figures, "cost"))
    singles = [arm for task in c.tasks if (arm := c.alone(task))]
    if c.joint and c.joint.train_flops and len(singles) == len(c.tasks) and all(arm.train_flops for arm in singles):
        apart = sum(arm.train_flops or 0.0 for arm in singles)
        ratio = c.joint.train_flops / apart
        text = f"Training once together took {ratio:.2f} times the computing of training each task alone."
        flops = f"training FLOPs {scientific(c.joint.train_flops)} joint, {scientific(apart)} for {len(singles)} models"
        told.append(Advice(text, (flops,), "cost"))
    if c.overhead is not None:
        text = "Measuring the conflict while training added to the time."
        told.append(Advice(text, (f"{percent(c.overhead)} of training time",), "cost"))
    return told


def runs(c: Comparison) -> list[Advice]:
    told = []
    if not c.complete:
        text = "The comparison is not complete: arms or seeds are missing, and every verdict may still change."
        scored = sum(bool(arm.scores) for arm in c.arms)
        told.append(Advice(text, (f"{scored} of {len(c.arms)} arms have scores",), "caution"))
    if c.quick:
        text = "This is the quick form, with short training: take it as a rehearsal, not as evidence."
        minutes = "" if c.minutes is None else f" in {number(c.minutes)} minutes"
        told.append(Advice(text, (f"{len(c.arms)} arms{minutes}",), "caution"))
    failed = [(arm.name, seed) for arm in c.arms for seed in arm.failed]
    if failed:
        runs_failed = "1 run" if len(failed) == 1 else f"{len(failed)} runs"
        text = f"{runs_failed} failed; the figures of those arms rest on fewer seeds."
        told.append(Advice(text, tuple(f"{name}, seed {seed}" for name, seed in failed[:6]), "caution"))
    if len(c.seeds) < FEW_SEEDS:
        text = f"With fewer than {FEW_SEEDS} seeds, luck of the start cannot be told from the effect of an arm."
        told.append(Advice(text, (f"seeds: {listed(list(map(str, c.seeds)))}",), "caution"))
    same = [arm.name for arm in c.arms if _seeds_do_nothing(arm)]
    if same:
        text = "Different seeds gave exactly the same errors, on every task and set; the seeds may not have been used."
        told.append(Advice(text, tuple(same[:6]), "caution"))
    return told


def _seeds_do_nothing(arm: Arm) -> bool:
    """Two or more seeds with the same non-zero errors everywhere."""
    scores = [score.per_seed for tasks in arm.scores.values() for score in tasks.values() if len(score.per_seed) > 1]
    some_error = any(value for per_seed in scores for value in per_seed.values())
    return some_error and all(len(set(per_seed.values())) == 1 for per_seed in scores)


def limits(c: Comparison) -> list[Advice]:
    told = []
    if c.joint and not c.abroad:
        text = "Only one set was tested; nothing here shows how the arms do on recordings of another kind."
        told.append(Advice(text, (f"{c.home}: {number(c.sets[c.home].utterances)} utterances",), "caution"))
    for arm in [arm for arm in c.arms if c.shares(arm)]:
        for set_name in c.abroad:
            told += [item for task in c.tasks if (item := _contradiction(c, arm, task, set_name))]
    verdicts = sum(len(tasks) for arm in c.arms for tasks in arm.verdicts.values())
    chance = verdicts * (1 - c.confidence)
    if chance >= 1:
        text = (
            f"Were all arms equal, up to about {chance:.0f} of these verdicts would still be 'helps' or 'harms' by "
            "chance; a single one among many is no proof."
        )
        figures = (f"{verdicts} verdicts at {100 * c.confidence:g} % confidence",)
        told.append(Advice(text, figures, "caution"))
    return told


def _contradiction(c: Comparison, arm: Arm, task: str, set_name: str) -> Advice | None:
    near, far = arm.verdict(c.home, task), arm.verdict(set_name, task)
    if near is None or far is None:
        return None
    figures = evidence(c, arm, task) + evidence(c, arm, task, set_name)
    if (near.verdict in GOOD and far.verdict == "harms") or (near.verdict == "harms" and far.verdict in GOOD):
        text = (f"{task}, {arm.name}: {set_name} contradicts {c.home} ('{far.verdict}' there, '{near.verdict}' here). "
                f"The verdict {c.home} holds for such recordings only.")  # fmt: skip
        return Advice(text, figures, "caution")
    if arm is c.joint and near.verdict in GOOD and far.verdict == "undecided":
        text = f"{task}, {arm.name}: '{near.verdict}' {c.home}, undecided {set_name}; there, {deciding(far)}."
        return Advice(text, figures, "caution")
    return None


def delta_m(c: Comparison) -> list[Advice]:
    return [item for set_name in c.sets if c.joint for item in _delta_m_of(c, c.joint, set_name)]


def _delta_m_of(c: Comparison, joint: Arm, set_name: str) -> list[Advice]:
    """Where the mean of relative gains hides what the tasks' own figures show."""
    gain = joint.delta_m.get(set_name)
    if gain is None:
        return []
    told = []
    mean_gain = f"Δm of {joint.name}, {set_name}: {signed(100 * gain, '+.1f')} %"
    for task in c.tasks:
        alone, verdict = c.alone(task), joint.verdict(set_name, task)
        base = alone.error(set_name, task) if alone else None
        if alone and base is not None and base < NEAR_ZERO:
            text = (f"Δm misleads {set_name}: {task} alone errs so seldom that a small difference in points is a large "
                    "percentage. Read the points instead.")  # fmt: skip
            told.append(Advice(text, (mean_gain, figure(c, alone, task, set_name)), "caution"))
        elif gain > 0 and verdict and verdict.verdict == "harms":
            text = f"Δm is above zero {set_name} although {task} is harmed: one task's gain covers another's loss."
            told.append(Advice(text, (mean_gain, *evidence(c, joint, task, set_name)), "caution"))
    return told
