"""Reading audio: every format, rate and channel count; every bad file gives an AudioError that names it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from speech_mtl.audio import PIECE, AudioError, load_audio, open_sound, watched
from speech_mtl.level import Level
from speech_mtl.resampling import resample, resampled

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


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 47999])
@pytest.mark.parametrize("size", [500, 7001, 40000])
def test_blocks_are_resampled_as_the_whole_is(rate: int, size: int) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 50001).astype(np.float32)
    blocks = [samples[start : start + size] for start in range(0, len(samples), size)]
    ours, whole = np.concatenate(list(resampled(blocks, rate, RATE))), resample(samples, rate, RATE)
    assert len(ours) == len(whole)
    np.testing.assert_allclose(ours, whole, atol=1e-5)


def test_a_long_file_is_read_in_blocks(tmp_path: Path) -> None:
    """Five minutes of eight channels: no block is longer than half a minute, and all is there."""
    path = tmp_path / "eight.flac"
    with soundfile.SoundFile(path, "w", 8000, 8, "PCM_16") as file:
        for _ in range(5):
            file.write(np.tile(tone(60.0, 8000)[:, None] * np.linspace(0, 1, 8), 1))
    sound = open_sound(path, RATE)
    total = 0
    for block in sound.blocks:
        assert len(block) <= 31 * RATE and block.dtype == np.float32
        total += len(block)
    assert total == sound.samples == 300 * RATE


def test_a_break_in_the_middle_is_named_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "broken.flac"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 90 * RATE), RATE)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])
    sound, found = open_sound(path, RATE), 0
    with pytest.raises(AudioError, match=r"broken.flac: .*(truncated|damaged after \d+.0 s)"):
        for block in sound.blocks:
            found += len(block)
    assert found >= 65 * RATE  # what came before is given, up to the second


@pytest.mark.parametrize("bad", [np.nan, -np.inf, 1e30])
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_that_are_no_sound_end_a_recording(bad: float, channels: int) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (70 * RATE, channels)).astype(np.float32)
    noise[65 * RATE, -1] = bad
    sound, found = open_sound((noise, RATE), RATE), []
    with pytest.raises(AudioError, match="damaged after 65.0 s: samples that are not numbers"):
        found += sound.blocks
    assert np.allclose(np.concatenate(found), noise[: 65 * RATE].mean(axis=1), atol=1e-6)


def test_what_can_be_read_of_an_unfinished_wav_comes_before_the_error(tmp_path: Path) -> None:
    path = tmp_path / "unfinished.wav"
    soundfile.write(path, np.tile(tone(3.0)[:, None], 2), RATE, subtype="PCM_24")
    whole, content = load_audio(path, RATE), path.read_bytes()
    place = content.index(b"data") + 4
    for promised in (0, 10**8):
        path.write_bytes(content[:place] + promised.to_bytes(4, "little") + content[place + 4 :])
        found: list[np.ndarray] = []
        with pytest.raises(AudioError, match="unfinished.wav: .*still being written"):
            for block in open_sound(path, RATE).blocks:
                found.append(block)
        np.testing.assert_array_equal(np.concatenate(found), whole)


@pytest.mark.parametrize("kind", ["RIFF", "RIFX"])
def test_a_wav_without_sound_is_not_heard_by_its_metadata(tmp_path: Path, kind: str) -> None:
    """A LIST after the empty sound, in a file that was closed; one before it that holds the word data is no sound."""
    path, order = tmp_path / "empty.wav", "little" if kind == "RIFF" else "big"

    def chunk(name: bytes, content: bytes) -> bytes:
        return name + len(content).to_bytes(4, order) + content + b"\0" * (len(content) % 2)

    soundfile.write(path, tone(0.5), RATE, endian="BIG" if kind == "RIFX" else "FILE")
    content = path.read_bytes()
    form, sound = content[:36], content[44:]
    names = chunk(b"LIST", b"INFO" + chunk(b"INAM", b"data\0\0\0\0" + b"a title" * 500))

    def write(*parts: bytes) -> None:
        body = b"".join(parts)
        path.write_bytes(form[:4] + (len(form) - 8 + len(body)).to_bytes(4, order) + form[8:] + body)

    for parts in ((chunk(b"data", b""), names), (names, chunk(b"data", b"")), (chunk(b"data", b""), names[:-1])):
        write(*parts)
        with pytest.raises(AudioError, match="empty.wav: holds 0 samples"):
            load_audio(path, RATE)
    write(names, chunk(b"data", b""), sound)
    with pytest.raises(AudioError, match="empty.wav: .*still being written"):
        load_audio(path, RATE)


def test_channels_are_averaged() -> None:
    left, right = tone(0.2), tone(0.2, frequency_hz=1000)
    np.testing.assert_allclose(load_audio((np.stack([left, right], axis=1), RATE), RATE), (left + right) / 2, atol=1e-7)
    np.testing.assert_allclose(load_audio(((left * 32768).astype(np.int16), RATE), RATE), left, atol=1 / 32768)
    with np.errstate(over="raise"):
        np.testing.assert_allclose(load_audio((left.astype(np.float16), RATE), RATE), left, atol=1e-3)


def test_a_converters_offset_is_taken_off_all_of_a_recording() -> None:
    """Also where later blocks have another mean; a small one is left, as the training data has it."""
    noise = np.random.default_rng(0).normal(0, 0.1, 70 * RATE).astype(np.float32)
    noise[: 30 * RATE] -= noise[: 30 * RATE].mean()
    assert np.allclose(load_audio((noise + np.float32(0.05), RATE), RATE), noise, atol=1e-6)
    assert np.array_equal(load_audio((noise + np.float32(0.001), RATE), RATE), noise + np.float32(0.001))
    for silent_s in (31, 20):  # before its converter is switched on
        silence = np.zeros(silent_s * RATE, np.float32)
        found = load_audio((np.concatenate([silence, noise[: 30 * RATE] + np.float32(0.05)]), RATE), RATE)
        assert np.abs(found[silent_s * RATE :] - noise[: 30 * RATE]).max() < 2e-3
        assert not found[: silent_s * RATE - PIECE].any()
    assert not load_audio((np.full(40 * RATE, 0.3, np.float32), RATE), RATE).any()


@pytest.mark.parametrize("other", [-1.0, -0.97])
def test_channels_in_opposite_phase_do_not_cancel(other: float) -> None:
    """A balanced microphone recorded as two channels: their mean is silence, and what was said would be lost."""
    voice = tone(0.5, RATE)
    pair = np.stack([other * voice, voice], axis=1)
    np.testing.assert_allclose(np.abs(load_audio((pair, RATE), RATE)), np.abs(voice), atol=1e-6)
    one_of_eight = np.stack([voice, *7 * [np.zeros_like(voice)]], axis=1)
    np.testing.assert_allclose(load_audio((one_of_eight, RATE), RATE), voice / 8, atol=1e-6)
    assert not load_audio((np.zeros((RATE, 2), np.float32), RATE), RATE).any()


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
        ("empty", r"empty \(0 bytes\)"), ("text", "not readable as audio.*ffmpeg converts"), ("0 samples", "0 samples"),
        ("header only", "still being written: the header promises"), ("truncated flac", "damaged"),
        ("truncated wav", "still being written: the header promises 32036 bytes"), ("infinite", "not numbers"),
        ("nan", "damaged after 0.0 s: samples that are not numbers"), ("50 ms", "0.050 s; expected at least 0.1 s"),
    ],
)  # fmt: skip
def test_bad_files_are_named_and_explained(tmp_path: Path, kind: str, message: str) -> None:
    path = bad_file(tmp_path, kind)
    with pytest.raises(AudioError, match=message) as caught:
        load_audio(path, RATE)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ending", "subtype", "message"),
    [
        ("ogg", "VORBIS", "Last page lacks an end-of-stream bit"), ("ogg", "OPUS", "[Ee]nd-[Oo]f-[Ss]tream"),
        ("voc", "PCM_16", "Seems to be a truncated file"), ("sph", "PCM_16", "the header promises 160000 samples"),
    ],
)  # fmt: skip
def test_a_break_that_libsndfile_only_logs_is_an_error(tmp_path: Path, ending: str, subtype: str, message: str) -> None:
    path = tmp_path / f"broken.{ending}"
    kind = "NIST" if ending == "sph" else ending.upper()
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 10 * RATE), RATE, subtype, format=kind)
    assert len(load_audio(path, RATE)) == 10 * RATE
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    found = 0
    with pytest.raises(AudioError, match=f"broken.{ending}: truncated or .*{message}"):
        for block in open_sound(path, RATE).blocks:
            found += len(block)
    assert 4 * RATE < found < 7 * RATE


def test_flac_of_unknown_length_is_whole(tmp_path: Path) -> None:
    """Written to a pipe: its header has 0 for the number of samples, 36 bits from byte 21 on."""
    path = tmp_path / "piped.flac"
    soundfile.write(path, tone(2.5), RATE)
    expected, content = load_audio(path, RATE), bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    np.testing.assert_array_equal(load_audio(path, RATE), expected)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(AudioError, match="damaged"):
        load_audio(path, RATE)


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
        (np.zeros((2, 29060)), RATE, r"samples: shape \(2, 29060\); expected \(N, channels\): transpose it"),
        (np.zeros((100, 65)), RATE, "transpose it"), (np.zeros((0, 2)), RATE, "0 samples"),
        (np.zeros(RATE), 16000.5, "at 16000.5 Hz; .* whole rate"), (np.zeros(RATE), "16k", "at 16k Hz"),
        (np.zeros(RATE), float("nan"), "at nan Hz"), (np.zeros(RATE), float("inf"), "at inf Hz"),
        (np.zeros(RATE), None, "at None Hz"),
    ],
)  # fmt: skip
def test_bad_arrays(samples: np.ndarray, rate: int, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        load_audio((samples, rate), RATE)


def test_a_whole_rate_may_be_a_float() -> None:
    for rate in (8000.0, np.float32(8000), np.int64(8000)):
        np.testing.assert_array_equal(
            load_audio((tone(0.5, 8000), rate), RATE), load_audio((tone(0.5, 8000), 8000), RATE)
        )


def test_a_block_that_begins_with_no_number(tmp_path: Path) -> None:
    """And a file that cannot be opened: neither ends the work on others."""
    samples = tone(32.0)
    samples[30 * RATE] = np.inf
    found = 0
    with pytest.raises(AudioError, match=r"samples: damaged after 30.0 s: samples that are not numbers"):
        for block in open_sound((samples, RATE), RATE).blocks:
            found += len(block)
    assert found == 30 * RATE
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    with pytest.raises(AudioError, match=r"loop.wav: .*expected an audio file"):
        load_audio(tmp_path / "loop.wav", RATE)


def test_clipped_samples_are_counted_as_they_are_in_the_file() -> None:
    """Averaged with another channel, centred or at another rate they are not at full scale."""

    def note(samples: np.ndarray, rate: int = RATE) -> str:
        level = Level()
        for _ in watched(open_sound((samples.astype(np.float32), rate), RATE), level):
            pass
        return level.note or ""

    clipped = np.clip(50 * tone(1.0), -1, 1)
    assert not note(tone(1.0)) and not note(np.append(0.5 * tone(1.0), 1))
    assert note(clipped)[:10] == "clipped: 9" == note(np.clip(50 * tone(1.0, 44100), -1, 1), 44100)[:10]
    assert note(np.stack([clipped, 0.2 * tone(1.0)], axis=1)) == note(clipped)
    assert note(np.clip(50 * tone(1.0) + 0.5, -1, 1))[:10] == "clipped: 9"


def test_notes_on_the_level() -> None:
    def level_note(*blocks: np.ndarray) -> str:
        level = Level()
        for block in blocks:
            level.add(block)
        return level.note or ""

    assert level_note(tone(1.0)) == ""
    assert "silence" in level_note(np.zeros(RATE, dtype=np.float32), np.zeros(5, dtype=np.float32))
    assert level_note(np.zeros(RATE), np.full(RATE, 0.1)) == ""  # each is silent, both are not
    assert "silence" in level_note(np.full(RATE, 0.1, dtype=np.float32))
    peak_db = 20 * np.log10(np.abs(tone(1.0)).max())
    softer = 10 ** ((-54.5 - peak_db) / 20) * tone(1.0)
    assert "soft: its highest sample is at -54 dB" in level_note(softer) and not level_note(1.1 * softer)
    assert level_note(-softer, 0.1 * softer) and not level_note(softer, tone(0.1))
