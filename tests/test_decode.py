"""Greedy decoding, forced alignment and word times: hand-worked cases, and alignment against all paths."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE
from test_recognizer import save_tiny, speech

from speech_mtl.alignment import align as align_recording
from speech_mtl.alignment import read_text
from speech_mtl.decode import Token, align, greedy, words
from speech_mtl.language import Decoding, DecodingError
from speech_mtl.recognizer import Recognizer


def test_greedy_path_worked_by_hand() -> None:
    """Frames: blank a a blank a ▁ b b -> 'aa b'; times at 0.1 s a frame by decode's constants."""
    pieces = ["a", "b", "▁"]
    path = [3, 0, 0, 3, 0, 2, 1, 1]
    log_probs_SV = torch.full((8, 4), 0.1 / 3).log()
    log_probs_SV[range(8), path] = torch.tensor([0.9, 0.5, 0.9, 0.9, 0.4, 0.9, 0.9, 0.9]).log()
    tokens = greedy(log_probs_SV)
    assert [(t.id, t.start, t.end) for t in tokens] == [(0, 1, 3), (0, 4, 5), (2, 5, 6), (1, 6, 8)]
    found = words(tokens, pieces, 0.1)
    assert words(tokens, pieces, 0.1, limit_s=0.7)[-1].end_s == 0.7
    assert [(w.text, w.start_s, w.end_s) for w in found] == [("aa", 0.015, 0.5), ("b", 0.515, 0.86)]
    assert [w.confidence for w in found] == [0.6, 0.9]  # the second a is heard with 0.4: the root of 0.9 * 0.4


def test_a_long_run_without_spaces_ends_where_its_sound_does() -> None:
    """A word of up to 1 s ends at 0.7 of its tokens' span, and 0.12 s later; what is beyond 1 s counts in full."""
    for frames, end_s in ((5, 0.47), (10, 0.82), (11, 0.92), (200, 19.82)):
        tokens = [Token(0, i, i + 1, -0.1) for i in range(frames)]
        assert [word.end_s for word in words(tokens, ["私"], 0.1)] == [end_s]


def test_nothing_but_blanks_is_no_word() -> None:
    log_probs_SV = torch.tensor([[0.01, 0.99]]).log().repeat(5, 1)
    assert words(greedy(log_probs_SV), ["a"], 0.04) == []


def test_words_follow_one_another_however_close_their_tokens_are() -> None:
    """All at the recording's very beginning: none is empty, none begins before the one before it."""
    tokens = [Token(i % 2, i, i + 1, -0.1) for i in range(8)]  # ▁ a ▁ a ...
    found = words(tokens, ["▁", "a"], 0.04, limit_s=0.32)
    times = [time for word in found for time in (word.start_s, word.end_s)]
    assert len(found) == 4 and times == sorted(times) and times[-1] <= 0.32
    assert all(word.start_s < word.end_s for word in found)


@pytest.mark.parametrize("ids", [[0], [0, 1], [1, 1], [0, 1, 0], [2, 2, 1], []])
def test_alignment_is_the_best_of_all_paths(ids: list[int]) -> None:
    log_probs_SV = torch.randn(5, 4, generator=torch.Generator().manual_seed(len(ids))).log_softmax(dim=1)
    paths = [
        path for path in itertools.product(range(4), repeat=5)
        if [token for token, _ in itertools.groupby(path) if token != 3] == ids
    ]  # fmt: skip
    best = max(paths, key=lambda path: sum(log_probs_SV[s, token].item() for s, token in enumerate(path)))
    expected, place = [], 0
    for token, run in itertools.groupby(best):
        length = len(list(run))
        if token != 3:
            expected.append((token, place, place + length))
        place += length
    assert [(t.id, t.start, t.end) for t in align(log_probs_SV, ids)] == expected


def test_a_text_too_long_for_the_frames_is_refused() -> None:
    log_probs_SV = torch.zeros(3, 3).log_softmax(dim=1)
    with pytest.raises(ValueError, match="3 tokens need 4 encoder frames, the audio has 3"):
        align(log_probs_SV, [0, 0, 1])


def test_aligning_what_the_best_path_says_gives_its_places() -> None:
    log_probs_SV = (3 * torch.randn(60, 6, generator=torch.Generator().manual_seed(1))).log_softmax(dim=1)
    found = greedy(log_probs_SV)
    again = align(log_probs_SV, [token.id for token in found])
    assert [(t.id, t.start, t.end) for t in again] == [(t.id, t.start, t.end) for t in found]
    assert [t.log_prob for t in again] == pytest.approx([t.log_prob for t in found])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("duration_s", [4.0, 34.0])
