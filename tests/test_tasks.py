"""The tasks' contract over every registered type, CTC's limits, the margin, labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_model, tiny_values
from lhotse import MonoCut, SupervisionSegment

from speech_mtl.config import parse_config
from speech_mtl.data import SpeechDataset, read_cuts
from speech_mtl.decode import frames_needed
from speech_mtl.model import SpeechModel
from speech_mtl.tasks import Frames, label_of
from speech_mtl.tasks.asr import disagreement
from speech_mtl.tasks.pooling import PooledNorm, Pooling, bin_statistics, level_free, speech_frames
from speech_mtl.tasks.speaker import Speaker, add_margin, utterance_weights


@pytest.fixture
def model(corpus: dict[str, str]) -> SpeechModel:
    values = tiny_values(corpus)
    values["tasks"]["gender"] = {"type": "classify"}  # a third task is one line
    return tiny_model(parse_config(values, "test"))


def cut(duration_s: float = 1.0, **labels: object) -> MonoCut:
    supervision = SupervisionSegment("s", "r", 0.0, duration_s, **labels)  # type: ignore[arg-type]
    return MonoCut("c", 0.0, duration_s, 0, supervisions=[supervision])


@pytest.mark.parametrize("task", ["asr", "speaker", "gender"])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_contract(model: SpeechModel, corpus: dict[str, str], task: str, rows: int) -> None:
    """Any number of labelled rows gives a finite loss, and a gradient (perhaps zero) for all the task's parameters."""
    model.train()
    batch = SpeechDataset(model.config)[0, list(read_cuts([corpus["dev"]]))[:5]]
    targets = model.targets(batch.cuts, batch.samples_B)
    targets[task]["mask"][rows:] = False
    labelled = {name: t["mask"] for name, t in targets.items()}
    outputs = model(batch.audio_BN, batch.samples_B, rows=labelled)
    loss = model.task(task).loss(outputs[task], targets[task])
    loss.backward()
    assert math.isfinite(loss.item()) and (loss.item() == 0) == (rows == 0)
    used = [p for name, p in model.task(task).named_parameters()]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in used)
    model.eval()
    predictions = model.predict(batch.audio_BN, batch.samples_B)
    assert len(predictions) == 5 and all(set(p) == {"asr", "speaker", "gender"} for p in predictions)


def test_text_too_long_for_its_audio_is_no_label(model: SpeechModel) -> None:
    """10 encoder frames hold 'low low' (8 tokens) but not a longer text; characters nobody trained on do not fit."""
    lengths = torch.full((3,), 10)
    cuts = [cut(text="low low"), cut(text="low low low"), cut(text="zzz")]
    assert model.task("asr").targets(cuts, lengths)["mask"].tolist() == [True, False, False]


def test_frames_needed() -> None:
    assert frames_needed([]) == 0 and frames_needed([1, 2, 3]) == 3 and frames_needed([1, 1, 2, 2]) == 6


def test_a_speaker_nobody_trained_on_is_no_label(model: SpeechModel) -> None:
    targets = model.task("speaker").targets([cut(speaker="ann"), cut(speaker="zoe"), cut()], torch.ones(3))
    assert targets["mask"].tolist() == [True, False, False]


def test_label_of() -> None:
    labelled = cut(text="a", gender="female", custom={"accent": "scottish", "age": 30})
    assert [label_of(labelled, n) for n in ("text", "gender", "accent", "age", "speaker", "mood")] == [
        "a", "female", "scottish", "30", None, None,
    ]  # fmt: skip
    two = MonoCut("c", 0, 2, 0, supervisions=[cut(text="a", speaker="x").supervisions[0]] * 2)
    assert label_of(two, "text") == "a a" and label_of(two, "speaker") == "x"
    two.supervisions[1] = cut(text="b", speaker="y").supervisions[0]
    assert label_of(two, "speaker") is None


@pytest.mark.parametrize("blank", ["", " "])
def test_a_blank_label_is_a_missing_one(model: SpeechModel, blank: str) -> None:
    blanks = cut(text=blank, speaker=blank, gender=blank, custom={"accent": blank})
    assert [label_of(blanks, name) for name in ("speaker", "gender", "accent")] == [None] * 3
    assert label_of(blanks, "text") == ""  # nothing is said
    blanks.supervisions.append(cut(speaker="ann").supervisions[0])
    assert label_of(blanks, "speaker") is None


