"""Trials -> a Calibration: what one's own voices and others' score. All speakers count alike, however much they say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from speech_mtl.calibration import LONGEST_S, SHORTEST_S, Band, Calibration
from speech_mtl.enrolment import Heard, likeness_within
from speech_mtl.trials import BANDS_S, Trials

LEAST_SPEAKERS = 6
"""Thresholds of fewer miss one's own voices twice as often as those of a dozen, and nothing says so."""
ONE_VOICE_MISSED, RECORDINGS = 0.01, 400
"""Share of the recordings of one voice that are taken for two voices', and how many are made up to measure it."""
PAIRS = 30
"""Of speakers, on which a counted threshold must rest: within 30 % of the truth with a probability of 90 % (Doddington
et al. 2000, the rule of 30)."""
GALLERIES = tuple(2**k for k in range(11))
"""Numbers of enrolled voices that get a threshold of their own."""
ROUNDS = 500
"""Of the bootstrap over speakers."""


@dataclass(frozen=True)
class BandReport:
    """How a band's threshold for one enrolled voice does on the trials it was chosen on."""

    low_s: float
    high_s: float
    threshold: float
    own: int
    others: int
    accepted_pairs: int
    """Pairs of speakers among which the false acceptances fall."""
    acceptance: tuple[float, float, float]
    """Rate, and its 95 % interval over speakers."""
    rejection: tuple[float, float, float]


def calibrate(
    trials: Trials, heard: dict[str, list[Heard]], measured_on: str, false_acceptance: float = 0.01
) -> tuple[Calibration, list[BandReport]]:
    """The calibration of trials, and how each band's threshold does on them.

    A longer band's thresholds are never lower than a shorter one's: where all speakers reach both it does not fall, and
    where it seems to, those who talk least, perhaps the most alike, are missing from the longer one.
    """
    bands: list[Band] = []
    reports = []
    low_s = 0.0
    for high_s in (*(end for end in BANDS_S if _has_enough(trials.within(end, np.inf))), np.inf):
        part = trials.within(low_s, high_s)
        if not _has_enough(part):
            continue  # the next band begins where this one did
        floors = [bands[-1].threshold(n) if bands else -1.0 for n in GALLERIES]
        measured = [threshold_at(part, false_acceptance, n) for n in GALLERIES]
        chosen = np.maximum.accumulate(np.maximum(floors, measured))
        # rounded up: a threshold must not let more in than it was measured to
        thresholds = tuple(np.minimum(1.0, np.ceil(chosen * 1e4) / 1e4).tolist())
        bands.append(Band(up_to_s=None if np.isinf(high_s) else high_s, enrolled=GALLERIES, thresholds=thresholds))
        reports.append(_report(part, low_s, high_s, thresholds[0]))
        low_s = high_s
    found = Calibration(
        bands=tuple(bands), false_acceptance=false_acceptance, measured_on=measured_on,
        logistic=fit_logistic(trials), one_voice=_one_voice(heard),
    )  # fmt: skip
    return found, reports


def _has_enough(trials: Trials) -> bool:
    """Pieces of two speakers at least, so that there are scores of others."""
    return len(np.unique(trials.speaker_P)) >= 2 and bool(trials.is_other_PM.any())


def _weights(trials: Trials) -> np.ndarray:
    """(P,), adding up to 1: every speaker counts alike."""
    counts = np.bincount(trials.speaker_P)
    weights_P = 1.0 / counts[trials.speaker_P]
    return weights_P / weights_P.sum()


def accepted_share(trials: Trials, threshold: float, enrolled: int) -> float:
    """How often a stranger reaches the threshold with one of so many voices, drawn from those that are not its own."""
    is_other_PM = trials.is_other_PM
    others_P = is_other_PM.sum(axis=1)
    above_P = ((trials.scores_PM >= threshold) & is_other_PM).sum(axis=1)
    none_P = np.ones(len(others_P))
    for i in range(enrolled):  # all possible draws at once: none of `above` among `enrolled` of `others`
        none_P *= np.maximum(0, others_P - above_P - i) / np.maximum(1, others_P - i)
    return float(_weights(trials) @ (1 - none_P))


