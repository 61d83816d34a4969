"""The comparison of two arms: worked by hand, against published figures, and against its own promise under chance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from speech_mtl.metrics import equal_error_rate
from speech_mtl.statistics import (
    Comparison,
    _draws,
    _equal_error_rates,
    _tango,
    eer_bootstrap,
    mcnemar,
    paired_accuracy,
    paired_wer_bootstrap,
)
from speech_mtl.verdicts import delta_m, utterances_needed, verdict


def word_errors(rng: np.random.Generator, runs: int, noise: float, rate: float = 0.15) -> tuple[np.ndarray, ...]:
    """Two arms alike: errors (J, 100) each, words and speakers of 100 utterances; noise moves a whole run's rate."""
    speakers = np.repeat(np.arange(10), 10)
    words = rng.integers(1, 10, 100)
    difficulty = rng.normal(0, 0.5, 10)[speakers] + rng.normal(0, 0.7, 100) + math.log(rate / (1 - rate))
    arms = [rng.binomial(words, 1 / (1 + np.exp(-difficulty - noise * rng.normal(size=(runs, 1))))) for _ in "ab"]
    return *arms, words, speakers


def voice_scores(rng: np.random.Generator, runs: int, shift: float = 0.0) -> tuple[np.ndarray, ...]:
    """Two arms' scores (J, 36, 6), targets and speakers; shift moves the second arm's target scores up."""
    speakers = np.repeat(np.arange(6), 6)
    is_target = np.eye(6, dtype=bool)[speakers]
    shared = rng.normal(size=(36, 6)) + 2.5 * is_target
    a, b = (shared + 0.7 * rng.normal(size=(runs, 36, 6)) for _ in "ab")
    return a, b + shift * is_target, is_target, speakers


# ---- word error rate


def test_difference_is_errors_over_words_by_hand() -> None:
    # A: 1 + 0 + 2 errors, B: 0 + 0 + 1, of 2 + 3 + 5 words
    result = paired_wer_bootstrap([1, 0, 2], [0, 0, 1], [2, 3, 5], ["x", "y", "y"])
    assert result.difference == pytest.approx(0.2)
    assert result.low < 0.2 < result.high and result.utterances == 3


def test_several_runs_are_averaged_within_the_utterance() -> None:
    result = paired_wer_bootstrap([[1, 0], [3, 0]], [[0, 1], [0, 1]], [4, 6], ["x", "y"])
    assert result.difference == pytest.approx((2 - 1) / 10)


def test_large_case_gives_the_normal_interval() -> None:
    rng = np.random.default_rng(0)
    speakers, words = np.repeat(np.arange(400), 5), rng.integers(5, 20, 2000)
    rate = np.clip(rng.normal(0.1, 0.03, 400), 0, 1)[speakers]
    a, b = rng.binomial(words, rate), rng.binomial(words, np.clip(rng.normal(rate, 0.02), 0, 1))
    result = paired_wer_bootstrap(a, b, words, speakers)
    totals = np.array([[column[speakers == s].sum() for column in (a, b, words)] for s in range(400)])
    residuals = totals[:, 0] - totals[:, 1] - result.difference * totals[:, 2]
    half = stats.norm.ppf(0.975) * math.sqrt(400 / 399 * (residuals**2).sum()) / words.sum()
    assert result.low == pytest.approx(result.difference - half, abs=0.06 * half)
    assert result.high == pytest.approx(result.difference + half, abs=0.06 * half)
    assert result.p == pytest.approx(2 * stats.norm.sf(abs(result.difference) / (half / 1.96)), abs=0.05)


def test_resampling_is_unbiased_with_few_blocks() -> None:
    values = np.array([3.0, 1.0, 4.0, 1.0])
    weights = np.concatenate(list(_draws(np.zeros(4, dtype=int), 40_000, seed=0, per_resample=4)))
    assert weights.sum(1) == pytest.approx(4.0)
    assert np.var(weights @ values / 4) == pytest.approx(np.var(values, ddof=1) / 4, rel=0.03)


