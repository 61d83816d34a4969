"""The instrument against gradients whose agreement is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_values

from speech_mtl import interference
from speech_mtl.checkpoint import keep_lines
from speech_mtl.config import parse_config
from speech_mtl.data import SpeechDataset, read_cuts
from speech_mtl.train import Trainer, train

WEIGHTS = {"asr": 1.0, "speaker": 1.0}


def record(step: int, products: list[list[float]], scales: tuple[float, float] = (1.0, 1.0)) -> dict:
    """One measurement of a single block; rows: asr half 1, asr half 2, speaker half 1, speaker half 2."""
    return {
        "step": step, "epoch": step / 10, "lr": 0.1, "tasks": ["asr", "speaker"], "losses": [2.0, 4.0],
        "blocks": ["1"], "gram": [products], "scales": dict(zip(("asr", "speaker"), scales, strict=True)),
    }  # fmt: skip


def products_of(*gradients: list[float]) -> list[list[float]]:
    matrix = np.array(gradients)
    return (matrix @ matrix.T).tolist()


def test_figures_by_hand() -> None:
    """asr (1,0) and (1,0), speaker (1,1) and (1,-1): whole gradients (1,0) and (1,0).

    rho: <a1,b2> = 1, <b1,a2> = 1, <a1,a2> = 1, <b1,b2> = 0, which cannot be measured. With (1,2) and (1,0) instead of
    the speaker's: <b1,b2> = 1, rho = 1 / sqrt(1·1) = 1; the whole is (1,1), cosine 1/sqrt(2), sizes 1 and sqrt(2):
    magnitude similarity 2·sqrt(2)/3. affinity: 0.1·1/4 for speaker's loss, 0.1·1/2 for asr's.
    """
    (pair,) = interference.agreement([record(1, products_of([1, 0], [1, 0], [1, 1], [1, -1]))], WEIGHTS)
    assert pair["rho_mean"] == [None] and pair["cosine"] == [[1.0]]
    (pair,) = interference.agreement([record(1, products_of([1, 0], [1, 0], [1, 2], [1, 0]))], WEIGHTS)
    assert pair["rho_mean"] == [1.0] and pair["rho"] == [[1.0]] and pair["conflict_frequency"] == [0.0]
    assert pair["cosine"][0][0] == pytest.approx(2**-0.5, abs=1e-6)
    assert pair["magnitude_similarity"][0] == pytest.approx(2 * 2**0.5 / 3, abs=1e-6)
    assert pair["affinity"] == {"asr -> speaker": [0.025], "speaker -> asr": [0.05]}


def test_what_no_cosine_can_be_is_not_measured() -> None:
    """<a1,a2> = 1, <b1,b2> = 0.01 beside products of 1 across: 1 / sqrt(0.01) = 10."""
    (pair,) = interference.agreement([record(1, products_of([1, 0], [1, 0], [1, 0.99], [1, -1]))], WEIGHTS)
    assert pair["rho"] == [[None]] and pair["rho_mean"] == [None]


def test_noise_is_corrected_for() -> None:
    """True cosine 0.6 under noise ten times as large: the plain cosine is near 0, rho near 0.6, its interval true."""
    rng = np.random.default_rng(0)
    a, b = np.zeros((2, 400))
    a[0], b[0], b[1] = 1, 0.6, 0.8
    records = []
    for step in range(3000):
        halves = [g + rng.normal(0, 0.5, 400) for g in (a, a, b, b)]
        records.append(record(step, products_of(*halves)))
    (pair,) = interference.agreement(records, WEIGHTS)
    assert abs(np.mean(pair["cosine"][0])) < 0.05
    assert pair["rho_mean"][0] == pytest.approx(0.6, abs=0.15)
    assert pair["rho_low"][0] < 0.6 < pair["rho_high"][0] and pair["rho_high"][0] - pair["rho_low"][0] < 0.5


def test_negative_weight_turns_a_task_round() -> None:
    """Also where its warm-up begins with 0. It enters the trunk turned; asr's step lowers its loss all the same."""
    products = products_of([1, 0], [1, 0], [1, 0], [1, 0])
    records = [record(i, products, (1.0, -0.5 * (i > 1))) for i in range(4)]
    (pair,) = interference.agreement(records, {"asr": 1.0, "speaker": -0.5})
    assert pair["cosine"] == [[-1.0] * 4] and pair["rho_mean"] == [-1.0] and pair["conflict_frequency"] == [1.0]
    assert pair["affinity"] == {"asr -> speaker": [0.025], "speaker -> asr": [-0.05]}


