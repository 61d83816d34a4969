"""Normalising and tokenizers: round trips in several scripts, files, unknown characters."""

from __future__ import annotations

from pathlib import Path

import pytest

from speech_mtl.config import TextConfig
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
        ("co\u00adoperate", {}, "cooperate"),
        ("می\u200cخواهم", {}, "میخواهم"),
        ("ភាសា\u200bខ្មែរ", {}, "ភាសា ខ្មែរ"),
        ("donʼt, geht´s ʼ", {}, "don't geht's"),
        ("hastą́ʼígíí ʼʼaʼʼ", {}, "hastą́'ígíí a"),
        ("", {}, ""),
        ("?!", {}, ""),
    ],
)
def test_normalize(text: str, changes: dict, expected: str) -> None:
    assert normalize(text, TextConfig(**changes)) == expected


@pytest.mark.parametrize("case", ["upper", "lower", "keep"])
@pytest.mark.parametrize("text", [*"ΐΰῒῗῢῧßŉ", "T\u0308", "\u03aa\u0301", "e\u00ad\u0301", *TEXTS])
def test_a_normalised_text_is_its_own(case: str, text: str) -> None:
    config = TextConfig.model_validate({"case": case})
    once = normalize(text, config)
    assert normalize(once, config) == once


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
