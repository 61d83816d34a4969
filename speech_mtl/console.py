"""What a person sees of a training run: progress bar, a line per epoch, TensorBoard, training/metrics.jsonl; Ctrl-C."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from speech_mtl.config import Config
from speech_mtl.inventory import Inventory

METRICS = "metrics.jsonl"


class TrainingConsole:
    """A context manager around the training loop; on processes other than the first it shows and writes nothing."""

    def __init__(self, config: Config, inventory: Inventory, out: Path, active: bool, smooth: dict[str, float]):
        """`smooth`: the tasks' losses as shown, those of a run that goes on; kept up to date here."""
        self.config, self.inventory, self.folder, self.active = config, inventory, out / "training", active
        self.console = Console(stderr=True, quiet=not active, soft_wrap=True)
        self.progress = Progress(
            TextColumn("[bold]{task.fields[epoch]}"), BarColumn(), TextColumn("{task.fields[losses]}"),
            TimeElapsedColumn(), TimeRemainingColumn(),
            console=self.console, disable=not active or not self.console.is_terminal,
        )  # fmt: skip
        self.smooth = smooth
        self.steps = 0

    def __enter__(self) -> TrainingConsole:
        if not self.active:
            return self
        from torch.utils.tensorboard import SummaryWriter

        self.folder.mkdir(parents=True, exist_ok=True)
        self.board: Any = SummaryWriter(str(self.folder / "tensorboard"))
        found = self.inventory
        self.say(
            f"{found.utterances} utterances, {found.duration_s / 3600:.2f} h; {len(found.texts)} with a text"
            + "".join(f"; {sum(c.values())} with {task} ({len(c)} classes)" for task, c in found.classes.items())
        )
        for reason, count in found.left_out.items():
            self.say(f"left out: {count} utterances {reason}", "yellow")
        for reason, count in found.texts_left_out.items():
            self.say(f"left out: the text of {count} utterances {reason}", "yellow")
        self.task = self.progress.add_task("train", total=self.config.train.epochs, epoch="", losses="")
        self.progress.start()
        self.last = self.printed = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        if self.active:
            self.progress.stop()
            self.board.close()

    def say(self, text: str, style: str = "") -> None:
        """A line as it is: ids and paths may hold brackets, which rich takes for styles."""
        self.console.print(text, style=style, highlight=False, markup=False)

    @contextmanager
    def share_of(self, what: str) -> Iterator[Callable[[float], None]]:
        """A bar for work before training; yields the function that says what share of it is done."""
        task = self.progress.add_task("before", total=1.0, epoch=what, losses="")
        yield lambda share: self.progress.update(task, completed=share)
        self.progress.remove_task(task)

    def update(self, epochs: float, losses: dict[str, float], lr: float, elapsed_s: float) -> float:
        """Show a step; returns the seconds since the last one."""
        if not self.active:
            return 0.0
        for name, loss in losses.items():
            self.smooth[name] = 0.98 * self.smooth.get(name, loss) + 0.02 * loss
        shown = "  ".join(f"{name} {loss:.3f}" for name, loss in self.smooth.items())
        self.progress.update(self.task, completed=epochs, epoch=f"epoch {epochs:.1f}", losses=shown)
        self.steps += 1
        if self.steps % 20 == 0:
            for name, loss in losses.items():
                self.board.add_scalar(f"loss/{name}", loss, round(1000 * epochs))
            self.board.add_scalar("lr", lr, round(1000 * epochs))
        now = time.monotonic()
        if not self.console.is_terminal and now - self.printed > 60:  # in a log file, a line a minute
            self.console.print(f"epoch {epochs:.2f}  {elapsed_s / 60:.1f} min  lr {lr:.2e}  {shown}", highlight=False)
            self.printed = now
        seconds, self.last = now - self.last, now
        return seconds

    def evaluated(
        self, epoch: int, step: int, summary: dict[str, Any], better: bool, elapsed_s: float, failed: dict[str, str]
    ) -> None:
        """Show and keep the dev scores of an epoch."""
        shown = [f"{name} loss {loss:.3f}" for name, loss in self.smooth.items()]
        for task, scores in summary.items():
            if isinstance(scores, dict) and task != "cost":
                picked = {k: v for k, v in scores.items() if k in ("wer", "accuracy", "eer") and v is not None}
                shown += [f"dev {task} {name} {100 * value:.2f} %" for name, value in picked.items()]
                for name, value in picked.items():
                    self.board.add_scalar(f"dev/{task}_{name}", value, 1000 * epoch)
        star = "  [green]best so far" if better else ""
        self.console.print(
            f"epoch {epoch}  step {step}  {elapsed_s / 60:.1f} min  " + "  ".join(shown) + star, highlight=False
        )
        if failed:
            cut_id, reason = next(iter(failed.items()))
            self.say(f"{len(failed)} utterances could not be read, such as {cut_id}: {reason}", "yellow")
        line = {"epoch": epoch, "step": step, "elapsed_s": round(elapsed_s, 1), "loss": self.smooth, "dev": summary}
        with open(self.folder / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.last = time.monotonic()


class Stoppable(Protocol):
    interrupted: bool


@contextmanager
def stopped_by_signals(trainer: Stoppable) -> Iterator[None]:
    """Ctrl-C and SIGTERM let the step in hand finish and be saved; a second Ctrl-C ends at once."""

    def stop(number: int, frame: Any) -> None:
        if trainer.interrupted:
            raise KeyboardInterrupt
        trainer.interrupted = True
        print("\nstopping after this step (Ctrl-C again: at once, unsaved)", file=sys.stderr)

    old = {}
    if threading.current_thread() is threading.main_thread():
        old = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
