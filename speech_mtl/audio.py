"""Audio files to samples: any file libsndfile reads -> float32 mono (N,) at the model's rate, or an AudioError.

`open_sound` reads a recording of any length from front to back in blocks, `load_audio` all of it; both give the same
samples. Of a damaged file, what can be read comes before the error. Imports neither torch nor librosa: a bad file is
refused before anything heavy is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from math import ceil
from os import PathLike
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile

from speech_mtl.containers import Unfinished, sources
from speech_mtl.level import SILENCE_PEAK_TO_PEAK, FullScale, Level
from speech_mtl.resampling import resampled

if TYPE_CHECKING:
    from lhotse.cut import Cut

Audio = str | Path | tuple[np.ndarray, int]
"""A file, or samples (N,) or (N, channels) with their rate in Hz; signed integers are PCM of their width."""

PIPE = Path("-")
"""Stands for stdin, through which wav alone can be read: other formats need going back in the file."""
MIN_DURATION_S = 0.1
"""Shorter sounds have too few frames for a text or a voice."""
BLOCK_S = 30.0
"""What is read of a recording at a time."""
PIECE = 1024
"""Samples in which digital silence is looked for."""
STREAMED_BYTES = 0x7FFFF000
"""Recorders that write to a pipe do not know the length yet and promise at least this many bytes."""
NO_LENGTH = 2**63 - 1
"""Frames that libsndfile gives a FLAC file whose header, written to a pipe, does not say how many there are."""
END_IS_MISSING = re.compile(
    r".*(?:end-of-stream (?:bit|flag)|seems to be a truncated file|file seems to be truncated).*", re.IGNORECASE
)
"""What libsndfile's log says of Ogg, VOC and MAT4 files that break off; it counts only the frames that are there."""
MOST_CHANNELS = 64
"""Samples with more are taken to be the wrong way round."""
LARGEST_OFFSET = 0.002
"""A larger mean of the samples is taken off; of the bundled model's training data FSDD alone has one (0.008 at most).
With 0.01 all voices of a recording were one to it, with 0.03 twice as many words were wrong."""
NO_SOUND = np.float64(1e12)  # as numpy's, float16 samples can be compared with it
"""Samples so large are a damaged file's; the power of still larger ones is beyond float32."""
CANCELLED = 1e-3
"""Share of the loudest channel's power that the channels' mean falls short of where they cancel one another out."""


class Samples(tuple):
    """Samples and their rate, with what messages call them."""

    name = "samples"


class AudioError(ValueError):
    """A recording that cannot be used; the message names the file, the value found and what would be accepted."""


class _NoEnd(AudioError):
    """A file that breaks off, unless it is a link of a chain and the next one follows."""


@dataclass(frozen=True)
class Sound:
    """A recording that is read once, from front to back. Reading its blocks raises AudioError."""

    name: str
    samples: int
    """How many there will be at the model's rate; the header's promise: an estimate in MP3 files, and far
    too many where the header does not know."""
    blocks: Iterator[np.ndarray]
    """float32 mono (N,) at the model's rate."""
    full_scale: FullScale = field(default_factory=FullScale)
    """Of what was read so far."""


def recordings(audios: Audio | Iterable[Audio]) -> Iterator[Audio]:
    """Each of several recordings, or the only one that is given; of several, those that are samples are numbered."""
    is_samples = isinstance(audios, tuple) and not all(isinstance(one, str | Path | tuple) for one in audios)
    if isinstance(audios, str | Path) or is_samples:
        audios = [audios]  # type: ignore[list-item]
    is_alone = isinstance(audios, list | tuple) and sum(isinstance(audio, tuple) for audio in audios) == 1
    number = 0
    for audio in audios:
        if isinstance(audio, tuple) and not is_alone:
            audio, number = Samples(audio), number + 1
            audio.name = f"samples {number}"
        yield audio  # type: ignore[misc]


def name_of(audio: Audio) -> str:
    """What messages and results call a recording."""
    return getattr(audio, "name", Samples.name) if isinstance(audio, tuple) else str(audio)


