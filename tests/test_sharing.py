"""One step's gradients: exact for the trunk, the heads' own, alike however a step is split up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_values

from speech_mtl.config import Config, parse_config
from speech_mtl.data import Batch, SpeechDataset, read_cuts
from speech_mtl.sharing import gram
from speech_mtl.train import Trainer
from speech_mtl.weighting import METHODS

PLAIN = {"gain_db": 0.0, "time_masks": 0, "freq_masks": 0}


def config_of(corpus: dict[str, str], **changes: dict) -> Config:
    """Without anything random or anything over the batch but the pooled statistics; three blocks, three tasks."""
    values = tiny_values(corpus)
    values["encoder"] |= {"dropout": 0.0, "n_blocks": 3}
    values["tasks"]["gender"] = {"type": "classify"}
    for task in values["tasks"].values():
        task["dropout"] = 0.0
    values["augment"] = PLAIN
    for section, change in changes.items():
        for key, value in change.items():
            node = values.setdefault(section, {})
            node[key] = node[key] | value if isinstance(value, dict) and key in node else value
    return parse_config(values, "test")


def batch_of(config: Config, corpus: dict[str, str], first: int, count: int) -> Batch:
    return SpeechDataset(config)[0, list(read_cuts([corpus["train"]]))[first : first + count]]  # type: ignore[index]


def step_gradients(config: Config, group: list[Batch], tmp_path: Path) -> dict[str, torch.Tensor]:
    trainer = Trainer(config, tmp_path / "unused")
    targets = [trainer.raw_model.targets(batch.cuts, batch.samples_B) for batch in group]
    scales = {name: task.weight for name, task in config.tasks.items()}
    trainer.gradients.backward(group, targets, scales, False)
    return {n: p.grad.clone() for n, p in trainer.raw_model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("branches", [{}, {"asr": 2, "speaker": 1}, {"asr": 0, "speaker": 0, "gender": 0}])
def test_the_trunk_gets_the_weighted_sum_and_heads_their_own(
    corpus: dict[str, str], tmp_path: Path, branches: dict[str, int]
) -> None:
    """Against plain autograd: d(0.5·asr - 0.2·speaker + 0·gender) for the trunk, each task's own loss for the rest."""
    weights = {"asr": 0.5, "speaker": -0.2, "gender": 0.0}
    config = config_of(corpus, tasks={n: {"weight": w, "branch": branches.get(n)} for n, w in weights.items()})
    batch = batch_of(config, corpus, 0, 9)
    ours = step_gradients(config, [batch], tmp_path)
    model = Trainer(config, tmp_path / "unused").raw_model.train()
    targets = model.targets(batch.cuts, batch.samples_B)
    expected: dict[str, torch.Tensor] = {}
    for name in model.tasks:
        model.zero_grad()
        output = model(batch.audio_BN, batch.samples_B, {n: t["mask"] for n, t in targets.items()})[name]
        (model.task(name).loss(output, targets[name]) / targets[name]["mask"].sum()).backward()
        for place, weight in model.named_parameters():
            if weight.grad is None:
                continue
            scale = weights[name] if place.startswith("encoder.") else 1.0
            expected[place] = expected.get(place, 0) + scale * weight.grad
    assert ours.keys() == expected.keys()
    for place in ours:
        torch.testing.assert_close(
            ours[place], expected[place], rtol=1e-3, atol=5e-6, msg=lambda m, p=place: f"{p}: {m}"
        )


@pytest.mark.parametrize("method", ["fixed", "dwa", "famo", "pcgrad"])
def test_a_probe_changes_no_trunk(corpus: dict[str, str], tmp_path: Path, method: str) -> None:
    """Two epochs and more, after which DWA looks at what the losses did; the probe's head learns all the same."""
    trunks = []
    for probe in (False, True):
        config = config_of(corpus, train={"weighting": method})
        values = config.model_dump()
        values["tasks"]["gender"]["weight"] = 0.0
        if not probe:
            del values["tasks"]["gender"]
        trainer = Trainer(parse_config(values, "test"), tmp_path / f"{method}{probe}")
        group = [batch_of(config, corpus, 0, 12)]
        before = trainer.raw_model.tasks["gender"].linear.weight.clone() if probe else None
        for _ in range(4):
            trainer._step(group)
            trainer.weighting.after_epoch()
        trunks.append({n: w.clone() for n, w in trainer.raw_model.named_parameters() if n.startswith("encoder.")})
        assert before is None or not torch.equal(before, trainer.raw_model.tasks["gender"].linear.weight)
    assert all(torch.equal(trunks[0][name], trunks[1][name]) for name in trunks[0])


