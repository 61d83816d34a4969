"""audio_BN -> log-mel -> shared trunk -> every task's own blocks and head -> its output, in one pass.

Blocks 1..b of the Conformer are the trunk's, those above stand once per task, with a branch point b for every task
(`tasks.NAME.branch`). Training runs the two halves apart, `trunk` and then `head` by `head`; `predict` is for use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from speech_mtl.config import Config
from speech_mtl.encoder import Conformer, Linear
from speech_mtl.features import LogMel, SpecAugment
from speech_mtl.tasks import Frames, Task, build_tasks, stretch
from speech_mtl.text import Tokenizer


class SpeechModel(nn.Module):
    """The trunk, the branches and the heads. `labels` holds the classes of the speaker and classify tasks by name."""

    fingerprint: str = ""
    """Set by checkpoint.load_model: identifies the weights, so that embeddings of two models are never compared."""

    def __init__(self, config: Config, tokenizer: Tokenizer | None, labels: dict[str, list[str]]):
        super().__init__()
        self.config, self.tokenizer, self.labels = config, tokenizer, labels
        self.features = LogMel(config.features)
        self.spec_augment = SpecAugment(config.augment)
        self.encoder = Conformer(config.encoder, config.features.n_mels, last=config.trunk_depth())
        self.branches = nn.ModuleDict({
            name: Conformer(config.encoder, config.features.n_mels, config.branch_point(name), config.depth(name))
            for name in config.tasks
            if config.branch_point(name) < config.depth(name)
        })  # fmt: skip
        self.tasks = build_tasks(config, tokenizer, labels)

    def seed_weights(self, seed: int) -> None:
        """Draw all weights anew, part by part: one seed gives a block, or a kind of head, the same start in any model.

        So models that differ in their tasks or branch points start alike wherever they are alike.
        """
        parts: dict[str, list[nn.Module]] = {}
        for name, task in self.tasks.items():
            parts.setdefault(f"task {self.config.tasks[name].type}", []).append(task)
        stacks: list[Conformer] = [self.encoder, *self.branches.values()]  # type: ignore[list-item]
        for stack in stacks:
            if stack.subsampling is not None:
                parts.setdefault("subsampling", []).append(stack.subsampling)
            for place, block in stack.blocks.items():
                parts.setdefault(f"block {place}", []).append(block)
        with torch.random.fork_rng(devices=[]):
            for name, alike in parts.items():
                for part in alike:
                    torch.manual_seed(crc32(f"{seed} {name}".encode()))
                    for module in part.modules():
                        if reset := getattr(module, "reset_parameters", None):
                            reset()

    def train(self, mode: bool = True) -> SpeechModel:
        """Frozen parts (Config.frozen_parts) stay as in use: no dropout, and no running statistics that move."""
        super().train(mode)
        frozen = self.config.frozen_parts()
        for name, module in self.named_modules():
            if frozen and f"{name}.".startswith(frozen):
                module.training = False
        return self

    def limit_attention(self) -> None:
        """Have attention see no further than `encoder.reach_s`, here and in the branches: for recordings of any length.

        With full attention a model trained on short utterances fails on long ones: AN4's dev voices in conversations of
        two minutes give 33 % WER so, 16 % with 3 s; their utterances alone give 13 % either way.
        """
        if not self.config.encoder.reach_s:
            return
        for module in self.modules():
            if isinstance(module, Conformer):
                module.reach = self.reach_frames

    @contextmanager
    def limited_attention(self) -> Iterator[None]:
        """`limit_attention` for a while."""
        stacks = [module for module in self.modules() if isinstance(module, Conformer)]
        reaches = [stack.reach for stack in stacks]
        self.limit_attention()
        try:
            yield
        finally:
            for stack, reach in zip(stacks, reaches, strict=True):
                stack.reach = reach

    def round_weights(self) -> None:
        """Have the encoder run in bfloat16, and its products' weights take half their memory; features and heads stay.

        Half the time on a processor with instructions for it (AVX-512 BF16, AMX), see benchmarks/importing.py.
        """
        for module in self.modules():
            if isinstance(module, Conformer):
                module.rounded = True
            elif isinstance(module, Linear):
                module.bfloat16()

    @property
    def n_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def frame_s(self) -> float:
        """Seconds from an encoder frame to the next."""
        return self.frame_samples / self.config.features.sample_rate

    @property
    def frame_samples(self) -> int:
        """Samples from an encoder frame to the next."""
        return self.config.features.hop_samples * self.config.encoder.subsampling

    @property
    def reach_frames(self) -> int:
        """`encoder.reach_s` in encoder frames; one at least."""
        return max(1, round(self.config.encoder.reach_s / self.frame_s))

    def lengths(self, samples_B: Tensor) -> Tensor:
        """Encoder frames for utterances of so many samples."""
        return self.encoder.lengths(self.features.lengths(samples_B))

    def trunk(self, audio_BN: Tensor, samples_B: Tensor, augment: bool = False) -> Frames:
        """Features and the shared blocks (none where nothing is shared).

        With `augment` features are masked, and a share augment.company_prob of batches is heard `in_company`.
        """
        mel_BTF, mel_lengths_B = self.features(audio_BN, samples_B)
        if augment:
            mel_BTF = self.spec_augment(mel_BTF, mel_lengths_B)
            share = self.config.augment.company_prob
            if share and torch.rand(()).item() < share:
                return self.in_company(mel_BTF, mel_lengths_B)
        return self.shared(mel_BTF, mel_lengths_B)

    def shared(self, mel_BTF: Tensor, mel_lengths_B: Tensor) -> Frames:
        """The shared blocks over features."""
        if not self.encoder.blocks:
            return Frames(mel_BTF, mel_lengths_B, [], self.encoder.lengths(mel_lengths_B))
        return Frames(mel_BTF, mel_lengths_B, *self.encoder(mel_BTF, mel_lengths_B))

    def in_company(self, mel_BTF: Tensor, mel_lengths_B: Tensor) -> Frames:
        """`shared` of utterances that follow one another in one recording, in a drawn order, each with its own frames.

        Attention is limited as in a long recording. Tasks' own blocks, if any, still run on each utterance by itself.
        """
        lengths_B, ratio = self.encoder.lengths(mel_lengths_B), self.config.encoder.subsampling
        order = torch.randperm(len(lengths_B)).tolist()
        sizes = lengths_B.tolist()
        # an utterance's last frame is heard again until its last encoder frame is full
        turns = [
            mel_BTF[row].index_select(0, torch.arange(sizes[row] * ratio, device=mel_BTF.device).clamp(max=last))
            for row, last in zip(order, (mel_lengths_B - 1)[order].tolist(), strict=True)
        ]
        mel_1TF = torch.cat(turns)[None]
        with self.limited_attention():
            recording = self.shared(mel_1TF, torch.tensor([mel_1TF.size(1)], device=mel_BTF.device))
        ends = dict(zip(order, np.cumsum([sizes[row] for row in order]).tolist(), strict=True))
        last_B = torch.tensor([ends[row] for row in range(len(sizes))], device=mel_BTF.device)
        blocks = [stretch(block, last_B - lengths_B, lengths_B) for block in recording.blocks]
        return Frames(mel_BTF, mel_lengths_B, blocks, lengths_B)

    def head(self, name: str, shared: Frames, rows_B: Tensor | None = None) -> dict[str, Tensor]:
        """A task's own blocks and its head, for the rows where rows_B is True (the labelled ones, in training)."""
        if name in self.branches and rows_B is not None and bool(rows_B.any()):
            shared, rows_B = shared.of_rows(rows_B), None  # of no rows, all: the branch must be part of the graph
        return self.tasks[name](self.up_to_head(name, shared), rows_B)

    def up_to_head(self, name: str, shared: Frames) -> Frames:
        """What a task's head reads, of the shared blocks below its branch point and of its own above."""
        blocks = self.way_to_head(name, shared)
        return shared._replace(blocks=[blocks[i - 1] for i in self.config.blocks_read(name)])

    def way_to_head(self, name: str, shared: Frames) -> list[Tensor]:
        """Blocks 1..depth that a task's output depends on, whether its head reads them or not."""
        lowest = self.config.branch_point(name)
        blocks = shared.blocks[:lowest]
        if name in self.branches:
            below = (blocks[-1], shared.lengths_B) if lowest else (shared.mel_BTF, shared.mel_lengths_B)
            blocks = [*blocks, *self.branches[name](*below)[0]]
        return blocks

    def forward(
        self, audio_BN: Tensor, samples_B: Tensor, rows: dict[str, Tensor] | None = None
    ) -> dict[str, dict[str, Tensor]]:
        """Every task's output; `rows`: each task's labelled rows, where only these are wanted."""
        shared = self.trunk(audio_BN, samples_B)
        return {name: self.head(name, shared, rows[name] if rows else None) for name in self.tasks}

    def targets(
        self, cuts: list, samples_B: Tensor, names: Iterable[str] | None = None
    ) -> dict[str, dict[str, Tensor]]:
        """The tasks' labels and masks for a batch of cuts: of all of them, or of `names`."""
        lengths_B = self.lengths(samples_B)
        return {name: self.task(name).targets(cuts, lengths_B) for name in names or self.tasks}

    def learning(self) -> list[str]:
        """The tasks whose loss reaches a weight that is trained."""
        if any(p.requires_grad for p in self.encoder.parameters()):
            return list(self.tasks)
        return [
            name for name in self.tasks
            if any(p.requires_grad for part in self.own_parts(name) for p in part.parameters())
        ]  # fmt: skip

    def moves(self, name: str) -> bool:
        """Whether training changes a task's head, or the frames that it reads."""
        lowest = self.config.branch_point(name)
        below = [self.encoder.subsampling, *list(self.encoder.blocks.values())[:lowest]] if lowest else []
        parts = [part for part in (*below, *self.own_parts(name)) if part is not None]
        return any(parameter.requires_grad for part in parts for parameter in part.parameters())

    def own_parts(self, name: str) -> list[nn.Module]:
        """A task's head, and its own blocks where it has some."""
        return [self.tasks[name], *([self.branches[name]] if name in self.branches else [])]

    def task(self, name: str) -> Task:
        return self.tasks[name]  # type: ignore[return-value]

    @torch.inference_mode()
    def predict(self, audio_BN: Tensor, samples_B: Tensor) -> list[dict[str, Any]]:
        """One {task: prediction} an utterance, all of them from one run of the encoder; see each task's `predict`."""
        return self.predict_from(self.trunk(audio_BN, samples_B), list(self.tasks))

    @torch.inference_mode()
    def predict_from(self, shared: Frames, names: list[str]) -> list[dict[str, Any]]:
        """The same for some of the tasks, from the trunk's frames."""
        by_task = {name: self.task(name).predict(self.head(name, shared)) for name in names}
        return [dict(zip(by_task, row, strict=True)) for row in zip(*by_task.values(), strict=True)]
