"""What a run starts from: refused where it could not train, and measured where its start measured something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import make_corpus, tiny_model, tiny_values
from typer.testing import CliRunner

from speech_mtl.checkpoint import CheckpointError, save_model
from speech_mtl.cli import app
from speech_mtl.config import ConfigError, parse_config
from speech_mtl.console import TrainingConsole
from speech_mtl.data import DataError
from speech_mtl.initial import prepare_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "features", [{"n_mels": 40}, {"preemphasis": 0.0}, {"f_max_hz": 4000.0}, {"normalize": "utterance"}]
)
def test_other_features_than_those_of_the_start_are_measured_anew(
    corpus: dict[str, str], tmp_path: Path, features: dict[str, Any]
) -> None:
    values = tiny_values(corpus)
    save_model(tiny_model(parse_config(values, "x")), tmp_path / "start", "")
    values["train"]["init"] = str(tmp_path / "start")
    assert (prepare_model(parse_config(values, "x"))[0].features.mean_F == -8).all()  # what the start was given
    values["features"] = features
    found, _ = prepare_model(parse_config(values, "x"))
    values["train"]["init"] = ""
    measured, _ = prepare_model(parse_config(values, "x"))
    assert found.features.mean_F.equal(measured.features.mean_F)
    assert found.features.scale_F.equal(measured.features.scale_F)
    values["train"] |= {"init": str(tmp_path / "start"), "freeze": ["features."]}
    key, value = next(iter(features.items()))
    with pytest.raises(
        CheckpointError, match=rf"train\.freeze: features\.{key} is {value!r}, accepted: .*as train\.init"
    ):
        prepare_model(parse_config(values, "x"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"units": "characters"}, "text.units is 'characters'; accepted: 'bpe', as train.init"),
        ({"units": "bpe", "vocab_size": 300}, "text.vocab_size is 300; accepted: 20, as train.init"),
        ({"units": "bpe", "vocab_size": 20}, ""),
    ],
)
def test_other_pieces_than_those_of_the_start(
    corpus: dict[str, str], tmp_path: Path, text: dict[str, Any], message: str
) -> None:
    values = tiny_values(corpus)
    values["text"] = {"units": "bpe", "vocab_size": 20}
    save_model(tiny_model(parse_config(values, "x")), tmp_path / "start", "")
    values["train"]["init"], values["text"] = str(tmp_path / "start"), text
    if not message:
        prepare_model(parse_config(values, "x"))
        return
    with pytest.raises(CheckpointError, match=message):
        prepare_model(parse_config(values, "x"))


def test_texts_that_cannot_be_learnt_are_counted(
    corpus: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of each speaker one longer than its audio, and one of letters that the tokenizer of the start lacks."""
    long = str(make_corpus(tmp_path / "long", 1, seed=7, text="low " * 40))
    odd = str(make_corpus(tmp_path / "odd", 1, seed=8, text="zzz"))
    values = tiny_values(corpus)
    save_model(tiny_model(parse_config(values, "x")), tmp_path / "start", "")
    values["train"]["init"], values["data"]["train"] = str(tmp_path / "start"), [corpus["train"]] * 2 + [long, odd]
    config = parse_config(values, "x")
    _, inventory = prepare_model(config)
    needs, lacks = "needs more encoder frames than the audio has", "has characters that the tokenizer lacks"
    assert inventory.texts_left_out == {needs: 3, lacks: 3} and len(inventory.texts) == 2 * 48 + 6
    with TrainingConsole(config, inventory, tmp_path / "run", True, {}):
        pass
    shown = capsys.readouterr().err
    assert f"left out: the text of 3 utterances {needs}" in shown and f"3 utterances {lacks}" in shown


def test_recordings_none_of_which_can_be_read(corpus: dict[str, str], tmp_path: Path) -> None:
    values = tiny_values(corpus)
    values["data"]["train"] = [str(make_corpus(tmp_path, 2, seed=3))]
    for path in tmp_path.glob("*.wav"):
        path.unlink()
    with pytest.raises(DataError, match=r"data\.train: none of 6 recordings could be read; the first: .*ann-3-0\.wav"):
        prepare_model(parse_config(values, "x"))


def test_freezing_everything(corpus: dict[str, str]) -> None:
    values = tiny_values(corpus)
    values["train"]["freeze"] = ["encoder.", "tasks."]
    with pytest.raises(ConfigError, match=r"train\.freeze: found \['encoder\.', 'tasks\.'\], which leaves nothing to"):
        prepare_model(parse_config(values, "x"))
    values["train"]["freeze"] = ["encoder.", "tasks.asr."]
    prepare_model(parse_config(values, "x"))


@pytest.mark.parametrize("name", ["type", "half", "float", "values", "keys", "pop", "train", "training", "a.b", ""])
def test_names_of_tasks_that_pytorch_has_itself(corpus: dict[str, str], name: str) -> None:
    values = tiny_values(corpus)
    values["tasks"][name] = {"type": "classify", "label": "gender"}
    with pytest.raises(ConfigError, match=f"tasks: found '{name}', accepted: names without a dot .*, such as 'my_"):
        prepare_model(parse_config(values, "x"))
    values["tasks"]["my_" + name.replace(".", "_")] = values["tasks"].pop(name)
    prepare_model(parse_config(values, "x"))


def test_a_wrong_task_name_ends_the_command_with_2(corpus: dict[str, str], tmp_path: Path) -> None:
    settings = ["--set", f'data.train=["{corpus["train"]}"]', "--set", "tasks.keys.type=classify"]
    result = CliRunner().invoke(app, ["train", "fsdd", "--out", str(tmp_path / "run"), *settings])
    assert result.exit_code == 2 and "tasks: found 'keys'" in result.stderr
