"""CTC log-probabilities to text: greedy decoding, words with times and confidence.

Takes log_probs_SV (encoder frames × vocabulary, the last column the blank). A token's time is the run of frames in
which it is the best; Graves et al. 2006 ("best path decoding").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from speech_mtl.text import WORD_MARK


@dataclass(frozen=True)
class Word:
    """A word with its times in seconds, from its first token's first frame to its last token's last frame."""

    text: str
    start_s: float
    end_s: float
    confidence: float
    """Geometric mean of its tokens' probabilities, 0 to 1."""


@dataclass
class Token:
    id: int
    start: int
    end: int
    log_prob: float


def greedy(log_probs_SV: Tensor) -> list[Token]:
    """The best path's tokens: repeats merged, blanks dropped."""
    blank = log_probs_SV.size(1) - 1
    best_S, ids_S = log_probs_SV.max(dim=1)
    ids, counts = torch.unique_consecutive(ids_S, return_counts=True)
    tokens, start = [], 0
    for token, count in zip(ids.tolist(), counts.tolist(), strict=True):
        if token != blank:
            log_prob = best_S[start : start + count].max().item()
            tokens.append(Token(token, start, start + count, log_prob))
        start += count
    return tokens


def words(tokens: list[Token], pieces: list[str], frame_s: float) -> list[Word]:
    """Tokens grouped at the '▁' that opens a word; `frame_s` is the length of an encoder frame."""
    groups: list[list[Token]] = []
    for token in tokens:
        if pieces[token.id].startswith(WORD_MARK) or not groups:
            groups.append([])
        if pieces[token.id] not in ("", WORD_MARK):
            groups[-1].append(token)
    result = []
    for group in filter(None, groups):
        text = "".join(pieces[token.id] for token in group).removeprefix(WORD_MARK)
        log_prob = sum(token.log_prob for token in group) / len(group)
        times = (round(group[0].start * frame_s, 3), round(group[-1].end * frame_s, 3))
        result.append(Word(text, *times, confidence=round(float(torch.tensor(log_prob).exp()), 4)))
    return result