def test_what_was_drawn_is_named() -> None:
    for speakers, blocks, words in (
        ([f"s{i % 12}" for i in range(24)], 12, "over 12 speakers"),
        ([f"s{i % 6}" for i in range(24)], 24, "24 utterances within each of 6 speakers"),
        ([f"s{min(i, 5)}" for i in range(24)], 24, "over 24 utterances,"),
    ):
        result = paired_wer_bootstrap(np.ones(24), np.zeros(24), np.full(24, 5), speakers)
        assert result.blocks == blocks and words in result.test


def test_speakers_of_one_kind_of_error_widen_the_interval() -> None:
    speakers = np.repeat(np.arange(20), 10)
    better = np.where(speakers % 2 == 0, 1, 0)  # A errs in every utterance of every other speaker, B in the rest
    together = paired_wer_bootstrap(better, 1 - better, np.full(200, 5), speakers)
    apart = paired_wer_bootstrap(better, 1 - better, np.full(200, 5), np.arange(200))
    assert together.high - together.low > 2.5 * (apart.high - apart.low)


def test_training_noise_widens_the_interval_and_is_named() -> None:
    a, b, words, speakers = word_errors(np.random.default_rng(1), runs=3, noise=0.0)
    noisy = a + np.array([[0], [1], [2]])  # one run one error, another two errors worse in every utterance
    shifted = np.repeat(a.mean(0)[None] + 1, 3, axis=0)  # the same mean, all runs alike
    steady, noise = (paired_wer_bootstrap(arm, b, words, speakers) for arm in (shifted, noisy))
    assert noise.difference == pytest.approx(steady.difference, abs=1e-9)
    assert noise.high - noise.low > 3 * (steady.high - steady.low)
    assert noise.training_share > 0.8 > 0.5 > steady.training_share and "A: 3 runs, B: 3 runs" in noise.test
    assert "1 run (its training noise left out)" in paired_wer_bootstrap(a[0], b, words, speakers).test
    assert "A: 2 runs, B: 3 runs" in paired_wer_bootstrap(a[:2], b, words, speakers).test


def test_runs_that_differ_in_nothing_add_no_noise() -> None:
    a, b, words, speakers = word_errors(np.random.default_rng(2), runs=1, noise=0.0)
    one = paired_wer_bootstrap(a[0], b[0], words, speakers)
    three = paired_wer_bootstrap(np.repeat(a, 3, axis=0), np.repeat(b, 3, axis=0), words, speakers)
    assert three.training_share == 0
    assert (three.difference, three.low, three.high) == pytest.approx((one.difference, one.low, one.high))


@pytest.mark.parametrize(("differing", "decided"), [(4, False), (5, False), (6, True)])
def test_a_handful_of_differing_utterances_decides_no_sooner_than_a_sign_test(differing: int, decided: bool) -> None:
    wrong = np.arange(100) < differing
    result = paired_wer_bootstrap(5 * wrong, 0 * wrong, np.full(100, 6), np.arange(100) % 7)
    assert (result.low > 0) is decided
    assert result.p >= 2 * 0.5**differing


# ---- accuracy


def pairs(only_a: int, only_b: int, utterances: int) -> tuple[np.ndarray, np.ndarray]:
    """correct_a, correct_b with so many utterances wrong in one arm only; the rest right in both."""
    index = np.arange(utterances)
    return index >= only_a, (index < only_a) | (index >= only_a + only_b)


def test_mcnemar_of_a_published_table() -> None:
    # airway responsiveness, Bentur et al. 2009; Fagerland, Lydersen & Laake (BMC Med. Res. Methodol. 2014) give
    # 1 against 7 of 21 pairs: exact conditional p 0.070, Tango's interval -0.517 to -0.026
    assert _tango(1, 7, 21, 0.95) == pytest.approx((-0.517, -0.026), abs=5e-4)
    result = mcnemar(*pairs(1, 7, 21))
    assert result.p == pytest.approx(18 / 256)  # 2 * (1 + 8) / 2 ** 8
    assert result.difference == pytest.approx(-6 / 21)
    assert result.low == pytest.approx(-0.517, abs=5e-4) and result.high > 0  # widened: the exact test refuses nothing


