"""Thresholds and probabilities: what a calibration says, and that it is measured right on scores whose law is known."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from conftest import RATE
from pydantic import ValidationError
from scipy.stats import norm
from test_cli import call
from test_recognizer import save_tiny, speech

from speech_mtl.calibrating import (
    BandReport,
    accepted_share,
    calibrate,
    cllr,
    fit_logistic,
    rate_with_interval,
    remarks,
    threshold_at,
)
from speech_mtl.calibration import Band, Calibration, parse_calibration, read_calibration, save_calibration
from speech_mtl.checkpoint import CheckpointError
from speech_mtl.cli_calibrate import seconds
from speech_mtl.data import DataError
from speech_mtl.recognizer import Recognizer
from speech_mtl.trials import Labelled, Trials, distinct, groups_of, hear_all, labelled, trials_of

BANDS = (Band(up_to_s=2, enrolled=(1, 4), thresholds=(0.5, 0.7)), Band(enrolled=(1, 4), thresholds=(0.6, 0.8)))
MEASURED = Calibration(
    fingerprint="m", measured_on="us", false_acceptance=0.01, bands=BANDS, logistic=(-6.0, 10.0, 0.5), one_voice=0.4
)


def known_trials(seed: int, speakers: int = 40, pieces: int = 400, seconds: float = 3.0) -> Trials:
    """Own voices score around 0.7, others around 0.2, both with deviation 0.1, all independently."""
    rng = np.random.default_rng(seed)
    speaker_P = np.repeat(np.arange(speakers), pieces)
    scores_PM = rng.normal(0.2, 0.1, (len(speaker_P), speakers))
    scores_PM[np.arange(len(speaker_P)), speaker_P] += 0.5
    return Trials(scores_PM, np.full(len(speaker_P), seconds), speaker_P, np.zeros(speakers, int))


def test_the_threshold_is_that_of_the_band_and_rises_with_the_number_enrolled() -> None:
    assert [MEASURED.threshold(s) for s in (0.1, 1.99, 2.0, 600.0)] == [0.5, 0.5, 0.6, 0.6]
    assert [MEASURED.threshold(1.0, n) for n in (0, 1, 2, 4)] == [0.5, 0.5, 0.6, 0.7]
    assert MEASURED.threshold(1.0, 8) == pytest.approx(0.8)  # on as between those measured
    assert MEASURED.threshold(1.0, 10**9) == 1.0
    bent = Band(enrolled=(1, 2, 4), thresholds=(0.3, 0.5, 0.6))  # on as in the last doubling
    assert bent.threshold(8) == pytest.approx(0.7) and bent.threshold(16) == pytest.approx(0.8)
    falling = Band(enrolled=(1, 2, 4), thresholds=(0.3, 0.5, 0.45))  # as chance has it
    assert falling.threshold(8) == pytest.approx(0.45)
    assert Calibration.of(0.3, "").threshold(1.0, 1000) == 0.3
    fixed = MEASURED.with_threshold(0.9)
    assert fixed.threshold(1.0, 4) == 0.9 and fixed.probability(0.6, 3.0) == MEASURED.probability(0.6, 3.0)


def test_the_probability_of_one_voice_is_the_logistic_functions_and_of_many_adds_up() -> None:
    ratio = -6 + 10 * 0.7 + 0.5 * np.log(4.0)
    assert MEASURED.probability(0.7, 4.0) == pytest.approx(1 / (1 + np.exp(-ratio)), abs=1e-4)
    assert Calibration.of(0.5, "").probability(0.7, 4.0) is None and MEASURED.probability(np.zeros(0), 4.0) is None
    alone, beside_a_twin = MEASURED.probability(0.9, 4.0), MEASURED.probability(np.array([0.9, 0.9]), 4.0)
    assert alone and beside_a_twin and beside_a_twin < 0.5 < alone  # one of the two it is, but which?
    assert MEASURED.probability(0.9, 4.0) > MEASURED.probability(0.9, 1.0)  # type: ignore[operator]
    # of two that are as likely as not to be enrolled each is so with a quarter
    odds = np.exp(-6 + 10 * np.array([0.3, 0.7]) + 0.5 * np.log(4.0)) / 2
    expected = odds[1] / (odds.sum() + 1), odds.sum() / (odds.sum() + 1)
    scores = np.array([0.3, 0.7])
    found = MEASURED.probability(scores, 4.0), MEASURED.probability_of_any(scores, 4.0)
    assert found == pytest.approx(expected, abs=1e-4)
    for seconds_s, counts_as_s in ((0.1, 0.5), (600.0, 60.0)):  # nothing else was measured
        assert MEASURED.probability(0.7, seconds_s) == MEASURED.probability(0.7, counts_as_s)


@pytest.mark.parametrize(
    "change",
    [
        {"bands": []}, {"bands": [{"up_to_s": 2, "thresholds": [0.5]}]}, {"bands": [{"thresholds": [1.5]}]},
        {"bands": [{"thresholds": [0.5, 0.6]}]}, {"bands": [{"enrolled": [2, 1], "thresholds": [0.5, 0.6]}]},
        {"bands": [{"up_to_s": 4, "thresholds": [0.1]}, {"up_to_s": 2, "thresholds": [0.1]}, {"thresholds": [0.1]}]},
        {"bands": [{"enrolled": [0], "thresholds": [0.5]}]},
        {"bands": [{"up_to_s": 0, "thresholds": [0.5]}, {"thresholds": [0.5]}]},
        {"format": 2}, {"colour": 1}, {"logistic": [1]}, {"logistic": "x"},
    ],
)  # fmt: skip
def test_broken_calibrations_are_refused_in_one_line(change: dict) -> None:
    text = json.dumps(json.loads(MEASURED.to_json()) | change)
    with pytest.raises(CheckpointError, match="^x.json: .*expected what `speech-mtl calibrate` writes$"):
        parse_calibration(text, "x.json", "m")
    with pytest.raises(ValidationError):
        Calibration.model_validate_json(text)


def test_it_is_stored_with_the_model_bound_to_its_weights(tmp_path: Path) -> None:
    folder, other = save_tiny(tmp_path / "a"), save_tiny(tmp_path / "b", seed=1)
    (folder / "thresholds.json").write_text('{"speaker": {"threshold": 0.3, "measured_on": ""}}')
    path = save_calibration(folder, MEASURED)
    recognizer = Recognizer.from_pretrained(folder, db=tmp_path / "s.db")
    bound = MEASURED.model_copy(update={"fingerprint": recognizer.model.fingerprint})
    assert recognizer.calibration == bound == read_calibration(folder, bound.fingerprint)
    assert not (folder / "thresholds.json").exists()
    (other / path.name).write_text(path.read_text())
    with pytest.raises(CheckpointError, match="belongs to other weights"):
        Recognizer.from_pretrained(other)
    recognizer.database.set_calibration(bound.with_threshold(0.9).to_json())  # the user's own goes before the model's
    again = Recognizer.from_pretrained(folder, db=tmp_path / "s.db")
    assert again.calibration.threshold(1.0) == 0.9 and again.calibration.logistic == MEASURED.logistic
    assert Recognizer.from_pretrained(folder, db=tmp_path / "s.db", threshold=0.2).calibration.threshold(1.0) == 0.2


@pytest.mark.parametrize("enrolled", [1, 5, 20])
def test_the_wanted_share_of_strangers_is_accepted_on_other_scores(enrolled: int) -> None:
    """Against the normal distribution's quantile, and among new scores of the same law."""
    threshold = threshold_at(known_trials(0), 0.01, enrolled)
    assert threshold == pytest.approx(0.2 + 0.1 * norm.isf(1 - 0.99 ** (1 / enrolled)), abs=0.01)
    fresh = known_trials(1)
    assert 0.007 < accepted_share(fresh, threshold, enrolled) < 0.014
    rng = np.random.default_rng(2)  # by drawing who is enrolled, which `accepted_share` does not
    named = []
    for _ in range(20):
        drawn = rng.permutation(40)[:enrolled]
        strangers = ~np.isin(fresh.speaker_P, drawn)
        named.append((fresh.scores_PM[strangers][:, drawn].max(axis=1) >= threshold).mean())
    assert np.mean(named) == pytest.approx(accepted_share(fresh, threshold, enrolled), rel=0.15)


