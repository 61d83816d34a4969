"""From frames to one vector an utterance: statistics of the frames, and of the spectrum itself.

Frames -> statistics_BP with P = 2·C + 2·F (2·C without the spectrum), which the heads normalise (`norm`).

Attentive mean and deviation (Okabe et al. 2018, arXiv 1803.10963) of a learnt weighting of the blocks (as in SUPERB,
arXiv 2105.01051; C = D), or of all blocks side by side (MFA-Conformer, arXiv 2203.15249), each through an adaptor of
width A, as Cai & Li put them on a frozen recogniser (2023, arXiv 2309.03019; C = blocks·A). Beside them mean and
deviation of every mel bin: the long-term spectrum tells voices apart well, and a trunk that learns to recognise words
drops it; here it need not carry it. All statistics are over frames that are loud enough to be speech: a head that hears
the quiet around it knows recordings, not voices.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtl.features import frame_mask
from speech_mtl.tasks import Frames, stretch

LOUDEST, MOST_LOUD, SPEECH_RANGE = 0.05, 75, 0.9
"""Frames whose level, the mean of the normalised mel bins, is within this of the loudest twentieth are taken for
speech: 13 dB where the bins are normalised by a corpus. A twentieth, but no more than 75 frames: of a long recording
with a few words the twentieth is quiet, and quiet would be heard as the voice; of fewer a door would be."""
LEAST_SCORE = -60.0
"""Attention scores count from so far below the utterance's highest, within what single precision can tell from 0."""


class Pooling(nn.Module):
    """`mel_ratio` is the number of mel frames in an encoder frame."""

    def __init__(
        self, d_model: int, n_mels: int, n_blocks: int, mel_ratio: int, spectrum: bool = True, adaptor_dim: int = 0,
        hidden: int = 128,
    ):  # fmt: skip
        super().__init__()
        self.spectrum, self.mel_ratio = spectrum, mel_ratio
        if adaptor_dim:
            self.adaptors = nn.ModuleList(
                nn.Sequential(nn.LayerNorm(d_model), nn.Linear(d_model, adaptor_dim), nn.SiLU())
                for _ in range(n_blocks)
            )
        else:
            self.block_weights = nn.Parameter(torch.zeros(n_blocks))
        width = n_blocks * adaptor_dim or d_model
        self.attention = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, width))
        self.size = 2 * (width + n_mels * spectrum)
        self.norm = PooledNorm(self.size)

    def combined(self, blocks: list[Tensor]) -> Tensor:
        """The blocks' frames_BSD as one sequence of frames_BSC."""
        if hasattr(self, "adaptors"):
            pairs = zip(self.adaptors, blocks, strict=True)
            return torch.cat([adaptor(block) for adaptor, block in pairs], dim=-1)
        weights = self.block_weights.softmax(0)
        return sum(w * block for w, block in zip(weights, blocks, strict=True))  # type: ignore[return-value]

    def statistics(self, frames: Frames) -> Tensor:
        """pooled_BP before it is normalised; its last 2·F columns are those of the spectrum."""
        frames_BSC = self.combined(frames.blocks)
        speech_BT = speech_frames(frames.mel_BTF, frames.mel_lengths_B)
        mask_BS = self.encoder_frames(speech_BT, frame_mask(frames.lengths_B, frames_BSC.size(1)))
        scores_BSC = self.attention(frames_BSC).float().masked_fill(~mask_BS[..., None], -math.inf)
        pooled = [*statistics(frames_BSC, scores_BSC.softmax(dim=1))]
        if self.spectrum:
            pooled += bin_statistics(frames.mel_BTF, speech_BT)
        return torch.cat(pooled, dim=1)

    def span_statistics(self, frames: Frames, spans: list[tuple[int, int]]) -> Tensor:
        """`statistics` (W, P) of spans (first, last) of one utterance's encoder frames, each as if it stood alone.

        What spans share is done once, and their sums are products of a matrix of spans and frames: a hundred spans cost
        little more than one.
        """
        frames_1SC = self.combined(frames.blocks)
        first_W1, last_W1 = torch.tensor(spans, device=frames_1SC.device)[..., None].unbind(1)
        mel_last_W1 = (last_W1 * self.mel_ratio).minimum(frames.mel_lengths_B)
        speech_WT = speech_in_spans(frames.mel_BTF, first_W1 * self.mel_ratio, mel_last_W1)
        steps_S = torch.arange(frames_1SC.size(1), device=frames_1SC.device)
        mask_WS = self.encoder_frames(speech_WT, (steps_S >= first_W1) & (steps_S < last_W1))
        frames_SC, scores_SC = frames_1SC[0].float(), self.attention(frames_1SC)[0].float()
        # far below the highest score a frame counts for nothing, unless its span has no other
        shares_SC = (scores_SC - scores_SC.amax(0)).clamp(min=LEAST_SCORE).exp()
        pooled = span_moments(mask_WS, frames_SC, shares_SC)
        if self.spectrum:
            pooled += span_moments(speech_WT, frames.mel_BTF[0].float())
        return torch.cat(pooled, dim=1)

    def encoder_frames(self, speech_BT: Tensor, mask_BS: Tensor) -> Tensor:
        """Which of an utterance's encoder frames (B, S) hold a mel frame of speech; all of them where none does."""
        size = mask_BS.size(1)
        padded = F.pad(speech_BT, (0, size * self.mel_ratio - speech_BT.size(1)))
        held_BS = padded.unflatten(1, (size, self.mel_ratio)).any(2) & mask_BS
        return held_BS | (mask_BS & ~held_BS.any(1, keepdim=True))


