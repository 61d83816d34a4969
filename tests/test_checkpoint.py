"""The model folder: round trip, missing and altered files, a full disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from safetensors.torch import load_file, save_file

from speech_mtl.checkpoint import (
    CheckpointError,
    empty_model,
    load_model,
    load_weights,
    save_model,
    write_atomically,
)
from speech_mtl.config import Config


@pytest.fixture
def folder(tiny_config: Config, tmp_path: Path) -> Path:
    save_model(tiny_model(tiny_config), tmp_path / "model", "# card\n")
    return tmp_path / "model"


def outputs(model: torch.nn.Module) -> torch.Tensor:
    audio_BN = 0.1 * torch.sin(torch.arange(16000) / 7)[None]
    return model(audio_BN, torch.tensor([16000]))["asr"]["log_probs"]


def test_round_trip(folder: Path, tiny_config: Config) -> None:
    original, loaded = tiny_model(tiny_config), load_model(folder)
    assert torch.equal(outputs(original), outputs(loaded))
    assert loaded.config == tiny_config and loaded.labels == original.labels and not loaded.training
    ours, theirs = original.state_dict(), loaded.state_dict()
    assert all(theirs[name].stride() == value.stride() for name, value in ours.items())  # channels last stays so
    assert len(loaded.fingerprint) == 16 and (folder / "README.md").read_text() == "# card\n"


def test_who_may_read_a_new_file_may_read_the_weights(folder: Path) -> None:
    """A model that one trains and others use."""
    (folder / "new").touch()
    assert {file.stat().st_mode for file in folder.iterdir()} == {(folder / "new").stat().st_mode}


def test_half_precision_storage_gives_nearly_the_same(tiny_config: Config, tmp_path: Path) -> None:
    save_model(tiny_model(tiny_config).half(), tmp_path / "half", "")
    loaded = load_model(tmp_path / "half")
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    torch.testing.assert_close(outputs(loaded), outputs(tiny_model(tiny_config)), atol=2e-2, rtol=0)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "labels.json", "config.json"])
def test_missing_and_altered_files_are_named(folder: Path, name: str) -> None:
    if name != "config.json":
        content = bytearray((folder / name).read_bytes())
        content[-3] ^= 1
        (folder / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name} was altered"):
            load_model(folder)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load_model(folder)


def test_another_format_and_an_unknown_key(folder: Path) -> None:
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99, this version reads 1"):
        load_model(folder)
    described["config"]["encoder"]["n_block"] = 3
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match="did you mean 'encoder.n_blocks'"):
        load_model(folder)


def test_tensors_that_do_not_fit_the_config(folder: Path, tiny_config: Config) -> None:
    model, weights = tiny_model(tiny_config), load_file(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing tensors \['tasks.asr.linear.bias'\]"):
        load_weights(model, {k: v for k, v in weights.items() if k != "tasks.asr.linear.bias"}, "x")
    with pytest.raises(CheckpointError, match=r"has shape \(1,\), the config asks for"):
        load_weights(model, weights | {"tasks.asr.linear.bias": torch.zeros(1)}, "x")


def test_weights_of_the_right_type_are_used_where_they_lie(folder: Path, tiny_config: Config) -> None:
    """So a mapped file takes no second place in memory; a model awaiting them takes none before."""
    waiting = empty_model(tiny_config, tiny_model(tiny_config).tokenizer, tiny_model(tiny_config).labels)
    assert all(parameter.is_meta for parameter in waiting.parameters())
    weights = load_file(folder / "model.safetensors")
    load_weights(waiting, weights, "x")
    name = "encoder.blocks.0.feed_forward1.linear1.weight"
    assert waiting.state_dict()[name].data_ptr() == weights[name].data_ptr()
    assert torch.equal(outputs(waiting.eval()), outputs(tiny_model(tiny_config)))


def test_a_full_disk_leaves_the_last_good_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_atomically(path, lambda p: p.write_text("good"))

    def full(temporary: Path) -> None:
        temporary.write_text("ha")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        write_atomically(path, full)
    assert path.read_text() == "good" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError, match=f": '{tmp_path / 'none' / 'state'}'$"):
        write_atomically(tmp_path / "none" / "state", lambda p: p.write_text("lost"))


def test_a_save_that_fails_leaves_the_last_good_model(
    folder: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = outputs(load_model(folder))

    def full(*arguments: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("speech_mtl.checkpoint.describe", full)  # the last to be written
    other = tiny_model(tiny_config)
    with torch.no_grad():
        next(iter(other.parameters())).add_(1)
    with pytest.raises(OSError, match="No space left"):
        save_model(other, folder, "# other\n")
    assert torch.equal(outputs(load_model(folder)), before) and (folder / "README.md").read_text() == "# card\n"
    assert not list(folder.glob(".*"))


def test_weights_are_not_pickled(folder: Path) -> None:
    save_file(load_file(folder / "model.safetensors"), folder / "again.safetensors")
    assert not [path for path in folder.iterdir() if path.suffix in {".pt", ".bin", ".pkl"}]
