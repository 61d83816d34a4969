"""Conversations put together from the cuts of single speakers, with the truth: who says what, when.

``source`` is a manifest of cuts with text and speaker (jsonl.gz), such as another corpus' test split. Returns a split
'conversations': every cut is a whole recording with one supervision an utterance, in the order of their starts. A turn
is one to three utterances; turns follow each other after a pause, some are short replies (backchannels), and a share of
them may begin before the last has ended. Utterances are stripped of the silence around them and brought to one level,
give or take the speaker's distance. Word times of the source are kept. Everything follows from the seed.

Source of the rooms: lhotse's fast random impulse responses (Luo & Yu 2022, arXiv 2208.04101).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
import soundfile
import soxr
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.cut import Cut
from lhotse.utils import fastcopy
from scipy.signal import butter, sosfilt

from data_prep.common import LeftOut, Prepared, PrepareError, check_counts, check_shares, progress, to_cuts, write_flac
from data_prep.rooms import impulse_response
from data_prep.utterances import SAMPLE_RATE, by_speaker, read
from data_prep.utterances import samples as samples_of

DISTANCE_DB = 3.0
"""Each speaker is up to this much louder or softer than in the source."""
FLOOR_DB = -72.0
"""Where no noise is asked for, a recording still has that of its microphone."""
QUIET_DB = 30.0
"""What is so far below an utterance's loudest moment, at its edges, is silence."""
MIN_PAUSE_S = 0.1
OVERLAP_MAX_S = 1.0
EDGE_S, FADE_S = 0.25, 0.05
"""Recorded silence that is kept on either side of the speech, and how much of that is faded."""
BLOCK_S = 30.0
TELEPHONE_HZ, TELEPHONE_RATE = (300.0, 3400.0), 8000


@dataclass(frozen=True)
class Utterance:
    """A cut's speech with some silence around it: float32 samples (N,) at SAMPLE_RATE from `offset_s` of the cut on."""

    cut: Cut
    samples: np.ndarray
    offset_s: float
    first: int
    last: int
    """Where in `samples` the speech begins and ends."""

    @property
    def duration_s(self) -> float:
        return (self.last - self.first) / SAMPLE_RATE


@dataclass
class Voice:
    """A speaker in one conversation: distance, room response, and the utterances not yet said."""

    name: str
    cuts: list[Cut]
    gain_db: float
    response: np.ndarray | None
    left: list[Cut] = field(default_factory=list)

    def next_cut(self, rng: Random, is_reply: bool) -> Cut:
        """Another utterance, each once before any is heard again; of a reply the shortest left."""
        if not self.left:
            self.left = rng.sample(self.cuts, len(self.cuts))
        place = len(self.left) - 1
        if is_reply:
            place = min(range(len(self.left)), key=lambda i: self.left[i].duration)
        return self.left.pop(place)


def prepare(
    source: Path,
    *,
    audio: Path,
    conversations: int = 10,
    minutes: float = 3.0,
    speakers: int = 4,
    pause_s: float = 0.6,
    backchannels: float = 0.15,
    overlap: float = 0.0,
    noise: Path | None = None,
    snr_db: float = 20.0,
    room: float = 0.0,
    telephone: float = 0.0,
    seed: int = 0,
) -> Prepared:
    """``audio`` is the folder the recordings go to; ``pause_s`` a mean.

    ``backchannels`` and ``overlap`` are shares of the turns; ``noise`` is a manifest of noises that are laid under the
    speech, ``snr_db`` below it; ``room`` is the longest reverberation time in seconds, 0 for none; ``telephone`` is the
    share of the recordings that have passed one: at 8 kHz, between TELEPHONE_HZ.
    """
    _check_options(conversations, minutes, speakers, pause_s, room)
    check_shares(backchannels=backchannels, overlap=overlap, telephone=telephone)
    left_out: list[LeftOut] = []
    found = by_speaker(read(source), left_out)
    if len(found) < speakers:
        raise PrepareError(f"source {source}: {len(found)} speakers with a text; expected {speakers} or more")
    noises = read(noise) if noise else []
    cuts = []
    for number in progress(range(conversations), "conversations"):
        rng = Random(f"{seed}/{number}")
        voices = [_voice(name, found[name], room, rng) for name in rng.sample(sorted(found), speakers)]
        name = f"conversation-{seed}-{number:03d}"
        part = audio / f"{name}.part"
        part.parent.mkdir(parents=True, exist_ok=True)
        with soundfile.SoundFile(part, "w", SAMPLE_RATE, 1, "PCM_16", format="FLAC") as file:
            tape = Tape(file, _background(noises, snr_db, voices, rng))
            turns = _turns(voices, pause_s, backchannels, overlap, rng)
            supervisions = _record(tape, turns, 60 * minutes, name)
        if Random(f"{seed}/{number}/telephone").random() < telephone:
            _over_telephone(part)
        # a preparation with other options leaves the sound of this one, to which manifests point, alone
        path = part.replace(audio / f"{name}-{hashlib.sha256(part.read_bytes()).hexdigest()[:8]}.flac")
        cuts.append(_cut(path, name, supervisions))
    return Prepared({"conversations": to_cuts(cuts)}, left_out, [source])


