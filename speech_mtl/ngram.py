"""Texts -> an n-gram language model as an ARPA file, by interpolated Kneser-Ney smoothing.

Kneser & Ney 1995, "Improved backing-off for m-gram language modeling", in the interpolated form of Chen & Goodman 1998:

    p(w | h) = (c(h w) - D) / c(h) + D t(h) / c(h) · p(w | h')

h' is h without its first word, t(h) the number of different words seen after h. In the longest n-grams, and in those
that begin a text, c counts; in all others it is the number of different words seen before h w, for a word that always
follows the same one says little of other places. The back-off weight of h is D t(h) / c(h). Unigrams are mixed with the
uniform distribution over the words, </s> and <unk>.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from math import log, log10

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
MIN_ORDER, MAX_ORDER = 2, 6
"""Words in the longest n-gram that the reader, KenLM, is built for."""
DISCOUNT = 0.9
"""D. On AN4's development speakers 0.9, 0.75, one D for every order and Chen & Goodman's three by counts of counts did
alike; it is as high as this because the texts at hand are few, and most n-grams seen once are chance."""

Ngram = tuple[str, ...]


def count(texts: Iterable[str], order: int) -> dict[Ngram, Counter[str]]:
    """context -> the counts of the words after it, for contexts of 0 to order - 1 words. Raises ValueError.

    Words are separated by spaces. An empty text says nothing.
    """
    if not MIN_ORDER <= order <= MAX_ORDER:
        raise ValueError(f"order {order}; expected {MIN_ORDER} to {MAX_ORDER}")
    after: dict[Ngram, Counter[str]] = defaultdict(Counter)
    for text in texts:
        words = text.split()
        if reserved := {START, END, UNKNOWN} & set(words):
            raise ValueError(f"text {text!r} holds {min(reserved)}, which has a meaning of its own in a language model")
        if words:
            sentence = [START, *words, END]
            for i in range(1, len(sentence)):
                for length in range(min(order, i + 1)):
                    after[tuple(sentence[i - length : i])][sentence[i]] += 1
    if not after:
        raise ValueError("no text to estimate a language model from: every text is empty")
    return dict(after)


def estimate(after: dict[Ngram, Counter[str]]) -> tuple[dict[Ngram, float], dict[Ngram, float]]:
    """(probability by n-gram, back-off weight by context) from counts; every context's probabilities sum to 1."""
    after = _continuations(after)
    uniform = 1 / (len(after[()]) + 1)  # <unk> is one more
    weights = {context: DISCOUNT * len(following) / following.total() for context, following in after.items()}
    probabilities: dict[Ngram, float] = {(UNKNOWN,): weights[()] * uniform}
    for context in sorted(after, key=len):  # the shorter ones are asked for by the longer
        following = after[context]
        for word, times in following.items():
            lower = probabilities[(*context[1:], word)] if context else uniform
            seen = (times - DISCOUNT) / following.total()
            probabilities[(*context, word)] = seen + weights[context] * lower
    return probabilities, weights


def _continuations(after: dict[Ngram, Counter[str]]) -> dict[Ngram, Counter[str]]:
    """The counts, with those of n-grams that are part of longer ones by the number of words before them."""
    longest = max(map(len, after))
    before: dict[Ngram, Counter[str]] = defaultdict(Counter)
    for context, following in after.items():
        if context:
            before[context[1:]].update(following.keys())
    is_whole = {context: len(context) == longest or context[:1] == (START,) for context in after}
    return {context: following if is_whole[context] else before[context] for context, following in after.items()}


class Spelling:
    """ln p(letter | the two before it in a word), by trigrams of the letters of some words, each counted once.

    What a word that is none of them might look like, as in the models of words and letters of Hori, Watanabe and
    Hershey (2017, "Multi-level language modeling and decoding for open vocabulary end-to-end speech recognition").
    """

    ORDER = 3

    def __init__(self, words: Iterable[str]):
        self.probabilities, self.weights = estimate(count(map(" ".join, words), self.ORDER))

    def letter(self, begun: str, letter: str) -> float:
        """Of the letter, or of END, after those with which the word begins."""
        context: Ngram = (START, *begun[1 - self.ORDER :])[1 - self.ORDER :]
        weight = 1.0
        while (*context, letter) not in self.probabilities:
            if not context:
                return log(weight * self.probabilities[UNKNOWN,])
            weight *= self.weights.get(context, 1.0)
            context = context[1:]
        return log(weight * self.probabilities[*context, letter])


def to_arpa(texts: Iterable[str], order: int) -> str:
    """The ARPA file's content: logarithms to base 10, columns separated by tabs. Raises ValueError."""
    probabilities, weights = estimate(count(texts, order))
    sections: list[list[str]] = [[] for _ in range(order)]
    sections[0].append(_line(-99.0, (START,), weights.get((START,))))  # is never predicted
    for ngram, probability in probabilities.items():
        sections[len(ngram) - 1].append(_line(log10(probability), ngram, weights.get(ngram)))
    sections = [section for section in sections if section]  # texts of one word have no longer n-grams
    lines = ["\\data\\", *(f"ngram {n}={len(section)}" for n, section in enumerate(sections, start=1)), ""]
    for n, section in enumerate(sections, start=1):
        lines += [f"\\{n}-grams:", *section, ""]
    return "\n".join([*lines, "\\end\\", ""])


def _line(log_probability: float, ngram: Ngram, weight: float | None) -> str:
    columns = [f"{log_probability:.7f}", " ".join(ngram)]
    return "\t".join(columns if weight is None else [*columns, f"{log10(weight):.7f}"])
