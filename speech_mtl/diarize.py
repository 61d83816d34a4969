"""Who speaks when: words and the speaker head's frames -> phrases -> voices, enrolled ones and others.

A phrase is a run of words without a pause, and its pieces are its words. Each has an embedding, pooled from the frames
that recognition computed. Voices are found in phrases, which are long enough to tell them apart, and then heard in
pieces, since a voice may change after a pause so short that the words on either side touch: with phrases alone, half of
the words given to the wrong voice were in phrases of two voices, and with phrases cut where words do not touch, a third
of the rest.

Phrases are told apart by variational Bayes over a hidden Markov model, after VBx (Landini et al. 2022, arXiv
2012.14952): a voice is a Gaussian point in the discriminant space of the speaker head, whose prior is what the training
voices were like; longer phrases count for more; voices that explain nothing vanish, which is what finds their number.
It starts from an agglomerative clustering, cut at several heights, and what explains the phrases best in the end is
kept: two voices that begin in one cluster stay one. A piece's voice is the most probable one of those found, given all
pieces. Who is enrolled plays no part in this: as evidence heard before, enrolled voices drew phrases of others to them,
most of all those that were not there; so the voices are found first and named afterwards. But a voice whose phrases are
two enrolled ones', each beyond doubt, is two (`parted`).

The constants were chosen on recordings of AN4's and speechocean762's dev speakers and of training speakers heard by
heads that were trained without them (104 of them and synthetic dev voices, too; 26, and calls, for START_COSINES,
COMMON, FIT, SPREAD and MUCH), with one to six voices, 17 seconds to 15 minutes long: a dozen dev speakers alone are too
few, what suits them best loses a voice in every third conversation of others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import NamedTuple

import numpy as np

from speech_mtl.phrases import PHRASE_S, Phrase
from speech_mtl.speakers import normalized

POWER = 0.65
"""A phrase of d seconds counts d^0.65: neighbouring frames are no independent evidence."""
SHORTEST_S = 0.42
"""Shorter phrases are assigned in the end, they do not found a voice."""
START_COSINES, START_PHRASES = (0.3, 0.4, 0.2, 0.5, 0.1), 1000
"""The agglomerative starts: average linkage up to these cosines, over so many of the longest phrases. Those that often
lead to the best come first, since others are given up where they cannot be better."""
WITHIN = 0.0084
"""Variance of a voice's embeddings per dimension, for a phrase of weight 1; measured on development conversations."""
COMMON = 0.07
"""Usual squared length of what is taken off all embeddings (see MICROPHONE). The more they have in common, as over a
telephone, the less room there is for voices to differ in: what is left of them is made larger by that."""
MICROPHONE, OWN = 1.1, 0.92
"""What all voices of a recording have in common is the microphone: of the mean of K voices the share s / (1 + s) is
taken off, s = 1.1 (K - 0.92), since the mean of one voice is nearly all its own. Voices heard unequally count as K = 1
/ sum of their squared shares of the speech, as whose mean theirs varies. The more is taken off, the nearer to the
prior's mean a voice lies, and the less another one costs there: with 0.57 for all K, three minutes of one speaker were
two to five voices in 15 of 20 recordings; with the number itself for K, those of who talks most of the time."""
NUMBERS = 6
"""K is 1 at first, then that of the voices found, until as many are found again, so often at most."""
FIT, SPREAD, MUCH = 0.3, 0.6, 45.0
"""VBx' F_A and F_B: how much the evidence and the prior of a voice count, where all phrases together weigh MUCH, three
quarters of a minute of words. Where they weigh less, the prior counts less by the root of it: a voice has but a phrase
or two. Where they weigh more, it counts more by as much, divided by the root of K: a voice's phrases are no independent
evidence, and enough of them made it two."""
STAY, STAY_AFTER, LONG_PAUSE_S = 0.96, 0.4, 0.4
"""Probability that the voice stays the same without a pause, and after a long one; in between it falls evenly."""
ROUNDS, SETTLED, GAIN = 20, 1e-2, 1.0
"""Rounds of the inference at most; it ends when no probability changes by more, and where there is less evidence than
from another start, when it gains no more."""
MOST_VOICES = 10
PART_S, PART_MARGIN, PARTS_ALIKE = 3.0, 0.1, 0.68
"""Both parts of a voice that is taken apart hold so many seconds, are so much nearer to their own name than to the
other, and are no more alike than that: among a hundred names some two share out one voice's phrases. In 60
conversations of dev speakers, six people enrolled, one of 240 voices is taken apart wrongly; with 110 none. Parts of
two voices put together are alike by 0.61 at most there, those of one voice by 0.77 or more with 110 enrolled."""
ALIKE_S, ALIKE = (1.0, 4.0, 6.0, 8.0), (0.4, 0.5, 0.6, 0.9)
"""Voices that are so alike are one, if one of them is heard for so many seconds: an utterance in another manner founds
a voice of its own. Of what is heard for longer the likeness says little: two voices of AN4's training speakers, heard
for half a minute, are alike by up to 0.82, parts of one voice by 0.5 to 0.84."""