def test_a_known_text_gets_times(folder, tmp_path, duration_s: float) -> None:
    recognizer = Recognizer.from_pretrained(folder, db=tmp_path / "s.db")
    samples = np.concatenate([speech(duration_s / 2), np.zeros(RATE, dtype=np.float32), speech(duration_s / 2, seed=1)])
    text = "Low, MID high low!"
    result = align_recording(recognizer, (samples, RATE), text)
    assert result.text == "low mid high low" and result.duration_s == duration_s + 1
    found = [word for segment in result.segments for word in segment.words]
    times = [time for word in found for time in (word.start_s, word.end_s)]
    assert times == sorted(times) and times[-1] <= result.duration_s
    for segment in result.segments:
        assert all(segment.start_s <= word.start_s <= word.end_s <= segment.end_s for word in segment.words)
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    (tmp_path / "a.txt").write_text(text)
    again = align_recording(recognizer, tmp_path / "a.wav", read_text(str(tmp_path / "a.txt")))
    assert again.segments == result.segments


def test_no_time_is_beyond_the_recording(folder, tmp_path) -> None:
    """The text fills every encoder frame; the last one has few samples."""
    recognizer = Recognizer.from_pretrained(folder, db=tmp_path / "s.db")
    result = align_recording(recognizer, (speech(2.0)[: RATE + 500], RATE), "mid low " * 3 + "l")
    times = [time for word in result.segments[0].words for time in (word.start_s, word.end_s)]
    assert result.duration_s == 1.031 and times == sorted(times)
    assert max(times) == result.segments[0].end_s == result.duration_s


def test_words_that_are_hardly_in_the_sound_are_counted(folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("speech_mtl.alignment.DOUBTFUL", 1.1)
    result = align_recording(Recognizer.from_pretrained(folder, db=tmp_path / "s.db"), (speech(2.0), RATE), "low mid")
    assert result.notes == ["2 of 2 words are hardly in the sound; does the text belong to it?"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mid " * 60, "samples: the text is too long for 1.00 s of audio: 240 tokens need 240 encoder frames"),
        ("low 7 mid café", "characters that this model cannot write: '7', 'a', 'c', 'f', 'é', as in 7, café"),
        ("low T\u0308", "characters that this model cannot write: 'ẗ', as in ẗ"),
        ("?!", "has no words to align"),
    ],
)
def test_texts_that_cannot_be_aligned_are_refused(folder, tmp_path, text: str, message: str) -> None:
    recognizer = Recognizer.from_pretrained(folder, db=tmp_path / "s.db")
    with pytest.raises(DecodingError, match=message):
        align_recording(recognizer, (speech(1.0), RATE), text)


def test_a_file_name_that_leads_nowhere_is_no_text(tmp_path) -> None:
    for name in ("missing.txt", str(tmp_path / "script.md"), "скрипт.txt"):
        with pytest.raises(DecodingError, match=r"\.(txt|md): no such file; a text is given as words"):
            read_text(name)
    for text in ("low", "low.", "what?!", "read missing.txt", "3.5", "今天。明天", "u.s.", "low " * 2000):
        assert read_text(text) == text


def test_silence_has_nothing_to_align_with(folder, tmp_path) -> None:
    recognizer = Recognizer.from_pretrained(folder, db=tmp_path / "s.db")
    with pytest.raises(DecodingError, match="digital silence"):
        align_recording(recognizer, (np.zeros(RATE, dtype=np.float32), RATE), "low")


def test_words_of_a_beam_search_keep_times_and_confidence(folder, tmp_path) -> None:
    recognizer = Recognizer.from_pretrained(
        folder, db=tmp_path / "s.db", decoding=Decoding(hot_words=("mid",), boost=50.0)
    )
    result = recognizer.transcribe((speech(3.0), RATE))
    found = result.segments[0].words
    assert "mid" in result.text.split() and [word.text for word in found] == result.text.split()
    times = [time for word in found for time in (word.start_s, word.end_s)]
    assert times == sorted(times) and all(0 <= word.confidence <= 1 for word in found)
    assert any(note.startswith("hot words: changed ") and "mid " in note for note in result.notes)
