"""Recognizer on a tiny model with random weights: one pass, segments, words, thresholds, formats."""

from __future__ import annotations

import dataclasses
import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE, tiny_model, tiny_values, tone_word
from lhotse import CutSet, Recording

from speech_mtl import decode
from speech_mtl.audio import Audio, AudioError
from speech_mtl.calibration import Calibration
from speech_mtl.checkpoint import CheckpointError, save_model
from speech_mtl.config import parse_config
from speech_mtl.data import read_cuts
from speech_mtl.diarize import Voices
from speech_mtl.enrolment import EnrolmentError
from speech_mtl.evaluate import evaluate_rows
from speech_mtl.formats import FORMATS, format_result, who
from speech_mtl.listening import Hearing
from speech_mtl.naming import voices_of
from speech_mtl.phrases import Phrase
from speech_mtl.recognizer import Recognizer, asr_of
from speech_mtl.resampling import resample
from speech_mtl.results import Label, Result, Segment, Word
from speech_mtl.speakers import Enrolled, SpeakerDatabaseError, normalized
from speech_mtl.windows import Stitch


def save_tiny(folder: Path, seed: int = 0, **tasks: dict | None) -> Path:
    """A model folder; `tasks` adds tasks, or with None takes one away."""
    values = tiny_values({"train": "", "dev": ""})
    values["tasks"] = {name: task for name, task in (values["tasks"] | tasks).items() if task}
    model = tiny_model(parse_config(values, "test"), seed)
    if "asr" in model.tasks:
        torch.nn.init.normal_(model.get_parameter("tasks.asr.linear.bias"), std=1.0)  # writes more than blanks
    save_model(model, folder, "card")
    return folder


def speech(duration_s: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    words = [tone_word(["low", "mid", "high"][rng.integers(3)], "ann", rng) for _ in range(int(duration_s / 0.3) + 1)]
    return np.concatenate(words)[: round(duration_s * RATE)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), gender={"type": "classify"})


@pytest.fixture
def recognizer(folder: Path, tmp_path: Path) -> Recognizer:
    return Recognizer.from_pretrained(folder, db=tmp_path / "speakers.db")


def count_encoder_runs(recognizer: Recognizer) -> list[int]:
    runs: list[int] = []
    recognizer.model.encoder.register_forward_hook(lambda module, inputs, output: runs.append(1))
    return runs


@pytest.mark.parametrize(("duration_s", "windows"), [(2.0, 1), (41.0, 2)])
def test_one_pass_gives_text_and_speakers(recognizer: Recognizer, duration_s: float, windows: int) -> None:
    """Law 6: one run of the encoder a window, and what each task gives alone."""
    recognizer.enroll("ann", [(speech(2.0, seed=1), RATE)])
    samples = speech(duration_s)
    runs = count_encoder_runs(recognizer)
    result = recognizer.transcribe((samples, RATE))
    assert len(runs) == windows and result.text
    model, piece = recognizer.model, torch.from_numpy(samples)[None]
    with torch.inference_mode():
        frames = model.trunk(piece, torch.tensor([piece.size(1)]))
        text = model.task("asr").predict(model.head("asr", frames))[0]["text"]
    if windows == 1:
        assert result.text == text
    references = recognizer.database.enrolled().references
    for voice in result.speakers:
        assert voice.score == pytest.approx(float(references[0] @ np.array(voice.embedding)), abs=1e-4)
        assert {s.score for s in result.segments if s.speaker == voice.speaker} == {voice.score}


