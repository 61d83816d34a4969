"""The language model's estimates: a hand-worked case, sums to 1, and KenLM reading the same from the file."""

from __future__ import annotations

import random
from math import exp, log, log10
from pathlib import Path

import pytest
from conftest import needs_kenlm

from speech_mtl.config import TextConfig
from speech_mtl.language import LanguageModel
from speech_mtl.ngram import END, START, UNKNOWN, Spelling, count, estimate, to_arpa
from speech_mtl.text import Tokenizer


def some_texts() -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(["one", "two", "three", "oh"], [5, 3, 1, 1], k=rng.randint(1, 6))) for _ in range(40)]


def test_worked_by_hand() -> None:
    """'a', 'a b': a after <s> twice; b after a and </s> after a once, </s> after b once; <unk> is a fourth word.

    As unigrams count the kinds of words before: a has <s>, b has a, </s> has a and b.
    """
    probabilities, weights = estimate(count(["a", "", "a  b"], order=2))
    assert weights[()] == pytest.approx(0.9 * 3 / 4)
    assert probabilities[UNKNOWN,] == pytest.approx(weights[()] / 4)
    assert probabilities["a",] == probabilities["b",] == pytest.approx(0.1 / 4 + weights[()] / 4)
    assert probabilities[END,] == pytest.approx(1.1 / 4 + weights[()] / 4)
    assert weights["a",] == pytest.approx(0.9 * 2 / 2)
    assert probabilities["a", "b"] == pytest.approx(0.1 / 2 + 0.9 * probabilities["b",])
    assert probabilities[START, "a"] == pytest.approx(1.1 / 2 + 0.9 / 2 * probabilities["a",])


def test_a_word_that_follows_one_other_alone_is_not_expected_elsewhere() -> None:
    """Kneser and Ney's own example: 'francisco' is frequent, but after 'san' alone."""
    texts = ["san francisco"] * 8 + [f"{word} street" for word in ("oak", "elm", "fir", "ash")]
    probabilities, _ = estimate(count(texts, order=2))
    assert probabilities["street",] > probabilities["francisco",]
    assert probabilities["san", "francisco"] > 0.8


def test_begins_of_texts_are_counted_themselves() -> None:
    """Nothing stands before <s>: a trigram model's (<s>, a) keeps its count, and so does a text of a word alone."""
    texts = ["a b c", "a b c", "a c", "b"]
    probabilities, weights = estimate(count(texts, order=3))
    assert weights[START,] == pytest.approx(0.9 * 2 / 4)
    assert probabilities[START, "a"] == pytest.approx(2.1 / 4 + weights[START,] * probabilities["a",])
    assert probabilities["a", "b"] == pytest.approx(0.1 / 2 + weights["a",] * probabilities["b",])  # after <s> alone


def test_spelling_by_hand_and_of_letters_never_seen() -> None:
    spelling = Spelling(["ab", "abc", "b"])
    probabilities, weights = estimate(count(["a b", "a b c", "b"], order=3))
    assert spelling.letter("", "a") == pytest.approx(log(probabilities[START, "a"]))
    assert spelling.letter("a", "b") == pytest.approx(log(probabilities[START, "a", "b"]))
    assert spelling.letter("ab", "c") == pytest.approx(log(probabilities["a", "b", "c"]))
    assert spelling.letter("cab", "c") == spelling.letter("ab", "c")
    assert spelling.letter("ab", "a") == pytest.approx(
        log(weights["a", "b"] * weights["b",] * probabilities["a",]), abs=1e-12
    )
    assert spelling.letter("b", "z") == pytest.approx(
        log(weights[START, "b"] * weights["b",] * probabilities[UNKNOWN,]), abs=1e-12
    )
    for begun in ("", "a", "ab", "zz"):
        total = sum(exp(spelling.letter(begun, letter)) for letter in ("a", "b", "c", END, "z"))
        assert total == pytest.approx(1)


@pytest.mark.parametrize("order", [2, 3, 5])
def test_every_contexts_probabilities_sum_to_1(order: int) -> None:
    probabilities, weights = estimate(count(some_texts(), order))
    words = ["one", "two", "three", "oh", END, UNKNOWN]

    def probability(context: tuple[str, ...], word: str) -> float:
        if (*context, word) in probabilities:
            return probabilities[*context, word]
        return weights.get(context, 1.0) * probability(context[1:], word)

    assert max(map(len, weights)) == order - 1
    for context in weights:
        assert sum(probability(context, word) for word in words) == pytest.approx(1, abs=1e-12)


@needs_kenlm
@pytest.mark.parametrize("order", [2, 3, 4])
def test_kenlm_reads_the_file_and_gives_the_same(order: int, tmp_path: Path) -> None:
    texts = some_texts()
    (tmp_path / "lm.arpa").write_text(to_arpa(texts, order))
    probabilities, weights = estimate(count(texts, order))
    lm = LanguageModel(tmp_path / "lm.arpa", Tokenizer.train(texts, TextConfig()))

    def probability(context: tuple[str, ...], word: str) -> float:
        if (*context, word) in probabilities:
            return log(probabilities[*context, word])
        return log(weights.get(context, 1.0)) + probability(context[1:], word)

    for text in [*texts[:10], "oh oh oh three three", "never two two"]:
        state, before = lm.start(), [START]
        for word in text.split():
            known = word if word in {"one", "two", "three", "oh"} else UNKNOWN
            state, score = lm.score(state, word)
            context = tuple(before)[len(before) - min(order - 1, len(before)) :]
            assert score == pytest.approx(probability(context, known), abs=1e-4)
            before.append(known)
        assert lm.end(state) == pytest.approx(
            probability(tuple(before)[len(before) - min(order - 1, len(before)) :], END), abs=1e-4
        )


def test_the_file_has_tabs_and_no_section_that_is_empty() -> None:
    lines = to_arpa(["a"], order=4).splitlines()
    assert lines[:4] == ["\\data\\", "ngram 1=4", "ngram 2=2", "ngram 3=1"]
    assert f"-99.0000000\t<s>\t{log10(0.9):.7f}" in lines and lines[-1] == "\\end\\"


@pytest.mark.parametrize(
    ("texts", "order", "message"),
    [([], 2, "every text is empty"), ([" "], 2, "every text is empty"), (["a"], 1, "order 1; expected 2 to 6"),
     (["a <s> b"], 2, "holds <s>")],
)  # fmt: skip
def test_what_cannot_be_estimated_is_refused(texts: list[str], order: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_arpa(texts, order)
