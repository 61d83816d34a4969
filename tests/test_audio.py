"""Reading audio: every format, rate and channel count; every bad file gives an AudioError that names it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from speech_mtl.audio import AudioError, as_mono, is_silent, level_note, load_audio, resample, split_at_silences

RATE = 16000


def tone(duration_s: float, rate: int = RATE, frequency_hz: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency_hz * np.arange(round(duration_s * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize(
    ("ending", "subtype", "rate", "channels"),
    [
        ("wav", "PCM_16", 16000, 1), ("wav", "PCM_24", 44100, 2), ("wav", "FLOAT", 48000, 6), ("wav", "ULAW", 8000, 1),
        ("wav", "PCM_U8", 11025, 1), ("flac", "PCM_24", 22050, 2), ("ogg", "VORBIS", 32000, 1),
        ("aiff", "PCM_16", 8000, 1), ("mp3", "MPEG_LAYER_III", 44100, 2), ("wav", "PCM_32", 47999, 1),
    ],
)  # fmt: skip
def test_every_kind_of_file(tmp_path: Path, ending: str, subtype: str, rate: int, channels: int) -> None:
    path = tmp_path / f"tone.{ending}"
    soundfile.write(path, np.repeat(tone(0.5, rate)[:, None], channels, axis=1), rate, subtype=subtype)
    samples = load_audio(path, RATE)
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert abs(len(samples) - 0.5 * RATE) <= (2500 if ending == "mp3" else 1)  # mp3 pads to whole frames
    middle = samples[2000:6000]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert abs(spectrum.argmax() * RATE / len(middle) - 440) < 5
    assert abs(np.abs(middle).max() - 0.3) < 0.03


@pytest.mark.parametrize("rate", [8000, 44100, 48000, 47999])
def test_resampling_agrees_with_scipy(rate: int) -> None:
    samples = tone(0.4, rate)
    ours = resample(samples, rate, RATE)
    theirs = resample_poly(samples, RATE, rate)
    assert abs(len(ours) - len(theirs)) <= 1
    assert np.abs(ours[1000:5000] - theirs[1000:5000]).max() < 5e-3


def test_channels_are_averaged() -> None:
    left, right = tone(0.2), tone(0.2, frequency_hz=1000)
    np.testing.assert_allclose(as_mono(np.stack([left, right], axis=1), RATE, RATE), (left + right) / 2, atol=1e-7)
    np.testing.assert_allclose(as_mono((left * 32768).astype(np.int16), RATE, RATE), left, atol=1 / 32768)


def bad_file(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.{'flac' if 'flac' in kind else 'wav'}"
    noise = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    if kind == "folder":
        path.mkdir()
    elif kind == "under a file":
        path.touch()
        path = path / "inside.wav"
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("this is not audio\n" * 100)
    elif kind in ("header only", "0 samples"):
        soundfile.write(path, noise[:0] if kind == "0 samples" else noise, RATE)
        path.write_bytes(path.read_bytes()[:44])
    elif kind.startswith("truncated"):
        soundfile.write(path, noise, RATE)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind in ("nan", "infinite"):
        noise[5] = np.nan if kind == "nan" else -np.inf
        soundfile.write(path, noise, RATE, subtype="FLOAT")
    elif kind == "50 ms":
        soundfile.write(path, noise[: RATE // 20], RATE)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "No such file"), ("under a file", "Not a directory"), ("folder", "is a folder"),
        ("empty", r"empty \(0 bytes\)"), ("text", "not readable as audio"), ("0 samples", "0 samples"),
        ("header only", "truncated: the header promises"), ("truncated flac", "damaged"),
        ("truncated wav", "truncated: the header promises 32036 bytes"), ("infinite", "not numbers"),
        ("nan", "1 of 16000 samples are not numbers"), ("50 ms", "0.050 s; expected at least 0.1 s"),
    ],
)  # fmt: skip
def test_bad_files_are_named_and_explained(tmp_path: Path, kind: str, message: str) -> None:
    path = bad_file(tmp_path, kind)
    with pytest.raises(AudioError, match=message) as caught:
        load_audio(path, RATE)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_streamed_wav_of_unknown_length_is_whole(tmp_path: Path) -> None:
    """ffmpeg writes 0xFFFFFFFF as the length where it cannot seek back."""
    path = tmp_path / "piped.wav"
    soundfile.write(path, tone(0.5), RATE)
    content = bytearray(path.read_bytes())
    place = content.find(b"data") + 4
    content[4:8] = content[place : place + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert len(load_audio(path, RATE)) == RATE // 2


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (np.zeros((2, 2, 2)), RATE, "shape"), (np.zeros(RATE), 0, "at 0 Hz"), (np.zeros(0), RATE, "0 samples"),
        (np.zeros(RATE, dtype=complex), RATE, "complex128"), (np.zeros(RATE // 20), RATE, "0.050 s"),
    ],
)  # fmt: skip
def test_bad_arrays(samples: np.ndarray, rate: int, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        as_mono(samples, rate, RATE)


def test_notes_on_the_level() -> None:
    assert level_note(tone(1.0)) is None
    assert "clipped" in (level_note(np.clip(5 * tone(1.0), -1, 1)) or "")
    assert "silence" in (level_note(np.zeros(RATE, dtype=np.float32)) or "")
    assert is_silent(np.full(RATE, 0.1, dtype=np.float32)) and not is_silent(0.01 * tone(1.0))


@pytest.mark.parametrize("duration_s", [29.99, 30.0, 30.0001, 30.05, 30.11, 59.97, 60.03, 95.0])
def test_pieces_cover_everything_and_none_is_too_long_or_too_short(duration_s: float) -> None:
    samples = np.random.default_rng(1).normal(0, 0.1, round(duration_s * RATE)).astype(np.float32)
    pieces = split_at_silences(samples, RATE)
    assert pieces[0][0] == 0 and pieces[-1][1] == len(samples)
    assert all(a[1] == b[0] for a, b in zip(pieces, pieces[1:], strict=False))
    assert all(0.1 * RATE <= end - start <= 30 * RATE for start, end in pieces)
    assert len(pieces) == 1 or duration_s > 30


def with_pauses(pauses: list[tuple[float, float]], duration_s: float, noise: float = 1e-3) -> np.ndarray:
    samples = np.random.default_rng(2).normal(0, 0.1, round(duration_s * RATE)).astype(np.float32)
    for start_s, end_s in pauses:
        samples[round(start_s * RATE) : round(end_s * RATE)] *= noise
    return samples


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.1])
def test_long_recordings_are_cut_at_the_pauses_that_librosa_finds(noise: float) -> None:
    import librosa

    pauses = [(0.0, 1.0), (7.0, 7.8), (21.5, 22.2), (26.0, 29.0), (30.0, 30.3), (44.0, 44.7), (50.0, 52.0)]
    samples = with_pauses(pauses, 52.0, noise)
    loud = librosa.effects.split(samples, top_db=15, frame_length=800, hop_length=160)
    pieces = split_at_silences(samples, RATE)
    assert len(pieces) == len(loud) - 1 == 5  # the pause of 0.3 s is too short to cut at
    for start, end in loud:
        assert any(a <= start + 800 and end - 800 <= b for a, b in pieces)
    times = np.array(pieces) / RATE
    np.testing.assert_allclose(times[:, 0], [0.75, 7.55, 21.95, 28.75, 44.45], atol=0.05)
    np.testing.assert_allclose(times[:, 1], [7.25, 21.75, 26.25, 44.25, 50.25], atol=0.05)


def test_a_sentence_without_long_pauses_is_cut_in_a_short_one() -> None:
    samples = with_pauses([(8.0, 8.3), (22.0, 22.4), (45.0, 45.3)], 70.0)
    cuts = [end / RATE for _, end in split_at_silences(samples, RATE)][:-1]
    assert len(cuts) == 2 and 22.0 < cuts[0] < 22.4 and 45.0 < cuts[1] < 45.3


def test_little_speech_in_a_long_silence_is_found() -> None:
    samples = with_pauses([(0, 40.0), (41.0, 120.0)], 120.0)
    [(start, end)] = split_at_silences(samples, RATE)
    assert (start / RATE, end / RATE) == (pytest.approx(39.75, abs=0.05), pytest.approx(41.25, abs=0.05))
