"""utterances.jsonl and summary.json -> the evidence a report shows: tallies, confusions, alignments, trials.

Takes the rows that `speech_mtl.evaluate` writes, one JSON object a line. Keeps of each row what a figure needs; the
large parts ('scores' per reference, 'words' with their times) are reduced at once and let go.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from speech_mtl.metrics import word_error_count

Row = dict[str, Any]

DURATION_EDGES_S = (1, 2, 4, 8, 15, 30)
HEATMAP_LIMIT = 40


@dataclass
class Trials:
    """The scores of all utterance × reference pairs: `target` where the reference is the utterance's speaker."""

    target: array = field(default_factory=lambda: array("d"))
    other: array = field(default_factory=lambda: array("d"))

    def add(self, scores: dict[str, float], speaker: str) -> None:
        for name, score in scores.items():
            (self.target if name == speaker else self.other).append(score)


@dataclass
class Evidence:
    """An evaluation in memory. `kinds` maps each task of the model to asr, speaker or classify."""

    summary: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)
    trials: dict[str, Trials] = field(default_factory=dict)

    def first(self, kind: str) -> str | None:
        return next((name for name, found in self.kinds.items() if found == kind), None)

    def labelled(self, task: str) -> list[Row]:
        return [row for row in self.rows if "ref" in row.get(task, {})]


@dataclass
class Tally:
    """What went right and wrong in a group of utterances: a speaker's, or those of one length."""

    label: str
    utterances: int = 0
    words: int = 0
    errors: int = 0
    named: int = 0
    """Utterances of speakers that the model could have named."""
    right: int = 0

    @property
    def wer(self) -> float | None:
        return self.errors / self.words if self.words else None

    @property
    def accuracy(self) -> float | None:
        return self.right / self.named if self.named else None


@dataclass
class Confusion:
    """Counts of (reference, hypothesis). `labels` is empty where a matrix would be unreadable, or show nothing."""

    labels: list[str]
    cells: list[tuple[int, int, int, float]]
    """(row, column, count, share of the row) of the cells that are not zero."""
    commonest: list[tuple[str, str, int, int]]
    """(reference, hypothesis, count, utterances of that reference) of the errors, most frequent first."""
    total: int
    right: int
    left_out: int
    """Utterances of speakers that the model has no reference for, or of a class that it lacks: no answer is right."""


@dataclass(frozen=True)
class Pair:
    """One column of an alignment: kind 'equal', 'substitute', 'delete' or 'insert'; the absent side is ''."""

    kind: str
    reference: str
    hypothesis: str


MARKS = {"equal": "", "substitute": "≠", "delete": "−", "insert": "+"}


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, one at a time. Raises ValueError that names the line which is no JSON object."""
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path.name}, line {number}: not JSON ({error}); one object a line is") from None
            if not isinstance(row, dict) or "id" not in row:
                raise ValueError(f"{path.name}, line {number}: expected an object with an 'id', found {line[:60]!r}")
            yield row


def collect(eval_dir: Path) -> Evidence:
    """Read an evaluation folder. Raises FileNotFoundError where one of its two files is missing."""
    evidence = Evidence(json.loads((eval_dir / "summary.json").read_text(encoding="utf-8")))
    for row in read_rows(eval_dir / "utterances.jsonl"):
        if "error" in row:
            evidence.failed.append((str(row["id"]), str(row["error"])))
            continue
        for name, answer in row.items():
            if isinstance(answer, dict) and "hyp" in answer:
                evidence.kinds.setdefault(name, _kind_of_answer(answer))
                _reduce(evidence, name, answer)
        evidence.rows.append(row)
    return evidence


def _kind_of_answer(answer: Row) -> str:
    return "asr" if "words" in answer else "speaker" if "scores" in answer else "classify"


def _reduce(evidence: Evidence, name: str, answer: Row) -> None:
    answer.pop("words", None)
    scores = answer.pop("scores", None)
    if scores is not None and "ref" in answer:
        answer["known"] = answer["ref"] in scores
        evidence.trials.setdefault(name, Trials()).add(scores, answer["ref"])


def kind_of_scores(scores: dict[str, Any]) -> str:
    """The kind of task that a part of summary.json belongs to."""
    return "asr" if "wer" in scores else "speaker" if "trials" in scores else "classify"


def by_speaker(evidence: Evidence) -> list[Tally]:
    """A tally a speaker, those with the highest word error rate first, then the worst identified."""
    task = evidence.first("speaker")
    tallies = _tally(evidence, lambda row: row.get("true_speaker") or row.get(task or "", {}).get("ref"))
    return sorted(tallies, key=lambda t: (-(t.wer or 0), t.accuracy if t.accuracy is not None else 1, t.label))


def by_duration(evidence: Evidence) -> list[Tally]:
    """A tally a band of lengths, short to long; empty bands are absent."""
    labels = [f"under {DURATION_EDGES_S[0]} s"]
    labels += [f"{low}–{high} s" for low, high in pairwise(DURATION_EDGES_S)]
    labels += [f"{DURATION_EDGES_S[-1]} s and longer"]
    tallies = _tally(evidence, lambda row: labels[sum(row["duration_s"] >= edge for edge in DURATION_EDGES_S)])
    return sorted(tallies, key=lambda tally: labels.index(tally.label))


def _tally(evidence: Evidence, label_of: Callable[[Row], str | None]) -> list[Tally]:
    asr, speaker = evidence.first("asr"), evidence.first("speaker")
    tallies: dict[str, Tally] = {}
    for row in evidence.rows:
        if (label := label_of(row)) is None:
            continue
        tally = tallies.setdefault(label, Tally(label))
        tally.utterances += 1
        if errors := row.get(asr or "", {}).get("errors"):
            tally.words += errors["words"]
            tally.errors += word_error_count(errors)
        answer = row.get(speaker or "", {})
        if answer.get("known"):
            tally.named += 1
            tally.right += answer["ref"] == answer["hyp"]
    return list(tallies.values())


def worst(evidence: Evidence, task: str, limit: int = 15) -> list[Row]:
    """The utterances with the most wrong words; where equal, the one with the higher rate first."""
    rows = [row for row in evidence.labelled(task) if word_error_count(row[task]["errors"])]

    def badness(row: Row) -> tuple[float, float, str]:
        errors = row[task]["errors"]
        return -word_error_count(errors), errors["words"], row["id"]

    return sorted(rows, key=badness)[:limit]


def align(reference: str, hypothesis: str) -> list[Pair]:
    """Words of both texts in columns, by jiwer's alignment."""
    import jiwer

    if not reference.split():  # jiwer refuses an empty reference
        return [Pair("insert", "", word) for word in hypothesis.split()]
    output = jiwer.process_words(reference, hypothesis)
    references, hypotheses = output.references[0], output.hypotheses[0]
    pairs = []
    for chunk in output.alignments[0]:
        said = references[chunk.ref_start_idx : chunk.ref_end_idx]
        heard = hypotheses[chunk.hyp_start_idx : chunk.hyp_end_idx]
        for i in range(max(len(said), len(heard))):
            pairs.append(Pair(chunk.type, said[i] if i < len(said) else "", heard[i] if i < len(heard) else ""))
    return pairs


