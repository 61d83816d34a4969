"""The laws of the design: padding, missing labels, resuming, one pass. Each is a property of the whole model."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import RATE, make_corpus, tiny_model, tiny_values
from safetensors.torch import load_file

from speech_mtl.config import Config, parse_config
from speech_mtl.data import SpeechDataset, batches, read_cuts
from speech_mtl.model import SpeechModel
from speech_mtl.train import Trainer, train


def audio_batch(seconds: list[float], seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    parts = [0.1 * torch.randn(int(s * RATE), generator=generator) for s in seconds]
    return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True), torch.tensor([len(part) for part in parts])


def variants(corpus: dict[str, str]) -> dict[str, Config]:
    plain = tiny_values(corpus)
    plain["encoder"]["dropout"] = 0.0
    for task in plain["tasks"].values():
        task["dropout"] = 0.0
    relative, utterance, eightfold = copy.deepcopy(plain), copy.deepcopy(plain), copy.deepcopy(plain)
    relative["encoder"] |= {"positions": "relative"}
    utterance["features"] = {"normalize": "utterance"}
    eightfold["encoder"] |= {"subsampling": 8}
    named = {"rotary": plain, "relative": relative, "per utterance": utterance, "8x": eightfold}
    return {name: parse_config(values, name) for name, values in named.items()}


@pytest.mark.parametrize("name", ["rotary", "relative", "per utterance", "8x"])
@pytest.mark.parametrize("training", [False, True])
def test_padding_changes_nothing(corpus: dict[str, str], name: str, training: bool) -> None:
    """Law 1: an utterance alone, and beside a longer one, gives the same log-probabilities, text and embedding."""
    config = variants(corpus)[name]
    model = tiny_model(config)
    model.train(training)
    model.task("speaker").eval()  # the statistics of pooled vectors over a batch are the stated exception
    audio_BN, samples_B = audio_batch([0.73, 3.0, 1.21])
    noisy_BN = audio_BN.clone()
    for row, samples in enumerate(samples_B.tolist()):
        noisy_BN[row, samples:] = 0.5  # whatever stands beyond the length is not heard
    together = model(noisy_BN, samples_B)
    for row, samples in enumerate(samples_B.tolist()):
        alone = model(audio_BN[row : row + 1, :samples], samples_B[row : row + 1])
        length = alone["asr"]["lengths"].item()
        assert together["asr"]["lengths"][row] == length
        difference = (together["asr"]["log_probs"][row, :length] - alone["asr"]["log_probs"][0]).abs().max()
        assert difference < 1e-5
        assert (together["speaker"]["embedding"][row] - alone["speaker"]["embedding"][0]).abs().max() < 1e-5


def test_padding_changes_no_loss(corpus: dict[str, str]) -> None:
    """Law 1 for the loss: the sum over a batch is the sum of the utterances' own."""
    model = tiny_model(variants(corpus)["rotary"])
    cuts = list(read_cuts([corpus["dev"]]))[:5]
    dataset = SpeechDataset(model.config)

    def sums(part: list) -> torch.Tensor:
        batch = dataset[0, part]
        targets = model.targets(batch.cuts, batch.samples_B)
        outputs = model(batch.audio_BN, batch.samples_B, rows={name: t["mask"] for name, t in targets.items()})
        return torch.stack([model.task(name).loss(outputs[name], targets[name]) for name in model.tasks])

    with torch.no_grad():
        torch.testing.assert_close(sums(cuts), sum(sums([cut]) for cut in cuts), rtol=1e-5, atol=1e-4)


def gradients(config: Config, seed: int = 0) -> dict[str, torch.Tensor]:
    """Of one optimizer step's batches, before the update."""
    trainer = Trainer(config, Path("unused"))
    kept: dict[str, torch.Tensor] = {}
    trainer.optimizer.step = lambda: kept.update(  # type: ignore[method-assign]
        {name: p.grad.clone() for name, p in trainer.raw_model.named_parameters() if p.grad is not None}
    )
    trainer.accelerator.clip_grad_norm_ = lambda *a: None  # type: ignore[assignment,method-assign]
    trainer._step(next(trainer._groups()))
    return kept


