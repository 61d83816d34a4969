"""Words in a row, taken to be of one voice: phrases, which end at pauses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf

import numpy as np

from speech_mtl.decode import Word

PAUSE_S = 0.22
"""A longer pause between two words ends a phrase."""
PHRASE_S = 2.5
"""A longer phrase is cut at its longest pause, whatever that is."""
MARGIN_S = 0.32
"""What is pooled of the pause on either side, at most half of it: CTC writes its tokens inside their sounds."""


@dataclass(frozen=True)
class Phrase:
    """Words in a row with the voice they were said in."""

    words: list[Word]
    embedding: np.ndarray | None
    """(E,) of length 1; None where the model has no speaker task."""
    labels: dict[str, np.ndarray]
    """Classify tasks' log-probabilities over this phrase by task name."""
    pieces: list[Phrase] = field(default_factory=list)
    """Its words, one by one."""

    @property
    def start_s(self) -> float:
        return self.words[0].start_s

    @property
    def end_s(self) -> float:
        return self.words[-1].end_s


def phrases_of(words: Sequence[Word]) -> list[list[Word]]:
    """Words of a stretch, cut at pauses, and where a phrase would be too long at its longest one."""
    done: list[list[Word]] = []
    to_do = [[words[0]]] if words else []
    for before, word in pairwise(words):
        if word.start_s - before.end_s > PAUSE_S:
            to_do.append([])
        to_do[-1].append(word)
    to_do.reverse()
    while to_do:
        run = to_do.pop()
        if len(run) > 1 and run[-1].end_s - run[0].start_s > PHRASE_S:
            middle_s = (run[0].start_s + run[-1].end_s) / 2
            # of pauses alike, the one nearest to the middle
            worth = [b.start_s - a.end_s - 0.1 * abs((a.end_s + b.start_s) / 2 - middle_s) for a, b in pairwise(run)]
            cut = int(np.argmax(worth)) + 1
            to_do += [run[cut:], run[:cut]]
        else:
            done.append(run)
    return done


def pooled(runs: list[list[Word]]) -> list[tuple[float, float]]:
    """What is pooled of each of some runs of words in order: (first, last) in seconds."""
    middles_s = [(before[-1].end_s + run[0].start_s) / 2 for before, run in pairwise(runs)]
    return [
        (max(run[0].start_s - MARGIN_S, first_s), min(run[-1].end_s + MARGIN_S, last_s))
        for run, first_s, last_s in zip(runs, [-inf, *middles_s], [*middles_s, inf], strict=False)
    ]
