"""The demo: a bundled conversation of four synthetic voices, three of them enrolled -> who said what, and the truth.

Prints a table and the scores, and writes a page with the sound, the spectrogram and the words.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from speech_mtl.metrics import error_rates, word_errors
from speech_mtl.recognizer import Recognizer, Result, Segment
from speech_mtl.report.demo import write_demo_page
from speech_mtl.speakers import UNKNOWN, is_unknown

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

    wer: word errors over the words of all turns, a turn being matched with the segments that overlap it most;
    speaker_accuracy: share of the true words whose turn got its speaker's name ('unknown' for a stranger).
    """
    segments = [segment for segment in result.segments if segment.text]
    matched: list[list[Segment]] = [[] for _ in truth]
    for segment in segments:
        overlaps = [min(segment.end_s, t["end_s"]) - max(segment.start_s, t["start_s"]) for t in truth]
        matched[overlaps.index(max(overlaps))].append(segment)
    errors = [
        word_errors(turn["text"], " ".join(s.text for s in own)) for turn, own in zip(truth, matched, strict=True)
    ]
    words = named = 0
    for turn, own in zip(truth, matched, strict=True):
        words += len(turn["text"].split())
        longest = max(own, key=lambda s: s.end_s - s.start_s, default=None)
        named += len(turn["text"].split()) * (longest is not None and is_right(longest.speaker, turn["speaker"]))
    views = []
    for segment in segments:
        turn = next(t for t, own in zip(truth, matched, strict=True) if segment in own)
        views.append(asdict(segment) | {"truth": {"speaker": turn["speaker"], "text": turn["text"]}})
    rates = error_rates(errors)
    return {
        "audio": Path(result.audio).name, "duration_s": result.duration_s, "threshold": result.threshold.value,
        "model": "bundled", "segments": views, "wer": rates["wer"], "words": words,
        "speaker_accuracy": round(named / words, 6),
    }  # fmt: skip


def is_right(speaker: str | None, true_speaker: str) -> bool:
    """Whether a segment's speaker is the true one; every 'unknown n' is right for a stranger."""
    return speaker == true_speaker or (true_speaker == UNKNOWN and speaker is not None and is_unknown(speaker))


def _show(result: dict[str, Any], page: Path) -> None:
    console = Console()
    table = Table(title=f"{result['audio']}: {result['duration_s']:.0f} s, four voices, three of them enrolled")
    for column in ("time", "speaker", "score", "what was said", "truth"):
        table.add_column(column)
    for segment in result["segments"]:
        truth = segment["truth"]
        right = is_right(segment["speaker"], truth["speaker"]) and segment["text"] == truth["text"]
        said = "✓" if right else f"{truth['speaker']}: {truth['text']}"
        score = "" if segment["score"] is None else f"{segment['score']:.2f}"
        time = f"{segment['start_s']:5.1f}–{segment['end_s']:.1f}"
        table.add_row(time, segment["speaker"], score, segment["text"], said)
    console.print(table)
    console.print(
        f"word error rate {100 * result['wer']:.1f} % of {result['words']} words; "
        f"{100 * result['speaker_accuracy']:.1f} % of the words under the right name "
        f"(threshold {result['threshold']:.2f}; the fourth voice is not enrolled, so 'unknown' is right for it)"
    )
    console.print(f"the page with sound, spectrogram and words: {page}")