@dataclass(frozen=True)
class Population:
    """What voices are like: mean (E,) and variance between speakers (E,) of embeddings."""

    mean: np.ndarray
    between: np.ndarray

    @classmethod
    def of(cls, voices_CE: np.ndarray) -> Population:
        """From the training speakers' voices; where there are none to speak of, all directions count alike.

        A speaker without a usable utterance has a voice of zeros, which is like nobody's.
        """
        voices_CE = voices_CE[voices_CE.any(axis=1)]
        between = voices_CE.var(axis=0) if len(voices_CE) else np.zeros(voices_CE.shape[1])
        if len(voices_CE) < 10 or between.sum() < 0.1:
            size = voices_CE.shape[1]
            return cls(np.zeros(size), np.full(size, 0.5 / size))
        return cls(voices_CE.mean(axis=0), between)


@dataclass(frozen=True)
class Voices:
    """The voice of every piece, numbered in the order in which they are first heard."""

    of_piece: np.ndarray
    probability: np.ndarray
    """Of that voice, for each piece."""
    centres: np.ndarray
    """(K, E), of length 1: the mean of a voice's embeddings, longer phrases counting more."""
    seconds: np.ndarray
    """(K,): speech of each voice."""


def find_voices(phrases: Sequence[Phrase], population: Population, count: int | None = None) -> Voices:
    """The pieces' voices, of which there are `count`, or as many as the evidence asks for, up to MOST_VOICES."""
    number = K = count or 1
    for _ in range(NUMBERS):
        found = _told_apart(phrases, population, K, count)
        if count is not None or len(found.seconds) == number:
            break
        number, K = len(found.seconds), found.seconds.sum() ** 2 / (found.seconds**2).sum()
    return found


def _told_apart(phrases: Sequence[Phrase], population: Population, K: float, count: int | None) -> Voices:
    """The voices, where the microphone's share of the recording's mean is that of K voices."""
    said = _Said.of(phrases)
    total, share = float(said.weights_U.sum()), 1 - 1 / (1 + MICROPHONE * (K - OWN))
    mean_E = np.average(said.embeddings_UE, axis=0, weights=said.weights_U)
    centre_E = share * mean_E + (1 - share) * population.mean
    room = (1 - float(centre_E @ centre_E)) / (1 - COMMON)
    scale_E, ratio_E = np.sqrt(population.between) / WITHIN / room, population.between / WITHIN
    rho_UE = (said.embeddings_UE - centre_E) * scale_E
    spread = SPREAD * min(total / MUCH, 1.0) ** 0.5 * max(total / MUCH / K**0.5, 1.0)
    best = None
    for start_U in _starts(said.embeddings_UE - centre_E, said.durations_U, count):
        best = _variational_bayes(rho_UE, said.weights_U, ratio_E, spread, said.stay_U, start_U, count, best) or best
    mean_KE, spread_K, prior_K, _ = best  # type: ignore[misc]
    said = _Said.of([piece for phrase in phrases for piece in phrase.pieces])
    rho_UE = (said.embeddings_UE - centre_E) * scale_E
    log_likelihood_UK = FIT * said.weights_U[:, None] * (rho_UE @ mean_KE.T - 0.5 * spread_K)
    posterior_UK, *_ = forward_backward(log_likelihood_UK, prior_K, said.stay_U)
    posterior_UK = _joined(posterior_UK, said) if count is None else _divided(posterior_UK, said, phrases, count)
    return _numbered(posterior_UK.argmax(axis=1), posterior_UK.max(axis=1), phrases)


