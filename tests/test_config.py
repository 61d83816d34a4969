"""Recipes and overrides: what is refused, and how the message helps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from speech_mtl.config import Config, ConfigError, parse_config
from speech_mtl.recipe import load_recipe, recipe_names

PRETRAINED = Path(__file__).parents[1] / "speech_mtl" / "pretrained"


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid_and_says_how_to_use_it(name: str) -> None:
    config = load_recipe(name)
    assert config.data.train and config.data.dev
    head = (Path(__file__).parents[1] / "speech_mtl" / "recipes" / f"{name}.toml").read_text().split("\n[")[0]
    assert f"train {name}" in head and "WER" in head


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": {"epoch": 3}}, "unknown key 'train.epoch'; did you mean 'train.epochs'?"),
        ({"trian": {}}, "unknown key 'trian'; did you mean 'train'?"),
        ({"tasks": {"asr": {"type": "asr", "wieght": 1}}}, "did you mean 'tasks.asr.weight'?"),
        ({"train": {"epochs": -1}}, "train.epochs: Input should be greater than 0, found -1"),
        ({"train": {"precision": "fp8"}}, 'found "fp8"'),
        ({"encoder": {"d_model": 30, "n_heads": 4}}, "multiple of 2·n_heads"),
        ({"encoder": {"kernel_size": 4}}, "must be odd, got 4"),
        ({"tasks": {}}, "at least one task"),
        ({"tasks": {"a": {"type": "asr"}, "b": {"type": "asr"}}}, "at most one task of type 'asr'"),
        ({"tasks": {"utterances": {"type": "asr"}}}, "names a field of every result row"),
        ({"tasks": {"speaker": {"type": "speaker", "blocks": 99}}}, "the encoder has 8"),
        ({"features": {"window_samples": 600}}, "features: window_samples: found 600, accepted: n_fft, 512, or less"),
        ({"features": {"f_max_hz": 0}}, "features.f_max_hz: Input should be greater than 0, found 0"),
        ({"augment": {"speeds": []}}, "augment.speeds: List should have at least 1 item after validation, not 0"),
        ({"augment": {"speeds": [1, 0]}}, "augment.speeds.1: Input should be greater than 0, found 0"),
        ({"augment": {"speeds": [float("inf")]}}, "augment.speeds.0: Input should be a finite number"),
        ({"train": {"epochs": float("inf")}}, "train.epochs: Input should be a finite number"),
        ({"train": {"seed": -1}}, "train.seed: Input should be greater than or equal to 0, found -1"),
        ({"compare": {"seeds": [1, 2**32]}}, "compare.seeds.1: Input should be less than 4294967296"),
        ({"train": {"select": "wer"}}, "accepted: mean, asr, speaker"),
    ],
)
def test_refusals(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=".") as error:
        parse_config(values, "recipe x")
    assert message in str(error.value) and str(error.value).startswith("recipe x: ")


def test_mel_bins_above_half_the_sample_rate_are_refused_in_recipes_alone() -> None:
    wanted = r"f_max_hz: found 8000, accepted: half of sample_rate, 4000, or less; mel bins above it would stay empty"
    with pytest.raises(ConfigError, match=wanted):
        load_recipe("fsdd", ["features.sample_rate=8000"])
    assert load_recipe("fsdd", ["features.sample_rate=8000", "features.f_max_hz=4000"])
    assert parse_config({"features": {"sample_rate": 8000}}, "an older model").features.f_max_hz == 8000


@pytest.mark.parametrize(
    ("override", "types"),
    [
        ("asr.label=transcript", "classify"),
        ("speaker.consistency=0.2", "asr"),
        ("asr.spectrum=false", "speaker and cl"),
    ],
)
def test_a_setting_for_tasks_of_another_type_is_refused(override: str, types: str) -> None:
    key = override.split("=")[0]
    with pytest.raises(ConfigError, match=rf"^fsdd: tasks\.{key} is .*; take it out: it is for tasks of type {types}"):
        load_recipe("fsdd", [f"tasks.{override}"])


def test_overrides() -> None:
    overrides = ["train.epochs=3", "text.case=upper", "augment.speeds=[1.0, 1.1]", "tasks.g.type=classify"]
    config = load_recipe("fsdd", overrides)
    assert (config.train.epochs, config.text.case, config.augment.speeds) == (3, "upper", [1.0, 1.1])
    assert config.tasks["g"].type == "classify"


@pytest.mark.parametrize("override", ["train.epochs", "=3", "train..x=1", "train.epochs.x=1"])
def test_wrong_overrides(override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load_recipe("fsdd", [override])


def test_unknown_recipes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"accepted: {', '.join(recipe_names())}, or the path"):
        load_recipe("fsd")
    with pytest.raises(ConfigError, match="does not exist"):
        load_recipe(tmp_path / "x.toml")
    (tmp_path / "y.toml").write_text("[train\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_recipe(tmp_path / "y.toml")
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbf[train]\nepochs = 3\n")  # as Windows editors write it
    assert load_recipe(tmp_path / "bom.toml").train.epochs == 3
    (tmp_path / "z.toml").write_bytes("# in Latin-1: é\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="not valid TOML: 'utf-8' codec can't decode byte 0xe9"):
        load_recipe(tmp_path / "z.toml")


@pytest.mark.parametrize("override", ["tasks=3", "tasks.asr=3"])
def test_tasks_that_are_no_sections_on_a_frozen_trunk(override: str) -> None:
    with pytest.raises(ConfigError, match=r"tasks\S*: Input should be a valid dictionary"):
        load_recipe("speaker-branch", [f'train.init="{PRETRAINED}"', override])


def test_a_config_survives_its_own_dump() -> None:
    config = load_recipe("an4")
    assert parse_config(config.model_dump(), "dump") == config and Config() != config


def test_config_imports_no_torch() -> None:
    code = "import sys; import speech_mtl.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
