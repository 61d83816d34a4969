"""Is one arm better than the other, or is it chance? Pure functions of errors and scores; no torch, nothing is read.

In: what two arms did on the same test utterances, from one training run each or from several (a leading axis of seeds).
Out: a `Comparison`: the difference in error, arm A minus arm B, so below 0 A is better; its interval; p; in words what
was tested. verdicts.py turns the interval and a margin set beforehand into one of four words.

The resampling is Bisani & Ney's (ICASSP 2004): both arms on the same drawn utterances, whole speakers at a time. The
interval is Student's with the bootstrap's standard error, for plain percentiles are too narrow with ten speakers or
three seeds (Hesterberg 2015, arXiv 1411.5279, sections 3 and 4). Three things keep few data honest:
- of m blocks m - 1 are drawn and weighted m / (m - 1), which makes the variance unbiased (Rao, Wu & Yue 1992);
- one differing block more is added to the variance, as Agresti & Min (2005) add half a pair to every cell, so that no
  interval has width 0 because nothing happened to differ;
- where a sign test of the differing blocks could not reach the confidence (under 6 of them at 95 %), the interval
  holds 0.
Training noise, the variance between seeds over their number, is added for each arm by itself: it is what drawing seeds
with replacement converges to, without that drawing's loss of a third at three seeds. Degrees of freedom are Welch's.

Dimensions: R resamples, J training runs (seeds), U utterances, G blocks, C references, N trials.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import optimize, stats

from speech_mtl.metrics import equal_error_rate

FEWEST_SPEAKERS = 10  # with fewer, a variance between speakers is a guess: draw utterances within each speaker
CELLS_AT_ONCE = 100_000  # resamples x trials held together: an array of them fits a processor cache, 5 times as fast


@dataclass(frozen=True)
class Comparison:
    """Arm A against arm B on the same utterances; errors are shares (0.02 = 2 points), lower is better."""

    difference: float  # error of A minus error of B
    low: float  # the interval's ends
    high: float
    p: float  # two-sided, of 'the arms are equally good'
    test: str  # in words: the test, what was drawn, whether training noise is in the interval
    utterances: int
    blocks: int  # what was drawn or paired: speakers or utterances
    training_share: float = 0.0  # of the interval's variance, the share that more utterances cannot lower


def paired_wer_bootstrap(
    errors_a: Any,
    errors_b: Any,
    words: Any,
    speakers: Sequence[Any] | np.ndarray,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Difference in word error rate, sum(e_A - e_B) / sum(words); paired bootstrap of Bisani & Ney (ICASSP 2004).

    errors_*: word errors, (U,) of one training run or (J, U) of several, which are averaged within the utterance; the
    variance between the runs is added, so that the interval holds training noise (an arm with one run adds none, and
    `test` says so). The arms may differ in J. words: (U,) reference words. speakers: (U,) names.
    Speakers are drawn, each with all their utterances. With fewer than 10 speakers utterances are drawn, within each
    speaker where all have at least two; the interval then answers for these speakers only.
    Raises ValueError for shapes that differ, no utterance, no word, negative or non-finite numbers.
    """
    words_U = _numbers("words", words, dims=(1,))
    errors_a_JU, errors_b_JU = _runs("errors_a", errors_a), _runs("errors_b", errors_b)
    _check_lengths(len(words_U), errors_a=errors_a_JU.shape[1], errors_b=errors_b_JU.shape[1], speakers=len(speakers))
    _check_settings(confidence, resamples)
    if not words_U.sum():
        raise ValueError(f"words: 0 words in {len(words_U)} utterances; an error rate needs at least one")
    found = _error_rate_bootstrap(errors_a_JU, errors_b_JU, words_U, speakers, resamples, confidence, seed)
    return replace(found, test=f"paired bootstrap of the word error rate over {found.test}")


