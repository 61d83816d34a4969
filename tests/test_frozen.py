"""A frozen recogniser stays what it is to the last bit; frames that are kept train what frames that are computed do."""

from __future__ import annotations

import json
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_corpus, tiny_model, tiny_values
from lhotse import CutSet
from lhotse.utils import fastcopy
from typer.testing import CliRunner

from speech_mtl.checkpoint import CheckpointError, load_model, save_model
from speech_mtl.cli import app
from speech_mtl.config import Config, ConfigError, parse_config
from speech_mtl.data import DataError, length_batches
from speech_mtl.mixture import training_cuts
from speech_mtl.model import SpeechModel
from speech_mtl.recipe import load_recipe
from speech_mtl.tasks import Frames
from speech_mtl.tasks.pooling import Pooling
from speech_mtl.train import Trainer, train
from speech_mtl.trunk import RecognitionLost, parameter_groups, recognition_lost

pytestmark = pytest.mark.usefixtures("one_thread")
AS_IT_IS: dict[str, Any] = {"gain_db": 0.0, "time_masks": 0, "freq_masks": 0}
PLAIN = {"positions": "rotary", "conv_norm": "layer"}
LIKE_PARAKEET = {"positions": "relative", "conv_norm": "batch", "subsampling": 8, "scale_input": True}


def recogniser(folder: Path, corpus: dict[str, str], **encoder: Any) -> Path:
    """A model folder with an asr task alone, whose running statistics are not those of a start."""
    values = tiny_values(corpus)
    values["encoder"] |= encoder
    values["tasks"] = {"asr": {"type": "asr"}}
    model = tiny_model(parse_config(values, "recogniser"))
    for name, value in model.state_dict().items():
        if "running" in name:
            value.uniform_(0.5, 2.0)
    save_model(model, folder, "")
    return folder


def branch_values(corpus: dict[str, str], init: Path, **trunk: Any) -> dict[str, Any]:
    """A speaker on the recogniser of `init`, with the settings that a recipe would inherit."""
    values = tiny_values(corpus)
    values["encoder"] = load_model(init).config.encoder.model_dump()
    values["tasks"]["speaker"] |= {"adaptor_dim": 8, "blocks": [2]}
    values["augment"] = AS_IT_IS
    values["train"] |= {"init": str(init)}
    values["trunk"] = {"frozen": True} | trunk
    return values


@pytest.mark.parametrize("encoder", [PLAIN, LIKE_PARAKEET], ids=["layer norm", "batch norm"])
@pytest.mark.parametrize("kept", [False, True], ids=["computed", "kept"])
def test_recognition_is_the_same_to_the_last_bit(
    corpus: dict[str, str], tmp_path: Path, encoder: dict[str, Any], kept: bool
) -> None:
    init = recogniser(tmp_path / "asr", corpus, **encoder)
    values = branch_values(corpus, init, cache=str(tmp_path / "frames") if kept else "")
    values["train"]["epochs"] = 1
    if not kept:
        values["augment"] = {"speeds": [0.9, 1.0]}
    before, after = load_model(init), load_model(train(parse_config(values, "x"), tmp_path / "run"))
    ours = after.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in before.state_dict().items())
    fresh = SpeechModel(after.config, after.tokenizer, after.labels)
    fresh.seed_weights(values["train"].get("seed", 1))
    head = "tasks.speaker.embedding.weight"
    assert not torch.equal(ours[head], fresh.state_dict()[head])
    audio_BN, samples_B = 0.1 * torch.randn(2, 16000), torch.tensor([16000, 9000])
    with torch.inference_mode():
        assert torch.equal(
            before(audio_BN, samples_B)["asr"]["log_probs"], after(audio_BN, samples_B)["asr"]["log_probs"]
        )
    texts = [[row["asr"]["text"] for row in model.predict(audio_BN, samples_B)] for model in (before, after)]
    assert texts[0] == texts[1]


def test_a_head_is_the_same_whatever_the_blocks_above_it_have_learnt(corpus: dict[str, str], tmp_path: Path) -> None:
    """Recognition can learn on above the blocks that a voice is known by."""
    init = recogniser(tmp_path / "asr", corpus, **PLAIN)
    further = tiny_values(corpus)
    further["tasks"] = {"asr": {"type": "asr", "intermediate": 0}}
    further["train"] |= {"init": str(init), "epochs": 1, "freeze": ["encoder.subsampling.", "encoder.blocks.0."]}
    learnt = train(parse_config(further, "x"), tmp_path / "further")
    before, after = load_model(init).encoder.state_dict(), load_model(learnt).encoder.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert moved and all(name.startswith("blocks.1.") for name in moved)
    heads = []
    for name, trunk in (("before", init), ("after", learnt)):
        values = branch_values(corpus, trunk)
        values["tasks"]["speaker"] |= {"blocks": 1}
        values["train"] |= {"epochs": 1}
        heads.append(load_model(train(parse_config(values, "x"), tmp_path / name)).tasks["speaker"].state_dict())
    assert all(torch.equal(value, heads[1][name]) for name, value in heads[0].items())


