"""Several recordings at a time, pieces as they come, and recordings that are damaged, wordless or very long."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE
from test_recognizer import count_encoder_runs, save_tiny, speech

from speech_mtl import listening
from speech_mtl.audio import Audio, AudioError, Sound
from speech_mtl.recognizer import Recognizer
from speech_mtl.results import Result, Segment

DURATIONS_S = [1.0, 0.4, 7.0, 2.2, 41.0, 0.1, 1.0, 3.3, 12.0, 0.7]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), gender={"type": "classify"})


@pytest.fixture
def recognizer(folder: Path, tmp_path: Path) -> Recognizer:
    return Recognizer.from_pretrained(folder, db=tmp_path / "speakers.db")


def rounded(result: Result) -> Result:
    """Without what may differ in the last digits, and without the name, which says which of several it is."""
    segments = []
    for segment in result.segments:
        words = [dataclasses.replace(w, confidence=0.0, speaker_probability=None) for w in segment.words]
        segments.append(dataclasses.replace(segment, words=words, score=None, labels={}))
    voices = [dataclasses.replace(voice, score=None, embedding=[]) for voice in result.speakers]
    return dataclasses.replace(result, audio="", segments=segments, speakers=voices)


@pytest.mark.parametrize("order", [1, -1])
def test_company_changes_nothing(recognizer: Recognizer, order: int) -> None:
    """Laws 1 and 2: the same text, times, names and embeddings, whatever recordings are heard together."""
    recognizer.enroll("ann", [(speech(2.0, seed=1), RATE)])
    audios = [(speech(s, seed=i), RATE) for i, s in enumerate(DURATIONS_S)][::order]
    runs = count_encoder_runs(recognizer)
    together = list(recognizer.transcribe_all(audios))
    assert len(runs) < len(audios)
    for audio, found in zip(audios, together, strict=True):
        alone = recognizer.transcribe(audio)
        assert isinstance(found, Result) and rounded(found) == rounded(alone)
        words = [[w for s in result.segments for w in s.words] for result in (found, alone)]
        for a, b in zip(*words, strict=True):
            assert a.confidence == pytest.approx(b.confidence, abs=2e-4)
        for voice, expected in zip(found.speakers, alone.speakers, strict=True):
            np.testing.assert_allclose(voice.embedding, expected.embedding, atol=2e-5)  # they are rounded to 5 digits


def test_the_bundled_model_hears_real_and_synthetic_speech_alike_in_company(tmp_path: Path) -> None:
    from speech_mtl.demo import DATA

    recognizer = Recognizer.from_pretrained(db=tmp_path / "speakers.db")
    whole, rate = soundfile.read(DATA / "conversation.flac", dtype="float32")
    bounds = [0.0, 1.5, 4.0, 4.9, 9.0, 12.5, 13.5, 20.0, 22.0]
    audios = [(whole[round(a * rate) : round(b * rate)], rate) for a, b in zip(bounds, bounds[1:], strict=False)]
    for audio, found in zip(audios, recognizer.transcribe_all(audios), strict=True):
        assert isinstance(found, Result) and rounded(found) == rounded(recognizer.transcribe(audio))


def test_bad_recordings_stand_in_their_place_and_stop_nothing(recognizer: Recognizer, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_text("no audio")
    shares: list[float] = []
    silence, good = (np.zeros(RATE), RATE), (speech(1.0), RATE)
    audios: list[Audio] = [tmp_path / "bad.wav", good, tmp_path / "missing.wav", silence, good]
    found = list(recognizer.transcribe_all(audios, shares.append))
    assert [type(each) for each in found] == [AudioError, Result, AudioError, Result, Result]
    assert "bad.wav" in str(found[0]) and "No such file" in str(found[2])
    assert shares == sorted(shares) and shares[-1] == len(audios)


def test_pieces_come_before_the_end_and_hold_the_result(recognizer: Recognizer) -> None:
    """All words, in order, with their final times; the first ones before the rest of the recording is read."""
    recognizer.enroll("ann", [(speech(20.0), RATE)])
    samples = np.concatenate([np.concatenate([speech(20.0, seed=i), np.zeros(2 * RATE)]) for i in range(6)])
    pieces: list[tuple[float, Segment]] = []
    shares = [0.0]
    result = recognizer.transcribe(
        (samples, RATE), shares.append, on_segment=lambda name, segment: pieces.append((shares[-1], segment))
    )
    words = [(w.text, w.start_s, w.end_s, w.confidence) for _, piece in pieces for w in piece.words]
    assert words == [(w.text, w.start_s, w.end_s, w.confidence) for s in result.segments for w in s.words]
    assert pieces[0][0] < 0.4
    assert {w.speaker == piece.speaker for _, piece in pieces for w in piece.words} == {True}
    assert {piece.speaker for _, piece in pieces} & {"ann", None} and result == recognizer.transcribe((samples, RATE))


def test_pieces_between_silences_do_not_wait_for_one_another(recognizer: Recognizer) -> None:
    """Short windows, of which many make a batch."""
    samples = np.concatenate([np.concatenate([speech(3.0, seed=i), np.zeros(4 * RATE)]) for i in range(9)])
    seen, shares = [], [0.0]
    found = recognizer.transcribe(
        (samples, RATE), shares.append, on_segment=lambda name, segment: seen.append(shares[-1])
    )
    assert seen[0] < 0.3 and len(set(seen)) > 5 and found == recognizer.transcribe((samples, RATE))


@pytest.mark.parametrize("ending", ["flac", "mp3", "ogg"])
def test_what_comes_before_the_damage_is_kept(recognizer: Recognizer, tmp_path: Path, ending: str) -> None:
    """Bytes of noise in the middle of a file."""
    path = tmp_path / f"damaged.{ending}"
    soundfile.write(path, np.concatenate([speech(1.0, seed=i % 9) for i in range(90)]), RATE)
    intact, content = soundfile.read(path, dtype="float32")[0], bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = np.random.default_rng(0).bytes(3000)
    path.write_bytes(content)
    result = recognizer.transcribe(path)
    if ending == "ogg":  # its reader goes on behind the damage
        assert "damaged.ogg: truncated or damaged: the header promises 1440000 samples" in result.damage
        assert 80 < result.duration_s < 90
    else:
        assert f"damaged.{ending}: not readable as audio or damaged after 4" in result.damage
        assert 40 <= result.duration_s <= 46
    if ending == "flac":  # mp3 files decode to other samples where a frame before was broken
        front = recognizer.transcribe((intact[: round(result.duration_s * RATE)], RATE))
        assert result.segments == front.segments and result.text
    with pytest.raises(AudioError, match="damaged"):
        recognizer.enroll("ann", [path])
    assert recognizer.database.names() == []


def test_a_file_that_is_being_written_is_heard_as_far_as_it_goes(recognizer: Recognizer, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", speech(5.0), RATE)
    content = (tmp_path / "a.wav").read_bytes()
    place = content.index(b"data") + 4
    whole = recognizer.transcribe(tmp_path / "a.wav")
    for promised in (0, 20 * RATE):
        (tmp_path / "a.wav").write_bytes(content[:place] + promised.to_bytes(4, "little") + content[place + 4 :])
        result = recognizer.transcribe(tmp_path / "a.wav")
        assert result.segments == whole.segments and "still being written" in result.damage
    (tmp_path / "a.wav").write_bytes(content[:place] + bytes(4))
    with pytest.raises(AudioError, match="a.wav: .*still being written.*holds 36"):
        recognizer.transcribe(tmp_path / "a.wav")


UNSURE = "words are unsure"


def test_music_and_noise_are_noted_where_their_words_are_unsure(tmp_path: Path) -> None:
    recognizer = Recognizer.from_pretrained(db=tmp_path / "speakers.db")
    rng = np.random.default_rng(0)
    time_s = np.arange(10 * RATE) / RATE
    chord = sum(0.1 * np.sin(2 * np.pi * f * time_s) for f in (220, 277, 330))
    crackle = rng.normal(0, 0.02, 10 * RATE) * (1 + 30 * (rng.random(10 * RATE) < 3e-4))
    for samples in (chord, rng.normal(0, 0.1, 10 * RATE), crackle):
        result = recognizer.transcribe((samples, RATE))
        [note] = result.notes
        assert note == "no words were recognised" or note.startswith(UNSURE)
    from speech_mtl.demo import DATA

    assert recognizer.transcribe(DATA / "conversation.flac").notes == []


@pytest.mark.real_data
@pytest.mark.parametrize("kind", ["002 - Rain", "003 - Sea waves", "007 - Helicopter", "010 - Fire crackling"])
def test_real_noise_gives_a_note(real_data: Path, kind: str, tmp_path: Path) -> None:
    files = sorted((real_data / "esc10" / kind).glob("*.ogg"))
    if not files:
        pytest.skip(f"no .ogg under {real_data}/esc10/{kind}")
    noise = np.concatenate([soundfile.read(file, dtype="float32")[0] for file in files])
    rate = soundfile.info(files[0]).samplerate
    result = Recognizer.from_pretrained(db=tmp_path / "speakers.db").transcribe((noise, rate))
    [note] = [note for note in result.notes if "clipped" not in note]
    assert note == "no words were recognised" or note.startswith(UNSURE)


def test_memory_does_not_grow_with_the_length(
    recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    """What the tensors that are alive hold, at most, in a fake sound that is made as it is read, mostly pauses."""
    spoken = np.concatenate([speech(3.0), np.random.default_rng(0).normal(0, 1e-3, 27 * RATE)]).astype(np.float32)

    def peak_mb(minutes: int) -> float:
        def fake(audio: Audio, sample_rate: int) -> Sound:
            return Sound("fake", minutes * 60 * RATE, (spoken.copy() for _ in range(2 * minutes)))

        held_mb: list[float] = []
        gc.collect()
        others = {id(each) for each in gc.get_objects() if type(each) is torch.Tensor}

        def weigh(share: float) -> None:
            tensors = [each for each in gc.get_objects() if type(each) is torch.Tensor and id(each) not in others]
            storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
            held_mb.append(sum(storages.values()) / 2**20)

        monkeypatch.setattr(listening, "open_sound", fake)
        assert recognizer.transcribe("fake", weigh).duration_s == 60 * minutes and len(held_mb) > 2 * minutes - 2
        return max(held_mb)

    assert peak_mb(10) < peak_mb(4) + 1.0  # the frames of a minute take 2 MB
