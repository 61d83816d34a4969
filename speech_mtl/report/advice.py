"""A comparison -> advice in plain words, each sentence with the figures it rests on.

`advice(c)` takes the facts of compare.json and is a pure function of them. It says no more than the verdicts say:
'undecided' stays undecided. Where two arms were not tested against one another, it gives their means and says so.
Whether a weighting method helps is asked as Xin et al. (2022, arXiv 2209.11379) do: does it lie beyond what fixed
weights reach?
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from speech_mtl.report import percent
from speech_mtl.report.advice_cautions import cost_of_sharing, data, delta_m, limits, runs
from speech_mtl.report.advice_words import QUESTIONS, Advice, deciding, errors, evidence, figure
from speech_mtl.report.compare_facts import (
    GOOD,
    Arm,
    Comparison,
    Interference,
    Verdict,
    listed,
    points,
    signed,
    span,
    spread,
)  # fmt: skip
from speech_mtl.report.front import place_against_front

KEPT_GAIN = 0.5
"""The share of a gain that a control must keep for the gain to be explained by it."""


def advice(c: Comparison) -> list[Advice]:
    """All that can be said, in the order of QUESTIONS."""
    parts = (_together, _controls, _alternatives, _branch, _blocks, _weights, data, cost_of_sharing, runs,
             limits, delta_m)  # fmt: skip
    found = [item for part in parts for item in part(c)]
    return sorted(found, key=lambda item: list(QUESTIONS).index(item.topic))


def _together(c: Comparison) -> list[Advice]:
    joint = c.joint
    if joint is None:
        return [Advice("No arm learns all the tasks together, so whether they should be is not answered.",
                       (f"{len(c.arms)} arms",), "together")]  # fmt: skip
    by_task = {task: joint.verdict(c.home, task) for task in c.tasks}
    told = [_whole(c, joint, by_task)]
    for task, verdict in by_task.items():
        if verdict is None:
            text = f"{task}: no verdict, because {joint.name} or the arm it is compared with has no score here."
        else:
            text = f"{task}: {_verdict_words(c, task, verdict)}"
        told.append(Advice(text, evidence(c, joint, task), "together"))
    return told + _settings_that_do(c, joint)


def _verdict_words(c: Comparison, task: str, verdict: Verdict) -> str:
    name = c.metric(task, c.home)
    return {
        "helps": f"learning together helps; its {name} is lower than that of {verdict.against}.",
        "no worse": f"learning together is no worse than {verdict.against}, within the margin set beforehand.",
        "harms": f"learning together harms; its {name} is higher than that of {verdict.against}.",
        "undecided": "undecided. These data do not show whether learning together helps or harms; "
        f"{deciding(verdict)}.",
    }[verdict.verdict]


def _whole(c: Comparison, joint: Arm, by_task: dict[str, Verdict | None]) -> Advice:
    """The answer to the first question, from all tasks' verdicts."""
    words = {task: verdict.verdict if verdict else "no verdict" for task, verdict in by_task.items()}
    harmed = [task for task, word in words.items() if word == "harms"]
    open_tasks = [task for task, word in words.items() if word not in (*GOOD, "harms")]
    if harmed:
        text = f"Do not learn these tasks together as in {joint.name}: it harms {listed(harmed)}."
    elif open_tasks:
        text = f"Whether to learn these tasks together stays open: no decision for {listed(open_tasks)}."
    elif "helps" in words.values():
        helped = [task for task, word in words.items() if word == "helps"]
        text = f"Learn these tasks together: it helps {listed(helped)} and harms no task."
    else:
        text = "These tasks can be learnt together: each is no worse for it, and none is shown to be better."
    far = [(task, place, v.verdict) for place in c.abroad for task in c.tasks if (v := joint.verdict(place, task))]
    worse = [(task, place, word) for task, place, word in far if word == "harms" and words[task] != "harms"]
    if worse:
        text += " But " + listed([f"{place} it harms {task}" for task, place, _ in worse]) + "."
    told = [(task, c.home, word) for task, word in words.items()] + worse
    return Advice(text, tuple(f"{task}, {place}: {word}" for task, place, word in told), "together")


