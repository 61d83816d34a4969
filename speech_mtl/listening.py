"""Recordings of any length -> what was heard in them: phrases, each with its words and the voice they were said in.

Short recordings are heard several at a time (windows.py), which changes nothing in what is heard. Of a recording that
breaks off, what was read before is heard, and why it breaks off is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from speech_mtl import decode
from speech_mtl.audio import MIN_DURATION_S, Audio, AudioError, name_of, open_sound, recordings, watched
from speech_mtl.level import Level
from speech_mtl.model import SpeechModel
from speech_mtl.phrases import Phrase, phrases_of, pooled
from speech_mtl.tasks.asr import ASR
from speech_mtl.windows import Stitch, Stretch, Window, heard_together, windows


@dataclass
class Hearing:
    """A recording, as far as it was listened to."""

    name: str
    stitch: Stitch
    promised: int = 0
    """Samples, by the header, at the model's rate; `level` counts those that there are."""
    level: Level = field(default_factory=Level)
    phrases: list[Phrase] = field(default_factory=list)
    texts: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """With a decoder: what it wrote, and what it would have without each of its helps."""
    damage: AudioError | None = None
    """Why the recording could not be read to its end."""

    def refusal(self, sample_rate: int) -> AudioError | None:
        """The damage, where nothing usable came before it; known when the last block is read."""
        return self.damage if self.level.samples < MIN_DURATION_S * sample_rate else None

    def blocks(self, audio: Audio, sample_rate: int) -> Iterator[np.ndarray]:
        """The recording's samples, up to its end or its damage."""
        try:
            sound = open_sound(audio, sample_rate)
            self.promised = sound.samples
            yield from watched(sound, self.level)
        except AudioError as error:
            self.damage = error


def hear_all(
    model: SpeechModel, asr: ASR, audios: Audio | Iterable[Audio], on_progress: Callable[[float], None],
    on_phrases: Callable[[Hearing, list[Phrase]], None] | None = None,
) -> Iterator[Hearing | AudioError]:  # fmt: skip
    """One answer a recording, in the order given: AudioError where nothing of it can be used.

    `on_progress` sees the number of recordings done and the share of the next; `on_phrases` what is final, as it comes.
    """
    rate = model.config.features.sample_rate
    others = [name for name, task in model.config.tasks.items() if task.type != "asr"]
    done = 0
    for heard, window, core in heard_together(
        model, _windows(model, audios), asr.name, others, at_once=on_phrases is not None
    ):
        if window is not None and core is not None:
            complete, bounds = heard.stitch.add(core, window.ends)
            words = []
            for first, last in bounds:
                answer = asr.transcribe(complete.log_probs_SV[first:last])
                words.append([_moved(word, (complete.start + first) * model.frame_s) for word in answer["words"]])
                heard.texts += [(answer["text"], answer["without"])] if "without" in answer else []
            phrases = phrases_in(model, complete, words)
            heard.phrases += phrases
            if on_phrases is not None:
                on_phrases(heard, phrases)
            on_progress(done + min(1.0, window.last / max(1, heard.promised)))
            continue
        done += 1
        on_progress(done)
        yield heard.refusal(rate) or heard


def _windows(model: SpeechModel, audios: Audio | Iterable[Audio]) -> Iterator[tuple[Hearing, Window | None]]:
    """The windows of every recording, and None after its last."""
    rate = model.config.features.sample_rate
    for audio in recordings(audios):
        heard = Hearing(name_of(audio), Stitch(model))
        for window in windows(heard.blocks(audio, rate), rate, model.frame_samples):
            if heard.refusal(rate) is None:
                yield heard, window
        yield heard, None


@torch.inference_mode()
def phrases_in(model: SpeechModel, stretch: Stretch, words: list[list[decode.Word]]) -> list[Phrase]:
    """A stretch's words, given from pause to pause, in phrases with what the other heads say of them and their words.

    One call of a head for all of them: most of its time is that of the call. A word is too short for a class of its
    own: it has its phrase's.
    """
    frame_s, start, size = model.frame_s, stretch.start, len(stretch.log_probs_SV)
    phrases = [phrase for own in words for phrase in phrases_of(own)]
    places: dict[tuple[int, int], int] = {}  # spans, numbered; a phrase of one word has its span

    def numbers(runs: list[list[decode.Word]]) -> list[int]:
        found = []
        for first_s, last_s in pooled(runs):
            first = min(max(round(first_s / frame_s) - start, 0), size - 1)
            last = min(max(round(last_s / frame_s) - start, first + 1), size)
            found.append(places.setdefault((first, last), len(places)))
        return found

    of_phrase, of_word = numbers(phrases), iter(numbers([[word] for phrase in phrases for word in phrase]))
    voices: np.ndarray | None = None
    labels: dict[str, np.ndarray] = {}
    for name, frames in stretch.frames.items() if phrases else []:
        output = model.task(name).over_spans(frames, list(places))  # type: ignore[operator]
        if model.config.tasks[name].type == "classify":
            labels[name] = output["log_probs"].cpu().numpy()
        else:
            voices = output["embedding"].cpu().numpy()

    def heard(phrase: list[decode.Word], i: int) -> Phrase:
        own = {name: of[i] for name, of in labels.items()}
        pieces = [Phrase([word], None if voices is None else voices[next(of_word)], own) for word in phrase]
        return Phrase(phrase, None if voices is None else voices[i], own, pieces)

    return [heard(phrase, i) for phrase, i in zip(phrases, of_phrase, strict=True)]


def _moved(word: decode.Word, start_s: float) -> decode.Word:
    return replace(word, start_s=round(start_s + word.start_s, 3), end_s=round(start_s + word.end_s, 3))
