"""Other projects' tokenizers -> ours: a Hugging Face tokenizer.json, or a sentencepiece model file.

Both hold pieces of words, the first of a word marked '▁', with ids 0..size-1; what has a higher id (the padding that
stands for the CTC blank) is left out, since our blank is no token. What such a tokenizer does to a text before it cuts
it into pieces is left out as well: here that is `text.normalize`.
The layout of a sentencepiece file (a protocol buffer) is that of sentencepiece_model.proto in google/sentencepiece.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from typing import Any

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer

from speech_mtl.checkpoint import CheckpointError
from speech_mtl.config import TextConfig
from speech_mtl.text import APOSTROPHES, WORD_MARK, normalize

UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # SentencePiece.Type
BYTE_PIECE = re.compile("<0x[0-9A-Fa-f]{2}>")


def from_hugging_face(text: str, size: int, origin: str) -> HFTokenizer:
    """A tokenizer.json's content as ours, with `size` pieces. Raises CheckpointError."""
    try:
        described = json.loads(text)
        model = described["model"]
        kind, vocab = model["type"], model["vocab"]
        added = [token for token in described.get("added_tokens") or [] if token["id"] < size]
        if kind == "BPE":
            model["vocab"] = {piece: i for piece, i in vocab.items() if i < size}
            pieces = list(model["vocab"])
        elif kind == "Unigram":
            model["vocab"] = vocab[:size]
            pieces = [piece for piece, _ in model["vocab"]]
        else:
            raise CheckpointError(f"{origin}: a tokenizer of type {kind!r}; accepted: BPE, Unigram")
        _check_pieces({*pieces, *(token["content"] for token in added)}, size, origin)
        kept = {"version": described.get("version", "1.0"), "model": model, "added_tokens": added}
        return _with_word_marks(HFTokenizer.from_str(json.dumps(kept)))
    except CheckpointError:
        raise
    except Exception as error:  # the tokenizers package raises plain Exception
        raise CheckpointError(f"{origin}: not a tokenizer file: {type(error).__name__}: {error}") from None


def from_sentencepiece(data: bytes, size: int, origin: str) -> HFTokenizer:
    """A sentencepiece model as our tokenizer, with `size` pieces. Raises CheckpointError."""
    try:
        fields = list(_fields(data))
        found = [_piece(value) for number, value in fields if number == 1]
        kinds = [dict(_fields(value)).get(3, UNIGRAM) for number, value in fields if number == 2]
        opens = all(dict(_fields(value)).get(3, 1) for number, value in fields if number == 3)  # add_dummy_prefix
    except (IndexError, KeyError, ValueError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointError(f"{origin}: not a sentencepiece model: {error}") from None
    if not found or len(kinds) != 1:
        raise CheckpointError(f"{origin}: not a sentencepiece model: it holds {len(found)} pieces")
    if kinds[0] not in (UNIGRAM, BPE):
        raise CheckpointError(f"{origin}: a sentencepiece model of type {kinds[0]}; accepted: 1 (unigram), 2 (BPE)")
    _check_pieces({piece for piece, _, _ in found}, size, origin)
    unknown = [i for i, (_, _, kind) in enumerate(found) if kind == UNKNOWN]
    ids = {piece: i for i, (piece, _, _) in enumerate(found)}
    if kinds[0] == BPE:
        scores = {piece: score for piece, score, kind in found if kind == NORMAL}
        model: Any = models.BPE(
            ids, _merges(scores, ids), unk_token=found[unknown[0]][0] if unknown else None, fuse_unk=True
        )
    else:
        model = models.Unigram([(piece, score) for piece, score, _ in found], unk_id=unknown[0] if unknown else None)
    tokenizer = HFTokenizer(model)
    tokenizer.add_tokens([
        AddedToken(piece, special=kind != USER_DEFINED, normalized=False)
        for piece, _, kind in found if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ])  # fmt: skip
    return _with_word_marks(tokenizer, opens)


def text_policy(pieces: list[str]) -> TextConfig:
    """How a recogniser with these pieces writes: what they have no letter or mark for is not asked of its texts.

    So a model of lower-case letters is trained on and scored against lower-case texts, whatever a corpus has.
    """
    text = "".join(pieces).replace(WORD_MARK, "")
    case = "keep" if any(char.isupper() for char in text) else "lower"
    marked = normalize(text, TextConfig(case="keep", punctuation="remove")).replace(" ", "")
    spoken = "".join(char for char in normalize(text, TextConfig(case="keep", punctuation="keep")) if char != " ")
    plain = all(char in APOSTROPHES for char in set(spoken) - set(marked))
    values = {"units": "bpe", "vocab_size": max(len(pieces), 2), "case": case}
    return TextConfig.model_validate(values | {"punctuation": "remove" if plain else "keep"})


def _check_pieces(pieces: set[str], size: int, origin: str) -> None:
    if len(pieces) != size:
        raise CheckpointError(f"{origin}: {len(pieces)} pieces below the blank; accepted: {size}, one per output")
    if not any(piece.startswith(WORD_MARK) for piece in pieces):
        raise CheckpointError(
            f"{origin}: no piece starts with '{WORD_MARK}'; accepted: pieces that mark a word's start so"
        )
    if odd := sorted(piece for piece in pieces if WORD_MARK in piece[1:]):
        raise CheckpointError(f"{origin}: '{WORD_MARK}' within the piece {odd[0]!r}; accepted: at its start alone")
    if as_bytes := sorted(filter(BYTE_PIECE.fullmatch, pieces)):
        raise CheckpointError(f"{origin}: the piece {as_bytes[0]!r} stands for a byte; accepted: pieces of text")


def _with_word_marks(tokenizer: HFTokenizer, first: bool = True) -> HFTokenizer:
    """Marks in the place of spaces and, with `first`, before a text; none after a user-defined piece within a word."""
    scheme = "first" if first else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return tokenizer


def _merges(scores: dict[str, float], ids: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to join two pieces into one, best first: sentencepiece joins what makes the best-scored piece."""
    found = [
        (-score, len(piece), i, piece)
        for piece, score in scores.items() for i in range(1, len(piece))
        if piece[:i] in ids and piece[i:] in ids
    ]  # fmt: skip
    return [(piece[:i], piece[i:]) for _, _, i, piece in sorted(found)]


def _piece(data: bytes) -> tuple[str, float, int]:
    """(piece, score, type) of a SentencePiece message."""
    fields = dict(_fields(data))
    (score,) = struct.unpack("<f", fields.get(2, bytes(4)))
    return fields[1].decode("utf-8"), score, fields.get(3, NORMAL)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The (number, value) fields of a protocol-buffer message: an int, or the bytes of anything else."""
    at = 0

    def number() -> int:
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = data[at]
            value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
            if byte < 128:
                return value

    while at < len(data):
        tag = number()
        if tag & 7 == 0:
            yield tag >> 3, number()
            continue
        size = {1: 8, 5: 4}.get(tag & 7) or (number() if tag & 7 == 2 else -1)
        if not 0 <= size <= len(data) - at:
            raise ValueError(f"field {tag >> 3} does not fit at byte {at} of {len(data)}")
        yield tag >> 3, data[at : at + size]
        at += size
