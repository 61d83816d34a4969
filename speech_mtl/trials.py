"""Labelled recordings -> trials: what pieces of them score with enrolled voices.

Each voice is enrolled with some of its recordings, a few seconds or more, and compared with pieces of the others:
pieces cut at random places, as phrases of a conversation are, whole recordings, and several of either for longer ones.
This is repeated with other recordings enrolled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from lhotse.cut import Cut, MonoCut

from speech_mtl.audio import AudioError, cut_audio, open_sound
from speech_mtl.calibration import LONGEST_S, SHORTEST_S
from speech_mtl.data import DataError, read_cuts
from speech_mtl.enrolment import Heard, Span, listen
from speech_mtl.model import SpeechModel
from speech_mtl.speakers import normalized
from speech_mtl.tasks import label_of

BANDS_S = (1.0, 2.0, 4.0, 8.0)
"""Where the bands of seconds of speech end; more than the last changes thresholds no further."""
UNIT_S = 15.0
"""Recordings are listened to in parts so long."""
MOST_S = 300.0
"""More of one speaker is not listened to."""
ENROLLED_S = (3.0, 20.0)
"""Of speech, drawn anew each time: people enrol with more and less."""
PHRASE_S = 2.5
"""Longer pieces are made of shorter ones than this, as a voice in a conversation is, or of whole recordings."""
DRAWS = 6
"""How often every speaker is enrolled anew."""
PIECES = 24
"""Of a speaker, in a band and a draw."""
CUTS = 8
"""Random pieces of a part."""
GROUP_SPEAKERS = 3
"""That can be enrolled: fewer are no group of their own."""
LEAST_SPEECH = 0.7
"""Share of a piece that is speech: words of a phrase follow one another closely."""


class Labelled(NamedTuple):
    """A recording of one speaker."""

    speaker: str
    name: str
    """What an error calls it."""
    recording: Path | Cut
    source: str
    """The manifest or folder that it is from."""


@dataclass(frozen=True)
class Trials:
    """Scores (P, M) of P pieces with M enrolled voices."""

    scores_PM: np.ndarray
    seconds_P: np.ndarray
    speaker_P: np.ndarray
    """Numbers of the pieces' speakers; below M those of the enrolled voices, in their order."""
    group_S: np.ndarray
    """Of every speaker; only voices of the same group are compared as strangers."""

    @property
    def is_own_PM(self) -> np.ndarray:
        return self.speaker_P[:, None] == np.arange(self.scores_PM.shape[1])

    @property
    def is_other_PM(self) -> np.ndarray:
        enrolled = self.scores_PM.shape[1]
        return (self.group_S[self.speaker_P, None] == self.group_S[:enrolled]) & ~self.is_own_PM

    def within(self, low_s: float, high_s: float) -> Trials:
        """The trials with pieces from low_s to less than high_s."""
        return self.of_pieces((self.seconds_P >= low_s) & (self.seconds_P < high_s))

    def of_pieces(self, kept_P: np.ndarray) -> Trials:
        """The trials with some of the pieces, given as a mask."""
        return Trials(self.scores_PM[kept_P], self.seconds_P[kept_P], self.speaker_P[kept_P], self.group_S)


def labelled(sources: Iterable[str | Path]) -> Iterable[Labelled]:
    """The recordings of manifests (cuts with a speaker) and of folders (one sub-folder a speaker). Raises DataError."""
    for source in map(Path, sources):
        if source.is_dir():
            yield from _of_folder(source)
            continue
        if not source.exists():
            raise DataError(f"{source} does not exist; expected a manifest, or a folder of SPEAKER/recording.wav")
        for cut in read_cuts([source]):
            if (speaker := label_of(cut, "speaker")) is None:
                raise DataError(f"{source}: cut '{cut.id}' has no speaker label; calibrating needs one")
            yield Labelled(speaker, f"{source}: {cut.id}", cut, str(source))


def _of_folder(folder: Path) -> Iterable[Labelled]:
    endings = {f".{name.lower()}" for name in soundfile.available_formats()} | {".oga", ".opus", ".aif"}
    speakers = sorted(path for path in folder.iterdir() if path.is_dir())
    files = [(s.name, f) for s in speakers for f in sorted(s.rglob("*")) if f.suffix.lower() in endings and f.is_file()]
    if not files:
        raise DataError(f"{folder} holds no recordings in sub-folders; expected {folder}/SPEAKER/recording.wav, ...")
    for speaker, file in files:
        yield Labelled(speaker, str(file), file, str(folder))