def alike_by_pairs(seed: int, speakers: int, pieces: int = 20) -> Trials:
    """Strangers' scores in which some pairs of speakers are more alike than others, whatever they say."""
    rng = np.random.default_rng(seed)
    pair_SS = 0.15 * rng.standard_normal((speakers, speakers))
    speaker_P = np.repeat(np.arange(speakers), pieces)
    values_PM = 0.2 + ((pair_SS + pair_SS.T) / np.sqrt(2))[speaker_P]
    scores_PM = np.tanh(values_PM + 0.08 * rng.standard_normal(values_PM.shape))
    return Trials(scores_PM, np.full(len(speaker_P), 3.0), speaker_P, np.zeros(speakers, int))


def alike_to_many(seed: int, speakers: int) -> Trials:
    """As `alike_by_pairs`, and some speakers are like many others."""
    trials = alike_by_pairs(seed, speakers)
    likeness_S = 0.1 * np.random.default_rng(seed + 5000).standard_normal(speakers)
    values_PM = np.arctanh(trials.scores_PM) + (likeness_S[trials.speaker_P, None] + likeness_S) / np.sqrt(2)
    return replace(trials, scores_PM=np.tanh(values_PM))


@pytest.mark.parametrize("enrolled", [1, 4, 8])
@pytest.mark.parametrize("law", [alike_by_pairs, alike_to_many])
def test_a_dozen_speakers_tell_the_rate_on_others(law: Callable[[int, int], Trials], enrolled: int) -> None:
    """Over many dozens the rate on fresh speakers is not more than asked for; counting lets more in, and scatters."""
    fresh = law(1000, 150)
    found: dict[str, list[float]] = {"threshold": [], "counted": []}
    for seed in range(40):
        trials = law(seed, 12)
        found["threshold"].append(accepted_share(fresh, threshold_at(trials, 0.01, enrolled), enrolled))
        counted = min(t for t in np.arange(0.2, 1, 0.005) if accepted_share(trials, t, enrolled) <= 0.01)
        found["counted"].append(accepted_share(fresh, counted, enrolled))
    assert 0.003 < np.mean(found["threshold"]) < 0.012
    assert np.mean(found["threshold"]) < 0.6 * np.mean(found["counted"])
    assert np.std(found["threshold"]) < 0.8 * np.std(found["counted"])


