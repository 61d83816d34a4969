"""How fast is the encoder on a CPU, beside the Conformers people would use otherwise? Prints one Markdown table.

    pip install -e '.[benchmarks]'          # the peers; those not installed are left out and named
    python benchmarks/encoder.py            # ten rounds, two threads: some minutes
    python benchmarks/encoder.py --rounds 30 --threads 4 --padded
    python benchmarks/encoder.py --threads 1 --cpu-time   # on a busy machine, where wall-clock time says nothing

All encoders have the same size (144 dimensions, 16 blocks, kernel 31, 4 heads, feed-forward 576), read 80 mel bins and
subsample 4 times, each with the subsampling its own library ships. torchaudio ships none: it is given the two dense 3×3
convolutions of the Conformer paper, with 64 channels as ours and Parakeet's; and, to tell the blocks from the
subsampling, ours as well, which is shown but is no peer. Dropout is the same rate wherever the library applies it.
The encoders take turns, round by round, so that whatever else the machine does meets them all. Each cell gives median
and least time, and in brackets two ratios: the median of the rounds' ratios to the fastest peer of the same round, and
that of the least times.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from speech_mtl.config import EncoderConfig
from speech_mtl.encoder import Conformer, Subsampling, frame_mask
from speech_mtl.torchaudio_pair import torchaudio

N_MELS, D_MODEL, N_BLOCKS, N_HEADS, KERNEL, FEED_FORWARD = 80, 144, 16, 4, 31, 576
OURS = "speech_mtl"
WORKLOADS = {  # name: utterances, mel frames of each, training
    "inference 1×20 s": (1, 2000, False),
    "inference 8×10 s": (8, 1000, False),
    "training step 8×10 s": (8, 1000, True),
}

Clock = Callable[[], float]


class Adapter(nn.Module):
    """A peer called as ours is: mel_BTF, lengths_B -> frames; `call` gets the modules by name."""

    def __init__(self, call: Callable[[Any, Tensor, Tensor], Tensor], **modules: nn.Module):
        super().__init__()
        self.call = call
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, mel_BTF: Tensor, lengths_B: Tensor) -> Tensor:
        return self.call(self, mel_BTF, lengths_B)


def our_config(dropout: float, **changes: object) -> EncoderConfig:
    values = {"d_model": D_MODEL, "n_blocks": N_BLOCKS, "n_heads": N_HEADS, "kernel_size": KERNEL, "dropout": dropout}
    return EncoderConfig.model_validate(values | changes)


def ours(dropout: float) -> nn.Module:
    return Adapter(
        lambda self, mel, lengths: self.encoder(mel, lengths)[0][-1], encoder=Conformer(our_config(dropout), N_MELS)
    )


def ours_relative(dropout: float) -> nn.Module:
    encoder = Conformer(our_config(dropout, positions="relative"), N_MELS)
    return Adapter(lambda self, mel, lengths: self.encoder(mel, lengths)[0][-1], encoder=encoder)


class DenseSubsampling(nn.Module):
    """Two 3×3 convolutions of stride 2 with ReLU, then a linear layer (Gulati et al. 2020)."""

    def __init__(self, channels: int = 64):
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, channels, 3, 2, 1), nn.ReLU(), nn.Conv2d(channels, channels, 3, 2, 1), nn.ReLU()
        )
        self.linear = nn.Linear(channels * N_MELS // 4, D_MODEL)

    def forward(self, mel_BTF: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        x_BCSF = self.convolutions(mel_BTF[:, None])
        return self.linear(x_BCSF.transpose(1, 2).flatten(2)), (lengths_B + 3) // 4


def torchaudio_conformer(dropout: float) -> nn.Module:
    """No positions at all: torchaudio's Conformer has none."""
    return torchaudio_on(DenseSubsampling(), dropout)


def torchaudio_on_ours(dropout: float) -> nn.Module:
    return torchaudio_on(Subsampling(our_config(dropout), N_MELS), dropout)