def open_sound(audio: Audio, sample_rate: int) -> Sound:
    """A recording to be read in blocks at `sample_rate` in Hz, channels averaged. Raises AudioError."""
    name = name_of(audio)
    if isinstance(audio, tuple):
        samples, rate = _checked(*audio, name)
        promised, blocks = len(samples), _slices(samples, rate)
    elif not isinstance(audio, str | PathLike):
        raise AudioError(f"{type(audio).__name__} is no recording; expected a file's path, or (samples, rate)")
    else:
        path = Path(audio)
        files = _opened(path)
        file = next(files)
        if isinstance(file, RuntimeError):
            raise _unreadable(path, file)
        rate, promised, blocks = file.samplerate, file.frames, _read(path, file, files)
    full_scale = FullScale()
    mono = resampled(_centred(_mono(blocks, rate, name, full_scale)), rate, sample_rate)
    return Sound(name, ceil(promised * sample_rate / rate), mono, full_scale)


def watched(
    sound: Sound, level: Level, on_progress: Callable[[float], None] = lambda share: None
) -> Iterator[np.ndarray]:
    """The sound's blocks, each added to the level and told of as it passes."""
    for block in sound.blocks:
        level.add(block)
        level.clipped_share = sound.full_scale.share
        on_progress(min(1.0, level.samples / max(1, sound.samples)))
        yield block


def load_audio(audio: Audio, sample_rate: int) -> np.ndarray:
    """The recording's samples as float32 mono (N,) at `sample_rate` in Hz, channels averaged. Raises AudioError."""
    return np.concatenate(list(open_sound(audio, sample_rate).blocks))


def cut_audio(cut: Cut) -> Audio:
    """A cut's samples and their rate. Raises AudioError with the reason, without the cut's name."""
    try:
        return cut.load_audio().T, cut.sampling_rate
    except Exception as error:  # lhotse raises many kinds
        raise AudioError(reason_of(error)) from None


def reason_of(error: Exception) -> str:
    """Why lhotse could not read a cut, in a line: it tells of all the libraries that it tried, and of its calls."""
    said = str(error).strip() or repr(error)
    first = re.search(r"^Exception #0 .*?: <class .*?>: (.*)", said, re.MULTILINE)
    return (first[1] if first else said.splitlines()[0])[:300]


def _opened(path: Path) -> Iterator[soundfile.SoundFile | RuntimeError]:
    """The file, or one after another those that it is a chain of, or why one of them cannot be read."""
    if path == PIPE:
        files: Iterable[Any] = iter([0])
    else:
        _check_file(path)
        files = sources(path)
    try:
        for source in files:
            try:
                yield soundfile.SoundFile(source, closefd=path != PIPE)
            except RuntimeError as error:  # soundfile's own are
                yield error
    except TypeError as error:  # .raw, without a header
        raise _unreadable(path, error) from None
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeError):
            kept = "the name is not UTF-8; expected one that is: rename the file"
            raise AudioError(f"{ascii(str(path))}: {kept}") from None
        raise AudioError(f"{path}: {error}; expected an audio file") from None


def _check_file(path: Path) -> None:
    try:
        kind = path.stat()
    except OSError as error:
        raise AudioError(f"{path}: {error.strerror}; expected an audio file") from None
    if not S_ISREG(kind.st_mode):
        found = "is a folder" if S_ISDIR(kind.st_mode) else "is no file; of a pipe, - reads wav from stdin"
        raise AudioError(f"{path}: {found}; expected an audio file")
    if kind.st_size == 0:
        raise AudioError(f"{path}: is empty (0 bytes); expected an audio file")


def _read(
    path: Path, file: soundfile.SoundFile, rest: Iterable[soundfile.SoundFile | RuntimeError]
) -> Iterator[np.ndarray]:
    """(N, channels) at the file's rate, block by block; where something cannot be read AudioError comes after all."""
    found, kind = 0, (file.samplerate, file.channels)
    broken: list[AudioError] = []
    for part in chain([file], rest):
        start_s = found / file.samplerate
        if broken and isinstance(broken[-1], _NoEnd):
            broken.pop()  # another link follows: nothing is missing
        if isinstance(part, RuntimeError):
            broken.append(_unreadable(path, part, start_s))
        elif (part.samplerate, part.channels) != kind:
            other = f"{part.samplerate} Hz, {part.channels} channels after {kind[0]} Hz, {kind[1]} channels"
            expected = "expected one kind: ffmpeg converts it"
            broken.append(AudioError(f"{path}: changes after {start_s:.1f} s ({other}); {expected}"))
        else:
            try:
                for block in _blocks(path, part, start_s):
                    found += len(block)
                    yield block
            except AudioError as error:
                broken.append(error)
    if broken:
        raise broken[0]


