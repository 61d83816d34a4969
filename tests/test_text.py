"""Normalising and tokenizers: round trips in several scripts, files, unknown characters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from speech_mtl.config import TextConfig
from speech_mtl.decode import greedy, words
from speech_mtl.text import Tokenizer, normalize

TEXTS = ["hello there", "it's the third", "日本語 テスト", "ünïcode ñ", "नमस्ते दुनिया", "привет мир", "مرحبا"]


@pytest.mark.parametrize(
    ("text", "changes", "expected"),
    [
        ("  Hello,  WORLD! ", {}, "hello world"),
        ("Don’t say 'yes'", {}, "don't say yes"),
        ("ﬁve ①", {}, "five 1"),
        ("Hello", {"case": "upper"}, "HELLO"),
        ("Hello, you.", {"case": "keep", "punctuation": "keep"}, "Hello, you."),
        ("नमस्ते!", {}, "नमस्ते"),
        ("", {}, ""),
        ("?!", {}, ""),
    ],
)
def test_normalize(text: str, changes: dict, expected: str) -> None:
    assert normalize(text, TextConfig(**changes)) == expected


@pytest.mark.parametrize("units", ["characters", "bpe"])
@pytest.mark.parametrize("text", [*TEXTS, ""])
def test_round_trip(units: str, text: str, tmp_path: Path) -> None:
    config = TextConfig.model_validate({"units": units, "vocab_size": 90})
    tokenizer = Tokenizer.train(TEXTS, config)
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json", config)
    assert again.encode(text) == tokenizer.encode(text)
    assert again.decode(again.encode(text)) == normalize(text, config)
    assert again.blank == len(again) == len(again.pieces)


def test_characters_are_single_and_pieces_are_not() -> None:
    plain = Tokenizer.train(["seven seven"], TextConfig())
    pieces = Tokenizer.train(["seven seven"], TextConfig(units="bpe", vocab_size=30))
    assert all(len(piece) == 1 for piece in plain.pieces)
    assert pieces.encode("seven") == [pieces.pieces.index("▁seven")]


def test_unknown_characters_are_named() -> None:
    tokenizer = Tokenizer.train(["abc"], TextConfig())
    assert tokenizer.unknown("cab") == set() and tokenizer.unknown("a, z q") == {"z", "q"}


def test_no_text_is_an_error() -> None:
    with pytest.raises(ValueError, match="every training text is empty"):
        Tokenizer.train(["", "?"], TextConfig())


def test_greedy_path_worked_by_hand() -> None:
    """Frames: blank a a blank a ▁ b b -> 'aa b'; times at 0.1 s a frame."""
    pieces = ["a", "b", "▁"]
    path = [3, 0, 0, 3, 0, 2, 1, 1]
    log_probs_SV = torch.full((8, 4), 0.1 / 3).log()
    log_probs_SV[range(8), path] = torch.tensor(0.9).log()
    tokens = greedy(log_probs_SV)
    assert [(t.id, t.start, t.end) for t in tokens] == [(0, 1, 3), (0, 4, 5), (2, 5, 6), (1, 6, 8)]
    found = words(tokens, pieces, 0.1)
    assert [(w.text, w.start_s, w.end_s) for w in found] == [("aa", 0.1, 0.5), ("b", 0.6, 0.8)]
    assert all(abs(w.confidence - 0.9) < 1e-3 for w in found)


def test_nothing_but_blanks_is_no_word() -> None:
    log_probs_SV = torch.tensor([[0.01, 0.99]]).log().repeat(5, 1)
    assert words(greedy(log_probs_SV), ["a"], 0.04) == []
