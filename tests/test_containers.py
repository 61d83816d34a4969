"""Files whose header is wrong about how much sound follows are read to their end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from speech_mtl.audio import AudioError, load_audio, open_sound

RATE = 16000


def noise(seconds: float, rate: int = RATE, seed: int = 0, channels: int = 1) -> np.ndarray:
    """Its second half is 40 dB softer than its first: fewer bits an MP3 frame, where they may vary."""
    samples = np.random.default_rng(seed).normal(0, 0.1, (round(seconds * rate), channels))
    samples[len(samples) // 2 :] /= 100
    return samples


def mp3(path: Path, samples: np.ndarray, rate: int = RATE, mode: str = "VARIABLE") -> bytes:
    soundfile.write(path, samples, rate, format="MP3", bitrate_mode=mode, compression_level=0.3)
    return path.read_bytes()


def without_count(content: bytes) -> bytes:
    """Without the first frame, which holds the count alone."""
    count = max(content.find(b"Xing"), content.find(b"Info"))
    return content[content.index(content[:2], count) :]


@pytest.mark.parametrize(("rate", "channels"), [(44100, 2), (48000, 1), (22050, 1), (16000, 2), (8000, 1)])
@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_mp3_files_without_a_count_are_whole(tmp_path: Path, rate: int, channels: int, mode: str) -> None:
    content = mp3(tmp_path / "counted.mp3", noise(10, rate, channels=channels), rate, mode)
    expected = load_audio(tmp_path / "counted.mp3", RATE)
    cut = without_count(content)
    for name, stored in {"bare": cut, "tagged": b"ID3\x04\0\0\0\0\x01\x05" + bytes(133) + cut}.items():
        path = tmp_path / f"{name}.mp3"
        path.write_bytes(stored)
        found = load_audio(path, RATE)
        assert 0 <= len(found) - len(expected) < 0.2 * RATE  # without a count the encoder's padding is not known
        # nor its delay: the same sound begins a little later
        delay = int(np.argmax(np.correlate(found[RATE : 3 * RATE], expected[RATE + 4000 : 2 * RATE], "valid"))) - 4000
        assert 0 <= delay < 0.1 * RATE
        difference = found[RATE + delay : 9 * RATE + delay] - expected[RATE : 9 * RATE]
        assert np.abs(difference).max() < (0.02 if rate == RATE else 0.3)


def test_sounds_joined_are_read_to_their_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """MP3: the first count is of the first file's frames. Ogg: a chain (RFC 3533), as of an internet radio."""
    first, second = noise(3), noise(4, seed=1)
    joined = {"joined.mp3": mp3(tmp_path / "a.mp3", first) + mp3(tmp_path / "b.mp3", second)}
    for subtype in ("VORBIS", "OPUS"):
        for name, samples in {"a.ogg": first, "b.ogg": second}.items():
            soundfile.write(tmp_path / name, samples, RATE, subtype, format="OGG")
        joined[f"{subtype.lower()}.ogg"] = (tmp_path / "a.ogg").read_bytes() + (tmp_path / "b.ogg").read_bytes()
    for name, content in joined.items():
        path = tmp_path / name
        path.write_bytes(content)
        sound = open_sound(path, RATE)
        found = np.concatenate(list(sound.blocks))
        assert 7 * RATE <= len(found) < 7.3 * RATE and sound.samples > 2.9 * RATE
        alone = load_audio(tmp_path / f"b{path.suffix}", RATE) if name != "vorbis.ogg" else second[:, 0]
        part = alone[-3 * RATE : -RATE]
        assert np.correlate(found[round(-3.5 * RATE) :], part).max() > 0.9 * np.square(part).sum()
    assert capfd.readouterr().err == ""  # libmpg123 complains there


def test_a_chain_must_be_of_one_kind(tmp_path: Path) -> None:
    content = b""
    for rate in (16000, 8000):
        soundfile.write(tmp_path / "link.ogg", noise(2, rate), rate)
        content += (tmp_path / "link.ogg").read_bytes()
    (tmp_path / "chain.ogg").write_bytes(content)
    found = 0
    with pytest.raises(AudioError, match=r"chain.ogg: changes after 2.0 s \(8000 Hz, 1 channels after 16000 Hz"):
        for block in open_sound(tmp_path / "chain.ogg", RATE).blocks:
            found += len(block)
    assert 1.9 * RATE < found <= 2 * RATE
    (tmp_path / "broken.ogg").write_bytes(content[: len(content) // 2] * 2)
    with pytest.raises(AudioError, match="broken.ogg: "):
        load_audio(tmp_path / "broken.ogg", RATE)


def test_wav_files_that_grew_after_their_header_are_whole_and_said_to_be_open(tmp_path: Path) -> None:
    path = tmp_path / "grown.wav"
    samples = (32768 * noise(5)[:, 0]).astype(np.int16)
    soundfile.write(path, samples, RATE)
    content = bytearray(path.read_bytes())
    content[4:8] = (36 + 2 * RATE).to_bytes(4, "little")
    content[40:44] = (2 * RATE).to_bytes(4, "little")
    path.write_bytes(content)
    found = 0
    message = "grown.wav: still being written, or never closed: the header promises 32000 bytes of the 80000 samples"
    with pytest.raises(AudioError, match=message):
        for block in open_sound(path, RATE).blocks:
            found += len(block)
    assert found == 5 * RATE
    for behind in (b"ID3\x04" + bytes(70000), bytes(3000), b"LIST\x04\0\0\0abcd"):  # not sound
        path.write_bytes(bytes(content[: 44 + 2 * RATE]) + behind)
        np.testing.assert_array_equal(load_audio(path, RATE), np.float32(samples[:RATE] / 32768))