def spoken(*parts: tuple[float, float, str | None], duration_s: float = 2.0) -> MonoCut:
    """A cut with supervisions of these starts, ends and texts."""
    segments = [SupervisionSegment(str(i), "r", a, b - a, text=text) for i, (a, b, text) in enumerate(parts)]
    return MonoCut("c", 0, duration_s, 0, supervisions=segments)


def test_the_text_of_several_supervisions() -> None:
    """In order of time, and unknown where a part of it is."""
    assert label_of(spoken((1.0, 2.0, "two"), (0.0, 1.0, "one")), "text") == "one two"
    assert label_of(spoken((0.0, 1.0, "one"), (1.0, 2.0, None)), "text") is None
    assert label_of(spoken((0.0, 1.0, "one"), (1.0, 2.0, "")), "text") == "one"
    assert label_of(spoken((-0.05, 2.05, "one")), "text") == "one"  # rounded
    assert label_of(spoken((-0.2, 2.0, "one two")), "text") is None
    assert label_of(spoken((0.0, 1.0, "one"), (1.0, 2.2, "two")), "text") is None


def test_margin_is_added_to_the_angle() -> None:
    angles = torch.tensor([0.3, 1.0, 2.0])
    cosine = torch.stack([angles.cos(), torch.zeros(3)], dim=1)
    moved = add_margin(cosine, torch.zeros(3, dtype=torch.long), margin=0.2)
    torch.testing.assert_close(moved[:, 0], (angles + 0.2).cos(), atol=1e-5, rtol=0)
    assert not moved[:, 1].any()
    falling = add_margin(torch.linspace(-1, 1, 400)[:, None], torch.zeros(400, dtype=torch.long), 0.2)[:, 0]
    assert (falling.diff() > -1e-2).all()  # also beyond pi - margin a larger angle never scores more


def test_speeds_are_classes_but_no_answers(corpus: dict[str, str]) -> None:
    model = tiny_model(parse_config(tiny_values(corpus), "test"))
    task = model.task("speaker")
    assert list(task.index) == ["ann", "bob", "cid", "ann@0.9", "bob@0.9", "cid@0.9"]  # type: ignore[arg-type,attr-defined]
    nine = torch.tensor([9, 9])
    frames = Frames(torch.randn(2, 9, 80), nine, [torch.randn(2, 9, 32)] * 2, nine)
    assert task.train()(frames)["cosine"].shape == (2, 6)
    assert task.predict(task.eval()(frames))[0]["cosine"].shape == (3,)


def test_a_label_that_is_the_speaker_is_one_at_every_speed(corpus: dict[str, str]) -> None:
    values = tiny_values(corpus) | {"augment": {"speeds": [0.8, 0.9, 1.0]}}
    values["tasks"] = {"who": {"type": "classify", "label": "speaker"}, "gender": {"type": "classify"}}
    config = parse_config(values, "test")
    tasks = SpeechModel(config, None, {"who": ["ann", "bob", "cid"], "gender": ["female", "male"]}).tasks
    cuts = [cut for cut in read_cuts([corpus["dev"]])]
    batch = SpeechDataset(config, augment=True)[0, cuts]
    assert len({label_of(cut, "speaker") for cut in batch.cuts}) > 3
    found = tasks["who"].targets(batch.cuts, batch.samples_B)  # type: ignore[operator]
    expected = [["ann", "bob", "cid"].index(label_of(cut, "speaker") or "") for cut in cuts]
    assert found["mask"].all() and found["classes"].tolist() == expected
    assert tasks["gender"].targets(batch.cuts, batch.samples_B)["mask"].all()  # type: ignore[operator]


def test_pooling_of_constant_frames() -> None:
    """Whatever the attention, constant frames have themselves as mean and no deviation; so has a constant spectrum."""
    pooling = Pooling(d_model=4, n_mels=2, n_blocks=2, mel_ratio=4).eval()
    frame_D, mel_F = torch.tensor([1.0, -2.0, 0.5, 3.0]), torch.tensor([0.5, -1.0])
    mel_BTF = torch.cat([mel_F.expand(1, 20, 2), torch.full((1, 8, 2), 9.0)], dim=1)
    frames = Frames(mel_BTF, torch.tensor([20]), [frame_D.expand(1, 7, 4)] * 2, torch.tensor([5]))
    pooled = pooling.norm(pooling.statistics(frames))
    expected = torch.cat([frame_D, torch.zeros(4), mel_F, torch.zeros(2)])
    torch.testing.assert_close(pooled[0] * math.sqrt(1 + 1e-5), expected, atol=2e-3, rtol=0)


