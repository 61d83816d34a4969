"""Every output format, read back by a parser of the field."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from pathlib import Path

import meeteval
import numpy as np
import pysubs2
import pytest
import soundfile
import webvtt
from lhotse import SupervisionSegment, SupervisionSet
from praatio import textgrid

from speech_mtl.audio import AudioError
from speech_mtl.formats import format_result
from speech_mtl.report.player import embedded_sound
from speech_mtl.results import Result, Segment, Word


@pytest.fixture
def result(tmp_path: Path) -> Result:
    """Three voices; in the last segment the speaker changes between two words; quotes and markup in words."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(8 * 8000)
    soundfile.write(tmp_path / "some talk.wav", noise, 8000)
    first = [Word("hello", 0.25, 0.61, 0.91, "Ann Lee"), Word('<"there">', 0.7, 1.0, 0.3, "Ann Lee")]
    last = [Word("yes", 5.0, 5.4, 0.8, "bob"), Word("no", 5.4, 5.9, 0.7, "unknown"), Word("well", 6.5, 8.0, 0.6, "bob")]
    return Result(
        str(tmp_path / "some talk.wav"), 8.0, "speaker threshold 0.5 (nothing)",
        [
            Segment(0.0, 2.0, 'hello <"there">', first, "Ann Lee", 0.8312, "Ann Lee", {}, 0.5),
            Segment(2.0, 4.5, "", [], "unknown", None, None, {}),
            Segment(4.5, 8.0, "yes no well", last, "bob", 0.6, "bob", {}, 0.5),
        ],
        ["clipped: a little"],
    )  # fmt: skip


def words_of(result: Result) -> list[Word]:
    return [word for segment in result.segments for word in segment.words]


def test_json_is_what_the_readme_shows() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    shown = re.sub(r" // .*", "", readme.split("```jsonc\n")[1].split("```")[0])
    assert json.loads(format_result(Result.from_json(shown), "json")) == json.loads(shown)


def test_srt_in_pysubs2(result: Result) -> None:
    read = pysubs2.SSAFile.from_string(format_result(result, "srt"), format_="srt", keep_html_tags=True)
    assert [(line.start, line.end, line.text) for line in read] == [
        (250, 1000, '[Ann Lee 0.83 ≥ 0.5] hello <"there">'), (5000, 5400, "[bob 0.60 ≥ 0.5] yes"),
        (5400, 5900, "[unknown] no"), (6500, 8000, "[bob 0.60 ≥ 0.5] well"),
    ]  # fmt: skip


def test_vtt_in_webvtt_py(result: Result) -> None:
    read = webvtt.from_string(format_result(result, "vtt"))
    assert [(cue.start, cue.end, cue.voice, cue.text) for cue in read] == [
        ("00:00:00.250", "00:00:01.000", "Ann Lee", "hello &lt;\"there\"&gt;"),
        ("00:00:05.000", "00:00:05.400", "bob", "yes"), ("00:00:05.400", "00:00:05.900", "unknown", "no"),
        ("00:00:06.500", "00:00:08.000", "bob", "well"),
    ]  # fmt: skip


@pytest.mark.parametrize("speaker", ["bob", "a name that is longer than the line of forty-two", None])
def test_subtitles_are_short_and_end_at_pauses(result: Result, speaker: str | None) -> None:
    rng = np.random.default_rng(0)
    words, time_s = [], 0.0
    for i in range(300):
        pause_s = 0.6 if i % 11 == 0 else 2.0 if i % 97 == 0 else 0.05
        word = Word("x" * int(rng.integers(1, 12)), time_s + pause_s, time_s + pause_s + 0.3, 0.9, speaker)
        words.append(word)
        time_s = word.end_s
    said = " ".join(word.text for word in words)
    one = Segment(words[0].start_s, time_s, said, words, speaker, None, None, {})
    result = dataclasses.replace(result, segments=[one], duration_s=time_s)
    cues = list(pysubs2.SSAFile.from_string(format_result(result, "srt"), format_="srt"))
    assert " ".join(cue.text.replace("\\N", " ").removeprefix(f"[{speaker}] ") for cue in cues) == said
    most = 3 if speaker and len(speaker) > 42 else 2
    for cue in cues:
        lines = cue.text.split("\\N")
        assert len(lines) <= most and max(map(len, lines)) <= 42 and cue.end - cue.start <= 7000
    ends = {round(1000 * word.end_s) for i, word in enumerate(words) if (i + 1) % 11 == 0 or (i + 1) % 97 == 0}
    assert {round(1000 * words[i].start_s) for i in (97, 194, 291)} <= {cue.start for cue in cues}  # after 2 s of quiet
    if most == 2:
        assert sum(cue.end in ends for cue in cues) > 0.3 * len(cues)  # 30 of 300 words end at a pause
    in_vtt = webvtt.from_string(format_result(result, "vtt"))
    assert " ".join(cue.text.replace("\n", " ") for cue in in_vtt) == said
    assert all(len(cue.text.split("\n")) <= 2 for cue in in_vtt)


