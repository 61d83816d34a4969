"""Conversations with a truth -> how well they were transcribed and who was named rightly; a row each and a summary.

A conversation is a cut with one supervision an utterance (text, speaker, times), as `speech-mtl prepare conversations`
makes them. Scores: WER over the words in time's order; cpWER and tcpWER (meeteval: words per speaker under the best
assignment of speakers, the latter with times within 5 s); DER (pyannote.metrics, 0.25 s to either side of a reference's
edges not scored); the share of the recognised words that stand under the name of who was speaking then. Where nobody is
enrolled, names are those of the best assignment; where somebody is, the shares of strangers' words that stand under a
name, and of enrolled speakers' words that stand under none, are given, too.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from lhotse import SupervisionSegment
from lhotse.cut import Cut
from lhotse.utils import fastcopy

from speech_mtl.audio import Audio, AudioError, cut_audio
from speech_mtl.checkpoint import CheckpointError
from speech_mtl.data import DataError, read_cuts, repetition
from speech_mtl.formats import format_result
from speech_mtl.metrics import error_rates, word_errors
from speech_mtl.recognizer import Recognizer, asr_of
from speech_mtl.results import Result
from speech_mtl.speakers import UNKNOWN, is_unknown, plain
from speech_mtl.tasks import label_of, text_of
from speech_mtl.text import normalize

COLLAR_S = 0.25
TCP_COLLAR_S = 5.0
Row = dict[str, Any]


def evaluate_conversations(
    recognizer: Recognizer, manifests: list[str], out: Path, enroll: list[str] | None = None,
    speakers: int | None = None, on_row: Callable[[Row], None] = lambda row: None,
) -> dict[str, Any]:  # fmt: skip
    """Write out/conversations.jsonl, out/summary.json and every transcript as json; returns the summary.

    `enroll`: cuts of single speakers, enrolled beforehand; `speakers`: the number of voices, where it is to be given.
    A conversation that cannot be read has the row {'id', 'error'}. Raises DataError, AudioError for an enrolment cut,
    and CheckpointError for a model that lacks a task.
    """
    _check_scorers()
    try:
        _ = asr_of(recognizer.model), recognizer.speaker_task
    except CheckpointError as error:
        raise CheckpointError(f"{error}; without --conversations those it has are scored") from None
    for cut in read_cuts(manifests):
        _check_truth(cut)  # now, not after hours of transcribing
    out.mkdir(parents=True, exist_ok=True)
    for cut in read_cuts(enroll) if enroll else []:
        if (speaker := label_of(cut, "speaker")) is None:
            raise DataError(f"enrolment cut '{cut.id}' has no speaker label")
        recognizer.enroll(speaker, [_audio(cut)], force=True)  # all that is given counts
    rows: list[Row] = []
    times: Counter[str] = Counter()
    part = out / "conversations.jsonl.part"  # one that is stopped leaves the last one's rows and summary
    with open(part, "w", encoding="utf-8") as file:
        for cut in read_cuts(manifests):
            times[cut.id] += 1
            cut = repetition(cut, times[cut.id])  # manifests prepared with one seed have the same ids
            rows.append(_row(cut, recognizer, out / _transcript(cut.id), speakers))
            file.write(json.dumps(rows[-1], ensure_ascii=False) + "\n")
            on_row(rows[-1])
    (out / "summary.json").unlink(missing_ok=True)
    for stale in _transcripts(out / "conversations.jsonl") - _transcripts(part):
        (out / stale).unlink(missing_ok=True)
    part.replace(out / "conversations.jsonl")
    summary = summarize(rows)
    if decoder := asr_of(recognizer.model).decoder:
        summary["asr"]["decoding"] = decoder.describe()
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def _transcript(conversation: str) -> str:
    return f"{conversation.replace('/', '_')}.json"


def _transcripts(file: Path) -> set[str]:
    """Names of the transcripts that belong to an evaluation's rows; none where the file is something else, or none."""
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
        return {_transcript(row["id"]) for row in rows if "error" not in row}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return set()


