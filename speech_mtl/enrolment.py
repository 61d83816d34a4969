"""A recording of one voice: what it sounds like to the speaker head, and whether it is good enough to enrol.

Speech is told from quiet by the levels of short frames; the quietest of them are the noise, as in NIST's
signal-to-noise tool (`stnr`), which needs some pause to be right. Whether a recording holds one voice is asked of
windows: they are split into the two most different groups, whose likeness must not be lower than that of one voice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil

import numpy as np
import torch

from speech_mtl.audio import Audio, AudioError, open_sound, watched
from speech_mtl.calibration import Calibration
from speech_mtl.diarize import two_groups
from speech_mtl.level import CLIPPED_SHARE, Level
from speech_mtl.model import SpeechModel
from speech_mtl.speakers import Utterance, normalized
from speech_mtl.windows import cores

FRAME_S = 0.02
QUIETEST, LOUDEST, MOST_LOUD_S = 10, 95, 1.5
"""Percentiles of the frames' levels that stand for the noise and for loud speech, which is no more than so long: in a
long recording with a few words the loudest twentieth is quiet. Less would be a door, or a cough."""
SPEECH_RANGE_DB = 30.0
"""Frames so far below loud speech are no speech; where it is noisy, those near the noise are none either."""
GAP_S = 0.2
"""A quieter moment inside speech, a closed lip, belongs to it."""
WINDOW_S, HOP_S = 1.5, 0.75
"""Windows in which a second voice is looked for; it must be heard in two that do not overlap."""
MOST_WINDOWS = 4800
"""An hour's. Of more every second, third, ... is compared: grouping them takes memory by the square of their number."""
LEAST_SPEECH_S, LEAST_TOGETHER_S, ENOUGH_SPEECH_S = 0.5, 1.0, 5.0
"""Speech of a recording and of all that are enrolled under a name: less is refused; less than the last is warned of."""
LEAST_SNR_DB, GOOD_SNR_DB = 3.0, 12.0
MOST_CLIPPED = 0.02
"""Share of the samples at full scale from which a recording is refused; level.CLIPPED_SHARE is warned of."""

SAME_RECORDING = 0.9999
"""Cosine that no two recordings of a voice reach."""
UNLIKELY = 0.01
"""Probability of one voice below which recordings under one name are refused."""
LIKELY = 0.5
"""Probability of one voice from which on a second name for it is refused."""

Span = tuple[int, int]


class EnrolmentError(AudioError):
    """A recording that is no good for enrolling; the message says why, and what would be accepted."""


