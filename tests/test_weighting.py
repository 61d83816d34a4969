"""Every weighting method: hand-worked cases, torchjd as an independent reference, and laws over the whole registry."""

from __future__ import annotations

import io
import itertools
import math
import sys

import pytest
import torch
from torch import Tensor

from speech_mtl.weighting import METHODS, Weighting, build_weighting

OF_TORCHJD = [f"torchjd.{name}" for name in ("UPGrad", "AlignedMTL", "DualProj", "FairGrad", "IMTLG", "MGDA", "PCGrad")]
EVERY = [*METHODS, *OF_TORCHJD]
DRAWN_ORDER = "torchjd.PCGrad"  # the only one to which the place of a task matters


def build(name: str, tasks: int) -> Weighting:
    if name.startswith("torchjd."):
        pytest.importorskip("torchjd", reason="torchjd is an extra")
        pytest.importorskip("quadprog", reason="torchjd's UPGrad and DualProj need quadprog")
    return build_weighting(name, tasks)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def present(*values: bool) -> Tensor:
    return torch.tensor(values)


def everybody(tasks: int) -> Tensor:
    return torch.ones(tasks, dtype=torch.bool)


def gradients(tasks: int, seed: int, size: int = 6) -> Tensor:
    return torch.randn(tasks, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gram_of(rows_KN: Tensor) -> Tensor:
    return rows_KN @ rows_KN.T


def weights_of(name: str, gram_KK: Tensor) -> Tensor:
    return build(name, len(gram_KK)).weights(gram_KK, everybody(len(gram_KK)))


# ---- laws over every method


def losses_at(step: int, tasks: int) -> Tensor:
    """Losses that fall at different rates and jump from batch to batch."""
    return torch.tensor([0.5 + (1 + k) * 0.9 ** (step * k) + 0.3 * math.sin(step + k) for k in range(tasks)])


def course(method: Weighting, tasks: list[int], steps: range) -> list[Tensor]:
    """The weights of some steps with two steps an epoch, for a method that knows only `tasks` of three."""
    seen = []
    for step in steps:
        gram_KK = gram_of(gradients(3, seed=step))[tasks][:, tasks]
        seen.append(method.weights(gram_KK, everybody(len(tasks))))
        method.after_step(losses_at(step, 3)[tasks], everybody(len(tasks)))
        if step % 2:
            method.after_epoch()
    return seen


@pytest.mark.parametrize("name", EVERY)
def test_an_absent_task_changes_nothing(name: str) -> None:
    method = build(name, 3)
    for step, expected in enumerate(course(build(name, 2), [0, 2], range(9))):
        mask, gram_KK = present(True, False, True), gram_of(gradients(3, seed=step))
        gram_KK[1] = gram_KK[:, 1] = math.nan
        weights = method.weights(gram_KK, mask)
        assert weights[1] == 0
        torch.testing.assert_close(weights[[0, 2]], expected, rtol=1e-12, atol=0)
        losses = losses_at(step, 3)
        losses[1] = (math.nan, math.inf, 1e30)[step % 3]
        method.after_step(losses, mask)
        if step % 2:
            method.after_epoch()


@pytest.mark.parametrize("name", ["uncertainty", "dwa", "famo"])
def test_a_task_keeps_its_place_while_absent(name: str) -> None:
    """What a task has learnt waits for it: two epochs in which no task has a label leave the weights alone."""
    method = build(name, 2)
    course(method, [0, 1], range(8))
    before = method.weights(None, everybody(2))
    assert (before - 1).abs().min() > 1e-3  # else nothing was learnt and the test could not fail
    for _ in range(2):
        method.after_step(vector(math.nan, 5), present(False, False))
        method.after_epoch()
    assert torch.equal(method.weights(None, everybody(2)), before)
    assert torch.equal(method.weights(None, present(False, True)), before * vector(0, 1))


@pytest.mark.parametrize("name", EVERY)
def test_state_continues_exactly(name: str) -> None:
    straight = course(build(name, 3), [0, 1, 2], range(10))
    stopped = build(name, 3)
    course(stopped, [0, 1, 2], range(5))  # in the middle of an epoch
    state, file = stopped.state_dict(), io.BytesIO()
    course(stopped, [0, 1, 2], range(5, 8))  # the one that goes on must not change what was taken
    torch.save(state, file)
    file.seek(0)
    resumed = build(name, 3)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for weights, expected in zip(course(resumed, [0, 1, 2], range(5, 10)), straight[5:], strict=True):
        assert torch.equal(weights, expected)


@pytest.mark.parametrize("name", [name for name in EVERY if name != DRAWN_ORDER])
def test_permuted_tasks_permute_the_weights(name: str) -> None:
    order = [2, 0, 1]
    for weights, permuted in zip(
        course(build(name, 3), [0, 1, 2], range(8)), course(build(name, 3), order, range(8)), strict=True
    ):
        torch.testing.assert_close(permuted, weights[order], rtol=1e-6, atol=1e-6)


E1, E2 = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]
AWKWARD = {
    "identical": [E1, E1, E1],
    "opposed": [E1, [-1.0, 0.0, 0.0], E2],
    "two opposed pairs": [E1, [-1.0, 0.0, 0.0], E2, [0.0, -1.0, 0.0]],
    "sum is zero": [E1, [-0.5, 0.8, 0.0], [-0.5, -0.8, 0.0]],
    "one is zero": [[0.0, 0.0, 0.0], E1, [-0.9, 0.1, 0.0]],
    "all are zero": [[0.0, 0.0, 0.0]] * 3,
    "nearly dependent": [E1, [-1.0, 1e-9, 0.0], [-1.0, 0.0, 1e-12]],
    "norms far apart": [[1e-9, 1e-10, 0.0], [-1e9, 1e8, 0.0], [0.3, 0.2, 0.1]],
    "tiny": [[1e-18, 0.0, 0.0], [-1e-18, 1e-18, 0.0]],
    "one task": [E1],
    "two identical": [E1, E1],
    "two opposed": [E1, [-1.0, 0.0, 0.0]],
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", AWKWARD)
@pytest.mark.parametrize("name", EVERY)
def test_awkward_gradients_give_finite_weights(name: str, case: str, dtype: torch.dtype) -> None:
    gram_KK = gram_of(torch.tensor(AWKWARD[case], dtype=dtype))
    method = build(name, len(gram_KK))
    for bits in itertools.product([True, False], repeat=len(gram_KK)):
        mask = present(*bits)
        weights = method.weights(gram_KK, mask)
        assert weights.dtype == torch.float64 and weights.shape == mask.shape
        assert weights.isfinite().all()
        assert not weights[~mask].any()
        if sum(bits) == 1 and gram_KK.diagonal()[mask] > 0:
            assert weights.sum() == pytest.approx(1)  # a task alone goes its own way


@pytest.mark.parametrize("name", EVERY)
def test_rounding_that_makes_the_gram_indefinite(name: str) -> None:
    gram_KK = torch.ones(3, 3, dtype=torch.float64) + 1e-6 * (1 - torch.eye(3, dtype=torch.float64))
    assert torch.linalg.eigvalsh(gram_KK)[0] < 0
    assert weights_of(name, gram_KK).isfinite().all()


@pytest.mark.parametrize("name", EVERY)
def test_strange_losses_leave_the_weights_finite(name: str) -> None:
    method, gram_KK = build(name, 2), gram_of(gradients(2, seed=0))
    for epoch in range(4):
        for losses in (vector(0, 1e30), vector(math.nan, 0), vector(-1, 3), vector(math.inf, 0), vector(1e-30, 0)):
            method.after_step(losses, everybody(2))
            assert method.weights(gram_KK, everybody(2)).isfinite().all(), (epoch, losses)
        method.after_epoch()


@pytest.mark.parametrize("name", [name for name in EVERY if name in OF_TORCHJD or name in ("pcgrad", "imtl-g", "mgda")])
def test_methods_of_the_gram_matrix(name: str) -> None:
    method, gram_KK = build(name, 3), gram_of(gradients(3, seed=2))
    assert method.needs_gram
    # The common scale of the gradients, which loss scaling and the batch set, decides nothing.
    for scale in (1e-14, 1e8):
        torch.testing.assert_close(
            method.weights(scale * gram_KK, everybody(3)), method.weights(gram_KK, everybody(3)), rtol=1e-9, atol=1e-9
        )
    overflowed = gram_KK.clone()
    overflowed[0, 1] = math.inf
    assert method.weights(overflowed, everybody(3)).tolist() == [1, 1, 1]
    for wrong in (None, gram_KK[:2]):
        with pytest.raises(ValueError, match=r"Gram matrix has shape .*accepted: \[3, 3\]"):
            method.weights(wrong, everybody(3))


# ---- hand-worked cases: a = |g1|^2, b = |g2|^2, c = g1.g2


def test_pcgrad_by_hand() -> None:
    # g1 = (2, 0), g2 = (-1, 1): a = 4, b = 2, c = -2, so w1 = 1 + 2/4 and w2 = 1 + 2/2.
    # Check: g1 without its part along g2 is (1, 1), g2 without its part along g1 is (0, 1); 1.5 g1 + 2 g2 = (1, 2).
    torch.testing.assert_close(weights_of("pcgrad", torch.tensor([[4.0, -2], [-2, 2]])), vector(1.5, 2))
    # Three tasks: g1 = (1, 0), g2 = (-1, 1), g3 = (0, -1), so c12 = -1, c13 = 0, c23 = -1, |g2|^2 = 2.
    # g1: only g2 conflicts: (1, 0) + g2/2 = (.5, .5), which conflicts with g3 by -.5. Order 2, 3: + g3/2: 1, .5, .5.
    #     Order 3, 2: 1, .5, 0. Mean: 1, .5, .25.
    # g2: meets g1: + g1 = (0, 1), then g3: + g3 = 0. Either order: 1, 1, 1.
    # g3: meets g1: nothing; meets g2: + g2/2 = (-.5, -.5), conflicts with g1 by -.5. Order 2, 1: .5, .5, 1.
    #     Order 1, 2: 0, .5, 1. Mean: .25, .5, 1.
    gram_KK = gram_of(vector(1, 0, -1, 1, 0, -1).reshape(3, 2))
    torch.testing.assert_close(weights_of("pcgrad", gram_KK), vector(2.25, 2, 2.25))


def test_pcgrad_leaves_tasks_without_conflict_alone() -> None:
    assert weights_of("pcgrad", torch.tensor([[4.0, 1], [1, 2]])).tolist() == [1, 1]
    assert weights_of("pcgrad", gram_of(gradients(4, seed=0).abs())).tolist() == [1, 1, 1, 1]
    with pytest.raises(ValueError, match=r"up to 6 tasks, found 7; take 'torchjd\.PCGrad'"):
        build("pcgrad", 7)


def test_imtl_g_by_hand() -> None:
    # |g1| = 2, |g2| = 1: w is in proportion to (1/2, 1), whatever the angle, so (1/3, 2/3).
    for c in (-2.0, -1.0, 0.0, 1.9, 2.0):
        torch.testing.assert_close(weights_of("imtl-g", torch.tensor([[4, c], [c, 1]])), vector(1 / 3, 2 / 3))
    # Orthogonal gradients of lengths 1, 2, 4: unit vectors count alike, 1 : 1/2 : 1/4 = 4/7, 2/7, 1/7.
    torch.testing.assert_close(weights_of("imtl-g", vector(1, 4, 16).diag()), vector(4 / 7, 2 / 7, 1 / 7))


def test_mgda_by_hand() -> None:
    # a = 4, b = 2, c = -2: w1 = (2 + 2) / (4 + 2 + 4) = 0.4
    torch.testing.assert_close(weights_of("mgda", torch.tensor([[4.0, -2], [-2, 2]])), vector(0.4, 0.6))
    # a = 9, b = 1, c = 2 > b: the nearest point of the segment to 0 is g2 itself
    assert weights_of("mgda", torch.tensor([[9.0, 2], [2, 1]])).tolist() == [0, 1]
    # Orthogonal with a = 1, 2, 4: the shortest point has w in proportion to 1/a: 4/7, 2/7, 1/7
    torch.testing.assert_close(weights_of("mgda", vector(1, 2, 4).diag()), vector(4 / 7, 2 / 7, 1 / 7))
    # (1, 0), (-1, 0), (0, 1): 0 lies between the first two
    gram_KK = gram_of(vector(1, 0, -1, 0, 0, 1).reshape(3, 2))
    torch.testing.assert_close(weights_of("mgda", gram_KK), vector(0.5, 0.5, 0))


def test_dwa_by_hand() -> None:
    method = build("dwa", 2)
    # Epoch means 4, 2 and then 2, 2: ratios 0.5 and 1, so 2 * softmax(0.25, 0.5). In one step task 1 has no label,
    # which leaves its mean as it is.
    for epoch in ([(3, 1), (5, 3), (4, 99)], [(2, 2), (2, 2)]):
        for losses in epoch:
            assert method.weights(None, everybody(2)).tolist() == [1, 1]
            method.after_step(vector(*losses), present(True, losses[1] < 99))
        method.after_epoch()
    low, high = math.exp(0.25), math.exp(0.5)
    expected = vector(2 * low / (low + high), 2 * high / (low + high))
    torch.testing.assert_close(method.weights(None, everybody(2)), expected)
    # An epoch in which task 1 has no label: its ratio stays 1. Task 0: 1 / 2, as before.
    method.after_step(vector(1, 99), present(True, False))
    method.after_epoch()
    torch.testing.assert_close(method.weights(None, everybody(2)), expected)


def test_famo_by_hand() -> None:
    method = build("famo", 2)
    method.after_step(vector(4, 1), everybody(2))
    # Equal logits: 1/4 to 1, with mean 1: 0.4 and 1.6.
    torch.testing.assert_close(method.weights(None, everybody(2)), vector(0.4, 1.6))
    method.after_step(vector(2, 1), everybody(2))
    # Log losses fell by ln 2 and 0; softmax (1/2, 1/2); gradient 1/2 (ln 2 - ln 2 / 2) = ln 2 / 4 and its negative.
    # Adam's first step is the rate 0.025 against the sign: logits -0.025, 0.025. Weights in proportion to
    # e^-0.025 / 2 and e^0.025 / 1.
    shares = vector(math.exp(-0.025) / 2, math.exp(0.025))
    torch.testing.assert_close(method.weights(None, everybody(2)), 2 * shares / shares.sum(), rtol=1e-7, atol=0)
    # Task 0 alone has nothing to be weighed against: its loss is new, the logits stay.
    method.after_step(vector(3, 99), present(True, False))
    shares = vector(math.exp(-0.025) / 3, math.exp(0.025))
    torch.testing.assert_close(method.weights(None, everybody(2)), 2 * shares / shares.sum(), rtol=1e-7, atol=0)


def test_uncertainty_comes_to_rest_where_the_paper_says() -> None:
    method = build("uncertainty", 2)
    assert method.weights(None, everybody(2)).tolist() == [1, 1]
    # L = 2 s^2 / (1 + s) with s the variance and weight 1 / 2s: s = 1 belongs to L = 1, s = 2 to L = 8/3.
    for _ in range(700):
        method.after_step(vector(1, 8 / 3), everybody(2))
    torch.testing.assert_close(method.weights(None, everybody(2)), vector(0.5, 0.25), rtol=1e-2, atol=0)


def test_uncertainty_of_a_task_learnt_to_zero_stays_bounded() -> None:
    method = build("uncertainty", 1)
    method.load_state_dict({**method.state_dict(), "log_variance_K": vector(-math.log(1e4))})
    for _ in range(10):  # each would lower it by 0.01
        method.after_step(vector(0), everybody(1))
    assert method.weights(None, everybody(1)).item() == pytest.approx(5000)


def test_uncertainty_equals_autograd_and_torchs_adam() -> None:
    log_variance = torch.full((2,), -math.log(2), dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([log_variance], lr=0.01)
    method = build("uncertainty", 2)
    for step in range(20):
        losses, variance = losses_at(step, 2).double(), log_variance.exp()
        adam.zero_grad()
        (losses / (2 * variance) + torch.log1p(variance)).sum().backward()
        adam.step()
        method.after_step(losses, everybody(2))
    torch.testing.assert_close(method.weights(None, everybody(2)), 0.5 * torch.exp(-log_variance.detach()))


def test_fixed_is_the_plain_sum() -> None:
    method = build("fixed", 3)
    assert not method.needs_gram
    assert method.weights(None, present(True, False, True)).tolist() == [1, 0, 1]


# ---- what each gradient method promises


@pytest.mark.parametrize("tasks", [2, 3, 5])
@pytest.mark.parametrize("seed", range(5))
def test_mgda_is_the_shortest_and_hurts_nobody(tasks: int, seed: int) -> None:
    rows_KN = gradients(tasks, seed, size=3) * vector(1, 10, 0.01, 3, 0.2)[:tasks, None]  # 5 tasks: dependent
    gram_KK = gram_of(rows_KN)
    weights = weights_of("mgda", gram_KK)
    assert weights.min() >= 0 and weights.sum() == pytest.approx(1)
    inner = gram_KK @ weights
    squared = weights @ inner
    # The optimality conditions: every gradient has at least the combination's own squared length along it, the
    # gradients in it exactly that.
    scale = gram_KK.diagonal().min()
    assert (inner - squared).min() >= -1e-9 * scale
    assert (weights * (inner - squared)).abs().max() <= 1e-9 * scale


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_imtl_g_has_equal_cosines(tasks: int) -> None:
    for seed in range(5):
        rows_KN = gradients(tasks, seed) * vector(1, 100, 0.01, 3, 0.2)[:tasks, None]
        weights = weights_of("imtl-g", gram_of(rows_KN))
        cosines = torch.cosine_similarity(weights @ rows_KN, rows_KN)
        torch.testing.assert_close(cosines, cosines.mean().expand(tasks), rtol=0, atol=1e-9)
        assert cosines.mean() > 0
        assert weights.abs().sum() == pytest.approx(1)
        doubled = rows_KN * vector(2, *[1] * (tasks - 1))[:, None]
        other = torch.cosine_similarity(weights_of("imtl-g", gram_of(doubled)) @ doubled, weights @ rows_KN, dim=0)
        assert other == pytest.approx(1)  # how long a task's gradient is does not turn the update


@pytest.mark.parametrize("seed", range(6))
def test_pcgrad_with_two_tasks_ends_every_conflict(seed: int) -> None:
    rows_KN = gradients(2, seed, size=3)
    gram_KK = gram_of(rows_KN)
    assert (gram_KK @ weights_of("pcgrad", gram_KK)).min() >= -1e-12


# ---- torchjd as the reference


def test_pcgrad_is_the_mean_of_torchjds_over_all_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    aggregation = pytest.importorskip("torchjd.aggregation", reason="torchjd is an extra")
    for tasks, seed in ((2, 3), (3, 0), (3, 1), (4, 5)):
        gram_KK, results = gram_of(gradients(tasks, seed, size=3)), []
        for order in itertools.permutations(range(tasks)):
            monkeypatch.setattr(torch, "randperm", lambda count, order=order: torch.tensor(order))
            results.append(aggregation.PCGradWeighting()(gram_KK))
        torch.testing.assert_close(weights_of("pcgrad", gram_KK), torch.stack(results).mean(dim=0))


def test_imtl_g_and_mgda_agree_with_torchjd() -> None:
    aggregation = pytest.importorskip("torchjd.aggregation", reason="torchjd is an extra")
    for tasks, seed in ((2, 0), (2, 1), (3, 0), (3, 1), (4, 2)):
        rows_KN = gradients(tasks, seed)
        gram_KK = gram_of(rows_KN)
        theirs = aggregation.IMTLGWeighting()(gram_KK)
        torch.testing.assert_close(weights_of("imtl-g", gram_KK), theirs / theirs.abs().sum())
        # torchjd's Frank-Wolfe steps come near the shortest combination slowly, and from above.
        nearest = aggregation.MGDAWeighting(epsilon=1e-9, max_iters=500)(gram_KK)
        ours = weights_of("mgda", gram_KK)
        shortest, theirs = ours @ gram_KK @ ours, nearest @ gram_KK @ nearest
        assert shortest * (1 - 1e-12) <= theirs <= shortest * 1.05
        torch.testing.assert_close(ours, nearest, rtol=0, atol=2e-2)


def test_famo_and_dwa_agree_with_torchjd() -> None:
    scalarization = pytest.importorskip("torchjd.scalarization", reason="torchjd is an extra")
    their_famo, their_dwa = scalarization.FAMO(3).double(), scalarization.DWA()
    famo, dwa = build("famo", 3), build("dwa", 3)
    for step in range(12):
        losses = losses_at(step, 3).double().requires_grad_()
        if step:
            their_famo.update(losses)
        for method, theirs, scale in ((famo, their_famo, 3), (dwa, their_dwa, 1)):
            (expected,) = torch.autograd.grad(theirs(losses), losses)
            if method is dwa:  # its weights hold for the epoch; FAMO's divide by the losses of the step just seen
                torch.testing.assert_close(method.weights(None, everybody(3)), expected)
            method.after_step(losses, everybody(3))
            if method is famo:
                torch.testing.assert_close(method.weights(None, everybody(3)), scale * expected, rtol=1e-6, atol=0)
        if step % 4 == 3:
            their_dwa.step()
            dwa.after_epoch()


def test_upgrad_of_torchjd() -> None:
    # Two tasks: half of PCGrad's weights, see test_pcgrad_by_hand; also for gradients so small that torchjd, left to
    # its own thresholds, gives the plain mean (0.5, 0.5).
    for scale in (1.0, 1e-7):
        weights = weights_of("torchjd.UPGrad", scale * torch.tensor([[4.0, -2], [-2, 2]]))
        torch.testing.assert_close(weights, vector(0.75, 1), rtol=1e-6, atol=0)


def test_torchjds_random_orders_are_nobody_elses() -> None:
    # The gradients of test_pcgrad_by_hand, where the order decides.
    method, gram_KK = build(DRAWN_ORDER, 3), gram_of(vector(1, 0, -1, 1, 0, -1).reshape(3, 2))
    weights = []
    for seed in range(8):  # as if in eight processes
        torch.manual_seed(seed)
        expected = torch.rand(3)
        torch.manual_seed(seed)
        weights.append(method.weights(gram_KK, everybody(3)).tolist())
        assert torch.equal(torch.rand(3), expected)
    assert all(other == weights[0] for other in weights)


# ---- names and states


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pc-grad", r"unknown weighting 'pc-grad'; did you mean 'pcgrad'\? accepted: fixed, uncertainty, dwa"),
        ("DWA", r"did you mean 'dwa'\?"),
        ("zzzz", r"unknown weighting 'zzzz'; accepted: fixed"),
        ("", r"unknown weighting ''; accepted: fixed"),
        ("torchjd.upgrad", r"did you mean 'torchjd\.UPGrad'\? accepted: .*torchjd\.MGDA.*keep no state"),
        ("torchjd.Krum", r"unknown weighting 'torchjd\.Krum'"),  # wants an option
        ("torchjd.GradVac", r"unknown weighting 'torchjd\.GradVac'"),  # keeps a state
        ("torchjd.", r"unknown weighting 'torchjd\.'"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, 2)


def test_without_torchjd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchjd", None)
    with pytest.raises(ValueError, match=r"'torchjd\.UPGrad' needs torchjd: pip install 'speech_mtl\[torchjd\]'"):
        build_weighting("torchjd.UPGrad", 2)


def test_no_tasks() -> None:
    with pytest.raises(ValueError, match="at least 1 task, found 0"):
        build("fixed", 0)


def test_states_of_others_are_refused() -> None:
    with pytest.raises(ValueError, match="state of another weighting method"):
        build("dwa", 2).load_state_dict(build("famo", 2).state_dict())
    with pytest.raises(ValueError, match=r"'logits_K' has shape \[3\], accepted for 2 tasks: \[2\]"):
        build("famo", 2).load_state_dict(build("famo", 3).state_dict())
    with pytest.raises(ValueError, match=r"losses have shape \[3\], accepted: \[2\]"):
        build("famo", 2).after_step(vector(1, 2, 3), everybody(2))