def distinct(recordings: Iterable[Labelled]) -> list[Labelled]:
    """The recordings without repeats: one that is reference and trial at once would be told apart from nothing."""
    found: dict[object, Labelled] = {}
    for one in recordings:
        found.setdefault(_sound_of(one), one)
    return list(found.values())


def _sound_of(one: Labelled) -> object:
    recording = one.recording
    if isinstance(recording, Path):
        return recording.resolve()
    if not isinstance(recording, MonoCut):
        return one.source, one.speaker, recording.id  # made of several, and called by its manifest
    sources = [(source.type, str(source.source)) for source in recording.recording.sources]
    return str(sources), recording.channel, recording.start, recording.duration


def hear_all(
    model: SpeechModel, task: str, recordings: Iterable[Labelled],
    on_done: Callable[[int], None] = lambda recordings: None, listen: Callable[..., Heard] = listen,
) -> tuple[dict[str, list[Heard]], list[str]]:  # fmt: skip
    """The parts of each speaker's recordings, and what went wrong with the recordings left out.

    `listen` may be another that is called as enrolment's: to hear them by a speaker encoder from elsewhere.
    """
    rng = np.random.default_rng(0)
    rate = model.config.features.sample_rate
    heard: dict[str, list[Heard]] = {}
    bad: list[str] = []
    for number, (speaker, name, recording, _) in enumerate(recordings, start=1):
        own = heard.setdefault(speaker, [])
        try:
            found = [
                listen(model, task, (part, rate), lambda size: random_spans(size, model.frame_s, rng))
                for part in _parts(recording, rate, MOST_S - sum(one.loudness.samples for one in own) / rate)
            ]
            own += [one for one in found if one.embedding is not None and one.loudness.speech_s >= SHORTEST_S]
        except AudioError as error:
            bad.append(f"{name}: {error}" if isinstance(recording, Cut) else str(error))
        on_done(number)
    return {speaker: parts for speaker, parts in sorted(heard.items()) if parts}, bad


def _parts(source: Path | Cut, rate: int, most_s: float) -> Iterator[np.ndarray]:
    """The recording's first `most_s` seconds in parts of UNIT_S. Raises AudioError."""
    audio = cut_audio(source) if isinstance(source, Cut) else source
    size, read = round(UNIT_S * rate), 0
    for samples in open_sound(audio, rate).blocks:
        for start in range(0, len(samples), size):
            if read >= most_s * rate:
                return
            part = samples[start : start + size]
            read += len(part)
            if len(part) >= SHORTEST_S * rate:
                yield part


def random_spans(size: int, frame_s: float, rng: np.random.Generator) -> list[Span]:
    """CUTS spans of a part of `size` encoder frames, of all lengths from SHORTEST_S on alike (in their logarithm)."""
    least = round(SHORTEST_S / frame_s)
    if size <= least:
        return []
    lengths = np.exp(rng.uniform(np.log(least), np.log(size), CUTS)).astype(int)
    starts = (rng.random(CUTS) * (size - lengths + 1)).astype(int)
    return list(zip(starts.tolist(), (starts + lengths).tolist(), strict=True))


def groups_of(recordings: Iterable[Labelled]) -> dict[str, int]:
    """The number of each speaker's group: those of one source, and of sources that have speakers in common.

    Sources differ by microphone and room, too, so that their speakers are easily told apart; a stranger who matters
    talks where the enrolled ones do.
    """
    sources: dict[str, set[str]] = {}
    for one in recordings:
        sources.setdefault(one.speaker, set()).add(one.source)
    groups: list[set[str]] = []
    for own in sources.values():
        touched = [group for group in groups if group & own]
        groups = [group for group in groups if not group & own] + [own.union(*touched)]
    return {name: next(i for i, group in enumerate(groups) if group & own) for name, own in sources.items()}