def _settings_that_do(c: Comparison, joint: Arm) -> list[Advice]:
    """Other shared settings that are good for every task, where the plain joint arm is not."""
    if c.good_everywhere(joint):
        return []
    shared = [arm for arm in c.arms if c.shares(arm) and arm is not joint]
    good = [arm for arm in shared if c.good_everywhere(arm)]
    found = [(arm.name, [f"{task} {arm.verdicts[c.home][task].verdict}" for task in c.tasks]) for arm in good[:4]]
    if good:
        names = listed([arm.name for arm in good[:4]]) + (f" and {len(good) - 4} more" if len(good) > 4 else "")
        text = (
            f"There are settings that share and are 'helps' or 'no worse' for every task: {names}. They were found "
            f"among {len(shared)} by these same test data, so confirm one on data not used here before relying on it."
        )
        return [Advice(text, tuple(f"{name}: {', '.join(words)}" for name, words in found), "together")]
    if not shared:
        return []
    text = f"None of the other {len(shared)} settings that share is 'helps' or 'no worse' for every task."
    return [Advice(text, (f"0 of {len(shared)} settings",), "together")]


def _controls(c: Comparison) -> list[Advice]:
    """What of a gain is left when another task's labels mean nothing."""
    joint = c.joint
    if joint is None:
        return []
    told = []
    for control in [arm for arm in c.arms if arm.group == "control" and arm.name.startswith("permuted ")]:
        permuted = control.name.removeprefix("permuted ")
        for task in c.tasks:
            gained = joint.verdict(c.home, task)
            kept = control.verdict(c.home, task)
            if task == permuted or gained is None or kept is None or gained.verdict != "helps":
                continue
            if not gained.difference or kept.difference is None:
                continue
            figures = (f"{joint.name}: difference {points(gained.difference)} points ({gained.verdict})",
                       f"{control.name}: difference {points(kept.difference)} points, {c.interval} {span(kept)} "
                       f"({kept.verdict})",
                       f"share of the gain kept: {100 * kept.difference / gained.difference:.0f} %")  # fmt: skip
            told.append(Advice(_control_words(task, permuted, gained.difference, kept), figures, "together"))
    return told


def _control_words(task: str, permuted: str, gained: float, kept: Verdict) -> str:
    """By the interval of what the control keeps of the gain: 'explained' and 'not explained' both need all of it."""
    least, most = (end if end is None else end / gained for end in (kept.high, kept.low))
    if least is None or most is None or least < KEPT_GAIN <= most:
        return (
            f"Whether the control explains the gain for {task} is undecided: with the {permuted} labels shuffled both "
            "less than half of it and at least half of it may be left."
        )
    if least >= KEPT_GAIN:
        return (
            f"The gain for {task} is explained by the control: with the {permuted} labels shuffled at least half of it "
            f"is still there. It is an effect of training with a second loss, not of what the {permuted} labels say."
        )
    if kept.verdict == "helps":
        return (
            f"Part of the gain for {task} is there with the {permuted} labels shuffled too; that part is not from "
            "what the labels say."
        )
    return f"The control does not explain the gain for {task}: with shuffled {permuted} labels less than half is left."


def _alternatives(c: Comparison) -> list[Advice]:
    """Transfer, the frozen encoder and small single models, where they reach what learning together reaches."""
    joint = c.joint
    told = []
    for arm in c.arms if joint else []:
        if arm.group not in ("transfer", "small"):
            continue
        for task in arm.tasks:
            if joint and task in c.tasks and not _untouched(c, arm, task) and _as_good(c, arm, joint, task):
                figures = (figure(c, arm, task), figure(c, joint, task), f"{joint.name}: {_word(c, joint, task)}",
                           f"{arm.name}: {_word(c, arm, task)}")  # fmt: skip
                told.append(Advice(_alternative_words(arm, joint, task), figures, "together"))
    return told


def _word(c: Comparison, arm: Arm, task: str) -> str:
    verdict = arm.verdict(c.home, task)
    return f"{verdict.verdict} against {verdict.against}" if verdict else "no verdict"


def _untouched(c: Comparison, arm: Arm, task: str) -> bool:
    """Whether a frozen arm has the task only because it was built on it: the same errors as alone, seed by seed."""
    alone = c.alone(task)
    mine = arm.score(c.home, task).per_seed
    return bool(arm.name.startswith("frozen") and alone and mine and mine == alone.score(c.home, task).per_seed)


