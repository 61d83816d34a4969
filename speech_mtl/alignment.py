"""A recording and the text that is known of it -> a result with the text's words at their times.

    result = align(Recognizer.from_pretrained(), "meeting.wav", "what was said")

A long recording is heard in windows, as for a transcription; their log-probabilities are joined and the text is laid
along all of them by forced alignment, so that the text needs no cutting. Who speaks is not asked. The memory that an
alignment takes grows with the square of the length.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from speech_mtl import decode
from speech_mtl.audio import Audio, open_sound, watched
from speech_mtl.language import DecodingError
from speech_mtl.level import Level
from speech_mtl.model import SpeechModel
from speech_mtl.recognizer import Recognizer, asr_of
from speech_mtl.results import Result, Segment, Word
from speech_mtl.tasks.asr import ASR
from speech_mtl.text import Tokenizer, normalize
from speech_mtl.windows import cores

DOUBTFUL = 0.01
"""Confidence below which a word is hardly in the sound."""
FILE_NAME = re.compile(r"\S+\.[A-Za-z]\w{0,4}", re.ASCII)
"""A text of one word with such an ending is a mistyped name rather than what was said."""


@dataclass
class Piece:
    """A stretch of the recording, in seconds from its start."""

    start_s: float
    end_s: float
    log_probs_SV: Tensor


def align(
    recognizer: Recognizer, audio: Audio, text: str, on_progress: Callable[[float], None] = lambda share: None
) -> Result:
    """The text's words with their times and confidence, a segment a piece; `on_progress` sees the share heard.

    Raises DecodingError for a text that is empty, too long for the audio or in letters that the model lacks,
    AudioError, and CheckpointError for a model that recognises no text.
    """
    asr = asr_of(recognizer.model)
    ids = _tokens(text, asr.tokenizer)
    sound, level = open_sound(audio, recognizer.sample_rate), Level()
    name = sound.name
    pieces = list(_heard(recognizer.model, asr, watched(sound, level, on_progress)))
    duration_s = round(level.samples / recognizer.sample_rate, 3)
    if level.is_silent or not pieces:
        raise DecodingError(f"{name}: digital silence; there is nothing to align a text with")
    try:
        tokens = decode.align(torch.cat([piece.log_probs_SV for piece in pieces]), ids)
    except ValueError as error:
        raise DecodingError(f"{name}: the text is too long for {duration_s:.2f} s of audio: {error}") from None
    frames = sum(len(piece.log_probs_SV) for piece in pieces)
    words = decode.words(tokens, asr.tokenizer.pieces, asr.frame_s, frames * asr.frame_s)
    pieces[-1].end_s = min(pieces[-1].end_s, duration_s)  # the last frame may reach beyond the last sample
    notes = [level.note] if level.note else []
    if doubtful := sum(word.confidence < DOUBTFUL for word in words):
        notes.append(f"{doubtful} of {len(words)} words are hardly in the sound; does the text belong to it?")
    return Result(name, duration_s, "", _segments(words, pieces, asr.frame_s), notes)


def _tokens(text: str, tokenizer: Tokenizer) -> list[int]:
    written = normalize(text, tokenizer.config)
    if not written:
        raise DecodingError(f"the text {text[:40]!r} has no words to align")
    if unknown := tokenizer.unknown(written):
        letters = ", ".join(repr(char) for char in sorted(unknown))
        words = [word for word in written.split() if unknown & set(word)]
        raise DecodingError(
            f"the text has characters that this model cannot write: {letters}, as in {', '.join(words[:3])}; "
            "numbers and signs must stand as the words that are said"
        )
    return tokenizer.encode(written)


def _heard(model: SpeechModel, asr: ASR, blocks: Iterable[np.ndarray]) -> Iterator[Piece]:
    """The windows of the recording, without its digital silence."""
    for core, _ in cores(model, blocks, asr.name, []):
        start_s = core.start * asr.frame_s
        yield Piece(start_s, start_s + len(core.log_probs_SV) * asr.frame_s, core.log_probs_SV)


def _segments(words: list[decode.Word], pieces: list[Piece], frame_s: float) -> list[Segment]:
    """Each word, timed in the joined frames, goes to the piece that holds its middle, and keeps within it."""
    segments: list[Segment] = []
    joined_s = 0.0
    for piece in pieces:
        next_s = joined_s + len(piece.log_probs_SV) * frame_s
        own = [word for word in words if joined_s <= (word.start_s + word.end_s) / 2 < next_s]
        placed = []
        for word in own:
            times = (piece.start_s + word.start_s - joined_s, piece.start_s + word.end_s - joined_s)
            start_s, end_s = (round(min(max(time, piece.start_s), piece.end_s), 3) for time in times)
            placed.append(Word(word.text, start_s, end_s, word.confidence, None))
        text = " ".join(word.text for word in placed)
        start_s, end_s = round(piece.start_s, 3), round(piece.end_s, 3)
        segments.append(Segment(start_s, end_s, text, placed, None, None, None, {}))
        joined_s = next_s
    return segments


def read_text(given: str) -> str:
    """The content of a text file, or, where there is no such file, the text itself. Raises DecodingError."""
    path = Path(given)
    try:
        is_file = path.is_file()
    except OSError:  # a text that is too long for a name
        is_file = False
    if is_file:
        try:
            return path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise DecodingError(f"{path}: not a text in UTF-8") from None
    if FILE_NAME.fullmatch(given):
        raise DecodingError(f"{given}: no such file; a text is given as words")
    return given
