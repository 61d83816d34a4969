"""Soft recordings are heard as if they had been louder; others as they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import RATE
from lhotse import Recording
from test_recognizer import speech

from speech_mtl.audio import load_audio
from speech_mtl.config import Config
from speech_mtl.data import SpeechDataset
from speech_mtl.demo import DATA
from speech_mtl.lift import USUAL_DB, Lift, lifted
from speech_mtl.metrics import word_error_count, word_errors
from speech_mtl.recognizer import Recognizer
from speech_mtl.windows import windows


def at(level_db: float, duration_s: float = 5.0) -> np.ndarray:
    """Noise of that level."""
    samples = np.random.default_rng(0).standard_normal(round(duration_s * RATE))
    return (samples / samples.std() * 10 ** (level_db / 20)).astype(np.float32)


def level_db(samples: np.ndarray) -> float:
    return float(10 * np.log10(np.square(samples, dtype=np.float64).mean()))


@pytest.mark.parametrize("found_db", [USUAL_DB + 0.1, -10.0, 20.0])
def test_what_is_loud_enough_stays_as_it_is(found_db: float) -> None:
    samples = at(found_db)
    assert lifted(samples, RATE) is samples


@pytest.mark.parametrize("found_db", [USUAL_DB - 1, -50.0, -69.0])
def test_what_is_softer_gets_the_usual_level(found_db: float) -> None:
    found = lifted(at(found_db), RATE)
    assert level_db(found) == pytest.approx(USUAL_DB, abs=0.1) and found.dtype == np.float32


@pytest.mark.parametrize("samples", [np.zeros(RATE, np.float32), np.zeros(0, np.float32), at(-75)])
def test_silence_is_not_lifted(samples: np.ndarray) -> None:
    assert lifted(samples, RATE) is samples


def test_pauses_do_not_count() -> None:
    """Nor does a hiss in them: twenty seconds of either around five of speech change the gain by nothing."""
    lift, alone = Lift(RATE), Lift(RATE)
    for block in (at(-62, 10.0), at(-40), np.zeros(10 * RATE, np.float32)):
        lift.add(block)
    alone.add(at(-40))
    assert lift.gain_db == pytest.approx(alone.gain_db, abs=1e-3) == pytest.approx(40 + USUAL_DB, abs=0.1)


def test_a_door_does_not_count_unless_it_may_be_the_only_word() -> None:
    bang = at(0, 0.1)
    for before_s in (0, 7):
        recording = np.concatenate([at(-60, 12.0)[: before_s * RATE], bang, at(-60, 12.0)])
        lift = Lift(RATE)
        lift.add(recording)
        assert lift.gain_db == pytest.approx(60 + USUAL_DB, abs=0.1)
    short = Lift(RATE)
    short.add(np.concatenate([at(-60, 5.0), bang]))
    assert short.gain_db == 0
    sentence = Lift(RATE)
    sentence.add(np.concatenate([at(-64, 100.0), at(-25, 1.8), at(-64, 20.0)]))
    assert sentence.gain_db == 0
    loud_voice = Lift(RATE)  # a tenth of what is heard
    loud_voice.add(np.concatenate([at(-65, 18.0), at(-40, 2.0)]))
    assert loud_voice.gain_db == pytest.approx(40 + USUAL_DB, abs=0.1)


def test_the_blocks_in_which_a_recording_comes_change_nothing() -> None:
    samples = np.concatenate([at(-40), at(-55), at(-45)])
    whole, parts = Lift(RATE), Lift(RATE)
    whole.add(samples)
    for start in range(0, len(samples), RATE // 2):
        parts.add(samples[start : start + RATE // 2])
    assert whole.gain_db == pytest.approx(parts.gain_db, abs=1e-9)
    short = Lift(RATE)
    short.add(at(-40, 0.05))  # less than a piece
    assert short.gain_db > 9


def test_a_window_is_lifted_by_what_was_read_until_then() -> None:
    """Speech that begins after half a minute of a soft hiss decides from the first window on; a later loud voice does
    not change what was heard before it."""
    recording = np.concatenate([at(-66, 31.0), at(-40, 60.0), at(-20, 60.0)])
    blocks = [recording[start : start + 30 * RATE] for start in range(0, len(recording), 30 * RATE)]
    gains_db = []
    for window in windows(blocks, RATE, 640):
        gains_db.append(level_db(window.samples) - level_db(recording[window.start :][: len(window.samples)]))
    expected_db = 40 + USUAL_DB
    assert gains_db[:2] == pytest.approx([expected_db, expected_db], abs=0.2) and gains_db[-1] == 0


def test_an_utterance_is_scored_as_loud_as_it_is_transcribed(tmp_path: Path) -> None:
    samples = speech(2.0) / 100
    soundfile.write(tmp_path / "soft.wav", samples, RATE, subtype="FLOAT")
    cut = Recording.from_file(tmp_path / "soft.wav").to_cut()
    scored = SpeechDataset(Config())[0, [cut]].audio_BN[0, : len(samples)].numpy()
    (window,) = windows([load_audio(tmp_path / "soft.wav", RATE)], RATE, 640)
    np.testing.assert_array_equal(scored, window.samples)
    assert np.abs(scored).max() > 10 * np.abs(samples).max()


@pytest.mark.parametrize("softer_db", [20, 30])
def test_a_softer_conversation_has_the_same_words_and_voices(tmp_path: Path, softer_db: float) -> None:
    """The demo in 16 bits; without a lift the bundled model takes its four voices for two, and 30 dB softer for one."""
    samples, rate = soundfile.read(DATA / "conversation.flac", dtype="float32")
    soundfile.write(tmp_path / "soft.wav", samples * 10 ** (-softer_db / 20), rate, subtype="PCM_16")
    recognizer = Recognizer.from_pretrained(db=tmp_path / "speakers.db")
    usual, soft = recognizer.transcribe((samples, rate)), recognizer.transcribe(tmp_path / "soft.wav")
    truth = " ".join(turn["text"] for turn in json.loads((DATA / "truth.json").read_text()))
    usual_errors, soft_errors = (word_error_count(word_errors(truth, found.text)) for found in (usual, soft))
    assert soft_errors <= usual_errors + 2
    assert [s.speaker for s in soft.segments] == [s.speaker for s in usual.segments]
    assert len({s.speaker for s in soft.segments}) == 4