def test_a_frozen_head_keeps_its_classes_and_its_weights(corpus: dict[str, str], tmp_path: Path) -> None:
    """Other people's utterances have no label for it; what it knows keeps the trunk's frames in their place."""
    values = tiny_values(corpus)
    values["train"]["epochs"] = 1
    start = load_model(train(parse_config(values, "x"), tmp_path / "start"))
    named = CutSet.from_file(corpus["train"])
    left_out = start.labels["speaker"][0]
    others = [fastcopy(cut, supervisions=[fastcopy(s, speaker="new") for s in cut.supervisions]) for cut in named
              if cut.supervisions[0].speaker == left_out]  # fmt: skip
    CutSet.from_cuts([*others, *(c for c in named if c.supervisions[0].speaker != left_out)]).to_file(
        tmp_path / "cuts.jsonl.gz"
    )
    values["data"]["train"] = [str(tmp_path / "cuts.jsonl.gz")]
    values["train"] |= {"init": str(tmp_path / "start"), "freeze": ["tasks.speaker."], "seed": 2}
    trainer = Trainer(parse_config(values, "x"), tmp_path / "run")
    classes = trainer.inventory.classes["speaker"]
    assert classes[left_out] == 0 and "new" not in classes and classes.total() > 0
    trainer.run()
    after = load_model(tmp_path / "run")
    assert after.labels == start.labels
    trained = dict(after.named_parameters())
    moved = {name for name, value in start.named_parameters() if not torch.equal(trained[name], value)}
    assert any(name.startswith("encoder.") for name in moved)
    assert not any(name.startswith("tasks.speaker.") for name in moved)
    # and where nobody that it knows is heard at all
    CutSet.from_cuts(
        fastcopy(cut, supervisions=[fastcopy(s, speaker="new") for s in cut.supervisions]) for cut in named
    ).to_file(tmp_path / "new.jsonl.gz")
    values["data"]["train"] = [str(tmp_path / "new.jsonl.gz")]
    after = load_model(train(parse_config(values, "x"), tmp_path / "others"))
    assert torch.equal(after.task("speaker").voices_CE, start.task("speaker").voices_CE)


def test_freezing_what_the_model_does_not_have(corpus: dict[str, str], tmp_path: Path) -> None:
    """Blocks' weights are counted from 0: a block too many would be trained and nobody told."""
    values = tiny_values(corpus)
    values["train"]["freeze"] = ["encoder.blocks.1.", "encoder.blocks.2."]
    with pytest.raises(ConfigError, match=r"begins with 'encoder.blocks.2.'; accepted: encoder., encoder.blocks.0., "):
        train(parse_config(values, "x"), tmp_path / "run")


def test_what_is_frozen_is_in_use_and_takes_no_memory_of_its_own(corpus: dict[str, str], tmp_path: Path) -> None:
    init = recogniser(tmp_path / "asr", corpus, **LIKE_PARAKEET)
    trainer = Trainer(parse_config(branch_values(corpus, init), "x"), tmp_path / "run")
    model = trainer.raw_model.train()
    assert not any(m.training for n, m in model.named_modules() if n.startswith(("encoder", "tasks.asr")))
    assert model.tasks["speaker"].training and model.tasks["speaker"].pooling.norm.training  # type: ignore[union-attr]
    assert trainer.gradients.names == ["speaker"] and not trainer.gradients.trunk_learns
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.tasks["speaker"].parameters()}
    averaged = dict(trainer.average.module.named_parameters())
    own = [name for name, p in model.named_parameters() if averaged[name] is not p]
    assert own and all(name.startswith("tasks.speaker.") for name in own)
    trainer.save_state()
    state = torch.load(tmp_path / "run/training/state.pt", weights_only=True)
    assert all(name.startswith("tasks.speaker.") for name in [*state["model"], *state["average"]])