@pytest.mark.parametrize(("only_a", "only_b", "p"), [(0, 0, 1.0), (5, 0, 0.0625), (6, 0, 0.03125), (3, 3, 1.0)])
def test_mcnemar_by_hand(only_a: int, only_b: int, p: float) -> None:
    result = mcnemar(*pairs(only_a, only_b, 100))
    assert result.p == pytest.approx(p) and result.difference == pytest.approx((only_a - only_b) / 100)
    assert f"{only_a} wrong only in A and {only_b} only in B of 100" in result.test


def test_no_differing_utterance_is_still_no_certainty() -> None:
    z_squared = stats.norm.ppf(0.975) ** 2
    bound = z_squared / (100 + z_squared)  # Tango's limits solve (100 d)^2 = z^2 * 100 * d * (1 - d)
    result = mcnemar(*pairs(0, 0, 100))
    assert (result.low, result.high) == pytest.approx((-bound, bound))


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_interval_leaves_out_0_exactly_where_p_is_small(confidence: float) -> None:
    for only_a in range(13):
        for only_b in range(13):
            result = mcnemar(*pairs(only_a, only_b, 40), confidence=confidence)
            assert (result.low > 0 or result.high < 0) == (result.p < 1 - confidence)
            assert -1 <= result.low <= result.difference <= result.high <= 1


def test_extreme_tables_stay_within_bounds() -> None:
    assert mcnemar(*pairs(8, 0, 8)).high == 1 and mcnemar(*pairs(0, 8, 8)).low == -1
    assert mcnemar(*pairs(0, 8, 8)).difference == -1


def test_several_runs_are_not_pooled_as_if_independent() -> None:
    correct_a, correct_b = pairs(12, 4, 100)
    copies = [np.repeat(correct[None], 5, axis=0) for correct in (correct_a, correct_b)]
    result, pooled = mcnemar(*copies), mcnemar(*pairs(60, 20, 500))
    assert result.difference == pytest.approx(0.08) and result.utterances == 100
    assert pooled.p < 1e-4 < 0.02 < result.p  # five copies of a run are no more evidence than one
    five, six = (mcnemar(*([correct] * 2 for correct in pairs(count, 0, 100))) for count in (5, 6))
    assert five.low == 0 < six.low and five.p == 0.0625  # as a sign test, whatever Student says
    unequal = mcnemar(copies[0], correct_b)
    assert "A: 5 runs, B: 1 run" in unequal.test and unequal.difference == pytest.approx(0.08)


# ---- equal error rate


def test_fast_rates_are_those_of_the_metric() -> None:
    rng = np.random.default_rng(3)
    for case in range(32):
        trials = rng.integers(4, 40)
        is_target = np.r_[True, False, rng.random(trials - 2) < 0.4]
        scores = np.round(rng.normal(size=trials) + is_target, case % 4)  # with few decimals many scores are equal
        repeats = rng.integers(0, 3, (2, trials))
        repeats[:, np.argmax(scores * is_target)] = repeats[:, :2] = 1
        rates = _equal_error_rates(scores, is_target, repeats.astype(float))
        for rate, times in zip(rates, repeats, strict=True):
            repeated = equal_error_rate(np.repeat(scores, times), np.repeat(is_target, times))[0]
            assert rate == pytest.approx(repeated, abs=1e-9)


def test_eer_of_perfect_and_reversed_scores() -> None:
    _, _, is_target, speakers = voice_scores(np.random.default_rng(0), 1)
    result = eer_bootstrap(is_target * 1.0, is_target * -1.0, is_target, speakers, resamples=100)
    assert result.difference == -1 and result.low == -1 and result.high < -0.9
    assert "36 utterances within each of 6 speakers" in result.test and result.blocks == 36