def torchaudio_on(subsampling: nn.Module, dropout: float) -> nn.Module:
    blocks = torchaudio.models.Conformer(D_MODEL, N_HEADS, FEED_FORWARD, N_BLOCKS, KERNEL, dropout=dropout)
    return Adapter(
        lambda self, mel, lengths: self.blocks(*self.subsampling(mel, lengths))[0],
        subsampling=subsampling,
        blocks=blocks,
    )


def transformers_parakeet(dropout: float) -> nn.Module:
    from transformers import ParakeetEncoder, ParakeetEncoderConfig

    config = ParakeetEncoderConfig(
        hidden_size=D_MODEL, num_hidden_layers=N_BLOCKS, num_attention_heads=N_HEADS, intermediate_size=FEED_FORWARD,
        conv_kernel_size=KERNEL, subsampling_factor=4, subsampling_conv_channels=64, num_mel_bins=N_MELS,
        dropout=dropout, activation_dropout=dropout, attention_dropout=dropout, layerdrop=0.0,
    )  # fmt: skip
    return Adapter(
        lambda self, mel, lengths: self.encoder(mel, frame_mask(lengths, mel.size(1))).last_hidden_state,
        encoder=ParakeetEncoder(config),
    )


def speechbrain_conformer(dropout: float) -> nn.Module:
    """Front-end as in SpeechBrain's LibriSpeech recipes (two blocks of 64 and 32 channels, stride 2)."""
    from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
    from speechbrain.lobes.models.transformer.Conformer import ConformerEncoder
    from speechbrain.nnet.attention import RelPosEncXL

    def call(self: Any, mel_BTF: Tensor, lengths_B: Tensor) -> Tensor:
        frames_BSD = self.linear(self.front_end(mel_BTF).flatten(2))
        padding_BS = ~frame_mask((lengths_B + 3) // 4, frames_BSD.size(1))
        return self.encoder(frames_BSD, src_key_padding_mask=padding_BS, pos_embs=self.positions(frames_BSD))[0]

    front_end = ConvolutionFrontEnd(
        (8, 10, N_MELS), num_blocks=2, num_layers_per_block=1, out_channels=[64, 32], kernel_sizes=[3, 3],
        strides=[2, 2], residuals=[False, False], dropout=dropout,
    )  # fmt: skip
    encoder = ConformerEncoder(N_BLOCKS, D_MODEL, FEED_FORWARD, N_HEADS, KERNEL, dropout=dropout)
    linear = nn.Linear(32 * N_MELS // 4, D_MODEL)
    return Adapter(call, front_end=front_end, linear=linear, positions=RelPosEncXL(D_MODEL), encoder=encoder)


def espnet_conformer(dropout: float) -> nn.Module:
    from espnet2.asr.encoder.conformer_encoder import ConformerEncoder

    encoder = ConformerEncoder(
        N_MELS, output_size=D_MODEL, attention_heads=N_HEADS, linear_units=FEED_FORWARD, num_blocks=N_BLOCKS,
        dropout_rate=dropout, positional_dropout_rate=dropout, attention_dropout_rate=dropout, input_layer="conv2d",
        rel_pos_type="latest", pos_enc_layer_type="rel_pos", selfattention_layer_type="rel_selfattn",
        macaron_style=True, use_cnn_module=True, cnn_module_kernel=KERNEL,
    )  # fmt: skip
    return Adapter(lambda self, mel, lengths: self.encoder(mel, lengths)[0], encoder=encoder)


ENCODERS = {
    OURS: ours,
    f"{OURS}, relative positions": ours_relative,
    f"{OURS}'s subsampling, torchaudio's blocks": torchaudio_on_ours,
    "torchaudio Conformer": torchaudio_conformer,
    "transformers Parakeet": transformers_parakeet,
    "SpeechBrain Conformer": speechbrain_conformer,
    "ESPnet Conformer": espnet_conformer,
}


def build(dropout: float) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The encoders that can be built here, and why the others cannot."""
    encoders, missing = {}, {}
    for name, make in ENCODERS.items():
        torch.manual_seed(0)
        try:
            encoders[name] = make(dropout)
        except ImportError as error:
            missing[name] = str(error)
    return encoders, missing


def make_batch(n: int, frames: int, padded: bool) -> tuple[Tensor, Tensor]:
    """Noise in place of mel_BTF; `padded` spreads the lengths over 70 to 100 % of the longest."""
    mel_BTF = torch.randn(n, frames, N_MELS)
    lengths_B = torch.linspace(frames, frames * 0.7, n).long() if padded else torch.full((n,), frames)
    return mel_BTF * frame_mask(lengths_B, frames)[..., None], lengths_B


def run(encoder: nn.Module, mel_BTF: Tensor, lengths_B: Tensor, training: bool, clock: Clock) -> float:
    """Milliseconds of one forward pass, or of one forward and backward pass."""
    encoder.train(training)
    start = clock()
    if training:
        encoder(mel_BTF, lengths_B).sum().backward()
        elapsed = clock() - start
        encoder.zero_grad()
    else:
        with torch.no_grad():
            encoder(mel_BTF, lengths_B)
        elapsed = clock() - start
    return 1000 * elapsed


def measure(
    encoders: dict[str, nn.Module], rounds: int, padded: bool, clock: Clock
) -> dict[tuple[str, str], list[float]]:
    """Milliseconds by (encoder, workload), the encoders taking turns; the first round warms up and is not kept."""
    batches = {name: make_batch(n, frames, padded) for name, (n, frames, _) in WORKLOADS.items()}
    times: dict[tuple[str, str], list[float]] = {}
    for kept in [False] + [True] * rounds:
        for workload, (_, _, training) in WORKLOADS.items():
            for name, encoder in encoders.items():
                elapsed = run(encoder, *batches[workload], training, clock)
                if kept:
                    times.setdefault((name, workload), []).append(elapsed)
    return times


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.1, help="in training, for every encoder")
    parser.add_argument("--padded", action="store_true", help="lengths of 70 to 100 %% of the longest, with masks")
    parser.add_argument("--cpu-time", action="store_true", help="count the process's CPU time; needs --threads 1")
    args = parser.parse_args()
    if args.cpu_time and args.threads != 1:
        parser.error("--cpu-time adds up the threads' time, so it needs --threads 1")
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)

    encoders, missing = build(args.dropout)
    peers = [name for name in encoders if not name.startswith(OURS)]
    if not peers:
        parser.error(f"none of the peers is installed: pip install -e '.[benchmarks]' ({'; '.join(missing.values())})")
    console = Console(width=200)
    for name, why in missing.items():
        console.print(f"left out: {name} ({why}); pip install -e '.\\[benchmarks]'")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    console.print(
        f"{cpu_model()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, load {load:.1f}; "
        f"torch {torch.__version__}, {args.threads} threads, {'CPU' if args.cpu_time else 'wall-clock'} time, "
        f"{args.rounds} rounds, dropout {args.dropout}, {'padded' if args.padded else 'full'} batches"
    )
    times = measure(encoders, args.rounds, args.padded, time.process_time if args.cpu_time else time.perf_counter)

    table = Table("encoder", "parameters", *(f"{name}: median, least ms (ratios)" for name in WORKLOADS), box=MARKDOWN)
    for name, encoder in encoders.items():
        cells = []
        for workload in WORKLOADS:
            median, least = statistics.median(times[name, workload]), min(times[name, workload])
            rounds = zip(times[name, workload], *(times[peer, workload] for peer in peers), strict=True)
            ratio = statistics.median(own / min(others) for own, *others in rounds)
            least_ratio = least / min(min(times[peer, workload]) for peer in peers)
            cells.append(f"{median:.0f}, {least:.0f} ({ratio:.2f}, {least_ratio:.2f})")
        table.add_row(name, f"{sum(p.numel() for p in encoder.parameters()) / 1e6:.1f} M", *cells)
    console.print(table)


if __name__ == "__main__":
    main()
