"""Config and manifests -> a trained model folder. The loop is `Trainer.run`, on one page; Accelerate is the engine.

What one step adds up is in sharing.py: heads learn from their own task, the trunk from all of them.
Stopped at any moment (Ctrl-C, a crash, a full disk) and resumed, training gives bit for bit what it would have given.
"""

from __future__ import annotations

import ctypes
import json
import math
import pickle
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, set_seed

from speech_mtl import frame_cache, interference
from speech_mtl.calibration import Calibration, save_calibration
from speech_mtl.checkpoint import CheckpointError, check_new, keep_lines, save_model, write_atomically
from speech_mtl.config import Config
from speech_mtl.console import METRICS, TrainingConsole, stopped_by_signals
from speech_mtl.data import Batch, DataError, batches, length_batches, read_cuts
from speech_mtl.evaluate import (
    Source,
    enroll_references,
    evaluate_rows,
    fit_speakers,
    headline,
    recordings,
    summarize_dev,
    task_kinds,
)
from speech_mtl.initial import prepare_model
from speech_mtl.inventory import Inventory
from speech_mtl.mixture import corpus_shares, training_corpora, training_cuts
from speech_mtl.model import SpeechModel
from speech_mtl.sharing import SharedGradients, Targets
from speech_mtl.survey import disjoint_tasks, label_groups
from speech_mtl.trunk import Average, RecognitionLost, parameter_groups, recognition_lost
from speech_mtl.weighting import build_weighting

TRY_LOWER = "try a lower train.lr"


class Diverged(RuntimeError):
    """Losses or weights are no numbers any more; the message says which and what was kept."""


def train(config: Config, out: str | Path, *, resume: bool = False) -> Path:
    """Train, and leave the best model in `out`; its progress, logs and resumable state are under out/training.

    Raises DataError, CheckpointError, RecognitionLost and Diverged (the best model until then is in `out`),
    KeyboardInterrupt (after saving; `resume=True` goes on from there).
    """
    out = Path(out)
    state = out / "training" / "state.pt"
    if resume and not state.is_file():
        raise CheckpointError(f"nothing to resume: {state} does not exist")
    if not resume and state.exists():
        raise CheckpointError(f"{out} already holds a run; resume it, or choose another folder")
    if not resume:
        check_new(out)
    trainer = Trainer(config, out)
    if resume:
        trainer.load_state(state)
    elif trainer.accelerator.is_main_process:  # what a run left that was killed before it had a state
        for name in (interference.FILE, METRICS):
            (out / "training" / name).unlink(missing_ok=True)
    return trainer.run()


def keep_freed_memory() -> None:
    """Have glibc keep large blocks that are freed, instead of giving them back to the system and taking them anew.

    A step frees and takes hundreds of megabytes; the system zeroes each page every time, a third of a CPU step's time.
    """
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"):
        return
    M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # <malloc.h>
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(M_TOP_PAD, 100 * 2**20)


