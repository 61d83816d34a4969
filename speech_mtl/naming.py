"""Which of the enrolled speakers a voice is, and which of them each voice of a recording is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from speech_mtl.calibration import Calibration
from speech_mtl.diarize import Voices
from speech_mtl.results import Voice
from speech_mtl.speakers import UNKNOWN, Enrolled, normalized


@dataclass(frozen=True)
class Match:
    """Whose voice it is: `name` is 'unknown' where the best score is below the threshold, or nobody is enrolled."""

    name: str
    threshold: float
    score: float | None = None
    """Cosine with the best reference, -1 to 1; None where there is none to compare with."""
    best_name: str | None = None
    """The nearest enrolled speaker, whatever the score."""
    probability: float | None = None
    """That it is best_name's; see `Calibration.probability`."""


def match_of(embedding: np.ndarray | None, speech_s: float, enrolled: Enrolled, calibration: Calibration) -> Match:
    """Compare a voice (E,), or None for silence, with the enrolled ones; accepted from the threshold on."""
    names = enrolled.names
    threshold = calibration.threshold(speech_s, len(names))
    if embedding is None or not names:
        return Match(UNKNOWN, threshold)
    scores = enrolled.references @ normalized(embedding)
    best = int(scores.argmax())
    score = float(scores[best])
    name = names[best] if score >= threshold else UNKNOWN
    return Match(name, threshold, score, names[best], calibration.probability(scores, speech_s))


def voices_of(found: Voices, enrolled: Enrolled, calibration: Calibration) -> list[Voice]:
    """A name for each voice; those that turn out to be one enrolled speaker are one.

    Of voices that reach the threshold of one name the nearest has it, with those that are as near to that voice, or
    to one of the name's enrolments, as it is to the name. Others stay unknown: that they were told apart within one
    recording is better evidence than a likeness to another recording. So do those that would cost the nearest its name,
    since of more speech more likeness is asked.
    """

    def heard_as_one(voices: list[int]) -> tuple[np.ndarray, float, Match]:
        """Their centre, seconds of speech, and whose voice they are."""
        centre = normalized(found.seconds[voices] @ found.centres[voices])
        speech_s = round(float(found.seconds[voices].sum()), 3)
        return centre, speech_s, match_of(centre, speech_s, enrolled, calibration)

    matches = [heard_as_one([k])[2] for k in range(len(found.seconds))]
    nearest = {match.name: k for k, match in sorted(enumerate(matches), key=lambda one: one[1].score or 0.0)}
    unknown = 0
    labels = []
    for k, match in enumerate(matches):
        first = nearest[match.name]
        alike = [found.centres[first], *(one.embedding for one in enrolled.utterances.get(match.name, []))]
        likeness = 1.0 if k == first else float(np.max(np.stack(alike) @ found.centres[k]))
        is_other = match.name == UNKNOWN or likeness < min(1.0, matches[first].score or 0.0)
        is_other = is_other or heard_as_one(sorted({first, k}))[2].name != match.name
        unknown += is_other
        labels.append(f"{UNKNOWN} {unknown}" if is_other else match.name)
    merged = {}
    for label in labels:
        centre, speech_s, match = heard_as_one([k for k, other in enumerate(labels) if other == label])
        embedding = [round(float(value), 5) for value in centre]
        merged[label] = Voice(
            label, speech_s, match.score, match.best_name, embedding,
            match.threshold if enrolled.names else None, match.probability,
        )  # fmt: skip
    return [merged[label] for label in labels]