def _divided(posterior_UK: np.ndarray, said: _Said, phrases: Sequence[Phrase], count: int) -> np.ndarray:
    """The voice whose phrases fall into the least alike two groups is two, until there are `count`, or one phrase each.

    It is known that there are so many; in conversations of six dev speakers every fifth had a voice too few without.
    """
    of_phrase_U = np.repeat(np.arange(len(phrases)), [len(phrase.pieces) for phrase in phrases])
    embeddings_PE = _Said.of(phrases).embeddings_UE
    while len(heard := np.unique(of_U := posterior_UK.argmax(axis=1))) < count:
        found = []
        for k in heard:
            seconds_P = np.bincount(of_phrase_U, said.durations_U * (of_U == k), len(phrases))
            own = np.flatnonzero(seconds_P >= SHORTEST_S)
            if len(own) > 1:
                group = _two_parts(embeddings_PE[own], seconds_P[own])
                parts = sorted((own[group == g] for g in (0, 1)), key=lambda part: seconds_P[part].sum())
                a, b = (normalized(seconds_P[part] @ embeddings_PE[part]) for part in parts)
                found.append((float(a @ b), int(k), parts[0]))
        if not found:
            break
        _, k, part = min(found, key=lambda one: one[:2])
        is_moved = (of_U == k) & np.isin(of_phrase_U, part)
        posterior_UK = np.column_stack([posterior_UK, np.where(is_moved, posterior_UK[:, k], 0.0)])
        posterior_UK[is_moved, k] = 0.0
    return posterior_UK


def two_groups(embeddings_NE: np.ndarray) -> np.ndarray:
    """(N,) of 0 and 1: the two most different groups of two embeddings or more."""
    from sklearn.cluster import AgglomerativeClustering

    return AgglomerativeClustering(n_clusters=2, metric="cosine", linkage="average").fit_predict(embeddings_NE)


def _two_parts(embeddings_NE: np.ndarray, durations_N: np.ndarray) -> np.ndarray:
    """(N,) of 0 and 1: `two_groups` of the longest START_PHRASES, and each other in that which it is more like.

    Grouping takes memory by the square of their number, which knows no bound.
    """
    longest = np.sort(np.argsort(-durations_N, kind="stable")[:START_PHRASES])
    group = two_groups(embeddings_NE[longest])
    sums_2E = np.stack([durations_N[part] @ embeddings_NE[part] for part in (longest[group == 0], longest[group == 1])])
    group_N = (embeddings_NE @ normalized(sums_2E).T).argmax(axis=1)
    group_N[longest] = group
    return group_N


