"""Audio files to samples: any file libsndfile reads -> float32 mono (N,) at the model's rate, or an AudioError.

Imports neither torch nor librosa: a bad file is refused before anything heavy is loaded.
"""

from __future__ import annotations

import re
from math import gcd
from pathlib import Path

import numpy as np
import soundfile

MIN_DURATION_S = 0.1
"""Shorter sounds have too few frames for a text or a voice."""
MAX_SEGMENT_S = 30.0
"""Longer recordings are cut at silences: memory stays flat, and training saw no longer utterance."""
MIN_PAUSE_S = 0.5
"""Where a longer recording is cut; within a sentence pauses are mostly shorter."""
CLIPPED_SHARE = 0.001
"""Share of the samples at full scale from which a recording is said to be clipped."""
SILENCE_PEAK_TO_PEAK = 2 / 32768
"""Two steps of 16 bits: below it a recording holds dither at most."""
STREAMED_BYTES = 0x7FFFF000
"""Recorders that write to a pipe do not know the length yet and promise at least this many bytes."""
LARGEST_KERNEL = 16_000_000
"""Taps torchaudio's resampler may hold (64 MB); it holds one filter for every phase of the rates' ratio."""


class AudioError(ValueError):
    """A recording that cannot be used; the message names the file, the value found and what would be accepted."""


def load_audio(path: str | Path, sample_rate: int) -> np.ndarray:
    """The recording's samples as float32 mono (N,) at `sample_rate` in Hz, channels averaged. Raises AudioError."""
    path = Path(path)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise AudioError(f"{path}: {error.strerror}; expected an audio file") from None
    if path.is_dir() or size == 0:
        found = "is a folder" if path.is_dir() else "is empty (0 bytes)"
        raise AudioError(f"{path}: {found}; expected an audio file")
    try:
        with soundfile.SoundFile(path) as file:
            promised, header, rate = file.frames, file.extra_info, file.samplerate
            samples_NC = file.read(dtype="float32", always_2d=True)
            if file.format == "MP3":  # the number of samples is an estimate there
                promised = int(0.95 * promised)
    except (RuntimeError, TypeError) as error:  # soundfile's own are RuntimeErrors; TypeError: .raw, without a header
        reason = str(error).strip().splitlines()[0].removesuffix(": ''")
        kinds = "a complete file that libsndfile reads (wav, flac, ogg, mp3, aiff, ...)"
        raise AudioError(f"{path}: not readable as audio or damaged ({reason}); expected {kinds}") from None
    _check_complete(path, len(samples_NC), promised, header)
    return as_mono(samples_NC, rate, sample_rate, str(path))


def _check_complete(path: Path, found: int, promised: int, header: str) -> None:
    """Raise AudioError where the header promises more than the file holds.

    libsndfile shortens `frames` of most formats to what is there and notes the difference in its log only.
    """
    if found < promised:
        raise AudioError(f"{path}: truncated: the header promises {promised} samples, {found} can be read")
    for size, actual in re.findall(r":\s*(\d+) \(should be (\d+)\)", header):
        # some writers miscount the header's own bytes, hence the 64
        if int(actual) + 64 < int(size) < STREAMED_BYTES:
            raise AudioError(f"{path}: truncated: the header promises {size} bytes, the file holds {actual}")


def as_mono(samples: np.ndarray, rate: int, sample_rate: int, name: str = "samples") -> np.ndarray:
    """Samples (N,) or (N, channels) at `rate` Hz -> checked float32 (N,) at `sample_rate` Hz. Raises AudioError.

    Signed integers are taken as PCM of their width.
    """
    samples = np.asarray(samples)
    if samples.ndim not in (1, 2) or rate <= 0:
        raise AudioError(
            f"{name}: shape {samples.shape} at {rate} Hz; expected (N,) or (N, channels) at a rate above 0"
        )
    if samples.size == 0:
        raise AudioError(f"{name}: holds 0 samples; expected at least {MIN_DURATION_S:g} s of sound")
    if np.issubdtype(samples.dtype, np.signedinteger):
        samples = samples / -float(np.iinfo(samples.dtype).min)
    if not np.issubdtype(samples.dtype, np.floating):
        raise AudioError(f"{name}: samples of type {samples.dtype}; expected floats in [-1, 1] or signed integers")
    if samples.ndim == 2:
        samples = samples.mean(axis=1, dtype=np.float32)
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    if bad := int((~np.isfinite(samples)).sum()):
        raise AudioError(f"{name}: {bad} of {len(samples)} samples are not numbers (NaN or infinite)")
    if len(samples) < MIN_DURATION_S * rate:
        raise AudioError(f"{name}: lasts {len(samples) / rate:.3f} s; expected at least {MIN_DURATION_S:g} s")
    return resample(samples, rate, sample_rate)


