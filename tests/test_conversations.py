"""Simulated conversations hold what their truth says, and their scores are right on cases worked by hand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from conftest import RATE, make_corpus, tiny_values
from lhotse import CutSet, Recording, SupervisionSegment
from lhotse.utils import fastcopy
from test_cli import call
from test_recognizer import save_tiny

import data_prep
from data_prep.common import PrepareError
from speech_mtl.audio import cut_audio
from speech_mtl.cli_conversations import table
from speech_mtl.config import parse_config
from speech_mtl.conversations import _under_the_right_name, diarization_errors, score, speaker_word_errors, summarize
from speech_mtl.recognizer import Recognizer
from speech_mtl.results import Result, Segment, Word


def simulate(folder: Path, **options: object) -> list:
    source = folder / "source.jsonl.gz"
    if not source.exists():
        Path(make_corpus(folder / "single", 6, seed=5)).rename(source)
    data_prep.prepare("conversations", source, folder / "out", **{"conversations": 2, "speakers": 3, **options})
    return list(CutSet.from_file(folder / "out" / "conversations.jsonl.gz"))


def test_a_simulated_conversation_holds_what_its_truth_says(tmp_path: Path) -> None:
    cuts = simulate(tmp_path, minutes=0.5)
    assert len(cuts) == 2
    for cut in cuts:
        samples = cut.load_audio()[0]
        assert 20 < cut.duration <= 32 and len({s.speaker for s in cut.supervisions}) == 3
        spoken = np.zeros(len(samples), dtype=bool)
        for before, after in zip(cut.supervisions, cut.supervisions[1:], strict=False):
            assert after.start >= before.end + 0.099
        for s in cut.supervisions:
            part = samples[round(s.start * RATE) : round(s.end * RATE)]
            spoken[round((s.start - 0.26) * RATE) : round((s.end + 0.26) * RATE)] = True
            assert s.text and part.std() > 0.01
        assert samples[~spoken].std() < 0.001
    again = simulate(tmp_path / "again", minutes=0.5)
    assert [s.start for s in again[0].supervisions] == [s.start for s in cuts[0].supervisions]


def test_a_telephone_takes_its_band_and_nothing_else(tmp_path: Path) -> None:
    whole, called = (simulate(tmp_path, minutes=0.3, telephone=share) for share in (0.0, 1.0))
    for before, after in zip(whole, called, strict=True):
        assert (before.sampling_rate, after.sampling_rate) == (16000, 8000)
        assert abs(after.duration - before.duration) < 0.001
        assert [(s.start, s.text) for s in after.supervisions] == [(s.start, s.text) for s in before.supervisions]
        powers_K = [np.abs(np.fft.rfft(cut.load_audio()[0])) ** 2 for cut in (before, after)]
        hz_K = [np.fft.rfftfreq(cut.recording.num_samples, 1 / cut.sampling_rate) for cut in (before, after)]
        for low, high, gain in ((50, 120, 0.0), (500, 3000, 1 / 4), (3800, 4000, 0.0)):  # half the rate, half the sums
            sums = [power[(low < hz) & (hz < high)].sum() for power, hz in zip(powers_K, hz_K, strict=True)]
            assert sums[1] / sums[0] == pytest.approx(gain, abs=0.03)


def test_a_preparation_that_is_stopped_leaves_the_last_one_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = simulate(tmp_path, minutes=0.3)
    before = [cut.load_audio() for cut in cuts]
    module = data_prep.load("conversations")
    written: list[Path] = []

    def cut_and_stop(path: Path, name: str, supervisions: list) -> object:
        written.append(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_cut", cut_and_stop)
    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path, minutes=0.2)
    assert written[0].exists()  # the first recording of the second call
    assert all(np.array_equal(cut.load_audio(), samples) for cut, samples in zip(cuts, before, strict=True))


def test_a_source_whose_sound_is_gone_or_without_a_cut(tmp_path: Path) -> None:
    simulate(tmp_path, minutes=0.2)
    for path in (tmp_path / "single").glob("*.wav"):
        path.unlink()
    with pytest.raises(PrepareError, match="cut '.*': .*wav cannot be read: Error opening"):
        simulate(tmp_path, minutes=0.2)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(PrepareError, match="empty.jsonl is empty"):
        data_prep.prepare("conversations", tmp_path / "empty.jsonl", tmp_path / "out")


def test_overlap_noise_and_room(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "hum.wav", 0.5 * np.sin(np.arange(5 * RATE) * 0.05), RATE)
    noise = Recording.from_file(tmp_path / "hum.wav", recording_id="hum").to_cut()
    CutSet.from_cuts([noise]).to_file(tmp_path / "noise.jsonl.gz")
    [quiet, *_] = simulate(tmp_path / "a", minutes=0.5, seed=3)
    [cut, *_] = simulate(
        tmp_path / "b", minutes=0.5, overlap=1.0, noise=tmp_path / "noise.jsonl.gz", snr_db=-10.0, room=0.3, seed=3
    )
    pairs = list(zip(cut.supervisions, cut.supervisions[1:], strict=False))
    assert any(b.start < a.end for a, b in pairs) and all(a.start <= b.start for a, b in pairs)
    hum = np.abs(np.fft.rfft(cut.load_audio()[0]))
    assert abs(hum.argmax() / cut.duration - 0.05 * RATE / (2 * np.pi)) < 2
    assert quiet.load_audio()[0][: RATE // 50].std() < 0.001


def test_in_a_room_speech_keeps_its_time_and_level(tmp_path: Path) -> None:
    """Levels of voices differ by the drawn distance alone, and the sound begins where the truth says."""
    dry, wet = (simulate(tmp_path / str(room), minutes=0.5, seed=3, room=room)[0] for room in (0.0, 0.4))
    loud = np.abs(dry.load_audio()[0]).max()
    samples = wet.load_audio()[0]
    for s in wet.supervisions:
        start, end = round(s.start * RATE), round(s.end * RATE)
        before, first = samples[start - 800 : start - 160].std(), samples[start : start + 480].std()
        assert first > 3 * before and samples[start:end].std() > 0.03 * loud


def test_nobody_speaks_over_himself(tmp_path: Path) -> None:
    for speakers in (1, 2):
        folder = tmp_path / str(speakers)
        for cut in simulate(folder, minutes=0.5, seed=3, overlap=1.0, backchannels=0.5, speakers=speakers):
            for name in {s.speaker for s in cut.supervisions}:
                own = sorted((s for s in cut.supervisions if s.speaker == name), key=lambda s: s.start)
                assert all(a.end <= b.start for a, b in zip(own, own[1:], strict=False))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speakers": 9}, "3 speakers with a text; expected 9"), ({"overlap": 2.0}, "option overlap: 2.0"),
        ({"minutes": 0.0}, "option minutes"), ({"room": 3.0}, "option room"),
        ({"conversations": 0}, "conversations: 0"),
        ({"audio": "x"}, "'audio' is unknown for conversations"),
    ],
)  # fmt: skip
def test_wrong_options_are_named(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(PrepareError, match=message):
        simulate(tmp_path, **options)


TRUTH = [("ann", "one two three", 0.0, 2.0), ("bob", "four five", 3.0, 5.0), ("ann", "six", 6.0, 8.0)]


def test_word_errors_by_speaker_worked_by_hand() -> None:
    """A word under the wrong voice is deleted from one and inserted into the other."""
    perfect = [("unknown 2", text, a, b) if name == "ann" else ("x", text, a, b) for name, text, a, b in TRUTH]
    assert speaker_word_errors(TRUTH, perfect) == {"errors": 0, "words": 6}
    moved = [perfect[0], perfect[1], ("x", "six", 6.0, 8.0)]
    assert speaker_word_errors(TRUTH, moved)["errors"] == 2
    late = [(name, text, a + 60, b + 60) for name, text, a, b in perfect]
    assert speaker_word_errors(TRUTH, late)["errors"] == 0 and speaker_word_errors(TRUTH, late, 5.0)["errors"] == 12
    assert speaker_word_errors(TRUTH, []) == {"errors": 6, "words": 6}


def test_diarization_errors_worked_by_hand() -> None:
    """6 s of speech, of which 0.25 s at each of six edges are not scored: 4.5 s."""
    right = [(f"u{name}", text, a, b) for name, text, a, b in TRUTH]
    nothing_wrong = {"total": 4.5, "missed": 0.0, "false_alarm": 0.0, "confusion": 0.0}
    assert diarization_errors(TRUTH, right, 9.0) == nothing_wrong
    near = [(name, text, a - 0.2, b + 0.2) for name, text, a, b in right]
    assert diarization_errors(TRUTH, near, 9.0) == nothing_wrong
    other = [right[0], right[1], ("ubob", "six", 6.0, 8.0)]
    assert diarization_errors(TRUTH, other, 9.0)["confusion"] == 1.5
    assert diarization_errors(TRUTH, right[:2], 9.0)["missed"] == 1.5
    longer = [*right, ("uann", "x", 8.0, 9.0)]
    assert diarization_errors(TRUTH, longer, 9.0)["false_alarm"] == 0.75


def test_strangers_and_enrolled_voices_are_counted_apart() -> None:
    said = Counter({
        ("ann", "ann"): 5, ("ann", "unknown 1"): 2, ("ann", "bob"): 1, ("bob", "bob"): 3, ("cid", "ann"): 2,
        ("cid", "unknown 1"): 4,
    })  # fmt: skip
    assert _under_the_right_name(said, {"ann", "bob"}) == 5 + 3 + 4
    assert _under_the_right_name(said, set()) == 5 + 3 + 4  # 'unknown 1' is cid


def scored(words: list[tuple[str, float, float, str | None]], together: bool = False) -> dict:
    """The row of a transcript, each word a segment of its own or all of them one.

    Ann and bob, who begins before she is done, are enrolled, cid is not.
    """
    said = [("ann", "One two", 0.0, 2.0), ("bob", "uh", 1.0, 1.6), ("bob", "three", 3.0, 4.0),
            ("cid", "four five", 5.0, 7.0)]  # fmt: skip
    cut = Recording("talk", [], RATE, 9 * RATE, 9.0).to_cut()
    cut.supervisions = [SupervisionSegment(t, "talk", a, b - a, text=t, speaker=name) for name, t, a, b in said]
    segments = [Segment(a, b, t, [Word(t, a, b, 1.0, name)], name, None, None, {}) for t, a, b, name in words]
    if together:
        text, all_words = " ".join(s.text for s in segments), [word for s in segments for word in s.words]
        segments = [Segment(words[0][1], words[-1][2], text, all_words, words[0][3], None, None, {})]
    config = parse_config(tiny_values({"train": "", "dev": ""}), "test")
    recognizer = SimpleNamespace(
        model=SimpleNamespace(config=config), database=SimpleNamespace(names=lambda: ["ann", "bob"])
    )
    return score(Result("talk", 9.0, "", segments), cut, recognizer)  # type: ignore[arg-type]


def test_a_conversation_scored_by_hand() -> None:
    right = scored([
        ("one", 0.2, 0.6, "ann"), ("two", 0.7, 1.0, "ann"), ("uh", 1.1, 1.5, "bob"), ("three", 3.0, 4.0, "bob"),
        ("four", 5.0, 6.0, "unknown 1"), ("five", 6.0, 7.0, "unknown 1"),
    ])  # fmt: skip
    assert right["errors"]["words"] == right["named"] == right["words"] == right["cp"]["words"] == 6
    assert [right[part]["errors"] for part in ("cp", "tcp", "strangers", "known")] == [0, 0, 0, 0]
    assert (
        right["speakers"] == right["voices"] == 3 and right["errors"]["char_errors"] == right["der"]["confusion"] == 0
    )
    wrong = scored([
        ("one", 0.2, 0.6, "ann"), ("uh", 1.0, 1.4, "bob"), ("two", 1.2, 1.5, "unknown 1"),  # ann speaks, and bob
        ("er", 2.5, 2.9, "ann"),  # between ann and bob, nearer to bob
        ("three", 3.2, 3.8, "bob"), ("four", 5.2, 5.8, "bob"), ("five", 6.0, 6.6, "unknown 2"),
        ("six", 7.5, 7.9, None),  # after cid, who is nobody's
    ])  # fmt: skip
    assert (wrong["named"], wrong["words"], wrong["enrolled"], wrong["voices"]) == (5, 8, 2, 5)
    assert wrong["strangers"] == {"words": 3, "errors": 1} and wrong["known"] == {"words": 5, "errors": 1}
    assert [wrong["errors"][name] for name in ("words", "substitutions", "deletions", "insertions")] == [6, 1, 0, 2]
    # two is er for ann, bob has four too many, cid lacks it, and two voices of a word each are nobody's
    assert wrong["cp"] == wrong["tcp"] == {"errors": 5, "words": 6}
    paused = scored([("one", 0.2, 0.6, "ann"), ("two", 0.7, 1.0, "ann"), ("er", 29.0, 29.4, "ann")], together=True)
    assert paused["cp"] == paused["tcp"] == {"errors": 5, "words": 6}  # words stand where they were heard
    for start_s, errors in ((4.0, 4), (8.0, 6)):  # what is more than 5 s late are two wrong words of cid
        late = scored([("one two", start_s, start_s + 0.9, "ann")])
        assert (late["cp"]["errors"], late["tcp"]["errors"]) == (4, errors)

    ders = [{"total": 4.0, "missed": 0.5, "false_alarm": 0.25, "confusion": 0.0},
            {"total": 6.0, "missed": 0.0, "false_alarm": 0.0, "confusion": 0.75}]  # fmt: skip
    rows = [
        row | {"der": der, "duration_s": 9.0, "compute_s": 0.9} for row, der in zip((right, wrong), ders, strict=True)
    ]
    found = summarize(rows)
    assert (found["asr"]["wer"], found["cpwer"], found["tcpwer"]) == (0.25, 0.416667, 0.416667)
    assert (found["der"], found["der_s"]["missed"], found["voices_right"]) == (0.15, 0.5, 1)
    assert (found["recognised_words"], found["named"]) == (14, 0.785714)
    assert (found["strangers_named"], found["enrolled_not_named"]) == (0.2, 0.111111)
    assert found["cost"] == {"audio_s": 18.0, "rtf": 0.1} and found["conversations"] == 2
    found = summarize([*rows, right | {"voices": 2, "der": ders[0], "duration_s": 9.0, "compute_s": 0.9}])
    assert (found["voices_right"], found["voices_too_few"]) == (1, 1)
    assert "1 of 3 conversations (1 too few, 1 too many)" in table(found)


def test_names_are_compared_as_they_are_enrolled(tmp_path: Path) -> None:
    """Decomposed letters, as folders of some systems have them, and spaces."""
    model = save_tiny(tmp_path / "model")
    recognizer = Recognizer.from_pretrained(model, db=tmp_path / "speakers.db")
    (cut, *_), name = simulate(tmp_path, minutes=0.3), "Zoe\u0308  Li"
    renamed = cut.map_supervisions(lambda s: fastcopy(s, speaker=name))
    recognizer.enroll(name, [cut_audio(cut)], force=True)
    for said_by in (recognizer.database.names()[0], "unknown 1"):
        words = [Word("a", s.start, s.end, 1.0, said_by) for s in cut.supervisions]
        segments = [Segment(words[0].start_s, words[-1].end_s, "a", words, said_by, None, None, {})]
        row = score(Result("x", cut.duration, "", segments), renamed, recognizer)
        assert row["named"] == (len(words) if said_by != "unknown 1" else 0) and row["strangers"]["words"] == 0


def test_evaluate_conversations(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    cuts = simulate(tmp_path, minutes=0.3)
    manifest, single = tmp_path / "out" / "conversations.jsonl.gz", tmp_path / "source.jsonl.gz"
    result = call("evaluate", model, manifest, "--conversations", "--enroll", single, "--out", tmp_path / "eval")
    assert result.exit_code == 0, result.output
    assert "cpWER" in result.stdout and "words under the right name" in result.stdout
    summary = json.loads((tmp_path / "eval" / "summary.json").read_text())
    words = sum(len((s.text or "").split()) for cut in cuts for s in cut.supervisions)
    assert summary["asr"]["words"] == words and summary["enrolled"] == 3 and summary["conversations"] == 2
    assert 0 <= summary["named"] <= 1 and summary["der_s"]["total"] > 0
    assert summary["strangers_named"] is None and 0 <= summary["enrolled_not_named"] <= 1
    assert "strangers' words named" not in result.stdout and "enrolled speakers' words not named" in result.stdout
    rows = [json.loads(line) for line in (tmp_path / "eval" / "conversations.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [cut.id for cut in cuts]
    said = json.loads((tmp_path / "eval" / f"{cuts[0].id}.json").read_text())
    assert rows[0]["words"] == sum(len(s["words"]) for s in said["segments"])
    sound = Path(cuts[0].recording.sources[0].source)
    sound.rename(tmp_path / "elsewhere")
    result = call("evaluate", model, manifest, "--conversations", "--out", tmp_path / "eval")
    assert result.exit_code == 1 and f"error: cut '{cuts[0].id}': " in result.stderr
    summary = json.loads((tmp_path / "eval" / "summary.json").read_text())
    assert (summary["conversations"], summary["failed"]) == (1, 1)
    rows = [json.loads(line) for line in (tmp_path / "eval" / "conversations.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [cut.id for cut in cuts] and ["error" in row for row in rows] == [True, False]
    kept = [(tmp_path / "eval" / f"{cut.id}.json").exists() for cut in cuts]
    assert kept == [False, True]  # no transcript of a row that is no more
    CutSet.from_cuts(cuts[:1]).to_file(tmp_path / "gone.jsonl.gz")
    result = call("evaluate", model, tmp_path / "gone.jsonl.gz", "--conversations", "--out", tmp_path / "eval")
    assert result.exit_code == 1 and not (tmp_path / "eval" / "summary.json").exists()  # not that of other rows
    (tmp_path / "elsewhere").rename(sound)
    bare = cuts[0].map_supervisions(lambda s: SupervisionSegment(s.id, s.recording_id, s.start, s.duration, text="a"))
    CutSet.from_cuts([bare]).to_file(tmp_path / "bare.jsonl.gz")
    result = call("evaluate", model, tmp_path / "bare.jsonl.gz", "--conversations", "--out", tmp_path / "eval")
    assert result.exit_code == 1 and "lacks a text or a speaker" in result.stderr
    half = cuts[0].truncate(duration=cuts[0].supervisions[-1].start + 0.2)
    CutSet.from_cuts([half]).to_file(tmp_path / "half.jsonl.gz")
    result = call("evaluate", model, tmp_path / "half.jsonl.gz", "--conversations", "--out", tmp_path / "eval")
    assert result.exit_code == 1 and "begins or ends within an utterance; expected whole ones" in result.stderr
    (tmp_path / "eval" / "conversations.jsonl").unlink()
    CutSet.from_cuts(cuts[:1]).to_file(tmp_path / "eval" / "conversations.jsonl")
    for way in (["--conversations"], []):
        truth = tmp_path / "eval" / "conversations.jsonl"
        result = call("evaluate", model, truth, *way, "--out", tmp_path / "eval")
        assert result.exit_code == 2 and "would be lost" in " ".join(result.stderr.replace("│", " ").split())
    CutSet.from_cuts([cuts[0].drop_supervisions()]).to_file(tmp_path / "silent.jsonl.gz")
    result = call("evaluate", model, tmp_path / "silent.jsonl.gz", "--conversations", "--out", tmp_path / "eval")
    assert result.exit_code == 1 and f"conversation '{cuts[0].id}' has no utterance" in result.stderr
    for lacks in ("asr", "speaker"):
        other = save_tiny(tmp_path / f"without {lacks}", **{lacks: None})
        result = call("evaluate", other, manifest, "--conversations", "--out", tmp_path / "other")
        assert result.exit_code == 1 and f"the model has no {lacks} task; its tasks: " in result.stderr
        assert "without --conversations those it has are scored" in result.stderr and not (tmp_path / "other").exists()


def test_conversations_of_one_id_and_of_an_id_with_a_slash_have_transcripts_of_their_own(tmp_path: Path) -> None:
    model, (cut, _) = save_tiny(tmp_path / "model"), simulate(tmp_path, minutes=0.1)
    manifests = [tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl.gz"]
    for manifest in manifests:
        CutSet.from_cuts([fastcopy(cut, id="room/1")]).to_file(manifest)
    result = call("evaluate", model, *manifests, "--conversations", "--out", tmp_path / "eval")
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "eval").glob("room*")} == {"room_1.json", "room_1~2.json"}
