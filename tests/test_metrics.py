"""The measures against examples worked by hand, and against jiwer."""

from __future__ import annotations

import jiwer
import numpy as np
import pytest

from speech_mtl.metrics import det_points, equal_error_rate, error_rates, min_dcf, word_errors

COUNTS = ("words", "substitutions", "deletions", "insertions", "chars", "char_errors")


@pytest.mark.parametrize(
    ("reference", "hypothesis", "counts"),
    [
        ("one two three", "one two three", (3, 0, 0, 0, 13, 0)),
        ("one two three", "one too three", (3, 1, 0, 0, 13, 1)),
        ("one two three", "one three", (3, 0, 1, 0, 13, 4)),
        ("one two", "one a two", (2, 0, 0, 1, 7, 2)),
        ("one two", "", (2, 0, 2, 0, 7, 7)),
        ("", "uh huh", (0, 0, 0, 2, 0, 6)),
        ("", "", (0, 0, 0, 0, 0, 0)),
        ("größe", "große", (1, 1, 0, 0, 5, 1)),
        ("你好 世界", "你好 世间", (2, 1, 0, 0, 5, 1)),
    ],
)
def test_word_errors_by_hand(reference: str, hypothesis: str, counts: tuple[int, ...]) -> None:
    assert word_errors(reference, hypothesis) == dict(zip(COUNTS, counts, strict=True))


def test_rates_agree_with_jiwer_over_many_utterances() -> None:
    rng = np.random.default_rng(0)
    vocabulary = np.array(["a", "bee", "sea", "dee", "e"])
    pairs = [[" ".join(rng.choice(vocabulary, rng.integers(1, 9))) for _ in range(2)] for _ in range(60)]
    rates = error_rates([word_errors(*pair) for pair in pairs])
    references, hypotheses = map(list, zip(*pairs, strict=True))
    assert rates["wer"] == pytest.approx(jiwer.wer(references, hypotheses), abs=1e-6)
    assert rates["cer"] == pytest.approx(jiwer.cer(references, hypotheses), abs=1e-6)


def test_a_rate_is_errors_over_words_of_all_and_not_a_mean_of_rates() -> None:
    long = word_errors("a b c d e f g h i", "a b c d e f g h i")
    rates = error_rates([long, word_errors("a", "b")])
    assert (rates["wer"], rates["words"], rates["substitutions"]) == (0.1, 10, 1)


def test_no_words_give_no_rate() -> None:
    rates = error_rates([word_errors("", "uh")])
    assert rates["wer"] is None and rates["cer"] is None and rates["insertions"] == 1


def trials(target: list[float], other: list[float]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(target + other), np.array([True] * len(target) + [False] * len(other))


def test_perfect_separation_costs_nothing() -> None:
    scores, is_target = trials([0.8, 0.9], [0.1, 0.2, 0.3])
    eer, threshold = equal_error_rate(scores, is_target)
    assert eer == 0 and 0.3 < threshold <= 0.8
    assert min_dcf(scores, is_target) == 0


def test_reversed_scores_are_always_wrong_and_never_cost_more_than_refusing_all() -> None:
    scores, is_target = trials([0.1, 0.2], [0.8, 0.9])
    assert equal_error_rate(scores, is_target)[0] == 1
    assert min_dcf(scores, is_target) == 1


def test_eer_and_min_dcf_worked_by_hand() -> None:
    # accepted from 0.6 on: targets .9 .8 .7 of 4 (a quarter rejected), others .6 of 4 (a quarter accepted)
    scores, is_target = trials([0.9, 0.8, 0.7, 0.3], [0.6, 0.4, 0.2, 0.1])
    eer, threshold = equal_error_rate(scores, is_target)
    assert (eer, threshold) == (0.25, 0.6)
    # from 0.7 on nothing is accepted wrongly and a quarter rejected: 0.05 * 0.25 / 0.05
    assert min_dcf(scores, is_target) == pytest.approx(0.25)
    # one of 100 others is accepted, no target rejected: 0.95 * 0.01 / 0.05
    assert min_dcf(*trials([0.9, 0.8], [0.95] + 99 * [0.1])) == pytest.approx(0.19)
    # where targets are frequent the same point costs 0.5 * 0.25 / 0.5; accepting half the others, from 0.3 on, more
    assert min_dcf(scores, is_target, p_target=0.5) == pytest.approx(0.25)
    # where others are rare, accepting half of them costs least, 0.2 * 0.5, of the 0.2 of accepting all
    assert min_dcf(scores, is_target, p_target=0.8) == pytest.approx(0.5)


def test_eer_between_two_points_has_the_threshold_of_the_nearer() -> None:
    # from 0.9 on half the others are accepted, a quarter of the targets rejected; above it none and all
    scores, is_target = trials([0.9, 0.9, 0.9, 0.3], [0.9, 0.2])
    assert equal_error_rate(scores, is_target) == (pytest.approx(0.4), 0.9)
    # 3 quarters and 1 quarter from 0.6 on, 1 quarter and 2 from 0.8 on: they cross at 2 thirds of the way
    scores, is_target = trials([0.9, 0.8, 0.6, 0.1], [0.9, 0.6, 0.6, 0.2])
    assert equal_error_rate(scores, is_target) == (pytest.approx(5 / 12), 0.8)


def test_equal_scores_decide_nothing() -> None:
    scores, is_target = trials([0.5, 0.5], [0.5, 0.5])
    eer, threshold = equal_error_rate(scores, is_target)
    assert eer == 0.5 and np.isfinite(threshold)
    assert min_dcf(scores, is_target) == 1


def test_det_points_count_a_score_at_the_threshold_as_accepted() -> None:
    scores, is_target = trials([0.9, 0.3], [0.6, 0.1])
    points = {float(t): (float(a), float(r)) for a, r, t in zip(*det_points(scores, is_target), strict=True)}
    assert points[0.6] == (0.5, 0.5) and points[0.9] == (0.0, 0.5) and points[0.3] == (0.5, 0.0)


@pytest.mark.parametrize("measure", [det_points, equal_error_rate, min_dcf])
@pytest.mark.parametrize("is_target", [[True, True], [False, False]])
def test_one_sided_trials_are_refused_with_their_numbers(measure, is_target: list[bool]) -> None:
    with pytest.raises(ValueError, match="both are needed"):
        measure(np.array([0.1, 0.2]), np.array(is_target))
