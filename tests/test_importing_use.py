"""An imported folder is a model like any other: compared, transcribed with, evaluated and trained from, as typed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import soundfile
import torch
from conftest import RATE, make_corpus
from parakeet import network, write_folder
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from speech_mtl import load_model
from speech_mtl.cli import app
from speech_mtl.parity import noise

pytestmark = pytest.mark.usefixtures("one_thread")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, a recording, and the checkpoint imported."""
    folder = tmp_path_factory.mktemp("place")
    write_folder(folder / "tiny-ctc", network())
    soundfile.write(folder / "noise.wav", noise(RATE)[0], RATE)
    result = call("import", folder / "tiny-ctc", "--out", folder / "model")
    assert result.exit_code == 0 and result.stdout == f"{folder / 'model'}\n", result.output
    return folder


def test_check_prints_a_table_and_says_whether_it_is_the_same(place: Path, tmp_path: Path) -> None:
    result = call("import", place / "tiny-ctc", "--check", "--audio", place / "noise.wav")
    assert result.exit_code == 0, result.output
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
    assert [row[0] for row in rows] == ["features", "block 1", "block 2", "logits", "texts that differ"]
    assert all(float(row[1]) <= 1e-4 for row in rows) and [row[2] for row in rows] == ["0.0001", "", "", "0.0001", "0"]
    assert "the same as transformers' on 1 recordings" in result.stderr
    other = network()
    with torch.no_grad():
        other.ctc_head.bias.add_(0.01)
    result = call("import", write_folder(tmp_path / "other", other), "--out", place / "model", "--check")
    assert result.exit_code == 1 and "error: logits: 0.01; accepted: at most 0.0001" in result.stderr


def test_wrong_calls_and_errors(place: Path, tmp_path: Path) -> None:
    for arguments, code, message in (
        (["import", place / "tiny-ctc"], 2, "give --out DIR"),
        (["import", place / "tiny-ctc", "--out", tmp_path / "x", "--audio", "a.wav"], 2, "give --check too"),
        (["import", tmp_path / "none", "--out", tmp_path / "x"], 1, "none does not exist; accepted: a folder"),
        (["import", place / "tiny-ctc", "--out", place / "model"], 1, "already holds a model; choose another folder"),
        (["import", place / "tiny-ctc", "--check", "--audio", place / "none.wav"], 1, "none.wav"),
    ):
        result = call(*arguments)
        assert (result.exit_code, result.stdout) == (code, ""), result.output
        assert message in " ".join(result.stderr.replace("│", " ").split()) and "Traceback" not in result.stderr


def test_transcribe_and_evaluate(place: Path, tmp_path: Path) -> None:
    result = call("transcribe", place / "noise.wav", "-m", place / "model", "--format", "json")
    assert result.exit_code == 0, result.output
    (segment,) = json.loads(result.stdout)["segments"]
    assert segment["text"] and segment["speaker"] is None
    assert " ".join(word["text"] for word in segment["words"]) == segment["text"]
    result = call("evaluate", place / "model", make_corpus(tmp_path, 1, seed=5), "--out", tmp_path / "eval")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "eval" / "summary.json").read_text())["asr"]["words"] > 0


def recipe(card: str, folder: Path, corpus: Path, changes: str = "", sections: str = "") -> Path:
    """The recipe that the model's card asks for, with data, and one short epoch of a speaker beside the words."""
    (lines,) = re.findall("```toml\n(.*?)```", card, flags=re.DOTALL)
    assert "max_wer_increase = 1 " in lines
    lines = sections + lines.replace(
        "max_wer_increase = 1 ", "max_wer_increase = 1000 "
    )  # one epoch of tones, from noise
    lines = lines.replace('init = "..."', f"init = {json.dumps(str(folder))}")
    path = corpus.parent / "recipe.toml"
    path.write_text(
        f"{lines}epochs = 1\nlr = 1e-4\nwarmup_epochs = 0.1\nema_decay = 0\n{changes}\n"
        '[tasks.speaker]\ntype = "speaker"\nembedding_dim = 8\n'
        f"[data]\ntrain = [{json.dumps(str(corpus))}]\ndev = [{json.dumps(str(corpus))}]\nworkers = 0\n"
        "max_duration_s = 6.0\nn_buckets = 2\n"
    )
    return path


def test_training_starts_from_an_imported_model_as_its_card_says(place: Path, tmp_path: Path) -> None:
    card = (place / "model" / "README.md").read_text()
    path = recipe(card, place / "model", make_corpus(tmp_path, 3, seed=6), 'freeze = ["encoder"]')
    result = call("train", path, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    trained, start = load_model(tmp_path / "run"), load_model(place / "model")
    assert trained.tokenizer is not None and start.tokenizer is not None
    assert trained.tokenizer.pieces == start.tokenizer.pieces and set(trained.tasks) == {"asr", "speaker"}
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "run", place / "model"))
    frozen = [name for name in theirs if name.startswith("encoder.")]
    assert len(frozen) > 50 and any("running_var" in name for name in frozen)
    assert all(torch.equal(ours[name], theirs[name]) for name in frozen)
    assert not torch.equal(ours["tasks.asr.linear.weight"], theirs["tasks.asr.linear.weight"])


@pytest.mark.parametrize(
    ("sections", "text", "message"),
    [
        ('[text]\ncase = "upper"\n', "low", "text.case is 'upper'; accepted: 'lower'"),
        ("[encoder]\nd_model = 64\n", "low", "none of its encoder's weights fits"),
        ("", "λόγος", "no pieces for 3 of 3 training texts, which have characters such as"),
    ],
)
def test_a_recipe_that_does_not_fit_the_start(
    place: Path, tmp_path: Path, sections: str, text: str, message: str
) -> None:
    card = (place / "model" / "README.md").read_text()
    path = recipe(card, place / "model", make_corpus(tmp_path, 1, seed=7, text=text), sections=sections)
    result = call("train", path, "--out", tmp_path / "run")
    assert result.exit_code == 1 and message in result.stderr and "Traceback" not in result.stderr, result.output
