"""CTC log-probabilities to text: greedy decoding, alignment with a known text, words with times and confidence.

Takes log_probs_SV (encoder frames × vocabulary, the last column the blank). A token's place is the run of frames in
which the best path writes it (Graves et al. 2006, "best path decoding"), or the best path of a given text (forced
alignment). A CTC model writes a token in a frame or two some time after its sound began, so a word's times are
estimated from where its first and last tokens stand.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import exp, inf

import torch
from torch import Tensor

from speech_mtl.text import WORD_MARK

LEAD_S = 0.085
"""A word begins so long before the frame of its first token."""
SPOKEN_SHARE, TAIL_S = 0.7, 0.12
"""A word ends this share of the way from its first token to the end of its last, and TAIL_S later, but no later than
the next word begins. The three were chosen on the synthetic development voices (benchmarks/word_times.py); the plain
end would be early in short words, late in long ones."""
WORD_S = 1.0
"""What is longer, as all that is said between two pauses is in a script without spaces, counts in full beyond it."""


@dataclass(frozen=True)
class Word:
    """A word with its times in seconds from the first frame's beginning."""

    text: str
    start_s: float
    end_s: float
    confidence: float
    """Geometric mean of its tokens' probabilities, 0 to 1."""


@dataclass
class Token:
    """A token in encoder frames start..end, `end` not among them, with its log-probability in the likeliest of them."""

    id: int
    start: int
    end: int
    log_prob: float


def greedy(log_probs_SV: Tensor) -> list[Token]:
    """The best path's tokens: repeats merged, blanks dropped."""
    return _written(log_probs_SV, log_probs_SV.argmax(dim=1))


def align(log_probs_SV: Tensor, ids: list[int]) -> list[Token]:
    """The frames in which the most likely path of a known text writes each of its tokens.

    Raises ValueError where the text needs more frames than there are.
    """
    blank = log_probs_SV.size(1) - 1
    if (needed := frames_needed(ids)) > len(log_probs_SV):
        raise ValueError(f"{len(ids)} tokens need {needed} encoder frames, the audio has {len(log_probs_SV)}")
    if not ids:
        return []
    from speech_mtl.torchaudio_pair import torchaudio

    targets_1L = torch.tensor([ids], dtype=torch.int32, device="cpu")
    path_1S, _ = torchaudio.functional.forced_align(log_probs_SV[None].contiguous(), targets_1L, blank=blank)
    return _written(log_probs_SV, path_1S[0])


def _written(log_probs_SV: Tensor, path_S: Tensor) -> list[Token]:
    """What a path writes: every run of a token in a row is one."""
    blank = log_probs_SV.size(1) - 1
    ids, counts = torch.unique_consecutive(path_S, return_counts=True)
    tokens, start = [], 0
    for token, count in zip(ids.tolist(), counts.tolist(), strict=True):
        if token != blank:
            log_prob = log_probs_SV[start : start + count, token].max().item()
            tokens.append(Token(token, start, start + count, log_prob))
        start += count
    return tokens


def frames_needed(ids: list[int]) -> int:
    """The fewest frames CTC can write these tokens in: one each, and a blank between equal neighbours."""
    return len(ids) + sum(a == b for a, b in pairwise(ids))


def words(tokens: list[Token], pieces: list[str], frame_s: float, limit_s: float = inf) -> list[Word]:
    """Tokens grouped at the '▁' that opens a word; `frame_s` is the length of an encoder frame.

    No word ends after `limit_s`, the length of the audio.
    """
    groups: list[list[Token]] = []
    for token in tokens:
        if pieces[token.id].startswith(WORD_MARK) or not groups:
            groups.append([])
        if pieces[token.id] not in ("", WORD_MARK):
            groups[-1].append(token)
    groups = [group for group in groups if group]
    result = []
    for group, (start_s, end_s) in zip(groups, _times(groups, frame_s, limit_s), strict=True):
        text = "".join(pieces[token.id] for token in group).removeprefix(WORD_MARK)
        log_prob = sum(token.log_prob for token in group) / len(group)
        result.append(Word(text, start_s, end_s, confidence=round(exp(log_prob), 4)))
    return result


def _times(groups: list[list[Token]], frame_s: float, limit_s: float) -> list[tuple[float, float]]:
    """(start, end) in seconds of words, each given by its tokens: in order, none empty, none over another."""
    starts: list[float] = []
    for group in groups:
        earliest = starts[-1] + frame_s if starts else 0.0
        starts.append(max(earliest, group[0].start * frame_s - LEAD_S))
    times = []
    for group, start_s, next_s in zip(groups, starts, [*starts, limit_s][1:], strict=True):
        first_s, last_s = group[0].start * frame_s, group[-1].end * frame_s
        word_s, beyond_s = min(last_s - first_s, WORD_S), max(last_s - first_s - WORD_S, 0.0)
        end_s = min(first_s + SPOKEN_SHARE * word_s + beyond_s + TAIL_S, next_s)
        times.append((round(start_s, 3), round(end_s, 3)))
    return times