def test_missing_label_gives_no_gradient(corpus: dict[str, str], tmp_path: Path) -> None:
    """Law 3: with no speaker label in the batch, the speaker head's gradient is zero and the trunk's is the ASR's."""
    values = tiny_values(corpus)
    values["augment"] = {"gain_db": 0.0}
    values["encoder"]["dropout"] = 0.0
    config = parse_config(values, "test")
    model = tiny_model(config).train()
    cuts = list(read_cuts([make_corpus(tmp_path, 2, seed=5, speaker=None)]))
    batch = SpeechDataset(config)[0, cuts]
    targets = model.targets(batch.cuts, batch.samples_B)
    assert not targets["speaker"]["mask"].any() and targets["asr"]["mask"].all()
    rows = {name: t["mask"] for name, t in targets.items()}

    def trunk_gradient(tasks: list[str]) -> list[torch.Tensor]:
        model.zero_grad()
        torch.manual_seed(0)
        outputs = model(batch.audio_BN, batch.samples_B, rows=rows)
        sum(model.task(name).loss(outputs[name], targets[name]) for name in tasks).backward()
        return [p.grad.clone() for p in model.encoder.parameters()]

    both = trunk_gradient(["asr", "speaker"])
    assert all(p.grad is not None and not p.grad.any() for p in model.task("speaker").parameters())
    assert all(torch.equal(a, b) for a, b in zip(both, trunk_gradient(["asr"]), strict=True))
    assert any(g.abs().max() > 0 for g in both)