def test_eer_is_the_mean_over_runs_and_finds_a_real_difference() -> None:
    a, b, is_target, speakers = voice_scores(np.random.default_rng(4), 3, shift=1.5)
    result = eer_bootstrap(a, b, is_target, speakers, resamples=200)
    rates = [np.mean([equal_error_rate(run.ravel(), is_target.ravel())[0] for run in arm]) for arm in (a, b)]
    assert result.difference == pytest.approx(rates[0] - rates[1]) and result.low > 0
    assert verdict(result.difference, result.low, result.high, 0.0) == "harms"


def test_eer_draws_whole_speakers_where_there_are_enough() -> None:
    rng = np.random.default_rng(5)
    speakers = np.repeat(np.arange(20), 6)
    is_target = np.eye(20, dtype=bool)[speakers]
    # half the speakers are hard for A, the other half for B, alike in all their utterances
    a, b = (rng.normal(size=(120, 20)) + is_target * (1 + 3 * (speakers[:, None] % 2 == arm)) for arm in (0, 1))
    together = eer_bootstrap(a, b, is_target, speakers, resamples=300)
    apart = eer_bootstrap(a, b, is_target, np.arange(120), resamples=300)
    assert "over 20 speakers" in together.test and together.blocks == 20
    assert together.high - together.low > 1.5 * (apart.high - apart.low)
    differences = []  # each draw's trials once more, as often as they were drawn
    for drawn in rng.integers(20, size=(300, 19)):
        rows = (6 * drawn[:, None] + np.arange(6)).ravel()
        rate_a, rate_b = (equal_error_rate(arm[rows].ravel(), is_target[rows].ravel())[0] for arm in (a, b))
        differences.append(rate_a - rate_b)
    reach = stats.t.ppf(0.975, 19) * math.hypot(np.std(differences), 0.5 / 120)
    assert (together.high - together.low) / 2 == pytest.approx(reach, rel=0.2)


def test_rows_of_unknown_voices_are_other_trials_only() -> None:
    a, b, is_target, speakers = voice_scores(np.random.default_rng(6), 1)
    is_target = is_target & (speakers < 2)[:, None]
    result = eer_bootstrap(a, b, is_target, [f"lone{i}" for i in range(36)], resamples=100)
    assert math.isfinite(result.low + result.high) and result.low < result.difference < result.high


# ---- laws that hold for all three


def compare_words(a: np.ndarray, b: np.ndarray, runs: int) -> Comparison:
    return paired_wer_bootstrap(a, b, *word_errors(np.random.default_rng(7), runs, 0.2)[2:], resamples=200)


def compare_voices(a: np.ndarray, b: np.ndarray, runs: int) -> Comparison:
    return eer_bootstrap(a, b, *voice_scores(np.random.default_rng(7), runs)[2:], resamples=100)


def compare_names(a: np.ndarray, b: np.ndarray, runs: int) -> Comparison:
    return mcnemar(a == 0, b == 0)


LAWS = [(compare_words, word_errors), (compare_voices, voice_scores), (compare_names, word_errors)]


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize(("compare", "make"), LAWS)
def test_swapping_the_arms_flips_the_signs(compare: Callable, make: Callable, runs: int) -> None:
    rng = np.random.default_rng(7)
    a, b = (make(rng, runs, 0.2) if make is word_errors else make(rng, runs))[:2]
    there, back = compare(a, b, runs), compare(b, a, runs)
    assert (back.difference, back.low, back.high) == pytest.approx((-there.difference, -there.high, -there.low))
    assert back.p == pytest.approx(there.p) and back.training_share == pytest.approx(there.training_share)


@pytest.mark.parametrize(("compare", "make"), LAWS)
def test_identical_arms_differ_by_0_and_are_no_worse(compare: Callable, make: Callable) -> None:
    rng = np.random.default_rng(7)
    a = (make(rng, 1, 0.2) if make is word_errors else make(rng, 1))[0]
    result = compare(a, a, 1)
    assert result.difference == 0 and result.p == 1 and result.low < 0 < result.high
    assert verdict(result.difference, result.low, result.high, margin=0.04) == "no worse"
    assert verdict(result.difference, result.low, result.high, margin=0.0) == "undecided"  # no proof of equality


