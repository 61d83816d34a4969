"""Laws of the encoder: padding, batch order and chunking change nothing; attention and convolution match their
definitions, computed here in the slow and obvious way."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from speech_mtl import encoder as encoder_file
from speech_mtl.config import EncoderConfig
from speech_mtl.encoder import Conformer, RelativeAttention, Residual, RotaryAttention, depthwise_over_time

N_MELS = 20
LENGTHS = [61, 37, 2, 1, 50, 33]  # odd and even after each halving, and single frames


def make_encoder(**changes: object) -> Conformer:
    """A small encoder none of whose biases is zero: a zero bias hides what padded frames turn into."""
    torch.manual_seed(1)
    values = {"d_model": 32, "n_blocks": 3, "n_heads": 4, "kernel_size": 7, "subsampling_channels": 8, "dropout": 0.0}
    encoder = Conformer(EncoderConfig.model_validate(values | changes), N_MELS)
    for parameter in encoder.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    for module in encoder.modules():
        if isinstance(module, RelativeAttention):
            torch.nn.init.normal_(module.bias_u)
            torch.nn.init.normal_(module.bias_v)
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(module.running_mean)
    return encoder


def make_mels(lengths: list[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(length, N_MELS, generator=generator) for length in lengths]


def pad(mels: list[Tensor], extra: int = 0) -> tuple[Tensor, Tensor]:
    mel_BTF = torch.nn.utils.rnn.pad_sequence(mels, batch_first=True)
    return F.pad(mel_BTF, (0, 0, 0, extra)), torch.tensor([len(mel) for mel in mels])


@pytest.mark.parametrize("subsampling", [2, 4, 8])
@pytest.mark.parametrize(
    ("positions", "conv_norm", "training"),
    [
        ("rotary", "layer", False),
        ("rotary", "layer", True),
        ("relative", "layer", False),
        ("relative", "layer", True),
        ("relative", "batch", False),  # in training BatchNorm mixes a batch's frames by design
    ],
)
def test_padding_changes_nothing(positions: str, conv_norm: str, training: bool, subsampling: int) -> None:
    encoder = make_encoder(positions=positions, conv_norm=conv_norm, subsampling=subsampling).train(training)
    mels = make_mels(LENGTHS)
    together, lengths = encoder(*pad(mels, extra=11))
    for i, mel in enumerate(mels):
        alone, length = encoder(*pad([mel]))
        assert length.tolist() == [alone[0].size(1)] == [lengths[i]]
        for block_together, block_alone in zip(together, alone, strict=True):
            torch.testing.assert_close(block_together[i, :length], block_alone[0], atol=1e-5, rtol=1e-5)


def test_padding_changes_no_gradient() -> None:
    encoder = make_encoder(subsampling=8).train()
    mels = make_mels(LENGTHS)

    def gradients(batches: list[list[Tensor]]) -> list[Tensor]:
        encoder.zero_grad()
        for batch in batches:
            outputs, lengths = encoder(*pad(batch))
            mask = encoder_file.frame_mask(lengths, outputs[-1].size(1))
            outputs[-1][mask].square().sum().backward()
        return [parameter.grad.clone() for parameter in encoder.parameters()]

    for together, alone in zip(gradients([mels]), gradients([[mel] for mel in mels]), strict=True):
        torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-3)


def test_batch_order_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make_encoder().eval()
    mels = make_mels(LENGTHS)
    outputs, lengths = encoder(*pad(mels))
    order = [3, 0, 5, 1, 4, 2]
    monkeypatch.setattr(encoder_file, "CPU_CHUNK_FRAMES", 2 * max(LENGTHS))  # two utterances at a time
    permuted, permuted_lengths = encoder(*pad([mels[i] for i in order]))
    assert permuted_lengths.tolist() == lengths[order].tolist()
    for block, block_permuted in zip(outputs, permuted, strict=True):
        for row, i in enumerate(order):
            torch.testing.assert_close(block_permuted[row, : lengths[i]], block[i, : lengths[i]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("subsampling", [2, 4, 8])
def test_lengths_are_those_of_the_convolutions(subsampling: int) -> None:
    encoder = make_encoder(subsampling=subsampling, n_blocks=1).eval()
    for size in range(1, 20):
        frames_BSD, lengths = encoder.subsampling(torch.zeros(1, size, N_MELS), torch.tensor([size]))
        assert frames_BSD.size(1) == lengths.item() == encoder.lengths(torch.tensor(size)).item()
        assert frames_BSD.size(1) == math.ceil(size / subsampling)


def test_subsampling_flattens_channel_major() -> None:
    """The linear layer's columns are in Parakeet's order (channel, mel), whatever the order in memory."""
    subsampling = make_encoder(subsampling=8).subsampling
    (mel_TF,) = make_mels([24])
    x_BCTF = F.relu(subsampling.first(mel_TF[None, None]))
    for depthwise, pointwise in zip(subsampling.depthwise, subsampling.pointwise, strict=True):
        x_BCTF = F.relu(pointwise(depthwise(x_BCTF)))
    expected = subsampling.linear(x_BCTF.transpose(1, 2).flatten(2))
    torch.testing.assert_close(subsampling(mel_TF[None], torch.tensor([24]))[0], expected, atol=1e-5, rtol=1e-5)


def slow_attention(q_HSd: Tensor, k_HSd: Tensor, v_HSd: Tensor, n_keys: int, score) -> Tensor:
    """Attention of one utterance, score by score, over its first n_keys frames; `score(h, i, j)` before scaling."""
    H, S, d = q_HSd.shape
    out_SD = torch.zeros(S, H * d)
    for h in range(H):
        for i in range(S):
            scores = torch.stack([score(h, i, j) for j in range(n_keys)]) / math.sqrt(d)
            out_SD[i, h * d : (h + 1) * d] = scores.softmax(0) @ v_HSd[h, :n_keys]
    return out_SD


def split_heads(attention: RotaryAttention | RelativeAttention, x_SD: Tensor) -> list[Tensor]:
    """Queries, keys and values (H, S, d), each through its own third of the joint projection."""
    weights, biases = attention.qkv_proj.weight.chunk(3), attention.qkv_proj.bias.chunk(3)
    heads = (-1, attention.n_heads, attention.head_dim)
    return [F.linear(x_SD, w, b).view(heads).transpose(0, 1) for w, b in zip(weights, biases, strict=True)]


@torch.no_grad()
def test_relative_attention_matches_its_definition() -> None:
    """score(i, j) = (q_i + u)·k_j + (q_i + v)·W r(i-j), with r the interleaved sinusoids of the distance."""
    encoder = make_encoder(positions="relative", d_model=16, n_heads=2)
    attention, config, D = encoder.blocks["0"].attention, encoder.config, 16
    lengths, S = [7, 5], 7
    x_BSD = torch.randn(2, S, D, generator=torch.Generator().manual_seed(3))
    mask_BS = torch.arange(S) < torch.tensor(lengths)[:, None]
    out_BSD = attention(x_BSD, attention.positions(S, config, x_BSD.device), mask_BS)

    def sinusoid(distance: int) -> Tensor:
        rates = [10000.0 ** (-2 * pair / D) for pair in range(D // 2)]
        return torch.tensor([f(distance * rate) for rate in rates for f in (math.sin, math.cos)])

    u_Hd, v_Hd = attention.bias_u.squeeze(1), attention.bias_v.squeeze(1)
    for b, length in enumerate(lengths):
        q_HSd, k_HSd, value_HSd = split_heads(attention, x_BSD[b])

        def score(h: int, i: int, j: int, q_HSd: Tensor = q_HSd, k_HSd: Tensor = k_HSd) -> Tensor:
            r_d = attention.position_proj(sinusoid(i - j)).view(2, -1)[h]
            return (q_HSd[h, i] + u_Hd[h]) @ k_HSd[h, j] + (q_HSd[h, i] + v_Hd[h]) @ r_d

        expected = attention.out_proj(slow_attention(q_HSd, k_HSd, value_HSd, length, score))
        torch.testing.assert_close(out_BSD[b, :length], expected[:length], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rotary_attention_matches_its_definition() -> None:
    """score(i, j) = q_i · R(j-i) k_j: every pair of dimensions turned by its own rate times the distance."""
    encoder = make_encoder(d_model=16, n_heads=2)
    attention, config = encoder.blocks["0"].attention, encoder.config
    lengths, S, d = [7, 5], 7, 8
    x_BSD = torch.randn(2, S, 16, generator=torch.Generator().manual_seed(3))
    mask_BS = torch.arange(S) < torch.tensor(lengths)[:, None]
    out_BSD = attention(x_BSD, attention.positions(S, config, x_BSD.device), mask_BS)

    def rotation(distance: int) -> Tensor:
        blocks = []
        for pair in range(d // 2):
            angle = distance * 10000.0 ** (-2 * pair / d)
            blocks.append(torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]))
        return torch.block_diag(*blocks)

    for b, length in enumerate(lengths):
        q_HSd, k_HSd, value_HSd = split_heads(attention, x_BSD[b])

        def score(h: int, i: int, j: int, q_HSd: Tensor = q_HSd, k_HSd: Tensor = k_HSd) -> Tensor:
            return q_HSd[h, i] @ (rotation(j - i) @ k_HSd[h, j])

        expected = attention.out_proj(slow_attention(q_HSd, k_HSd, value_HSd, length, score))
        torch.testing.assert_close(out_BSD[b, :length], expected[:length], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rotary_attention_depends_on_distance_only() -> None:
    encoder = make_encoder()
    attention = encoder.blocks["0"].attention
    x_BSD = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(3))
    positions = attention.positions(30, encoder.config, x_BSD.device)
    near, far = attention(x_BSD, positions[:9], None), attention(x_BSD, positions[21:], None)
    torch.testing.assert_close(near, far, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(near, attention(x_BSD, positions[:1].expand(9, -1, -1, -1), None), atol=1e-3)


@pytest.mark.parametrize("bias", [True, False])
def test_depthwise_over_time_is_conv1d(bias: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    inputs = [torch.randn(2, 9, 6, generator=generator), torch.randn(6, 1, 5, generator=generator)]
    inputs.append(torch.randn(6, generator=generator))
    grad_BSD = torch.randn(2, 9, 6, generator=generator)

    def run(function) -> list[Tensor]:
        x_BSD, weight, bias_D = leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        out_BSD = function(x_BSD, weight, bias_D if bias else None)
        return [out_BSD, *torch.autograd.grad(out_BSD, leaves if bias else leaves[:2], grad_BSD)]

    def plain(x_BSD: Tensor, weight: Tensor, bias_D: Tensor | None) -> Tensor:
        return F.conv1d(x_BSD.transpose(1, 2), weight, bias_D, padding=2, groups=6).transpose(1, 2)

    for ours, expected in zip(run(depthwise_over_time), run(plain), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    doubles = [inputs[0][:1, :4, :2], inputs[1][:2, :, :3], inputs[2][:2]]
    doubles = [tensor.double().requires_grad_() for tensor in doubles]
    assert torch.autograd.gradcheck(depthwise_over_time, (*doubles[:2], doubles[2] if bias else None))


def test_residual_dropout() -> None:
    """Drops the share it was told to, keeps the mean, follows the seed, hands gradients to the kept elements only."""
    residual, shape = Residual(0.1), (40, 50, 51)

    def run() -> tuple[Tensor, Tensor]:
        torch.manual_seed(5)
        branch = torch.ones(shape, requires_grad=True)
        out = residual(torch.full(shape, 2.0), branch, 0.5)
        out.sum().backward()
        return out.detach(), branch.grad

    out, grad = run()
    torch.testing.assert_close(out - 2, grad)
    kept = grad != 0
    torch.testing.assert_close(grad[kept], torch.full_like(grad[kept], 0.5 / 0.9))
    assert kept.float().mean().item() == pytest.approx(0.9, abs=0.004)  # 4 standard deviations
    for lane in range(4):  # four elements share one 64-bit draw: each of them alike, and none like its neighbour
        assert kept.flatten()[lane::4].float().mean().item() == pytest.approx(0.9, abs=0.008)
    both = (kept.flatten()[:-1] & kept.flatten()[1:]).float().mean().item()
    assert both == pytest.approx(0.81, abs=0.006)
    assert torch.equal(out, run()[0])
    assert torch.equal(residual.eval()(torch.ones(3), torch.ones(3), 0.5), torch.full((3,), 1.5))


@pytest.mark.parametrize("positions", ["rotary", "relative"])
def test_autocast_stays_finite(positions: str) -> None:
    encoder = make_encoder(positions=positions, dropout=0.1).train()
    with torch.autocast("cpu", torch.bfloat16):
        outputs, _ = encoder(*pad(make_mels(LENGTHS)))
    assert all(torch.isfinite(block).all() for block in outputs)
    outputs[-1].float().square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in encoder.parameters())


def test_double_precision_agrees() -> None:
    mels, lengths = pad(make_mels([61, 40]))
    single, _ = make_encoder().eval()(mels, lengths)
    double, _ = make_encoder().double().eval()(mels.double(), lengths)
    torch.testing.assert_close(single[-1].double(), double[-1], atol=1e-4, rtol=1e-4)