def paired_accuracy(
    correct_a: Any,
    correct_b: Any,
    speakers: Sequence[Any] | np.ndarray,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Difference in the share of wrong utterances, each of which is right or wrong as a whole.

    correct_*: (U,) or (J, U) of True/False or 1/0. speakers: (U,) names. Whole speakers are drawn, as in
    `paired_wer_bootstrap`: whether somebody's gender or name is found hangs on the voice, and utterances of ten
    speakers that count as independent make an interval that misses the truth a quarter of the time. With fewer than 10
    speakers it is `mcnemar`, and answers for these speakers only. Raises ValueError as these do.
    """
    speaker_names = {str(name) for name in speakers}
    if len(speaker_names) < FEWEST_SPEAKERS or len(speaker_names) == len(speakers):
        return mcnemar(correct_a, correct_b, confidence=confidence)
    wrong_a_JU, wrong_b_JU = _wrong("correct_a", correct_a), _wrong("correct_b", correct_b)
    utterances = wrong_a_JU.shape[1]
    _check_lengths(utterances, correct_b=wrong_b_JU.shape[1], speakers=len(speakers))
    _check_settings(confidence, resamples)
    ones_U = np.ones(utterances)
    found = _error_rate_bootstrap(wrong_a_JU, wrong_b_JU, ones_U, speakers, resamples, confidence, seed)
    test = f"paired bootstrap of the error rate over {found.test}"
    return replace(found, low=max(found.low, -1.0), high=min(found.high, 1.0), test=test)


def mcnemar(correct_a: Any, correct_b: Any, *, confidence: float = 0.95) -> Comparison:
    """Difference in the share of wrong utterances, with McNemar's test in its exact form (McNemar 1947).

    correct_*: (U,) or (J, U) of True/False or 1/0; utterances count as independent.
    One run each: p is the exact binomial test of the utterances on which the arms differ. The interval is Tango's
    score interval (Stat. Med. 1998), widened to hold the exact conditional one (Clopper & Pearson on the differing
    utterances), so that at any confidence it leaves 0 out exactly where p does.
    Several runs of an arm: the paired differences, averaged over runs, with Student's interval and training noise as
    in `paired_wer_bootstrap`; runs of one arm share their utterances, so their pairs must not be pooled in a binomial.
    Raises ValueError for shapes that differ, no utterance, or values other than 0 and 1.
    """
    wrong_a_JU, wrong_b_JU = _wrong("correct_a", correct_a), _wrong("correct_b", correct_b)
    utterances = wrong_a_JU.shape[1]
    _check_lengths(utterances, correct_b=wrong_b_JU.shape[1])
    _check_settings(confidence)
    differences_U = wrong_a_JU.mean(0) - wrong_b_JU.mean(0)
    difference = float(differences_U.mean())
    if len(wrong_a_JU) == len(wrong_b_JU) == 1:
        only_a, only_b = int((differences_U > 0).sum()), int((differences_U < 0).sum())
        p = float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0
        exact, score = (method(only_a, only_b, utterances, confidence) for method in (_exact_conditional, _tango))
        test = f"exact McNemar test, {only_a} wrong only in A and {only_b} only in B of {utterances} utterances"
        test = f"{test}; {_noise_in_words(1, 1)}"
        low, high = min(score[0], exact[0]), max(score[1], exact[1])
        return Comparison(difference, low, high, p, test, utterances, utterances)

    residuals_U = differences_U - difference
    variance = float((residuals_U**2).sum() / max(utterances - 1, 1)) / utterances
    lump = _one_more_block(residuals_U, differences_U != 0) / utterances**2
    low, high, p, share = _student(
        difference,
        (variance + lump, max(utterances - 1, 1)),
        (_training_noise(wrong_a_JU.mean(1)), _training_noise(wrong_b_JU.mean(1))),
        int((differences_U != 0).sum()),
        confidence,
    )
    test = f"paired t-test of the error rate over {utterances} utterances"
    test = f"{test}; {_noise_in_words(len(wrong_a_JU), len(wrong_b_JU))}"
    return Comparison(difference, max(low, -1.0), min(high, 1.0), p, test, utterances, utterances, share)


def eer_bootstrap(
    scores_a: Any,
    scores_b: Any,
    is_target: Any,
    speakers: Sequence[Any] | np.ndarray,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Difference in equal error rate, by drawing test speakers (the subset bootstrap of Bolle et al., CVIU 2004).

    scores_*: (U, C) or (J, U, C), every utterance against every reference; an arm's rate is the mean over its runs,
    each with its own threshold. is_target: (U, C), True where the reference is the utterance's speaker (a row without
    one is an unknown voice). speakers: (U,) names. All trials of a drawn speaker's utterances are pooled; the
    references are held fixed. Blocks and training noise as in `paired_wer_bootstrap`.
    Raises ValueError for shapes that differ, non-finite scores, or trials of one kind only.
    """
    is_target_UC = _only_0_and_1("is_target", _numbers("is_target", is_target, dims=(2,))).astype(bool)
    utterances, references = is_target_UC.shape
    _check_settings(confidence, resamples)
    scores = {"scores_a": scores_a, "scores_b": scores_b}
    runs = {name: _numbers(name, values, dims=(2, 3), signed=True) for name, values in scores.items()}
    for name, values in runs.items():
        if values.shape[-2:] != (utterances, references):
            raise ValueError(f"{name}: shape {values.shape}; is_target has {utterances} utterances x {references}")
    _check_lengths(utterances, speakers=len(speakers))
    a_JN, b_JN = (values.reshape(-1, utterances * references) for values in runs.values())
    target_N = is_target_UC.reshape(-1)
    rates_a_J, rates_b_J = (np.array([equal_error_rate(row, target_N)[0] for row in rows]) for rows in (a_JN, b_JN))
    difference = float(rates_a_J.mean() - rates_b_J.mean())

    block_of_U, stratum_of_G, drawn = _blocks(speakers)
    replicates = []
    for weights_RG in _draws(stratum_of_G, resamples, seed, per_resample=target_N.size):
        weights_RN = np.repeat(weights_RG[:, block_of_U], references, axis=1)
        some = (weights_RN @ target_N > 0) & (weights_RN @ ~target_N > 0)  # a draw of one kind of trial has no rate
        a_R, b_R = (
            np.mean([_equal_error_rates(row, target_N, weights_RN[some]) for row in rows], axis=0)
            for rows in (a_JN, b_JN)
        )
        replicates.append(a_R - b_R)
    blocks = len(stratum_of_G)
    # one trial that changes sides moves the crossing by about half a target trial
    lump = float(0.5 / target_N.sum()) ** 2
    low, high, p, share = _student(
        difference,
        (float(np.var(np.concatenate(replicates))) + lump, _freedom(stratum_of_G)),
        (_training_noise(rates_a_J), _training_noise(rates_b_J)),
        blocks,
        confidence,
    )
    test = f"paired bootstrap of the equal error rate over {drawn}, {resamples} resamples"
    test = f"{test}; {_noise_in_words(len(a_JN), len(b_JN))}"
    return Comparison(difference, max(low, -1.0), min(high, 1.0), p, test, utterances, blocks, share)


def _error_rate_bootstrap(
    errors_a_JU: np.ndarray, errors_b_JU: np.ndarray, words_U: np.ndarray, speakers: Sequence[Any] | np.ndarray,
    resamples: int, confidence: float, seed: int,
) -> Comparison:  # fmt: skip
    """See `paired_wer_bootstrap`; `test` says what was drawn."""
    total = float(words_U.sum())
    block_of_U, stratum_of_G, drawn = _blocks(speakers)
    differences_G = np.bincount(block_of_U, errors_a_JU.mean(0) - errors_b_JU.mean(0))
    words_G = np.bincount(block_of_U, words_U)
    difference = float(differences_G.sum() / total)

    replicates = []
    for weights_RG in _draws(stratum_of_G, resamples, seed, per_resample=len(words_G)):
        drawn_words_R = weights_RG @ words_G
        some = drawn_words_R > 0  # a draw of silent utterances only has no rate
        replicates.append((weights_RG[some] @ differences_G) / drawn_words_R[some])
    differing_G = np.abs(differences_G) > 1e-9  # sums of thirds leave rounding errors
    lump = _one_more_block(differences_G - difference * words_G, differing_G) / total**2
    low, high, p, share = _student(
        difference,
        (float(np.var(np.concatenate(replicates))) + lump, _freedom(stratum_of_G)),
        (_training_noise(errors_a_JU.sum(1) / total), _training_noise(errors_b_JU.sum(1) / total)),
        int(differing_G.sum()),
        confidence,
    )
    test = f"{drawn}, {resamples} resamples; {_noise_in_words(len(errors_a_JU), len(errors_b_JU))}"
    return Comparison(difference, low, high, p, test, len(words_U), len(words_G), share)


def _blocks(speakers: Sequence[Any] | np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """What is drawn together: block of every utterance, stratum of every block, and the same in words."""
    names, speaker_of_U = np.unique(np.array([str(name) for name in speakers]), return_inverse=True)
    utterances = len(speaker_of_U)
    if len(names) >= FEWEST_SPEAKERS:
        drawn = "speakers" if len(names) < utterances else "utterances"  # whose speakers are not known
        return speaker_of_U, np.zeros(len(names), dtype=int), f"{len(names)} {drawn}"
    if np.bincount(speaker_of_U).min() > 1:
        return np.arange(utterances), speaker_of_U, f"{utterances} utterances within each of {len(names)} speakers"
    return np.arange(utterances), np.zeros(utterances, dtype=int), f"{utterances} utterances"


def _freedom(stratum_of_G: np.ndarray) -> int:
    return max(len(stratum_of_G) - len(np.unique(stratum_of_G)), 1)


def _draws(stratum_of_G: np.ndarray, resamples: int, seed: int, per_resample: int) -> Iterator[np.ndarray]:
    """Weights (R, G) of the drawn blocks, a part of the resamples at a time so that R x per_resample stays small.

    In a stratum of m blocks m - 1 are drawn, each with weight m / (m - 1) (Rao, Wu & Yue 1992); the only one stays.
    """
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(stratum_of_G == stratum) for stratum in np.unique(stratum_of_G)]
    step = max(1, CELLS_AT_ONCE // per_resample)
    for start in range(0, resamples, step):
        weights_RG = np.ones((min(step, resamples - start), len(stratum_of_G)))
        for blocks in members:
            m = len(blocks)
            if m > 1:
                weights_RG[:, blocks] = rng.multinomial(m - 1, np.full(m, 1 / m), len(weights_RG)) * (m / (m - 1))
        yield weights_RG


def _one_more_block(residuals_G: np.ndarray, differing_G: np.ndarray) -> float:
    """Variance of one differing block more, as large as those seen and at least one error."""
    return max(1.0, float((residuals_G[differing_G] ** 2).mean())) if differing_G.any() else 1.0


def _training_noise(rates_J: np.ndarray) -> tuple[float, int]:
    """Variance of the mean over the training runs, and its degrees of freedom; (0, 1) for a single run."""
    runs = len(rates_J)
    return (float(np.var(rates_J, ddof=1) / runs), runs - 1) if runs > 1 else (0.0, 1)


def _noise_in_words(runs_a: int, runs_b: int) -> str:
    parts = [f"{runs} runs" if runs > 1 else "1 run (its training noise left out)" for runs in (runs_a, runs_b)]
    return f"A: {parts[0]}, B: {parts[1]}"


def _student(
    difference: float,
    utterances: tuple[float, int],
    training: tuple[tuple[float, int], tuple[float, int]],
    differing: int,
    confidence: float,
) -> tuple[float, float, float, float]:
    """low, high, p and the training noise's share, from (variance, degrees of freedom) of each source of chance.

    Degrees of freedom after Welch (1947). A sign test of `differing` blocks never goes below 2 ** (1 - differing),
    so neither does p, and the interval holds 0 where that is not enough for the confidence.
    """
    sources = (utterances, *training)
    variance = sum(value for value, _ in sources)
    training_share = (training[0][0] + training[1][0]) / variance
    freedom = variance**2 / sum(value**2 / degrees for value, degrees in sources)
    error = math.sqrt(variance)
    reach = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    low, high = difference - reach, difference + reach
    smallest_p = min(1.0, 2.0 ** (1 - differing))
    if smallest_p > 1 - confidence:
        low, high = min(low, 0.0), max(high, 0.0)
    p = max(2 * float(stats.t.sf(abs(difference) / error, freedom)), smallest_p)
    return low, high, p, training_share


def _exact_conditional(only_a: int, only_b: int, utterances: int, confidence: float) -> tuple[float, float]:
    """Limits of the difference, the number of differing pairs held fixed; their split after Clopper & Pearson 1934."""
    tail, differing = (1 - confidence) / 2, only_a + only_b
    low = float(stats.beta.ppf(tail, only_a, only_b + 1)) if only_a else 0.0
    high = float(stats.beta.ppf(1 - tail, only_a + 1, only_b)) if only_b else 1.0
    return differing / utterances * (2 * low - 1), differing / utterances * (2 * high - 1)


def _tango(only_a: int, only_b: int, utterances: int, confidence: float) -> tuple[float, float]:
    """Score interval of the difference of paired proportions (Tango, Stat. Med. 1998, 17:891-908), by root search."""
    z_squared = float(stats.norm.ppf((1 + confidence) / 2)) ** 2
    n, observed = utterances, (only_a - only_b) / utterances

    def outside(delta: float) -> float:  # above 0 where the score test refuses delta
        b = (2 * n - only_a + only_b) * delta - only_a - only_b
        q = (math.sqrt(max(b * b + 8 * n * only_b * delta * (1 - delta), 0.0)) - b) / (4 * n)
        return (only_a - only_b - n * delta) ** 2 - z_squared * n * (2 * q + delta * (1 - delta))

    # just beside the observed difference, where with no differing pair `outside` has a root that is no limit
    low = optimize.brentq(outside, -1, observed - 1e-9) if observed > -1 else -1.0
    high = optimize.brentq(outside, observed + 1e-9, 1) if observed < 1 else 1.0
    return float(low), float(high)


def _equal_error_rates(scores_N: np.ndarray, is_target_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Equal error rate of every weighting of the trials, (R,); with weights 1 that of `metrics.equal_error_rate`.

    The trials are sorted once; a threshold stands below each distinct score, from accept none to accept all.
    """
    order_N = np.argsort(-scores_N, kind="stable")
    last_of_tie = np.r_[np.flatnonzero(np.diff(scores_N[order_N])), len(scores_N) - 1]
    target_R1, other_R1 = ((weights_RN @ kind)[:, None] for kind in (is_target_N, ~is_target_N))
    # step to the next trial: false acceptance up by an other's weight, or false rejection down by a target's
    sorted_RN = weights_RN[:, order_N]
    accepted_RN = np.cumsum(sorted_RN * ~is_target_N[order_N], axis=1)[:, last_of_tie] / other_R1
    rejected_RN = 1 - np.cumsum(sorted_RN * is_target_N[order_N], axis=1)[:, last_of_tie] / target_R1
    ends = np.ones((len(weights_RN), 1))
    accepted_RN, rejected_RN = np.hstack([0 * ends, accepted_RN]), np.hstack([ends, rejected_RN])
    gap_RN = accepted_RN - rejected_RN  # rises from -1 to 1
    rows, after_R = np.arange(len(gap_RN)), np.argmax(gap_RN > 0, axis=1)
    gap_R, next_gap_R = gap_RN[rows, after_R - 1], gap_RN[rows, after_R]
    rate_R, next_R = accepted_RN[rows, after_R - 1], accepted_RN[rows, after_R]
    return rate_R + gap_R / (gap_R - next_gap_R) * (next_R - rate_R)


def _numbers(name: str, values: Any, dims: tuple[int, ...], signed: bool = False) -> np.ndarray:
    """As floats; ValueError unless of these dimensions, not empty, finite and (unless signed) not negative."""
    array = np.asarray(values, dtype=float)
    if array.ndim not in dims or array.size == 0:
        raise ValueError(
            f"{name}: shape {array.shape}; {' or '.join(map(str, dims))} dimensions, none empty, are needed"
        )
    wrong = ~np.isfinite(array) if signed else ~(np.isfinite(array) & (array >= 0))
    if wrong.any():
        raise ValueError(f"{name}: {array[wrong][0]:g} found; finite{'' if signed else ', non-negative'} numbers only")
    return array


def _runs(name: str, values: Any) -> np.ndarray:
    return np.atleast_2d(_numbers(name, values, dims=(1, 2)))


def _wrong(name: str, correct: Any) -> np.ndarray:
    """(J, U) of 1 where an answer is wrong, from True/False or 1/0 where it is right."""
    return 1 - _only_0_and_1(name, _runs(name, correct))


def _check_lengths(utterances: int, **lengths: int) -> None:
    for name, length in lengths.items():
        if length != utterances:
            raise ValueError(f"{name}: {length} utterances where {utterances} are expected; all must be the same ones")


def _check_settings(confidence: float, resamples: int = 100) -> None:
    if resamples < 100:
        raise ValueError(f"resamples: {resamples}; at least 100 are needed")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: {confidence}; a number between 0 and 1 is accepted")


def _only_0_and_1(name: str, values: np.ndarray) -> np.ndarray:
    other = values[(values != 0) & (values != 1)]
    if other.size:
        raise ValueError(f"{name}: {other[0]:g} found; only 0 and 1 are accepted")
    return values