@pytest.mark.parametrize("speakers", [12, 100])  # predicted, and counted
def test_strangers_of_another_source_do_not_make_it_easier(speakers: int) -> None:
    """Two sources whose speakers resemble nobody of the other: the threshold is that of one source."""
    one = alike_by_pairs(0, speakers)
    scores_PM = np.full((2 * len(one.speaker_P), 2 * speakers), -0.9)
    scores_PM[: len(one.speaker_P), :speakers] = scores_PM[len(one.speaker_P) :, speakers:] = one.scores_PM
    speaker_P = np.r_[one.speaker_P, one.speaker_P + speakers]
    two = Trials(scores_PM, np.full(len(speaker_P), 3.0), speaker_P, np.repeat([0, 1], speakers))
    for enrolled in (1, 4):
        wanted = threshold_at(one, 0.01, enrolled)
        # more speakers make a predicted one a little surer
        assert wanted - (0.05 if speakers == 12 else 1e-6) < threshold_at(two, 0.01, enrolled) < wanted + 1e-6
        if speakers == 100:
            mixed = replace(two, group_S=np.zeros(2 * speakers, int))
            assert threshold_at(mixed, 0.01, enrolled) < wanted - 0.02
    found, alone = fit_logistic(two), fit_logistic(one)
    assert found and alone and found == pytest.approx(alone, rel=0.02)


