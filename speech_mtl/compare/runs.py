"""Training and scoring every arm with every seed, several at a time, each in a process of its own.

A run is a folder: run.json (what to do), the model, its training log run.log, and scores/SET/ with the rows and summary
of every test set. One that was stopped goes on where it was; one that is done is not touched again; one that fails is
named in the report, and the others go on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from speech_mtl.checkpoint import load_model, write_atomically
from speech_mtl.compare.arms import Arm, Plan
from speech_mtl.config import ConfigError, parse_config


@dataclass
class Run:
    arm: Arm
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.arm.name}, seed {self.seed}"

    def done(self) -> bool:
        return (self.folder / "done.json").is_file()

    def failure(self) -> str | None:
        path = self.folder / "failed.txt"
        return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def make_runs(plan: Plan, out: Path) -> list[Run]:
    """The runs with their run.json. Raises ConfigError where `out` holds a comparison with other settings."""
    sets = test_sets(plan)
    runs = []
    for seed in plan.config.compare.seeds:
        for arm in plan.arms:
            run = Run(arm, seed, out / "runs" / arm.folder / f"seed{seed}")
            start = str(out / "runs" / plan.arm(arm.start_from).folder / f"seed{seed}") if arm.start_from else ""
            job = {"config": plan.config_of(arm, seed, start).model_dump(), "sets": sets}
            text = json.dumps(job, indent=1, sort_keys=True) + "\n"
            path = run.folder / "run.json"
            if path.is_file() and _its_own(path.read_text(encoding="utf-8")) != _its_own(text):
                raise ConfigError(
                    f"{path}: this run was begun with other settings; choose another --out, or remove that folder"
                )
            run.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, partial(Path.write_text, data=text, encoding="utf-8"))
            runs.append(run)
    return runs


def _its_own(text: str) -> dict[str, Any]:
    """What a run.json says of its run and of the verdicts, without which other arms and seeds there are."""
    job: dict[str, Any] = json.loads(text)
    settings = job["config"]["compare"]
    for name in ("seeds", "branches", "weights", "methods", "arms", "leave_out", "overrides", "quick"):
        settings.pop(name, None)  # overrides are in the config already
    return job


def test_sets(plan: Plan) -> dict[str, dict[str, list[str]]]:
    """By name: the manifests to score, and those that enrol their speakers."""
    compare = plan.config.compare
    sets = {"in domain": {"manifests": compare.test, "enroll": compare.test_enroll}}
    if compare.out_of_domain:
        sets["out of domain"] = {"manifests": compare.out_of_domain, "enroll": compare.out_of_domain_enroll}
    return sets


def run_all(runs: list[Run], jobs: int, console: Console) -> None:
    """Do the runs that are left, `jobs` at a time. Ctrl-C or SIGTERM stops all; each saves, the next call goes on."""
    waiting = [run for run in runs if not run.done()]
    for run in waiting:
        (run.folder / "failed.txt").unlink(missing_ok=True)  # tried again
    running: list[tuple[Run, subprocess.Popen]] = []
    shown = Progress(
        TextColumn("{task.completed} of {task.total} runs"), BarColumn(), TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(), console=console, disable=not console.is_terminal,
    )  # fmt: skip
    bar = shown.add_task("runs", total=len(runs), completed=len(runs) - len(waiting), state="")
    started, finished = time.monotonic(), 0
    try:
        with _sigterm_as_interrupt(), shown:
            while waiting or running:
                while len(running) < jobs and (ready := _next(waiting, runs)):
                    waiting.remove(ready)
                    running.append((ready, _start(ready, jobs)))
                time.sleep(0.2)
                for run, process in list(running):
                    if process.poll() is None:
                        continue
                    running.remove((run, process))
                    finished += 1
                    shown.advance(bar)
                    if process.returncode:
                        _note_failure(run, process.returncode)
                    left_min = (time.monotonic() - started) / finished * (len(waiting) + len(running)) / 60
                    outcome = f"failed: {run.failure()}" if process.returncode else "done"
                    console.print(f"{run.name}: {outcome}; about {left_min:.0f} min left", highlight=False)
                shown.update(bar, state="now: " + "; ".join(run.name for run, _ in running))
                if not running and waiting and not _next(waiting, runs):
                    for run in waiting:  # what they start from has failed
                        (run.folder / "failed.txt").write_text(f"'{run.arm.start_from}' failed, nothing to start from")
                    break
    finally:
        for _, process in running:
            process.send_signal(signal.SIGINT)
        for _, process in running:
            process.wait()


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """A scheduler's SIGTERM would leave the runs behind, and the next call would train them a second time beside."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    old = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


def _next(waiting: list[Run], runs: list[Run]) -> Run | None:
    """The first run whose start, if it needs one, is there."""
    done = {(run.arm.name, run.seed) for run in runs if run.done()}
    return next((r for r in waiting if not r.arm.start_from or (r.arm.start_from, r.seed) in done), None)


def _start(run: Run, jobs: int) -> subprocess.Popen:
    environment = dict(os.environ)
    if jobs > 1:  # a thread each: several threads of several processes get in each other's way
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    with open(run.folder / "run.log", "a", encoding="utf-8") as log:
        # a session of its own: Ctrl-C reaches it once, from here
        return subprocess.Popen(
            [sys.executable, "-m", "speech_mtl.compare.runs", str(run.folder)],
            stdout=log, stderr=log, env=environment, start_new_session=True,
        )  # fmt: skip


def _note_failure(run: Run, code: int) -> None:
    lines = (run.folder / "run.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    reason = lines[-1] if lines else "ended without a word"
    if code < 0:  # killed, as for want of memory: that line is of its training and no reason
        reason = f"ended by signal {-code} ({signal.strsignal(-code)}); the last line of its log: {reason}"
    (run.folder / "failed.txt").write_text(reason, encoding="utf-8")


def work(folder: Path) -> None:
    """One run: train or go on, then score every test set."""
    from speech_mtl.evaluate import evaluate
    from speech_mtl.train import train

    job: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    config = parse_config(job["config"], str(folder / "run.json"))
    state = folder / "training" / "state.pt"
    if not (folder / "trained").is_file():
        if not state.is_file():  # stopped before anything could be gone on from
            (folder / "config.json").unlink(missing_ok=True)
        train(config, folder, resume=state.is_file())
        (folder / "trained").touch()
        state.unlink(missing_ok=True)  # three times the model's size, and of no more use
    model = load_model(folder)
    speaks = any(task.type == "speaker" for task in config.tasks.values())
    for name, part in job["sets"].items():
        evaluate(model, part["manifests"], folder / "scores" / name, (part["enroll"] or None) if speaks else None)
    write_atomically(folder / "done.json", lambda path: path.write_text("{}\n", encoding="utf-8"))


if __name__ == "__main__":
    try:
        work(Path(sys.argv[1]))
    except KeyboardInterrupt as stop:
        sys.exit(f"stopped: {stop}")
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
