"""The demo's scores against a hand-worked case, and the demo itself with the bundled model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import butter, sosfiltfilt

from speech_mtl.demo import DATA, compare, run
from speech_mtl.recognizer import Recognizer
from speech_mtl.results import Result, Segment, Word


def segment(start_s: float, end_s: float, speaker: str, text: str) -> Segment:
    texts = text.split()
    step_s = (end_s - start_s) / max(1, len(texts))
    words = [Word(w, start_s + i * step_s, start_s + (i + 1) * step_s, 1.0, speaker) for i, w in enumerate(texts)]
    return Segment(start_s, end_s, text, words, speaker, 0.7, speaker, {})


def test_compare_worked_by_hand() -> None:
    """Two words of six wrong; the last turn, a third of the words, under a wrong name; an empty segment is nobody's."""
    truth = [
        {"start_s": 0.0, "end_s": 2.0, "speaker": "ann", "text": "one two three"},
        {"start_s": 3.0, "end_s": 4.0, "speaker": "unknown", "text": "four"},
        {"start_s": 5.0, "end_s": 6.0, "speaker": "bob", "text": "five six"},
    ]
    segments = [
        segment(0.0, 1.0, "ann", "one"),
        segment(1.0, 2.4, "ann", "too three"),
        segment(2.4, 2.9, "bob", ""),
        segment(2.9, 4.2, "unknown", "four"),
        segment(4.9, 6.1, "ann", "five"),
    ]
    result = compare(Result("x.wav", 6.1, "nothing", segments), truth)
    assert result["wer"] == pytest.approx(2 / 6, abs=1e-6)
    assert result["speaker_accuracy"] == pytest.approx(4 / 6, abs=1e-6)
    assert [s["truth"]["speaker"] for s in result["segments"]] == ["ann", "ann", "unknown", "bob"]


def test_a_segment_over_two_turns_is_shown_as_two() -> None:
    truth = [
        {"start_s": 0.0, "end_s": 2.0, "speaker": "ann", "text": "one two"},
        {"start_s": 2.5, "end_s": 4.5, "speaker": "unknown", "text": "three four"},
    ]
    result = compare(Result("x.wav", 4.5, "nothing", [segment(0.0, 4.4, "ann", "one two three four")]), truth)
    assert result["wer"] == 0 and result["speaker_accuracy"] == 0.5
    assert [(s["text"], s["truth"]["speaker"]) for s in result["segments"]] == [
        ("one two", "ann"), ("three four", "unknown"),
    ]  # fmt: skip


def test_demo_names_its_voices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(tmp_path)
    assert result["wer"] < 0.2 and result["speaker_accuracy"] > 0.8
    assert {s["speaker"] for s in result["segments"]} >= {"anna", "ben", "carla"}
    assert json.loads((tmp_path / "demo.json").read_text()) == result
    page = (tmp_path / "demo.html").read_text()
    assert "data:audio" in page
    assert not re.search(r"https?://(?!www\.w3\.org)", page)  # nothing is loaded from elsewhere
    said = capsys.readouterr().out
    assert f"{100 * result['wer']:.1f} %" in said and "≥ 0." in said and "< 0." in said  # scores beside thresholds


def test_voices_are_told_apart_in_a_narrower_band(tmp_path: Path) -> None:
    """As of an mp3 at 16 kHz, which ends below 7.6 kHz: everybody was one voice."""
    samples, rate = soundfile.read(DATA / "conversation.flac")
    narrow = sosfiltfilt(butter(12, 7000, fs=rate, output="sos"), samples).astype(np.float32)
    recognizer = Recognizer.from_pretrained(db=tmp_path / "speakers.db")
    for name in ("anna", "ben", "carla"):
        recognizer.enroll(name, sorted(DATA.glob(f"{name}_*.flac")))
    assert {s.speaker for s in recognizer.transcribe((narrow, rate)).segments} >= {"anna", "ben", "carla"}


def test_the_bundled_model_names_who_is_enrolled(tmp_path: Path) -> None:
    recognizer = Recognizer.from_pretrained(db=tmp_path / "speakers.db")
    assert recognizer.identify(DATA / "anna_1.flac").speaker == "unknown"  # nobody is enrolled yet
    recognizer.enroll("anna", [DATA / "anna_1.flac", DATA / "anna_2.flac"])
    assert recognizer.identify(DATA / "anna_3.flac").speaker == "anna"