def _row(cut: Cut, recognizer: Recognizer, transcript: Path, speakers: int | None) -> Row:
    """A conversation's counts, or why it cannot be read; its transcript is written."""
    started = time.perf_counter()
    try:
        result = recognizer.transcribe(cut_audio(cut), speakers=speakers)
    except AudioError as error:
        return {"id": cut.id, "error": str(error)}
    seconds = time.perf_counter() - started
    transcript.write_text(format_result(result, "json"), encoding="utf-8")
    row = {"id": cut.id, "duration_s": round(cut.duration, 3), "compute_s": round(seconds, 3)}
    return row | score(result, cut, recognizer)


def _audio(cut: Cut) -> Audio:
    try:
        return cut_audio(cut)
    except AudioError as error:
        raise AudioError(f"cut '{cut.id}': {error}") from None


def _check_scorers() -> None:
    try:
        import meeteval  # noqa: F401
        import pyannote.metrics  # noqa: F401
    except ImportError as error:
        raise DataError(f"{error}; scoring conversations needs: pip install 'speech_mtl[conversations]'") from None


def _check_truth(cut: Cut) -> None:
    if not cut.supervisions:
        raise DataError(f"conversation '{cut.id}' has no utterance; accepted are cuts with a supervision an utterance")
    for supervision in cut.supervisions:
        if supervision.text is None or supervision.speaker is None:
            raise DataError(f"conversation '{cut.id}': utterance '{supervision.id}' lacks a text or a speaker")
    if text_of(cut) is None:
        raise DataError(f"conversation '{cut.id}' begins or ends within an utterance; expected whole ones")


def score(result: Result, cut: Cut, recognizer: Recognizer) -> Row:
    """Counts of one conversation; `summarize` turns them into rates."""
    config = recognizer.model.config.text
    truth = [fastcopy(s, speaker=plain(s.speaker)) for s in sorted(cut.supervisions, key=lambda s: s.start)]
    reference = [(s.speaker or "", normalize(s.text or "", config), s.start, s.end) for s in truth]
    hypothesis = [(s.speaker or UNKNOWN, s.text, s.start_s, s.end_s) for s in result.segments]
    words = [(s.speaker or UNKNOWN, w.text, w.start_s, w.end_s) for s in result.segments for w in s.words]
    names = set(recognizer.database.names())
    said = _said_by(result, truth)
    strangers = {pair: count for pair, count in said.items() if pair[0] not in names}
    known = {pair: count for pair, count in said.items() if pair[0] in names}
    return {
        "speakers": len({speaker for speaker, *_ in reference}),
        "voices": len({speaker for speaker, *_ in hypothesis}),
        "errors": word_errors(" ".join(text for _, text, *_ in reference), result.text),
        "cp": speaker_word_errors(reference, words),
        "tcp": speaker_word_errors(reference, words, TCP_COLLAR_S),
        "der": diarization_errors(reference, hypothesis, result.duration_s),
        "named": _under_the_right_name(said, names), "words": said.total(), "enrolled": len(names),
        "strangers": {
            "words": sum(strangers.values()), "errors": sum(n for (_, by), n in strangers.items() if by in names),
        },
        "known": {
            "words": sum(known.values()), "errors": sum(n for (_, by), n in known.items() if by not in names),
        },
    }  # fmt: skip


Said = tuple[str, str, float, float]
"""Speaker, text, start and end in seconds."""


def speaker_word_errors(reference: list[Said], hypothesis: list[Said], collar_s: float | None = None) -> dict[str, int]:
    """cpWER's counts, or with a collar tcpWER's: errors and words."""
    import meeteval

    def segments(said: list[Said]) -> Any:
        keys = ("speaker", "words", "start_time", "end_time")
        return meeteval.io.SegLST([dict(zip(keys, each, strict=True)) | {"session_id": "one"} for each in said])

    words = sum(len(text.split()) for _, text, *_ in reference)
    if not hypothesis:
        return {"errors": words, "words": words}
    if collar_s is None:
        found = meeteval.wer.cpwer(segments(reference), segments(hypothesis))["one"]
    else:
        found = meeteval.wer.tcpwer(segments(reference), segments(hypothesis), collar=collar_s)["one"]
    return {"errors": int(found.errors), "words": int(found.length)}


