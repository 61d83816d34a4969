"""Is a recording good enough to enrol, and does it fit its name?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import RATE
from test_recognizer import save_tiny, speech

from speech_mtl.calibration import Band, Calibration
from speech_mtl.diarize import two_groups
from speech_mtl.enrolment import EnrolmentError, Loudness, check_names, likeness_within
from speech_mtl.recognizer import Recognizer
from speech_mtl.speakers import SpeakerDatabase, Utterance, normalized

AXES = np.eye(8, dtype=np.float32)
MEASURED = Calibration(
    measured_on="us", false_acceptance=0.01, bands=(Band(thresholds=(0.7,)),), logistic=(-10.0, 20.0, 0.0)
)


def noise(seconds: float, level: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, level, round(seconds * RATE)).astype(np.float32)


def loudness_of(samples: np.ndarray, block: int = 10**9) -> Loudness:
    found = Loudness(sample_rate=RATE)
    for start in range(0, len(samples), block):
        found.add(samples[start : start + block])
    return found


@pytest.mark.parametrize("snr_db", [30, 20, 10])
def test_speech_and_noise_are_measured(snr_db: int) -> None:
    """Two seconds of sound in five seconds of noise; the noise is known."""
    sound = np.concatenate([np.zeros(RATE), noise(1, 0.1, 1), np.zeros(RATE), noise(1, 0.1, 2), np.zeros(RATE)])
    found = loudness_of((sound + noise(5, 0.1 * 10 ** (-snr_db / 20), 3)).astype(np.float32))
    assert found.speech_s == pytest.approx(2.0, abs=0.1) and found.snr_db == pytest.approx(snr_db, abs=1.5)
    assert found.speech_between_s(0, 1) < 0.1 and found.speech_between_s(1, 2) == pytest.approx(1.0, abs=0.05)


def test_blocks_change_nothing() -> None:
    samples = np.concatenate([noise(1, 0.001), noise(1.5, 0.1, 1), noise(0.77, 0.001, 2)])
    whole, parts = loudness_of(samples), loudness_of(samples, 777)
    assert (whole.speech_s, whole.snr_db, whole.samples) == (parts.speech_s, parts.snr_db, parts.samples)


def test_a_few_words_in_a_long_quiet_recording_are_the_speech() -> None:
    """Two seconds of sound in three minutes: the loudest twentieth is the noise."""
    sound = np.concatenate([noise(2, 0.1, 1), noise(178, 0.001, 2)])
    assert loudness_of(sound.astype(np.float32)).speech_s == pytest.approx(2.0, abs=0.1)


def test_a_door_is_not_all_of_the_speech() -> None:
    """A second of noise, thirty decibels above half a minute of words."""
    sound = np.concatenate([noise(30, 0.02, 1), noise(1, 0.8, 2), noise(5, 0.0001, 3)])
    assert loudness_of(sound.astype(np.float32)).speech_s > 29


def test_quiet_is_no_voice(recognizer: Recognizer) -> None:
    """What follows a voice for a minute and a half does not change it, nor make two voices one."""
    quiet = noise(90, 0.0003, 5)
    for seed in (1, 2):
        voice = speech(4.0, seed=seed)
        alone, long = (recognizer.embed((x, RATE)) for x in (voice, np.concatenate([voice, quiet])))
        assert float(alone @ long) > 0.95


def test_silence_holds_no_speech() -> None:
    found = loudness_of(np.zeros(RATE, dtype=np.float32))
    assert (found.speech_s, found.snr_db) == (0, None)


def test_likeness_within_is_low_for_two_voices_in_any_order_and_not_asked_of_little() -> None:
    rng = np.random.default_rng(0)
    one, two = AXES[0] + 0.1 * rng.standard_normal((6, 8)), AXES[1] + 0.1 * rng.standard_normal((6, 8))
    assert likeness_within(normalized(one)) > 0.9
    for both in (np.concatenate([one, two]), np.stack([one, two], axis=1).reshape(-1, 8)):
        assert likeness_within(normalized(both)) < 0.3
    assert likeness_within(normalized(np.concatenate([one[:2], two[:1]]))) == 1
    assert likeness_within(normalized(np.concatenate([one, two[:1]]))) == 1  # one odd window is no second voice


def test_hours_are_asked_for_a_second_voice_in_as_much_memory_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def grouped(windows_WE: np.ndarray) -> np.ndarray:
        sizes.append(len(windows_WE))
        return two_groups(windows_WE)

    monkeypatch.setattr("speech_mtl.enrolment.two_groups", grouped)
    monkeypatch.setattr("speech_mtl.enrolment.MOST_WINDOWS", 100)
    noise_WE = 0.1 * np.random.default_rng(0).standard_normal((1000, 8))
    for count in (100, 101, 199, 1000):
        voice_W = np.arange(count) * 2 // count
        assert likeness_within(normalized(AXES[voice_W] + noise_WE[:count])) < 0.3
    assert sizes == [100, 51, 100, 100]


@pytest.fixture
def recognizer(tmp_path: Path) -> Recognizer:
    return Recognizer.from_pretrained(save_tiny(tmp_path / "model"), db=tmp_path / "s.db")


def test_recordings_that_are_refused_unless_forced(recognizer: Recognizer) -> None:
    cases = {
        "s of speech; expected at least 0.5 s": speech(0.4),
        "dB above the noise; expected at least 3 dB": speech(4.0) + noise(4.0, 0.2),
        "% of the samples are at full scale; expected less than 2 %": np.clip(30 * speech(4.0), -1, 1),
    }
    for reason, samples in cases.items():
        with pytest.raises(EnrolmentError, match=f"^samples 2: .*{reason}"):
            recognizer.enroll("ann", [(speech(4.0), RATE), (samples.astype(np.float32), RATE)])
        assert recognizer.database.names() == []
    warnings = recognizer.enroll("ann", [(samples.astype(np.float32), RATE)], force=True)
    with pytest.raises(EnrolmentError, match=r"bob: 0\.[5-9]\d s of speech in all; expected at least 1 s"):
        recognizer.enroll("bob", [(speech(0.8), RATE)])
    assert any("clipped" in warning for warning in warnings) and any("s of speech enrolled" in w for w in warnings)
    (kept,) = recognizer.database.utterances()["ann"]
    assert kept.speech_s and kept.speech_s > 3 and (kept.quality or {})["clipped"] > 0.02  # type: ignore[operator]


def test_what_is_enrolled_already_is_left_out(recognizer: Recognizer) -> None:
    """It tells nothing more of the voice, and makes up for nothing that is missing; what is new beside it counts."""
    one, two = ((speech(3.0, seed=seed), RATE) for seed in (1, 2))
    recognizer.enroll("ann", [one])
    with pytest.raises(EnrolmentError, match="^samples 1, samples 2: enrolled already under 'ann'; nothing is new"):
        recognizer.enroll("ann", [one, one], force=True)
    warnings = recognizer.enroll("ann", [one, two, two], force=True)
    assert sum("enrolled already under 'ann', left out" in warning for warning in warnings) == 2
    assert len(recognizer.database.utterances()["ann"]) == 2
    with pytest.raises(EnrolmentError, match=r"bob: 0\.[5-9]\d s of speech in all; expected at least 1 s"):
        recognizer.enroll("bob", 2 * [(speech(0.8), RATE)])


def utterances(*embeddings: np.ndarray, speech_s: float = 4.0) -> list[Utterance]:
    return [Utterance(normalized(embedding), speech_s, {"snr_db": 30.0, "clipped": 0.0}) for embedding in embeddings]


def check(name: str, new: list[Utterance], database: SpeakerDatabase, force: bool = False) -> list[str]:
    return check_names(name, new, [f"{i}.wav" for i in range(len(new))], database.utterances(), MEASURED, force)


def test_one_name_for_two_voices_and_two_names_for_one(tmp_path: Path) -> None:
    database = SpeakerDatabase(tmp_path / "s.db", "m")
    ann, bob = utterances(AXES[0], AXES[0] + 0.3 * AXES[2]), utterances(AXES[1])
    assert check("ann", ann, database) == []
    database.add_utterances({"ann": ann})
    again = utterances(AXES[0] - 0.1 * AXES[3])
    assert check("bob", utterances(AXES[1], AXES[1] + 0.1 * AXES[3]), database) == [] == check("ann", again, database)
    with pytest.raises(EnrolmentError, match=r"0.wav: another voice than the other recordings of 'ann'.*--force"):
        check("ann", bob, database)
    with pytest.raises(EnrolmentError, match=r"another voice"):  # within one call, too
        check("bob", utterances(AXES[1], AXES[1] + 0.1 * AXES[2], AXES[3]), database)
    mixed = utterances(*(AXES[k] + 0.2 * AXES[2 + i] for i in range(3) for k in (0, 1)))
    with pytest.raises(EnrolmentError, match=r"another voice") as refused:  # as often the one as the other
        check("both", mixed, SpeakerDatabase(tmp_path / "none.db", "m"))
    assert sorted(line[0] for line in str(refused.value).splitlines()) in (["0", "2", "4"], ["1", "3", "5"])
    with pytest.raises(EnrolmentError, match=r"'anna' has the voice that is enrolled as 'ann' .likeness 1.00"):
        check("anna", ann, database)
    assert "enrolled as 'ann'" in check("anna", ann, database, force=True)[0]
    like_ann = utterances(AXES[0] + 0.95 * AXES[3])
    low = MEASURED.model_copy(update={"bands": (Band(thresholds=(0.4,)),), "logistic": (-16.0, 20.0, 0.0)})
    check_names(
        "eve", like_ann, ["a"], database.utterances(), low, False
    )  # as like as one stranger in a hundred, no more
    low = low.model_copy(update={"logistic": (-10.0, 20.0, 0.0)})
    with pytest.raises(EnrolmentError, match="'eve' has the voice .* as 'ann' .*; if .* one person, enrol it as 'ann'"):
        check_names("eve", like_ann, ["a"], database.utterances(), low, False)
    for other in ("anne", "annie", "anita"):
        database.add_utterances({other: ann})
    # as much any of the four's
    with pytest.raises(EnrolmentError, match="'eve' has the voice that is enrolled as 'an"):
        check("eve", again, database)
    unmeasured = Calibration.of(0.5, "")
    assert check_names("anna", ann, ["a", "b"], database.utterances(), unmeasured, False) == []  # it cannot know