def _over_telephone(recording: Path) -> None:
    samples, rate = soundfile.read(recording, dtype="float32")
    heard = sosfilt(butter(4, TELEPHONE_HZ, "bandpass", fs=rate, output="sos"), samples).astype(np.float32)
    write_flac(recording, soxr.resample(heard, rate, TELEPHONE_RATE), TELEPHONE_RATE)


def _check_options(conversations: int, minutes: float, speakers: int, pause_s: float, room: float) -> None:
    check_counts(1, conversations=conversations, speakers=speakers)
    if minutes <= 0 or pause_s < 0:
        raise PrepareError(f"option minutes or pause_s: {minutes}, {pause_s} given; accepted: above 0, 0 or more")
    if not 0 <= room <= 0.8:
        raise PrepareError(f"option room: {room} given; accepted: seconds from 0 to 0.8")


def _voice(name: str, cuts: list[Cut], room: float, rng: Random) -> Voice:
    response = impulse_response(rng, room) if room else None
    return Voice(name, cuts, rng.uniform(-DISTANCE_DB, DISTANCE_DB), response)


def _turns(
    voices: list[Voice], pause_s: float, backchannels: float, overlap: float, rng: Random
) -> Iterator[tuple[Utterance, float]]:
    """(utterance, seconds from the end of the one before; negative where it begins earlier), without end."""
    speaker: Voice | None = None
    while True:
        speaker = rng.choice([voice for voice in voices if voice is not speaker or len(voices) == 1])
        is_reply = rng.random() < backchannels
        for number in range(1 if is_reply else rng.choice([1, 1, 2, 3])):
            utterance = _utterance(speaker, speaker.next_cut(rng, is_reply))
            gap_s = MIN_PAUSE_S + (rng.expovariate(1 / pause_s) if pause_s else 0.0)
            if number == 0 and rng.random() < overlap:
                gap_s = -rng.uniform(0, min(OVERLAP_MAX_S, 0.5 * utterance.duration_s))
            yield utterance, gap_s


def _utterance(voice: Voice, cut: Cut) -> Utterance:
    """The cut's speech at the voice's level, in its room, faded in and out."""
    import librosa

    samples = samples_of(cut)
    _, (first, last) = librosa.effects.trim(samples, top_db=QUIET_DB, frame_length=400, hop_length=160)
    start, end = max(0, first - round(EDGE_S * SAMPLE_RATE)), last + round(EDGE_S * SAMPLE_RATE)
    samples = samples[start:end].astype(np.float32)
    if voice.response is not None:
        from scipy.signal import fftconvolve

        # from the direct sound on, as loud as without the room: the truth's times and the voices' distances stay
        heard = fftconvolve(samples, voice.response)[: len(samples)]
        samples = (heard * (_rms(samples) / _rms(heard))).astype(np.float32)
    samples *= 10 ** (voice.gain_db / 20)
    fade = np.minimum(1, np.arange(len(samples)) / (FADE_S * SAMPLE_RATE))
    return Utterance(
        cut,
        np.clip(samples * fade * fade[::-1], -1, 1).astype(np.float32),
        start / SAMPLE_RATE,
        first - start,
        last - start,
    )