def _blocks(path: Path, file: soundfile.SoundFile, start_s: float) -> Iterator[np.ndarray]:
    """Of a file that begins at `start_s` of the recording."""
    found, broken = 0, None
    knows_length = file.seekable() and file.frames != NO_LENGTH
    if file.format == "MP3" or not knows_length:
        # soundfile seeks after each read; that fails at an end that is not known, and libmpg123 complains on stderr
        file._info.seekable = 0
    with file:
        while broken is None:
            pieces: list[np.ndarray] = []
            try:
                # a second at a time: libsndfile gives nothing of a piece that it cannot read to its end
                while len(pieces) < BLOCK_S and len(piece := file.read(file.samplerate, "float32", always_2d=True)):
                    pieces.append(piece)
                    found += len(piece)
            except RuntimeError as error:
                broken = error
            if not pieces:
                break
            yield np.concatenate(pieces)
        if broken is not None:
            raise _unreadable(path, broken, start_s + found / file.samplerate)
        place = f"{path}: the link that begins after {start_s:.1f} s is " if start_s else f"{path}: "
        if complaint := _cut_short(file, found, knows_length):
            raise AudioError(f"{place}{complaint}")
        if said := END_IS_MISSING.search(file.extra_info):
            readable = f"{found / file.samplerate:.1f} s of sound can be read"
            raise _NoEnd(f"{place}truncated or still being written ({said[0].strip(' *.')}): {readable}")


