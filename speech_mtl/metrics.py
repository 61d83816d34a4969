"""The measures, as pure functions of texts, names and scores. No torch; counts first, rates derived from them.

Word and character errors: jiwer. EER and minDCF: from scikit-learn's DET curve; minDCF after NIST SRE 2016
(P_target 0.05 here, both costs 1, normalised by the better of the two trivial systems).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

COUNTS = ("words", "substitutions", "deletions", "insertions", "chars", "char_errors")


def word_errors(reference: str, hypothesis: str) -> dict[str, int]:
    """COUNTS of one utterance. Sum them for a rate."""
    import jiwer

    if not reference:  # jiwer refuses an empty reference; every word said then is an insertion
        return _counts(0, 0, 0, len(hypothesis.split()), 0, len(hypothesis))
    words = jiwer.process_words(reference, hypothesis)
    chars = jiwer.process_characters(reference, hypothesis)
    return _counts(
        words.hits + words.substitutions + words.deletions, words.substitutions, words.deletions, words.insertions,
        len(reference), chars.substitutions + chars.deletions + chars.insertions,
    )  # fmt: skip


def _counts(*values: int) -> dict[str, int]:
    return dict(zip(COUNTS, values, strict=True))


def word_error_count(counts: dict[str, int]) -> int:
    return counts["substitutions"] + counts["deletions"] + counts["insertions"]


def error_rates(counts: Sequence[dict[str, int]]) -> dict[str, float | int]:
    """wer and cer (sum of errors over sum of lengths) with their counts; None where there is no word to count."""
    total = {name: sum(row[name] for row in counts) for name in COUNTS}
    rates: dict[str, Any] = {
        "wer": round(word_error_count(total) / total["words"], 6) if total["words"] else None,
        "cer": round(total["char_errors"] / total["chars"], 6) if total["chars"] else None,
    }
    return rates | total | {"utterances": len(counts)}


def det_points(scores: np.ndarray, is_target: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """False acceptance and false rejection rates, with the thresholds they belong to (accepted: score >= threshold).

    Raises ValueError unless there are target and non-target trials.
    """
    from sklearn.metrics import det_curve

    is_target = np.asarray(is_target, dtype=bool)
    if is_target.all() or not is_target.any():
        raise ValueError(f"{is_target.sum()} target and {(~is_target).sum()} non-target trials; both are needed")
    return det_curve(is_target, np.asarray(scores, dtype=float), drop_intermediate=False)


def equal_error_rate(scores: np.ndarray, is_target: np.ndarray) -> tuple[float, float]:
    """The rate where the DET curve crosses equality, straight between its points, and the threshold nearest to it."""
    acceptance, rejection, thresholds = det_points(scores, is_target)
    acceptance, rejection = np.r_[1.0, acceptance, 0.0], np.r_[0.0, rejection, 1.0]  # accept all ... reject all
    thresholds = np.r_[thresholds[0], thresholds, thresholds[-1]]
    gap = acceptance - rejection
    after = int(np.argmax(gap <= 0))  # falls from 1 to -1, so there is such a point, and never the first
    share = gap[after - 1] / (gap[after - 1] - gap[after])
    rate = acceptance[after - 1] + share * (acceptance[after] - acceptance[after - 1])
    return float(rate), float(thresholds[after if share > 0.5 else after - 1])


def min_dcf(scores: np.ndarray, is_target: np.ndarray, p_target: float = 0.05) -> float:
    """The lowest normalised detection cost over all thresholds, rejecting and accepting everything included."""
    acceptance, rejection, _ = det_points(scores, is_target)
    cost = p_target * rejection + (1 - p_target) * acceptance
    return float(min(cost.min() / min(p_target, 1 - p_target), 1.0))
