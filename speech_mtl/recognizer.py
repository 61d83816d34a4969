"""Who said what: a recording -> segments with text, word times and a speaker, from one run of the encoder a segment.

    recognizer = Recognizer.from_pretrained()          # the bundled model, or a folder
    recognizer.enroll("alice", ["a1.wav", "a2.wav"])
    result = recognizer.transcribe("meeting.wav")      # result.text, result.segments[i].speaker/.text/.words

A recording of up to 30 s is one segment, and a segment has one speaker; a longer recording is cut at silences.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speech_mtl.audio import MAX_SEGMENT_S, AudioError, as_mono, is_silent, level_note, load_audio, split_at_silences
from speech_mtl.checkpoint import CheckpointError, load_model
from speech_mtl.language import Decoder, Decoding
from speech_mtl.model import SpeechModel
from speech_mtl.speakers import UNKNOWN, Match, SpeakerDatabase, default_path, identify, normalized
from speech_mtl.tasks.asr import ASR

PRETRAINED = Path(__file__).parent / "pretrained"
THRESHOLDS = "thresholds.json"
UNMEASURED_THRESHOLD = 0.5

Audio = str | Path | tuple[np.ndarray, int]
"""A file, or samples (N,) or (N, channels) with their rate in Hz."""


@dataclass(frozen=True)
class Threshold:
    """The cosine from which on two voices count as one."""

    value: float
    measured_on: str
    """The data it was chosen on; empty where it was not measured."""

    @property
    def note(self) -> str:
        return f"speaker threshold {self.value:g} ({self.measured_on or 'not measured for this model'})"


@dataclass(frozen=True)
class Word:
    """Times in seconds from the start of the recording; `confidence` 0 to 1."""

    text: str
    start_s: float
    end_s: float
    confidence: float
    speaker: str | None


@dataclass(frozen=True)
class Label:
    """A classify task's answer."""

    label: str
    probability: float


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording, in seconds from its start."""

    start_s: float
    end_s: float
    text: str
    words: list[Word]
    speaker: str | None
    """A name, 'unknown', or None where the model has no speaker task."""
    score: float | None
    """Cosine with the nearest enrolled speaker; None where there is none to compare with."""
    best_name: str | None
    """The nearest enrolled speaker, also where the score is below the threshold."""
    labels: dict[str, Label]
    """The classify tasks' answers by task name."""


@dataclass(frozen=True)
class Result:
    audio: str
    duration_s: float
    threshold: Threshold
    segments: list[Segment]
    notes: list[str] = field(default_factory=list)
    """What a person should know: clipped, silent, cut at silences."""

    @property
    def text(self) -> str:
        return " ".join(segment.text for segment in self.segments if segment.text)


@dataclass(frozen=True)
class Identification:
    """Whose voice a recording holds; see `speakers.Match`."""

    audio: str
    speaker: str
    score: float | None
    best_name: str | None
    threshold: Threshold
    notes: list[str]


