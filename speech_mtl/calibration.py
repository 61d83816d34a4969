"""What a speaker score means: the threshold for a wanted rate of false acceptance, and a probability.

A threshold depends on how much speech was heard (a second of a voice is a worse witness than a minute) and on how many
voices are enrolled (the more there are, the more often a stranger resembles one of them): the wanted rate is that at
which a stranger is given any name. Probabilities come from a linear logistic regression on the score (Brümmer & du
Preez 2006, "Application-independent evaluation of speaker detection"), whose output is a log-likelihood ratio.
`speech-mtl calibrate` measures both (calibrating.py) and stores them as calibration.json in a model's folder, or in a
speaker database. Cosines of two models do not compare: a calibration belongs to one model.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from speech_mtl.checkpoint import CheckpointError, fingerprint_of, write_atomically

CALIBRATION = "calibration.json"
THRESHOLDS = "thresholds.json"
"""What folders hold that were trained before there were calibrations: one threshold, that of equal error rates."""
UNMEASURED_THRESHOLD = 0.5
SHORTEST_S, LONGEST_S = 0.5, 60.0
"""Less and more speech counts as so much: nothing else was measured."""


class Band(BaseModel):
    """The thresholds for voices heard for less than `up_to_s` seconds (None: any longer time)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    up_to_s: float | None = None
    enrolled: tuple[int, ...] = (1,)
    thresholds: tuple[float, ...]
    """Cosine from which on a voice is accepted where so many are enrolled; straight over log(enrolled) between them."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Band:
        if not self.thresholds or len(self.enrolled) != len(self.thresholds) or list(self.enrolled) != sorted(
            {n for n in self.enrolled if n >= 1}
        ):  # fmt: skip
            raise ValueError(f"enrolled={self.enrolled}, thresholds={self.thresholds}; expected as many, rising from 1")
        if not all(-1 <= value <= 1 for value in self.thresholds):
            raise ValueError(f"thresholds={self.thresholds}; expected cosines from -1 to 1")
        return self

    def threshold(self, enrolled: int) -> float:
        known, values = np.log(self.enrolled), np.array(self.thresholds)
        place = math.log(max(1, enrolled))
        if place <= known[-1]:
            return float(np.interp(place, known, values))
        slope = (values[-1] - np.interp(known[-1] - math.log(2), known, values)) / math.log(2)  # the last doubling's
        return min(1.0, float(values[-1] + max(0.0, slope) * (place - known[-1])))


class Calibration(BaseModel):
    """What the scores of one model mean."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(1, ge=1, le=1)
    fingerprint: str | None = None
    """The model's; None where the thresholds were set without measuring any."""
    measured_on: str = ""
    """The data; empty where nothing was measured."""
    false_acceptance: float | None = None
    """The share of strangers who are given a name; None where the thresholds were not chosen so."""
    bands: tuple[Band, ...] = Field(min_length=1)
    logistic: tuple[float, float, float] | None = None
    """Log-likelihood ratio = a + b·score + c·log(seconds); None where it was not measured."""
    one_voice: float | None = Field(None, ge=-1, le=1)
    """Two groups of windows of one voice are more alike than this in 99 % of recordings."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Calibration:
        ends = [math.inf if band.up_to_s is None else band.up_to_s for band in self.bands]
        if ends != sorted(set(ends)) or ends[-1] != math.inf or ends[0] <= 0:
            raise ValueError(f"bands end at {ends} s; expected rising times and None at the end")
        return self

    @classmethod
    def of(cls, threshold: float, measured_on: str, fingerprint: str | None = None) -> Calibration:
        """One threshold for all voices, without probabilities."""
        return cls(bands=(Band(thresholds=(threshold,)),), measured_on=measured_on, fingerprint=fingerprint)

    def with_threshold(self, threshold: float) -> Calibration:
        """The same probabilities, and a threshold that a person set."""
        fixed = {"bands": (Band(thresholds=(threshold,)),), "false_acceptance": None, "measured_on": "set by the user"}
        return self.model_copy(update=fixed)

    def threshold(self, seconds: float, enrolled: int = 1) -> float:
        """The cosine from which on a voice heard for `seconds` is one of `enrolled`."""
        band = next(band for band in self.bands if band.up_to_s is None or seconds < band.up_to_s)
        return round(band.threshold(enrolled), 4)

    def log_likelihood_ratio(self, scores: np.ndarray, seconds: float | np.ndarray) -> np.ndarray:
        """Natural logarithm; above 0 speaks for the same voice. Needs `logistic`."""
        assert self.logistic is not None
        a, b, c = self.logistic
        return a + b * np.asarray(scores) + c * np.log(np.clip(seconds, SHORTEST_S, LONGEST_S))

    def probability(self, scores: np.ndarray | float, seconds: float) -> float | None:
        """That the voice is the enrolled one it resembles most, if it is as likely as not to be enrolled at all.

        `scores` are its cosines with all that are enrolled. None where it was not measured.
        """
        shares = self._shares(scores, seconds)
        return None if shares is None else round(float(shares[int(np.argmax(scores))]), 4)

    def probability_of_any(self, scores: np.ndarray | float, seconds: float) -> float | None:
        """That it is one of those enrolled, whichever; see `probability`."""
        shares = self._shares(scores, seconds)
        return None if shares is None else round(float(1 - shares[-1]), 4)

    def _shares(self, scores: np.ndarray | float, seconds: float) -> np.ndarray | None:
        """Probabilities of each of those enrolled, and of none of them."""
        scores = np.atleast_1d(scores)
        if self.logistic is None or not len(scores):
            return None
        ratios = np.append(self.log_likelihood_ratio(scores, seconds) - math.log(len(scores)), 0.0)
        shares = np.exp(ratios - ratios.max())
        return shares / shares.sum()

    @property
    def note(self) -> str:
        """Where the thresholds come from, in a line."""
        low, high = min(b.thresholds[0] for b in self.bands), max(b.thresholds[0] for b in self.bands)
        values = (
            f"threshold {low:g}"
            if len(self.bands) == 1
            else f"thresholds {low:g} to {high:g} by seconds of speech, and higher for many enrolled"
        )
        rate = "" if self.false_acceptance is None else f"{100 * self.false_acceptance:g} % false acceptance on "
        return f"speaker {values} ({rate}{self.measured_on or 'not measured for this model'})"

    def to_json(self) -> str:
        return json.dumps(self.model_dump(exclude_none=True), indent=1, ensure_ascii=False) + "\n"


def parse_calibration(text: str, where: str, fingerprint: str | None) -> Calibration:
    """The calibration in a JSON text that `where` names. Raises CheckpointError, also for another model's."""
    try:
        found = Calibration.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        expected = "expected what `speech-mtl calibrate` writes"
        raise CheckpointError(f"{where}: {place}: {first['msg']} (found {first['input']!r:.60}); {expected}") from None
    if found.fingerprint not in (None, fingerprint):
        raise CheckpointError(
            f"{where} belongs to other weights (fingerprint {found.fingerprint}, this model's is {fingerprint}); "
            "run `speech-mtl calibrate` again, or delete it"
        )
    return found


def read_calibration(folder: Path, fingerprint: str | None) -> Calibration:
    """That of a model's folder; without one a default, said to be unmeasured. Raises CheckpointError."""
    if (path := folder / CALIBRATION).exists():
        return parse_calibration(path.read_text(encoding="utf-8", errors="replace"), str(path), fingerprint)
    if (path := folder / THRESHOLDS).exists():
        try:
            speaker = json.loads(path.read_text(encoding="utf-8"))["speaker"]
            return Calibration.of(float(speaker["threshold"]), str(speaker["measured_on"]))
        except (ValueError, TypeError, KeyError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise CheckpointError(f"{path}: {reason}; delete it, and run `speech-mtl calibrate`") from None
    return Calibration.of(UNMEASURED_THRESHOLD, "")


def save_calibration(folder: Path, calibration: Calibration) -> Path:
    """Write calibration.json for the weights that the folder holds now; it replaces a thresholds.json."""
    bound = calibration.model_copy(update={"fingerprint": fingerprint_of(folder)})
    write_atomically(folder / CALIBRATION, lambda path: path.write_text(bound.to_json(), encoding="utf-8"))
    (folder / THRESHOLDS).unlink(missing_ok=True)
    return folder / CALIBRATION