def test_a_branch_point_of_zero_shares_nothing(corpus: dict[str, str], tmp_path: Path) -> None:
    config = config_of(corpus, tasks={name: {"branch": 0} for name in ("asr", "speaker", "gender")})
    model = Trainer(config, tmp_path / "unused").raw_model
    assert not list(model.encoder.parameters()) and set(model.branches) == {"asr", "speaker", "gender"}
    alone = config_of(corpus, tasks={"asr": {"branch": 3}})
    whole = Trainer(alone, tmp_path / "unused").raw_model
    count = [sum(p.numel() for p in part.parameters()) for part in (model.branches["asr"], whole.encoder)]
    assert count[0] == count[1]


@pytest.mark.parametrize("method", METHODS)
def test_accumulated_batches_change_nothing(corpus: dict[str, str], tmp_path: Path, method: str) -> None:
    """Three batches of one step, or one of all their utterances, for every method; pooled statistics are fixed here."""
    config = config_of(corpus, train={"weighting": method})
    trainers = [Trainer(config, tmp_path / "unused") for _ in range(2)]
    groups = [[batch_of(config, corpus, 0, 9)], [batch_of(config, corpus, i, n) for i, n in ((0, 2), (2, 3), (5, 4))]]
    found = []
    for trainer, group in zip(trainers, groups, strict=True):
        trainer.raw_model.eval()
        trainer.raw_model.train = lambda mode=True: None  # type: ignore[method-assign,assignment,return-value]
        targets = [trainer.raw_model.targets(batch.cuts, batch.samples_B) for batch in group]
        losses, present = trainer.gradients.backward(group, targets, dict.fromkeys(config.tasks, 1.0), False)
        assert present.all()
        found.append({n: p.grad.clone() for n, p in trainer.raw_model.named_parameters()} | {"losses": losses})
    for name in found[0]:
        torch.testing.assert_close(
            found[1][name], found[0][name], rtol=2e-3, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_gram_of_gradients_over_several_tensors() -> None:
    """(1·3 + 2·4) and so on, by hand."""
    a, b = [torch.tensor([1.0]), torch.tensor([[2.0]])], [torch.tensor([3.0]), torch.tensor([[4.0]])]
    assert gram([a, b]).tolist() == [[5.0, 11.0], [11.0, 25.0]]


SCRIPT = """
import json, sys, torch
from pathlib import Path
from speech_mtl.config import parse_config
from speech_mtl.data import SpeechDataset, read_cuts
from speech_mtl.train import Trainer

def main(job):
    config = parse_config(job["config"], "test")
    found = {}
    for method in job["methods"]:
        values = config.model_dump()
        values["train"]["weighting"] = method
        trainer = Trainer(parse_config(values, "test"), Path("unused"))
        # plain gradient steps: Adam turns the rounding of a gradient that should be 0 into a whole step
        trainer.optimizer = torch.optim.SGD([{"params": trainer.raw_model.parameters(), "factor": 1.0}], lr=0.0)
        rank, processes = trainer.accelerator.process_index, trainer.accelerator.num_processes
        cuts = list(read_cuts(config.data.train))
        for step in range(3):
            part = cuts[8 * step : 8 * step + 8][rank::processes]
            trainer._step([SpeechDataset(config)[0, part]])
        if rank == 0:
            for kind, model in (("trained", trainer.raw_model), ("averaged", trainer.average.module)):
                found |= {f"{method} {kind} {n}": p.detach().clone() for n, p in model.state_dict().items()}
    if found:
        torch.save(found, job["out"])
main(json.load(open(sys.argv[1])))
"""


def test_two_processes_change_nothing(corpus: dict[str, str], tmp_path: Path) -> None:
    """Law 5: three steps by two processes, half of every batch each, equal those by one, for every method.

    One utterance in three has no speaker, so that the processes' counts differ; the pooled statistics are over both.
    """
    cuts = list(read_cuts([corpus["train"]]))
    for i in range(0, len(cuts), 3):
        cuts[i].supervisions[0].speaker = None
    from lhotse import CutSet

    manifest = tmp_path / "mixed.jsonl.gz"
    CutSet.from_cuts(cuts).to_file(manifest)
    config = config_of(
        corpus,
        data={"train": [str(manifest)]},
        train={"clip_norm": 1e9, "lr": 0.001, "warmup_epochs": 0, "interference_every": 2},
    )
    results = []
    (tmp_path / "script.py").write_text(SCRIPT)
    for processes in (1, 2):
        job = {"config": config.model_dump(), "methods": list(METHODS), "out": str(tmp_path / f"{processes}.pt")}
        (tmp_path / f"{processes}.json").write_text(json.dumps(job))
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        subprocess.run(
            [*launcher, str(tmp_path / "script.py"), str(tmp_path / f"{processes}.json")],
            check=True, capture_output=True, timeout=300, cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.getcwd()},
        )  # fmt: skip
        results.append(torch.load(tmp_path / f"{processes}.pt", weights_only=True))
    assert results[0].keys() == results[1].keys()
    for name in results[0]:
        torch.testing.assert_close(
            results[1][name], results[0][name], rtol=1e-5, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
