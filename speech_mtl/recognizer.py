"""Who said what: a recording of any length -> segments with text, word times and a speaker, from one encoder pass.

    recognizer = Recognizer.from_pretrained()          # the bundled model, or a folder
    recognizer.enroll("alice", ["a1.wav", "a2.wav"])
    result = recognizer.transcribe("meeting.wav")      # result.text, result.segments[i].speaker/.text/.words

The encoder runs once over windows of the recording (windows.py); words are decoded from its stitched log-probabilities
and voices told apart by the same frames (diarize.py). A segment is a stretch of one speaker.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from speech_mtl import decode
from speech_mtl.audio import Audio, AudioError, Level, Sound, open_sound
from speech_mtl.checkpoint import CheckpointError, load_model
from speech_mtl.diarize import MARGIN_S, Phrase, Population, Voices, find_voices, phrases_of
from speech_mtl.language import Decoder, Decoding
from speech_mtl.model import SpeechModel
from speech_mtl.speakers import UNKNOWN, SpeakerDatabase, default_path, identify, normalized
from speech_mtl.tasks.asr import ASR
from speech_mtl.windows import Stretch, cores, stretches

PRETRAINED = Path(__file__).parent / "pretrained"
THRESHOLDS = "thresholds.json"
UNMEASURED_THRESHOLD = 0.5
TURN_PAUSE_S = 0.9
"""A longer pause between two words of one speaker begins another segment."""


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
    speaker_probability: float | None = None
    """That this voice said it, given the recording's voices; None where the model has no speaker task."""


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
    """A name, 'unknown 1', 'unknown 2', ..., or None where the model has no speaker task."""
    score: float | None
    """Cosine of the speaker's voice, from all of the recording, with the nearest enrolled one; None where there is none
    to compare with."""
    best_name: str | None
    """The nearest enrolled speaker, also where the score is below the threshold."""
    labels: dict[str, Label]
    """The classify tasks' answers by task name."""


@dataclass(frozen=True)
class Voice:
    """One of a recording's voices, by the name its segments carry."""

    speaker: str
    speech_s: float
    score: float | None
    best_name: str | None
    embedding: list[float]
    """Of length 1; with it `speech-mtl enroll --from` gives a voice its name."""


