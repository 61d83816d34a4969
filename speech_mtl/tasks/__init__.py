"""The tasks. A task is one file with one class that keeps the contract below, and one line in TASKS.

A cut is one utterance; a label it lacks is None, and a missing label changes nothing: no loss, no gradient, no metric.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lhotse import SupervisionSegment
    from lhotse.cut import Cut

    from speech_mtl.config import Config
    from speech_mtl.text import Tokenizer


class Frames(NamedTuple):
    """What a task reads: mel features with their lengths, and the blocks' frames_BSD with theirs.

    Of the trunk's blocks, one that nobody reads may be an empty tensor (B, 0, 0); see frame_cache.py.
    """

    mel_BTF: Tensor
    mel_lengths_B: Tensor
    blocks: list[Tensor]
    lengths_B: Tensor

    def of_rows(self, rows_B: Tensor | slice | None) -> Frames:
        """Those of some utterances, by a mask, numbers or a slice; of all where rows_B is None."""
        if rows_B is None:
            return self
        blocks = [block[rows_B] for block in self.blocks]
        return Frames(self.mel_BTF[rows_B], self.mel_lengths_B[rows_B], blocks, self.lengths_B[rows_B])

    def stretch(self, first_B: Tensor, last_B: Tensor, mel_ratio: int) -> Frames:
        """Encoder frames first..last of each utterance (last not among them), and their `mel_ratio` mel frames each."""
        lengths_B, mel_first_B = last_B - first_B, first_B * mel_ratio
        mel_lengths_B = torch.minimum(last_B * mel_ratio, self.mel_lengths_B) - mel_first_B
        blocks = [stretch(block, first_B, lengths_B) for block in self.blocks]
        return Frames(stretch(self.mel_BTF, mel_first_B, mel_lengths_B), mel_lengths_B, blocks, lengths_B)

    def to(self, device: torch.device) -> Frames:
        blocks = [block.to(device) for block in self.blocks]
        return Frames(self.mel_BTF.to(device), self.mel_lengths_B.to(device), blocks, self.lengths_B.to(device))


def stretch(x_BTC: Tensor, first_B: Tensor, lengths_B: Tensor) -> Tensor:
    """Steps first..first+length of each row, or of the one row where there is only one; whatever beyond a length."""
    steps_BT = first_B[:, None] + torch.arange(int(lengths_B.max()) if len(lengths_B) else 0, device=x_BTC.device)
    rows_B1 = torch.arange(len(x_BTC), device=x_BTC.device)[:, None]
    return x_BTC[rows_B1, steps_BT.clamp(max=x_BTC.size(1) - 1)]


class Task(nn.Module, ABC):
    """The contract. B utterances, T mel frames, S encoder frames, D model width."""

    @abstractmethod
    def targets(self, cuts: list[Cut], lengths_B: Tensor) -> dict[str, Tensor]:
        """Labels as CPU tensors, with 'mask' (B,) True where the utterance has a usable one for its encoder frames."""

    @abstractmethod
    def forward(self, frames: Frames, rows_B: Tensor | None = None) -> dict[str, Tensor]:
        """The encoder's frames, block by block -> output tensors, for the rows where rows_B is True (all where absent).

        Uses every parameter of the task, also for no rows at all: with several processes the others wait for it.
        """

    @abstractmethod
    def loss(self, output: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        """Sum over the labelled utterances, whose rows `output` holds and no others.

        The caller divides by their number over all processes and accumulated batches.
        """

    @abstractmethod
    def predict(self, output: dict[str, Tensor]) -> list[dict[str, Any]]:
        """One plain dict an utterance."""


def label_of(cut: Cut, name: str) -> str | None:
    """An utterance's label: a supervision field (text, speaker, gender, language) or a key of its custom dict.

    None where it is absent or blank, or where several supervisions of a cut disagree; for the text see `text_of`.
    """
    if name == "text":
        return text_of(cut)
    values = [getattr(s, name, None) if name in FIELDS else (s.custom or {}).get(name) for s in cut.supervisions]
    distinct = {"" if value is None else str(value) for value in values}
    label = distinct.pop() if len(distinct) == 1 else ""
    return label if label.strip() else None


def text_of(cut: Cut) -> str | None:
    """The texts of a cut's supervisions, as they follow one another; "" where nothing is said.

    None where one of them has none, or begins before the cut or ends after it: then what is said in it is not known.
    """
    texts = [supervision.text for supervision in sorted(cut.supervisions, key=lambda supervision: supervision.start)]
    if not texts or None in texts:
        return None
    parts = [track.cut for track in getattr(cut, "tracks", [])] or [cut]  # what was cut off may be padded anew
    if any(_reaches_out(supervision, part) for part in parts for supervision in part.supervisions):
        return None
    return " ".join(text for text in texts if text.strip())


def _reaches_out(supervision: SupervisionSegment, cut: Cut) -> bool:
    """Whether something is said in it beyond the cut's ends."""
    outside = supervision.start < -OUTSIDE_S or supervision.end > cut.duration + OUTSIDE_S
    return outside and bool((supervision.text or "").strip())


OUTSIDE_S = 0.1
"""Beyond the cut's ends by so little, a supervision's text is still said in it: times are rounded, words are longer."""
FIELDS = {"text", "speaker", "gender", "language"}


def build_tasks(config: Config, tokenizer: Tokenizer | None, labels: dict[str, list[str]]) -> nn.ModuleDict:
    """The config's tasks; `labels` holds each task's classes, from the training data or a model folder."""
    from speech_mtl.tasks.asr import ASR
    from speech_mtl.tasks.classify import Classify
    from speech_mtl.tasks.speaker import Speaker

    TASKS = {"asr": ASR, "speaker": Speaker, "classify": Classify}
    return nn.ModuleDict({
        name: TASKS[task.type](name, config, tokenizer if task.type == "asr" else labels[name])  # type: ignore[arg-type]
        for name, task in config.tasks.items()
    })  # fmt: skip