def _cut_short(file: soundfile.SoundFile, found: int, knows_length: bool) -> str | None:
    """What is wrong with a file of which `found` samples could be read, if it promises more."""
    readable = f"{found / file.samplerate:.1f} s of sound"
    counts = re.findall(r":\s*(\d+) \(should be (\d+)\)", file.extra_info)
    if not knows_length:  # of what comes through a pipe libsndfile does not know how much there is
        sizes = re.findall(r"^data : (\d+)$", file.extra_info, re.MULTILINE)
        counts = [(size, int(size) * found // max(1, file.frames)) for size in sizes]
    for promised, there in counts:
        # libsndfile shortens `frames` of most formats to what is there and notes the difference in its log only;
        # some writers miscount the header's own bytes, hence the 64
        if int(there) + 64 < int(promised) < STREAMED_BYTES:
            promise = f"the header promises {promised} bytes, the file holds {there}"
            return f"truncated or still being written: {promise}, {readable}"
    if isinstance(file.name, Unfinished):
        promise = f"the header promises {file.name.promised} bytes of the {found} samples there are"
        return f"still being written, or never closed: {promise}"
    if not knows_length:
        return None
    promised_samples = _promised_samples(file)
    if found < promised_samples:  # ogg files are read on beyond what is damaged, where it was is not to be learnt
        return f"truncated or damaged: the header promises {promised_samples} samples, {found} can be read"
    return None


def _promised_samples(file: soundfile.SoundFile) -> int:
    if file.format == "MP3":  # an estimate
        return int(0.95 * file.frames)
    if file.format == "NIST" and isinstance(file.name, str):  # libsndfile reckons from the file's size
        with open(file.name, "rb") as content:
            count = re.search(rb"^sample_count -i (\d+)", content.read(1024), re.MULTILINE)
        return int(count[1]) if count else file.frames
    return file.frames


def _unreadable(path: Path, error: Exception, after_s: float = 0.0) -> AudioError:
    reason = str(error).strip().splitlines()[0].removesuffix(": ''")
    place = f" after {after_s:.1f} s" if after_s else ""
    kinds = "a complete file that libsndfile reads (wav, flac, ogg, mp3, aiff, ...; ffmpeg converts others)"
    kinds = "wav" if path == PIPE else kinds
    return AudioError(f"{path}: not readable as audio or damaged{place} ({reason}); expected {kinds}")


def _checked(samples: np.ndarray, rate: float, name: str) -> tuple[np.ndarray, int]:
    samples = np.asarray(samples)
    is_whole = isinstance(rate, int | float | np.number) and rate > 0 and rate % 1 == 0
    if samples.ndim not in (1, 2) or not is_whole:
        accepted = "(N,) or (N, channels) at a whole rate above 0"
        raise AudioError(f"{name}: shape {samples.shape} at {rate} Hz; expected {accepted}")
    if samples.ndim == 2 and samples.size and samples.shape[1] > min(len(samples), MOST_CHANNELS):
        raise AudioError(f"{name}: shape {samples.shape}; expected (N, channels): transpose it")
    if not (np.issubdtype(samples.dtype, np.signedinteger) or np.issubdtype(samples.dtype, np.floating)):
        raise AudioError(f"{name}: samples of type {samples.dtype}; expected floats in [-1, 1] or signed integers")
    return samples, int(rate)


def _slices(samples: np.ndarray, rate: int) -> Iterator[np.ndarray]:
    size = round(BLOCK_S * rate)
    scale = -1 / float(np.iinfo(samples.dtype).min) if np.issubdtype(samples.dtype, np.signedinteger) else 1.0
    for start in range(0, len(samples), size):
        yield samples[start : start + size].reshape(-1, *samples.shape[1:]) * scale


def _mono(blocks: Iterable[np.ndarray], rate: int, name: str, full_scale: FullScale) -> Iterator[np.ndarray]:
    """Blocks (N,) or (N, channels) -> float32 (N,), checked."""
    found = 0
    for block in blocks:
        is_sound_N = (np.abs(block.reshape(len(block), -1)) < NO_SOUND).all(axis=1)
        sound = block if is_sound_N.all() else block[: is_sound_N.argmin()]
        found += len(sound)
        if len(sound):
            full_scale.add(sound)
            yield np.ascontiguousarray(averaged(sound) if sound.ndim == 2 else sound, dtype=np.float32)
        if len(sound) < len(block):
            raise AudioError(f"{name}: damaged after {found / rate:.1f} s: samples that are not numbers, or too large")
    if found == 0:
        raise AudioError(f"{name}: holds 0 samples; expected at least {MIN_DURATION_S:g} s of sound")
    if found < MIN_DURATION_S * rate:
        raise AudioError(f"{name}: lasts {found / rate:.3f} s; expected at least {MIN_DURATION_S:g} s")


def _centred(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Blocks without the offset of the first one that is not all digital silence."""
    offset: np.float32 | None = None
    for block in blocks:
        if offset is None and _sounding(block).any():
            offset = _offset_of(block)
        yield _without(block, _offset_of(block) if offset is None else offset)


def centred(samples_N: np.ndarray) -> np.ndarray:
    """All samples of a recording without what a poor converter has added to them, if that is much."""
    return _without(samples_N, _offset_of(samples_N))


def _offset_of(samples_N: np.ndarray) -> np.float32:
    """The mean of what is no digital silence; 0 where that is little."""
    is_heard = _sounding(samples_N)
    mean = (samples_N[is_heard] if is_heard.any() else samples_N).mean(dtype=np.float64)
    return np.float32(mean if abs(mean) > LARGEST_OFFSET else 0.0)


def _without(samples_N: np.ndarray, offset: np.float32) -> np.ndarray:
    """The samples without an offset; digital silence, whatever its own is, is none then."""
    return np.where(_sounding(samples_N), samples_N - offset, np.float32(0)) if offset else samples_N


def _sounding(samples_N: np.ndarray) -> np.ndarray:
    """(N,): which are in pieces of PIECE samples, the last one shorter, that are no digital silence."""
    starts = np.arange(0, len(samples_N), PIECE)
    spans = np.maximum.reduceat(samples_N, starts) - np.minimum.reduceat(samples_N, starts)
    return np.repeat(spans >= SILENCE_PEAK_TO_PEAK, PIECE)[: len(samples_N)]


def averaged(block: np.ndarray) -> np.ndarray:
    """(N, channels) -> (N,): the mean; the loudest where they cancel one another out, being in opposite phase."""
    mono = block.mean(axis=1, dtype=np.float32)
    powers = np.square(block, dtype=np.float32).mean(axis=0)
    return block[:, powers.argmax()] if np.square(mono).mean() < CANCELLED * powers.max(initial=0.0) else mono