def test_a_probe_is_in_no_pair() -> None:
    """Its gradient is against asr's, and changes nothing in the trunk."""
    products = products_of([1, 0], [1, 0], [-1, 0], [-1, 0])
    assert interference.agreement([record(i, products, (1.0, 0.0)) for i in range(4)], WEIGHTS | {"speaker": 0.0}) == []


def test_proposed_branch_point_is_below_the_lowest_conflict_beyond_doubt() -> None:
    pair = {
        "tasks": ["asr", "speaker"], "blocks": ["subsampling", "1", "2", "3"],
        "rho_mean": [-0.9, 0.3, -0.2, -0.4], "rho_high": [-0.8, 0.5, 0.2, -0.1],
    }  # fmt: skip
    branch, why = interference.propose_branch([pair]) or (None, "")
    assert branch == 2 and "block 3" in why and "-0.40" in why
    pair["rho_high"][3] = None  # type: ignore[index]
    branch, why = interference.propose_branch([pair]) or (None, "")
    assert branch == 3 and "not measurable for all tasks: block 3" in why
    pair |= {"blocks": ["subsampling", "3", "4", "5"], "rho_high": [None, 0.5, 0.2, 0.1]}  # blocks 1 and 2 are frozen
    assert (interference.propose_branch([pair]) or (None,))[0] == 5
    pair["rho_high"] = [None] * 4
    assert interference.propose_branch([pair]) is None


def test_conflict_is_told_as_it_is_proposed() -> None:
    """rho_high, by which the advice goes, is held to 95 % over all blocks and pairs together, as the proposal is.

    Four blocks, of which one seems to conflict when looked at by itself: noise of 0.2 about -0.45 in 4 measurements.
    """
    gram = np.zeros((4, 4, 4, 4))
    gram[:, :, range(4), range(4)] = gram[:, :, [0, 1, 2, 3], [1, 0, 3, 2]] = 1
    gram[:, 0, :2, 2:] = gram[:, 0, 2:, :2] = np.array([-0.2, -0.4, -0.5, -0.7])[:, None, None]
    gram[:, 1:, :2, 2:] = gram[:, 1:, 2:, :2] = np.array([0.2, -0.2, 0.1, -0.1])[:, None, None, None]
    records = [record(i, []) | {"blocks": ["1", "2", "3", "4"], "gram": gram[i].tolist()} for i in range(4)]
    (pair,) = interference.agreement(records, WEIGHTS)
    assert pair["rho_mean"][0] == -0.45 and -0.45 + 3.182 * pair["rho_error"][0] < 0  # Student's t of 3: 97.5 %
    assert pair["rho_high"][0] > 0 and (interference.propose_branch([pair]) or (None,))[0] == 4


def test_few_measurements_conflict_no_more_often_by_chance() -> None:
    """Gradients that have nothing to do with one another, in four blocks: 5 % may seem to conflict in one of them."""
    rng = np.random.default_rng(0)
    missed, proposed, trials = 0, 0, 200
    for _ in range(trials):
        records = []
        for step in range(4):
            a, b = rng.normal(size=(2, 4, 1, 50))
            halves = np.concatenate([a, a, b, b], axis=1) + rng.normal(0, 0.3, (4, 4, 50))
            gram = (halves @ halves.transpose(0, 2, 1)).tolist()
            records.append(record(step, []) | {"blocks": ["1", "2", "3", "4"], "gram": gram})
        (pair,) = interference.agreement(records, WEIGHTS)
        missed += not pair["rho_low"][0] <= 0 <= pair["rho_high"][0]
        found = interference.propose_branch([pair])
        proposed += found is not None and found[0] < 4
    assert missed < 0.1 * trials and proposed < 0.1 * trials


def test_measured_products_are_those_of_the_gradients(corpus: dict[str, str], tmp_path: Path) -> None:
    """Against plain autograd on each half; and measuring draws nothing from the training's random numbers."""
    config = parse_config(tiny_values(corpus), "test")
    trainer = Trainer(config, tmp_path / "run")
    model = trainer.raw_model
    batch = SpeechDataset(config)[0, list(read_cuts([corpus["train"]]))[:6]]  # type: ignore[index]
    targets = model.targets(batch.cuts, batch.samples_B)
    random = torch.get_rng_state()
    found = interference.measure(model, batch, targets, trainer.accelerator)
    assert torch.equal(random, torch.get_rng_state())
    assert found["tasks"] == ["asr", "speaker"] and found["blocks"] == ["subsampling", "1", "2"]
    weights = list(model.encoder.blocks["1"].parameters())
    gradients = []
    for name in ("asr", "speaker"):
        for rows in (torch.tensor([0, 2, 4]), torch.tensor([1, 3, 5])):
            output = model(batch.audio_BN[rows], batch.samples_B[rows])[name]
            own = {key: value[rows] for key, value in targets[name].items()}
            loss = model.task(name).loss(output, own) / 3
            flat = torch.autograd.grad(loss, weights, allow_unused=True)
            gradients.append(torch.cat([torch.zeros_like(w).flatten() if g is None else g.flatten()
                                        for w, g in zip(weights, flat, strict=True)]))  # fmt: skip
    expected = torch.stack(gradients) @ torch.stack(gradients).T
    torch.testing.assert_close(torch.tensor(found["gram"][2]).float(), expected, rtol=2e-3, atol=1e-4)