def trials_of(heard: dict[str, list[Heard]], groups: dict[str, int], seed: int = 0) -> Trials:
    """Every speaker enrolled with some parts and compared with pieces of the rest, DRAWS times. Raises DataError.

    Strangers are compared with the enrolled voices of their own of `groups`; with all where some group has fewer than
    GROUP_SPEAKERS that can be enrolled.
    """
    names = sorted(heard, key=lambda name: (len(heard[name]) < 2, name))  # one part is not enough to be enrolled
    enrollable = sum(len(parts) > 1 for parts in heard.values())
    if enrollable < 1 or len(names) < 2:
        found = f"{len(names)} speakers, {enrollable} of them with two recordings or more"
        raise DataError(f"{found}; calibrating needs two speakers, and two recordings of one of them")
    rng = np.random.default_rng(seed)
    drawn: list[tuple[np.ndarray, ...]] = []
    for _ in range(DRAWS):
        references, pieces = [], []
        for number, name in enumerate(names):
            enrolled, rest = _split(heard[name], rng) if number < enrollable else ([], heard[name])
            if enrolled:
                references.append(normalized(np.mean([_voice(part) for part in enrolled], axis=0)))
            seconds, embeddings = _pieces(rest, rng)
            pieces.append((seconds, embeddings, np.full(len(seconds), number)))
        seconds_P, embeddings_PE, speaker_P = (np.concatenate(column) for column in zip(*pieces, strict=True))
        drawn.append((embeddings_PE @ np.stack(references).T, seconds_P, speaker_P))
    scores_PM, seconds_P, speaker_P = (np.concatenate(column) for column in zip(*drawn, strict=True))
    group_S = np.array([groups[name] for name in names])
    if min(np.count_nonzero(group_S[:enrollable] == group) for group in group_S) < GROUP_SPEAKERS:
        group_S = np.zeros_like(group_S)
    return Trials(scores_PM, seconds_P, speaker_P, group_S)


def _split(parts: list[Heard], rng: np.random.Generator) -> tuple[list[Heard], list[Heard]]:
    """Parts to enrol, as much as is drawn from ENROLLED_S or half of what there is, and the rest."""
    order = rng.permutation(len(parts))
    reached_s = np.cumsum([parts[i].loudness.speech_s for i in order])
    wanted_s = min(np.exp(rng.uniform(*np.log(ENROLLED_S))), reached_s[-1] / 2)
    n = min(len(parts) - 1, 1 + int(np.searchsorted(reached_s, wanted_s)))
    return [parts[i] for i in order[:n]], [parts[i] for i in order[n:]]


def _voice(part: Heard) -> np.ndarray:
    assert part.embedding is not None  # hear_all leaves silence out
    return part.embedding


def _pieces(parts: list[Heard], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of speech (P,) and voices (P, E) of pieces of these parts, at most PIECES in a band."""
    cut = [part.pieces.with_speech(LEAST_SPEECH) for part in parts]
    seconds = [part.loudness.speech_s for part in parts]
    embeddings = [_voice(part) for part in parts]
    seconds_P = np.concatenate([seconds, *(spans.times_W3[:, 2] for spans in cut)])
    embeddings_PE = np.concatenate([np.stack(embeddings), *(s.embeddings_WE for s in cut if len(s.embeddings_WE))])
    part_P = np.concatenate([np.arange(len(parts)), np.repeat(np.arange(len(parts)), [len(s.times_W3) for s in cut])])
    is_phrase_P = (np.arange(len(seconds_P)) >= len(parts)) & (seconds_P < PHRASE_S)
    joined_s, joined = [seconds_P], [embeddings_PE]
    for number, wanted_s in enumerate(np.exp(rng.uniform(np.log(2.0), np.log(LONGEST_S), 2 * PIECES))):
        order = rng.permutation(np.flatnonzero(is_phrase_P) if number % 2 else len(parts))
        order = order[np.sort(np.unique(part_P[order], return_index=True)[1])]  # one of a part: they may overlap
        reached_s = np.cumsum(seconds_P[order])
        n = 1 + int(np.searchsorted(reached_s, wanted_s))
        if 1 < n <= len(order):
            own = order[:n]
            joined_s.append(reached_s[n - 1 : n])
            joined.append(normalized(np.average(embeddings_PE[own], axis=0, weights=seconds_P[own]))[None])
    seconds_P, embeddings_PE = np.concatenate(joined_s), np.concatenate(joined)
    edges = (0.0, *BANDS_S, np.inf)
    chosen = [rng.permutation(np.flatnonzero((seconds_P >= a) & (seconds_P < b)))[:PIECES] for a, b in pairwise(edges)]
    kept = np.concatenate(chosen)
    return seconds_P[kept], embeddings_PE[kept]