def _as_good(c: Comparison, arm: Arm, joint: Arm, task: str) -> bool:
    """By the means, within the margin and the spreads over seeds, and not against the verdicts of the two."""
    mine, theirs = arm.error(c.home, task), joint.error(c.home, task)
    if mine is None or theirs is None or mine > theirs + max(theirs * c.margin, c.margin_points / 100):
        return False
    spreads = [one.score(c.home, task).std for one in (arm, joint)]
    if None not in spreads and mine - theirs > sum(spread for spread in spreads if spread is not None):
        return False
    verdicts = [found and found.verdict for found in (arm.verdict(c.home, task), joint.verdict(c.home, task))]
    if mine > theirs and verdicts[1] == "helps" != verdicts[0]:
        return False
    return not (verdicts[0] == "harms" != verdicts[1])


def _alternative_words(arm: Arm, joint: Arm, task: str) -> str:
    means = "by the means over seeds (the two were not tested against one another)"
    if arm.name.startswith("frozen"):
        return (
            f"A frozen encoder with a head for {task} ({arm.name}) comes within the margin of {joint.name} for {task}, "
            f"{means}; the task that it was trained for stays as it was."
        )
    if arm.group == "small":
        return (
            f"A smaller model for {task} alone ({arm.name}) comes within the margin of {joint.name} for {task}, "
            f"{means}; where this holds for every task, small models apart do what one shared does."
        )
    return (
        f"Transfer ({arm.name}) comes within the margin of {joint.name} for {task}, {means}: starting from the other "
        "task's encoder may do what learning both at once does."
    )


def _branch(c: Comparison) -> list[Advice]:
    told = _proposed(c)
    sweep = [(branch, arm) for branch, arm in c.sweep() if arm.scores.get(c.home)]
    if len(sweep) < 2:
        return told
    best = []
    for task in c.tasks:
        tried = [(error, branch) for branch, arm in sweep if (error := arm.error(c.home, task)) is not None]
        if tried:
            error, branch = min(tried)
            best.append(f"{task}: {percent(error)} at branch point {branch}, of {len(tried)} tried")
    good = [(branch, arm) for branch, arm in sweep if branch and c.good_everywhere(arm)]
    if good:
        branch, arm = good[-1]
        text = (
            f"The most that can be shared with every task 'helps' or 'no worse' is the first {branch} blocks "
            f"({arm.name}). The lowest mean error of a task may lie elsewhere; that is no verdict."
        )
        own = tuple(f"{task}: {_word(c, arm, task)}" for task in c.tasks)
        return [*told, Advice(text, own + tuple(best), "branch")]
    text = "No branch point above 0 was 'helps' or 'no worse' for every task; the lowest means are no verdict."
    return [*told, Advice(text, tuple(best) or (f"{len(sweep)} branch points",), "branch")]


def _proposed(c: Comparison) -> list[Advice]:
    proposal = c.proposal
    if proposal is None:
        return []
    where = f"to share blocks up to {proposal.branch}"
    why = f" ({proposal.why.rstrip('. ')})" if proposal.why else ""
    arms = [arm for item in proposal.tested if (arm := c.arm(item.arm))]
    if c.joint and arms and c.joint not in arms:
        arms.append(c.joint)
    figures = tuple(errors(c, arm) for arm in arms if arm.scores.get(c.home))
    text = {
        True: f"The measured conflict proposed {where}{why}, and training confirmed it.",
        False: f"The measured conflict proposed {where}{why}, but training refuted it: "
        "do not part there on that ground.",
        None: f"The measured conflict proposes {where}{why}; training has neither confirmed nor refuted it. "
        "Conflict is a suspicion, not a proof.",
    }[proposal.confirmed]
    return [Advice(text, figures or (f"proposed branch point {proposal.branch}",), "branch")]


def _blocks(c: Comparison) -> list[Advice]:
    """What gradients, likeness and probes say of the blocks; none of it is a verdict."""
    of_joint = [measured for measured in c.interference if c.joint and measured.arm == c.joint.name]
    told = [item for measured in of_joint or c.interference for item in _conflict(measured)]
    for likeness in c.cka:
        known = [(value, i + 1) for i, value in enumerate(likeness.blocks) if value is not None]
        singles = [c.arm(name) for name in (likeness.a, likeness.b)]
        if len(known) > 1 and all(arm and arm.group == "single" for arm in singles):
            low, high = min(known), max(known)
            text = f"Trained apart, {likeness.a} and {likeness.b} are least alike in block {low[1]}."
            figures = (f"CKA {low[0]:.2f} in block {low[1]}", f"CKA {high[0]:.2f} in block {high[1]}, the highest")
            told.append(Advice(text, figures, "branch"))
    for probe in c.probe:
        known = [(value, -i) for i, value in enumerate(probe.blocks) if value is not None]
        if len(known) > 1:
            value, place = max(known)
            text = f"What {probe.task} needs is easiest to read from block {1 - place} of {probe.arm}."
            best, last = (
                f"probe {percent(value)} right in block {1 - place}",
                f"{percent(known[-1][0])} in the last block",
            )
            told.append(Advice(text, (best, last), "branch"))
    return told