def statistics(x_BTC: Tensor, shares_BTC: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, C) over time; the shares add up to 1 over time."""
    mean_BC = (shares_BTC * x_BTC).sum(1)
    variance_BC = (shares_BTC * (x_BTC - mean_BC[:, None]).square()).sum(1)
    return mean_BC, (variance_BC + 1e-6).sqrt()


def span_moments(mask_WT: Tensor, x_TC: Tensor, shares_TC: Tensor | None = None) -> list[Tensor]:
    """`statistics` (W, C) of the frames of each span; here the shares need not add up to 1 (None: all alike)."""
    mask_WT = mask_WT.to(x_TC.dtype)
    centre_C = x_TC.mean(0)  # taken off, since small differences of large squares would be lost
    centred_TC = weighed_TC = x_TC - centre_C
    total_WC = mask_WT.sum(1, keepdim=True)
    if shares_TC is not None:
        weighed_TC, total_WC = shares_TC * centred_TC, mask_WT @ shares_TC
    mean_WC = mask_WT @ weighed_TC / total_WC
    variance_WC = (mask_WT @ (weighed_TC * centred_TC) / total_WC - mean_WC.square()).clamp(min=0)
    return [centre_C + mean_WC, (variance_WC + 1e-6).sqrt()]


def bin_statistics(mel_BTF: Tensor, speech_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, F) of every mel bin over the frames of speech; as products, which are faster."""
    shares_B1T = (speech_BT / speech_BT.sum(1, keepdim=True)).to(mel_BTF.dtype)[:, None]
    mean_BF, square_BF = (shares_B1T @ mel_BTF)[:, 0], (shares_B1T @ mel_BTF.square())[:, 0]
    return mean_BF, ((square_BF - mean_BF.square()).clamp(min=0) + 1e-6).sqrt()


def speech_frames(mel_BTF: Tensor, lengths_B: Tensor) -> Tensor:
    """Which mel frames (B, T) are loud enough to be speech; one of an utterance at least."""
    level_BT = mel_BTF.mean(2)
    return frame_mask(lengths_B, mel_BTF.size(1)) & (level_BT >= least_level(level_BT, lengths_B))


def speech_in_spans(mel_1TF: Tensor, first_W1: Tensor, last_W1: Tensor) -> Tensor:
    """`speech_frames` (W, T) of spans first..last of one utterance, each as if it stood alone."""
    level_1T = mel_1TF.mean(2)
    lengths_W = (last_W1 - first_W1)[:, 0]
    level_WT = stretch(level_1T[..., None], first_W1[:, 0], lengths_W)[..., 0]
    least_W1 = least_level(level_WT, lengths_W, count=min(int(LOUDEST * level_WT.size(1)), MOST_LOUD) + 1)
    steps_T = torch.arange(level_1T.size(1), device=level_1T.device)
    return (steps_T >= first_W1) & (steps_T < last_W1) & (level_1T >= least_W1)


def least_level(level_BT: Tensor, lengths_B: Tensor, count: int | None = None) -> Tensor:
    """The level (B, 1) from which frames of an utterance are taken for speech.

    The `count` loudest frames are looked at, which is 20 times as fast as all (None); an exported graph cannot count.
    """
    level_BT = level_BT.masked_fill(~frame_mask(lengths_B, level_BT.size(1)), -1e9)
    rank_B1 = (LOUDEST * lengths_B).long().clamp(max=MOST_LOUD)[:, None]
    sorted_BT = level_BT.sort(dim=1, descending=True).values if count is None else level_BT.topk(count, dim=1).values
    return sorted_BT.gather(1, rank_B1) - SPEECH_RANGE


def level_free(bins_BP: Tensor, scale_F: Tensor) -> Tensor:
    """Mean and deviation (B, 2·F) of the mel bins in nats, the mean relative to its own mean over the bins.

    `scale_F` are the nats of mel's units.
    """
    mean_BF, deviation_BF = (part_BF * scale_F for part_BF in bins_BP.chunk(2, dim=1))
    return torch.cat([mean_BF - mean_BF.mean(1, keepdim=True), deviation_BF], dim=1)


class PooledNorm(nn.BatchNorm1d):
    """Without a normalisation of their own the statistics hardly train: 15 % instead of 89 % identification on AN4.

    In training its mean and variance are those of all processes' utterances, so that two processes train as one does.
    One utterance has no batch statistics: the running ones serve it.
    """

    running_mean: Tensor
    running_var: Tensor
    momentum: float

    def forward(self, pooled_BP: Tensor) -> Tensor:
        if not self.training:
            return super().forward(pooled_BP)
        count = summed(pooled_BP.new_tensor(float(pooled_BP.size(0))))
        if count < 2:
            return F.batch_norm(pooled_BP, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        mean_P = summed(pooled_BP.sum(0)) / count
        variance_P = summed((pooled_BP - mean_P).square().sum(0)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean_P.float(), self.momentum)
            self.running_var.lerp_(variance_P.float() * count / (count - 1), self.momentum)
        return (pooled_BP - mean_P) / (variance_P + self.eps).sqrt() * self.weight + self.bias


def summed(x: Tensor) -> Tensor:
    """The sum of all processes' tensors, through which gradients flow; `x` where there is one process."""
    if not (torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1):
        return x
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(x)
