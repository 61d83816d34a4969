"""The command line: exit codes, one-line errors, results alone on stdout, and what is done when some files are bad."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import RATE, make_corpus, tiny_values
from lhotse import CutSet
from lhotse.utils import fastcopy
from test_recognizer import save_tiny, speech
from typer.testing import CliRunner, Result

from speech_mtl import __version__
from speech_mtl.cli import app
from speech_mtl.data import read_cuts
from speech_mtl.recognizer import Recognizer
from speech_mtl.results import Result as Recognized

COMMANDS = [
    "prepare", "inspect", "teach", "train", "import", "export", "evaluate", "transcribe", "align", "identify", "verify",
    "enroll", "speakers", "calibrate", "lm", "demo",
]  # fmt: skip


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def process(*arguments: object, **options: object) -> subprocess.Popen:
    """A real process, as a user starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "speech_mtl", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # type: ignore[call-overload] # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with recordings, and a speaker database of its own."""
    monkeypatch.setenv("SPEECH_MTL_SPEAKERS", str(tmp_path / "speakers.db"))
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", speech(1.5, seed=i), RATE)
    (tmp_path / "bad.wav").write_text("no audio")
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    result = call(name, "--help")
    assert result.exit_code == 0 and f"Example: speech-mtl {name} " in result.stdout


def test_help_names_what_stands_elsewhere() -> None:
    from speech_mtl.language import PRIOR_WEIGHT, RANGES, Decoding
    from speech_mtl.recipe import load_recipe

    said = call("transcribe", "--help").stdout
    for name, value in {**vars(Decoding()), "prior_weight": PRIOR_WEIGHT}.items():
        if name in RANGES:
            low, high = RANGES[name]
            entry = " ".join(said.split(f"\n  --{name.replace('_', '-')} ")[1].split("\n  -")[0].split())
            assert f"{low:g} to {high:g}" in entry and f" {value:g} " in entry.split(";")[1], entry
    for recipe in ("an4", "fsdd"):
        assert recipe in call("compare", "--help").stdout and load_recipe(recipe).compare.test