def test_halves_are_of_utterances_whatever_is_labelled(corpus: dict[str, str], tmp_path: Path) -> None:
    """The first utterance lacks a speaker. Each task's labels are halved, and no utterance is in both halves."""
    config = parse_config(tiny_values(corpus), "test")
    trainer = Trainer(config, tmp_path / "run")
    model = trainer.raw_model
    batch = SpeechDataset(config)[0, list(read_cuts([corpus["train"]]))[:6]]  # type: ignore[index]
    targets = model.targets(batch.cuts, batch.samples_B)
    targets["speaker"]["mask"][0] = False
    found = interference.measure(model, batch, targets, trainer.accelerator)
    weights = list(model.encoder.blocks["1"].parameters())
    gradients = []
    for name, rows in (("asr", [1, 3, 5]), ("asr", [0, 2, 4]), ("speaker", [1, 3, 5]), ("speaker", [2, 4])):
        output = model(batch.audio_BN[rows], batch.samples_B[rows])[name]
        own = {key: value[rows] for key, value in targets[name].items()}
        flat = torch.autograd.grad(model.task(name).loss(output, own) / len(rows), weights, allow_unused=True)
        gradients.append(torch.cat([torch.zeros_like(w).flatten() if g is None else g.flatten()
                                    for w, g in zip(weights, flat, strict=True)]))  # fmt: skip
    expected = torch.stack(gradients) @ torch.stack(gradients).T
    torch.testing.assert_close(torch.tensor(found["gram"][2]).float(), expected, rtol=2e-3, atol=1e-4)
    targets["speaker"]["mask"][1:5] = False
    assert interference.measure(model, batch, targets, trainer.accelerator) == {}  # one label, no second half


def test_each_tasks_labels_are_halved() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        masks = [torch.tensor(rng.random(12) < share) for share in rng.uniform(0.2, 1, 3)]
        first_B = interference.first_half(masks)
        for mask in masks:
            assert abs(int((mask & first_B).sum()) - int((mask & ~first_B).sum())) <= 2
    a, b = torch.tensor([1, 1, 1, 1, 0, 0]).bool(), torch.tensor([0, 0, 0, 1, 1, 1]).bool()
    first_B = interference.first_half([a, b])
    assert int((a & first_B).sum()) == 2 and 1 <= int((b & first_B).sum()) <= 2


def test_two_copies_of_a_task_agree_and_an_opposed_one_conflicts(corpus: dict[str, str], tmp_path: Path) -> None:
    for weight, sign in ((1.0, 1), (-1.0, -1)):
        values = tiny_values(corpus)
        values["tasks"] = {
            "one": {"type": "classify", "label": "gender", "dropout": 0.0},
            "two": {"type": "classify", "label": "gender", "dropout": 0.0, "weight": weight},
        }
        values["train"] |= {"interference_every": 2}
        folder = train(parse_config(values, "test"), tmp_path / str(sign))
        (pair,) = interference.agreement(interference.read_records(folder / "training"), {"one": 1.0, "two": weight})
        # equal heads start alike, and stay alike without dropout; a gradient may be too small to measure without noise
        assert all(sign * cosine > 0.99 for block in pair["cosine"] for cosine in block)
        assert all(sign * rho > 0.99 for rho in pair["rho_mean"] if rho is not None)
        if sign < 0 and None not in pair["rho_high"]:
            assert (interference.propose_branch([pair]) or (None,))[0] == 0


def test_a_resumed_run_keeps_no_measurement_twice(tmp_path: Path) -> None:
    for step in (0, 10, 20):
        interference.append_record(tmp_path, {"step": step})
    with open(tmp_path / interference.FILE, "a") as file:
        file.write('{"step": 3')  # the disk was full
    keep_lines(tmp_path / interference.FILE, lambda record: record["step"] < 10)
    assert [r["step"] for r in interference.read_records(tmp_path)] == [0]