NAMES = ["alice", "O'Neil & <Søn>", 'a "b", c', "山田 太郎", "-->", None]


@pytest.mark.parametrize("text", ["", "one", "12 3.50 -7", "नमस्ते दुनिया", "你好 世界", "مرحبا بالعالم", '& "<b>" ,;|'])
@pytest.mark.parametrize("speaker", NAMES)
def test_every_format_holds_every_text_and_name(result: Result, tmp_path: Path, text: str, speaker: str | None) -> None:
    words = [Word(each, i + 0.2, i + 0.9, 0.5, speaker) for i, each in enumerate(text.split())]
    score = None if speaker is None else 0.75
    segments = [Segment(0.2, len(words) - 0.1, text, words, speaker, score, speaker, {}, 0.5)] if words else []
    result = dataclasses.replace(result, segments=segments)
    assert json.loads(format_result(result, "json"))["text"] == text
    shown = f"[{speaker} 0.75 ≥ 0.5]  {text}" if speaker else text
    assert (f"  {shown}\n" in format_result(result, "txt")) == bool(words)
    srt = pysubs2.SSAFile.from_string(format_result(result, "srt"), format_="srt", keep_html_tags=True)
    label = f"[{speaker} 0.75 ≥ 0.5] " if speaker else ""
    assert [cue.text.replace("\\N", " ") for cue in srt] == ([label + text] if words else [])
    vtt = list(webvtt.from_string(format_result(result, "vtt")))
    escaped = [each.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for each in (text, speaker or "")]
    assert [cue.text for cue in vtt] == ([escaped[0]] if words else [])
    assert [cue.voice for cue in vtt] == ([escaped[1] or None] if words else [])
    for fmt in ("rttm", "ctm", "textgrid"):
        (tmp_path / fmt).write_text(format_result(result, fmt), encoding="utf-8")
    rttm = [line.split(" ") for line in (tmp_path / "rttm").read_text(encoding="utf-8").splitlines()]
    assert [(len(row), row[7]) for row in rttm] == ([(10, "_".join(speaker.split()))] if words and speaker else [])
    ctm = [line.split(" ") for line in (tmp_path / "ctm").read_text(encoding="utf-8").splitlines()]
    assert [(len(row), row[4]) for row in ctm] == [(6, word.text) for word in words]
    grid = textgrid.openTextgrid(str(tmp_path / "textgrid"), includeEmptyIntervals=False)
    [name] = grid.tierNames
    assert name == (speaker if words and speaker else "words")
    assert [entry.label for entry in grid.getTier(name).entries] == text.split()
    page = format_result(result, "html")
    assert page.count('<button class="word') == len(words) and "<b>" not in page.split("<main")[-1]


def test_rttm_in_lhotse(result: Result, tmp_path: Path) -> None:
    (tmp_path / "a.rttm").write_text(format_result(result, "rttm"))
    read = sorted(SupervisionSet.from_rttm(tmp_path / "a.rttm"), key=lambda s: s.start)
    assert [(s.recording_id, s.start, s.duration, s.speaker) for s in read] == [
        ("some_talk", 0.0, 2.0, "Ann_Lee"), ("some_talk", 4.5, 3.5, "bob"),
    ]  # fmt: skip


def test_ctm_in_lhotse(result: Result, tmp_path: Path) -> None:
    (tmp_path / "a.ctm").write_text(format_result(result, "ctm"))
    whole = SupervisionSet.from_segments([SupervisionSegment("s", "some_talk", 0.0, 8.0, channel=1)])
    read = next(iter(whole.with_alignment_from_ctm(tmp_path / "a.ctm"))).alignment["word"]
    assert [(w.symbol, w.start, round(w.end, 3), w.score) for w in read] == [
        (w.text, w.start_s, w.end_s, w.confidence) for w in words_of(result)
    ]