def test_help_lists_the_commands_and_loads_nothing_heavy() -> None:
    script = (
        "import sys\nfrom typer.testing import CliRunner\nimport speech_mtl\nfrom speech_mtl.cli import app\n"
        "print(CliRunner().invoke(app, ['--help']).stdout)\n"
        "heavy = {'torch', 'numpy', 'lhotse', 'librosa', 'pydantic', 'soundfile', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)
    assert call("--version").stdout == f"{__version__}\n"


def test_package_names_are_the_functions_whichever_import_comes_first() -> None:
    script = (
        "from speech_mtl.train import Trainer\nimport speech_mtl.evaluate\n"
        "from speech_mtl import Recognizer, evaluate, load_model, train\nimport speech_mtl\n"
        "assert all(map(callable, (Recognizer, evaluate, load_model, train))) and speech_mtl.train is train"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command"), (["train", "fsdd"], "--out"), (["transcribe"], "Missing argument"),
        (["train", "no-such-recipe", "--out", "x"], "no recipe 'no-such-recipe'; accepted:"),
        (["train", "fsdd", "--out", "x", "--set", "train.epoch=3"], "did you mean 'train.epochs'?"),
        (["train", "fsdd", "--out", "x", "--set", "epochs"], "expected section.key=value"),
        (["transcribe", "a.wav", "--format", "docx"], "--format docx; accepted: txt, json"),
        (["transcribe", "a.wav", "b.wav", "--format", "srt"], "give --out DIR"),
        (["transcribe", "a.wav", "b/a.wav", "--out", "x"], "same name"),
        (["transcribe", "a.wav", "--out", "a.txt"], "--out a.txt: expected a folder"),
        (["transcribe", "a.wav", "--out", __file__], ": expected a folder"),
        (["transcribe", "a b.wav", "x/a_b.wav", "--format", "rttm"], "two recordings would both be 'a_b' in one rttm"),
        (["transcribe", "-", "--format", "html"], "give a file"),
        (["transcribe", "a.wav", "--threshold", "2"], "less than or equal to 1"),
        (["transcribe", "a.wav", "--device", "abacus"], "--device abacus"), (["verify", "a.wav"], "Missing argument"),
        (["identify", "a.wav", "--device", "abacus"], "--device abacus"),
        (["verify", "a.wav", "b.wav", "--device", "abacus"], "--device abacus"),
        (["enroll", "ann", "a.wav", "--device", "abacus"], "--device abacus"),
        (["calibrate", "x", "--device", "abacus"], "--device abacus"),
        (["enroll", "unknown", "a.wav"], "other than 'unknown'"), (["prepare", "fsd"], "did you mean 'fsdd'"),
        (["prepare", "fsdd", "--option", "x"], "expected KEY=VALUE"),
        (["prepare", "fsdd", "--option", "x=1"], "--option x: unknown for fsdd"),
        (["enroll", "unknown 2", "a.wav"], "other than 'unknown'"),
        (["enroll", "--from", "x.json", "unknown 1"], "Missing argument"),
        (["enroll", "--from", "x.json", "unknown 1", "a", "b"], "a voice and its new name, 3 words given"),
        (["evaluate", "x", "y", "--speakers", "2"], "--speakers and --threshold go with --conversations"),
        (["transcribe", "a.wav", "--speakers", "0"], "--speakers"),
        (["speakers", "rename", "a"], "Missing argument"),
        (["calibrate", "x", "--fa", "1"], "--fa 1; expected a share"),
    ],
)  # fmt: skip
def test_wrong_calls_end_with_2(arguments: list[str], message: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_errors_are_one_line_without_traceback(place: Path, model: Path) -> None:
    (place / "half").mkdir()
    (place / "half" / "config.json").write_text((model / "config.json").read_text())
    for name, content in {"list": b"[]", "bare": b'{"format": 1}', "bytes": b'{"\xff": 1}'}.items():
        (place / name).mkdir()
        (place / name / "config.json").write_bytes(content)
    other = save_tiny(place / "other", seed=1)
    assert call("enroll", "ann", place / "0.wav", "--model", other).exit_code == 0
    cases: list[tuple[list[object], str]] = [
        (["transcribe", place / "missing.wav", "-m", other], "missing.wav: No such file or directory"),
        (["transcribe", place / "0.wav", "-m", place], "is not a model folder: config.json is missing"),
        (["transcribe", place / "0.wav", "-m", place / "half"], "is not complete: model.safetensors is missing"),
        (["transcribe", place / "0.wav", "-m", model], "belongs to another model"),
        (["transcribe", place / "0.wav", "-m", place / "list"], "config.json: holds list; expected an object"),
        (["transcribe", place / "0.wav", "-m", place / "bare"], "config.json: 'files' is None; expected an object"),
        (["transcribe", place / "0.wav", "-m", place / "bytes"], "config.json: not valid JSON: 'utf-8' codec"),
        (["inspect", place / "none.jsonl.gz"], "none.jsonl.gz does not exist"),
        (["evaluate", model, place / "none.jsonl.gz"], "none.jsonl.gz does not exist"),
        (["evaluate", model, place / "0.wav"], "expected a lhotse cut on every line of a .jsonl or .jsonl.gz file"),
        (["calibrate", place / "none", "--db", place / "new.db"], "none does not exist; expected a manifest, or"),
        (["prepare", "fsdd"], "no source given"),
        (["speakers", "remove", "eve"], "nobody called 'eve'; enrolled: ann"),
    ]  # fmt: skip
    for arguments, message in cases:
        result = call(*arguments)
        assert result.exit_code == 1 and result.stdout == "", result.output
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith("error: ") and message in last
        assert "Traceback" not in result.stderr


def test_bad_files_are_listed_at_the_end_and_the_good_ones_are_done(place: Path, model: Path) -> None:
    result = call("transcribe", place / "bad.wav", place / "0.wav", place / "1.wav", "-m", model, "--format", "json")
    assert result.exit_code == 1
    assert [Path(json.loads(line)["audio"]).name for line in result.stdout.splitlines()] == ["0.wav", "1.wav"]
    *_, summary, error = result.stderr.strip().splitlines()
    assert summary == "2 of 3 files done; not done:" and error.startswith("error: ") and "bad.wav" in error
    result = call("enroll", "ann", place / "bad.wav", place / "0.wav", "-m", model)
    assert result.exit_code == 1 and "ann: 1 utterance enrolled" in result.stderr
    assert "s of speech enrolled; 5 s or more are recognised better" in result.stderr


def test_recordings_of_a_few_samples_are_bad_ones(place: Path, model: Path) -> None:
    for samples in (1, 100, 200, 1599):
        soundfile.write(place / "tiny.wav", speech(1.0)[:samples], RATE)
        alone = call("transcribe", place / "tiny.wav", "-m", model)
        assert alone.exit_code == 1 and "tiny.wav: lasts 0." in alone.stderr and alone.stdout == ""
        result = call("transcribe", place / "tiny.wav", place / "0.wav", "-m", model)
        assert result.exit_code == 1 and "1 of 2 files done" in result.stderr and "0.wav" in result.stdout


def test_names_that_are_no_text_and_pipes_are_bad_ones(place: Path, model: Path) -> None:
    odd = place / os.fsdecode(b"caf\xe9.wav")
    odd.write_bytes((place / "0.wav").read_bytes())
    os.mkfifo(place / "pipe.wav")
    result = call("transcribe", odd, place / "pipe.wav", place / "0.wav", "-m", model)
    assert result.exit_code == 1 and "1 of 3 files done" in result.stderr and "0.wav" in result.stdout
    assert "the name is not UTF-8" in result.stderr and "pipe.wav: is no file; of a pipe, - reads wav" in result.stderr


def test_out_writes_a_file_for_each_recording(place: Path, model: Path) -> None:
    result = call(
        "transcribe", place / "0.wav", place / "1.wav", "-m", model, "-f", "srt", "--out", place / "subtitles"
    )
    assert result.exit_code == 0 and result.stdout == ""
    assert sorted(path.name for path in (place / "subtitles").iterdir()) == ["0.srt", "1.srt"]
    assert "speaker threshold 0.5 (not measured" in result.stderr


def test_a_damaged_recording_is_written_as_far_as_it_goes_and_ends_with_1(place: Path, model: Path) -> None:
    content = (place / "1.wav").read_bytes()
    (place / "1.wav").write_bytes(content[: len(content) // 2])
    result = call("transcribe", place / "0.wav", place / "1.wav", place / "2.wav", "-m", model, "--out", place / "out")
    assert result.exit_code == 1
    assert sorted(path.name for path in (place / "out").iterdir()) == ["0.txt", "1.txt", "2.txt"]
    *_, summary, error = result.stderr.strip().splitlines()
    assert summary == "2 of 3 files done; not done:" and error.endswith("what comes before is transcribed")
    page = call("transcribe", place / "1.wav", "-m", model, "-f", "html")
    assert page.exit_code == 1 and "<audio" in page.stdout and page.stderr.strip().splitlines()[-1] == error


def test_an_interruption_keeps_what_was_written(place: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_and_no_more(recognizer: Recognizer, files: list[Path], *others: object) -> Iterator[object]:
        yield recognizer.transcribe(files[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(Recognizer, "transcribe_all", one_and_no_more)
    monkeypatch.setattr(Recognizer, "transcribe", lambda self, file: Recognized(str(file), 1.0, "", []))
    result = call("transcribe", place / "0.wav", place / "1.wav", "-m", model, "--out", place / "out")
    assert result.exit_code == 130 and result.stderr.endswith("error: interrupted\n")
    assert [path.name for path in (place / "out").iterdir()] == ["0.txt"]


def test_an_interrupted_enrolment_enrols_nothing(place: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been interrupted because of a wrong name."""
    assert call("enroll", "ann", place / "2.wav", "-m", model, "--force").exit_code == 0
    listen = Recognizer.listen_to_enroll

    def one_and_no_more(recognizer: Recognizer, file: Path, force: bool) -> object:
        if file.name == "1.wav":
            raise KeyboardInterrupt
        return listen(recognizer, file, force)

    monkeypatch.setattr(Recognizer, "listen_to_enroll", one_and_no_more)
    result = call("enroll", "ann", place / "0.wav", place / "1.wav", "-m", model, "--force")
    assert result.exit_code == 130 and "ann: 1 utterance enrolled" in result.stderr
    assert result.stderr.endswith("error: interrupted\n")


def test_stream_gives_words_before_the_result(place: Path, model: Path) -> None:
    result = call("transcribe", place / "0.wav", place / "1.wav", "-m", model, "-f", "json", "--stream")
    assert result.exit_code == 0
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    results = [line for line in lines if "provisional" not in line]
    early = [line for line in lines if line.get("provisional")]
    assert len(results) == 2 and len(early) + 2 == len(lines)
    for each in results:
        own = [line for line in early if line["audio"] == each["audio"]]
        assert own and lines.index(own[-1]) < lines.index(each)
        assert " ".join(line["text"] for line in own) == each["text"]
    result = call("transcribe", place / "0.wav", "-m", model, "-f", "srt", "--out", place / "out", "--stream")
    assert result.stdout.startswith(f"~ {place}/0.wav  0.") and "-->" not in result.stdout
    result = call("transcribe", place / "0.wav", "-m", model, "-f", "srt", "--stream")
    assert result.exit_code == 2 and "give --out DIR" in " ".join(result.stderr.replace("│", " ").split())


def test_enroll_identify_verify_speakers(place: Path, model: Path) -> None:
    assert call("enroll", "ann", place / "0.wav", place / "1.wav", "-m", model).exit_code == 0
    assert (
        call("speakers").stdout.startswith("ann\t2\t2.9\t20")
        and call("speakers").stdout == call("speakers", "list").stdout
    )
    said = call("identify", place / "0.wav", "-m", model).stdout.rstrip("\n").split("\t")[1:]
    assert (said[0], *said[2:]) == ("ann", "-", "0.5", "ann") and float(said[1]) > 0.5
    found = json.loads(call("identify", place / "0.wav", "-m", model, "-f", "json").stdout)
    assert (found["speaker"], found["threshold"], found["probability"]) == ("ann", 0.5, None)
    strict = call("identify", place / "2.wav", "-m", model, "--threshold", "1").stdout.rstrip("\n").split("\t")
    assert (strict[1], strict[5]) == ("unknown", "ann")
    assert call("verify", place / "0.wav", place / "0.wav", "-m", model).stdout == "same\t1.0000\t-\t0.5\n"
    assert "[ann " in call("transcribe", place / "0.wav", "-m", model).stdout
    assert call("speakers", "rename", "ann", "Ann Lee").exit_code == 0
    assert call("speakers", "remove", "Ann Lee").exit_code == 0
    empty = call("speakers", "--db", place / "speakers.db")
    assert (empty.exit_code, empty.stdout) == (0, "") and "nobody is enrolled" in empty.stderr


def test_an_export_does_not_replace_its_database(place: Path, model: Path) -> None:
    assert call("enroll", "ann", place / "0.wav", "-m", model).exit_code == 0
    (place / "link.db").symlink_to(place / "speakers.db")
    before = (place / "speakers.db").read_bytes()
    for target in ("speakers.db", "link.db"):
        result = call("speakers", "export", place / target)
        assert result.exit_code == 2 and "would be lost" in " ".join(result.stderr.replace("│", " ").split())
    assert (place / "speakers.db").read_bytes() == before


def test_an_export_replaces_files_only_and_is_written_where_a_link_leads(place: Path, model: Path) -> None:
    assert call("enroll", "ann", place / "0.wav", "-m", model).exit_code == 0
    os.mkfifo(place / "pipe")
    for target in (place, ".", place / "pipe"):
        result = call("speakers", "export", target)
        assert result.exit_code == 2 and "is a folder, a pipe or a device" in result.stderr
    assert (place / "pipe").is_fifo()
    (place / "link.json").symlink_to(place / "voices.json")
    for _ in range(2):
        assert call("speakers", "export", place / "link.json").exit_code == 0
    assert (place / "link.json").is_symlink() and "ann" in json.loads((place / "voices.json").read_text())["speakers"]


def test_the_database_named_before_a_command_goes_before_the_environments(place: Path, model: Path) -> None:
    for name, db in (("ann", place / "speakers.db"), ("bob", place / "other.db")):
        assert call("enroll", name, place / "0.wav", "-m", model, "--db", db).exit_code == 0
    assert call("speakers", "list").stdout.startswith("ann\t")
    for arguments in (["--db", place / "other.db", "list"], ["list", "--db", place / "other.db"]):
        assert call("speakers", *arguments).stdout.startswith("bob\t")
    assert call("speakers", "--db", place / "other.db", "remove", "ann").exit_code == 1
    assert call("speakers", "--db", place / "other.db", "remove", "bob").exit_code == 0
    assert call("speakers").stdout.startswith("ann\t")


def test_a_voice_of_a_transcript_gets_its_name(place: Path, model: Path) -> None:
    soundfile.write(place / "0.wav", speech(5.0), RATE)
    said = call("transcribe", place / "0.wav", "-m", model, "-f", "json", "--speakers", "1")
    assert json.loads(said.stdout)["segments"][0]["speaker"] == "unknown 1"
    (place / "result.json").write_text(said.stdout)
    given = call("enroll", "--from", place / "result.json", "unknown 1", "alice", "-m", model)
    assert given.exit_code == 0 and "alice: 1 utterance enrolled" in given.stderr
    again = json.loads(call("transcribe", place / "0.wav", "-m", model, "-f", "json", "--speakers", "1").stdout)
    assert {word["speaker"] for segment in again["segments"] for word in segment["words"]} == {"alice"}
    assert again["speakers"][0]["score"] > 0.99
    other = save_tiny(place / "other", seed=1)
    (place / "broken.json").write_text("{}")
    call("align", place / "0.wav", "low mid", "-m", model, "-f", "json", "--out", place / "aligned.json")
    short = json.loads(said.stdout)
    short["speakers"][0]["embedding"] = [0.1, 0.2]
    (place / "short.json").write_text(json.dumps(short))
    for arguments, message in (
        ([place / "short.json", "unknown 1", "bob", "-m", model], "embedding of 'unknown 1' is no list of 16 numbers"),
        ([place / "result.json", "unknown 7", "bob", "-m", model], "no voice 'unknown 7'; its voices: unknown 1"),
        ([place / "result.json", "unknown 1", "alice", "-m", model], "enrolled already under 'alice'; nothing is new"),
        (
            [place / "result.json", "unknown 1", "b", "-m", other, "--db", place / "o.db"],
            "transcribed by another model",
        ),
        ([place / "aligned.json", "unknown 1", "bob", "-m", model], "0.wav: an alignment, which knows no voices"),
        ([place / "broken.json", "unknown 1", "bob", "-m", model], "audio: Field required (found {}); expected what"),
    ):
        result = call("enroll", "--from", *arguments)
        assert result.exit_code == 1 and message in result.stderr


def test_a_voice_is_found_among_the_results_of_several_recordings_and_of_a_stream(place: Path, model: Path) -> None:
    soundfile.write(place / "0.wav", speech(5.0), RATE)
    streamed = call("transcribe", place / "0.wav", "-m", model, "-f", "json", "--speakers", "1", "--stream").stdout
    assert '"provisional": true' in streamed
    (place / "one.json").write_text(streamed)
    several = call("transcribe", place / "0.wav", place / "1.wav", "-m", model, "-f", "json", "--speakers", "1").stdout
    (place / "both.json").write_text(several)
    (place / "each.json").write_text(several.replace('"unknown 1"', '"unknown 2"', several.count('"unknown 1"') - 1))
    for file, voice, message in (
        ("both.json", "unknown 1", f"2 recordings have a voice 'unknown 1': {place}/0.wav, {place}/1.wav"),
        ("both.json", "unknown 3", "no voice 'unknown 3'; its voices: unknown 1"),
    ):
        result = call("enroll", "--from", place / file, voice, "bob", "-m", model)
        assert result.exit_code == 1 and message in result.stderr, result.stderr
    assert call("enroll", "--from", place / "one.json", "unknown 1", "bob", "-m", model).exit_code == 0
    again = call("enroll", "--from", place / "one.json", "unknown 1", "bob", "-m", model)
    assert again.exit_code == 1 and "bob: 1 utterance enrolled" in again.stderr


def test_notes_go_to_stderr(place: Path, model: Path) -> None:
    soundfile.write(place / "clipped.wav", np.clip(20 * speech(1.0), -1, 1), RATE)
    soundfile.write(place / "silent.wav", np.zeros(RATE), RATE)
    result = call("transcribe", place / "clipped.wav", place / "silent.wav", "-m", model, "-f", "json")
    assert result.exit_code == 0
    both = call("verify", place / "0.wav", place / "clipped.wav", "-m", model, "-f", "json")
    assert "clipped.wav: clipped: " in both.stderr
    found = json.loads(both.stdout)
    assert found["audio"] == [f"{place}/0.wav", f"{place}/clipped.wav"] and "clipped: " in found["notes"][0]
    assert "clipped.wav: clipped: " in result.stderr and "silent.wav: digital silence" in result.stderr
    assert json.loads(result.stdout.splitlines()[1])["text"] == ""


def test_inspect(corpus: dict[str, str], tmp_path: Path) -> None:
    unlabelled = make_corpus(tmp_path, 2, seed=9, speaker=None)
    impossible = make_corpus(tmp_path / "long", 1, seed=8, text="low " * 40)
    result = call("inspect", corpus["dev"], unlabelled, impossible)
    assert result.exit_code == 0, result.output
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name["asr"][:2] == ["21", "100.0 %"] and by_name["speaker"][:2] == ["15", "71.4 %"]
    assert by_name["speaker"][3] == "ann 5, bob 5, cid 5" and by_name["gender"][3] == "male 14, female 7"
    assert "3 words, 8 characters" in by_name["asr"][3]
    assert by_name["asr + speaker + gender"][0] == "15" and by_name["asr + gender"][0] == "6"
    assert "3 texts need more encoder frames than their audio has" in result.stderr
    # 15 labelled utterances of three speakers last
    seconds = sum(cut.duration for cut in read_cuts([corpus["dev"], impossible]))
    assert by_name["3"] == [f"{3 * 3600 / seconds:.1f}", "5", "5", "5"]
    dashes = call("inspect", make_corpus(tmp_path / "dashes", 1, seed=7, text="-"))
    assert dashes.exit_code == 0 and "0 words, 0 characters" in dashes.stdout, dashes.output
    warnings = " ".join(result.stderr.split())
    assert "speaker: 3 of 3 labels have fewer than 10 utterances, such as ann with 5: too rare" in warnings
    few = "speaker: 3 speakers; an interval over speakers needs 10 or more, with fewer it is over their utterances"
    assert f"{few}, and the verdict holds for these speakers only" in warnings  # and may well be decided
    assert "gender: 1 of 2 labels have fewer than 10 utterances, such as female with 7" in warnings
    assert "disjoint" not in warnings


def test_inspect_shows_labels_as_they_are_and_those_of_every_manifest(tmp_path: Path) -> None:
    odd = make_corpus(tmp_path / "odd", 2, seed=1, gender="[/b]", custom={"audio": "call.wav"})
    many = make_corpus(tmp_path / "many", 400, seed=2)
    named = make_corpus(tmp_path / "named", 2, seed=3, custom={"accent": "[red]x", "age": 30})
    for order in ([odd, many, named], [named, many, odd]):
        result = call("inspect", *order)
        assert result.exit_code == 0, result.output
        rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
        by_name = {row[0]: row[1:] for row in rows}
        assert "[/b] 6" in by_name["gender"][3] and by_name["accent"][3] == "[red]x 6"
        assert by_name["age"][3] == "30 6"
        assert "audio" not in by_name  # a field of every result row is no task


def test_a_broken_manifest_is_refused_with_its_line(corpus: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text('{"id": 1}\n')
    result = call("inspect", path)
    assert result.exit_code == 1 and f"error: {path}, line 1: not a lhotse cut" in result.stderr


def test_evaluate_writes_the_report_and_lists_unreadable_recordings(model: Path, tmp_path: Path) -> None:
    dev = make_corpus(tmp_path, 2, seed=3)
    result = call("evaluate", model, dev, "--enroll", dev, "--out", tmp_path / "eval")
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "eval" / "summary.json").read_text())
    assert summary["speaker"]["mode"] == "enrolled" and "wer" in summary["asr"]
    assert "asr" in result.stdout.lower() and (tmp_path / "eval" / "report.html").stat().st_size > 1000
    strangers = tmp_path / "strangers.jsonl.gz"
    CutSet.from_file(dev).map_supervisions(lambda one: fastcopy(one, speaker="eve")).to_file(strangers)
    said = "none of the speakers was trained on: --enroll MANIFEST"
    assert said in call("evaluate", model, strangers, "--out", tmp_path / "eval").stderr
    result = call("evaluate", model, strangers, "--enroll", dev, "--out", tmp_path / "eval")
    assert said not in result.stderr and "none of the speakers is among those of --enroll" in result.stderr
    talk = [*CutSet.from_file(dev)][:3:2]
    CutSet.from_cuts([talk[0].append(talk[1])]).to_file(tmp_path / "talk.jsonl.gz")
    hint = call("evaluate", model, tmp_path / "talk.jsonl.gz", "--out", tmp_path / "eval").stderr
    assert "1 of 1 cuts hold several speakers: --conversations scores who" in hint
    (tmp_path / "bob-3-1.wav").write_text("damaged")
    result = call("evaluate", model, dev, "--out", tmp_path / "eval")
    assert said not in result.stderr
    assert result.exit_code == 1 and "1 of 6 utterances could not be read" in result.stderr
    assert "bob-3-1" in result.stderr.strip().splitlines()[-1]


def write_recipe(path: Path, corpus: dict[str, str], epochs: int) -> Path:
    values = tiny_values(corpus)
    values["train"]["epochs"] = epochs
    lines = []
    for section, content in values.items():
        for name, part in content.items() if section == "tasks" else [("", content)]:
            lines.append(f"[{section}.{name}]" if name else f"[{section}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in part.items()]
    path.write_text("\n".join(lines))
    return path


def test_train_prints_the_model_folder_and_refuses_to_overwrite_it(corpus: dict[str, str], tmp_path: Path) -> None:
    recipe, out = write_recipe(tmp_path / "tiny.toml", corpus, epochs=1), tmp_path / "run"
    result = call("train", recipe, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{out}\n" and (out / "model.safetensors").is_file()
    again = call("train", recipe, "--out", out)
    assert again.exit_code == 1 and "already holds a run" in again.stderr


def test_interrupted_training_says_how_to_go_on(corpus: dict[str, str], tmp_path: Path) -> None:
    recipe, out = write_recipe(tmp_path / "tiny.toml", corpus, epochs=10_000), tmp_path / "run"
    training = process("train", recipe, "--out", out)
    until = time.monotonic() + 120
    while not (out / "training" / "metrics.jsonl").exists() and training.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    training.send_signal(signal.SIGINT)
    stdout, stderr = training.communicate(timeout=60)
    assert training.returncode == 130 and stdout == ""
    assert stderr.strip().splitlines()[-1] == "error: interrupted; run again with --resume"
    assert "Traceback" not in stderr


def test_a_real_process_pipes_json_and_nothing_else(place: Path, model: Path) -> None:
    running = process("transcribe", place / "0.wav", place / "bad.wav", "-m", model, "-f", "json")
    stdout, stderr = running.communicate(timeout=120)
    assert running.returncode == 1
    assert json.loads(stdout)["duration_s"] == 1.5
    assert "Traceback" not in stderr and "bad.wav" in stderr.splitlines()[-1]


def test_sound_comes_through_a_pipe_too(place: Path, model: Path) -> None:
    """With the length that ffmpeg writes, which it does not know yet."""
    content = bytearray((place / "0.wav").read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = b"\xff\xff\xff\xff"
    expected = json.loads(call("transcribe", place / "0.wav", "-m", model, "-f", "json").stdout)
    for given, code in ((bytes(content), 0), (b"no audio" * 100, 1)):
        command = [sys.executable, "-m", "speech_mtl", "transcribe", "-", "-m", str(model), "-f", "json"]
        done = subprocess.run(command, input=given, capture_output=True, timeout=120)
        assert done.returncode == code and b"Traceback" not in done.stderr
        if code == 0:
            assert json.loads(done.stdout) == expected | {"audio": "-"}
        else:
            assert b"error: -: not readable as audio" in done.stderr and b"expected wav" in done.stderr
    content = (place / "0.wav").read_bytes()  # with its length, and cut off, as by a connection that is lost
    done = subprocess.run(command, input=content[: len(content) // 2], capture_output=True, timeout=120)
    assert done.returncode == 1 and json.loads(done.stdout)["damage"].startswith("-: truncated or still being written")
    assert json.loads(done.stdout)["duration_s"] < 0.8


def test_full_disk_is_an_error_without_traceback(place: Path, model: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    (place / "out").mkdir()
    (place / "out" / "0.txt").symlink_to("/dev/full")
    result = call("transcribe", place / "0.wav", "-m", model, "--out", place / "out")
    assert result.exit_code == 1
    assert result.stderr.strip().splitlines()[-1].endswith("No space left on device")