def confused_words(evidence: Evidence, task: str) -> dict[str, list[tuple[Pair, int]]]:
    """The errors that occur most often, by kind: (pair, times)."""
    counts: Counter[Pair] = Counter()
    for row in evidence.labelled(task):
        if word_error_count(row[task]["errors"]):
            counts.update(pair for pair in align(row[task]["ref"], row[task]["hyp"]) if pair.kind != "equal")
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0].reference, item[0].hypothesis))
    return {
        kind: [(pair, times) for pair, times in ordered if pair.kind == kind][:12]
        for kind in ("substitute", "delete", "insert")
    }


def confusion(evidence: Evidence, task: str) -> Confusion:
    """Who (or what class) was taken for whom, over the labelled utterances that could be answered rightly."""
    labelled = evidence.labelled(task)
    rows = [row[task] for row in labelled if row[task].get("known", True)]
    of_no_class = sum("unknown" in row.get(task, {}) for row in evidence.rows)
    counts = Counter((str(row["ref"]), str(row["hyp"])) for row in rows)
    of_reference = Counter(str(row["ref"]) for row in rows)
    labels = sorted({label for pair in counts for label in pair})
    errors = sorted(((n, *pair) for pair, n in counts.items() if pair[0] != pair[1]), key=lambda e: (-e[0], *e[1:]))
    shown = labels if 2 <= len(labels) <= HEATMAP_LIMIT else []
    place = {label: i for i, label in enumerate(shown)}
    cells = [(place[r], place[h], n, n / of_reference[r]) for (r, h), n in sorted(counts.items()) if shown]
    return Confusion(
        labels=shown, cells=cells, commonest=[(r, h, n, of_reference[r]) for n, r, h in errors[:20]], total=len(rows),
        right=sum(n for (r, h), n in counts.items() if r == h), left_out=len(labelled) - len(rows) + of_no_class,
    )  # fmt: skip


def example_row(evidence: Evidence, path: Path) -> Row | None:
    """A typical utterance, whole: of the third around the median length, one with the fewest wrong words."""
    task = evidence.first("asr") or evidence.first("speaker") or ""
    rows = sorted((row for row in evidence.rows if row.get(task, {}).get("hyp")), key=lambda row: row["duration_s"])
    if not rows:
        return None
    middle = (len(rows) - 1) / 2

    def oddness(place: int) -> tuple[float, float]:
        errors = rows[place][task].get("errors")
        return word_error_count(errors) / max(errors["words"], 1) if errors else 1.0, abs(place - middle)

    places = range(len(rows) // 3, len(rows) - len(rows) // 3)
    chosen = rows[min(places, key=oddness)]["id"]
    return next(row for row in read_rows(path) if row["id"] == chosen and "error" not in row)
