"""An evaluation as Markdown for the terminal, and as report.md and one self-contained report.html for people.

Takes summary.json and utterances.jsonl as `speech_mtl.evaluate` writes them. Imports no torch: a report can be written
again on a machine that could not run the model. Figures, templates and alignment are imported where they are used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from speech_mtl.report.collect import kind_of_scores

ABSENT = "–"


def percent(rate: float | None) -> str:
    return ABSENT if rate is None else f"{100 * rate:.2f} %"


def number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def task_scores(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The parts of a summary that are a task's scores."""
    return {name: part for name, part in summary.items() if isinstance(part, dict) and name != "cost"}


def score_table(scores: dict[str, Any]) -> list[tuple[str, str]]:
    """(column, value) of one task's scores, in the words a person uses; what the summary lacks is left out."""
    shown: list[tuple[str, str]] = []
    if kind_of_scores(scores) == "asr":
        shown += [("word error rate", percent(scores["wer"])), ("character error rate", percent(scores.get("cer")))]
        shown += [(name, number(scores[name])) for name in ("words", "substitutions", "deletions", "insertions")]
        return shown
    if "accuracy" in scores:
        shown += [("accuracy", percent(scores["accuracy"])), ("utterances", number(scores["utterances"]))]
    if kind_of_scores(scores) == "classify" and scores.get("unknown_utterances"):
        shown += [("utterances of unknown classes", number(scores["unknown_utterances"]))]
    if kind_of_scores(scores) == "speaker":
        shown += [("known speakers", number(scores.get("speakers")))]
        if scores.get("unknown_utterances"):
            shown += [("utterances of unknown speakers", number(scores["unknown_utterances"]))]
        if "eer" in scores:
            shown += [("equal error rate", percent(scores["eer"])), ("threshold", number(scores["eer_threshold"]))]
            shown += [("minDCF", number(scores["min_dcf"]))]
        shown += [("trials", number(scores["trials"]))]
    return shown


def help_lines(scores: dict[str, Any]) -> list[str]:
    """A sentence on what a language model and hot words were each worth, where they were used and scored."""
    lines = []
    for name, effect in scores.get("without", {}).items():
        difference, low, high = (f"{100 * effect[end]:+.2f}" for end in ("difference", "low", "high"))
        interval = f"{difference} points with it, 95 % interval {low} to {high}"
        lines.append(f"{name}: word error rate {percent(effect['wer'])} without it; {interval}")
    return lines


def cost_table(summary: dict[str, Any]) -> list[tuple[str, str]]:
    cost = summary.get("cost", {})
    return [
        ("utterances", number(summary.get("utterances"))),
        ("failed", number(summary.get("failed"))),
        ("audio, s", f"{cost.get('audio_s', 0):,.1f}"),
        ("real-time factor", number(cost.get("rtf"))),
        ("parameters", number(cost.get("parameters"))),
    ]


def task_title(name: str, scores: dict[str, Any]) -> str:
    """Such as 'asr: what was said'."""
    kind = kind_of_scores(scores)
    if kind == "speaker":
        enrolled = scores.get("mode") == "enrolled"
        return f"{name}: who said it ({'enrolled speakers' if enrolled else 'speakers known from training'})"
    return f"{name}: what was said" if kind == "asr" else f"{name}: which class"


def terminal_markdown(summary: dict[str, Any]) -> str:
    """A section per task and one for the cost, each a small table whose columns line up in a terminal."""
    sections = []
    for name, scores in task_scores(summary).items():
        sections.append(f"### {task_title(name, scores)}")
        if table := score_table(scores):
            sections.append(markdown_table(table))
        sections += help_lines(scores)
    if not sections:
        sections = ["### no task was scored: no utterance carries a label"]
    return "\n\n".join([*sections, "### data and cost", markdown_table(cost_table(summary))])


def markdown_table(columns: list[tuple[str, str]]) -> str:
    """One line of values under their names."""
    return markdown_rows([name for name, _ in columns], [[value for _, value in columns]])


def markdown_rows(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, padded; '|' inside a cell is escaped."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def write_report(eval_dir: Path) -> Path:
    """Write report.md and report.html beside the results; returns the HTML's path.

    Raises FileNotFoundError where summary.json or utterances.jsonl is missing, ValueError for a line that is no row.
    """
    from speech_mtl.report.collect import collect
    from speech_mtl.report.page import render_html, render_markdown

    eval_dir = Path(eval_dir)
    evidence = collect(eval_dir)
    (eval_dir / "report.md").write_text(render_markdown(evidence), encoding="utf-8")
    page = eval_dir / "report.html"
    page.write_text(render_html(evidence, eval_dir), encoding="utf-8")
    return page
