"""A result as text: txt, json, srt, vtt, rttm, ctm, textgrid, html. No torch; only html reads a file, the sound's.

txt, srt and vtt show each score beside its threshold, 'alice 0.83 ≥ 0.5'; rttm carries the score in its confidence
column, json everything. rttm and ctm follow NIST's RT-09 and sclite definitions, textgrid Praat's long form.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from speech_mtl.results import Result, Segment, Word

CUE_MAX_S = 7.0
CUE_LINES, CUE_LINE = 2, 42
"""Subtitles: two lines of 42 characters for at most 7 s, as broadcasters' guidelines have it."""
CUE_MAX_PAUSE_S = 1.5
"""A longer pause between words opens a new subtitle."""


def format_result(result: Result, fmt: str) -> str:
    """The result in one of FORMATS, ending with a line break.

    Raises ValueError for another format, and for html AudioError where the recording's file cannot be read.
    """
    if fmt not in FORMATS:
        raise ValueError(f"format '{fmt}'; accepted: {', '.join(FORMATS)}")
    return FORMATS[fmt](result)


def stream_line(name: str, segment: Segment, fmt: str) -> str:
    """What is final of a recording before its end, as one line: the words; the speaker may still change."""
    if fmt == "json":
        return json.dumps({"provisional": True, "audio": name} | asdict(segment), ensure_ascii=False) + "\n"
    speaker = f"  [{segment.speaker}?]" if segment.speaker else ""
    return f"~ {name}  {segment.start_s:.2f}-{segment.end_s:.2f}{speaker}  {segment.text}\n"


def who(segment: Segment) -> str:
    """'alice 0.83 ≥ 0.5', 'unknown 0.31 < 0.5', 'unknown', or '' where the model names no speakers.

    'unknown 0.71 ≥ 0.5, not alice': another voice of the recording is nearer to hers.
    """
    from speech_mtl.speakers import is_unknown

    score, threshold = segment.score, segment.threshold
    if segment.speaker is None or score is None or threshold is None:
        return segment.speaker or ""
    shown = f"{segment.speaker} {compared(score, threshold)}"
    return f"{shown}, not {segment.best_name}" if is_unknown(segment.speaker) and score >= threshold else shown


def compared(score: float, threshold: float) -> str:
    """'0.83 ≥ 0.5' or '0.31 < 0.5'."""
    # a score that is rounded up to its threshold would contradict the sign beside it
    digits = 2 if abs(score - threshold) >= 0.01 else 4
    return f"{score:.{digits}f} {'≥' if score >= threshold else '<'} {threshold:g}"


def _txt(result: Result) -> str:
    lines = [f"{result.audio}  {result.duration_s:.2f} s"]
    for segment in result.segments:
        labels = "".join(f"  {task} {label.label} {label.probability:.2f}" for task, label in segment.labels.items())
        name = who(segment)
        times = f"{segment.start_s:.2f}-{segment.end_s:.2f}"
        lines.append("  ".join(filter(None, [f"  {times}", f"[{name}]" if name else "", segment.text])) + labels)
    return "\n".join(lines) + "\n"


def _json(result: Result) -> str:
    """One object on one line, so that many results are JSON Lines."""
    return json.dumps(asdict(result) | {"text": result.text}, ensure_ascii=False, allow_nan=False) + "\n"


def _srt(result: Result) -> str:
    blocks = []
    for number, (label, _, words) in enumerate(_cues(result, lambda segment: _bracketed(who(segment))), 1):
        times = f"{_clock(words[0].start_s, ',')} --> {_clock(words[-1].end_s, ',')}"
        lines = _lines(label, words)
        blocks.append("\n".join([str(number), times, *lines, ""]))
    return "\n".join(blocks)


def _bracketed(name: str) -> str:
    return f"[{name}] " if name else ""


def _vtt(result: Result) -> str:
    """The voice tag holds the name alone, for players that style by it; the score stands in the cue's identifier."""
    blocks = [f"WEBVTT\n\nNOTE {_escape(result.calibration)}\n"]
    for number, (_, segment, words) in enumerate(_cues(result, lambda segment: ""), 1):
        identifier = " ".join(filter(None, [str(number), _escape(who(segment))]))
        voice = f"<v {_escape(segment.speaker)}>" if segment.speaker else ""
        times = f"{_clock(words[0].start_s, '.')} --> {_clock(words[-1].end_s, '.')}"
        text = _escape("\n".join(_lines("", words)))
        blocks.append(f"{identifier}\n{times}\n{voice}{text}\n")
    return "\n".join(blocks)


def _rttm(result: Result) -> str:
    """SPEAKER lines: file, channel, start and duration in seconds, name, score. Silence is left out."""
    lines = []
    for segment in result.segments:
        if segment.speaker is None or not (segment.text or segment.score is not None):
            continue
        score = "<NA>" if segment.score is None else f"{segment.score:.4f}"
        times = f"{segment.start_s:.3f} {segment.end_s - segment.start_s:.3f}"
        name = "_".join(segment.speaker.split())
        lines.append(f"SPEAKER {recording_id(result.audio)} 1 {times} <NA> <NA> {name} {score} <NA>\n")
    return "".join(lines)