def test_segments_and_words_are_in_order_and_inside(recognizer: Recognizer) -> None:
    shares: list[float] = []
    result = recognizer.transcribe((speech(65.03), RATE), on_progress=shares.append)
    assert result.duration_s == 65.03 and shares == sorted(shares) and shares[-1] == 1
    for before, after in zip(result.segments, result.segments[1:], strict=False):
        assert before.end_s <= after.start_s
    for segment in result.segments:
        assert segment.text == " ".join(word.text for word in segment.words)
        times = [t for word in segment.words for t in (word.start_s, word.end_s)]
        assert times == sorted(times) and (segment.start_s, segment.end_s) == (times[0], times[-1])
        assert 0 <= times[0] and times[-1] <= result.duration_s
        for word in segment.words:
            assert word.speaker == segment.speaker and word.start_s < word.end_s
            assert 0 <= word.confidence <= 1 and 0 < (word.speaker_probability or 0) <= 1
        assert set(segment.labels) == {"gender"} and 0.5 <= segment.labels["gender"].probability <= 1
    assert {s.speaker for s in result.segments} == {v.speaker for v in result.speakers}
    assert result.speakers[0].speaker == "unknown 1" and result.fingerprint == recognizer.model.fingerprint


@pytest.mark.parametrize("duration_s", [0.1, 0.101, 30.0, 30.00001, 30.05, 60.06])
def test_short_recordings_and_short_rests_do_not_crash(recognizer: Recognizer, duration_s: float) -> None:
    assert recognizer.transcribe((speech(duration_s), RATE)).duration_s == pytest.approx(duration_s, abs=1e-3)
    assert recognizer.embed((speech(duration_s), RATE)).shape == (16,)


@pytest.mark.parametrize(("dtype", "device"), [(torch.float64, "cpu"), (torch.float32, "meta")])
def test_what_the_host_program_sets_for_its_own_tensors_changes_nothing(
    folder: Path, tmp_path: Path, dtype: torch.dtype, device: str
) -> None:
    db, audio = tmp_path / "speakers.db", (speech(2.0), RATE)
    expected = Recognizer.from_pretrained(folder, db=db).transcribe(audio)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        found = Recognizer.from_pretrained(folder, db=db).transcribe(audio)
    finally:
        torch.set_default_dtype(usual)
        torch.set_default_device(None)
    assert found == expected and found.text


def test_a_host_program_may_have_half_precision_on(recognizer: Recognizer) -> None:
    """Then products are coarser, and everything else is as usual."""
    audio = (speech(2.0), RATE)
    expected, voice = recognizer.transcribe(audio), recognizer.embed(audio)
    with torch.autocast("cpu", torch.bfloat16):
        found, same_voice = recognizer.transcribe(audio), recognizer.embed(audio)
        recognizer.enroll("ann", [audio])
        match = recognizer.identify(audio)
    assert same_voice.dtype == voice.dtype and float(voice @ same_voice) > 0.99
    assert [one.speaker for one in found.speakers] == [one.speaker for one in expected.speakers]
    assert match.best_name == "ann" and (match.score or 0) > 0.99


def test_loading_a_model_leaves_other_threads_tensors_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_default_dtype", lambda dtype: pytest.fail(f"all threads make {dtype} now"))
    Recognizer.from_pretrained(folder)


def test_silence_is_valid_and_has_no_text_and_no_speaker(recognizer: Recognizer) -> None:
    recognizer.enroll("ann", [(speech(2.0), RATE)])
    silence = (np.zeros(RATE, dtype=np.float32), RATE)
    runs = count_encoder_runs(recognizer)
    result = recognizer.transcribe(silence)
    assert not runs and result.text == "" and result.segments == [] and result.duration_s == 1
    assert result.notes == ["digital silence: no text, no speaker"]
    assert recognizer.identify(silence).speaker == "unknown"
    for action in (lambda: recognizer.embed(silence), lambda: recognizer.enroll("bob", [silence])):
        with pytest.raises(AudioError, match="digital silence; expected a voice"):
            action()
    assert recognizer.database.names() == ["ann"]


def test_the_number_of_voices_is_an_upper_bound(recognizer: Recognizer) -> None:
    assert len(recognizer.transcribe((speech(40.0), RATE), speakers=1).speakers) == 1
    many = recognizer.transcribe((speech(1.0), RATE), speakers=500)
    assert f"{len(many.speakers)} of the 500 voices asked for were told apart" in many.notes
    with pytest.raises(ValueError, match="speakers=0; expected 1 or more"):
        recognizer.transcribe((speech(1.0), RATE), speakers=0)