def test_pooled_norm_of_one_utterance_uses_running_statistics() -> None:
    norm = PooledNorm(3).train()
    norm.running_mean.fill_(1.0)  # type: ignore[union-attr,operator]
    assert torch.equal(norm(torch.ones(1, 3)), torch.zeros(1, 3))
    many, theirs = torch.randn(8, 3), torch.nn.BatchNorm1d(3).train()
    theirs.running_mean.fill_(1.0)  # type: ignore[union-attr,operator]
    torch.testing.assert_close(norm(many), theirs(many))
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(norm, name), getattr(theirs, name))


def trained_speakers(corpus: dict[str, str], lda_dim: int) -> Speaker:
    values = tiny_values(corpus)
    values["tasks"]["speaker"] |= {"lda_dim": lda_dim, "spectrum": False}
    return Speaker("speaker", parse_config(values, "test"), [f"s{i}" for i in range(12)])


def test_statistics_hear_neither_quiet_nor_padding_nor_the_spectrum_the_level() -> None:
    """Quiet of any length around speech, and padding, leave the pooled vector as it is; the level leaves the bins'."""
    scale, lengths, more = torch.linspace(0.5, 2, 8), torch.tensor([48]), torch.tensor([80])
    speech, quiet = torch.randn(1, 48, 8) * 0.1, torch.full((1, 16, 8), -9.0)
    frames = torch.randn(1, 12, 4)
    pooling = Pooling(d_model=4, n_mels=8, n_blocks=1, mel_ratio=4).eval()

    def pooled(mel_BTF: torch.Tensor, frames_BSD: torch.Tensor, mel_lengths_B: torch.Tensor) -> torch.Tensor:
        given = Frames(mel_BTF, mel_lengths_B, [frames_BSD], (mel_lengths_B + 3) // 4)
        return pooling.statistics(given)

    alone = pooled(speech, frames, lengths)
    between = torch.cat([torch.randn(1, 4, 4), frames, torch.randn(1, 4, 4)], dim=1)
    torch.testing.assert_close(pooled(torch.cat([quiet, speech, quiet], dim=1), between, more), alone)
    padded = torch.cat([speech, torch.full((1, 9, 8), 7.0)], dim=1)
    torch.testing.assert_close(pooled(padded, torch.cat([frames, frames], dim=1), lengths), alone)
    bins = level_free(alone[:, -16:], scale)
    louder = torch.cat(bin_statistics(speech + 2.5 / scale, speech_frames(speech, lengths)), dim=1)
    torch.testing.assert_close(level_free(louder, scale), bins, atol=1e-5, rtol=1e-4)
    nats = speech[0] * scale
    torch.testing.assert_close(bins[0, :8], nats.mean(0) - nats.mean(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(bins[0, 8:], nats.std(0, correction=0), atol=1e-3, rtol=1e-3)
    silent = pooled(torch.zeros(1, 48, 8), frames, lengths)  # all alike: nothing is left out
    assert silent.isfinite().all()


def test_a_few_words_in_a_long_recording_are_all_that_is_heard() -> None:
    """1 s in 31: a twentieth of the frames holds more quiet than speech."""
    mel_BTF, spoken = torch.full((1, 3100, 8), -3.0), slice(2000, 2100)
    mel_BTF[:, spoken] = 0.0
    heard = speech_frames(mel_BTF, torch.tensor([3100]))
    assert heard[:, spoken].all() and heard.sum() == 100


def test_training_hears_a_stretch_of_each_utterance(corpus: dict[str, str]) -> None:
    """Cropped frames are the frames of that stretch, mel frames included, and a short utterance is heard whole."""
    values = tiny_values(corpus)
    values["tasks"]["speaker"]["crop_s"] = [0.2, 0.2]
    model = tiny_model(parse_config(values, "test"))
    batch = SpeechDataset(model.config)[0, list(read_cuts([corpus["dev"]]))[:4]]
    shared = model.trunk(batch.audio_BN, batch.samples_B)
    task: Speaker = model.task("speaker")  # type: ignore[assignment]
    ratio, wanted = model.config.encoder.subsampling, round(0.2 / model.frame_s)
    cropped = task.crop(shared)
    assert cropped.lengths_B.tolist() == [min(wanted, n) for n in shared.lengths_B.tolist()]
    for row, length in enumerate(cropped.lengths_B.tolist()):
        block, own = shared.blocks[-1][row], cropped.blocks[-1][row, :length]
        first = next(i for i in range(len(block)) if torch.equal(block[i : i + length], own))
        mel = shared.mel_BTF[row, first * ratio : first * ratio + int(cropped.mel_lengths_B[row])]
        assert torch.equal(mel, cropped.mel_BTF[row, : len(mel)]) and len(mel) == length * ratio
    short = shared._replace(lengths_B=torch.ones_like(shared.lengths_B))
    assert task.crop(short).lengths_B.tolist() == [1, 1, 1, 1]
    whole = task.eval()(shared)["features"][:, :16]
    assert torch.equal(whole, task._trained(task.pooling.statistics(shared)))  # in use it hears everything


def test_stretches_of_frames_pool_as_spans_do(model: SpeechModel, corpus: dict[str, str]) -> None:
    batch = SpeechDataset(model.config)[0, list(read_cuts([corpus["dev"]]))[:1]]
    model.eval()
    shared = model.trunk(batch.audio_BN, batch.samples_B)
    task: Speaker = model.task("speaker")  # type: ignore[assignment]
    stretch = shared.stretch(torch.tensor([3]), torch.tensor([9]), task.mel_ratio)
    spans = task.over_spans(shared, [(3, 9)])
    assert torch.allclose(task(stretch)["embedding"], spans["embedding"], atol=1e-5)


def test_the_ctc_loss_by_hand(model: SpeechModel) -> None:
    """Per token, of the labelled rows; the middle block's has its share, and is read in training alone."""
    task = model.task("asr")
    task.intermediate, task.dropout.p = 0.25, 0.0  # type: ignore[assignment]
    final = torch.tensor([[[0.6, 0.0, 0.4], [0.5, 0.0, 0.5]], [[0.8, 0.1, 0.1], [0.1, 0.5, 0.4]]]).log()
    middle = torch.full((2, 2, 3), 1 / 3).log()
    targets = {"tokens": torch.tensor([[0, 0], [0, 0], [0, 1]]), "lengths": torch.tensor([1, 0, 2]),
               "mask": torch.tensor([True, False, True])}  # fmt: skip
    output = {"log_probs": final, "lengths": torch.tensor([2, 2])}
    # 'a' in two frames: all but two blanks; 'a b': one frame each
    by_hand = -math.log(1 - 0.4 * 0.5) - math.log(0.8 * 0.5) / 2
    assert task.loss(output, targets).item() == pytest.approx(by_hand)
    of_middle = -math.log(3 / 9) - math.log(1 / 9) / 2  # 'aa', 'a-' and '-a' of nine paths
    found = task.loss(output | {"middle": middle}, targets).item()
    assert found == pytest.approx(0.75 * by_hand + 0.25 * of_middle)

    lengths, blocks = torch.tensor([9, 9]), [torch.randn(2, 9, 32) for _ in range(5)]
    frames = Frames(torch.randn(2, 36, 80), 4 * lengths, blocks, lengths)
    alone = [task.eval()(frames._replace(blocks=[block]))["log_probs"] for block in blocks]
    assert set(task(frames)) == {"lengths", "log_probs"}
    for count, place in ((1, 0), (2, 0), (3, 1), (5, 2)):
        read = task.train()(frames._replace(blocks=blocks[:count]))
        assert torch.equal(read["middle"], alone[place]) and torch.equal(read["log_probs"], alone[count - 1])


def test_two_views_are_drawn_to_each_other(corpus: dict[str, str]) -> None:
    """KL by hand: views (1/2, 1/2) and (1/4, 3/4); padding and unlabelled rows stay out; equal views add nothing."""
    views = torch.tensor([[[0.5, 0.5], [0.9, 0.1]], [[0.25, 0.75], [0.2, 0.8]]]).log().requires_grad_()
    lengths, tokens = torch.tensor([1, 1]), torch.tensor([2, 2])
    by_hand = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5) + 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    found = disagreement(views, lengths, tokens)
    assert found.item() == pytest.approx(by_hand / 2)
    found.backward()
    assert views.grad is not None and not views.grad[:, 1].any()
    values = tiny_values(corpus)
    values["tasks"]["asr"] = {"type": "asr", "consistency": 0.5}
    model = tiny_model(parse_config(values, "test"))
    batch = SpeechDataset(model.config)[0, list(read_cuts([corpus["dev"]]))[:3]].twice()
    targets = model.targets(batch.cuts, batch.samples_B)["asr"]
    targets["mask"][[0, 3]] = False
    output = model.head("asr", model.trunk(batch.audio_BN, batch.samples_B), targets["mask"])
    task = model.task("asr").train()
    same, task.consistency = task.loss(output, targets), 0.0
    assert same.item() == pytest.approx(task.loss(output, targets).item())  # two equal views
    task.consistency = 0.5
    tilted = output["log_probs"].clone()
    tilted[:2] = (2 * tilted[:2]).log_softmax(-1)
    apart, task.consistency = task.loss(output | {"log_probs": tilted}, targets), 0.0
    assert apart.item() > task.loss(output | {"log_probs": tilted}, targets).item()


def test_discriminant_projection_drops_what_varies_within_a_speaker(corpus: dict[str, str]) -> None:
    """A loud nuisance in every dimension but four: afterwards unseen speakers differ more than their utterances do."""
    rng = np.random.default_rng(0)
    task = trained_speakers(corpus, lda_dim=4)
    voices, unseen = np.zeros((2, 12, 16))
    voices[:, :4], unseen[:, :4] = rng.standard_normal((2, 12, 4))
    nuisance = np.r_[np.full(4, 0.2), np.full(12, 3.0)]

    def utterances(of: np.ndarray) -> np.ndarray:
        return (of[:, None] + rng.standard_normal((12, 20, 16)) * nuisance).reshape(-1, 16)

    def named_rightly(embeddings: np.ndarray) -> float:
        projected = task.project(torch.from_numpy(embeddings).float()).view(12, 20, 16)
        references = F.normalize(projected[:, :3].mean(1), dim=1)
        hits = (projected[:, 3:] @ references.T).argmax(-1) == torch.arange(12)[:, None]
        return hits.float().mean().item()

    trials = utterances(unseen)
    before = named_rightly(trials)
    speakers = [f"s{i}" for i in range(12) for _ in range(20)]
    task.fit(torch.from_numpy(utterances(voices)).float(), speakers, [0] * 240)
    assert before < 0.5 and named_rightly(trials) > 0.8
    assert torch.count_nonzero(task.projection_PE.abs().sum(0)) == 4


def test_what_a_corpus_has_in_common_is_no_voice(corpus: dict[str, str]) -> None:
    """Two corpora apart in a direction in which their speakers are alike; one of few speakers is left as it is."""
    rng = np.random.default_rng(0)
    task = trained_speakers(corpus, lda_dim=4)
    voices = np.zeros((12, 16))
    voices[:, :4] = rng.standard_normal((12, 4))
    voices[6:, 9] += 3
    features = torch.from_numpy((voices[:, None] + 0.2 * rng.standard_normal((12, 20, 16))).reshape(-1, 16)).float()
    speakers = [f"s{i}" for i in range(12) for _ in range(20)]
    strengths = []
    for corpora in ([0] * 120 + [1] * 120, [0] * 240, [0] * 160 + [1] * 80):
        task.fit(features, speakers, corpora)
        strengths.append((task.projection_PE[9].norm() / task.projection_PE[:4].norm()).item())
    assert 3 * strengths[0] < min(strengths[1:])
    task.fit(features, [f"{name}@0.9" if i % 2 and i >= 160 else name for i, name in enumerate(speakers)], corpora)
    assert 3 * strengths[0] < (task.projection_PE[9].norm() / task.projection_PE[:4].norm()).item()


def test_what_corpora_differ_in_is_no_voice_either(corpus: dict[str, str]) -> None:
    """In one direction speakers of a corpus differ a little, and the corpora much."""
    rng = np.random.default_rng(0)
    task = trained_speakers(corpus, lda_dim=4)
    voices = np.zeros((12, 16))
    voices[:, :4] = rng.standard_normal((12, 4))
    voices[:, 9] += rng.standard_normal(12)
    speakers = [f"s{i}" for i in range(12) for _ in range(20)]
    strengths = []
    for apart in (0, 10):
        voices[6:, 9] += apart
        features = torch.from_numpy((voices[:, None] + 0.2 * rng.standard_normal((12, 20, 16))).reshape(-1, 16)).float()
        task.fit(features, speakers, [0] * 120 + [1] * 120)
        strengths.append((task.projection_PE[9].norm() / task.projection_PE[:4].norm()).item())
    assert 5 * strengths[1] < strengths[0]


def test_utterances_count_by_their_weights(corpus: dict[str, str]) -> None:
    """Half of the utterances are of another channel: at little weight it is hardly learnt that it is no voice."""
    rng = np.random.default_rng(0)
    task = trained_speakers(corpus, lda_dim=2)
    voices = np.zeros((12, 16))
    voices[:, :2], voices[:, 9] = rng.standard_normal((12, 2)), rng.standard_normal(12)
    utterances = voices[:, None] + 0.2 * rng.standard_normal((12, 20, 16))
    utterances[:, ::2, 9] += 5
    features, speakers = (
        torch.from_numpy(utterances.reshape(-1, 16)).float(),
        [f"s{i}" for i in range(12) for _ in range(20)],
    )
    strengths = []
    for weight in (1.0, 0.1, 1e-4):
        weights = [weight, 1.0] * 120
        task.fit(features, speakers, [0] * 240, None, weights)
        strengths.append((task.projection_PE[9].norm() / task.projection_PE[:2].norm()).item())
        mean_P = np.average(utterances.reshape(-1, 16), axis=0, weights=weights)
        assert np.allclose(task.offset_P.numpy(), mean_P, atol=1e-5)
        voice_P = np.average(utterances[3], axis=0, weights=weights[:20])
        near = task.project(torch.from_numpy(voice_P[None]).float())[0] @ task.voices_CE[task.index["s3"]]
        assert near > 0.9
    assert 1.5 * strengths[0] < strengths[1] < 0.5 * strengths[2]
    task.fit(features, speakers, [0] * 240)
    assert strengths[0] == pytest.approx((task.projection_PE[9].norm() / task.projection_PE[:2].norm()).item())


def test_corpora_count_by_their_shares(corpus: dict[str, str]) -> None:
    """One corpus's speakers differ in the first two dimensions, those of another, who say more, in the last two."""
    rng = np.random.default_rng(0)
    task = trained_speakers(corpus, lda_dim=2)
    voices = np.zeros((12, 16))
    voices[:6, :2], voices[6:, -2:] = rng.standard_normal((6, 2)), rng.standard_normal((6, 2))
    own_N = np.repeat(np.arange(12), [10] * 6 + [40] * 6)
    features = torch.from_numpy(voices[own_N] + 0.2 * rng.standard_normal((300, 16))).float()
    speakers, corpora = [f"s{i}" for i in own_N], (own_N >= 6).astype(int).tolist()
    for shares, kept in (((1.0, 0.01), slice(0, 2)), ((0.01, 1.0), slice(14, 16))):
        task.fit(features, speakers, corpora, shares)
        strengths_P = task.projection_PE.norm(dim=1)
        assert strengths_P[kept].min() > 3 * strengths_P[2:14].max()
        assert set(strengths_P.topk(2).indices.tolist()) == set(range(16)[kept])
    weights_N = utterance_weights(["a", "a", "b", "c"], [0, 0, 0, 1], [4.0, 3.0])
    assert weights_N.tolist() == [1, 1, 2, 3]
    assert utterance_weights(["a", "a", "b", "c"], [0, 0, 0, 1], None).tolist() == [0.5, 0.5, 1, 1]


@pytest.mark.parametrize("lda_dim", [0, 12])
def test_too_few_speakers_for_a_projection_leave_the_embedding(corpus: dict[str, str], lda_dim: int) -> None:
    task = trained_speakers(corpus, lda_dim)
    embeddings = torch.randn(60, 16, generator=torch.Generator().manual_seed(0))
    task.fit(embeddings, [f"s{i % 12}" for i in range(60)], [0] * 60)
    assert torch.equal(task.projection_PE, torch.eye(16)) and not task.offset_P.any()
    expected = F.normalize(F.normalize(embeddings[3::12], dim=1).mean(0), dim=0)
    torch.testing.assert_close(task.voices_CE[3], expected)
    output = {"embedding": F.normalize(embeddings, dim=1)}
    assert task.predict(output)[5]["cosine"][3] == pytest.approx(float(output["embedding"][5] @ expected), abs=1e-6)