@dataclass
class Loudness(Level):
    """What blocks are like together, and the level of every frame of 20 ms, in dB."""

    sample_rate: int = 16000
    rest: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    parts: list[np.ndarray] = field(default_factory=list)

    def add(self, block: np.ndarray) -> None:
        super().add(block)
        size = round(FRAME_S * self.sample_rate)
        held = np.concatenate([self.rest, block])
        frames = held[: len(held) // size * size].reshape(-1, size)
        self.rest = held[frames.size :]
        self.parts.append(10 * np.log10(frames.var(axis=1) + 1e-10))  # the variance, for the sake of an offset

    @cached_property
    def levels_db(self) -> np.ndarray:
        """Of all frames; ask when all blocks were added."""
        return np.concatenate([np.zeros(0), *self.parts])

    @cached_property
    def speech(self) -> np.ndarray:
        """Which frames hold speech: all that is clearly above the quietest, and not far below the loudest."""
        heard_db = self.levels_db[self.levels_db > -90]
        if not len(heard_db):
            return np.zeros(len(self.levels_db), dtype=bool)
        loudest = max(LOUDEST, 100 * (1 - MOST_LOUD_S / FRAME_S / len(heard_db)))
        quiet_db, loud_db = np.percentile(heard_db, [QUIETEST, loudest])
        is_speech = self.levels_db > max(loud_db - SPEECH_RANGE_DB, min(quiet_db + 3, loud_db - 3))
        edges = np.flatnonzero(np.diff(np.r_[0, is_speech.astype(int), 0]))
        for end, start in zip(edges[1:-1:2], edges[2::2], strict=True):
            if start - end <= GAP_S / FRAME_S:
                is_speech[end:start] = True
        return is_speech

    @property
    def speech_s(self) -> float:
        return round(float(self.speech.sum()) * FRAME_S, 3)

    @property
    def snr_db(self) -> float | None:
        """Level of the speech over that of the quietest frames; None where nothing is quiet enough to tell."""
        powers = 10 ** (self.levels_db[self.levels_db > -90] / 10)
        if not len(powers) or not self.speech.any():
            return None
        noise = powers[powers <= np.percentile(powers, QUIETEST)].mean()
        signal = (10 ** (self.levels_db[self.speech] / 10)).mean()
        return round(float(10 * np.log10(max(signal - noise, noise * 1e-3) / noise)), 1)

    def speech_between_s(self, start_s: float, end_s: float) -> float:
        return float(self.speech[round(start_s / FRAME_S) : round(end_s / FRAME_S)].sum()) * FRAME_S


@dataclass(frozen=True)
class Spans:
    """Parts of a recording: start, end and speech in seconds (W, 3), and their voices (W, E), each of length 1."""

    times_W3: np.ndarray
    embeddings_WE: np.ndarray

    def with_speech(self, share: float) -> Spans:
        """Those of which at least this share is speech."""
        kept = self.times_W3[:, 2] >= share * (self.times_W3[:, 1] - self.times_W3[:, 0])
        return Spans(self.times_W3[kept], self.embeddings_WE[kept])


@dataclass(frozen=True)
class Heard:
    """A recording's voice: of all of it, and of spans of it."""

    name: str
    loudness: Loudness
    embedding: np.ndarray | None
    """(E,), of length 1; None for digital silence."""
    windows: Spans
    """All of WINDOW_S."""
    pieces: Spans
    """Those that were asked for."""

    @property
    def quality(self) -> dict[str, float | None]:
        """What an enrolment keeps of its recording."""
        return {"snr_db": self.loudness.snr_db, "clipped": round(self.loudness.clipped_share, 5)}


@torch.inference_mode()
def listen(
    model: SpeechModel, task: str, audio: Audio, pieces_of: Callable[[int], list[Span]] = lambda size: []
) -> Heard:
    """Hear a recording of any length; its voice is the mean of the windows' embeddings, each weighted by its speech.

    `task` is the speaker task's name; `pieces_of` names pieces of a part of so many encoder frames. Raises AudioError.
    """
    sample_rate, frame_s = model.config.features.sample_rate, model.frame_s
    sound, loudness = open_sound(audio, sample_rate), Loudness(sample_rate=sample_rate)
    length, hop = round(WINDOW_S / frame_s), max(1, round(HOP_S / frame_s))
    parts: list[tuple[np.ndarray, np.ndarray, int]] = []  # of all of a core, its windows, so many, and its pieces
    for core, _ in cores(model, watched(sound, loudness), None, [task]):
        if not (size := len(core.log_probs_SV)):
            continue
        windows = [(start, start + length) for start in range(0, size - length + 1, hop)]
        bounds = [(0, size), *windows, *pieces_of(size)]
        output = model.task(task).over_spans(core.frames[task], bounds)["embedding"].cpu().numpy()  # type: ignore[operator]
        parts.append(((core.start + np.array(bounds, dtype=float)) * frame_s, output, len(windows)))
    embedding = None
    if parts and not loudness.is_silent:
        # a little for a core without any, so that what is all quiet has a voice, too
        weights = [max(1e-3, loudness.speech_between_s(*times_s[0])) for times_s, _, _ in parts]
        embedding = normalized(np.average([output[0] for _, output, _ in parts], axis=0, weights=weights))
    heard_windows = _spans([(times_s[1 : n + 1], output[1 : n + 1]) for times_s, output, n in parts], loudness)
    heard_pieces = _spans([(times_s[n + 1 :], output[n + 1 :]) for times_s, output, n in parts], loudness)
    return Heard(sound.name, loudness, embedding, heard_windows, heard_pieces)


def _spans(parts: list[tuple[np.ndarray, np.ndarray]], loudness: Loudness) -> Spans:
    """Of the bounds in seconds and the embeddings in each part of a recording."""
    if not parts:
        return Spans(np.zeros((0, 3)), np.zeros((0, 0)))
    bounds_W2, embeddings_WE = (np.concatenate(column) for column in zip(*parts, strict=True))
    speech_s = np.array([loudness.speech_between_s(*bounds) for bounds in bounds_W2])
    return Spans(np.column_stack([bounds_W2, speech_s]), embeddings_WE)


def likeness_within(windows_WE: np.ndarray) -> float:
    """Cosine between the two most different groups of windows, at least two in each; 1 where that cannot be asked."""
    windows_WE = windows_WE[:: max(1, ceil(len(windows_WE) / MOST_WINDOWS))]
    if len(windows_WE) < 4 or min(np.bincount(group_W := two_groups(windows_WE))) < 2:
        return 1.0
    a, b = (normalized(windows_WE[group_W == k].mean(axis=0)) for k in (0, 1))
    return float(a @ b)


def check_recording(heard: Heard, calibration: Calibration) -> None:
    """Raises EnrolmentError where there is too little speech, too much noise or clipping, or a second voice."""
    loudness = heard.loudness
    clipped, speech_s, snr_db = loudness.clipped_share, loudness.speech_s, loudness.snr_db
    reason = None
    if speech_s < LEAST_SPEECH_S:
        reason = f"{speech_s:.2f} s of speech; expected at least {LEAST_SPEECH_S:g} s"
    elif snr_db is not None and snr_db < LEAST_SNR_DB:
        reason = f"speech is {snr_db:.1f} dB above the noise; expected at least {LEAST_SNR_DB:g} dB"
    elif clipped >= MOST_CLIPPED:
        reason = f"{100 * clipped:.1f} % of the samples are at full scale; expected less than {100 * MOST_CLIPPED:g} %"
    elif calibration.one_voice is not None:
        likeness = likeness_within(heard.windows.with_speech(0.5).embeddings_WE)
        if likeness < calibration.one_voice:
            limit = f"alike by {likeness:.2f}, one voice's by {calibration.one_voice:.2f} or more"
            reason = f"two voices: parts of it are {limit}; expected a recording of one"
    if reason is not None:
        raise EnrolmentError(f"{heard.name}: {reason} (--force enrols it anyway)")


def repeated(new: list[Utterance], earlier: list[Utterance]) -> list[bool]:
    """Which recordings are enrolled already, or are another of them: once more they tell nothing more of the voice."""
    return [
        any(float(one.embedding @ other.embedding) > SAME_RECORDING for other in [*earlier, *new[:i]])
        for i, one in enumerate(new)
    ]


def check_names(
    name: str, new: list[Utterance], files: list[str], there: dict[str, list[Utterance]], calibration: Calibration,
    force: bool,
) -> list[str]:  # fmt: skip
    """What a person should know of recordings that are to be enrolled under a name, beside those who are there.

    Raises EnrolmentError, unless `force`, where a recording's voice is not that of the name's other recordings, or is
    that of another name; neither can be told without a calibration.
    """
    together = [*there.get(name, []), *new]
    speech_s = sum(one.speech_s or 0.0 for one in together)
    found = []
    if speech_s < LEAST_TOGETHER_S and not any(one.speech_s is None for one in together):
        found.append(f"{name}: {speech_s:.2f} s of speech in all; expected at least {LEAST_TOGETHER_S:g} s")
    if calibration.false_acceptance is not None:
        found += [
            *_strangers(name, new, files, there.get(name, []), calibration),
            *_other_names(name, new, {other: own for other, own in there.items() if other != name}, calibration),
        ]
    if found and not force:
        raise EnrolmentError("\n".join(f"{reason} (--force enrols it anyway)" for reason in found))
    if speech_s < ENOUGH_SPEECH_S:
        found.append(
            f"{name}: {speech_s:.1f} s of speech enrolled; {ENOUGH_SPEECH_S:g} s or more are recognised better"
        )
    for file, one in zip(files, new, strict=True):
        quality = one.quality or {}
        if (snr_db := quality.get("snr_db")) is not None and snr_db < GOOD_SNR_DB:
            found.append(f"{file}: noisy: speech is {snr_db:.1f} dB above the noise")
        if (clipped := quality.get("clipped") or 0.0) >= CLIPPED_SHARE:
            found.append(f"{file}: clipped: {100 * clipped:.1f} % of the samples are at full scale")
    return found


def _strangers(
    name: str, new: list[Utterance], files: list[str], earlier: list[Utterance], calibration: Calibration
) -> list[str]:
    """One name for two voices: the new ones of the two most different groups, where one voice is unlikely in both.

    Groups, and not each recording against all others: of two voices that are given equally often, the others hold
    either. On development speakers 93 % of names with three recordings of two voices each are found so, 37 % the other
    way, and none of one voice is. Earlier recordings that were two voices already are not the new ones' fault.
    """
    together = [*new, *earlier]
    if len(together) < 2:
        return []
    group_N = two_groups(np.stack([one.embedding for one in together]))
    groups = [[one for one, other in zip(together, group_N, strict=True) if other == k] for k in (0, 1)]
    score = float(_reference(groups[0]) @ _reference(groups[1]))
    speech_s = min(sum(one.speech_s or LEAST_TOGETHER_S for one in own) for own in groups)
    probability = calibration.probability(score, speech_s)
    fresh = [k for k in (0, 1) if not (group_N[len(new) :] == k).any()]
    if probability is None or probability >= UNLIKELY or not fresh:
        return []
    other_voice = min(fresh, key=lambda k: len(groups[k]))
    likeness = f"likeness {score:.2f}, probability {probability:.2g}"
    return [
        f"{file}: another voice than the other recordings of '{name}' ({likeness})"
        for file, k in zip(files, group_N, strict=False)
        if k == other_voice
    ]


def _other_names(
    name: str, new: list[Utterance], others: dict[str, list[Utterance]], calibration: Calibration
) -> list[str]:
    """Two names for one voice: the nearest of the other names, where it would be taken for the voice.

    The threshold alone would refuse as many new people as strangers are let in; it must be likely, too.
    """
    if not others:
        return []
    voice = _reference(new)
    scores = {other: float(_reference(own) @ voice) for other, own in others.items()}
    nearest = max(scores, key=lambda other: scores[other])
    speech_s = sum(one.speech_s or 0.0 for one in new)
    threshold = calibration.threshold(speech_s, len(others))
    probability = calibration.probability_of_any(np.array(list(scores.values())), speech_s)
    if scores[nearest] < threshold or probability is not None and probability < LIKELY:
        return []
    likeness = f"likeness {scores[nearest]:.2f}, threshold {threshold:g}"
    one_name = f"if they are one person, enrol it as '{nearest}' (`speech-mtl speakers merge` joins two names)"
    return [f"'{name}' has the voice that is enrolled as '{nearest}' ({likeness}); {one_name}"]


def _reference(utterances: list[Utterance]) -> np.ndarray:
    return normalized(np.mean([one.embedding for one in utterances], axis=0))