def threshold_at(trials: Trials, rate: float, enrolled: int) -> float:
    """The threshold at which this share of strangers is accepted by one of so many voices.

    Counted on the trials where that rests on PAIRS pairs of speakers. The few closest pairs of a dozen speakers say
    little of others, who are accepted twice as often as was asked for; there, and for more voices than anybody was
    compared with, it is `predicted_threshold`.
    """
    trials = trials.of_pieces(np.any(trials.is_other_PM, axis=1))
    if enrolled <= trials.is_other_PM.sum(axis=1).min():
        low, high = -1.0, 1.0
        for _ in range(24):
            middle = (low + high) / 2
            low, high = (low, middle) if accepted_share(trials, middle, enrolled) <= rate else (middle, high)
        if accepted_pairs(trials, high) >= PAIRS:
            return high
    return predicted_threshold(trials, rate, enrolled)


def accepted_pairs(trials: Trials, threshold: float) -> int:
    """The pairs of a stranger and an enrolled voice that score so high in some trial."""
    pieces, voices = np.nonzero((trials.scores_PM >= threshold) & trials.is_other_PM)
    return len(set(zip(trials.speaker_P[pieces].tolist(), voices.tolist(), strict=True)))


def predicted_threshold(trials: Trials, rate: float, enrolled: int) -> float:
    """See `threshold_at`; of the law that the strangers' scores follow, where too few reach it to be counted.

    The inverse hyperbolic tangent of a stranger's score with one voice is taken for normally distributed. The threshold
    is that of a new speaker's score (a prediction interval: Student's t, a speaker counting as two draws, on either
    side of a comparison), at such a rate that all of the enrolled voices together, each of them judging for itself,
    accept the wanted share (Šidák 1967). The best scores of several voices have too long a tail to be taken for
    normally distributed themselves: with a dozen speakers two to three times the wanted share would come in.
    """
    from scipy.stats import t as students_t

    is_other_PM = trials.is_other_PM
    weights_PM = _weights(trials)[:, None] * is_other_PM / is_other_PM.sum(axis=1, keepdims=True)
    values_PM = np.arctanh(np.clip(trials.scores_PM, -1 + 1e-6, 1 - 1e-6))
    mean = np.average(values_PM, weights=weights_PM)
    deviation = np.sqrt(np.average((values_PM - mean) ** 2, weights=weights_PM))
    S = len(np.unique(trials.speaker_P))
    rate_of_one = -np.expm1(np.log1p(-rate) / enrolled)
    return float(np.tanh(mean + students_t.isf(rate_of_one, 2 * S) * np.sqrt(1 + 1 / S) * deviation))


def fit_logistic(trials: Trials) -> tuple[float, float, float] | None:
    """Weights of 1, score and log(seconds) in the log-likelihood ratio; None where nobody's own voice was tried."""
    from sklearn.linear_model import LogisticRegression

    is_own = trials.is_own_PM
    if not is_own.any():
        return None
    x, y, weights = _columns(trials)
    fitted = LogisticRegression(C=100.0).fit(x, y, sample_weight=weights)
    # equal weights of both kinds: the odds that come out are the likelihood ratio
    return float(fitted.intercept_[0]), float(fitted.coef_[0, 0]), float(fitted.coef_[0, 1])


