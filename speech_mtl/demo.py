"""The demo: a bundled conversation of four synthetic voices, three of them enrolled -> who said what, and the truth.

Prints a table and the scores, and writes a page with the sound, the spectrogram and the words.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from speech_mtl.formats import compared
from speech_mtl.metrics import error_rates, word_errors
from speech_mtl.recognizer import Recognizer
from speech_mtl.report.demo import write_demo_page
from speech_mtl.results import Result, Segment, Word
from speech_mtl.speakers import is_right

DATA = Path(__file__).parent / "demo_data"


def run(out: Path) -> dict[str, Any]:
    """Write out/demo.html and out/demo.json, print what was said by whom, and return the result."""
    recording = DATA / "conversation.flac"
    truth = json.loads((DATA / "truth.json").read_text(encoding="utf-8"))
    with TemporaryDirectory() as folder:
        recognizer = Recognizer.from_pretrained(db=Path(folder) / "speakers.db")
        for name in sorted({path.stem.rsplit("_", 1)[0] for path in DATA.glob("*_*.flac")}):
            recognizer.enroll(name, sorted(DATA.glob(f"{name}_*.flac")))
        transcribed = recognizer.transcribe(recording)
    result = compare(transcribed, truth)
    out.mkdir(parents=True, exist_ok=True)
    (out / "demo.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    page = write_demo_page(result, recording, out / "demo.html")
    _show(result, page)
    return result


def compare(result: Result, truth: list[dict[str, Any]]) -> dict[str, Any]:
    """The result beside the true turns ({start_s, end_s, speaker, text}), with two scores.

    A word belongs to the turn that is nearest to its middle; a segment that goes on over two turns is shown as two.
    wer: word errors over the words of all turns; speaker_accuracy: share of the true words whose turn got its speaker's
    name for the longest time ('unknown' for a stranger).
    """
    parts = [part for segment in result.segments for part in _by_turn(segment, truth)]
    matched = [[part for turn, part in parts if turn == i] for i in range(len(truth))]
    errors = [
        word_errors(turn["text"], " ".join(s.text for s in own)) for turn, own in zip(truth, matched, strict=True)
    ]
    words = named = 0
    for turn, own in zip(truth, matched, strict=True):
        words += len(turn["text"].split())
        longest = max(own, key=lambda s: s.end_s - s.start_s, default=None)
        named += len(turn["text"].split()) * (longest is not None and is_right(longest.speaker, turn["speaker"]))
    views = [
        asdict(part) | {"truth": {"speaker": truth[turn]["speaker"], "text": truth[turn]["text"]}}
        for turn, part in parts
    ]
    rates = error_rates(errors)
    return {
        "audio": Path(result.audio).name, "duration_s": result.duration_s,
        "model": "bundled", "segments": views, "wer": rates["wer"], "words": words,
        "speaker_accuracy": round(named / words, 6),
    }  # fmt: skip


def _by_turn(segment: Segment, truth: list[dict[str, Any]]) -> list[tuple[int, Segment]]:
    """The segment's words in a row that belong to one true turn, each with the turn's number."""

    def turn_of(word: Word) -> int:
        middle_s = (word.start_s + word.end_s) / 2
        return min(range(len(truth)), key=lambda i: max(truth[i]["start_s"] - middle_s, middle_s - truth[i]["end_s"]))

    parts = []
    for turn, group in groupby(segment.words, key=turn_of):
        words = list(group)
        text = " ".join(word.text for word in words)
        own = replace(segment, start_s=words[0].start_s, end_s=words[-1].end_s, text=text, words=words)
        parts.append((turn, own))
    return parts


def _show(result: dict[str, Any], page: Path) -> None:
    console = Console()
    table = Table(title=f"{result['audio']}: {result['duration_s']:.0f} s, four voices, three of them enrolled")
    for column in ("time", "speaker", "score", "what was said", "truth"):
        table.add_column(column)
    for segment in result["segments"]:
        truth = segment["truth"]
        right = is_right(segment["speaker"], truth["speaker"]) and segment["text"] == truth["text"]
        said = "✓" if right else f"{truth['speaker']}: {truth['text']}"
        score = "" if segment["score"] is None else compared(segment["score"], segment["threshold"])
        time = f"{segment['start_s']:5.1f}–{segment['end_s']:.1f}"
        table.add_row(time, segment["speaker"], score, segment["text"], said)
    console.print(table)
    console.print(
        f"word error rate {100 * result['wer']:.1f} % of {result['words']} words; "
        f"{100 * result['speaker_accuracy']:.1f} % of the words under the right name "
        f"(the fourth voice is not enrolled, so 'unknown' is right for it)"
    )
    console.print(f"the page with sound, spectrogram and words: {page}")
