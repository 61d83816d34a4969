"""Who said what: a recording of any length -> segments with text, word times and a speaker, from one encoder pass.

    recognizer = Recognizer.from_pretrained()          # the bundled model, or a folder
    recognizer.enroll("alice", ["a1.wav", "a2.wav"])
    result = recognizer.transcribe("meeting.wav")      # result.text, result.segments[i].speaker/.text/.words
    recognizer.enroll_voice("bob", result, "unknown 1")

The encoder runs once over windows of the recording (windows.py); words are decoded from its stitched log-probabilities
(listening.py) and voices told apart by the same frames (diarize.py). A segment is a stretch of one speaker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from speech_mtl.audio import Audio, AudioError, recordings
from speech_mtl.calibration import Calibration, parse_calibration, read_calibration
from speech_mtl.checkpoint import CheckpointError, load_model
from speech_mtl.diarize import Population, find_voices, parted
from speech_mtl.enrolment import EnrolmentError, Heard, check_names, check_recording, listen, repeated
from speech_mtl.language import Decoder, Decoding
from speech_mtl.listening import Hearing, hear_all
from speech_mtl.model import SpeechModel
from speech_mtl.naming import match_of, voices_of
from speech_mtl.phrases import Phrase
from speech_mtl.results import Identification, Label, Result, Segment, Verification, Voice, Word
from speech_mtl.speakers import (
    UNKNOWN,
    Enrolled,
    SpeakerDatabase,
    Utterance,
    checked_name,
    default_path,
    is_unknown,
    normalized,
)
from speech_mtl.tasks.asr import ASR

PRETRAINED = Path(__file__).parent / "pretrained"
TURN_PAUSE_S = 0.8
"""A longer pause between two words of one speaker begins another segment."""
UNSURE = 0.6
"""Words whose mean confidence is below this may be no speech. The bundled model's words are at 0.3 to 0.5 on average in
ESC-10's noises and above 0.8 in AN4's test recordings, but at 0.3 to 0.5 in accents and words that it was not taught,
too."""
NOBODY = Enrolled([], np.zeros((0, 0), dtype=np.float32), {})


class Recognizer:
    """A model, what its scores mean, and the enrolled speakers.

    `threshold` (a cosine, -1 to 1) replaces the calibration's, for voices of any length. Reading a recording raises
    AudioError, the database SpeakerDatabaseError, and asking for a task that the model lacks CheckpointError.
    """

    def __init__(
        self, model: SpeechModel, calibration: Calibration, db: str | Path | None = None, threshold: float | None = None
    ):
        self.model, self.db = model, db
        self._of_model, self._threshold = calibration, threshold
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
        calibration = read_calibration(folder, model.fingerprint)
        if decoding is not None:
            set_decoder(model, decoding)
        return cls(model, calibration, db, threshold)

    @cached_property
    def database(self) -> SpeakerDatabase:
        """The enrolled speakers; opened when a name is asked for. Raises SpeakerDatabaseError."""
        size = self.embedding_size if "speaker" in self._tasks else None
        return SpeakerDatabase(self.db or default_path(), self.model.fingerprint, size)

    @property
    def embedding_size(self) -> int:
        """Numbers in a voice's embedding."""
        return self.model.config.tasks[self.speaker_task].embedding_dim

    @property
    def speaker_task(self) -> str:
        """The name of the model's speaker task. Raises CheckpointError where it has none."""
        if "speaker" not in self._tasks:
            raise CheckpointError(f"the model has no speaker task; its tasks: {', '.join(self.model.config.tasks)}")
        return self._tasks["speaker"]

    @cached_property
    def calibration(self) -> Calibration:
        """What scores mean: the database's calibration, where it has one for this model, else the model's own."""
        found = self._of_model
        database = SpeakerDatabase(self.db or default_path(), None)
        if database.model_fingerprint() == self.model.fingerprint and (stored := database.calibration()) is not None:
            found = parse_calibration(stored, f"{database.path}: its calibration", self.model.fingerprint)
        return found if self._threshold is None else found.with_threshold(self._threshold)

    def remarks(self) -> list[str]:
        """What a person should know before names are read: the threshold's origin, and whether anybody is enrolled."""
        if "speaker" not in self._tasks:
            return []
        nobody = f"nobody is enrolled in {self.database.path}: every speaker is '{UNKNOWN}'"
        return [self.calibration.note] if self.database.names() else [self.calibration.note, nobody]

    def transcribe(
        self, audio: Audio, on_progress: Callable[[float], None] = lambda share: None, speakers: int | None = None,
        on_segment: Callable[[str, Segment], None] | None = None,
    ) -> Result:  # fmt: skip
        """Text, word times and speakers of a recording; `on_progress` sees the share that is done, up to 1.

        `speakers` is the number of voices where it is known. `on_segment` sees each piece of the text as soon as it is
        final, with the recording's name; its speaker is None, or an enrolled one by this piece alone, and may be
        another in the result. Of a damaged recording there is what could be read, with the result's `damage`.
        """
        [outcome] = self.transcribe_all([audio], on_progress, speakers, on_segment)
        if isinstance(outcome, AudioError):
            raise outcome
        return outcome

    def transcribe_all(
        self, audios: Audio | Iterable[Audio], on_progress: Callable[[float], None] = lambda done: None,
        speakers: int | None = None, on_segment: Callable[[str, Segment], None] | None = None,
    ) -> Iterator[Result | AudioError]:  # fmt: skip
        """What `transcribe` gives for each recording, in their order, or the error of one that cannot be used.

        Short recordings are heard several at a time, which is faster and changes nothing in the results. The enrolled
        speakers are read once, before the first recording.
        """
        if speakers is not None and speakers < 1:
            raise ValueError(f"speakers={speakers}; expected 1 or more")
        asr, enrolled = asr_of(self.model), self._enrolled()

        def on_phrases(heard: Hearing, phrases: list[Phrase]) -> None:
            for segment in self._provisional(heard, phrases, enrolled):
                on_segment(heard.name, segment)  # type: ignore[misc]

        for heard in hear_all(self.model, asr, audios, on_progress, on_phrases if on_segment else None):
            yield heard if isinstance(heard, AudioError) else self._result(heard, asr, speakers, enrolled)

    def _result(self, heard: Hearing, asr: ASR, speakers: int | None, enrolled: Enrolled) -> Result:
        duration_s = round(heard.level.samples / self.sample_rate, 3)
        segments, voices = self._named(heard.phrases, speakers, duration_s, enrolled)
        notes = []
        if heard.level.note:
            notes.append(heard.level.note)
        if not segments and not heard.level.is_silent:
            notes.append("no words were recognised")
        confidence = [word.confidence for segment in segments for word in segment.words]
        if confidence and (mean := float(np.mean(confidence))) < UNSURE:
            notes.append(f"words are unsure ({mean:.2f} on average): no speech, or speech unlike the training's")
        if asr.decoder:
            notes += asr.decoder.effects(heard.texts)
        if speakers is not None and voices and len(voices) < speakers:
            notes.append(f"{len(voices)} of the {speakers} voices asked for were told apart")
        notes += [
            f"{voice.speaker} is like {voice.best_name} ({voice.score:.2f}), but another voice has the name"
            for voice in voices
            if is_unknown(voice.speaker) and voice.score is not None and voice.score >= (voice.threshold or 0.0)
        ]
        return Result(
            heard.name, duration_s, self.calibration.note if "speaker" in self._tasks else "", segments, notes, voices,
            self.model.fingerprint, str(heard.damage or ""),
        )  # fmt: skip

    def _provisional(self, heard: Hearing, phrases: list[Phrase], enrolled: Enrolled) -> list[Segment]:
        """Phrases in segments, named where an enrolled voice is heard in them; the other voices are not told apart."""

        def voice_of(phrase: Phrase) -> Voice | None:
            if phrase.embedding is None:
                return None
            speech_s = phrase.end_s - phrase.start_s
            one = match_of(phrase.embedding, speech_s, enrolled, self.calibration)
            if one.name == UNKNOWN:
                return None
            return Voice(one.name, speech_s, one.score, one.best_name, [], one.threshold, one.probability)

        voices, duration_s = [voice_of(phrase) for phrase in phrases], heard.level.samples / self.sample_rate
        turns = _turns(phrases, [voice.speaker if voice else None for voice in voices])
        return [self._segment([phrases[i] for i in turn], voices[turn[0]], None, duration_s) for turn in turns]

    def embed(self, audio: Audio) -> np.ndarray:
        """The voice as a vector (E,) of length 1. Raises AudioError, also for digital silence."""
        return self._voice(self.listen(audio))

    def listen(self, audio: Audio) -> Heard:
        """The voice of a recording that holds one. Raises AudioError."""
        return listen(self.model, self.speaker_task, audio)

    def identify(self, audio: Audio) -> Identification:
        """Whose voice it is among the enrolled speakers, or 'unknown'."""
        enrolled, heard = self._enrolled(), self.listen(audio)
        notes, speech_s = [heard.loudness.note] if heard.loudness.note else [], heard.loudness.speech_s
        one = match_of(heard.embedding, speech_s, enrolled, self.calibration)
        return Identification(
            heard.name, one.name, one.score, one.probability, one.threshold, one.best_name, speech_s, notes
        )

    def verify(self, a: Audio, b: Audio) -> Verification:
        """Whether two recordings hold one voice.

        The thresholds are those of a voice that is enrolled with several seconds: between two short recordings it says
        'different' more often than the wanted rate of false acceptance asks for.
        """
        both = [self.listen(audio) for audio in recordings([a, b])]
        score = float(self._voice(both[0]) @ self._voice(both[1]))
        speech_s = min(heard.loudness.speech_s for heard in both)
        threshold = self.calibration.threshold(speech_s)
        names, probability = [heard.name for heard in both], self.calibration.probability(score, speech_s)
        notes = [f"{heard.name}: {heard.loudness.note}" for heard in both if heard.loudness.note]
        return Verification(score >= threshold, score, probability, threshold, speech_s, names, notes)

    def enroll(self, name: str, audios: Audio | Iterable[Audio], force: bool = False) -> list[str]:
        """Enrol recordings of one speaker, all of them or, at an error, none; returns what a person should know.

        Raises EnrolmentError for recordings that are no good for it, unless `force`.
        """
        name = checked_name(name)
        return self.enroll_heard(name, [self.listen_to_enroll(audio, force) for audio in recordings(audios)], force)

    def listen_to_enroll(self, audio: Audio, force: bool = False) -> Heard:
        """The voice of a recording to be enrolled. Raises AudioError, and EnrolmentError unless `force`."""
        heard = self.listen(audio)
        self._voice(heard)
        if not force:
            check_recording(heard, self.calibration)
        return heard

    def enroll_heard(self, name: str, heard: list[Heard], force: bool = False) -> list[str]:
        """Enrol what `listen_to_enroll` gave; see `enroll`."""
        new = [Utterance(self._voice(one), one.loudness.speech_s, one.quality) for one in heard]
        return self._add(checked_name(name), new, [one.name for one in heard], force)

    def enroll_voice(self, name: str, result: Result, voice: str, force: bool = False) -> list[str]:
        """Enrol a voice of a transcription, such as 'unknown 1', under a name; see `enroll`."""
        name, voices = checked_name(name), {one.speaker: one for one in result.speakers}
        if not result.fingerprint:
            raise AudioError(f"{result.audio}: an alignment, which knows no voices; expected a transcription")
        if result.fingerprint != (ours := self.model.fingerprint):
            found = f"(fingerprint {result.fingerprint}, this model's is {ours})"
            raise AudioError(f"{result.audio} was transcribed by another model {found}")
        if voice not in voices:
            raise AudioError(f"{result.audio}: no voice '{voice}'; its voices: {', '.join(voices) or 'none'}")
        embedding = np.array(voices[voice].embedding)
        if embedding.shape != (size := self.embedding_size,) or not (np.isfinite(embedding).all() and embedding.any()):
            raise AudioError(
                f"{result.audio}: the embedding of '{voice}' is no list of {size} numbers, not all of them 0"
            )
        one = Utterance(normalized(embedding), voices[voice].speech_s)
        return self._add(name, [one], [f"{result.audio}, {voice}"], force)

    def _add(self, name: str, new: list[Utterance], sources: list[str], force: bool) -> list[str]:
        """Enrol utterances, but for those that are enrolled already; `sources` are what messages call them."""
        if not new:
            raise EnrolmentError(f"no recording of '{name}' is given; expected one or more")
        calibration = self.calibration
        remarks: list[str] = []

        def choose(there: dict[str, list[Utterance]]) -> dict[str, list[Utterance]]:
            known = repeated(new, there.get(name, []))
            twice = dict.fromkeys(source for source, is_known in zip(sources, known, strict=True) if is_known)
            if all(known):
                raise EnrolmentError(f"{', '.join(twice)}: enrolled already under '{name}'; nothing is new")
            chosen = [one for one, is_known in zip(new, known, strict=True) if not is_known]
            files = [source for source, is_known in zip(sources, known, strict=True) if not is_known]
            remarks[:] = [f"{file}: enrolled already under '{name}', left out" for file in twice]
            remarks.extend(check_names(name, chosen, files, there, calibration, force))
            return {name: chosen}

        self.database.add_chosen(choose)
        return remarks

    @staticmethod
    def _voice(heard: Heard) -> np.ndarray:
        if heard.embedding is None:
            raise AudioError(f"{heard.name}: digital silence; expected a voice")
        return heard.embedding

    def _enrolled(self) -> Enrolled:
        """All that the database holds; it is not asked again while recordings are heard."""
        if "speaker" not in self._tasks:
            return NOBODY
        _ = self.calibration  # may be the database's, too, and is kept from now on
        return self.database.enrolled()

    def _named(
        self, phrases: list[Phrase], count: int | None, duration_s: float, enrolled: Enrolled
    ) -> tuple[list[Segment], list[Voice]]:
        """Segments of one speaker each, and the speakers in the order in which they are first heard."""
        if not phrases or "speaker" not in self._tasks:
            turns = _turns(phrases, [None] * len(phrases))
            return [self._segment([phrases[i] for i in turn], None, None, duration_s) for turn in turns], []
        task = self.model.task(self._tasks["speaker"])
        found = find_voices(phrases, Population.of(task.voices_CE.cpu().numpy()), count)  # type: ignore[operator, union-attr]
        if enrolled.names and count is None:
            threshold = partial(self.calibration.threshold, enrolled=len(enrolled.names))
            found = parted(found, phrases, enrolled.references, threshold)
        voices = voices_of(found, enrolled, self.calibration)
        speakers = [voices[k] for k in found.of_piece]
        pieces = [piece for phrase in phrases for piece in phrase.pieces]
        segments = []
        for turn in _turns(pieces, [voice.speaker for voice in speakers]):
            part = [pieces[i] for i in turn]
            segments.append(self._segment(part, speakers[turn[0]], found.probability[turn].tolist(), duration_s))
        return segments, list({voice.speaker: voice for voice in voices}.values())

    def _segment(
        self, phrases: list[Phrase], voice: Voice | None, probabilities: list[float] | None, duration_s: float
    ) -> Segment:
        speaker = voice.speaker if voice else None
        sure = [round(p, 4) for p in probabilities] if probabilities else [None] * len(phrases)
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
        text = " ".join(word.text for word in words)
        start_s, end_s = words[0].start_s, words[-1].end_s
        if voice is None:
            return Segment(start_s, end_s, text, words, None, None, None, labels)
        return Segment(
            start_s, end_s, text, words, voice.speaker, voice.score, voice.best_name, labels, voice.threshold,
            voice.probability,
        )  # fmt: skip


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
