"""Texts -> an n-gram language model as an ARPA file, by interpolated Witten-Bell smoothing.

Witten & Bell 1991, "The zero-frequency problem", in the recursive form of Chen & Goodman 1998:

    p(w | h) = (c(h w) + t(h) p(w | h')) / (c(h) + t(h))

h' is h without its first word, t(h) the number of different words seen after h. It needs no counts of counts, which
small corpora do not have, and asks of a reader exactly what ARPA can say: the back-off weight of h is
t(h) / (c(h) + t(h)). Unigrams are mixed with the uniform distribution over the words, </s> and <unk>. Modified
Kneser-Ney smoothing was tried: it needs twice the code and did not lower the word errors on AN4's development set.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from math import log10

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
MIN_ORDER, MAX_ORDER = 2, 6
"""Words in the longest n-gram that the reader, KenLM, is built for."""

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
    uniform = 1 / (len(after[()]) + 1)  # <unk> is one more
    weights = {context: len(following) / (len(following) + following.total()) for context, following in after.items()}
    probabilities: dict[Ngram, float] = {(UNKNOWN,): weights[()] * uniform}
    for context in sorted(after, key=len):  # the shorter ones are asked for by the longer
        following = after[context]
        for word, times in following.items():
            lower = probabilities[(*context[1:], word)] if context else uniform
            seen = times / (len(following) + following.total())
            probabilities[(*context, word)] = seen + weights[context] * lower
    return probabilities, weights


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