class Recognizer:
    """A model, a threshold and the enrolled speakers.

    `threshold` (a cosine, -1 to 1) replaces the model's own. Reading a recording raises AudioError, the database
    SpeakerDatabaseError, and asking for a task that the model lacks CheckpointError.
    """

    def __init__(self, model: SpeechModel, threshold: Threshold, db: str | Path | None = None):
        self.model, self.threshold, self.db = model, threshold, db
        self.sample_rate = model.config.features.sample_rate
        self._tasks = {task.type: name for name, task in model.config.tasks.items() if task.type != "classify"}
        self._classify = [name for name, task in model.config.tasks.items() if task.type == "classify"]

    @classmethod
    def from_pretrained(
        cls, folder: str | Path | None = None, device: str = "cpu", db: str | Path | None = None,
        threshold: float | None = None, decoding: Decoding | None = None,
    ) -> Recognizer:  # fmt: skip
        """The model of a folder (None: the bundled one) with the speakers enrolled in `db` (None: the user's own).

        `decoding` asks for a beam search, with a language model or hot words; None takes the best path. Raises
        CheckpointError, and DecodingError for a language model or hot words that this model cannot write.
        """
        folder = Path(folder or PRETRAINED)
        model = load_model(folder, device)
        chosen = read_threshold(folder) if threshold is None else Threshold(threshold, "set by the user")
        if decoding is not None:
            set_decoder(model, decoding)
        return cls(model, chosen, db)

    @cached_property
    def database(self) -> SpeakerDatabase:
        """The enrolled speakers; opened when a name is asked for. Raises SpeakerDatabaseError."""
        return SpeakerDatabase(self.db or default_path(), self.model.fingerprint)

    def remarks(self) -> list[str]:
        """What a person should know before names are read: the threshold's origin, and whether anybody is enrolled."""
        if "speaker" not in self._tasks:
            return []
        nobody = f"nobody is enrolled in {self.database.path}: every speaker is '{UNKNOWN}'"
        return [self.threshold.note] if self.database.names() else [self.threshold.note, nobody]

    def transcribe(self, audio: Audio, on_progress: Callable[[float], None] = lambda share: None) -> Result:
        """Text, word times and speaker of every segment; `on_progress` sees the share that is done, up to 1."""
        self._task("asr")
        name, samples = self._load(audio)
        names, references = self._references()
        segments, texts = [], []
        for start, end, prediction in self._predictions(samples):
            if prediction is not None and "without" in (spoken := prediction[self._tasks["asr"]]):
                texts.append((spoken["text"], spoken["without"]))
            segments.append(self._segment(start, end, prediction, names, references))
            on_progress(end / len(samples))
        notes = [note] if (note := level_note(samples)) else []
        if len(segments) > 1:
            notes.append(f"longer than {MAX_SEGMENT_S:g} s: cut at silences into {len(segments)} segments")
        if decoder := asr_of(self.model).decoder:
            notes += decoder.effects(texts)
        return Result(name, round(len(samples) / self.sample_rate, 3), self.threshold, segments, notes)

    def embed(self, audio: Audio) -> np.ndarray:
        """The voice as a vector (E,) of length 1. Raises AudioError, also for digital silence."""
        name, samples = self._load(audio)
        return self._embed(name, samples)

    def identify(self, audio: Audio) -> Identification:
        """Whose voice it is among the enrolled speakers, or 'unknown'."""
        self._task("speaker")
        name, samples = self._load(audio)
        names, references = self._references()
        notes = [note] if (note := level_note(samples)) else []
        if is_silent(samples):
            return Identification(name, UNKNOWN, None, None, self.threshold, notes)
        match = identify(self._embed(name, samples), names, references, self.threshold.value)
        return Identification(name, match.name, match.score, match.best_name, self.threshold, notes)

    def verify(self, a: Audio, b: Audio) -> tuple[float, float, bool]:
        """(score, threshold, same): the cosine of two recordings' voices, and whether it reaches the threshold."""
        score = float(self.embed(a) @ self.embed(b))
        return score, self.threshold.value, score >= self.threshold.value

    def enroll(self, name: str, audios: Iterable[Audio]) -> int:
        """Enrol recordings of one speaker, all of them or, at an error, none; returns how many."""
        embeddings = [self.embed(audio) for audio in audios]
        if embeddings:
            self.database.add(name, np.stack(embeddings))
        return len(embeddings)

    def _task(self, kind: str) -> str:
        if kind not in self._tasks:
            raise CheckpointError(f"the model has no {kind} task; its tasks: {', '.join(self.model.config.tasks)}")
        return self._tasks[kind]

    def _load(self, audio: Audio) -> tuple[str, np.ndarray]:
        if isinstance(audio, tuple):
            return "samples", as_mono(*audio, self.sample_rate)
        return str(audio), load_audio(audio, self.sample_rate)

    def _references(self) -> tuple[list[str], np.ndarray]:
        return self.database.references() if "speaker" in self._tasks else ([], np.zeros((0, 0)))

    def _predictions(self, samples: np.ndarray) -> Iterator[tuple[int, int, dict[str, Any] | None]]:
        """(start, end, every task's prediction) of the pieces of (N,); None for digital silence.

        One piece at a time: memory stays flat, and what else there is in a recording changes nothing.
        """
        device = next(self.model.parameters()).device
        for start, end in split_at_silences(samples, self.sample_rate):
            prediction = None
            if not is_silent(samples[start:end]):
                audio_1N = torch.from_numpy(samples[None, start:end]).to(device)
                prediction = self.model.predict(audio_1N, torch.tensor([end - start], device=device))[0]
            yield start, end, prediction

    def _segment(
        self, start: int, end: int, prediction: dict[str, Any] | None, names: list[str], references: np.ndarray
    ) -> Segment:
        start_s, end_s = round(start / self.sample_rate, 3), round(end / self.sample_rate, 3)
        match = Match(UNKNOWN, None, None)
        if prediction is not None and "speaker" in self._tasks:
            embedding = prediction[self._tasks["speaker"]]["embedding"].numpy()
            match = identify(embedding, names, references, self.threshold.value)
        speaker = match.name if "speaker" in self._tasks else None
        spoken: dict[str, Any] = prediction[self._tasks["asr"]] if prediction is not None else {"text": "", "words": []}
        words = [
            # the last frame may reach beyond the last sample
            Word(w.text, round(start_s + w.start_s, 3), min(round(start_s + w.end_s, 3), end_s), w.confidence, speaker)
            for w in spoken["words"]
        ]
        labels = {name: Label(**prediction[name]) for name in self._classify} if prediction is not None else {}
        return Segment(start_s, end_s, spoken["text"], words, speaker, match.score, match.best_name, labels)

    def _embed(self, name: str, samples: np.ndarray) -> np.ndarray:
        """The mean of the pieces' embeddings, each weighted by its length."""
        task = self._task("speaker")
        if is_silent(samples):
            raise AudioError(f"{name}: digital silence; expected a voice")
        pieces = [(e - s, p[task]["embedding"].numpy()) for s, e, p in self._predictions(samples) if p is not None]
        return normalized(sum(length * embedding for length, embedding in pieces))