def test_unlabelled_utterance_changes_no_other(corpus: dict[str, str], tmp_path: Path) -> None:
    """Law 3: adding an utterance without a speaker leaves the speaker head's loss and gradient as they were."""
    config = variants(corpus)["rotary"]
    model = tiny_model(config).train()
    labelled = list(read_cuts([corpus["dev"]]))[:4]
    unlabelled = list(read_cuts([make_corpus(tmp_path, 1, seed=6, speaker=None)]))

    def head_gradient(cuts: list) -> list[torch.Tensor]:
        model.zero_grad()
        batch = SpeechDataset(config)[0, cuts]
        targets = model.targets(batch.cuts, batch.samples_B)
        outputs = model(batch.audio_BN, batch.samples_B, rows={name: t["mask"] for name, t in targets.items()})
        model.task("speaker").loss(outputs["speaker"], targets["speaker"]).backward()
        return [p.grad.clone() for p in model.task("speaker").parameters()]

    for a, b in zip(head_gradient(labelled), head_gradient(labelled + unlabelled), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_accumulation_divides_by_all_labels(corpus: dict[str, str], tmp_path: Path) -> None:
    """Law 3 over accumulation: small batches accumulated give the gradient of the one large batch."""
    values = tiny_values(corpus)
    values["augment"] = {"gain_db": 0.0, "time_masks": 0, "freq_masks": 0}
    values["encoder"]["dropout"] = 0.0
    for task in values["tasks"].values():
        task["dropout"] = 0.0
    # only the recogniser: the speaker head's batch statistics are of each small batch
    del values["tasks"]["speaker"]
    values["data"] |= {"n_buckets": 1, "max_duration_s": 100.0}
    large = gradients(parse_config(values, "large"))
    values["data"]["max_duration_s"] = 6.0
    values["train"]["accumulate"] = 100
    small = gradients(parse_config(values, "small"))
    assert large.keys() == small.keys()
    for name in large:
        torch.testing.assert_close(small[name], large[name], rtol=2e-3, atol=2e-6)


def test_resuming_changes_nothing(corpus: dict[str, str], tmp_path: Path) -> None:
    """Law 4: stopped in the middle of an epoch and resumed = never stopped, bit for bit."""
    values = tiny_values(corpus)
    values["tasks"]["asr"]["consistency"] = 0.2
    values["tasks"]["speaker"]["crop_s"] = [0.2, 0.5]  # whatever training draws is part of the state
    tiny_config = parse_config(values, "test")
    whole = train(tiny_config, tmp_path / "whole")
    stopped = Trainer(tiny_config, tmp_path / "stopped")
    step, stopped_at = stopped._step, 4

    def stop_after(group: list) -> dict[str, float]:
        losses = step(group)
        stopped.interrupted = stopped.step == stopped_at
        return losses

    stopped._step = stop_after  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert 0 < stopped.batches_done and stopped.epoch == 0
    resumed = train(tiny_config, tmp_path / "stopped", resume=True)
    ours, theirs = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    dev = [json.loads((p / "training" / "metrics.jsonl").read_text().splitlines()[-1])["dev"] for p in (whole, resumed)]
    for summary in dev:
        summary.pop("cost")
    assert dev[0] == dev[1]


def test_a_run_stopped_at_its_last_step_ends_there(corpus: dict[str, str], tmp_path: Path) -> None:
    """Law 4 where the last epoch is a part of one."""
    values = tiny_values(corpus)
    values["train"]["epochs"] = 0.2
    config = parse_config(values, "test")
    whole, stopped = Trainer(config, tmp_path / "whole"), Trainer(config, tmp_path / "stopped")
    whole.run()
    step = stopped._step

    def stop_at_the_last(group: list) -> dict[str, float]:
        losses = step(group)
        stopped.interrupted = stopped.step == whole.step
        return losses

    stopped._step = stop_at_the_last  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    resumed = Trainer(config, tmp_path / "stopped")
    resumed.load_state(tmp_path / "stopped/training/state.pt")
    resumed.run()
    assert resumed.step == whole.step


def test_dev_scores_after_the_last_state_are_kept_once(corpus: dict[str, str], tmp_path: Path) -> None:
    values = tiny_values(corpus)
    values["train"]["checkpoint_minutes"] = 1e-9
    config = parse_config(values, "test")
    stopped = Trainer(config, tmp_path)
    save = stopped.save_state

    def save_until_the_disk_is_full() -> None:
        if stopped.epoch:
            raise OSError(28, "No space left on device")
        save()

    stopped.save_state = save_until_the_disk_is_full  # type: ignore[method-assign]
    with pytest.raises(OSError, match="No space left"):
        stopped.run()
    train(config, tmp_path, resume=True)
    assert [json.loads(line)["epoch"] for line in (tmp_path / "training/metrics.jsonl").read_text().splitlines()] == [
        1,
        2,
    ]


def test_killed_by_a_signal_then_resumed(corpus: dict[str, str], tmp_path: Path) -> None:
    """Law 4 from outside: SIGINT leaves a state that resumes, through worker processes as well."""
    values = tiny_values(corpus)
    values["data"]["workers"] = 1
    values["train"]["epochs"] = 6
    (tmp_path / "config.json").write_text(json.dumps(values))
    script = (
        "import json, sys; from speech_mtl.config import parse_config; from speech_mtl.train import train; "
        "train(parse_config(json.load(open(sys.argv[1])), 'test'), sys.argv[2], resume=sys.argv[3] == 'resume')"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "config.json"), str(tmp_path / "run")]
    process = subprocess.Popen([*command, "fresh"], stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": "."})
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "training" / "state.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1].decode()
    assert process.returncode != 0 and "saved after step" in errors
    subprocess.run(
        [*command, "resume"], check=True, capture_output=True, timeout=120, env=os.environ | {"PYTHONPATH": "."}
    )
    epochs = [json.loads(line)["epoch"] for line in (tmp_path / "run/training/metrics.jsonl").read_text().splitlines()]
    assert epochs == [1, 2, 3, 4, 5, 6]


def test_one_pass_gives_what_each_task_gives_alone(tiny_config: Config) -> None:
    """Law 6: text and identity come from one run of the encoder, and equal each task's own."""
    model = tiny_model(tiny_config)
    calls = []
    model.encoder.register_forward_hook(lambda *a: calls.append(1))
    audio_BN, samples_B = audio_batch([1.0, 2.0])
    together = model.predict(audio_BN, samples_B)
    assert len(calls) == 1
    for name in ("asr", "speaker"):
        values = tiny_config.model_dump()
        values["tasks"] = {name: values["tasks"][name]}
        single = SpeechModel(parse_config(values, "single"), model.tokenizer, model.labels).eval()
        single.load_state_dict({k: v for k, v in model.state_dict().items() if k in single.state_dict()})
        for both, alone in zip(together, single.predict(audio_BN, samples_B), strict=True):
            if name == "asr":
                assert both["asr"] == alone["asr"]
            else:
                assert torch.equal(both["speaker"]["embedding"], alone["speaker"]["embedding"])


def test_batches_do_not_depend_on_who_asks(tiny_config: Config) -> None:
    """The augmentation of a cut is a function of seed, epoch and id; two processes share out one epoch's cuts."""

    def epoch(**kwargs: int) -> dict[str, torch.Tensor]:
        loader = batches(read_cuts(tiny_config.data.train), tiny_config, train=True, **kwargs)
        return {cut.id: batch.audio_BN[i, : batch.samples_B[i]] for batch in loader for i, cut in enumerate(batch.cuts)}

    whole = epoch(epoch=1)
    parts = epoch(epoch=1, rank=0, processes=2) | epoch(epoch=1, rank=1, processes=2)
    assert whole.keys() == parts.keys() and len(whole) == 48
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    other = epoch(epoch=2)
    assert any(not torch.equal(whole[name], other[name]) for name in whole)