@dataclass(frozen=True)
class Result:
    audio: str
    duration_s: float
    threshold: Threshold
    segments: list[Segment]
    notes: list[str] = field(default_factory=list)
    """What a person should know: clipped, silent, no words."""
    speakers: list[Voice] = field(default_factory=list)
    fingerprint: str = ""
    """The model's; embeddings of two models do not compare."""

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
        model.limit_attention()
        self.sample_rate = model.config.features.sample_rate
        self._tasks = {task.type: name for name, task in model.config.tasks.items() if task.type != "classify"}
        self._classify = [name for name, task in model.config.tasks.items() if task.type == "classify"]

    @classmethod
    def from_pretrained(
        cls, folder: str | Path | None = None, device: str = "cpu", db: str | Path | None = None,
        threshold: float | None = None, decoding: Decoding | None = None, bf16: bool = False,
    ) -> Recognizer:  # fmt: skip
        """The model of a folder (None: the bundled one) with the speakers enrolled in `db` (None: the user's own).

        `bf16` has the encoder run in bfloat16. `decoding` asks for a beam search, with a language model or hot words;
        None takes the best path. Raises CheckpointError, and DecodingError for a language model or hot words that this
        model cannot write.
        """
        folder = Path(folder or PRETRAINED)
        model = load_model(folder, device)
        if bf16:
            model.round_weights()
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

    def transcribe(
        self, audio: Audio, on_progress: Callable[[float], None] = lambda share: None, speakers: int | None = None
    ) -> Result:
        """Text, word times and speakers of a recording; `on_progress` sees the share that is done, up to 1.

        `speakers` is the number of voices where it is known.
        """
        if speakers is not None and speakers < 1:
            raise ValueError(f"speakers={speakers}; expected 1 or more")
        sound, level = open_sound(audio, self.sample_rate), Level()
        asr = asr_of(self.model)
        phrases: list[Phrase] = []
        texts: list[tuple[str, dict[str, str]]] = []
        for stretch in self._stretches(sound, level):
            heard = asr.transcribe(stretch.log_probs_SV)
            if "without" in heard:
                texts.append((heard["text"], heard["without"]))
            phrases += self._phrases(stretch, heard["words"])
            on_progress(min(1.0, level.samples / max(1, sound.samples)))
        duration_s = round(level.samples / self.sample_rate, 3)
        segments, voices = self._named(phrases, speakers, duration_s)
        on_progress(1.0)
        notes = [level.note] if level.note else [] if phrases else ["no words were recognised"]
        if asr.decoder:
            notes += asr.decoder.effects(texts)
        return Result(sound.name, duration_s, self.threshold, segments, notes, voices, self.model.fingerprint)

    def embed(self, audio: Audio) -> np.ndarray:
        """The voice as a vector (E,) of length 1. Raises AudioError, also for digital silence."""
        name, level, embedding = self._embed(audio)
        if embedding is None:
            raise AudioError(f"{name}: digital silence; expected a voice")
        return embedding

    def identify(self, audio: Audio) -> Identification:
        """Whose voice it is among the enrolled speakers, or 'unknown'."""
        names, references = self._references()
        name, level, embedding = self._embed(audio)
        notes = [level.note] if level.note else []
        if embedding is None:
            return Identification(name, UNKNOWN, None, None, self.threshold, notes)
        match = identify(embedding, names, references, self.threshold.value)
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

    def _references(self) -> tuple[list[str], np.ndarray]:
        return self.database.references() if "speaker" in self._tasks else ([], np.zeros((0, 0)))

    def _stretches(self, sound: Sound, level: Level) -> Iterator[Stretch]:
        others = [*self._classify, *([self._tasks["speaker"]] if "speaker" in self._tasks else [])]
        return stretches(self.model, watched(sound, level), self._task("asr"), others)

    @torch.inference_mode()
    def _phrases(self, stretch: Stretch, words: list[decode.Word]) -> list[Phrase]:
        """The words of a stretch in phrases, each with what the other heads say of its frames."""
        frame_s, ratio = self.model.frame_s, self.model.config.encoder.subsampling
        runs = phrases_of(words)
        if not runs:
            return []
        margin = round(MARGIN_S / frame_s)
        edges = [(round(run[0].start_s / frame_s), round(run[-1].end_s / frame_s)) for run in runs]
        spans = [(max(0, first - margin), min(len(stretch.log_probs_SV), last + margin)) for first, last in edges]
        said: dict[str, np.ndarray] = {}
        for name, frames in stretch.frames.items():
            output = self.model.task(name).over_spans(frames, spans, ratio)  # type: ignore[operator]
            said[name] = output["log_probs" if name in self._classify else "embedding"].cpu().numpy()
        return [
            Phrase(
                [_moved(word, stretch.start * frame_s) for word in run],
                said[self._tasks["speaker"]][i] if "speaker" in self._tasks else None,
                {name: said[name][i] for name in self._classify},
            )
            for i, run in enumerate(runs)
        ]

    def _named(self, phrases: list[Phrase], count: int | None, duration_s: float) -> tuple[list[Segment], list[Voice]]:
        """Segments of one speaker each, and the speakers in the order in which they are first heard."""
        if not phrases or "speaker" not in self._tasks:
            turns = _turns(phrases, [None] * len(phrases))
            return [self._segment([phrases[i] for i in turn], None, [], duration_s) for turn in turns], []
        task = self.model.task(self._tasks["speaker"])
        names, references = self._references()
        found = find_voices(phrases, Population.of(task.voices_CE.cpu().numpy()), references, count)  # type: ignore[operator, union-attr]
        voices = self._voices(found, names, references)
        speakers = [voices[k] for k in found.of_phrase]
        segments = []
        for turn in _turns(phrases, [voice.speaker for voice in speakers]):
            part = [phrases[i] for i in turn]
            segments.append(self._segment(part, speakers[turn[0]], found.probability[turn].tolist(), duration_s))
        return segments, list({voice.speaker: voice for voice in voices}.values())

    def _voices(self, found: Voices, names: list[str], references: np.ndarray) -> list[Voice]:
        """A name for each voice; those that turn out to be one enrolled speaker are one."""
        matches = [identify(centre, names, references, self.threshold.value) for centre in found.centres]
        unknown = 0
        labels = []
        for match in matches:
            unknown += match.name == UNKNOWN
            labels.append(f"{UNKNOWN} {unknown}" if match.name == UNKNOWN else match.name)
        merged = {}
        for label in labels:
            own = [k for k, other in enumerate(labels) if other == label]
            centre = normalized(found.seconds[own] @ found.centres[own])
            match = identify(centre, names, references, self.threshold.value)
            speech_s = round(float(found.seconds[own].sum()), 3)
            embedding = [round(float(value), 5) for value in centre]
            merged[label] = Voice(label, speech_s, match.score, match.best_name, embedding)
        return [merged[label] for label in labels]

    def _segment(
        self, phrases: list[Phrase], voice: Voice | None, probabilities: list[float], duration_s: float
    ) -> Segment:
        speaker = voice.speaker if voice else None
        sure = [round(p, 4) for p in probabilities] if voice else [None] * len(phrases)
        words = [
            # the last frame may reach beyond the last sample
            Word(w.text, w.start_s, min(w.end_s, duration_s), w.confidence, speaker, probability)
            for phrase, probability in zip(phrases, sure, strict=True)
            for w in phrase.words
        ]
        labels = {}
        for name in self._classify:
            task = self.model.task(name)
            lengths = np.array([phrase.end_s - phrase.start_s for phrase in phrases])
            shares = lengths @ np.stack([phrase.labels[name] for phrase in phrases]) / lengths.sum()
            log_probs_1C = torch.from_numpy(shares)[None].log_softmax(dim=1)
            labels[name] = Label(**task.predict({"log_probs": log_probs_1C})[0])
        score, best_name = (voice.score, voice.best_name) if voice else (None, None)
        text = " ".join(word.text for word in words)
        return Segment(words[0].start_s, words[-1].end_s, text, words, speaker, score, best_name, labels)

    @torch.inference_mode()
    def _embed(self, audio: Audio) -> tuple[str, Level, np.ndarray | None]:
        """The mean of the windows' embeddings, each weighted by its length; None for digital silence."""
        task, level, total = self._task("speaker"), Level(), np.zeros(1)
        sound = open_sound(audio, self.sample_rate)
        ratio = self.model.config.encoder.subsampling
        for core, _ in cores(self.model, watched(sound, level), None, [task]):
            size = len(core.log_probs_SV)
            if size:
                output = self.model.task(task).over_spans(core.frames[task], [(0, size)], ratio)  # type: ignore[operator]
                total = total + size * output["embedding"][0].cpu().numpy()
        return sound.name, level, None if level.is_silent or not total.any() else normalized(total)


def watched(
    sound: Sound, level: Level, on_progress: Callable[[float], None] = lambda share: None
) -> Iterator[np.ndarray]:
    """The sound's blocks, each added to the level and told of as it passes."""
    for block in sound.blocks:
        level.add(block)
        on_progress(min(1.0, level.samples / max(1, sound.samples)))
        yield block


def _moved(word: decode.Word, start_s: float) -> decode.Word:
    return replace(word, start_s=round(start_s + word.start_s, 3), end_s=round(start_s + word.end_s, 3))


def _turns(phrases: list[Phrase], speakers: Sequence[str | None]) -> list[list[int]]:
    """Numbers of the phrases in a row that one speaker says without a long pause."""
    turns: list[list[int]] = []
    for i, phrase in enumerate(phrases):
        goes_on = i > 0 and speakers[i] == speakers[i - 1] and phrase.start_s - phrases[i - 1].end_s <= TURN_PAUSE_S
        if goes_on:
            turns[-1].append(i)
        else:
            turns.append([i])
    return turns


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