def test_textgrid_in_praatio(result: Result, tmp_path: Path) -> None:
    (tmp_path / "a.TextGrid").write_text(format_result(result, "textgrid"), encoding="utf-8")
    read = textgrid.openTextgrid(str(tmp_path / "a.TextGrid"), includeEmptyIntervals=False)
    assert read.tierNames == ("Ann Lee", "bob", "unknown") and read.maxTimestamp == 8.0
    for name in read.tierNames:
        found = [(entry.label, entry.start, entry.end) for entry in read.getTier(name).entries]
        assert found == [(w.text, w.start_s, w.end_s) for w in words_of(result) if w.speaker == name]
    gaps = textgrid.openTextgrid(str(tmp_path / "a.TextGrid"), includeEmptyIntervals=True).getTier("bob").entries
    assert [entry.start for entry in gaps] == [0.0, 5.0, 5.4, 6.5] and gaps[-1].end == 8.0


def test_textgrid_of_no_words_and_of_no_speakers(result: Result, tmp_path: Path) -> None:
    silent = dataclasses.replace(result, segments=[])
    nameless = Segment(0.0, 2.0, "hello", [Word("hello", 0.25, 0.6, 0.9, None)], None, None, None, {})
    for one, words in ((silent, []), (dataclasses.replace(result, segments=[nameless]), ["hello"])):
        (tmp_path / "a.TextGrid").write_text(format_result(one, "textgrid"))
        read = textgrid.openTextgrid(str(tmp_path / "a.TextGrid"), includeEmptyIntervals=False)
        assert [entry.label for entry in read.getTier("words").entries] == words


def test_html_holds_the_sound_and_every_word_by_voice_and_loads_nothing(result: Result) -> None:
    page = format_result(result, "html")
    assert page.count('src="data:audio/wav;base64,') == 1 and "default-src 'none'" in page
    assert not re.search(r"(src|href)=\"(?!data:)|https?://|url\(|@import", page)
    buttons = re.findall(
        r'<button class="word ([^"]*)" data-start="([^"]*)" data-end="([^"]*)"[^>]*>(.*?)</button>', page
    )
    assert [(start, text) for _, start, _, text in buttons] == [
        ("0.25", "hello"), ("0.7", "&lt;&#34;there&#34;&gt;"), ("5.0", "yes"), ("5.4", "no"), ("6.5", "well"),
    ]  # fmt: skip
    assert [style.strip() for style, *_ in buttons] == ["c0", "c0 unsure", "c1", "nobody unknown", "c1"]
    assert re.findall(r'<input type="checkbox" checked value="([^"]*)">', page) == ["Ann Lee", "bob", "unknown"]
    assert re.findall(r'data-voice="([^"]*)"', page) == ["Ann Lee", "bob", "unknown", "bob"]
    assert "score 0.83" in page and "clipped: a little" in page
    assert "truncated after 8 s" in format_result(dataclasses.replace(result, damage="truncated after 8 s"), "html")


def test_a_file_name_makes_no_comment_of_the_lines_of_its_ctm(result: Result, tmp_path: Path) -> None:
    (tmp_path / "x.ctm").write_text(format_result(dataclasses.replace(result, audio="talks/;; one.wav"), "ctm"))
    read = meeteval.io.CTM.load(tmp_path / "x.ctm").lines
    assert [line.filename for line in read] == ["one"] * 5


def test_html_of_a_model_that_names_nobody_has_no_boxes(result: Result) -> None:
    words = [dataclasses.replace(word, speaker=None) for word in result.segments[0].words]
    segment = Segment(0.0, 2.0, "hello", words, None, None, None, {})
    page = format_result(dataclasses.replace(result, segments=[segment]), "html")
    assert "<input" not in page and page.count("<button") == 2
    assert "No words were recognised" in format_result(dataclasses.replace(result, segments=[]), "html")


def test_html_needs_the_recording(result: Result) -> None:
    with pytest.raises(AudioError, match="samples: No such file or directory; expected an audio file"):
        format_result(dataclasses.replace(result, audio="samples"), "html")


def test_html_of_a_long_recording_at_a_rate_that_mp3_lacks(result: Result, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(0).normal(0, 0.1, 96000 * 121), 96000)
    page = format_result(dataclasses.replace(result, audio=str(tmp_path / "long.wav")), "html")
    assert 'src="data:audio/mpeg;base64,' in page


def test_a_moment_of_a_long_recording_lies_where_a_browser_looks_for_it() -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 16000 * 121)
    samples[: len(samples) // 2] = 0.0  # at a varying bit rate this half is far smaller
    mp3 = base64.b64decode(embedded_sound(samples, 16000).partition("base64,")[2])
    assert len(mp3) == pytest.approx(121 * 40_000 / 8, rel=0.01)
    assert b"Info" in mp3[:60] and b"Xing" not in mp3[:60]  # so LAME marks a constant rate, and a varying one