def run(values: dict[str, Any], out: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Every step's loss, and the model that is left."""
    trainer, losses = Trainer(parse_config(values, "x"), out), []
    step = trainer._step
    trainer._step = lambda group: losses.append(step(group)) or losses[-1]  # type: ignore[method-assign,func-returns-value]
    trainer.run()
    return [loss["speaker"] for loss in losses], load_model(out).state_dict()


@pytest.mark.parametrize("branch", [None, 1], ids=["head", "own block"])
def test_kept_frames_train_what_computed_ones_do(corpus: dict[str, str], tmp_path: Path, branch: int | None) -> None:
    """Bit for bit where each utterance is a batch of its own; padding changes the last bits of a computed frame."""
    corpus = corpus | {"train": corpus["dev"]}  # 12 utterances
    init = recogniser(tmp_path / "asr", corpus, **PLAIN)
    for name, max_duration_s in (("alone", 0.01), ("padded", 2.0)):
        computed = branch_values(corpus, init)
        computed["data"] |= {"max_duration_s": max_duration_s}
        computed["tasks"]["speaker"] |= {"branch": branch, "blocks": [1, 2]}
        kept = computed | {"trunk": {"frozen": True, "cache": str(tmp_path / "frames")}}
        losses, weights = run(computed, tmp_path / f"{name} computed")
        losses_kept, weights_kept = run(kept, tmp_path / f"{name} kept")
        assert len(losses) == len(losses_kept) > 8
        if name == "alone":
            assert losses == losses_kept
            assert all(torch.equal(weights[n], weights_kept[n]) for n in weights if n != "tasks.speaker.voices_CE")
        else:
            assert losses == pytest.approx(losses_kept, rel=1e-3)
            assert losses[:5] == pytest.approx(losses_kept[:5], rel=1e-5)


def test_frames_are_computed_once_and_neither_audio_nor_encoder_is_needed_then(
    corpus: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    own = {"train": str(make_corpus(tmp_path / "a", 4, seed=8)), "dev": str(make_corpus(tmp_path / "b", 2, seed=9))}
    init = recogniser(tmp_path / "asr", own, **PLAIN)
    values = branch_values(own, init, cache=str(tmp_path / "frames"))
    values["train"]["epochs"] = 1
    _, first = run(values, tmp_path / "first")
    assert "12 utterances of" in (told := capsys.readouterr().err) and "GB, are computed into" in told
    for path in [*(tmp_path / "a").glob("*.wav"), *(tmp_path / "b").glob("*.wav")]:
        path.unlink()
    values["tasks"]["speaker"]["embedding_dim"] = 16
    _, second = run(values, tmp_path / "second")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert "are computed" not in capsys.readouterr().err
    (damaged, *_) = sorted((tmp_path / "frames").glob("*/frames.f32"))
    damaged.write_bytes(damaged.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"frames\.f32: \d+ bytes, expected \d+; delete"):
        train(parse_config(values, "x"), tmp_path / "third")


def test_kept_frames_resume_bit_for_bit(corpus: dict[str, str], tmp_path: Path) -> None:
    init = recogniser(tmp_path / "asr", corpus, **PLAIN)
    config = parse_config(branch_values(corpus, init, cache=str(tmp_path / "frames")), "x")
    whole = load_model(train(config, tmp_path / "whole")).state_dict()
    stopped = Trainer(config, tmp_path / "stopped")
    step = stopped._step

    def stop_after(group: list) -> dict[str, float]:
        losses = step(group)
        stopped.interrupted = stopped.step == 3
        return losses

    stopped._step = stop_after  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    resumed = load_model(train(config, tmp_path / "stopped", resume=True)).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_no_room_on_the_disk(corpus: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    init = recogniser(tmp_path / "asr", corpus, **PLAIN)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(DataError, match=r"trunk\.cache .* GB, and 0\.00 GB are free; read fewer blocks"):
        train(parse_config(branch_values(corpus, init, cache=str(tmp_path / "frames")), "x"), tmp_path / "run")
    assert not list((tmp_path / "frames").iterdir())


def test_batches_on_a_frozen_trunk(corpus: dict[str, str], tmp_path: Path) -> None:
    """Every utterance once, none too long a batch, another order every epoch, shared out among the processes."""
    values = tiny_values(corpus) | {"augment": {"concat_prob": 0.0}}
    config = parse_config(values, "x")
    epochs = [length_batches(training_cuts(config, epoch), config, epoch) for epoch in (0, 1)]
    for batches in epochs:
        assert sorted(cut.id for cuts in batches for cut in cuts) == sorted(c.id for c in training_cuts(config, 0))
        assert all(max(c.duration for c in cuts) * len(cuts) <= 6.0 for cuts in batches)
    ids = [[[cut.id for cut in cuts] for cuts in batches] for batches in epochs]
    assert ids[0] != ids[1]
    parts = [length_batches(training_cuts(config, 0), config, 0, rank, 2) for rank in (0, 1)]
    assert len(parts[0]) == len(parts[1])
    assert {cut.id for part in parts for cuts in part for cut in cuts} == {c.id for c in training_cuts(config, 0)}


def test_adaptors_stand_side_by_side_and_spans_read_them_alike() -> None:
    """Hand-made: with identity adaptors the mean is that of both blocks, one after the other."""
    pooling = Pooling(d_model=4, n_mels=2, n_blocks=2, mel_ratio=4, spectrum=False, adaptor_dim=3).eval()
    assert pooling.size == 2 * 2 * 3 and not hasattr(pooling, "block_weights")
    blocks = [torch.randn(1, 6, 4), torch.randn(1, 6, 4)]
    frames = Frames(torch.randn(1, 24, 2), torch.tensor([24]), blocks, torch.tensor([6]))
    combined = pooling.combined(blocks)
    for i, block in enumerate(blocks):
        norm, linear, _ = pooling.adaptors[i]
        expected = torch.nn.functional.silu(linear(norm(block)))
        torch.testing.assert_close(combined[..., 3 * i : 3 * i + 3], expected)
    whole = pooling.span_statistics(frames, [(0, 6)])
    torch.testing.assert_close(whole, pooling.statistics(frames), atol=1e-5, rtol=1e-4)


def test_a_list_of_blocks_reads_these(corpus: dict[str, str]) -> None:
    values = tiny_values(corpus)
    values["tasks"]["speaker"]["blocks"] = [2]
    model = tiny_model(parse_config(values, "x"))
    shared = Frames(
        torch.zeros(1, 8, 80), torch.tensor([8]), [torch.zeros(1, 2, 32), torch.ones(1, 2, 32)], torch.tensor([2])
    )
    (read,) = model.up_to_head("speaker", shared).blocks
    assert read is shared.blocks[1] and len(model.up_to_head("asr", shared).blocks) == 2
    for wrong in ([], [3], [0, 1], [2, 1], 0, 3):
        values["tasks"]["speaker"]["blocks"] = wrong
        with pytest.raises(ConfigError, match=r"tasks\.speaker\.blocks is"):
            parse_config(values, "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"init": ""}}, "trunk.frozen needs train.init"),
        ({"tasks": {"asr": {"type": "asr"}}}, "nothing to train"),
        ({"trunk": {"frozen": True, "lr_decay": 0.5}}, "trunk.lr_decay is of no use with trunk.frozen"),
        ({"trunk": {"cache": "x"}}, "trunk.cache needs trunk.frozen=true"),
        ({"augment": {}}, "set to nothing: augment.gain_db = 6.0, augment.time_masks = 2, augment.freq_masks = 2"),
        ({"trunk": {"max_wer_increase": 1}, "data": {}}, "needs data.dev"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(
    corpus: dict[str, str], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    values = branch_values(corpus, recogniser(tmp_path / "asr", corpus), cache="frames")
    with pytest.raises(ConfigError, match=".") as error:
        parse_config(values | change, "x")
    assert message in str(error.value)


def test_a_recogniser_that_could_not_stay_what_it_is_is_refused(corpus: dict[str, str], tmp_path: Path) -> None:
    init = recogniser(tmp_path / "asr", corpus)
    for section, key, value, message in (
        ("encoder", "n_heads", 4, r"trunk\.frozen: encoder\.n_heads is 4; accepted: 2, as train\.init"),
        ("features", "preemphasis", 0.0, r"features\.preemphasis is 0\.0; accepted: 0\.97"),
        ("text", "case", "upper", r"text\.case is 'upper'; accepted: 'lower'"),
    ):
        values = branch_values(corpus, init)
        values[section] = values.get(section, {}) | {key: value}
        with pytest.raises(CheckpointError, match=message):
            train(parse_config(values, "x"), tmp_path / "run")
    values = branch_values(corpus, init)
    values["tasks"]["words"] = values["tasks"].pop("asr")
    with pytest.raises(CheckpointError, match=r"has no asr task 'words'; it has \['asr'\]"):
        train(parse_config(values, "x"), tmp_path / "run")


def test_a_recipe_inherits_the_model_that_it_starts_from(corpus: dict[str, str], tmp_path: Path) -> None:
    """As typed: no word of the encoder or the recogniser in the recipe, and no text in the data."""
    init = recogniser(tmp_path / "asr", corpus, **LIKE_PARAKEET)
    untold = make_corpus(tmp_path / "untold", 3, seed=10, text=None)
    (tmp_path / "r.toml").write_text(
        '[tasks.speaker]\ntype = "speaker"\nembedding_dim = 8\n[train]\nepochs = 1\n'
        f"[data]\ntrain = [{json.dumps(str(untold))}]\ndev = [{json.dumps(str(untold))}]\nworkers = 0\n"
    )
    arguments = ["train", str(tmp_path / "r.toml"), "--init", str(init), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, [*arguments, "--set", "trunk.frozen=true"])
    assert result.exit_code == 0, result.output
    ours, theirs = load_model(tmp_path / "run"), load_model(init)
    assert ours.config.encoder == theirs.config.encoder and list(ours.tasks) == ["asr", "speaker"]
    assert "unchanged" in (tmp_path / "run/README.md").read_text()
    config = load_recipe(tmp_path / "r.toml", [f"train.init={init}", "encoder.dropout=0.3"])
    assert config.encoder.dropout == 0.3 and config.encoder.subsampling == 8 and list(config.tasks) == ["speaker"]


def test_lower_blocks_learn_more_slowly(corpus: dict[str, str], tmp_path: Path) -> None:
    values = tiny_values(corpus)
    values["train"]["init"], values["trunk"] = str(recogniser(tmp_path / "asr", corpus)), {"lr_decay": 0.5}
    values["tasks"]["speaker"]["branch"] = 1
    trainer = Trainer(parse_config(values, "x"), tmp_path / "run")
    factor_of = {id(p): g["factor"] for g in trainer.optimizer.param_groups for p in g["params"]}
    found = {name: factor_of[id(p)] for name, p in trainer.raw_model.named_parameters()}
    expected = {"encoder.subsampling": 0.125, "encoder.blocks.0": 0.25, "encoder.blocks.1": 0.5, "tasks": 1.0}
    expected["branches.speaker.blocks.1"] = 0.5
    assert all(factor == next(f for n, f in expected.items() if name.startswith(n)) for name, factor in found.items())
    trainer._step(next(trainer._groups()))
    rates = {group["factor"]: group["lr"] for group in trainer.optimizer.param_groups}
    assert rates[0.125] == pytest.approx(rates[1.0] / 8) and len(rates) == 4
    assert [g["factor"] for g in parameter_groups(trainer.raw_model, Config())] == [1.0, 1.0]


def test_the_limit_is_in_points() -> None:
    assert not recognition_lost(0.10, 0.12, 2.0) and not recognition_lost(0.10, 0.9, None)
    assert "dev WER 12.10 % is 2.10 points above the 10.00 %" in recognition_lost(0.10, 0.121, 2.0)


def test_a_limit_without_a_word_to_count(corpus: dict[str, str], tmp_path: Path) -> None:
    values = tiny_values(corpus)
    values["data"]["dev"] = [str(make_corpus(tmp_path, 1, seed=3, text=""))]
    values["train"]["init"], values["trunk"] = str(recogniser(tmp_path / "asr", corpus)), {"max_wer_increase": 2}
    with pytest.raises(DataError, match=r"trunk\.max_wer_increase: no utterance of data\.dev has a text with a word"):
        train(parse_config(values, "x"), tmp_path / "run")


def test_a_run_that_loses_recognition_stops_and_keeps_the_last_good_model(
    corpus: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: WER 20 % before training, 21 % after epoch 1, 40 % after epoch 2."""
    values = tiny_values(corpus)
    values["train"] |= {"init": str(recogniser(tmp_path / "asr", corpus)), "epochs": 5, "select": "speaker"}
    values["trunk"] = {"max_wer_increase": 2}
    trainer = Trainer(parse_config(values, "x"), tmp_path / "run")
    wers = iter([0.20, 0.21, 0.40])
    monkeypatch.setattr(trainer, "_wer", lambda summary: next(wers))
    with pytest.raises(
        RecognitionLost, match=r"after epoch 2: dev WER 40\.00 % is 20\.00 points .*holds the best model"
    ):
        trainer.run()
    assert "Kept after epoch 1" in (tmp_path / "run/README.md").read_text()
    # the package has a function of the module's name
    monkeypatch.setattr(
        sys.modules["speech_mtl.train"], "train", lambda *a, **k: (_ for _ in ()).throw(RecognitionLost("stopped: x"))
    )
    result = CliRunner().invoke(app, ["train", "fsdd", "--out", str(tmp_path / "other")])
    assert result.exit_code == 1 and result.stderr == "error: stopped: x\n"