def _joined(posterior_UK: np.ndarray, said: _Said) -> np.ndarray:
    """The two most alike of the voices become one, as long as any two are as alike as ALIKE."""
    while True:
        of_U = posterior_UK.argmax(axis=1)
        heard = np.unique(of_U)
        is_own_KU = of_U == heard[:, None]
        centres_KE = normalized(is_own_KU * said.weights_U @ said.embeddings_UE)
        seconds_K = is_own_KU @ said.durations_U
        wanted_KK = np.interp(np.minimum(seconds_K[:, None], seconds_K), ALIKE_S, ALIKE)
        excess_KK = np.where(np.eye(len(heard), dtype=bool), -inf, centres_KE @ centres_KE.T - wanted_KK)
        if excess_KK.max() < 0:
            return posterior_UK
        a, b = heard[list(np.unravel_index(excess_KK.argmax(), excess_KK.shape))]
        posterior_UK = posterior_UK.copy()
        posterior_UK[:, a] += posterior_UK[:, b]
        posterior_UK[:, b] = 0.0


class _Said(NamedTuple):
    """What is known of phrases, or pieces, in a row."""

    embeddings_UE: np.ndarray
    durations_U: np.ndarray
    weights_U: np.ndarray
    stay_U: np.ndarray

    @classmethod
    def of(cls, phrases: Sequence[Phrase]) -> _Said:
        embeddings_UE = np.stack([phrase.embedding for phrase in phrases]).astype(np.float64)  # type: ignore[misc]
        durations_U = np.array([phrase.end_s - phrase.start_s for phrase in phrases])
        pauses_U = np.array([0.0, *(b.start_s - a.end_s for a, b in pairwise(phrases))])
        stay_U = np.interp(pauses_U, (0.0, LONG_PAUSE_S), (STAY, STAY_AFTER))
        weights_U = np.clip(durations_U, 0.05, PHRASE_S) ** POWER
        return cls(embeddings_UE, durations_U, weights_U, stay_U)


def _starts(centred_UE: np.ndarray, durations_U: np.ndarray, count: int | None) -> Iterator[np.ndarray]:
    """Cluster numbers of the phrases, -1 for those that are too short, cut at each of START_COSINES; none twice.

    At least `count` clusters, as far as there are phrases.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform
    from sklearn.metrics.pairwise import cosine_distances

    longest = np.argsort(-durations_U, kind="stable")[:START_PHRASES]
    chosen = np.sort(longest[durations_U[longest] >= SHORTEST_S])
    if len(chosen) < max(2, count or 0):
        chosen = np.sort(longest)
    start_U = np.full(len(durations_U), -1)
    start_U[chosen] = 0
    if len(chosen) < 2:
        yield start_U
        return
    tree = linkage(squareform(cosine_distances(centred_UE[chosen]), checks=False), "average")
    numbers = set()
    for cosine in START_COSINES:
        of_chosen = fcluster(tree, 1 - cosine, "distance")
        if of_chosen.max() < (count or 0):
            of_chosen = fcluster(tree, count, "maxclust")
        if (number := of_chosen.max()) not in numbers:  # cuts of one tree into as many are the same
            numbers.add(number)
            start_U = start_U.copy()
            start_U[chosen] = of_chosen - 1
            yield start_U


Found = tuple[np.ndarray, np.ndarray, np.ndarray, float]
"""Voices' means (K, E) and the expected squares of their lengths (K,), their prior (K,), and the evidence for them."""