class Trainer:
    """All that changes while training, and the loop that changes it."""

    def __init__(self, config: Config, out: Path):
        self.config, self.out = config, out
        AcceleratorState._reset_state()  # accelerate keeps the first run's precision for the life of the process
        self.accelerator = Accelerator(
            mixed_precision=config.train.precision,
            cpu=not torch.cuda.is_available(),  # an Apple GPU lacks float64
            # the main process scores and keeps frames while the others wait
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=7))],
        )
        set_seed(config.train.seed)  # the same start everywhere
        if self.accelerator.device.type == "cpu":
            keep_freed_memory()
        model, self.inventory = prepare_model(config)
        self.kinds = task_kinds(model)
        self.raw_model = model.to(self.accelerator.device)
        groups = parameter_groups(model, config)
        self.optimizer = self.accelerator.prepare(
            torch.optim.AdamW(groups, lr=config.train.lr, betas=(0.9, 0.98), fused=True)
        )
        self.weighting = build_weighting(config.train.weighting, len(model.learning()))
        self.gradients = SharedGradients(self.accelerator, model, self.weighting)
        # after those, which with several processes move the weights to other memory (from `cpu` to `cpu:0`)
        self.average = Average(model, config.train.ema_decay)
        set_seed(config.train.seed, device_specific=True)  # and masks of its own for every process
        self.epoch, self.batches_done, self.consumed, self.step = 0, 0, 0, 0
        self.best = self.start_wer = math.inf
        self.kept: dict[str, frame_cache.FrameCache] = {}
        self.elapsed_s = 0.0
        self.shown_losses: dict[str, float] = {}
        self.interrupted = False
        self.failed: dict[str, str] = {}

    def run(self) -> Path:
        """Train to the end; the best model is in `out`."""
        config = self.config.train
        with (
            TrainingConsole(
                self.config, self.inventory, self.out, self.accelerator.is_main_process, self.shown_losses
            ) as console,
            stopped_by_signals(self),
        ):
            if self.accelerator.is_main_process and len(self.kinds) > 1 and not self.step:
                for warning in disjoint_tasks(label_groups(self.config.data.train, self.config), self.config):
                    console.say(f"warning: {warning}", "yellow")
            self._keep_frames(console)
            if self.config.trunk.max_wer_increase is not None and not self.step:
                self._measure_start(console)
            saved_at = time.monotonic()
            while self.epoch < config.epochs:
                for group in self._groups():
                    if self.progress() >= config.epochs:
                        break
                    losses = self._step(group)
                    self.elapsed_s += console.update(self.progress(), losses, self._lr(), self.elapsed_s)
                    stop = self._any_process(self.interrupted)
                    if stop or self._any_process(time.monotonic() - saved_at > 60 * config.checkpoint_minutes):
                        self.save_state()
                        saved_at = time.monotonic()
                    if stop:
                        raise KeyboardInterrupt(
                            f"saved after step {self.step} in {self.out}; resume goes on from there"
                        )
                self.epoch, self.batches_done, self.consumed = self.epoch + 1, 0, 0
                self.weighting.after_epoch()
                if self.epoch % config.eval_every == 0 or self.epoch >= config.epochs:
                    self._evaluate(console)
                self.save_state()
        return self.out

    def progress(self) -> float:
        """Epochs done, by the utterances consumed."""
        return self.epoch + min(self.consumed / self.inventory.utterances, 1.0)

    def _any_process(self, flag: bool) -> bool:
        """Whether the flag is set anywhere: what all must do together, all must decide alike."""
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device), "sum") > 0)

    def _lr(self) -> float:
        """Linear warm-up, then a cosine to zero."""
        config, done = self.config.train, self.progress()
        if done < config.warmup_epochs:
            return config.lr * max(done, 1e-3) / config.warmup_epochs
        rest = (done - config.warmup_epochs) / max(config.epochs - config.warmup_epochs, 1e-9)
        return config.lr * 0.5 * (1 + math.cos(math.pi * min(rest, 1.0)))

    def _weight(self, name: str) -> float:
        """A task's share in the summed loss, growing over its warm-up."""
        task = self.config.tasks[name]
        return task.weight * (min(self.progress() / task.warmup_epochs, 1.0) if task.warmup_epochs else 1.0)

    def _groups(self) -> Iterator[list[Batch]]:
        """The rest of the epoch's batches, `train.accumulate` at a time."""
        cuts, skip = training_cuts(self.config, self.epoch), self.batches_done
        place = {"rank": self.accelerator.process_index, "processes": self.accelerator.num_processes}
        loader: Iterator[Batch]
        if "train" in self.kept:
            groups = length_batches(cuts, self.config, self.epoch, **place)[skip:]
            loader = map(self.kept["train"].batch, groups)
        else:
            loader = iter(batches(cuts, self.config, train=True, epoch=self.epoch, skip=skip, **place))
        while group := list(islice(loader, self.config.train.accumulate)):
            yield group

    def _step(self, group: list[Batch]) -> dict[str, float]:
        """One optimizer step on the accumulated batches; returns the mean loss of every task with a label in it."""
        for batch in group:
            self.failed.update(batch.failed)
            if not batch.cuts:
                raise DataError(f"no utterance of a whole batch could be read; the first: {batch.failed[0][1]}")
        targets = [self.raw_model.targets(b.cuts, b.samples_B, self.gradients.names) for b in group]
        if self.gradients.trunk_learns and len(self.kinds) > 1 and self.config.train.interference_every:
            if self.step % self.config.train.interference_every == 0:
                self._measure_interference(group[0], targets[0])
        consumed = torch.tensor(sum(len(batch.cuts) for batch in group), device=self.accelerator.device)
        if any(self.config.tasks[name].consistency for name in self.gradients.names):
            group = [batch.twice() for batch in group]
            targets = [self.raw_model.targets(b.cuts, b.samples_B, self.gradients.names) for b in group]
        augment = self.progress() >= self.config.augment.start_epoch
        scales = {name: self._weight(name) for name in self.kinds}
        losses_K, present_K = self.gradients.backward(group, targets, scales, augment)
        if not bool(losses_K.isfinite().all()):
            found = ", ".join(f"{name} {loss:g}" for name, loss in zip(self.gradients.names, losses_K, strict=True))
            where = f"step {self.step} (epoch {self.progress():.2f}) at the learning rate {self._lr():.2g}"
            raise Diverged(f"stopped: the losses are {found} in {where}; {TRY_LOWER}; {self._kept()}")
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = self._lr() * parameters["factor"]
        for part in self.gradients.parts():  # apart: one task's head must not shorten another's step
            self.accelerator.clip_grad_norm_(part.parameters(), self.config.train.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update()
        self.step += 1
        self.batches_done += len(group)
        self.consumed += int(self.accelerator.reduce(consumed, "sum").item())
        losses = zip(self.gradients.names, losses_K.tolist(), present_K.tolist(), strict=True)
        return {name: loss for name, loss, present in losses if present}

    def _measure_interference(self, batch: Batch, targets: Targets) -> None:
        started = time.perf_counter()
        record = interference.measure(self.raw_model, batch, targets, self.accelerator)
        if record and self.accelerator.is_main_process:
            place = {"step": self.step, "epoch": round(self.progress(), 4), "lr": self._lr()}
            scales = {name: self._weight(name) for name in self.kinds}
            seconds = round(time.perf_counter() - started, 4)
            interference.append_record(self.out / "training", place | record | {"scales": scales, "seconds": seconds})

    def _keep_frames(self, console: TrainingConsole) -> None:
        """Have the frozen trunk's frames computed where they are not kept yet; the first process does it."""
        data, model = self.config.data, self.raw_model
        if not self.config.trunk.cache:
            return
        lists = {"train": data.train, "dev": data.dev, "dev_enroll": data.dev_enroll}
        for role, manifests in lists.items():
            if self.accelerator.is_main_process:
                for manifest in manifests:
                    with console.share_of("frames") as show:
                        frame_cache.make(model.eval(), manifest, role == "train", console.say, show)
            self.accelerator.wait_for_everyone()
            folders = {manifest: frame_cache.folder_of(model, manifest, role == "train") for manifest in manifests}
            self.kept[role] = frame_cache.FrameCache(model, folders)

    def _source(self, role: str) -> Source:
        """How the manifests of a role are run through the model."""
        return self.kept[role].utterances if role in self.kept else recordings

    def _measure_start(self, console: TrainingConsole) -> None:
        """Dev WER before the first step, which trunk.max_wer_increase is counted from."""
        if self.accelerator.is_main_process:
            rows = evaluate_rows(self.raw_model.eval(), read_cuts(self.config.data.dev))
            self.start_wer = self._wer(summarize_dev(rows, self.kinds, self.raw_model.n_parameters, self.failed))
            if not self.start_wer < math.inf:
                raise DataError("trunk.max_wer_increase: no utterance of data.dev has a text with a word")
            console.say(f"dev WER before training {100 * self.start_wer:.2f} %")

    def _wer(self, summary: dict[str, Any]) -> float:
        """Of the recogniser; infinite where there is none, or no word in its texts."""
        wers = [summary[n]["wer"] for n, kind in self.kinds.items() if kind == "asr" and n in summary]
        return math.inf if not wers or wers[0] is None else wers[0]

    def _evaluate(self, console: TrainingConsole) -> None:
        """Score the averaged weights on the dev data and keep them where they are the best so far.

        Raises RecognitionLost where they have passed trunk.max_wer_increase, Diverged where weights are no numbers.
        """
        if not all(bool(weight.isfinite().all()) for weight in self.raw_model.parameters()):  # after the last step
            raise Diverged(f"stopped: weights are no numbers after epoch {self.epoch}; {TRY_LOWER}; {self._kept()}")
        lost = ""
        if self.accelerator.is_main_process:
            model = self.average.module if self.config.train.ema_decay else self.raw_model
            model.eval()
            fit_speakers(model, training_corpora(self.config), corpus_shares(self.config), self._source("train"))
            summary: dict[str, Any] = {}
            if self.config.data.dev:
                enroll = self.config.data.dev_enroll if "speaker" in self.kinds.values() else []
                references = enroll_references(model, read_cuts(enroll), self._source("dev_enroll")) if enroll else None
                rows = evaluate_rows(model, read_cuts(self.config.data.dev), references, self._source("dev"))
                summary = summarize_dev(rows, self.kinds, model.n_parameters, self.failed)
            lost = recognition_lost(self.start_wer, self._wer(summary), self.config.trunk.max_wer_increase)
            errors = headline(summary, self.kinds)
            select = self.config.train.select
            chosen_by = [select] if select in errors else list(errors)
            chosen = sum(errors[name] for name in chosen_by) / len(chosen_by) if chosen_by else -self.epoch
            better = chosen < self.best and not lost
            if better:
                self.best = chosen
                save_model(model, self.out, _card(self.config, self.inventory, self.epoch, summary, chosen_by))
                self._save_threshold(summary)
            console.evaluated(self.epoch, self.step, summary, better, self.elapsed_s, self.failed)
        if self._any_process(bool(lost)):
            raise RecognitionLost(f"stopped after epoch {self.epoch}: {lost}; {self._kept()}")

    def _kept(self) -> str:
        is_there = (self.out / "config.json").is_file()
        return f"{self.out} holds the best model until then" if is_there else "no model was kept"

    def _save_threshold(self, summary: dict[str, Any]) -> None:
        """Speakers who were enrolled and not trained on tell from which score on two voices count as one."""
        for name, kind in self.kinds.items():
            scores = summary.get(name, {})
            if kind == "speaker" and scores.get("mode") == "enrolled" and "eer_threshold" in scores:
                data = ", ".join(self.config.data.dev)
                measured_on = f"EER of {scores['speakers']} speakers, {scores['trials']} trials of {data}"
                save_calibration(self.out, Calibration.of(scores["eer_threshold"], measured_on))

    def save_state(self) -> None:
        """All that `load_state` needs to go on exactly; written so that a crash leaves the last good one."""
        rngs = self._of_all_processes(torch.get_rng_state())
        cuda_rngs = self._of_all_processes(torch.cuda.get_rng_state()) if torch.cuda.is_available() else None
        if not self.accelerator.is_main_process:
            return
        state = {
            "config": json.dumps(self.config.model_dump()), "labels": json.dumps(self.raw_model.labels),
            "model": self._changing(self.raw_model), "average": self._changing(self.average.module),
            "optimizer": self.optimizer.state_dict(), "weighting": self.weighting.state_dict(), "rngs": rngs,
            "place": [self.epoch, self.batches_done, self.consumed, self.step, self.best, self.elapsed_s],
            "averaged": self.average.updates, "start_wer": self.start_wer, "cuda_rngs": cuda_rngs,
            "shown": self.shown_losses, "pieces": self._pieces(),
        }  # fmt: skip
        folder = self.out / "training"
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "state.pt", lambda path: torch.save(state, path))

    def _pieces(self) -> list[str]:
        return self.raw_model.tokenizer.pieces if self.raw_model.tokenizer else []

    def _of_all_processes(self, state: torch.Tensor) -> torch.Tensor:
        """A row a process."""
        return self.accelerator.gather(state[None].to(self.accelerator.device)).cpu()

    def _changing(self, model: SpeechModel) -> dict[str, torch.Tensor]:
        """The weights that training changes: those of a frozen trunk are in train.init."""
        frozen = self.config.frozen_parts()
        return {name: value for name, value in model.state_dict().items() if not name.startswith(frozen)}

    def load_state(self, path: Path) -> None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{path}: damaged, or no state of a run ({type(error).__name__})") from None
        before, now = json.loads(state["config"]), self.config.model_dump(exclude={"compare"})  # of what else is run
        if changed := [
            f"{s}.{k}" for s in now for k in now[s] if before.get(s, {}).get(k) != json.loads(json.dumps(now[s][k]))
        ]:
            raise CheckpointError(f"{path} belongs to another config; these differ: {', '.join(changed)}")
        if (were := len(state["rngs"])) != (are := self.accelerator.num_processes):
            raise CheckpointError(f"{path}: trained by {were} processes, resumed by {are}; expected as many")
        labels = json.loads(state["labels"])
        if changed := [task for task in labels if labels[task] != self.raw_model.labels.get(task)]:
            raise CheckpointError(f"{path}: the training data has other classes now for {', '.join(changed)}")
        if (pieces := state.get("pieces")) is not None and pieces != self._pieces():  # kept since November 2026
            found, accepted = (f"{len(own)}, {' '.join(own[:40])}" for own in (self._pieces(), pieces))
            raise CheckpointError(f"{path}: the training texts give other pieces now: {found}; accepted: {accepted}")
        for model, weights in ((self.raw_model, state["model"]), (self.average.module, state["average"])):
            model.load_state_dict(model.state_dict() | weights)
        self.average.updates, self.start_wer = state["averaged"], state["start_wer"]
        self.shown_losses |= state.get("shown", {})
        self.optimizer.load_state_dict(state["optimizer"])
        self.weighting.load_state_dict(state["weighting"])
        self.epoch, self.batches_done, self.consumed, self.step, self.best, self.elapsed_s = state["place"]
        if self.accelerator.is_main_process:
            # what is measured and scored again; it is measured before a step, so that of this step too
            keep_lines(path.parent / interference.FILE, lambda record: record["step"] < self.step)
            keep_lines(path.parent / METRICS, lambda line: line["epoch"] <= self.epoch)
        torch.set_rng_state(state["rngs"][self.accelerator.process_index].clone())
        if torch.cuda.is_available() and state.get("cuda_rngs") is not None:
            torch.cuda.set_rng_state(state["cuda_rngs"][self.accelerator.process_index].clone())
        elif torch.cuda.is_available() and "cuda_rng" in state:  # until November 2026 of the first process alone
            torch.cuda.set_rng_state(state["cuda_rng"])


def _card(config: Config, inventory: Inventory, epoch: int, summary: dict[str, Any], chosen_by: list[str]) -> str:
    """The model folder's README.md. `chosen_by`: the tasks by whose dev errors it was chosen."""
    why = f"the best by the mean dev error of {', '.join(chosen_by)}" if chosen_by else "the last, with no dev error"
    tasks = ", ".join(f"{name} ({task.type})" for name, task in config.tasks.items())
    return (
        "# speech_mtl model\n\n"
        f"Tasks: {tasks}. Trained on {inventory.utterances} utterances ({inventory.duration_s / 3600:.2f} h) of\n"
        + "".join(f"- {path}\n" for path in config.data.train)
        + ("\nThe recogniser is that of train.init, unchanged.\n" if config.trunk.frozen else "")
        + f"\nKept after epoch {epoch}, {why}:\n\n"
        f"```json\n{json.dumps(summary, indent=1)}\n```\n"
    )