def null_words(rng: np.random.Generator, runs: int, noise: float) -> Comparison:
    return paired_wer_bootstrap(*word_errors(rng, runs, noise), resamples=200)


def null_rare_errors(rng: np.random.Generator, runs: int, noise: float) -> Comparison:
    a, b, _, speakers = word_errors(rng, runs, noise, rate=0.02)
    return paired_wer_bootstrap(a > 0, b > 0, np.ones(100), speakers % 6, resamples=100)


def null_names(rng: np.random.Generator, runs: int, noise: float) -> Comparison:
    a, b, *_ = word_errors(rng, runs, noise, rate=0.05)
    return mcnemar(a == 0, b == 0)


def null_genders(rng: np.random.Generator, runs: int, noise: float) -> Comparison:
    """A whole speaker is right or wrong in an arm: utterances that count as independent call 28 % different."""
    speakers = np.repeat(np.arange(10), 13)
    a, b = (rng.random((runs, 10)) > 0.2 for _ in "ab")
    return paired_accuracy(a[:, speakers], b[:, speakers], speakers, resamples=200)


def null_voices(rng: np.random.Generator, runs: int, noise: float) -> Comparison:
    a, b, is_target, speakers = voice_scores(rng, runs)
    return eer_bootstrap(a + noise * rng.normal(size=(runs, 1, 1)) * is_target, b, is_target, speakers, resamples=100)


@pytest.mark.parametrize(
    ("simulate", "runs", "noise"),
    [(null_words, 1, 0.0), (null_words, 3, 0.5), (null_rare_errors, 1, 0.0), (null_names, 1, 0.0),
     (null_names, 3, 0.5), (null_genders, 1, 0.0), (null_genders, 3, 0.0), (null_voices, 2, 0.3)],
)  # fmt: skip
def test_arms_alike_are_called_different_no_more_often_than_stated(simulate, runs: int, noise: float) -> None:
    rng = np.random.default_rng(8)
    results = [simulate(rng, runs, noise) for _ in range(200)]
    called = [verdict(r.difference, r.low, r.high, margin=0.0) in ("helps", "harms") for r in results]
    assert sum(called) <= stats.binom.ppf(0.99, 200, 0.05)  # 18: a true share of 5 % passes in 99 of 100


def test_one_speaker_of_ten_decides_nothing() -> None:
    right, speakers = np.ones(130), np.repeat(np.arange(10), 13)
    worse = right * (speakers > 0)
    assert mcnemar(worse, right).low > 0  # all 13 of one speaker
    found = paired_accuracy(worse, right, speakers)
    assert found.difference == pytest.approx(0.1) and found.low <= 0 < found.high and "10 speakers" in found.test
    few = paired_accuracy(worse, right, speakers.clip(max=8))
    assert few == mcnemar(worse, right)
    alone = paired_accuracy(worse, right, np.arange(130))
    assert alone == mcnemar(worse, right)


def test_a_real_difference_is_found_in_spite_of_training_noise() -> None:
    a, b, words, speakers = word_errors(np.random.default_rng(9), runs=3, noise=0.05, rate=0.15)
    worse = np.minimum(a + np.random.default_rng(9).binomial(words, 0.1, size=a.shape), words)
    result = paired_wer_bootstrap(worse, b, words, speakers)
    assert verdict(result.difference, result.low, result.high, margin=0.01) == "harms" and result.p < 0.05
    back = paired_wer_bootstrap(b, worse, words, speakers)
    assert verdict(back.difference, back.low, back.high, margin=0.01) == "helps"


