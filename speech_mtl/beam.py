"""CTC prefix beam search: the most likely text, over all its paths, weighed by whatever else is known of texts.

Hannun et al. 2014 (arXiv 1408.2873): a prefix is kept with the probability of its paths that end in a blank and of
those that do not. An own search and none of the libraries': torchaudio's, on flashlight-text, writes no word outside
its lexicon and boosts none; pyctcdecode needs numpy 1. Pure Python, no torch: the encoder's frames are few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, inf, log1p
from typing import Any, Protocol

TOKEN_FLOOR = -7.0
"""Tokens less likely than e^-7 in a frame are not tried there."""
PREFIX_FLOOR = -14.0
"""Prefixes more than this (natural log) below the best are dropped. With -9 and -20, 360 utterances of AN4's
development speakers had the same texts, at three and a half times the time."""


class Scorer(Protocol):
    """What else is known of a text, as natural logarithms that are added to the sound's. A context is never changed."""

    def start(self) -> Any:
        """The context of the empty text."""

    def extend(self, context: Any, token: int) -> Any:
        """The context after one more token."""

    def bonus(self, context: Any) -> float:
        """What a text that may go on has gained so far."""

    def final(self, context: Any) -> float:
        """What the text has gained if it ends here."""


class Nothing:
    """The scorer that knows nothing: the sound alone decides."""

    def start(self) -> None:
        return None

    def extend(self, context: None, token: int) -> None:
        return None

    def bonus(self, context: None) -> float:
        return 0.0

    def final(self, context: None) -> float:
        return 0.0


@dataclass(eq=False, slots=True)
class Prefix:
    """A text so far, as a node of the tree of all of them; probabilities as natural logarithms."""

    parent: Prefix | None
    token: int
    context: Any
    bonus: float
    children: dict[int, Prefix] = field(default_factory=dict)
    blank: float = -inf
    """Of the paths that end in a blank, up to the last frame."""
    sound: float = -inf
    """Of the paths that end in the prefix's last token."""
    next_blank: float = -inf
    next_sound: float = -inf

    def tokens(self) -> list[int]:
        node, tokens = self, []
        while node.parent is not None:
            tokens.append(node.token)
            node = node.parent
        return tokens[::-1]


def search(
    log_probs: Sequence[Sequence[float]], scorer: Scorer, width: int, token_floor: float = TOKEN_FLOOR,
    prefix_floor: float = PREFIX_FLOOR,
) -> tuple[list[int], float]:  # fmt: skip
    """The best text's tokens and its score, from rows of natural logarithms (S × V, the last column the blank).

    `width` is the number of prefixes kept after each frame.
    """
    root = Prefix(None, -1, context := scorer.start(), scorer.bonus(context), blank=0.0)
    beam = [root]
    for row in log_probs:
        candidates = [(token, p) for token, p in enumerate(row[:-1]) if p > token_floor]
        reached = _step(beam, row, candidates, scorer)
        beam = _best(reached, width, prefix_floor)
    scores = [_add(node.blank, node.sound) + scorer.final(node.context) for node in beam]
    best = max(range(len(beam)), key=scores.__getitem__)
    return beam[best].tokens(), scores[best]


def _step(
    beam: list[Prefix], row: Sequence[float], candidates: list[tuple[int, float]], scorer: Scorer
) -> list[Prefix]:
    """One frame: every prefix stays (by a blank, or its last token once more) and is extended by every candidate."""
    reached: list[Prefix] = []
    for node in beam:
        total = _add(node.blank, node.sound)
        _reach(reached, node, total + row[-1], -inf)
        if node.parent is not None:
            _reach(reached, node, -inf, node.sound + row[node.token])
        for token, log_prob in candidates:
            # a token follows itself as a new one only after a blank
            came = (node.blank if token == node.token else total) + log_prob
            if came == -inf:
                continue
            child = node.children.get(token)
            if child is None:
                context = scorer.extend(node.context, token)
                child = node.children[token] = Prefix(node, token, context, scorer.bonus(context))
            _reach(reached, child, -inf, came)
    for node in reached:
        node.blank, node.sound, node.next_blank, node.next_sound = node.next_blank, node.next_sound, -inf, -inf
    return reached


def _reach(reached: list[Prefix], node: Prefix, blank: float, sound: float) -> None:
    """Paths arrive at a prefix; the first ones enter it in the list."""
    if blank == -inf and sound == -inf:
        return
    if node.next_blank == -inf and node.next_sound == -inf:
        reached.append(node)
    node.next_blank, node.next_sound = _add(node.next_blank, blank), _add(node.next_sound, sound)


def _best(reached: list[Prefix], width: int, floor: float) -> list[Prefix]:
    ranked = sorted(((_add(node.blank, node.sound) + node.bonus, i) for i, node in enumerate(reached)), reverse=True)
    lowest = ranked[0][0] + floor
    kept = [reached[i] for score, i in ranked[:width] if score >= lowest]
    dropped = set(reached) - set(kept)
    for node in dropped:  # a prefix that is met again later starts anew
        node.blank = node.sound = -inf
    for node in dropped:
        _forget(node)
    return kept


def _forget(node: Prefix) -> None:
    """Take a dropped prefix out of the tree, unless longer ones hang on it: memory stays with what is alive."""
    while node.parent is not None and not node.children and node.blank == node.sound == -inf:
        node.parent.children.pop(node.token, None)
        node = node.parent


def _add(a: float, b: float) -> float:
    """log(e^a + e^b)."""
    if a < b:
        a, b = b, a
    return a if b == -inf else a + log1p(exp(b - a))