def asr_of(model: SpeechModel) -> ASR:
    """The model's recognition task. Raises CheckpointError where it has none."""
    for name in model.tasks:
        if isinstance(task := model.task(name), ASR):
            return task
    raise CheckpointError(f"the model has no asr task; its tasks: {', '.join(model.tasks)}")


def set_decoder(model: SpeechModel, decoding: Decoding) -> Decoder:
    """Have the model's recognition search a beam from now on. Raises CheckpointError and DecodingError."""
    asr = asr_of(model)
    asr.decoder = Decoder(decoding, asr.tokenizer)
    return asr.decoder


def read_threshold(folder: Path) -> Threshold:
    """The measured threshold of a model folder's thresholds.json, {"speaker": {"threshold", "measured_on"}}.

    A model without the file gets a default, said to be unmeasured. Raises CheckpointError.
    """
    path = folder / THRESHOLDS
    if not path.exists():
        return Threshold(UNMEASURED_THRESHOLD, "")
    try:
        speaker = json.loads(path.read_text(encoding="utf-8"))["speaker"]
        value, measured_on = float(speaker["threshold"]), str(speaker["measured_on"])
    except (ValueError, TypeError, KeyError) as error:
        expected = '{"speaker": {"threshold": 0.5, "measured_on": "..."}}'
        raise CheckpointError(f"{path}: {type(error).__name__}: {error}; expected {expected}") from None
    if not -1 <= value <= 1:
        raise CheckpointError(f"{path}: threshold {value}; expected a cosine from -1 to 1")
    return Threshold(value, measured_on)
