"""One piece of advice, and the figures it rests on told as text with the numbers of compare.json."""

from __future__ import annotations

from dataclasses import dataclass

from speech_mtl.report.compare_facts import Arm, Comparison, Verdict, points, span, spread

QUESTIONS = {
    "together": "Should these tasks be learnt together?",
    "branch": "Where should they part?",
    "weights": "How should they be weighed?",
    "cost": "What does it cost?",
    "data": "Are the data enough?",
    "caution": "What to beware of",
}
"""What advice answers, in the order of the report."""


@dataclass(frozen=True)
class Advice:
    """A sentence or two, and the figures from compare.json that it rests on; topic is a key of QUESTIONS."""

    text: str
    figures: tuple[str, ...]
    topic: str


def figure(c: Comparison, arm: Arm, task: str, set_name: str | None = None) -> str:
    """Such as 'asr, in domain: joint 1.20 ± 0.10 %'."""
    place = set_name or c.home
    return f"{task}, {place}: {arm.name} {spread(arm.score(place, task))}"


def errors(c: Comparison, arm: Arm) -> str:
    """Such as 'joint, in domain: asr 1.20 ± 0.10 %, speaker 2.00 ± 0.10 %'."""
    return f"{arm.name}, {c.home}: " + ", ".join(f"{task} {spread(arm.score(c.home, task))}" for task in c.tasks)


def evidence(c: Comparison, arm: Arm, task: str, set_name: str | None = None) -> tuple[str, ...]:
    """The errors a verdict compares, and its difference, interval and margin in percentage points."""
    place = set_name or c.home
    verdict = arm.verdict(place, task)
    if verdict is None:
        return (figure(c, arm, task, place),)
    reference = c.arm(verdict.against)
    against = f" against {verdict.against}" + (f" {spread(reference.score(place, task))}" if reference else "")
    told = f"difference {points(verdict.difference)} points, {c.interval} {span(verdict)}"
    return figure(c, arm, task, place) + against, f"{told}, margin {points(verdict.margin, sign=False)}"


def deciding(verdict: Verdict) -> str:
    if verdict.needed_utterances is None:  # see verdicts.utterances_needed
        return "more test utterances alone would not decide, more seeds may"
    of_speakers = f" of {verdict.needed_speakers:,} speakers" if verdict.needed_speakers else ""
    return f"about {verdict.needed_utterances:,} test utterances{of_speakers} would decide"