def _conflict(measured: Interference) -> list[Advice]:
    a, b = measured.tasks
    columns = zip_longest(measured.blocks, measured.rho_mean, measured.rho_low, measured.rho_high)
    known = [(block, mean, low, high) for block, mean, low, high in columns if block is not None and mean is not None]
    if not known:
        cosines = [value for row in measured.cosine for value in row if value is not None]
        if not cosines:
            return []
        text = (
            f"Whether the gradients of {a} and {b} conflict in {measured.arm} could not be measured above their noise; "
            "the plain cosine is no evidence for it or against it."
        )
        cosine = f"mean cosine {signed(sum(cosines) / len(cosines), '+.3f')}"
        return [Advice(text, (cosine, "rho measurable in 0 blocks"), "branch")]
    against = [row for row in known if row[3] is not None and row[3] < 0]
    figures = tuple(
        f"block {block}: rho {signed(mean)}"
        + (", no interval" if low is None or high is None else f" ({signed(low)} to {signed(high)})")
        for block, mean, low, high in (against or [min(known, key=lambda row: row[1])])
    )
    if all(row[3] is None for row in known):
        text = f"In {measured.arm} rho of {a} and {b} has no interval, so no block can be said to conflict or not."
    elif against:
        text = f"In {measured.arm} the gradients of {a} and {b} pull against each other in {_blocks_named(against)}."
    else:
        text = f"In {measured.arm} no block shows the gradients of {a} and {b} in conflict beyond noise."
    return [Advice(text, figures, "branch")]


def _blocks_named(rows: list[Any]) -> str:
    return f"block{'s' if len(rows) > 1 else ''} {listed([row[0] for row in rows])}"


def _weights(c: Comparison) -> list[Advice]:
    fixed = [arm for arm in c.fixed_weights() if all(arm.error(c.home, task) is not None for task in c.tasks)]
    told = []
    if len(fixed) > 1:
        best = []
        for task in c.tasks:
            arm = min(fixed, key=lambda arm: arm.error(c.home, task) or 0.0)
            best.append(f"{task}: {spread(arm.score(c.home, task))} with {arm.name}")
        good = [arm.name for arm in fixed if c.good_everywhere(arm)]
        text = f"None of the {len(fixed)} fixed weights is 'helps' or 'no worse' for every task."
        if good:
            verb = "is" if len(good) == 1 else "are"
            text = f"Of {len(fixed)} fixed weights, {listed(good)} {verb} 'helps' or 'no worse' for every task."
        told.append(Advice(text + " The lowest mean of each task:", tuple(best), "weights"))
    for method in c.methods():
        scores = [method.score(c.home, task) for task in c.tasks]
        if len(fixed) < 2 or any(score.mean is None for score in scores):
            text = (
                f"{method.name}: cannot be judged; a front of fixed weights, or a score to lay beside it, is lacking."
            )
            told.append(Advice(text, (f"{len(fixed)} settings of fixed weights with scores",), "weights"))
            continue
        place = place_against_front(
            [score.mean or 0.0 for score in scores], [score.std for score in scores],
            [[arm.error(c.home, task) or 0.0 for task in c.tasks] for arm in fixed],
            [[arm.score(c.home, task).std for task in c.tasks] for arm in fixed],
        )  # fmt: skip
        figures = (errors(c, method), f"front of {len(fixed)} settings of fixed weights")
        told.append(Advice(f"{method.name}: {PLACES[place]}", figures, "weights"))
    return told


PLACES = {
    "outside": "lies outside the front of the fixed weights by more than the spread over seeds: it helps.",
    "outside by less than the spread": "its mean lies outside the front of the fixed weights, but not by more than the "
    "spread over seeds (or that is unknown): undecided.",
    "on": "is one more compromise at the front of the fixed weights, not beyond it; fixed weights may do the same.",
    "inside": "does not help; it lies inside the front of the fixed weights (the lines between its points included).",
}
