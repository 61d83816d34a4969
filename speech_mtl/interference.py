"""Do the tasks pull the shared weights the same way? Measured while training, block by block.

Every so many steps a batch is split in two halves, and each task's gradient with respect to every block's weights is
taken on each half. What is kept of them is their inner products, from which follow, per block and over time:

- cosine of two tasks' gradients, and the share of measurements where it is below zero (conflict; Shi et al. 2023,
  'Recon', arXiv 2302.11289);
- rho, the cosine corrected for noise: ⟨a₁,b₂⟩ / √(⟨a₁,a₂⟩⟨b₁,b₂⟩) of halves 1 and 2. A small batch's gradients are
  mostly noise, which draws the plain cosine towards 0; here every product is of different utterances. Where a product
  under the root is not positive, or so small that rho lies far beyond what a cosine can be, the gradient is not
  measurable in so little data;
- magnitude similarity 2|a||b| / (|a|² + |b|²) (Yu et al. 2020, 'PCGrad', arXiv 2001.06782), as they enter the trunk;
- affinity: the share by which a plain step along task a's gradient lowers task b's loss, to first order
  lr·⟨a,b⟩ / loss of b (Fifty et al. 2021, 'TAG', arXiv 2109.04617).

Gradients count as they enter the trunk: one of negative weight turned round, a probe's (weight 0) not at all.

Conflict is a suspicion and not a proof (arXiv 2408.14677): `propose_branch` suggests, training decides.
"""

from __future__ import annotations

import json
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from speech_mtl.data import Batch
from speech_mtl.model import SpeechModel

FILE = "interference.jsonl"
LARGEST_RHO = 1.25
"""A cosine is at most 1, its estimate a little more by chance; beyond this the products under the root are noise."""


def measure(model: SpeechModel, batch: Batch, targets: dict[str, dict[str, Tensor]], accelerator: Accelerator) -> dict:
    """{'tasks', 'losses' (K,), 'blocks', 'gram' (blocks, 2K, 2K)}, rows task by task, in each its two halves.

    In eval mode: no dropout, no statistics of the batch, and nothing drawn from the training's random numbers. A task
    without a labelled utterance in each half is left out; {} where fewer than two tasks are left. With several
    processes the products are averages over theirs, and all of them must call it.
    """
    device = accelerator.device
    masks = {name: targets[name]["mask"].to(device) for name in model.tasks}
    first_B = first_half(list(masks.values()))
    of_task = {name: (mask & first_B, mask & ~first_B) for name, mask in masks.items()}
    names = [name for name, both in of_task.items() if all(bool(half.any()) for half in both)]
    names = _common(names, list(model.tasks), accelerator)
    groups = block_weights(model)
    if len(names) < 2 or not groups:
        return {}
    model.eval()
    losses, gradients = [], []
    for name in names:
        for rows_B in of_task[name]:
            with accelerator.autocast():
                shared = model.trunk(batch.audio_BN.to(device)[rows_B], batch.samples_B.to(device)[rows_B])
                own = {key: value.to(device)[rows_B] for key, value in targets[name].items()}
                loss = model.task(name).loss(model.head(name, shared, own["mask"]), own) / rows_B.sum()
            losses.append(loss.item())
            weights = [w for group in groups.values() for w in group]
            flat = torch.autograd.grad(loss, weights, allow_unused=True)
            pairs = zip(weights, flat, strict=True)
            found = iter([torch.zeros_like(w) if g is None else g for w, g in pairs])
            gradients.append([torch.cat([next(found).flatten() for _ in group]).double() for group in groups.values()])
    products = [torch.stack(block) @ torch.stack(block).T for block in zip(*gradients, strict=True)]
    gram = accelerator.reduce(torch.stack(products), "mean").tolist()
    means = accelerator.reduce(torch.tensor(losses, dtype=torch.float64, device=device), "mean").view(-1, 2).mean(1)
    return {"tasks": names, "losses": means.tolist(), "blocks": list(groups), "gram": gram}


def block_weights(model: SpeechModel) -> dict[str, list[torch.nn.Parameter]]:
    """The trunk's trained weights: 'subsampling', then '1', '2', ... block by block."""
    parts: dict[str, torch.nn.Module]
    parts = {} if model.encoder.subsampling is None else {"subsampling": model.encoder.subsampling}
    parts |= {str(int(i) + 1): block for i, block in model.encoder.blocks.items()}
    groups = {name: [w for w in part.parameters() if w.requires_grad] for name, part in parts.items()}
    return {name: weights for name, weights in groups.items() if weights}


