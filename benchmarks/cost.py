"""What the second answer costs, and whether memory is flat: `python benchmarks/cost.py [MODEL_FOLDER]`.

Prints two tables: the time of one joint pass (text and speaker) against recognition alone with the same weights, in
interleaved rounds; and the resident memory of an evaluation of one hour of audio, at every tenth of it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import soundfile
import torch
from lhotse import CutSet, Recording, SupervisionSegment
from rich.console import Console
from rich.table import Table

from speech_mtl.checkpoint import load_model
from speech_mtl.config import parse_config
from speech_mtl.evaluate import evaluate
from speech_mtl.model import SpeechModel
from speech_mtl.recognizer import PRETRAINED

ROUNDS = 30
HOUR_S = 3600


def recognition_alone(model: SpeechModel) -> SpeechModel:
    """The same trunk and CTC head without the other heads."""
    values = model.config.model_dump()
    values["tasks"] = {name: task for name, task in values["tasks"].items() if task["type"] == "asr"}
    values["train"]["select"], values["trunk"] = "mean", {}
    alone = SpeechModel(parse_config(values, "benchmark"), model.tokenizer, model.labels).eval()
    alone.load_state_dict({name: value for name, value in model.state_dict().items() if name in alone.state_dict()})
    return alone


def joint_pass(model: SpeechModel) -> Table:
    alone = recognition_alone(model)
    table = Table(title=f"one pass, {torch.get_num_threads()} threads, median of {ROUNDS} interleaved rounds")
    for column in ("input", "text and speaker", "text alone", "ratio"):
        table.add_column(column, justify="right")
    for utterances, seconds in ((1, 5), (1, 20), (8, 10)):
        audio_BN = 0.05 * torch.randn(utterances, seconds * model.config.features.sample_rate)
        samples_B = torch.full((utterances,), audio_BN.size(1))
        times: dict[str, list[float]] = {"joint": [], "alone": []}
        for _ in range(ROUNDS + 3):
            for name, candidate in (("joint", model), ("alone", alone)):
                started = time.perf_counter()
                candidate.predict(audio_BN, samples_B)
                times[name].append(1000 * (time.perf_counter() - started))
        joint, single = median(times["joint"][3:]), median(times["alone"][3:])
        ratio = median(a / b for a, b in zip(times["joint"][3:], times["alone"][3:], strict=True))
        table.add_row(f"{utterances} × {seconds} s", f"{joint:.1f} ms", f"{single:.1f} ms", f"{ratio:.3f}")
    return table


def hour_manifest(folder: Path, rate: int) -> str:
    """An hour of cuts of 1 to 10 s, out of one minute of noise, in one file."""
    rng = np.random.default_rng(0)
    soundfile.write(folder / "noise.wav", 0.05 * rng.standard_normal(60 * rate), rate)
    whole = Recording.from_file(folder / "noise.wav", recording_id="noise").to_cut()
    cuts, total_s = [], 0.0
    while total_s < HOUR_S:
        duration_s = round(float(rng.uniform(1, 10)), 2)
        cut = whole.truncate(offset=round(float(rng.uniform(0, 49)), 2), duration=duration_s).with_id(f"u{len(cuts)}")
        cut.supervisions = [SupervisionSegment(cut.id, "noise", 0, duration_s, text="one two", speaker="nobody")]
        cuts.append(cut)
        total_s += duration_s
    CutSet.from_cuts(cuts).to_file(folder / "cuts.jsonl.gz")
    return str(folder / "cuts.jsonl.gz")


def memory(model: SpeechModel) -> Table:
    process, table = psutil.Process(), Table(title="memory while one hour is evaluated")
    for column in ("audio done", "utterances", "resident memory"):
        table.add_column(column, justify="right")
    done = {"s": 0.0, "rows": 0, "next": HOUR_S / 10}

    def on_row(row: dict) -> None:
        done["s"] += row["duration_s"]
        done["rows"] += 1
        if done["s"] >= done["next"]:
            resident = sum(p.memory_info().rss for p in [process, *process.children(recursive=True)])
            table.add_row(f"{done['s'] / 60:.0f} min", str(done["rows"]), f"{resident / 2**20:.0f} MB")
            done["next"] += HOUR_S / 10

    with TemporaryDirectory() as folder:
        manifest = hour_manifest(Path(folder), model.config.features.sample_rate)
        summary = evaluate(model, [manifest], Path(folder) / "eval", on_row=on_row)
    table.caption = json.dumps(summary["cost"])
    return table


if __name__ == "__main__":
    loaded = load_model(sys.argv[1] if len(sys.argv) > 1 else PRETRAINED)
    console = Console()
    console.print(joint_pass(loaded))
    console.print(memory(loaded))