@pytest.mark.parametrize(("angles", "labels"), [
    ((20, 90), ["ann", "unknown 1"]),  # degrees from ann's enrolled voice
    ((40, 0, 55), ["unknown 1", "ann", "unknown 2"]),  # the nearest has the name; the threshold is at 60 degrees
    ((20, -35), ["ann", "unknown 1"]),  # on the other side of ann's: two people
    ((25, 40, -45), ["ann", "ann", "unknown 1"]),  # the first two are nearer to each other than to ann's: one person
])  # fmt: skip
def test_a_name_goes_to_one_voice_of_a_recording(
    recognizer: Recognizer, angles: tuple[int, ...], labels: list[str]
) -> None:
    size = recognizer.model.config.tasks["speaker"].embedding_dim
    radians = np.deg2rad(angles)
    centres = np.zeros((len(angles), size), dtype=np.float32)
    centres[:, 0], centres[:, 1] = np.cos(radians), np.sin(radians)
    found = Voices(np.arange(len(angles)), np.ones(len(angles)), centres, np.full(len(angles), 10.0))
    voices = voices_of(found, Enrolled(["ann"], np.eye(1, size, dtype=np.float32), {}), Calibration.of(0.5, ""))
    assert [voice.speaker for voice in voices] == labels


def test_two_voices_enrolled_as_one_name_both_have_it(recognizer: Recognizer) -> None:
    """As a person's two voices that were told apart, or names that were merged; the name's reference is their mean."""
    size = recognizer.model.config.tasks["speaker"].embedding_dim
    centres = np.zeros((3, size), dtype=np.float32)
    centres[:, :2] = [[np.cos(angle), np.sin(angle)] for angle in np.deg2rad([-30, 30, 58])]
    recognizer.database.add("ann", centres[:2])
    enrolled = recognizer.database.enrolled()
    found = Voices(np.arange(3), np.ones(3), centres, np.array([10.0, 20.0, 5.5]))
    calibration = Calibration.of(0.4, "")
    voices = voices_of(found, enrolled, calibration)
    assert [(voice.speaker, voice.speech_s) for voice in voices] == [("ann", 35.5)] * 3
    # a second counts as much as any other: 10 at -30 degrees, 20 at 30, 5.5 at 58
    np.testing.assert_allclose(voices[0].embedding[:2], normalized(found.seconds @ centres)[:2], atol=1e-5)
    assert voices[0].score == pytest.approx(voices[0].embedding[0], abs=1e-5)
    centres[2, :2] = [np.cos(np.deg2rad(61.5)), np.sin(np.deg2rad(61.5))]
    assert voices_of(found, enrolled, calibration)[-1].speaker == "unknown 1"


@pytest.mark.parametrize("seconds", [[0.7, 0.7], [0.7 + 0.2 + 0.1]])  # of these 0.9999999999999999 s
def test_a_name_is_never_below_its_threshold(seconds: list[float]) -> None:
    """Two phrases that together are held to the longer speech's threshold, and a voice on the edge of the two."""
    centres = normalized(np.array([[0.46, 0.893, 0.02], [0.45, 0.893, -0.02]][: len(seconds)]))
    found = Voices(np.arange(len(seconds)), np.ones(len(seconds)), centres, np.array(seconds))
    bands = ({"up_to_s": 1.0, "thresholds": [0.44]}, {"thresholds": [0.47]})
    enrolled = Enrolled(["ann"], np.eye(1, 3, dtype=np.float32), {})
    voices = voices_of(found, enrolled, Calibration.model_validate({"bands": bands}))
    assert [voice.speaker for voice in voices] == (["ann", "unknown 1"] if len(seconds) == 2 else ["unknown 1"])
    for voice in voices:
        assert voice.speaker == "unknown 1" or voice.score >= voice.threshold  # type: ignore[operator]