def _variational_bayes(
    rho_UE: np.ndarray, weights_U: np.ndarray, ratio_E: np.ndarray, spread: float, stay_U: np.ndarray,
    start_U: np.ndarray, count: int | None, best: Found | None,
) -> Found | None:  # fmt: skip
    """What is found from a start, unless there is more evidence for the best so far.

    `rho_UE` are the centred embeddings times sqrt(between) / within, `ratio_E` is between / within.
    """
    K = int(start_U.max()) + 1
    posterior_UK = np.where(start_U[:, None] < 0, 1 / K, np.where(start_U[:, None] == np.arange(K), 1.0, 1e-3))
    posterior_UK /= posterior_UK.sum(axis=1, keepdims=True)
    prior_K, evidence = np.full(K, 1 / K), -inf
    for number in range(ROUNDS):
        mean_KE, spread_K, divergence = _described(posterior_UK * weights_U[:, None], rho_UE, ratio_E, spread)
        log_likelihood_UK = FIT * weights_U[:, None] * (rho_UE @ mean_KE.T - 0.5 * spread_K)
        before_UK = posterior_UK
        posterior_UK, prior_K, log_likelihood = forward_backward(log_likelihood_UK, prior_K, stay_U)
        evidence, last = log_likelihood - divergence, evidence
        if best and evidence < best[-1] and number >= 3 and evidence - last < GAIN:
            return None
        most = count or MOST_VOICES
        if len(prior_K) <= (count or 0):  # none may vanish
            prior_K = np.full(len(prior_K), 1 / len(prior_K))
        kept = prior_K > 1e-4
        if number >= ROUNDS // 2 and kept.sum() > most or kept.sum() < (count or 0):
            kept = np.argsort(np.argsort(-prior_K)) < most
        posterior_UK, prior_K = posterior_UK[:, kept] + 1e-12, prior_K[kept] + 1e-12
        posterior_UK, prior_K = posterior_UK / posterior_UK.sum(axis=1, keepdims=True), prior_K / prior_K.sum()
        if kept.all() and kept.sum() <= most and np.abs(posterior_UK - before_UK).max() < SETTLED:
            break
    mean_KE, spread_K, _ = _described(posterior_UK * weights_U[:, None], rho_UE, ratio_E, spread)
    return (mean_KE, spread_K, prior_K, evidence) if not best or evidence > best[-1] else None


