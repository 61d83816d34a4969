"""The shared Conformer (Gulati et al. 2020, arXiv 2005.08100), in the FastConformer layout (arXiv 2305.05084).

mel_BTF -> frames_BSD, one tensor per block, read from top to bottom: Conformer, block, attention, convolution,
subsampling. Two properties hold and are tested. Padding changes nothing: every convolution meets zeros beyond an
utterance's end, and all normalising is per frame. And it is fast on a CPU (benchmarks/encoder.py): depthwise
convolutions run in channels-last form, where oneDNN has a kernel for them; the blocks' matrix products run as 1×1
convolutions, which takes them to oneDNN as well; positions are rotations, which leave attention to a fused kernel;
dropout sits on the residual branches only and draws cheaply; no tensor is so large that the system takes its memory
back after every call.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtl.config import EncoderConfig
from speech_mtl.features import frame_mask

ONEDNN_ABOVE = 20480  # elements of a convolution's input: ConvParams::use_mkldnn in PyTorch's Convolution.cpp
CPU_CHUNK_FRAMES = 2000  # mel frames subsampled at a time; their largest tensor takes 10 MB


class Conformer(nn.Module):
    """Blocks first+1..last of the stack, and the subsampling where these are the lowest.

    Returns the output of every block, since tasks may read any of them. Blocks carry their place in the whole stack in
    their weights' names, so that a task's own blocks can start from another model's shared ones.
    """

    def __init__(self, config: EncoderConfig, n_mels: int, first: int = 0, last: int | None = None):
        super().__init__()
        self.config = config
        self.reach: int | Tensor | None = None
        """Frames to either side that attention sees, all where None; see SpeechModel.limit_attention."""
        self.rounded = False
        """Whether the pass runs in bfloat16, see SpeechModel.round_weights."""
        last = config.n_blocks if last is None else last
        self.subsampling = Subsampling(config, n_mels) if first == 0 < last else None
        self.blocks = nn.ModuleDict({str(i): ConformerBlock(config) for i in range(first, last)})
        self.dropout = nn.Dropout(config.dropout)

    def lengths(self, lengths_B: Tensor) -> Tensor:
        """Encoder frames for so many mel frames: halved and rounded up once per stride-2 convolution."""
        for _ in range(int(math.log2(self.config.subsampling))):
            lengths_B = (lengths_B + 1) // 2
        return lengths_B

    def forward(self, x: Tensor, lengths_B: Tensor) -> tuple[list[Tensor], Tensor]:
        """x with its lengths -> (the blocks' frames_BSD, lengths_B in encoder frames).

        x is mel_BTF with lengths in mel frames, or block `first`'s frames_BSD with lengths in encoder frames.
        """
        if not self.rounded:
            return self._pass(x, lengths_B)
        with torch.autocast(x.device.type, torch.bfloat16):
            outputs, lengths_B = self._pass(x, lengths_B)
        return [frames_BSD.float() for frames_BSD in outputs], lengths_B

    def _pass(self, x: Tensor, lengths_B: Tensor) -> tuple[list[Tensor], Tensor]:
        frames_BSD = x
        if self.subsampling is not None:
            frames_BSD, lengths_B = self.subsampling(x, lengths_B)
            if self.config.scale_input:
                frames_BSD = frames_BSD * math.sqrt(self.config.d_model)
            frames_BSD = self.dropout(frames_BSD)
        size = frames_BSD.size(1)
        mask_BS = None if all_of(lengths_B, size) else frame_mask(lengths_B, size)
        sees_all = self.reach is None or (not exporting() and size <= self.reach)
        near_SS = None if sees_all else band(size, self.reach, frames_BSD.device)  # type: ignore[arg-type]
        positions = ATTENTION[self.config.positions].positions(size, self.config, frames_BSD.device)
        outputs = []
        for block in self.blocks.values():
            frames_BSD = block(frames_BSD, positions, mask_BS, near_SS)
            outputs.append(frames_BSD)
        return outputs, lengths_B


class ConformerBlock(nn.Module):
    """Half feed-forward, self-attention, convolution, half feed-forward: each pre-norm with a residual; final norm."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        D = config.d_model
        self.norm_feed_forward1, self.feed_forward1 = nn.LayerNorm(D), FeedForward(config)
        self.norm_attention, self.attention = nn.LayerNorm(D), ATTENTION[config.positions](config)
        self.norm_convolution, self.convolution = nn.LayerNorm(D), ConvolutionModule(config)
        self.norm_feed_forward2, self.feed_forward2 = nn.LayerNorm(D), FeedForward(config)
        self.norm_out = nn.LayerNorm(D)
        self.residual = Residual(config.dropout)

    def forward(
        self, x_BSD: Tensor, positions: Tensor, mask_BS: Tensor | None, near_SS: Tensor | None = None
    ) -> Tensor:
        x_BSD = self.residual(x_BSD, self.feed_forward1(self.norm_feed_forward1(x_BSD)), 0.5)
        x_BSD = self.residual(x_BSD, self.attention(self.norm_attention(x_BSD), positions, mask_BS, near_SS))
        x_BSD = self.residual(x_BSD, self.convolution(self.norm_convolution(x_BSD), mask_BS))
        x_BSD = self.residual(x_BSD, self.feed_forward2(self.norm_feed_forward2(x_BSD)), 0.5)
        return self.norm_out(x_BSD)


class Residual(nn.Module):
    """x + factor · dropout(branch)."""

    def __init__(self, dropout: float):
        super().__init__()
        self.dropout = dropout

    def forward(self, x: Tensor, branch: Tensor, factor: float = 1.0) -> Tensor:
        if not self.training or not self.dropout:
            return torch.add(x, branch, alpha=factor, out=branch if in_place() else None)
        if x.device.type != "cpu":
            return torch.add(x, F.dropout(branch, self.dropout), alpha=factor)
        # PyTorch draws one number per element on a CPU, a tenth of a training step; here one draw serves four elements
        draws = torch.empty(x.numel() // 4 + 1, dtype=torch.int64).random_(-(2**63), None)
        keep = draws.view(torch.int16)[: x.numel()].view(x.shape) >= round(self.dropout * 2**16) - 2**15
        return torch.addcmul(x, branch, keep.to(branch.dtype), value=factor / (1 - self.dropout))


def exporting() -> bool:
    """Whether the pass is being written down as a graph for any size: nothing may be decided by sizes and lengths then.

    The graph gets plain operations in place of those that are fast in PyTorch alone.
    """
    return torch.compiler.is_exporting()


def all_of(lengths_B: Tensor, size: int) -> bool:
    """Whether there is no padding."""
    return not exporting() and bool((lengths_B == size).all())


def in_place() -> bool:
    """Whether a tensor just made may be overwritten: when no gradient is wanted.

    Worth it on a CPU: a new tensor of a megabyte costs as much as several passes over an old one, since the system
    hands out zeroed pages; SiLU in place takes an eighth of the time.
    """
    return not torch.is_grad_enabled() and not exporting()


def linear(x_BSD: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` over frames; on a CPU as a 1×1 convolution in channels-last form, without a copy.

    PyTorch sends products to MKL, which leaves the AVX-512 units of AMD's processors idle, and convolutions to oneDNN,
    which does not: 2.1 times as fast there, forward and backward. The dilation of a kernel of one cell means nothing
    but to PyTorch, which would send a plain 1×1 convolution back to MKL where there is one thread; and it never sends
    small inputs to oneDNN. A new length costs a millisecond, for which oneDNN makes its kernels: worth it where layers
    of one shape stand in every block, and not for a layer that runs once.
    """
    onednn = x_BSD.device.type == "cpu" and torch.backends.mkldnn.is_available() and not exporting()
    # products of bfloat16 go to oneDNN by themselves, and take three quarters of the time of such convolutions
    if not onednn or x_BSD.numel() <= ONEDNN_ABOVE or torch.is_autocast_enabled("cpu"):
        return F.linear(x_BSD, weight, bias)
    x_BD1S = x_BSD.transpose(1, 2).unsqueeze(2)
    return F.conv2d(x_BD1S, weight[:, :, None, None], bias, dilation=(2, 1)).squeeze(2).transpose(1, 2)


class Linear(nn.Linear):
    """`nn.Linear` for frames_BSD, by the faster way."""

    def forward(self, x_BSD: Tensor) -> Tensor:
        return linear(x_BSD, self.weight, self.bias)


def band(size: int, reach: int | Tensor, device: torch.device) -> Tensor:
    """Boolean (S, S), True where a key is at most `reach` frames from its query."""
    place_S = torch.arange(size, device=device)
    return (place_S[:, None] - place_S).abs() <= reach


def visible(mask_BS: Tensor | None, near_SS: Tensor | None) -> Tensor | None:
    """Which keys a query sees, to be broadcast to (B, H, S, S); None where it sees all."""
    if mask_BS is None or near_SS is None:
        return near_SS if mask_BS is None else mask_BS[:, None, None, :]
    # padded queries see all keys: a row without any would be NaN, which no mask removes afterwards
    return (near_SS & mask_BS[:, None, None, :]) | ~mask_BS[:, None, :, None]


class FeedForward(nn.Module):
    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.linear1 = Linear(config.d_model, config.ff_factor * config.d_model, bias=config.attention_bias)
        self.linear2 = Linear(config.ff_factor * config.d_model, config.d_model, bias=config.attention_bias)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.linear2(F.silu(self.linear1(x_BSD), inplace=in_place()))


class RotaryAttention(nn.Module):
    """Multi-head self-attention; queries and keys are rotated by their position (RoFormer, arXiv 2104.09864).

    Scores depend on distance only, as with Transformer-XL positions, at a fraction of their cost: 0.8 of the encoder's
    time at 20 s of audio, and nothing of size S·S is kept.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.n_heads, self.head_dim = config.n_heads, config.d_model // config.n_heads
        self.qkv_proj = Linear(config.d_model, 3 * config.d_model, bias=config.attention_bias)
        self.out_proj = Linear(config.d_model, config.d_model, bias=config.attention_bias)

    @staticmethod
    def positions(size: int, config: EncoderConfig, device: torch.device) -> Tensor:
        """Cosine and sine (S, 1, d/2, 2) of the rotations of the head's pairs of dimensions."""
        half = config.d_model // config.n_heads // 2
        rate = torch.exp(torch.arange(half, device=device, dtype=torch.float32) * (-math.log(10000.0) / half))
        angle_S1d = (torch.arange(size, device=device)[:, None] * rate)[:, None]
        return torch.stack([angle_S1d.cos(), angle_S1d.sin()], dim=-1)

    def forward(
        self, x_BSD: Tensor, positions: Tensor, mask_BS: Tensor | None, near_SS: Tensor | None = None
    ) -> Tensor:
        B, S, D = x_BSD.shape
        qk, v = self.qkv_proj(x_BSD).split([2 * D, D], dim=-1)
        pairs = qk.float().view(B, S, 2 * self.n_heads, self.head_dim // 2, 2)
        qk_BHSd = rotated(pairs, positions).flatten(-2).to(v.dtype).transpose(1, 2)
        q_BHSd, k_BHSd = qk_BHSd.chunk(2, dim=1)
        v_BHSd = v.view(B, S, self.n_heads, self.head_dim).transpose(1, 2)
        out_BHSd = F.scaled_dot_product_attention(q_BHSd, k_BHSd, v_BHSd, visible(mask_BS, near_SS))
        return self.out_proj(out_BHSd.transpose(1, 2).reshape(B, S, D))


def rotated(pairs: Tensor, positions: Tensor) -> Tensor:
    """Pairs (B, S, H, d/2, 2), each turned by its position: a product of complex numbers, which ONNX does not have."""
    if exporting():
        (x, y), (cos, sin) = pairs.unbind(-1), positions.unbind(-1)
        return torch.stack([x * cos - y * sin, x * sin + y * cos], dim=-1)
    x, turn = torch.view_as_complex(pairs), torch.view_as_complex(positions)
    return torch.view_as_real(x.mul_(turn) if in_place() else x * turn)


class RelativeAttention(nn.Module):
    """Multi-head self-attention with Transformer-XL positions (arXiv 1901.02860), as Parakeet has it."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        D, self.n_heads = config.d_model, config.n_heads
        self.head_dim = D // config.n_heads
        self.qkv_proj = Linear(D, 3 * D, bias=config.attention_bias)
        self.out_proj = Linear(D, D, bias=config.attention_bias)
        self.position_proj = Linear(D, D, bias=False)
        self.bias_u = nn.Parameter(torch.zeros(self.n_heads, 1, self.head_dim))
        self.bias_v = nn.Parameter(torch.zeros(self.n_heads, 1, self.head_dim))

    @staticmethod
    def positions(size: int, config: EncoderConfig, device: torch.device) -> Tensor:
        """Sinusoids (2·size-1, D) of the distances size-1 ... -(size-1), sine and cosine interleaved."""
        distance_P = torch.arange(size - 1, -size, -1, device=device)
        place = torch.arange(0, config.d_model, 2, device=device, dtype=torch.float32)
        rate = torch.exp(place * (-math.log(10000.0) / config.d_model))
        angle = distance_P[:, None] * rate
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)

    def forward(
        self, x_BSD: Tensor, positions: Tensor, mask_BS: Tensor | None, near_SS: Tensor | None = None
    ) -> Tensor:
        B, S, D = x_BSD.shape
        qkv = self.qkv_proj(x_BSD).view(B, S, 3, self.n_heads, self.head_dim)
        q_BHSd, k_BHSd, v_BHSd = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        r_HdP = self.position_proj(positions[None]).view(-1, self.n_heads, self.head_dim).permute(1, 2, 0)
        scale = 1 / math.sqrt(self.head_dim)
        bias_BHSS = relative_shift(((q_BHSd + self.bias_v) * scale) @ r_HdP)
        if (keys := visible(mask_BS, near_SS)) is not None:
            bias_BHSS = bias_BHSS.masked_fill(~keys, -math.inf)
        out_BHSd = F.scaled_dot_product_attention(q_BHSd + self.bias_u, k_BHSd, v_BHSd, bias_BHSS, scale=scale)
        return self.out_proj(out_BHSd.transpose(1, 2).reshape(B, S, D))


def relative_shift(scores_BHSP: Tensor) -> Tensor:
    """Scores by distance -> scores by key: out[..., i, j] = in[..., i, size-1-i+j]; a view, nothing is copied."""
    B, H, S, P = scores_BHSP.shape
    if exporting():  # a graph has no strides: the cells are picked by their places
        query_S1 = torch.arange(S, device=scores_BHSP.device)[:, None]
        place_SS = query_S1 * (P - 1) + query_S1.T + S - 1
        return scores_BHSP.flatten(2).index_select(2, place_SS.flatten()).view(B, H, S, S)
    scores_BHSP = scores_BHSP.contiguous()
    return scores_BHSP.as_strided((B, H, S, S), (H * S * P, S * P, P - 1, 1), scores_BHSP.storage_offset() + S - 1)


ATTENTION: dict[str, type[RotaryAttention | RelativeAttention]] = {
    "rotary": RotaryAttention,
    "relative": RelativeAttention,
}


class ConvolutionModule(nn.Module):
    """Pointwise, GLU, depthwise over time, norm, SiLU, pointwise."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        D, bias = config.d_model, config.convolution_bias
        self.pointwise1 = Linear(D, 2 * D, bias=bias)
        self.depthwise = nn.Conv1d(D, D, config.kernel_size, padding=config.kernel_size // 2, groups=D, bias=bias)
        self.norm = nn.LayerNorm(D) if config.conv_norm == "layer" else FrameBatchNorm(D)
        self.pointwise2 = Linear(D, D, bias=bias)

    def forward(self, x_BSD: Tensor, mask_BS: Tensor | None) -> Tensor:
        x_BSD = F.glu(self.pointwise1(x_BSD))
        if mask_BS is not None:
            # here and nowhere earlier: the biased pointwise layer has just made padded frames non-zero
            x_BSD = x_BSD.mul_(mask_BS[..., None]) if in_place() else x_BSD * mask_BS[..., None]
        x_BSD = depthwise_over_time(x_BSD, self.depthwise.weight, self.depthwise.bias)
        return self.pointwise2(F.silu(self.norm(x_BSD), inplace=in_place()))


class FrameBatchNorm(nn.BatchNorm1d):
    """BatchNorm over (B, S, D), for imported models: in eval mode, with fixed statistics, padding has no effect."""

    def forward(self, x_BSD: Tensor) -> Tensor:
        return super().forward(x_BSD.flatten(0, 1)).view_as(x_BSD)


def depthwise_over_time(x_BSD: Tensor, weight_D1K: Tensor, bias_D: Tensor | None) -> Tensor:
    """Depthwise convolution with same length, as a 1×K Conv2d whose input is channels-last without a copy."""
    x_BD1S = x_BSD.transpose(1, 2).unsqueeze(2)
    K = weight_D1K.size(2)
    out_BD1S = F.conv2d(x_BD1S, weight_D1K.unsqueeze(2), bias_D, padding=(0, K // 2), groups=weight_D1K.size(0))
    return out_BD1S.squeeze(2).transpose(1, 2)


class Subsampling(nn.Module):
    """Stride-2 convolutions over (time, mel): a full one, then depthwise-separable ones; then a linear layer to D.

    Padded frames are zeroed after every convolution that another one follows, so that an odd length meets zeros there.
    """

    def __init__(self, config: EncoderConfig, n_mels: int):
        super().__init__()
        C = config.subsampling_channels
        self.first = nn.Conv2d(1, C, 3, stride=2, padding=1)
        n_more = int(math.log2(config.subsampling)) - 1
        self.depthwise = nn.ModuleList(nn.Conv2d(C, C, 3, stride=2, padding=1, groups=C) for _ in range(n_more))
        self.pointwise = nn.ModuleList(nn.Conv2d(C, C, 1) for _ in range(n_more))
        self.linear = nn.Linear(C * -(-n_mels // config.subsampling), config.d_model)
        for module in [self.first, *self.depthwise, *self.pointwise]:
            module.to(memory_format=torch.channels_last)  # 1.5 to 2 times as fast on a CPU

    def forward(self, mel_BTF: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        # on a CPU a few utterances at a time: glibc returns blocks over 32 MB to the system, which zeroes them anew at
        # every call, and that took half of this module's time
        if mel_BTF.device.type != "cpu" or exporting():
            return self.subsample(mel_BTF, lengths_B)
        n = max(1, CPU_CHUNK_FRAMES // mel_BTF.size(1))
        batches = zip(mel_BTF.split(n), lengths_B.split(n), strict=True)
        chunks = [self.subsample(mel, lengths) for mel, lengths in batches]
        return torch.cat([frames for frames, _ in chunks]), torch.cat([lengths for _, lengths in chunks])

    def subsample(self, mel_BTF: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        lengths_B = (lengths_B + 1) // 2
        x_BCTF = F.relu_(zero_padding_(self.first(mel_BTF[:, None]), lengths_B))
        for depthwise, pointwise in zip(self.depthwise, self.pointwise, strict=True):
            lengths_B = (lengths_B + 1) // 2
            x_BCTF = F.relu_(zero_padding_(pointwise(depthwise(x_BCTF)), lengths_B))
        # the weight's columns are in Parakeet's order (C, F), the frames lie in memory as (F, C): permute the smaller
        weight = self.linear.weight.unflatten(1, (x_BCTF.size(1), -1)).transpose(1, 2).flatten(1)
        return F.linear(x_BCTF.permute(0, 2, 3, 1).flatten(2), weight, self.linear.bias), lengths_B


def zero_padding_(x_BCTF: Tensor, lengths_B: Tensor) -> Tensor:
    """In place, which autograd allows after a convolution."""
    size = x_BCTF.size(2)
    if all_of(lengths_B, size):
        return x_BCTF
    return x_BCTF.mul_(frame_mask(lengths_B, size)[:, None, :, None].to(x_BCTF.dtype))