def test_sources_with_a_speaker_in_common_are_one() -> None:
    recordings = [
        Labelled(speaker, "", Path(), source)
        for source, own in {"a": "xy", "b": "yz", "c": "uvw", "d": "p", "e": "pz"}.items()
        for speaker in own
    ]
    groups = groups_of(recordings)
    assert len({groups[s] for s in "xyzp"}) == 1 == len({groups[s] for s in "uvw"}) and groups["x"] != groups["u"]


def test_a_source_of_two_speakers_is_compared_with_all(recordings: Path, tmp_path: Path) -> None:
    recognizer = Recognizer.from_pretrained(save_tiny(tmp_path / "model"))
    heard, _ = hear_all(recognizer.model, recognizer.speaker_task, labelled([recordings]))
    more = {**heard, **{f"{name}'": parts for name, parts in heard.items()}}
    numbers = {name: int(name.endswith("'")) for name in more}
    trials = trials_of(more, numbers)
    assert set(trials.is_other_PM.sum(axis=1)) == {2} and set(trials.is_own_PM.sum(axis=1)) == {1}
    del more["ann"]
    assert set(trials_of(more, numbers).is_other_PM.sum(axis=1)) == {4}


def test_of_a_damaged_recording_nothing_is_used(recordings: Path, tmp_path: Path) -> None:
    (recordings / "dan").mkdir()
    voice = speech(9.0)
    voice[8 * RATE] = np.nan
    soundfile.write(recordings / "dan" / "broken.wav", voice, RATE, subtype="FLOAT")
    recognizer = Recognizer.from_pretrained(save_tiny(tmp_path / "model"))
    heard, [bad] = hear_all(recognizer.model, recognizer.speaker_task, labelled([recordings]))
    assert "broken.wav: damaged after 8.0 s" in bad and list(heard) == ["ann", "bob", "cid"]


def test_the_logistic_regression_finds_the_true_likelihood_ratio() -> None:
    trials = known_trials(0)
    found = fit_logistic(trials)
    assert found is not None
    # of two normal laws: (0.7 - 0.2) / 0.1² · (score - 0.45)
    assert found[1] == pytest.approx(50, rel=0.06)
    at = found[0] + found[2] * np.log(3.0)
    assert at == pytest.approx(-22.5, rel=0.06)
    calibration = MEASURED.model_copy(update={"logistic": found})
    assert cllr(known_trials(1), calibration) < 0.06
    useless = MEASURED.model_copy(update={"logistic": (0.0, 0.0, 0.0)})
    assert cllr(trials, useless) == pytest.approx(1.0)


def test_intervals_are_over_speakers_not_over_trials() -> None:
    """One speaker of twenty whose every piece is accepted: many trials, one event."""
    trials = known_trials(0, speakers=20, pieces=50)
    hits = np.broadcast_to(trials.speaker_P[:, None] == 0, trials.scores_PM.shape) & ~trials.is_own_PM
    rate, low, high = rate_with_interval(trials, hits, ~trials.is_own_PM)
    assert rate == pytest.approx(1 / 20) and low == 0 and high > 0.1


