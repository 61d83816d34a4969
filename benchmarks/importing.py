"""How fast is an imported recogniser on a CPU, and how large, beside transformers' own? Prints one Markdown table.

    pip install -e '.[check]'
    python benchmarks/importing.py                     # 110 M and 0.6 B parameters, random weights; some minutes
    python benchmarks/importing.py --sizes 110M --threads 1 --cpu-time    # on a busy machine

The checkpoint is written as transformers writes it, and imported. Both run the network on the same features of 20 s
and 60 s of noise, in turns, round by round, so that whatever else the machine does meets them both; each cell gives
their median times, and the median of the rounds' ratios. Peak memory is that of a process of its own which loads the
model and runs 60 s once; the bar is 1.1 times the weights and 1 GB. `bf16` is ours as `transcribe --precision bf16`
runs it.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import models

from speech_mtl.checkpoint import load_model
from speech_mtl.compare.cost import own_peak_mb
from speech_mtl.importing import import_model

SIZES = {"110M": (17, 512), "0.6B": (24, 1024)}  # blocks and width, as published
PIECES = 1024
DURATIONS_S = (20, 60)
Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def write_checkpoint(folder: Path, blocks: int, width: int) -> None:
    """Random weights and 1024 made-up pieces, in transformers' form."""
    from transformers import ParakeetCTCConfig, ParakeetEncoderConfig, ParakeetFeatureExtractor, ParakeetForCTC

    encoder = ParakeetEncoderConfig(hidden_size=width, num_hidden_layers=blocks, intermediate_size=4 * width)
    config = ParakeetCTCConfig(vocab_size=PIECES + 1, pad_token_id=PIECES, encoder_config=encoder)
    ParakeetForCTC(config).save_pretrained(folder)
    ParakeetFeatureExtractor().save_pretrained(folder)
    pieces = {f"▁{i}": i for i in range(PIECES)}
    HFTokenizer(models.BPE(pieces, [])).save(str(folder / "tokenizer.json"))


def ours(folder: Path, bf16: bool = False) -> Network:
    model = load_model(folder / "imported")
    if bf16:
        model.round_weights()
    head = model.task("asr")

    def run(mel_BTF: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        blocks, _ = model.encoder(mel_BTF, lengths_B)
        return head.linear(blocks[-1])  # type: ignore[union-attr, operator]

    return run


def theirs(folder: Path) -> Network:
    from transformers import ParakeetForCTC

    network = ParakeetForCTC.from_pretrained(folder, dtype=torch.float32).eval()
    return lambda mel_BTF, lengths_B: network(mel_BTF, attention_mask=torch.ones(mel_BTF.shape[:2]).bool()).logits


ENGINES = {"speech_mtl": ours, "bf16": partial(ours, bf16=True), "transformers": theirs}


@torch.inference_mode()
def measure(folder: Path, rounds: int, clock: Callable[[], float]) -> dict[tuple[str, int], list[float]]:
    """Seconds by engine and duration, the engines taking turns; the first round warms up and is not kept."""
    networks = {name: load(folder) for name, load in ENGINES.items()}
    times: dict[tuple[str, int], list[float]] = {}
    for kept in [False] + [True] * rounds:
        for duration_s in DURATIONS_S:
            mel_BTF, lengths_B = torch.randn(1, 100 * duration_s, 80), torch.tensor([100 * duration_s])
            outputs = {}
            for name, network in networks.items():
                start = clock()
                outputs[name] = network(mel_BTF, lengths_B)
                if kept:
                    times.setdefault((name, duration_s), []).append(clock() - start)
            torch.testing.assert_close(outputs["speech_mtl"], outputs["transformers"], atol=1e-4, rtol=0)
    return times


@torch.inference_mode()
def peak_memory(name: str, folder: Path) -> None:
    """Print the peak resident memory in MB of loading and running one engine; a process of its own."""
    network = ENGINES[name](folder)
    network(torch.randn(1, 100 * DURATIONS_S[-1], 80), torch.tensor([100 * DURATIONS_S[-1]]))
    print(own_peak_mb())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="count the process's CPU time; needs --threads 1")
    parser.add_argument("--memory-of", nargs=2, metavar=("ENGINE", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    if args.memory_of:
        return peak_memory(args.memory_of[0], Path(args.memory_of[1]))
    if args.cpu_time and args.threads != 1:
        parser.error("--cpu-time adds up the threads' time, so it needs --threads 1")
    table = Table("size", "engine", *(f"{s} s of audio (ratio)" for s in DURATIONS_S), box=MARKDOWN)
    for title in ("weights", "peak memory", "bar"):
        table.add_column(title)
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_checkpoint(folder, *SIZES[size])
            import_model(folder, folder / "imported")
            weights_mb = (folder / "model.safetensors").stat().st_size / 2**20
            times = measure(folder, args.rounds, time.process_time if args.cpu_time else time.perf_counter)
            for name in ENGINES:
                cells = []
                for duration_s in DURATIONS_S:
                    own, other = times[name, duration_s], times["transformers", duration_s]
                    ratio = statistics.median(a / b for a, b in zip(own, other, strict=True))
                    cells.append(f"{statistics.median(own):.2f} s ({ratio:.2f})")
                command = [sys.executable, __file__, "--threads", str(args.threads), "--memory-of", name, temporary]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                cells += [f"{weights_mb:.0f} MB", f"{float(done.stdout.split()[-1]):.0f} MB"]
                table.add_row(size, name, *cells, f"{1.1 * weights_mb + 1024:.0f} MB")
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
