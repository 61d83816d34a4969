"""Which of the enrolled speakers a voice is, and which of them each voice of a recording is."""

from __future__ import annotations

import numpy as np

from speech_mtl.calibration import Calibration
from speech_mtl.diarize import Voices
from speech_mtl.results import Voice
from speech_mtl.speakers import UNKNOWN, Enrolled, Match, identify, normalized


def match_of(
    embedding: np.ndarray, speech_s: float, enrolled: Enrolled, calibration: Calibration
) -> tuple[Match, float, float | None]:
    """Whose voice it is, the threshold, and the probability that it is that of the nearest one."""
    names, references = enrolled.names, enrolled.references
    threshold = calibration.threshold(speech_s, len(names))
    probability = calibration.probability(references @ embedding, speech_s) if names else None
    return identify(embedding, names, references, threshold), threshold, probability


def voices_of(found: Voices, enrolled: Enrolled, calibration: Calibration) -> list[Voice]:
    """A name for each voice; those that turn out to be one enrolled speaker are one.

    Of voices that reach the threshold of one name the nearest has it, with those that are as near to that voice, or
    to one of the name's enrolments, as it is to the name. Others stay unknown: that they were told apart within one
    recording is better evidence than a likeness to another recording.
    """
    matches = [
        match_of(centre, float(speech_s), enrolled, calibration)[0]
        for centre, speech_s in zip(found.centres, found.seconds, strict=True)
    ]
    nearest = {match.name: k for k, match in sorted(enumerate(matches), key=lambda one: one[1].score or 0.0)}
    unknown = 0
    labels = []
    for k, match in enumerate(matches):
        first = nearest[match.name]
        alike = [found.centres[first], *(one.embedding for one in enrolled.utterances.get(match.name, []))]
        likeness = 1.0 if k == first else float(np.max(np.stack(alike) @ found.centres[k]))
        is_other = match.name == UNKNOWN or likeness < min(1.0, matches[first].score or 0.0)
        unknown += is_other
        labels.append(f"{UNKNOWN} {unknown}" if is_other else match.name)
    merged = {}
    for label in labels:
        own = [k for k, other in enumerate(labels) if other == label]
        centre = normalized(found.seconds[own] @ found.centres[own])
        speech_s = round(float(found.seconds[own].sum()), 3)
        match, threshold, probability = match_of(centre, speech_s, enrolled, calibration)
        embedding = [round(float(value), 5) for value in centre]
        merged[label] = Voice(
            label, speech_s, match.score, match.best_name, embedding,
            threshold if enrolled.names else None, probability,
        )  # fmt: skip
    return [merged[label] for label in labels]
