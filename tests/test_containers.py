"""Files whose header is wrong about how much sound follows are read to their end."""

from __future__ import annotations

import re
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


@pytest.mark.parametrize("tail", [b"APETAGEX", b"\x89PNG", b"TAG", b"\xff\xf3" * 5000])
def test_what_is_no_sound_behind_an_mp3_changes_nothing(tmp_path: Path, tail: bytes) -> None:
    """Pictures in tags: among so many bytes some look like a frame."""
    content = mp3(tmp_path / "plain.mp3", noise(2))
    (tmp_path / "tagged.mp3").write_bytes(content + tail + np.random.default_rng(0).bytes(300_000))
    np.testing.assert_array_equal(load_audio(tmp_path / "tagged.mp3", RATE), load_audio(tmp_path / "plain.mp3", RATE))


def test_a_count_that_libsndfile_does_not_read_is_none(tmp_path: Path) -> None:
    """Fraunhofer's encoder writes VBRI."""
    content = bytearray(mp3(tmp_path / "counted.mp3", noise(10)))
    place, expected = content.find(b"Xing"), load_audio(tmp_path / "counted.mp3", RATE)
    content[place : place + 12] = bytes(12)
    content[36:54] = b"VBRI" + bytes(10) + content[:4]
    (tmp_path / "fraunhofer.mp3").write_bytes(content)
    assert len(load_audio(tmp_path / "fraunhofer.mp3", RATE)) >= len(expected)


def test_mp3_files_joined_of_two_rates_are_not_read_in_part_in_silence(tmp_path: Path) -> None:
    parts = [without_count(mp3(tmp_path / f"{rate}.mp3", noise(3, rate), rate)) for rate in (16000, 44100)]
    (tmp_path / "joined.mp3").write_bytes(b"".join(parts))
    with pytest.raises(AudioError, match="joined.mp3: truncated or damaged: the header promises"):
        load_audio(tmp_path / "joined.mp3", RATE)


def test_a_tag_before_another_kind_of_file_does_not_make_it_an_mp3(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "plain.flac", noise(1), RATE)
    content = (tmp_path / "plain.flac").read_bytes()
    (tmp_path / "tagged.flac").write_bytes(b"ID3\x04\0\0\0\0\x01\x05" + bytes(133) + content)
    np.testing.assert_array_equal(load_audio(tmp_path / "tagged.flac", RATE), load_audio(tmp_path / "plain.flac", RATE))


def vorbis(folder: Path, seconds: float, rate: int = RATE) -> bytes:
    soundfile.write(folder / "link.ogg", noise(seconds, rate), rate)
    return (folder / "link.ogg").read_bytes()


@pytest.mark.parametrize(
    ("kind", "seconds", "message"),
    [
        ("two rates", 2.5, r"changes after 1.0 s \(8000 Hz, 1 channels after 16000 Hz, 1 channels\); expected one"),
        ("a header", 2.5, r"not readable as audio or damaged after 1.0 s"),
        ("the end", 3.0, "the link that begins after 3.0 s is truncated"),
        ("garbage between", 4.5, None), ("no end inside", 1.5, None),
    ],
)  # fmt: skip
def test_the_other_links_of_a_chain_are_read(tmp_path: Path, kind: str, seconds: float, message: str | None) -> None:
    """And what is wrong with one is said after them. A radio's links often lack their end."""
    first, second, third = (vorbis(tmp_path, seconds) for seconds in (1, 2, 1.5))
    if kind == "two rates":
        second = vorbis(tmp_path, 2, 8000)
    elif kind == "a header":
        second = second.replace(b"vorbis", b"sibrov", 1)
    elif kind == "the end":
        third = third[: third.rindex(b"OggS")]
    elif kind == "garbage between":
        first += bytes(5000)
    elif kind == "no end inside":
        first, second = first[: first.rindex(b"OggS")], second[: second.rindex(b"OggS")]
    path = tmp_path / "chain.ogg"
    path.write_bytes(first + second + third)
    found, error = 0, None
    try:
        for block in open_sound(path, RATE).blocks:
            found += len(block)
    except AudioError as caught:
        error = str(caught)
    assert (error is None) == (message is None) and (message is None or re.search(f"chain.ogg: {message}", error or ""))
    assert seconds * RATE <= found <= 4.5 * RATE and (found == seconds * RATE or "end" in kind)


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
    other = np.random.default_rng(0).bytes(3000)
    for behind in (b"ID3\x04" + 30 * other, other, bytes(100_000), b"\xff" * 100_000, b"LIST\x04\0\0\0abcd"):
        path.write_bytes(bytes(content[: 44 + 2 * RATE]) + behind)
        np.testing.assert_array_equal(load_audio(path, RATE), np.float32(samples[:RATE] / 32768))
    content[4:8] = (len(content) - 8).to_bytes(4, "little")  # all that follows is the file's: chunks, one badly aligned
    path.write_bytes(bytes(content[: 44 + 2 * RATE]) + b"\0id3 " + bytes(content[44 + 2 * RATE :]))
    assert len(load_audio(path, RATE)) == RATE
