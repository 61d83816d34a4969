"""Should these tasks be learnt together, where should they part, how should they be weighed? One recipe, many arms.

`compare` trains every arm with every seed (runs.py), collects what they show (evidence.py) in compare.json, and writes
the report beside it. Everything that is done is kept: called again, it goes on where it was.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from speech_mtl.checkpoint import write_atomically
from speech_mtl.compare.apart import check_apart
from speech_mtl.compare.arms import Plan, encoder_stacks, encoder_weights, plan_arms
from speech_mtl.compare.evidence import collect
from speech_mtl.compare.runs import make_runs, run_all
from speech_mtl.config import Config, ConfigError, parse_config
from speech_mtl.inventory import check_dev, check_labels, take_inventory
from speech_mtl.mixture import read_training
from speech_mtl.recipe import override_values
from speech_mtl.report.compare import write_comparison


def comparison_config(config: Config, quick: bool) -> Config:
    """The recipe with its [compare] overrides, and with `quick` those of compare.quick on top. Raises ConfigError."""
    values = config.model_dump()
    for override in [*config.compare.overrides, *(config.compare.quick if quick else [])]:
        override_values(values, override)
    config = parse_config(values, "compare")
    if not config.compare.test:
        raise ConfigError("compare.test names no manifest; the recipe's [compare] section says what to test on")
    if not config.compare.seeds or len(set(config.compare.seeds)) < len(config.compare.seeds):
        raise ConfigError(f"compare.seeds is {config.compare.seeds}; accepted: one or more different numbers")
    return config


def compare(config: Config, recipe: str, out: Path, *, command: str, quick: bool = False, jobs: int = 1) -> Path:
    """Train and score what is left to do, write out/compare.json and the report; returns the report's path.

    Raises ConfigError for settings that cannot be compared, DataError for data that cannot be read or tested on,
    KeyboardInterrupt after everything under way was saved.
    """
    started = time.monotonic()
    console = Console(stderr=True, soft_wrap=True)
    plan = plan_arms(comparison_config(config, quick))
    inventory = take_inventory(read_training(plan.config), plan.config)
    check_labels(inventory, plan.config)
    check_dev(inventory, plan.config)
    if caution := check_apart(plan.config):
        console.print(f"warning: {caution}", style="yellow", highlight=False, markup=False)
    runs = make_runs(plan, out)
    path, interrupted = out / "compare.json", out / "interrupted.json"  # the latter: the minutes until then
    earlier = next((p for p in (interrupted, path) if p.is_file()), None)
    before = json.loads(earlier.read_text(encoding="utf-8"))["minutes"] if earlier else 0.0

    def minutes() -> float:
        return round(before + (time.monotonic() - started) / 60, 1)

    describe(plan, console)
    try:
        run_all(runs, jobs, console)
    except KeyboardInterrupt:
        text = json.dumps({"minutes": minutes()}) + "\n"
        write_atomically(interrupted, lambda p: p.write_text(text, encoding="utf-8"))
        raise
    found = {
        "recipe": recipe, "command": command, "commit": _commit(), "quick": quick,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {jobs} runs at a time",
    } | collect(plan, runs)  # fmt: skip
    found["minutes"] = minutes()
    write_atomically(path, lambda p: p.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8"))
    interrupted.unlink(missing_ok=True)
    return write_comparison(out)


def describe(plan: Plan, console: Console) -> None:
    """What every arm will be, before it is trained: its shared blocks, parameters and operations."""
    table = Table(title=f"{len(plan.arms)} arms × {len(plan.config.compare.seeds)} seeds")
    for heading in ("arm", "what it is", "branch", "encoder parameters", "GFLOP a second of audio"):
        table.add_column(heading, justify="right" if heading.startswith(("enc", "GF")) else "left")
    for arm in plan.arms:
        config = plan.config_of(arm, plan.config.compare.seeds[0])
        parameters, flops = encoder_cost(config)
        points = ", ".join(f"{name} {config.branch_point(name)}" for name in arm.tasks)
        table.add_row(arm.name, arm.title, points, f"{parameters:,}", f"{flops / 1e9:.3f}")
    console.print(table)


def encoder_cost(config: Config) -> tuple[int, float]:
    """Parameters of the trunk and the tasks' own blocks, and their operations for a second of audio."""
    mels, seconds = config.features.n_mels, 10
    frames = seconds * config.features.sample_rate // config.features.hop_samples
    encoder = config.encoder
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        for first, stack in encoder_stacks(config):
            size = (1, frames // encoder.subsampling, encoder.d_model) if first else (1, frames, mels)
            stack.eval()(torch.zeros(size), torch.tensor([size[1]]))
    return encoder_weights(config), counter.get_total_flops() / seconds


def _commit() -> str | None:
    """The commit of the code that ran, where it is a checkout."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