@pytest.mark.parametrize("utterances", [1, 2, 5])
def test_too_small_a_corpus_is_undecided_and_says_how_much_would_decide(utterances: int) -> None:
    errors, speakers = np.ones(utterances), list(range(utterances))
    for result in (
        paired_wer_bootstrap(errors, 0 * errors, 4 * errors, speakers),
        paired_wer_bootstrap(errors, errors, 4 * errors, speakers),
        mcnemar(1 - errors, 1 - errors),
        mcnemar([1 - errors] * 2, [errors] * 2),
    ):
        where = (result.difference, result.low, result.high)
        assert verdict(*where, margin=0.01) == "undecided"
        needed = utterances_needed(result.low, result.high, result.difference, 0.01, utterances)
        assert needed is not None and needed > utterances


def test_the_seed_fixes_the_draws() -> None:
    data = word_errors(np.random.default_rng(10), runs=1, noise=0.0)
    first, again, other = (paired_wer_bootstrap(*data, resamples=100, seed=seed) for seed in (1, 1, 2))
    assert first == again and replace(first, low=0, high=0, p=0) == replace(other, low=0, high=0, p=0) != first
    assert first.low != other.low


# ---- verdict


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(-0.03, -0.01, "helps"), (-0.03, 0.0, "no worse"), (-0.01, 0.02, "no worse"), (0.005, 0.015, "no worse"),
     (0.005, 0.03, "harms"), (0.03, 0.05, "harms"), (0.0, 0.03, "undecided"), (-0.05, 0.03, "undecided")],
)  # fmt: skip
def test_verdict_with_a_margin_of_two_points(low: float, high: float, word: str) -> None:
    assert verdict((low + high) / 2, low, high, margin=0.02) == word


def test_every_interval_has_one_verdict() -> None:
    grid = [step / 4 for step in range(-8, 9)]
    for margin in (0.0, 0.25, 1.0):
        for low in grid:
            for high in (value for value in grid if value >= low):
                holds = {
                    "helps": high < 0,
                    "no worse": 0 <= high <= margin,
                    "harms": low > 0 and high > margin,
                    "undecided": low <= 0 and high > margin,
                }
                assert [word for word, true in holds.items() if true] == [verdict(low, low, high, margin)]


def test_four_times_the_data_halve_the_interval() -> None:
    assert utterances_needed(-0.04, 0.04, 0.0, 0.02, 100) == 400  # until high is 0.02
    assert utterances_needed(-0.06, 0.02, -0.02, 0.0, 100) == 400  # until high is 0: no worse
    assert utterances_needed(-0.5, 2.5, 1.0, 0.0, 100) == 226  # until low is above 0: 1.5^2 times 100 is on 0


def test_needed_utterances_decide_and_one_fewer_does_not() -> None:
    rng = np.random.default_rng(11)
    checked = 0
    for _ in range(300):
        difference, margin, share = rng.normal(0, 0.02), abs(rng.normal(0, 0.02)), rng.choice([0, 0.01])
        low, high = difference - rng.uniform(0, 0.1), difference + rng.uniform(0, 0.1)
        needed = utterances_needed(low, high, difference, margin, 50, training_share=share)
        undecided = verdict(difference, low, high, margin) == "undecided"
        if needed is None:
            assert not undecided or share > 0
            continue
        checked += 1
        words = []
        for count in (needed, needed - 1):
            scale = math.sqrt(share + (1 - share) * 50 / count)
            words.append(
                verdict(
                    difference,
                    difference + scale * (low - difference),
                    difference + scale * (high - difference),
                    margin,
                )
            )
        assert undecided and needed > 50 and words[0] != "undecided" and words[1] == "undecided"
    assert checked > 50


def test_no_number_of_utterances() -> None:
    assert utterances_needed(-0.03, -0.01, -0.02, 0.02, 100) is None  # decided
    assert utterances_needed(-0.03, 0.03, 0.0, 0.0, 100) is None  # on the edge for ever
    assert utterances_needed(-0.04, 0.04, 0.0, 0.02, 100, training_share=0.25) is None  # the noise alone reaches 0.02
    assert utterances_needed(-0.04, 0.04, 0.0, 0.02, 100, training_share=0.125) == 700  # 0.875 / (0.25 - 0.125)


