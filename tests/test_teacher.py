"""A teacher's vectors: what they are, how they reach the embedding, and that nothing heard is lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from conftest import make_corpus, tiny_model, tiny_values
from lhotse import CutSet, MonoCut, SupervisionSegment
from onnx import TensorProto, helper, numpy_helper
from torchaudio.compliance import kaldi
from typer.testing import CliRunner

from speech_mtl.checkpoint import load_model
from speech_mtl.cli import app
from speech_mtl.config import parse_config
from speech_mtl.cuts import at_all_speeds
from speech_mtl.data import DataError, SpeechDataset, read_cuts
from speech_mtl.engine import EngineError
from speech_mtl.initial import prepare_model
from speech_mtl.tasks.speaker import VECTORS
from speech_mtl.teacher import Teacher, teach
from speech_mtl.train import train

SIZE = 16


def make_teacher(path: Path, name: str = "feature", bins: int = 80, seed: int = 0) -> Path:
    """An encoder whose vector is the bins' variances times a matrix."""
    matrix = np.random.default_rng(seed).standard_normal((bins, SIZE)).astype(np.float32)
    nodes = [
        helper.make_node("Mul", [name, name], ["square"]),
        helper.make_node("ReduceMean", ["square"], ["variance"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["variance", "matrix"], ["embedding"]),
    ]
    taken = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", "T", bins])
    given = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", SIZE])
    graph = helper.make_graph(nodes, "teacher", [taken], [given], [numpy_helper.from_array(matrix, "matrix")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


@pytest.fixture
def teacher(tmp_path: Path) -> Teacher:
    return Teacher(make_teacher(tmp_path / "teacher.onnx"))


@pytest.fixture
def taught(tmp_path: Path, corpus: dict[str, str], teacher: Teacher) -> Path:
    out = tmp_path / "taught.jsonl.gz"
    assert teach(Path(corpus["train"]), out, teacher, [0.9, 1.0]) == []
    return out


def cut_of(*vectors: dict[str, list[float]] | None, speaker: str = "ann") -> MonoCut:
    supervisions = [
        SupervisionSegment(f"s{i}", "r", 0.0, 1.0, speaker=speaker, custom=None if v is None else {VECTORS: v})
        for i, v in enumerate(vectors)
    ]
    return MonoCut("c", 0.0, 1.0, 0, supervisions=supervisions)


@pytest.mark.parametrize(
    ("name", "scale", "window"), [("feature", 1, "povey"), ("x", 1, "povey"), ("feats", 32768, "hamming")]
)
def test_each_project_s_encoder_hears_its_own_features(tmp_path: Path, name: str, scale: int, window: str) -> None:
    path = make_teacher(tmp_path / "teacher.onnx", name)
    audio = (0.1 * np.random.default_rng(0).standard_normal(8000)).astype(np.float32)
    fbank = kaldi.fbank(torch.from_numpy(audio)[None] * scale, num_mel_bins=80, window_type=window)
    matrix = numpy_helper.to_array(onnx.load(path).graph.initializer[0])
    expected = fbank.var(0, correction=0).numpy() @ matrix
    np.testing.assert_allclose(Teacher(path)(audio), expected / np.linalg.norm(expected), atol=1e-4)


def test_manifest_gains_vectors_of_every_speed_and_nothing_else(
    corpus: dict[str, str], taught: Path, teacher: Teacher
) -> None:
    for before, after in zip(read_cuts([corpus["train"]]), read_cuts([taught]), strict=True):
        [supervision] = after.supervisions
        vectors = supervision.custom.pop(VECTORS)
        for speed, heard in (("1", before), ("0.9", before.perturb_speed(0.9))):
            np.testing.assert_allclose(vectors[speed], teacher(heard.load_audio()[0]), atol=1e-5)
        supervision.custom = supervision.custom or None
        assert set(vectors) == {"1", "0.9"} and after.to_dict() == before.to_dict()


def test_what_a_corpus_of_several_people_has_in_common_is_taken_off(tmp_path: Path, teacher: Teacher) -> None:
    """With three people the mean is still somebody's voice (the test above); with six it is not."""
    cuts = list(read_cuts([make_corpus(tmp_path / "audio", 6, seed=3)]))
    for i, cut in enumerate(cuts):
        cut.supervisions[0].speaker = f"{cut.supervisions[0].speaker}-{i % 2}"
    CutSet.from_cuts(cuts).to_file(tmp_path / "six.jsonl.gz")
    teach(tmp_path / "six.jsonl.gz", tmp_path / "taught.jsonl.gz", teacher, [1.0])
    vectors = np.array([c.supervisions[0].custom[VECTORS]["1"] for c in read_cuts([tmp_path / "taught.jsonl.gz"])])
    plain = np.array([teacher(cut.load_audio()[0]) for cut in cuts])
    centred = plain - plain.mean(0)
    np.testing.assert_allclose(vectors, centred / np.linalg.norm(centred, axis=1, keepdims=True), atol=1e-4)


def test_stopped_call_goes_on_where_it_was(
    tmp_path: Path, corpus: dict[str, str], taught: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is heard twice, a line that was cut short counts as not heard, and another teacher starts anew."""
    out, part = tmp_path / "again.jsonl.gz", tmp_path / "again.jsonl.gz.part"
    heard: list[float] = []
    hear = Teacher.__call__

    def counting(self: Teacher, audio: np.ndarray) -> np.ndarray:
        if len(heard) == 10:
            raise KeyboardInterrupt
        heard.append(len(audio))
        return hear(self, audio)

    monkeypatch.setattr(Teacher, "__call__", counting)
    with pytest.raises(KeyboardInterrupt):
        teach(Path(corpus["train"]), out, teacher, [0.9, 1.0])
    assert not out.exists() and len(part.read_text().splitlines()) == 6
    head, first, *rest = part.read_text().splitlines(keepends=True)
    gone = json.dumps(["no longer in the manifest", json.loads(first)[1]])
    part.write_text("".join([head, first, gone + "\n", *rest])[:-20])
    heard[:] = range(100, 200)
    teach(Path(corpus["train"]), out, teacher, [0.9, 1.0])
    total = len(list(read_cuts([corpus["train"]])))
    assert len(heard) - 100 == 2 * (total - 4) and not part.exists()
    assert [c.to_dict() for c in read_cuts([out])] == [c.to_dict() for c in read_cuts([taught])]

    part.write_text(json.dumps(["another teacher", [0.9, 1.0]]) + "\n")
    heard[:] = range(100, 200)
    teach(Path(corpus["train"]), out, teacher, [0.9, 1.0])
    assert len(heard) - 100 == 2 * total


def test_what_cannot_be_heard_is_named_and_kept_without_a_vector(tmp_path: Path) -> None:
    make_teacher(tmp_path / "teacher.onnx")
    manifest = make_corpus(tmp_path / "audio", 2, seed=4)
    broken = next(iter(read_cuts([manifest])))
    Path(broken.recording.sources[0].source).write_bytes(b"no sound")
    result = CliRunner().invoke(app, ["teach", str(manifest), "--teacher", str(tmp_path / "teacher.onnx")])
    assert result.exit_code == 1 and broken.id in result.stderr and "5 of 6 utterances" in result.stderr
    after = list(read_cuts([result.stdout.strip()]))
    has = [VECTORS in (cut.supervisions[0].custom or {}) for cut in after]
    assert len(after) == 6 and has == [cut.id != broken.id for cut in after]


def test_what_the_teacher_refuses_is_named_and_kept_without_a_vector(
    tmp_path: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, out = make_corpus(tmp_path / "audio", 2, seed=4), tmp_path / "taught.jsonl.gz"
    hear = Teacher.__call__
    shortest = min(cut.num_samples for cut in read_cuts([manifest]))

    def refusing(self: Teacher, audio: np.ndarray) -> np.ndarray:
        if len(audio) == shortest:
            raise EngineError("teacher: gives an array (16,) that is no vector of finite numbers")
        return hear(self, audio)

    monkeypatch.setattr(Teacher, "__call__", refusing)
    named = teach(manifest, out, teacher, [1.0])
    refused = {cut.id for cut in read_cuts([manifest]) if cut.num_samples == shortest}
    assert 0 < len(named) == len(refused) < 6 and all(any(f"cut '{i}': teacher: " in n for n in named) for i in refused)
    has = {cut.id for cut in read_cuts([out]) if VECTORS in (cut.supervisions[0].custom or {})}
    assert has == {cut.id for cut in read_cuts([manifest])} - refused
    monkeypatch.setattr(Teacher, "__call__", lambda self, audio: refusing(self, audio[:shortest]))
    with pytest.raises(DataError, match="none of 6 utterances could be heard; the first: .*teacher: gives an array"):
        teach(manifest, out, teacher, [1.0])


def test_another_manifest_with_the_same_ids_is_heard_anew(
    tmp_path: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, out = make_corpus(tmp_path / "audio", 2, seed=4), tmp_path / "taught.jsonl.gz"
    hear, heard = Teacher.__call__, []

    def stopping(self: Teacher, audio: np.ndarray) -> np.ndarray:
        if len(heard) == 3:
            raise KeyboardInterrupt
        heard.append(len(audio))
        return hear(self, audio)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Teacher, "__call__", stopping)
        teach(manifest, out, teacher, [1.0])
    halves = [cut.truncate(duration=cut.duration / 2, preserve_id=True) for cut in read_cuts([manifest])]
    CutSet.from_cuts(halves).to_file(manifest)
    teach(manifest, out, teacher, [1.0])
    for cut in read_cuts([out]):
        vector = cut.supervisions[0].custom[VECTORS]["1"]
        np.testing.assert_allclose(vector, teacher(cut.load_audio()[0]), atol=1e-4)


@pytest.mark.parametrize("kind", ["absent", "no graph", "40 bins"])
def test_refused_teacher(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "teacher.onnx"
    if kind == "no graph":
        path.write_text("no graph")
    elif kind == "40 bins":
        make_teacher(path, bins=40)
    with pytest.raises(EngineError, match="40.*accepted: one input" if kind == "40 bins" else str(path)):
        Teacher(path)


def test_refused_speeds(tmp_path: Path) -> None:
    for speeds in ("fast", "0", "0.9,-1", "nan"):
        result = CliRunner().invoke(app, ["teach", "x.jsonl.gz", "--teacher", "x.onnx", "--speeds", speeds])
        assert result.exit_code == 2 and "expected factors" in result.stderr, speeds


def test_vector_is_that_of_the_speed_that_is_heard(taught: Path, corpus: dict[str, str]) -> None:
    cuts = list(read_cuts([taught]))[:3]
    for i, cut in enumerate(at_all_speeds(cuts, [0.9, 1.0, 1.3])):
        vectors = cuts[i // 3].supervisions[0].custom[VECTORS]
        assert cut.supervisions[0].custom[VECTORS].get("1") == [vectors["1"], vectors["0.9"], None][i % 3]
    config = parse_config(tiny_values(corpus) | {"augment": {"speeds": [0.9, 1.0]}}, "test")
    batch = SpeechDataset(config, augment=True)[0, cuts]
    for cut, heard in zip(cuts, batch.cuts, strict=True):
        speed = "0.9" if heard.supervisions[0].speaker.endswith("@0.9") else "1"
        assert heard.supervisions[0].custom[VECTORS]["1"] == cut.supervisions[0].custom[VECTORS][speed]


def test_loss_is_that_of_classes_and_vectors_each_where_it_has_a_label(corpus: dict[str, str]) -> None:
    values = tiny_values(corpus)
    values["tasks"]["speaker"]["teacher"] = 3.0
    task = tiny_model(parse_config(values, "test")).task("speaker")
    a, b = np.eye(SIZE)[:2].tolist()
    cuts = [
        cut_of({"1": a}),
        cut_of(None),
        cut_of({"1": b}, speaker="nobody"),
        cut_of(None, speaker="nobody"),
        cut_of({"1": a}, {"1": b}),  # two of one voice strung together
        cut_of({"1": a}, None),
    ]
    targets = task.targets(cuts, torch.ones(6))
    assert targets["mask"].tolist() == [True, True, True, False, True, True]
    embeddings = F.normalize(torch.randn(5, SIZE, generator=torch.Generator().manual_seed(0)), dim=1)
    loss = task.loss({"embedding": embeddings, "cosine": task._cosine(embeddings)}, targets)
    task.teacher = 0.0
    classes = task.loss({"embedding": embeddings, "cosine": task._cosine(embeddings)}, targets)
    mean = (embeddings[3, 0] + embeddings[3, 1]) / 2**0.5
    distances = 3 - embeddings[0, 0] - embeddings[2, 1] - mean
    assert loss.item() == pytest.approx(classes.item() + 3 * distances.item(), rel=1e-5)
    only_class = {"classes": targets["classes"][:2], "mask": torch.tensor([False, True])}
    named = task.loss({"embedding": embeddings[1:2], "cosine": task._cosine(embeddings[1:2])}, only_class)
    assert 0 < named.item() < classes.item()


def test_training_draws_the_embedding_to_the_vectors(tmp_path: Path, corpus: dict[str, str], taught: Path) -> None:
    """Also of voices that are no class: 'cid' has no speaker label here."""
    cuts = [
        cut.map_supervisions(
            lambda s: s if s.speaker != "cid" else SupervisionSegment(**s.__dict__ | {"speaker": None})
        )
        for cut in read_cuts([taught])
    ]
    CutSet.from_cuts(cuts).to_file(tmp_path / "some.jsonl.gz")
    means = {}
    for weight in (0.0, 20.0):
        values = tiny_values({"train": str(tmp_path / "some.jsonl.gz"), "dev": corpus["dev"]})
        del values["tasks"]["asr"]
        values["tasks"]["speaker"] |= {"teacher": weight, "dropout": 0.0}
        values["train"] |= {"epochs": 8, "eval_every": 8, "lr": 1e-2, "ema_decay": 0}
        values["augment"] = {"speeds": [1.0]}
        config = parse_config(values, "test")
        folder = train(config, tmp_path / f"run{weight:g}")
        model = load_model(folder)
        batch = SpeechDataset(config)[0, cuts]
        with torch.inference_mode():
            trained = model(batch.audio_BN, batch.samples_B)["speaker"]["trained"]
        vectors = torch.tensor([cut.supervisions[0].custom[VECTORS]["1"] for cut in cuts])
        cosines = (trained * F.normalize(vectors, dim=1)).sum(1)
        means[weight] = cosines[[cut.supervisions[0].speaker is None for cut in cuts]].mean().item()
    assert means[20.0] > max(0.8, means[0.0] + 0.3), means


def test_nothing_to_learn_from_is_refused(corpus: dict[str, str], taught: Path) -> None:
    values = tiny_values(corpus)
    values["tasks"]["speaker"]["teacher"] = 1.0
    with pytest.raises(DataError, match="no training utterance has a teacher's vector; `speech-mtl teach`"):
        prepare_model(parse_config(values, "test"))
    values["data"]["train"] = [str(taught)]
    prepare_model(parse_config(values, "test"))
    values["tasks"]["speaker"]["embedding_dim"] = 24
    with pytest.raises(DataError, match="has 16 numbers, and the embedding 24"):
        prepare_model(parse_config(values, "test"))