def _rms(samples: np.ndarray) -> float:
    return max(float(np.sqrt(np.mean(samples**2))), 1e-6)


def _background(noises: list[Cut], snr_db: float, voices: list[Voice], rng: Random) -> Iterator[np.ndarray]:
    """Noise without end, in blocks: the given ones one after another, or a microphone's floor."""
    if noises:
        speech = float(np.mean([_rms(_utterance(voice, voice.cuts[0]).samples) for voice in voices]))
        while True:
            samples = samples_of(rng.choice(noises))
            yield (speech * 10 ** (-snr_db / 20) / _rms(samples) * samples).astype(np.float32)
    generator = np.random.default_rng(rng.getrandbits(32))
    while True:
        yield (10 ** (FLOOR_DB / 20) * generator.standard_normal(round(BLOCK_S * SAMPLE_RATE))).astype(np.float32)


class Tape:
    """A recording written from front to back: what is mixed in may overlap what came last, and nothing before it."""

    def __init__(self, file: soundfile.SoundFile, background: Iterator[np.ndarray]):
        self.file, self.background = file, background
        self.written = 0
        self.tail = np.zeros(0, dtype=np.float32)

    def mix(self, start: int, samples: np.ndarray) -> None:
        """Add samples (N,) at sample `start`; what lies before it is final."""
        self._reach(start + len(samples))
        self._write(start - self.written)
        self.tail[: len(samples)] += samples

    def finish(self, end: int) -> None:
        self._reach(end)
        self._write(end - self.written)

    def _reach(self, end: int) -> None:
        while self.written + len(self.tail) < end:
            self.tail = np.concatenate([self.tail, next(self.background)])

    def _write(self, count: int) -> None:
        self.file.write(np.clip(self.tail[:count], -1, 1))
        self.tail, self.written = self.tail[count:], self.written + count


def _record(
    tape: Tape, turns: Iterator[tuple[Utterance, float]], duration_s: float, name: str
) -> list[SupervisionSegment]:
    """Turns on the tape up to `duration_s`, and their supervisions."""
    supervisions: list[SupervisionSegment] = []
    earliest, start, end = 0, 0, round(0.3 * SAMPLE_RATE)
    free: dict[str, int] = {}
    """When a speaker has said what it began: nobody overlaps himself."""
    for utterance, gap_s in turns:
        speaker = utterance.cut.supervisions[0].speaker or ""
        begin = max(end + round(gap_s * SAMPLE_RATE), free.get(speaker, 0))
        start = max(start, earliest + utterance.first, begin)
        if start + utterance.last > duration_s * SAMPLE_RATE and supervisions:
            break
        earliest = start - utterance.first
        tape.mix(earliest, utterance.samples)
        end = max(end, earliest + utterance.last)
        free[speaker] = earliest + utterance.last + round(MIN_PAUSE_S * SAMPLE_RATE)
        supervisions.append(_supervision(utterance, start / SAMPLE_RATE, f"{name}-{len(supervisions):04d}", name))
    tape.finish(end + round(0.3 * SAMPLE_RATE))
    return supervisions


def _supervision(utterance: Utterance, start_s: float, supervision_id: str, recording_id: str) -> SupervisionSegment:
    said = utterance.cut.supervisions[0]
    moved = fastcopy(
        said, id=supervision_id, recording_id=recording_id, start=start_s, duration=utterance.duration_s, channel=0
    )
    shift_s = start_s - utterance.first / SAMPLE_RATE - utterance.offset_s
    alignment = {kind: [item.with_offset(shift_s) for item in items] for kind, items in (said.alignment or {}).items()}
    return fastcopy(moved, alignment=alignment or None)


def _cut(path: Path, name: str, supervisions: list[SupervisionSegment]) -> MonoCut:
    recording = Recording.from_file(path.resolve(), recording_id=name)
    custom = {"corpus": "conversations"}
    return MonoCut(name, 0.0, recording.duration, 0, supervisions, recording=recording, custom=custom)