# ---- several tasks


def test_delta_m_by_hand() -> None:
    # recognition a tenth better, speakers a fifth worse: (0.1 - 0.2) / 2
    assert delta_m({"asr": 0.09, "speaker": 0.06}, {"speaker": 0.05, "asr": 0.1}) == pytest.approx(-0.05)
    assert delta_m({"asr": 0.1}, {"asr": 0.1}) == 0
    assert delta_m({"asr": 0.09, "speaker": 0.01}, {"asr": 0.1, "speaker": 0.0}) is None


# ---- bad input

EYE = np.eye(4, dtype=bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_wer_bootstrap([1, 0], [1, 0, 0], [2, 2], "xy"), "errors_b: 3 utterances where 2"),
        (lambda: paired_wer_bootstrap([1, 0], [1, 0], [2, 2], "xyz"), "speakers: 3 utterances where 2"),
        (lambda: paired_wer_bootstrap([], [], [], []), r"words: shape \(0,\)"),
        (lambda: paired_wer_bootstrap([1], [1], [-2], "x"), "words: -2 found"),
        (lambda: paired_wer_bootstrap([1], [-3], [2], "x"), "errors_b: -3 found"),
        (lambda: paired_wer_bootstrap([math.nan], [1], [2], "x"), "errors_a: nan found"),
        (lambda: paired_wer_bootstrap([[[1]]], [1], [2], "x"), r"errors_a: shape \(1, 1, 1\)"),
        (lambda: paired_wer_bootstrap([0, 0], [0, 0], [0, 0], "xy"), "words: 0 words in 2 utterances"),
        (lambda: paired_wer_bootstrap([1], [1], [2], "x", resamples=10), "resamples: 10"),
        (lambda: paired_wer_bootstrap([1], [1], [2], "x", confidence=95), "confidence: 95"),
        (lambda: mcnemar([], []), r"correct_a: shape \(0,\)"),
        (lambda: mcnemar([1, 0], [1]), "correct_b: 1 utterances where 2"),
        (lambda: mcnemar([1, 0.5], [1, 0]), "correct_a: 0.5 found"),
        (lambda: mcnemar([1, 0], [1, math.nan]), "correct_b: nan found"),
        (lambda: eer_bootstrap(EYE, np.ones((3, 4)), EYE, "wxyz"), r"scores_b: shape \(3, 4\); is_target has 4"),
        (lambda: eer_bootstrap(EYE, EYE, EYE, "wxy"), "speakers: 3 utterances where 4"),
        (lambda: eer_bootstrap(EYE, EYE * math.nan, EYE, "wxyz"), "scores_b: nan found"),
        (lambda: eer_bootstrap(EYE, EYE, EYE * 0, "wxyz"), "0 target and 16 non-target"),
        (lambda: eer_bootstrap(EYE, EYE, EYE * 2, "wxyz"), "is_target: 2 found"),
        (lambda: verdict(0.0, -1.0, math.nan, 0.1), "high: nan"),
        (lambda: verdict(0.0, -1.0, 1.0, -0.1), "margin: -0.1"),
        (lambda: verdict(2.0, -1.0, 1.0, 0.1), "difference 2.0 outside"),
        (lambda: utterances_needed(-1.0, 1.0, 0.0, 0.1, 0), "utterances: 0"),
        (lambda: utterances_needed(-1.0, 1.0, 0.0, 0.1, 9, training_share=2), "training_share: 2"),
        (lambda: delta_m({"asr": 0.1}, {"speaker": 0.1}), r"\['asr'\].*\['speaker'\]"),
        (lambda: delta_m({}, {}), "both must match"),
        (lambda: delta_m({"asr": math.inf}, {"asr": 0.1}), "error of task 'asr': inf"),
    ],
)
def test_bad_input_is_refused_with_the_value_found(call: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