def test_a_voice_is_no_further_from_itself_than_from_its_name(recognizer: Recognizer) -> None:
    """A voice enrolled from this very recording scores 1, give or take the last digit."""
    size = recognizer.model.config.tasks["speaker"].embedding_dim
    centres = normalized(np.random.default_rng(0).normal(size=(50, size)))
    found = Voices(np.arange(50), np.ones(50), centres, np.full(50, 10.0))
    names = [f"person {i:02d}" for i in range(50)]
    voices = voices_of(found, Enrolled(names, centres, {}), Calibration.of(0.9, ""))
    assert [voice.speaker for voice in voices] == names


def test_a_voice_that_another_keeps_from_a_name_says_so(
    recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    recognizer.enroll("ann", [(speech(2.0, seed=1), RATE)])
    [ann] = recognizer.database.enrolled().references
    other = 0.8 * ann + 0.6 * np.linalg.svd(ann[None])[2][-1]
    gender = {"gender": np.log([0.5, 0.5])}
    pieces = [Phrase([decode.Word("hello", start_s, start_s + 0.5, 0.9)], ann, gender) for start_s in (0.0, 2.0)]
    found = Voices(np.array([0, 1]), np.ones(2), np.stack([ann, other]), np.full(2, 10.0))
    monkeypatch.setattr("speech_mtl.recognizer.find_voices", lambda phrases, population, count: found)
    heard = Hearing("meeting.wav", Stitch(recognizer.model))
    heard.phrases = [dataclasses.replace(piece, pieces=[piece]) for piece in pieces]
    result = Recognizer(recognizer.model, Calibration.of(0.5, ""), recognizer.db)._result(
        heard, asr_of(recognizer.model), None, recognizer.database.enrolled()
    )
    assert [segment.speaker for segment in result.segments] == ["ann", "unknown 1"]
    assert "unknown 1 is like ann (0.80), but another voice has the name" in result.notes
    assert "[unknown 1 0.80 ≥ 0.5, not ann]" in format_result(result, "txt")


def test_identify_verify_and_thresholds(recognizer: Recognizer, folder: Path, tmp_path: Path) -> None:
    a, b = (speech(1.5, seed=1), RATE), (speech(1.5, seed=2), RATE)
    assert recognizer.remarks()[1].startswith(f"nobody is enrolled in {tmp_path}/speakers.db")
    assert recognizer.identify(a).speaker == "unknown"
    assert recognizer.enroll("ann", [a]) == ["ann: 1.5 s of speech enrolled; 5 s or more are recognised better"]
    assert len(recognizer.remarks()) == 1
    found = recognizer.identify(a)
    assert (found.speaker, found.best_name) == ("ann", "ann") and found.score == pytest.approx(1, abs=1e-5)
    assert (found.threshold, found.probability, found.speech_s) == (0.5, None, 1.46)
    same = recognizer.verify(a, a)
    assert same.score == pytest.approx(1, abs=1e-5) and (same.same, same.threshold) == (True, 0.5)
    assert (same.audio, same.notes) == (["samples 1", "samples 2"], [])
    loud = np.clip(20 * speech(1.5), -1, 1)
    soundfile.write(tmp_path / "loud.wav", loud, RATE)
    mixed = recognizer.verify(a, tmp_path / "loud.wav")
    assert mixed.audio == ["samples", str(tmp_path / "loud.wav")] and "loud.wav: clipped: " in mixed.notes[0]
    assert "not measured" in recognizer.calibration.note
    strict = Recognizer.from_pretrained(folder, db=tmp_path / "speakers.db", threshold=1.0)
    found = strict.identify(b)
    assert (found.speaker, found.best_name) == ("unknown", "ann") and (found.score or 1) < 1
    segment = strict.transcribe(b).segments[0]
    assert (segment.speaker, segment.best_name) == ("unknown 1", "ann") and (segment.score or 1) < 1
    assert all(word.speaker == "unknown 1" for word in segment.words)


def test_a_voice_of_a_result_gets_its_name_once(recognizer: Recognizer) -> None:
    result = recognizer.transcribe((speech(5.0), RATE), speakers=1)
    with pytest.raises(SpeakerDatabaseError, match="speaker name"):
        recognizer.enroll_voice("unknown 2", result, "unknown 1")
    [remark] = recognizer.enroll_voice(" bob ", result, "unknown 1")
    assert remark == "bob: 4.8 s of speech enrolled; 5 s or more are recognised better"
    with pytest.raises(EnrolmentError, match="samples, unknown 1: enrolled already under 'bob'; nothing is new"):
        recognizer.enroll_voice("bob", result, "unknown 1", force=True)
    assert len(recognizer.database.utterances()["bob"]) == 1
    assert recognizer.transcribe((speech(5.0), RATE), speakers=1).speakers[0].speaker == "bob"
    for change, message in (
        ({"fingerprint": ""}, "samples: an alignment, which knows no voices"),
        ({"fingerprint": "other"}, "samples was transcribed by another model .fingerprint other"),
        ({"speakers": []}, "samples: no voice 'unknown 1'; its voices: none"),
    ):
        with pytest.raises(AudioError, match=message):
            recognizer.enroll_voice("eve", dataclasses.replace(result, **change), "unknown 1")


def test_names_are_the_same_whichever_way_they_are_given(
    recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "a.wav", speech(2.0), RATE)
    recognizer.enroll(" anna ", str(tmp_path / "a.wav"))  # one recording, not its letters
    with pytest.raises(EnrolmentError, match="enrolled already under 'anna'"):
        recognizer.enroll("anna ", tmp_path / "a.wav")
    with pytest.raises(EnrolmentError, match="samples: enrolled already under 'anna'"):
        recognizer.enroll("anna", soundfile.read(tmp_path / "a.wav"))
    assert list(recognizer.database.utterances()) == ["anna"] and len(recognizer.database.utterances()["anna"]) == 1
    assert [type(found) for found in recognizer.transcribe_all(str(tmp_path / "a.wav"))] == [Result]
    monkeypatch.setattr(recognizer, "listen", lambda audio: pytest.fail("a name that cannot be used is refused first"))
    with pytest.raises(SpeakerDatabaseError, match="speaker name 'unknown'"):
        recognizer.enroll("unknown", tmp_path / "a.wav")


def test_samples_of_several_recordings_are_told_apart(recognizer: Recognizer) -> None:
    good, short = (speech(1.0), RATE), (speech(0.05), RATE)
    found = list(recognizer.transcribe_all([good, good, short]))
    assert [one.audio for one in found[:2]] == ["samples 1", "samples 2"] and "samples 3: lasts" in str(found[2])
    with pytest.raises(AudioError, match="^samples 2: lasts"):
        recognizer.enroll("ann", [good, short])
    assert recognizer.transcribe(good).audio == "samples"


def test_what_is_no_recording_is_refused_like_one_that_cannot_be_read(recognizer: Recognizer) -> None:
    samples = speech(1.0)
    expected = "^ndarray is no recording; expected a file's path, or .samples, rate.$"
    with pytest.raises(AudioError, match=expected):
        recognizer.transcribe(samples)  # type: ignore[arg-type]
    good, bad = recognizer.transcribe_all([(samples, RATE), samples])  # type: ignore[list-item]
    assert isinstance(good, Result) and re.match(expected, str(bad))
    with pytest.raises(AudioError, match="^float32 is no recording"):
        recognizer.enroll("ann", samples)  # type: ignore[arg-type]
    with pytest.raises(EnrolmentError, match="no recording of 'ann' is given; expected one or more"):
        recognizer.enroll("ann", [])


def test_a_stored_result_is_read_again(recognizer: Recognizer) -> None:
    result = recognizer.transcribe((speech(20.0), RATE))
    again = Result.from_json(format_result(result, "json"))
    assert again == result and format_result(again, "srt") == format_result(result, "srt")
    for text in ("[1]", '{"audio": "a"}', "no json", '{"audio": "a", "duration_s": 1, "segments": 5}'):
        with pytest.raises(ValueError, match="found"):
            Result.from_json(text)


def test_noise_one_word_and_eight_channels(recognizer: Recognizer, tmp_path: Path) -> None:
    """What is no speech gives a result, too: every word timed and under a speaker, or a note that there is none."""
    rng = np.random.default_rng(0)
    time_s = np.arange(5 * RATE) / RATE
    music = sum(0.1 * np.sin(2 * np.pi * f * time_s) for f in (220, 277, 330))
    soundfile.write(tmp_path / "eight.wav", np.tile(speech(3.0)[:, None], (1, 8)), RATE)
    bundled = Recognizer.from_pretrained(db=tmp_path / "bundled.db")
    for audio in ((rng.normal(0, 0.1, 5 * RATE), RATE), (music, RATE), (speech(0.3), RATE), tmp_path / "eight.wav"):
        for each in (recognizer, bundled):
            result = each.transcribe(audio)
            words = [word for segment in result.segments for word in segment.words]
            assert words or result.notes == ["no words were recognised"]
            assert all(word.start_s < word.end_s <= result.duration_s and word.speaker for word in words)
    loud = recognizer.transcribe((np.clip(rng.normal(0, 9, 5 * RATE), -1, 1), RATE))
    assert "clipped" in loud.notes[0] and (loud.text or loud.notes[1:] == ["no words were recognised"])
    loud = bundled.transcribe((np.clip(rng.normal(0, 9, 5 * RATE), -1, 1), RATE))
    assert not loud.text and loud.notes[1:] == ["no words were recognised"]
    one = recognizer.transcribe((speech(3.0), RATE)).segments
    assert recognizer.transcribe(tmp_path / "eight.wav").text == " ".join(segment.text for segment in one)


def test_the_database_is_read_once_before_the_first_recording(
    recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program that holds it later costs nothing of what is heard."""
    recognizer.enroll("ann", [(speech(2.0, seed=1), RATE)])
    monkeypatch.setattr("speech_mtl.speakers.BUSY_TIMEOUT_S", 0.05)
    holder = sqlite3.connect(recognizer.database.path, isolation_level=None)
    later = Recognizer(recognizer.model, Calibration.of(0.5, ""), recognizer.db)

    def audios() -> Iterator[Audio]:
        for seed in range(3):
            yield speech(20.0 * (seed + 1), seed=seed), RATE
            holder.in_transaction or holder.execute("BEGIN EXCLUSIVE")

    expected = list(recognizer.transcribe_all([(speech(20.0 * (seed + 1), seed=seed), RATE) for seed in range(3)]))
    try:
        found = list(later.transcribe_all(audios(), on_segment=lambda name, segment: None))
        with pytest.raises(SpeakerDatabaseError, match="locked"):
            next(later.transcribe_all(audios()))
    finally:
        holder.close()
    assert [one.speakers for one in found] == [one.speakers for one in expected] and found[0].speakers


def test_enrolling_is_all_or_nothing(recognizer: Recognizer) -> None:
    with pytest.raises(AudioError):
        recognizer.enroll("ann", [(speech(1.2), RATE), (speech(0.05), RATE)])
    assert recognizer.database.names() == []


def test_the_file_and_its_samples_give_the_same(recognizer: Recognizer, tmp_path: Path) -> None:
    samples = speech(1.0)
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    from_file, from_samples = recognizer.transcribe(tmp_path / "a.wav"), recognizer.transcribe((samples, RATE))
    assert from_file.segments == from_samples.segments and from_file.audio.endswith("a.wav")


@pytest.mark.parametrize(("rate", "channels", "offset"), [(8000, 1, 0.0), (16000, 1, 0.05), (44100, 2, 0.0)])
def test_a_file_gives_what_evaluating_it_gives(
    recognizer: Recognizer, tmp_path: Path, rate: int, channels: int, offset: float
) -> None:
    """Training and evaluation read audio through lhotse; use must hear the same."""
    samples = np.repeat(resample(speech(3.0), RATE, rate)[:, None], channels, axis=1) + offset
    soundfile.write(tmp_path / "a.wav", samples, rate)
    cuts = [Recording.from_file(tmp_path / "a.wav").to_cut().with_id(f"cut-{i}") for i in range(6)]
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl")
    row, *_ = evaluate_rows(recognizer.model, read_cuts([tmp_path / "cuts.jsonl"]))
    result = recognizer.transcribe(tmp_path / "a.wav")
    assert row["asr"]["hyp"] == result.text
    assert [(w["text"], w["start_s"]) for w in row["asr"]["words"]] == [
        (w.text, w.start_s) for segment in result.segments for w in segment.words
    ]


def test_a_threshold_from_before_calibrations_is_read_and_checked(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    measured = {"speaker": {"threshold": 0.37, "measured_on": "AN4 dev, EER"}}
    (folder / "thresholds.json").write_text(json.dumps(measured))
    calibration = Recognizer.from_pretrained(folder, db=tmp_path / "s.db").calibration
    assert (calibration.threshold(3.0), calibration.note) == (0.37, "speaker threshold 0.37 (AN4 dev, EER)")
    for broken in ("{", "[]", '{"speaker": {"threshold": "high", "measured_on": ""}}', '{"speaker": {"threshold": 3}}'):
        (folder / "thresholds.json").write_text(broken)
        with pytest.raises(CheckpointError, match="thresholds.json"):
            Recognizer.from_pretrained(folder)


def test_tasks_the_model_lacks_are_named(tmp_path: Path) -> None:
    a = (speech(1.5), RATE)
    listener = Recognizer.from_pretrained(save_tiny(tmp_path / "asr", speaker=None), db=tmp_path / "s.db")
    result = listener.transcribe(a)
    assert result.text and result.segments[0].speaker is None and not result.speakers
    assert format_result(result, "rttm") == ""
    with pytest.raises(CheckpointError, match="no speaker task; its tasks: asr"):
        listener.identify(a)
    knower = Recognizer.from_pretrained(save_tiny(tmp_path / "speaker", asr=None), db=tmp_path / "s.db")
    knower.enroll("ann", [a])
    assert knower.identify(a).speaker == "ann"
    with pytest.raises(CheckpointError, match="no asr task; its tasks: speaker"):
        knower.transcribe(a)


def test_another_models_speakers_are_refused(recognizer: Recognizer, tmp_path: Path) -> None:
    recognizer.enroll("ann", [(speech(1.5), RATE)])
    other = Recognizer.from_pretrained(save_tiny(tmp_path / "other", seed=1), db=tmp_path / "speakers.db")
    with pytest.raises(SpeakerDatabaseError, match="another model"):
        other.transcribe((speech(1.0), RATE))


def made_up() -> Result:
    """Two speakers, a silent segment, a name with a space, markup in a text."""

    def words(text: str, start_s: float, speaker: str) -> list[Word]:
        return [Word(w, start_s + 0.5 * i, start_s + 0.5 * i + 0.4, 0.9, speaker) for i, w in enumerate(text.split())]

    return Result(
        "some folder/two voices.wav", 3700.0, "speaker threshold 0.5 (nothing)",
        [
            Segment(
                0.0, 5.0, "hello <there>", words("hello <there>", 0.25, "Ann Lee"), "Ann Lee", 0.8312, "Ann Lee", {},
                0.5,
            ),
            Segment(5.0, 9.0, "", [], "unknown", None, None, {}),
            Segment(
                3670.0, 3700.0, "word " * 29 + "end", words("word " * 29 + "end", 3671.0, "unknown"), "unknown", 0.4999,
                "Ann Lee", {"gender": Label("female", 0.75)}, 0.5,
            ),
        ],
    )  # fmt: skip


def test_txt_shows_who_and_the_threshold() -> None:
    lines = format_result(made_up(), "txt").splitlines()
    assert lines[1] == "  0.00-5.00  [Ann Lee 0.83 ≥ 0.5]  hello <there>"
    assert lines[2] == "  5.00-9.00  [unknown]"
    assert lines[3].startswith("  3670.00-3700.00  [unknown 0.4999 < 0.5]  word word")
    assert lines[3].endswith("end  gender female 0.75")


@pytest.mark.parametrize(
    ("score", "shown"), [(0.5, "a 0.5000 ≥ 0.5"), (0.497, "a 0.4970 < 0.5"), (-0.2, "a -0.20 < 0.5")]
)
def test_score_and_sign_never_contradict(score: float, shown: str) -> None:
    assert who(Segment(0, 1, "", [], "a", score, "a", {}, 0.5)) == shown


def test_json_holds_everything() -> None:
    result = made_up()
    text = format_result(result, "json")
    assert text.count("\n") == 1
    parsed = json.loads(text)
    assert parsed["text"] == result.text and parsed["calibration"] == "speaker threshold 0.5 (nothing)"
    assert parsed["segments"][0]["words"][1] == dataclasses.asdict(result.segments[0].words[1])
    assert parsed["segments"][1]["score"] is None
    assert parsed["segments"][2]["labels"] == {"gender": {"label": "female", "probability": 0.75}}


def seconds(clock: str) -> float:
    hours, minutes, rest = re.fullmatch(r"(\d\d):(\d\d):(\d\d[.,]\d{3})", clock).groups()  # type: ignore[union-attr]
    return 3600 * int(hours) + 60 * int(minutes) + float(rest.replace(",", "."))


@pytest.mark.parametrize("fmt", ["srt", "vtt"])
def test_subtitles_parse_back(fmt: str) -> None:
    result = made_up()
    blocks = format_result(result, fmt).strip().split("\n\n")
    if fmt == "vtt":
        assert blocks[:2] == ["WEBVTT", "NOTE speaker threshold 0.5 (nothing)"]
        blocks = blocks[2:]
        assert blocks[0].startswith("1 Ann Lee 0.83 ≥ 0.5\n") and "<v Ann Lee>hello" in blocks[0]
    else:
        assert "[Ann Lee 0.83 ≥ 0.5] hello" in blocks[0]
    assert [int(block.split()[0]) for block in blocks] == list(range(1, len(blocks) + 1))
    end_s, texts = 0.0, []
    for block in blocks:
        _, times, *lines = block.split("\n")
        text = " ".join(lines)
        assert len(lines) <= 2 and max(map(len, lines)) <= 42 + 12  # the tag and the escapes
        start_s, next_end_s = (seconds(clock) for clock in times.split(" --> "))
        assert end_s <= start_s < next_end_s <= start_s + 7
        end_s = next_end_s
        texts.append(re.sub(r"^(\[.*?\] |<v .*?>)", "", text))
    said = " ".join(texts).replace("&lt;", "<").replace("&gt;", ">")
    assert said == result.text


def test_rttm_parses_back() -> None:
    rows = [line.split(" ") for line in format_result(made_up(), "rttm").splitlines()]
    assert all(len(row) == 10 and row[0] == "SPEAKER" and row[1] == "two_voices" for row in rows)
    assert [(float(row[3]), float(row[4]), row[7], float(row[8])) for row in rows] == [
        (0.0, 5.0, "Ann_Lee", 0.8312), (3670.0, 30.0, "unknown", 0.4999),
    ]  # fmt: skip


def test_ctm_parses_back() -> None:
    result = made_up()
    rows = [line.split(" ") for line in format_result(result, "ctm").splitlines()]
    words = [word for segment in result.segments for word in segment.words]
    assert [row[4] for row in rows] == [word.text for word in words]
    for row, word in zip(rows, words, strict=True):
        assert row[:2] == ["two_voices", "1"]
        assert float(row[2]) == pytest.approx(word.start_s) and float(row[3]) == pytest.approx(0.4)
        assert float(row[5]) == 0.9


@pytest.mark.parametrize("fmt", FORMATS)
def test_every_format_takes_a_real_result(recognizer: Recognizer, fmt: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", speech(2.0), RATE)
    text = format_result(recognizer.transcribe(tmp_path / "a.wav"), fmt)
    assert text.endswith("\n") and "nan" not in text


def test_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="accepted: txt, json"):
        format_result(made_up(), "docx")