def first_half(masks: list[Tensor]) -> Tensor:
    """Which rows are the first half for every task: no utterance is in one task's first and another's second half.

    Each task's labels are shared out evenly: row by row, the most labelled first, to the half that lacks its labels.
    """
    labels_BK = torch.stack(masks, dim=1).long().cpu()
    first_B, surplus_K = torch.zeros(len(labels_BK), dtype=torch.bool), torch.zeros(len(masks), dtype=torch.long)
    for row in labels_BK.sum(1).argsort(descending=True, stable=True).tolist():
        first_B[row] = (surplus_K * labels_BK[row]).sum() <= 0
        surplus_K += labels_BK[row] if first_B[row] else -labels_BK[row]
    return first_B.to(masks[0].device)


def _common(names: list[str], tasks: list[str], accelerator: Accelerator) -> list[str]:
    """The tasks that every process can measure."""
    can = accelerator.reduce(torch.tensor([float(t in names) for t in tasks], device=accelerator.device), "mean")
    return [task for task, share in zip(tasks, can.tolist(), strict=True) if share == 1]


def append_record(folder: Path, record: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / FILE, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The measurements of a run's training folder; [] where none were taken."""
    path = folder / FILE
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def agreement(records: list[dict[str, Any]], weights: dict[str, float], bins: int = 10) -> list[dict[str, Any]]:
    """The figures of every pair of tasks, per block and over `bins` stretches of time; None where not measurable.

    `weights`: the tasks' as configured (those recorded grow over a warm-up); a task of weight 0 is in no pair.
    `records` may be of several runs of one arm (seeds). rho_low and rho_high are Student's interval with the
    jackknife's standard error, rho_error, over the `measurements` (Efron & Tibshirani 1993). With so many blocks and
    pairs one seems to conflict by chance: all these intervals together are held to 95 % (Bonferroni).
    """
    found = []
    names = [task for task in dict.fromkeys(t for record in records for t in record["tasks"]) if weights[task]]
    signs = {task: 1 if weight > 0 else -1 for task, weight in weights.items()}
    for a, b in combinations(names, 2):
        both = [record for record in records if a in record["tasks"] and b in record["tasks"]]
        if both:
            found.append({"tasks": [a, b], "blocks": both[0]["blocks"]} | _pair(both, a, b, signs, bins))
    comparisons = sum(error is not None for pair in found for error in pair["rho_error"])
    for pair in found:
        reach = _reach(pair["measurements"], comparisons) if comparisons else 0.0
        pair["rho_low"], pair["rho_high"] = (
            [None if error is None else round(rho + side * reach * error, 6)
             for rho, error in zip(pair["rho_mean"], pair["rho_error"], strict=True)]
            for side in (-1, 1)
        )  # fmt: skip
    return found


def _pair(records: list[dict[str, Any]], a: str, b: str, signs: dict[str, int], bins: int) -> dict[str, Any]:
    grams = np.stack([_of_pair(record, a, b) for record in records])  # (N, blocks, 4, 4): a₁ a₂ b₁ b₂
    turned = np.repeat([signs[a], signs[b]], 2)
    grams = grams * np.outer(turned, turned)
    epochs = np.array([record["epoch"] for record in records])
    scales = np.array([[record["scales"][t] for t in (a, b)] for record in records])
    whole = _whole(grams)
    cosine = whole[..., 0, 1] / np.sqrt(whole[..., 0, 0] * whole[..., 1, 1]).clip(1e-30)
    edges = np.linspace(0, epochs.max() + 1e-9, bins + 1)
    stretches = [np.flatnonzero((epochs >= low) & (epochs < high)) for low, high in pairwise(edges)]
    stretches = [s for s in stretches if len(s)]
    size = np.sqrt(whole[..., [0, 1], [0, 1]].mean(0)) * np.abs(scales).mean(0)  # (blocks, 2)
    step = np.array([record["lr"] for record in records])[:, None]
    losses = np.array([[record["losses"][record["tasks"].index(t)] for t in (a, b)] for record in records])
    rho, error = jackknife(grams)
    error = np.where(np.isfinite(rho), error, np.nan)
    return {
        "epochs": [round(float(epochs[s].mean()), 3) for s in stretches],
        "cosine": _rows([cosine[s].mean(0) for s in stretches]),
        "rho": _rows([noise_corrected(grams[s]) for s in stretches]),
        "conflict_frequency": _list((cosine < 0).mean(0)),
        "magnitude_similarity": _list(2 * size.prod(1) / (size**2).sum(1).clip(1e-30)),
        "rho_mean": _list(rho), "rho_error": _list(error), "measurements": len(records),
        "affinity": {
            # the loss that is lowered is the task's own, whatever the sign of its weight
            f"{a} -> {b}": _list((signs[b] * step * whole[..., 0, 1] / losses[:, 1:]).mean(0)),
            f"{b} -> {a}": _list((signs[a] * step * whole[..., 0, 1] / losses[:, :1]).mean(0)),
        },
    }  # fmt: skip


def _of_pair(record: dict[str, Any], a: str, b: str) -> np.ndarray:
    i, j = (record["tasks"].index(task) for task in (a, b))
    rows = [2 * i, 2 * i + 1, 2 * j, 2 * j + 1]
    return np.array(record["gram"])[:, rows][:, :, rows]


def _whole(grams: np.ndarray) -> np.ndarray:
    """(..., 4, 4) of halves -> (..., 2, 2) of the whole batch's gradients, the halves' means."""
    return grams.reshape(*grams.shape[:-2], 2, 2, 2, 2).mean((-1, -3))


def noise_corrected(grams: np.ndarray) -> np.ndarray:
    """rho (blocks,) of measurements (N, blocks, 4, 4), their products averaged first; NaN where not measurable."""
    m = grams.mean(0)
    across = (m[:, 0, 3] + m[:, 1, 2]) / 2
    a, b = m[:, 0, 1], m[:, 2, 3]
    positive = (a > 0) & (b > 0)
    rho = across / np.sqrt(np.where(positive, a * b, 1.0))
    return np.where(positive & (np.abs(rho) <= LARGEST_RHO), rho, np.nan)


def jackknife(grams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """rho (blocks,) and its jackknife standard error; NaN where not measurable, or the error of fewer than 3."""
    rho = noise_corrected(grams)
    if len(grams) < 3:
        return rho, np.full_like(rho, np.nan)
    without = np.stack([noise_corrected(np.delete(grams, i, axis=0)) for i in range(len(grams))])
    return rho, np.sqrt((len(grams) - 1) / len(grams) * ((without - without.mean(0)) ** 2).sum(0))


def _reach(measurements: int, comparisons: int) -> float:
    """Standard errors to either side in which all of so many intervals hold together with 95 %."""
    from scipy.stats import t as students_t

    return float(students_t.ppf(1 - 0.025 / comparisons, max(measurements - 1, 1)))


def propose_branch(pairs: list[dict[str, Any]]) -> tuple[int, str] | None:
    """(branch point, why): sharing ends below the lowest block where some pair of tasks conflicts beyond doubt.

    None where no block could be measured.
    """
    blocks = [block for block in pairs[0]["blocks"] if block != "subsampling"]
    places = {block: [(pair, pair["blocks"].index(block)) for pair in pairs] for block in blocks}
    measured = {block: [(pair, i) for pair, i in own if pair["rho_high"][i] is not None]
                for block, own in places.items()}  # fmt: skip
    if not any(measured.values()):
        return None
    for block, own in measured.items():
        for pair, i in own:
            if (high := pair["rho_high"][i]) < 0:
                tasks = " and ".join(pair["tasks"])
                return int(block) - 1, (
                    f"block {block} is the lowest where {tasks} conflict beyond doubt: noise-corrected cosine "
                    f"{pair['rho_mean'][i]:+.2f}, at most {high:+.2f}"
                )
    why = "in no shared block is the noise-corrected cosine below zero beyond doubt"
    if unknown := [block for block in blocks if len(measured[block]) < len(places[block])]:
        why += f"; not measurable for all tasks: block {', '.join(unknown)}"
    return int(blocks[-1]), why


def _list(values: np.ndarray) -> list[float | None]:
    return [round(float(v), 6) if np.isfinite(v) else None for v in values]


def _rows(by_time: list[np.ndarray]) -> list[list[float | None]]:
    """(T, blocks) -> a list per block."""
    return [_list(column) for column in np.stack(by_time).T]
