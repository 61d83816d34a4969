"""What one joint pass costs against one pass of every single model, on the same input.

Times are medians of interleaved rounds in one process, memory is each side's own process at its peak.
`python -m speech_mtl.compare.cost FOLDER...` prints the peak memory of running these models one after another, in MB.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from speech_mtl.checkpoint import load_model
from speech_mtl.model import SpeechModel

UTTERANCES, SECONDS, ROUNDS = 4, 10, 11


def test_input(model: SpeechModel, utterances: int = UTTERANCES) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise of SECONDS each: audio_BN and samples_B."""
    samples = SECONDS * model.config.features.sample_rate
    audio_BN = 0.05 * torch.randn(utterances, samples, generator=torch.Generator().manual_seed(0))
    return audio_BN, torch.full((utterances,), samples)


def flops_per_s(model: SpeechModel) -> tuple[float, dict[str, float]]:
    """Floating point operations of the trunk, and of each task's own part, for a second of audio.

    Those of matrix products, convolutions and attention, two for a multiplication and addition.
    """
    audio_BN, samples_B = test_input(model, 1)
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            frames = model.trunk(audio_BN, samples_B)
        trunk, heads = counter.get_total_flops() / SECONDS, {}
        for name in model.tasks:
            with FlopCounterMode(display=False) as counter:
                model.head(name, frames)
            heads[name] = counter.get_total_flops() / SECONDS
    return trunk, heads


def measure_cost(joint: Path, singles: dict[str, Path]) -> dict[str, Any]:
    """The 'cost' of compare.json; `singles` are the folders of the single models by arm."""
    sides = {"joint": [load_model(joint)], "apart": [load_model(folder) for folder in singles.values()]}
    audio_BN, samples_B = test_input(sides["joint"][0])
    times: dict[str, list[float]] = {side: [] for side in sides}
    for round_ in range(ROUNDS + 1):
        for side, models in sides.items():
            started = time.perf_counter()
            for model in models:
                model.predict(audio_BN, samples_B)
            if round_:  # the first one warms up
                times[side].append(time.perf_counter() - started)
    audio_s = UTTERANCES * SECONDS
    folders = {"joint": [joint], "apart": list(singles.values())}
    found: dict[str, Any] = {"audio_s": audio_s}
    for side, models in sides.items():
        flops = [flops_per_s(model) for model in models]
        found[side] = {
            "parameters": sum(model.n_parameters for model in models),
            "flops_per_s": sum(trunk + sum(heads.values()) for trunk, heads in flops),
            "rtf": median(times[side]) / audio_s,
            "peak_mb": peak_mb(folders[side]),
        }
    found["joint"]["arm"], found["apart"]["arms"] = "joint", list(singles)
    found["time_ratio"] = median(a / b for a, b in zip(times["joint"], times["apart"], strict=True))
    found["parameter_ratio"] = found["joint"]["parameters"] / found["apart"]["parameters"]
    return found


def own_peak_mb() -> float:
    """This process's peak resident memory so far, in MB.

    On Linux from /proc: what getrusage says there includes the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def peak_mb(folders: list[Path]) -> float:
    """Peak resident memory, in MB, of a process that loads these models and runs each once."""
    command = [sys.executable, "-m", "speech_mtl.compare.cost", *map(str, folders)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    loaded = [load_model(folder) for folder in sys.argv[1:]]
    for one in loaded:
        one.predict(*test_input(one))
    print(own_peak_mb())