def _described(
    shares_UK: np.ndarray, rho_UE: np.ndarray, ratio_E: np.ndarray, spread: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Voices' means (K, E) and the expected squares of their lengths (K,), from their shares of the phrases.

    The third is what they cost: `spread` times how far they are from the prior (Kullback & Leibler's divergence).
    """
    variance_KE = 1 / (1 + FIT / spread * shares_UK.sum(axis=0)[:, None] * ratio_E)
    mean_KE = FIT / spread * variance_KE * (shares_UK.T @ rho_UE)
    divergence = 0.5 * spread * float((variance_KE + mean_KE**2 - 1 - np.log(variance_KE)).sum())
    return mean_KE, (variance_KE + mean_KE**2) @ ratio_E, divergence


def forward_backward(
    log_likelihood_UK: np.ndarray, prior_K: np.ndarray, stay_U: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Posterior (U, K), the voices' new prior (K,) and the log-likelihood.

    A voice stays with stay_U, or is drawn anew from the prior.
    """
    largest_U = log_likelihood_UK.max(axis=1)
    likelihood_UK = np.exp(log_likelihood_UK - largest_U[:, None]) + 1e-300
    forward_UK, backward_UK = np.empty_like(likelihood_UK), np.ones_like(likelihood_UK)
    drawn_UK = (1 - stay_U)[:, None] * prior_K
    drawn_UK[0], stay_U = prior_K, np.r_[0.0, stay_U[1:]]
    total_U, ones_K = np.empty(len(stay_U)), np.ones(len(prior_K))
    state_K = prior_K
    for u, (likelihood_K, drawn_K, stay) in enumerate(zip(likelihood_UK, drawn_UK, stay_U.tolist(), strict=True)):
        state_K = likelihood_K * (drawn_K + stay * state_K)
        total_U[u] = total = state_K.dot(ones_K)  # in a third of the time of a sum
        forward_UK[u] = state_K = state_K / total
    scaled_UK = likelihood_UK / total_U[:, None]
    state_K = ones_K
    rows = zip(scaled_UK[:0:-1], drawn_UK[:0:-1], stay_U[:0:-1].tolist(), backward_UK[-2::-1], strict=True)
    for scaled_K, drawn_K, stay, before_K in rows:
        seen_K = scaled_K * state_K
        before_K[:] = state_K = drawn_K.dot(seen_K) + stay * seen_K
    posterior_UK = forward_UK * backward_UK
    posterior_UK /= posterior_UK.sum(axis=1, keepdims=True)
    entries_UK = drawn_UK * likelihood_UK * backward_UK / total_U[:, None]
    prior_K = posterior_UK[0] + entries_UK[1:].sum(axis=0)
    return posterior_UK, prior_K / prior_K.sum(), float((np.log(total_U) + largest_U).sum())


def _numbered(best_U: np.ndarray, probability_U: np.ndarray, phrases: Sequence[Phrase]) -> Voices:
    """Voices from what each piece's is called.

    What a voice is like is heard in phrases, each by its share of them: words alone are less like whoever says them.
    """
    heard, of_piece = np.unique(best_U, return_inverse=True)
    order = np.argsort([int(np.argmax(of_piece == k)) for k in range(len(heard))])
    of_piece = np.argsort(order)[of_piece]
    whole, durations_U = (
        _Said.of(phrases),
        _Said.of([piece for phrase in phrases for piece in phrase.pieces]).durations_U,
    )
    of_phrase = np.repeat(np.arange(len(phrases)), [len(phrase.pieces) for phrase in phrases])
    shares_KP = np.zeros((len(heard), len(phrases)))
    np.add.at(shares_KP, (of_piece, of_phrase), np.maximum(durations_U, 0.01))
    centres_KE = shares_KP / shares_KP.sum(axis=0) * whole.weights_U @ whole.embeddings_UE
    return Voices(of_piece, probability_U, normalized(centres_KE), np.bincount(of_piece, durations_U))


def parted(
    found: Voices, phrases: Sequence[Phrase], references_ME: np.ndarray, threshold: Callable[[float], float]
) -> Voices:
    """The voices, those that are two of the enrolled ones taken apart; `threshold` is the cosine for so many seconds.

    The phrases of a voice are shared out between the name that is nearest to all of it and any other one, as each is
    nearer to. Where either part reaches its own name's threshold, by PART_MARGIN more than the other name's likeness,
    and the parts are not alike, pieces go where their phrase does.
    """
    of_phrase = np.repeat(np.arange(len(phrases)), [len(phrase.pieces) for phrase in phrases])
    said, pieces = _Said.of(phrases), _Said.of([piece for phrase in phrases for piece in phrase.pieces])
    scores_UM = said.embeddings_UE @ references_ME.T
    of_piece, voice = found.of_piece.copy(), 0
    while voice <= of_piece.max():
        seconds_U = np.bincount(of_phrase, pieces.durations_U * (of_piece == voice), len(phrases))
        own_U = np.flatnonzero(seconds_U > 0)
        nearest = int((references_ME @ normalized(seconds_U @ said.embeddings_UE)).argmax())
        best, best_margin = None, PART_MARGIN
        for other in range(len(references_ME)):
            is_other = scores_UM[own_U, other] > scores_UM[own_U, nearest]
            margins, centres = [], []
            for part_U, name, rival in ((own_U[~is_other], nearest, other), (own_U[is_other], other, nearest)):
                part_s = float(seconds_U[part_U].sum())
                if part_s < PART_S:
                    break
                centre_E = normalized(seconds_U[part_U] @ said.embeddings_UE[part_U])
                if (score := float(centre_E @ references_ME[name])) < threshold(part_s):
                    break
                margins.append(score - float(centre_E @ references_ME[rival]))
                centres.append(centre_E)
            if len(margins) == 2 and min(margins) >= best_margin and centres[0] @ centres[1] <= PARTS_ALIKE:
                best, best_margin = own_U[is_other], min(margins)
        if best is None:
            voice += 1
        else:
            of_piece[(of_piece == voice) & np.isin(of_phrase, best)] = of_piece.max() + 1
    return found if (of_piece == found.of_piece).all() else _numbered(of_piece, found.probability, phrases)
