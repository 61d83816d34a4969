"""Texts to tokens and back: one writing policy, one tokenizer file format.

A text is normalised (NFKC, casing, punctuation) before it becomes tokens and before it is scored, by the same function.
The tokenizer is a Hugging Face `tokenizers` file, tokenizer.json, whose units are characters or BPE pieces; a space is
the visible '▁' that opens a word. The CTC blank is not a token: its id is the vocabulary's size, the last output.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from speech_mtl.config import TextConfig

WORD_MARK = "▁"
ZERO_WIDTH_SPACE = "\u200b"
APOSTROPHES = {"'", "’", "ʼ"}


def normalize(text: str, config: TextConfig) -> str:
    """The text as the model writes it: NFKC, single spaces, and the config's casing and punctuation."""
    text = unicodedata.normalize("NFKC", text.replace("´", "'"))  # NFKC makes the accent a space and a mark
    if config.case != "keep":
        text = text.lower() if config.case == "lower" else text.upper()
    if config.punctuation == "remove":
        # format characters (Cf), such as soft hyphens and joiners, are within words; the space of no width is not
        text = "".join(char for char in text if unicodedata.category(char) != "Cf" or char == ZERO_WIDTH_SPACE)
        text = "".join(_keep_or_space(text, i) for i in range(len(text)))
    # capitals of some letters are several, and what a removed character parted may be one: written twice is as once
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _keep_or_space(text: str, i: int) -> str:
    char = text[i]
    if char in APOSTROPHES:
        return "'" if 0 < i < len(text) - 1 and _in_word(text[i - 1]) and _in_word(text[i + 1]) else " "
    # punctuation (P) and symbols (S) separate words
    return " " if unicodedata.category(char)[0] in "PSC" else char


def _in_word(char: str) -> bool:
    """Letters (L), but not the apostrophe that is one, and marks (M), which belong to letters in many scripts."""
    return unicodedata.category(char)[0] in "LM" and char not in APOSTROPHES


class Tokenizer:
    """Encode normalised text to token ids, decode ids to text; saved as tokenizer.json."""

    def __init__(self, tokenizer: HFTokenizer, config: TextConfig):
        self._tokenizer, self.config = tokenizer, config
        # an imported tokenizer's special tokens, such as <unk>, stand for no text
        special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
        vocab = sorted(tokenizer.get_vocab().items(), key=lambda kv: kv[1])
        self.pieces: list[str] = ["" if piece in special else piece for piece, _ in vocab]
        self.blank = len(self.pieces)

    def __len__(self) -> int:
        return len(self.pieces)

    @classmethod
    def train(cls, texts: Iterable[str], config: TextConfig) -> Tokenizer:
        """Learn the units from training texts. Raises ValueError when they hold no character."""
        texts = [normalize(text, config) for text in texts]
        alphabet = sorted({char for text in texts for char in text if char != " "})
        if not alphabet:
            raise ValueError("no text to learn a tokenizer from: every training text is empty")
        tokenizer = HFTokenizer(models.BPE(unk_token=None))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
        size = config.vocab_size if config.units == "bpe" else 0  # no room for merges leaves the characters
        trainer = trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=[WORD_MARK, *alphabet], special_tokens=[], show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer, config)

    @classmethod
    def load(cls, path: Path, config: TextConfig) -> Tokenizer:
        return cls(HFTokenizer.from_file(str(path)), config)

    def save(self, path: Path) -> None:
        self._tokenizer.save(str(path))

    def encode(self, text: str) -> list[int]:
        """Ids of a text's tokens; characters the tokenizer never saw are left out (see `unknown`)."""
        return self._tokenizer.encode(normalize(text, self.config)).ids

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join("".join(self.pieces[i] for i in ids).replace(WORD_MARK, " ").split())

    def unknown(self, text: str) -> set[str]:
        """Characters of the normalised text that no token stands for."""
        return set(normalize(text, self.config)) - set(self.pieces) - {" "}
