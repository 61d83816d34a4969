"""Evidence -> the text of report.md and report.html. The words are in report.html.j2, the looks in base.html.j2."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from speech_mtl.metrics import word_error_count
from speech_mtl.report import (
    cost_table,
    figures,
    help_lines,
    markdown_rows,
    number,
    percent,
    score_table,
    task_scores,
    task_title,
    terminal_markdown,
)  # fmt: skip
from speech_mtl.report.collect import (
    MARKS,
    Evidence,
    Tally,
    align,
    by_duration,
    by_speaker,
    confused_words,
    confusion,
    example_row,
    kind_of_scores,
    worst,
)  # fmt: skip
from speech_mtl.speakers import is_unknown

TABLE_LIMIT = 40


def environment() -> Environment:
    """Templates beside this file. Everything a template prints is escaped unless it is Markup."""
    env = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    env.filters |= {"percent": percent, "number": number, "times": _times}
    env.tests["unknown"] = is_unknown
    env.globals |= {"marks": MARKS}
    return env


def _times(rtf: float) -> str:
    """How many times as fast as the sound plays, or as slow."""
    return f"{max(rtf, 1 / rtf):.{0 if rtf < 0.1 else 1}f}"


def render_html(evidence: Evidence, eval_dir: Path) -> str:
    eval_dir = eval_dir.resolve()
    tasks = [_task_view(evidence, name, scores) for name, scores in task_scores(evidence.summary).items()]
    speakers = by_speaker(evidence)
    return environment().get_template("report.html.j2").render(
        title=" / ".join(eval_dir.parts[-2:]),
        tasks=tasks,
        unscored=[name for name in evidence.kinds if name not in task_scores(evidence.summary)],
        summary=evidence.summary,
        cost=cost_table(evidence.summary),
        speakers=speakers[:TABLE_LIMIT],
        more_speakers=speakers[TABLE_LIMIT:],
        durations=by_duration(evidence),
        example=_example(evidence, eval_dir),
        failed=evidence.failed,
    )  # fmt: skip


def _task_view(evidence: Evidence, name: str, scores: dict[str, Any]) -> dict[str, Any]:
    kind = kind_of_scores(scores)
    view: dict[str, Any] = {
        "name": name, "kind": kind, "title": task_title(name, scores), "scores": scores, "table": score_table(scores),
        "helps": help_lines(scores),
        "utterances": len(evidence.labelled(name)),
        "unlabelled": sum(not {"ref", "unknown"} & row.get(name, {}).keys() for row in evidence.rows),
    }  # fmt: skip
    if kind == "asr":
        errors = [row[name]["errors"] for row in evidence.labelled(name)]
        view["wrong"] = sum(scores[part] for part in ("substitutions", "deletions", "insertions"))
        view["faultless"] = sum(not word_error_count(counts) for counts in errors)
        view["worst"] = [
            {"row": row, "errors": word_error_count(row[name]["errors"]), "words": row[name]["errors"]["words"],
             "pairs": align(row[name]["ref"], row[name]["hyp"]), "speaker": _speaker(evidence, row)}
            for row in worst(evidence, name)
        ]  # fmt: skip
        view["confused"] = confused_words(evidence, name)
        return view
    view["confusion"] = confusion(evidence, name)
    if kind == "speaker":
        view |= _score_figures(evidence, name, scores)
    return view


def _score_figures(evidence: Evidence, name: str, scores: dict[str, Any]) -> dict[str, Any]:
    trials = evidence.trials.get(name)
    if trials is None:
        return {"histogram": None, "det": None, "targets": 0}
    target, other = np.array(trials.target), np.array(trials.other)
    histogram = figures.score_histogram(target, other, scores.get("eer_threshold"))
    det = figures.det_curve(target, other) if scores.get("eer") else None  # without an error there is no curve
    return {"histogram": Markup(histogram), "det": Markup(det) if det else None, "targets": len(target)}


def _speaker(evidence: Evidence, row: dict[str, Any]) -> str | None:
    return row.get(evidence.first("speaker") or "", {}).get("ref")


def _example(evidence: Evidence, eval_dir: Path) -> dict[str, Any] | None:
    """A typical utterance as a figure; 'reason' says why there is none."""
    row = example_row(evidence, eval_dir / "utterances.jsonl")
    if row is None:
        return None
    recognised = row.get(evidence.first("asr") or "", {})
    example = {"row": row, "asr": recognised, "speaker": row.get(evidence.first("speaker") or "", {})}
    if row.get("altered"):
        reason = "what was recognised is not the file as it is, but mixed, changed, or one of its channels"
        return example | {"figure": None, "reason": reason}
    try:
        samples, rate = figures.read_audio(Path(row["audio"]), row["start_s"], row["duration_s"])
    except (OSError, RuntimeError) as error:
        return example | {"figure": None, "reason": f"the sound cannot be read: {error}"}
    return example | {"figure": Markup(figures.spectrogram(samples, rate, recognised.get("words", [])))}


def render_markdown(evidence: Evidence) -> str:
    """What the terminal shows, then the speakers, the lengths, the worst utterances and the failed ones."""
    parts = [terminal_markdown(evidence.summary)]
    for heading, tallies in (("By speaker", by_speaker(evidence)), ("By length", by_duration(evidence))):
        if tallies:
            parts.append(f"### {heading}\n\n" + _tally_table(tallies))
    for name, scores in task_scores(evidence.summary).items():
        if kind_of_scores(scores) == "asr" and (rows := worst(evidence, name, limit=10)):
            parts.append(f"### {name}: the utterances with most wrong words (≠ another word, − missed, + added)")
            parts += [f"`{row['id']}`\n\n{_plain_alignment(row[name]['ref'], row[name]['hyp'])}" for row in rows]
    if evidence.failed:
        parts.append(f"### {len(evidence.failed)} utterances failed")
        parts.append(markdown_rows(["utterance", "reason"], [list(item) for item in evidence.failed]))
    return "\n\n".join(parts) + "\n"


def _tally_table(tallies: list[Tally]) -> str:
    header = ["", "utterances", "words", "wrong", "WER", "named rightly", "of"]
    return markdown_rows(header, [
        [t.label, str(t.utterances), str(t.words), str(t.errors), percent(t.wer), str(t.right), str(t.named)]
        for t in tallies
    ])  # fmt: skip


def _plain_alignment(reference: str, hypothesis: str) -> str:
    """Three lines as a Markdown code block: reference, hypothesis, marks."""
    lines = ["    said:  ", "    heard: ", "           "]
    for pair in align(reference, hypothesis):
        cells = [pair.reference or "·", pair.hypothesis or "·", MARKS[pair.kind]]
        width = max(map(_width, cells)) + 1
        lines = [line + cell + " " * (width - _width(cell)) for line, cell in zip(lines, cells, strict=True)]
    return "\n".join(line.rstrip() for line in lines)


def _width(text: str) -> int:
    """Columns in a terminal: two for wide letters, none for marks on a letter."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)