def test_a_rate_that_rests_on_little_is_said_to() -> None:
    none = (0.0, 0.0, 0.0)
    assert "cannot be told from 200 trials; it takes 300" in (
        remarks(BandReport(0, 2, 0.5, 9, 200, 2, none, none), 0.01) or ""
    )
    assert "only 10 pairs of different speakers" in (
        remarks(BandReport(0, 2, 0.5, 9, 5000, 10, none, none), 0.01) or ""
    )
    assert remarks(BandReport(0, 2, 0.5, 9, 5000, 30, none, none), 0.01) is None
    assert [seconds(BandReport(8, end, 0.5, 9, 9, 0, none, none)) for end in (9, np.inf)] == ["8-9 s", "8 s +"]


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    for speaker in ("ann", "bob", "cid"):
        (tmp_path / "voices" / speaker).mkdir(parents=True)
        for i in range(4):
            soundfile.write(tmp_path / "voices" / speaker / f"{i}.wav", speech(3.0 + i, seed=ord(speaker[0]) + i), RATE)
    (tmp_path / "voices" / "notes.txt").write_text("no recording")
    return tmp_path / "voices"


def test_calibrate_a_folder(recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, db = save_tiny(tmp_path / "model"), tmp_path / "s.db"
    (recordings / "ann" / "broken.wav").write_text("no audio")
    (recordings / "dan").mkdir()
    soundfile.write(recordings / "dan" / "short.wav", speech(0.3), RATE)
    few = call("calibrate", recordings, "-m", model, "--fa", "0.1")
    assert "1 of 4 speakers left out (dan): none of their recordings is read or holds 0.5 s of speech" in few.stderr
    shutil.rmtree(recordings / "dan")
    assert few.exit_code == 1 and "3 speakers; expected 6 or more" in few.stderr and "broken.wav" in few.stderr
    assert not (model / "calibration.json").exists() and "threshold" in few.stdout
    done = call("calibrate", recordings, "-m", model, "--fa", "0.1", "--force")
    assert "3 of the 3 speakers have names that the model was trained on (ann, bob, cid)" in done.stderr
    assert done.exit_code == 1 and "12 of 13 recordings used" in done.stderr and "broken.wav" in done.stderr
    assert "threshold" in done.stdout and "Cllr" in done.stdout
    (recordings / "ann" / "broken.wav").unlink()
    assert call("calibrate", recordings, "-m", model, "--fa", "0.1", "--force").exit_code == 0
    once = (model / "calibration.json").read_text()
    assert call("calibrate", recordings, "-m", model, "--fa", "0.1", "--force").exit_code == 0
    assert (model / "calibration.json").read_text() == once  # nothing is left to chance
    monkeypatch.setenv("SPEECH_MTL_SPEAKERS", str(db))  # where voices are enrolled, not what the call asks for
    (model / "calibration.json").unlink()
    assert call("calibrate", recordings, "-m", model, "--fa", "0.1", "--force").exit_code == 0
    assert (model / "calibration.json").read_text() == once and not db.exists()
    assert "10 % false acceptance on 3 speakers" in Recognizer.from_pretrained(model, db=db).calibration.note
    assert call("calibrate", recordings, "-m", model, "--db", db, "--fa", "0.2", "--force").exit_code == 0
    assert (model / "calibration.json").read_text() == once
    assert Recognizer.from_pretrained(model, db=db).calibration.false_acceptance == 0.2
    again = call("calibrate", recordings, "-m", model, "--fa", "0.1", "--force")
    assert f"{db} has a calibration of its own, which goes first" in again.stderr
    monkeypatch.setenv("SPEECH_MTL_SPEAKERS", str(recordings.parent / "voices" / "notes.txt"))
    assert call("calibrate", recordings, "-m", model, "--fa", "0.1", "--force").exit_code == 0  # not asked about
    monkeypatch.setenv("SPEECH_MTL_SPEAKERS", str(db))
    said = call("identify", recordings / "ann" / "0.wav", "-m", model, "--db", db)
    assert said.exit_code == 0 and "20 % false acceptance" in said.stderr
    assert call("enroll", "ann", recordings / "ann" / "0.wav", "-m", model, "--db", db, "--force").exit_code == 0
    found = call("identify", recordings / "ann" / "0.wav", "-m", model, "--db", db, "-f", "json").stdout
    assert 0 < json.loads(found)["probability"] < 1
    words = json.loads(call("transcribe", recordings / "ann" / "0.wav", "-m", model, "--db", db, "-f", "json").stdout)
    assert all(0 < segment["probability"] < 1 and segment["threshold"] for segment in words["segments"])


def test_a_recording_that_is_listed_twice_counts_once(recordings: Path, corpus: dict[str, str]) -> None:
    files = list(labelled([recordings]))
    linked = [one._replace(recording=one.recording.parent / ".." / one.speaker / one.recording.name) for one in files]  # type: ignore[union-attr]
    assert distinct([*files, *linked]) == files
    cuts = list(labelled([corpus["train"]]))
    assert distinct([*cuts, *labelled([corpus["train"]])]) == cuts
    halves = [one._replace(recording=one.recording.truncate(duration=0.2)) for one in cuts]  # type: ignore[union-attr]
    assert len(distinct([*cuts, *halves])) == 2 * len(cuts)
    mixed = [one._replace(recording=one.recording.append(one.recording).with_id("0")) for one in cuts]  # type: ignore[union-attr]
    assert (
        len(distinct([*mixed, *(one._replace(speaker="eve") for one in mixed)])) == len({m.speaker for m in mixed}) + 1
    )


def test_longer_speech_is_held_to_no_lower_threshold_however_many_are_enrolled() -> None:
    """In longer pieces two of the speakers are missing, who are the most alike: thresholds would fall there."""
    short, long = known_trials(0, 8, 60, 1.5), known_trials(1, 8, 60, 9.0)
    short.scores_PM[short.speaker_P < 2, :2] += 0.3
    kept_P = long.speaker_P >= 2
    names = ("scores_PM", "seconds_P", "speaker_P")
    columns = (np.concatenate([getattr(short, name), getattr(long, name)[kept_P]]) for name in names)
    joined = Trials(*columns, short.group_S)
    found, _ = calibrate(joined, {}, "us", 0.05)
    assert len(found.bands) > 1
    for n in (1, 2, 4, 7):
        thresholds = [band.threshold(n) for band in found.bands]
        assert thresholds == sorted(thresholds)


def test_voices_are_enrolled_with_more_and_less_and_tried_in_phrases(recordings: Path, tmp_path: Path) -> None:
    """Of recordings of 15 s: as little as 3 s enrolled, and long pieces of phrases, of which a part gives one."""
    from speech_mtl.trials import _split

    part = SimpleNamespace(loudness=SimpleNamespace(speech_s=3.0))
    sizes = [len(_split([part] * 16, np.random.default_rng(seed))[0]) for seed in range(50)]  # type: ignore[list-item]
    assert min(sizes) <= 2 and max(sizes) >= 6


def test_data_that_cannot_calibrate_is_refused(tmp_path: Path, corpus: dict[str, str]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="expected .*empty/SPEAKER/recording.wav"):
        list(labelled([tmp_path / "empty"]))
    with pytest.raises(DataError, match="1 speakers, 0 of them with two recordings"):
        trials_of({"ann": []}, {"ann": 0})
    for speaker in ("ann", "bob"):
        (tmp_path / "voices" / speaker).mkdir(parents=True)
        (tmp_path / "voices" / speaker / "broken.wav").write_text("no audio")
    done = call("calibrate", tmp_path / "voices", "--db", tmp_path / "s.db")
    assert done.exit_code == 1 and "0 speakers, 0 of them with two recordings" in done.stderr
    assert "0 of 2 recordings used" in done.stderr and "bob/broken.wav: not readable as audio" in done.stderr
    done = call("calibrate", tmp_path / "none.jsonl.gz", "--db", tmp_path / "s.db")
    assert done.exit_code == 1 and "none.jsonl.gz does not exist" in done.stderr