def _columns(trials: Trials) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with log seconds (n, 2), whether it is the own voice (n,), and weights (n,), half of them for either."""
    is_own, counts = trials.is_own_PM, trials.is_own_PM | trials.is_other_PM
    log_s = np.log(np.clip(trials.seconds_P, SHORTEST_S, LONGEST_S))[:, None]
    x = np.stack([trials.scores_PM, np.broadcast_to(log_s, is_own.shape)], axis=-1).reshape(-1, 2)
    weights_PM = np.broadcast_to(_weights(trials)[:, None], is_own.shape)
    shares = np.where(is_own, weights_PM / weights_PM[is_own].sum(), weights_PM / weights_PM[trials.is_other_PM].sum())
    return x[counts.reshape(-1)], is_own[counts], shares[counts] * np.count_nonzero(counts) / 2


def cllr(trials: Trials, calibration: Calibration) -> float:
    """Cost of the log-likelihood ratios in bits (Brümmer & du Preez 2006): 0 is perfect, 1 tells nothing."""
    x, is_own, weights = _columns(trials)
    ratios = calibration.log_likelihood_ratio(x[:, 0], np.exp(x[:, 1]))
    cost = np.logaddexp(0, np.where(is_own, -ratios, ratios)) / np.log(2)
    return float((weights * cost).sum() / weights.sum())


def _report(trials: Trials, low_s: float, high_s: float, threshold: float) -> BandReport:
    is_own, is_other, accepted = trials.is_own_PM, trials.is_other_PM, trials.scores_PM >= threshold
    return BandReport(
        low_s, high_s, threshold, int(is_own.sum()), int(is_other.sum()), accepted_pairs(trials, threshold),
        rate_with_interval(trials, accepted & is_other, is_other),
        rate_with_interval(trials, ~accepted & is_own, is_own),
    )  # fmt: skip


def rate_with_interval(trials: Trials, hits_PM: np.ndarray, of_PM: np.ndarray) -> tuple[float, float, float]:
    """Share of hits, speakers counting alike, with a 95 % interval from drawing the speakers anew on both sides."""
    M = trials.scores_PM.shape[1]
    S = max(M, int(trials.speaker_P.max()) + 1)
    weights_P = 1.0 / np.bincount(trials.speaker_P, minlength=S)[trials.speaker_P]
    hits_SM, of_SM = np.zeros((S, M)), np.zeros((S, M))
    np.add.at(hits_SM, trials.speaker_P, weights_P[:, None] * hits_PM)
    np.add.at(of_SM, trials.speaker_P, weights_P[:, None] * of_PM)
    if not of_SM.any():
        return float("nan"), float("nan"), float("nan")
    rng = np.random.default_rng(0)
    drawn_RS = rng.multinomial(S, np.full(S, 1 / S), size=ROUNDS).astype(float)
    # enrolled voices are those of the first speakers: drawn together with their pieces
    over_RM = drawn_RS[:, :M]
    if of_PM[trials.is_own_PM].any():  # a speaker with itself: counted once for each time it is drawn
        over_RM = np.ones_like(over_RM)
    hits_R = np.einsum("rs,sm,rm->r", drawn_RS, hits_SM, over_RM)
    of_R = np.einsum("rs,sm,rm->r", drawn_RS, of_SM, over_RM)
    low, high = np.percentile(hits_R[of_R > 0] / of_R[of_R > 0], [2.5, 97.5])
    return float(hits_SM.sum() / of_SM.sum()), float(low), float(high)


def remarks(report: BandReport, rate: float) -> str | None:
    """What a person should know of a band's threshold: on how little it rests."""
    if rate * report.others < 3:  # Hanley & Lippman-Hand 1983, the rule of three
        return f"a rate of {100 * rate:g} % cannot be told from {report.others} trials; it takes {3 / rate:.0f} or more"
    if report.accepted_pairs < PAIRS:
        return (
            f"only {report.accepted_pairs} pairs of different speakers score above the threshold, which is therefore "
            f"estimated from the distribution of all scores; with {PAIRS} pairs or more it would be counted"
        )
    return None


def _one_voice(heard: dict[str, list[Heard]]) -> float | None:
    """The likeness within recordings of one voice that 1 % of them fall short of: made-up ones of 4 to 20 s."""
    rng = np.random.default_rng(0)
    names, found = sorted(heard), []
    for _ in range(RECORDINGS if names else 0):
        parts = [part.windows.with_speech(0.5).embeddings_WE for part in heard[names[rng.integers(len(names))]]]
        wanted = rng.integers(6, 28)
        order = [parts[i] for i in rng.permutation(len(parts)) if len(parts[i])]
        if order and len(joined := np.concatenate(order)[:wanted]) >= 4:
            found.append(likeness_within(joined))
    return round(float(np.quantile(found, ONE_VOICE_MISSED)), 4) if found else None