def resample(samples: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """float32 (N,) from one rate in Hz to another, by the resampler that the training data went through (lhotse's).

    Another one would fill the bands above the old Nyquist frequency differently, which the log-mel features show.
    """
    if rate == sample_rate:
        return samples
    old, new = rate // gcd(rate, sample_rate), sample_rate // gcd(rate, sample_rate)
    if old * new > LARGEST_KERNEL:  # rates without a common factor, such as 47999 Hz
        import soxr

        return soxr.resample(samples, rate, sample_rate)
    import torch

    from speech_mtl.torchaudio_pair import torchaudio

    return torchaudio.functional.resample(torch.from_numpy(samples), rate, sample_rate).numpy()


def is_silent(samples: np.ndarray) -> bool:
    """Whether float32 samples (N,) are digital silence: constant up to dither."""
    return bool(np.ptp(samples) < SILENCE_PEAK_TO_PEAK)


def level_note(samples: np.ndarray) -> str | None:
    """What a person should know about the level of float32 samples (N,); None where nothing."""
    if is_silent(samples):
        return "digital silence: no text, no speaker"
    clipped = float((np.abs(samples) >= 0.999).mean())
    if clipped >= CLIPPED_SHARE:
        return f"clipped: {100 * clipped:.1f} % of the samples are at full scale; text and speaker may suffer"
    return None


def split_at_silences(samples: np.ndarray, rate: int, max_s: float = MAX_SEGMENT_S) -> list[tuple[int, int]]:
    """(start, end) in samples of the pieces of (N,), each at most `max_s` and at least MIN_DURATION_S long.

    Up to `max_s` a recording is one piece. A longer one is cut at every pause of MIN_PAUSE_S or more, of which half of
    MIN_PAUSE_S stays on either side; a piece that is still too long is cut where its second half is quietest.
    """
    if len(samples) <= max_s * rate:
        return [(0, len(samples))]
    hop, margin = rate // 100, int(MIN_PAUSE_S * rate / 2)
    padded = np.pad(np.square(samples), (0, -len(samples) % hop))
    power_10ms = padded.reshape(-1, hop).mean(axis=1)
    pieces = []
    for first, last in _stretches_of_sound(power_10ms):
        start, end = max(0, first * hop - margin), min(len(samples), last * hop + margin)
        pieces += _cut_where_quietest(power_10ms, start, end, rate, max_s)
    return pieces


def _stretches_of_sound(power_10ms: np.ndarray) -> list[tuple[int, int]]:
    """(first, last) frames of what lies between pauses.

    Quiet is what is nearer, in dB, to the noise floor than to the mean power; where these are close there is no pause.
    """
    smooth_db = 10 * np.log10(np.convolve(power_10ms, np.ones(5) / 5, mode="same") + 1e-10)
    mean_db, floor_db = 10 * np.log10(power_10ms.mean() + 1e-10), np.percentile(smooth_db, 5)
    if mean_db - floor_db < 10:
        return [(0, len(power_10ms))]
    loud = np.flatnonzero(smooth_db > (mean_db + floor_db) / 2)
    gaps = np.flatnonzero(np.diff(loud) > 100 * MIN_PAUSE_S)
    firsts, lasts = [loud[0], *loud[gaps + 1]], [*loud[gaps] + 1, loud[-1] + 1]
    return [(int(first), int(last)) for first, last in zip(firsts, lasts, strict=True)]


def _cut_where_quietest(power_10ms: np.ndarray, start: int, end: int, rate: int, max_s: float) -> list[tuple[int, int]]:
    """Adjoining pieces of start..end (samples); cuts lie where the power over 0.3 s is lowest."""
    limit, shortest, hop = int(max_s * rate), int(np.ceil(MIN_DURATION_S * rate)), rate // 100
    quietness = np.convolve(power_10ms, np.ones(30) / 30, mode="same")
    pieces = []
    while end - start > limit:
        last = min(start + limit, end - shortest)  # what is left over is a piece, too
        first_frame, last_frame = (start + limit // 2) // hop + 1, last // hop
        cut = (first_frame + int(np.argmin(quietness[first_frame : last_frame + 1]))) * hop
        pieces.append((start, cut))
        start = cut
    return [*pieces, (start, end)]
