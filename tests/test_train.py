"""Training as a user meets it: it learns, refuses what cannot be trained, and writes a usable model."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from conftest import make_corpus, tiny_values
from lhotse import CutSet

from speech_mtl.checkpoint import CheckpointError, load_model
from speech_mtl.config import ConfigError, parse_config
from speech_mtl.cuts import with_labels
from speech_mtl.data import DataError, read_cuts
from speech_mtl.evaluate import evaluate
from speech_mtl.train import Diverged, Trainer, train


def test_both_tasks_are_learnt(corpus: dict[str, str], tmp_path: Path) -> None:
    values = tiny_values(corpus)
    values["augment"] = {"time_masks": 0, "freq_masks": 0}
    values["tasks"]["gender"] = {"type": "classify"}
    values["tasks"]["speaker"]["weight"] = 0.1
    values["train"] |= {"epochs": 30, "lr": 5e-3, "eval_every": 10, "ema_decay": 0.9}
    values["text"] = {"units": "bpe", "vocab_size": 20}
    model = load_model(train(parse_config(values, "test"), tmp_path / "run"))
    summary = evaluate(model, [corpus["dev"]], tmp_path / "eval")
    assert summary["asr"]["wer"] < 0.3
    assert summary["speaker"]["accuracy"] > 0.9 and summary["gender"]["accuracy"] > 0.9
    lines = [json.loads(line) for line in (tmp_path / "run/training/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [10, 20, 30] and "wer" in lines[0]["dev"]["asr"]
    assert list((tmp_path / "run/training/tensorboard").iterdir())


def test_a_second_stage_on_a_frozen_encoder_leaves_recognition_as_it_was(
    corpus: dict[str, str], tmp_path: Path
) -> None:
    values = tiny_values(corpus)
    values["train"]["epochs"] = 1
    first = load_model(train(parse_config(values, "x"), tmp_path / "first"))
    values["train"] |= {"init": str(tmp_path / "first"), "freeze": ["encoder", "tasks.asr"]}
    values["augment"]["speeds"] = [1.0]  # other classes: the speaker head's centres start anew
    second = load_model(train(parse_config(values, "x"), tmp_path / "second"))
    before, after = first.state_dict(), second.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before if n.startswith(("encoder", "tasks.asr", "features")))
    assert not torch.equal(before["tasks.speaker.embedding.weight"], after["tasks.speaker.embedding.weight"])
    values["encoder"]["d_model"] = 16
    with pytest.raises(CheckpointError, match="none of its encoder's weights fits"):
        train(parse_config(values, "x"), tmp_path / "third")


def test_recognition_alone_trains_where_dev_speakers_are_enrolled(corpus: dict[str, str], tmp_path: Path) -> None:
    values = tiny_values(corpus)
    values["tasks"] = {"asr": values["tasks"]["asr"]}
    values["data"]["dev_enroll"] = [corpus["dev"]]
    values["train"]["epochs"] = 1
    train(parse_config(values, "test"), tmp_path / "run")
    assert "wer" in json.loads((tmp_path / "run/training/metrics.jsonl").read_text())["dev"]["asr"]


def test_bf16_trains(corpus: dict[str, str], tmp_path: Path) -> None:
    values = tiny_values(corpus)
    values["train"] |= {"epochs": 1, "precision": "bf16"}
    load_model(train(parse_config(values, "test"), tmp_path / "run"))
    (line,) = (tmp_path / "run/training/metrics.jsonl").read_text().splitlines()
    assert all(0 < loss < 100 for loss in json.loads(line)["loss"].values())


def test_a_loss_that_is_no_number_ends_the_run(corpus: dict[str, str], tmp_path: Path) -> None:
    values = tiny_values(corpus)
    values["tasks"] = {"asr": {"type": "asr"}}
    values["train"] |= {"lr": 1e9, "clip_norm": 1e9, "warmup_epochs": 0}
    with pytest.raises(Diverged, match=r"the losses are asr nan in step \d+ .* at .* 1e\+09; .*; no model was kept"):
        train(parse_config(values, "x"), tmp_path / "run")
    assert not (tmp_path / "run/config.json").exists()
    # in the last step: no loss comes after it, and a recogniser of weights that are no numbers writes words
    values["train"] |= {"lr": 1e39, "epochs": 0.01}
    with pytest.raises(Diverged, match="weights are no numbers after epoch 1; .*; no model was kept"):
        train(parse_config(values, "x"), tmp_path / "last")


def test_dev_manifests_are_read_before_training(corpus: dict[str, str], tmp_path: Path) -> None:
    values = tiny_values(corpus)
    nobody = str(make_corpus(tmp_path, 1, seed=9, speaker=None))
    for data, message in {
        ("dev", "gone.jsonl.gz"): "gone.jsonl.gz does not exist",
        ("dev_enroll", "gone.jsonl.gz"): "gone.jsonl.gz does not exist",
        ("dev_enroll", nobody): "data.dev_enroll: cut 'ann-9-0' has no speaker label",
    }.items():
        wrong = {"data": values["data"] | {data[0]: [data[1]]}}
        with pytest.raises(DataError, match=message):
            Trainer(parse_config(values | wrong, "x"), tmp_path / "run")


def test_refusals(corpus: dict[str, str], tmp_path: Path) -> None:
    values = tiny_values(corpus)
    with pytest.raises(DataError, match="names no manifest"):
        train(parse_config(values | {"data": {}}, "x"), tmp_path / "a")
    no_text = str(make_corpus(tmp_path, 1, seed=3, text=None))
    with pytest.raises(DataError, match="task 'asr': no training utterance has a text"):
        train(parse_config(values | {"data": values["data"] | {"train": [no_text]}}, "x"), tmp_path / "b")
    one = str(make_corpus(tmp_path, 1, seed=4, speaker="ann"))
    with pytest.raises(DataError, match=r"task 'speaker': at least two different labels.*\['ann'\]"):
        train(parse_config(values | {"data": values["data"] | {"train": [one]}}, "x"), tmp_path / "c")
    mute = str(make_corpus(tmp_path, 1, seed=5, text="!?"))
    with pytest.raises(DataError, match="data.train: no text to learn a tokenizer from"):
        train(parse_config(values | {"data": values["data"] | {"train": [mute]}}, "x"), tmp_path / "e")
    with pytest.raises(ConfigError, match="unknown weighting 'pcgard'; did you mean 'pcgrad'?"):
        train(parse_config(values | {"train": {"weighting": "pcgard"}}, "x"), tmp_path / "f")
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train(parse_config(values, "x"), tmp_path / "d", resume=True)


def test_a_model_is_chosen_by_what_its_card_says(corpus: dict[str, str], tmp_path: Path) -> None:
    values = tiny_values(corpus)
    values["train"] |= {"epochs": 1, "select": "speaker"}
    values["data"]["train"] = [str(make_corpus(tmp_path, 2, seed=8))]
    unlabelled = str(make_corpus(tmp_path, 1, seed=6, speaker=None))
    strangers = str(make_corpus(tmp_path, 1, seed=7, speaker="eve"))
    for number, dev in enumerate(([], [unlabelled], [strangers])):
        with pytest.raises(DataError, match="train.select is 'speaker', and no utterance of data.dev = .* has a label"):
            train(parse_config(values | {"data": values["data"] | {"dev": dev}}, "x"), tmp_path / str(number))
    card = (train(parse_config(values, "x"), tmp_path / "one") / "README.md").read_text()
    assert "the best by the mean dev error of speaker:" in card
    values["train"]["select"] = "mean"
    values["data"]["dev"] = [unlabelled]
    card = (train(parse_config(values, "x"), tmp_path / "two") / "README.md").read_text()
    assert "the best by the mean dev error of asr:" in card
    values["data"]["dev"] = []
    card = (train(parse_config(values, "x"), tmp_path / "none") / "README.md").read_text()
    assert "the last, with no dev error:" in card


def unread(manifest: str, path: Path, cuts: int) -> str:
    """The manifest with the first recordings elsewhere than they are."""
    lines = gzip.decompress(Path(manifest).read_bytes()).decode().splitlines()
    path.write_text("\n".join(line.replace(".wav", "[/x]") if i < cuts else line for i, line in enumerate(lines)))
    return str(path)


def test_dev_recordings_that_cannot_be_read(
    corpus: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = tiny_values(corpus)
    values["train"]["epochs"] = 1
    values["data"]["dev"] = [unread(corpus["dev"], tmp_path / "some.jsonl", 3)]
    train(parse_config(values, "x"), tmp_path / "run")
    errors = capsys.readouterr().err
    assert "3 utterances could not be read, such as ann-2-" in errors and "[/x]" in errors  # to rich the end of a style
    values["data"]["dev"] = [unread(corpus["dev"], tmp_path / "all.jsonl", 99)]
    with pytest.raises(DataError, match=r"data\.dev: none of 12 recordings could be read; the first: .*ann-2-.*\[/x\]"):
        train(parse_config(values, "x"), tmp_path / "none")


def test_a_run_is_not_overwritten_and_resumes_only_as_itself(corpus: dict[str, str], tmp_path: Path) -> None:
    values = tiny_values(corpus)
    values["train"]["epochs"] = 1
    (tmp_path / "run/training").mkdir(parents=True)  # of a run that was killed before it had a state
    for name in ("metrics.jsonl", "interference.jsonl"):
        (tmp_path / "run/training" / name).write_text('{"step": 0, "epoch": 1}\n')
    train(parse_config(values, "x"), tmp_path / "run")
    (line,) = (tmp_path / "run/training/metrics.jsonl").read_text().splitlines()
    assert "loss" in json.loads(line)
    assert not (tmp_path / "run/training/interference.jsonl").exists()  # nothing is measured here
    with pytest.raises(CheckpointError, match="already holds a run; resume it"):
        train(parse_config(values, "x"), tmp_path / "run")
    state = torch.load(tmp_path / "run/training/state.pt", weights_only=True)
    state["rngs"] = state["rngs"].repeat(2, 1)
    torch.save(state, tmp_path / "run/training/state.pt")
    with pytest.raises(CheckpointError, match="trained by 2 processes, resumed by 1"):
        train(parse_config(values, "x"), tmp_path / "run", resume=True)
    values["train"]["lr"] = 1e-4
    with pytest.raises(CheckpointError, match=r"another config; these differ: train\.lr"):
        train(parse_config(values, "x"), tmp_path / "run", resume=True)
    whole = (tmp_path / "run/training/state.pt").read_bytes()
    for content in (whole[:10000], b"", b"no state"):
        (tmp_path / "run/training/state.pt").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"state\.pt: damaged, or no state of a run"):
            train(parse_config(values, "x"), tmp_path / "run", resume=True)
    (tmp_path / "run/training/state.pt").unlink()
    with pytest.raises(CheckpointError, match="already holds a model; choose another folder"):
        train(parse_config(values, "x"), tmp_path / "run")
    (tmp_path / "README.md").write_text("somebody's notes")
    with pytest.raises(CheckpointError, match=r"already holds a README.md, which the model's would replace"):
        train(parse_config(values, "x"), tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["README.md"]


@pytest.mark.parametrize("text", ["abc low", "mid hiqh"], ids=["other pieces", "one for another"])
def test_a_run_whose_texts_have_changed_is_not_resumed(corpus: dict[str, str], tmp_path: Path, text: str) -> None:
    values = tiny_values(corpus)
    values["train"]["epochs"] = 1
    manifest = make_corpus(tmp_path, 3, seed=1, text="mid high")
    values["data"]["train"] = [str(manifest)]
    tokenizer = (train(parse_config(values, "x"), tmp_path / "run") / "tokenizer.json").read_bytes()
    CutSet.from_cuts([with_labels(cut, {"text": text}) for cut in read_cuts([manifest])]).to_file(manifest)
    with pytest.raises(CheckpointError, match=r"give other pieces now: .* accepted: 6, d g h i m ▁"):
        train(parse_config(values, "x"), tmp_path / "run", resume=True)
    assert (tmp_path / "run/tokenizer.json").read_bytes() == tokenizer