def diarization_errors(reference: list[Said], hypothesis: list[Said], duration_s: float) -> dict[str, float]:
    """DER's parts in seconds: total speech, missed, false alarm, confusion."""
    from pyannote.core import Annotation, Segment, Timeline
    from pyannote.metrics.diarization import DiarizationErrorRate

    def annotation(said: list[Said]) -> Annotation:
        found = Annotation()
        for number, (speaker, _, start_s, end_s) in enumerate(said):
            found[Segment(start_s, end_s), number] = speaker
        return found

    metric = DiarizationErrorRate(collar=2 * COLLAR_S)  # its collar is the whole width
    whole = Timeline([Segment(0, duration_s)])
    found = metric(annotation(reference), annotation(hypothesis), uem=whole, detailed=True)
    parts = {"total": "total", "missed": "missed detection", "false_alarm": "false alarm", "confusion": "confusion"}
    return {name: round(float(found[key]), 3) for name, key in parts.items()}


def _said_by(result: Result, truth: list[SupervisionSegment]) -> Counter[tuple[str, str]]:
    """How many recognised words stand under which name: (who said them, the name)."""
    pairs: Counter[tuple[str, str]] = Counter()
    for segment in result.segments:
        for word in segment.words:
            middle_s = (word.start_s + word.end_s) / 2
            distance_s = [max(s.start - middle_s, middle_s - s.end, 0.0) for s in truth]
            speaking = [s.speaker or "" for s, d in zip(truth, distance_s, strict=True) if d == min(distance_s)]
            said_by = word.speaker or UNKNOWN
            pairs[said_by if said_by in speaking else speaking[0], said_by] += 1
    return pairs


def _under_the_right_name(said: Counter[tuple[str, str]], enrolled: set[str]) -> int:
    """How many words stand under the name of who said them, those of strangers under none."""
    if enrolled:
        right = {(name, by) for name, by in said if (by == name if name in enrolled else is_unknown(by))}
    else:
        right = set(_best_assignment(said))
    return sum(count for pair, count in said.items() if pair in right)


def _best_assignment(pairs: Counter[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    from scipy.optimize import linear_sum_assignment

    true, found = sorted({name for name, _ in pairs}), sorted({name for _, name in pairs})
    counts = np.array([[pairs[a, b] for b in found] for a in true]).reshape(len(true), len(found))
    return [(true[i], found[j]) for i, j in zip(*linear_sum_assignment(-counts), strict=True)]


def summarize(rows: list[Row]) -> dict[str, Any]:
    """summary.json: rates over all conversations that could be read, sums of errors over sums of lengths."""
    failed = [row for row in rows if "error" in row]
    rows = [row for row in rows if "error" not in row]
    if not rows:
        unread = [f"cut '{row['id']}': {row['error']}" for row in failed]
        raise DataError("\n".join(unread) or "no conversation to score: the manifest is empty")

    def rate(part: str) -> float | None:
        words = sum(row[part]["words"] for row in rows)
        return round(sum(row[part]["errors"] for row in rows) / words, 6) if words else None

    der = {name: round(sum(row["der"][name] for row in rows), 3) for name in rows[0]["der"]}
    wrong_s = der["missed"] + der["false_alarm"] + der["confusion"]
    words = sum(row["words"] for row in rows)
    audio_s, compute_s = (sum(row[name] for row in rows) for name in ("duration_s", "compute_s"))
    return {
        "conversations": len(rows), "failed": len(failed),
        "asr": error_rates([row["errors"] for row in rows]),
        "cpwer": rate("cp"), "tcpwer": rate("tcp"),
        "der": round(wrong_s / der["total"], 6) if der["total"] else None, "der_s": der,
        "named": round(sum(row["named"] for row in rows) / words, 6) if words else None,
        "recognised_words": words,
        "strangers_named": rate("strangers") if rows[0]["enrolled"] else None,
        "enrolled_not_named": rate("known") if rows[0]["enrolled"] else None,
        "voices_right": sum(row["speakers"] == row["voices"] for row in rows),
        "voices_too_few": sum(row["speakers"] > row["voices"] for row in rows),
        "enrolled": rows[0]["enrolled"],
        "cost": {"audio_s": round(audio_s, 3), "rtf": round(compute_s / audio_s, 6)},
    }  # fmt: skip