def _ctm(result: Result) -> str:
    """A line a word: file, channel, start and duration in seconds, word, confidence."""
    name = recording_id(result.audio)
    return "".join(
        f"{name} 1 {word.start_s:.3f} {word.end_s - word.start_s:.3f} {word.text} {word.confidence:.4f}\n"
        for segment in result.segments for word in segment.words
    )  # fmt: skip


def _textgrid(result: Result) -> str:
    """A tier a speaker, named after it ('words' where the model names none), of words and the silences between."""
    tiers: dict[str, list[Word]] = {}
    for segment in result.segments:
        for word in segment.words:
            tiers.setdefault(word.speaker or "words", []).append(word)
    tiers = tiers or {"words": []}
    lines = [
        'File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {result.duration_s:.3f}",
        "tiers? <exists>", f"size = {len(tiers)}", "item []:",
    ]  # fmt: skip
    for number, (name, words) in enumerate(tiers.items(), start=1):
        intervals = _intervals(words, result.duration_s)
        lines += [
            f"    item [{number}]:", '        class = "IntervalTier"', f"        name = {_quoted(name)}",
            "        xmin = 0", f"        xmax = {result.duration_s:.3f}",
            f"        intervals: size = {len(intervals)}",
        ]  # fmt: skip
        for place, (start_s, end_s, text) in enumerate(intervals, start=1):
            lines += [
                f"        intervals [{place}]:", f"            xmin = {start_s:.3f}", f"            xmax = {end_s:.3f}",
                f"            text = {_quoted(text)}",
            ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _intervals(words: list[Word], duration_s: float) -> list[tuple[float, float, str]]:
    """(start, end, text) without gaps from 0 to the recording's end; a tier of Praat's must have none."""
    intervals, reached_s = [], 0.0
    for word in sorted(words, key=lambda word: word.start_s):
        start_s, end_s = max(word.start_s, reached_s), min(word.end_s, duration_s)
        if end_s <= start_s:
            continue
        if start_s > reached_s:
            intervals.append((reached_s, start_s, ""))
        intervals.append((start_s, end_s, word.text))
        reached_s = end_s
    return [*intervals, (reached_s, duration_s, "")] if reached_s < duration_s else intervals


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _html(result: Result) -> str:
    """A page with the recording's sound; result.audio must be its file. Raises AudioError."""
    from speech_mtl.report.transcript import transcript_page

    return transcript_page(asdict(replace(result, notes=[*result.notes, *filter(None, [result.damage])]))) + "\n"


FORMATS: dict[str, Callable[[Result], str]] = {
    "txt": _txt, "json": _json, "srt": _srt, "vtt": _vtt, "rttm": _rttm, "ctm": _ctm,
    "textgrid": _textgrid, "html": _html,
}  # fmt: skip
JOINABLE = {"txt", "json", "rttm", "ctm"}
"""Formats whose results may follow one another in one stream."""
NAMED = {"rttm", "ctm"}
"""Those whose lines name their recording, by `recording_id`."""


def _cues(result: Result, label_of: Callable[[Segment], str]) -> Iterator[tuple[str, Segment, list[Word]]]:
    """The words in groups short enough for a subtitle with its label: one speaker each, cut at the longest pauses."""
    for segment in result.segments:
        for speaker, spoken in groupby(segment.words, key=lambda word: word.speaker):
            own = segment if speaker == segment.speaker else replace(segment, speaker=speaker, score=None)
            label, words = label_of(own), list(spoken)
            while words:
                size = _cue_size(label, words)
                yield label, own, words[:size]
                words = words[size:]


def _cue_size(label: str, words: list[Word]) -> int:
    """How many of the words, at least one, the next subtitle takes."""
    size = 1
    while (
        size < len(words)
        and words[size].start_s - words[size - 1].end_s <= CUE_MAX_PAUSE_S
        and words[size].end_s - words[0].start_s <= CUE_MAX_S
        # a name that fills a line leaves another one for the words
        and len(_lines(label, words[: size + 1])) <= max(CUE_LINES, len(wrap(label, CUE_LINE)) + 1)
    ):
        size += 1
    if size == len(words):
        return size
    cuts = range(size // 2 + 1, size + 1)
    return max(cuts, key=lambda cut: (round(words[cut].start_s - words[cut - 1].end_s, 2), cut))


def _lines(label: str, words: list[Word]) -> list[str]:
    text = label + " ".join(word.text for word in words)
    return wrap(text, CUE_LINE, break_long_words=False, break_on_hyphens=False)


def _clock(time_s: float, decimal: str) -> str:
    ms = round(time_s * 1000)
    return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}{decimal}{ms % 1000:03d}"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def recording_id(audio: str | Path) -> str:
    """A recording's name in rttm and ctm: the file's without folder and ending; spaces, which part columns, are _.

    Semicolons that it begins with are left out: two of them make a comment of a line.
    """
    return "_".join(Path(audio).stem.lstrip(";").split()) or "audio"
