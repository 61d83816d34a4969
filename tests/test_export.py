"""An export gives what its model gives: padded and alone, in transcripts, by the graph's own outputs; int8 nearly."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RATE, tiny_model, tiny_values
from test_recognizer import speech
from typer.testing import CliRunner

from speech_mtl import export as exporting
from speech_mtl.calibration import Calibration, save_calibration
from speech_mtl.checkpoint import CheckpointError, load_model, save_model
from speech_mtl.cli import app
from speech_mtl.config import parse_config
from speech_mtl.engine import GRAPH, EngineError, OnnxModel, open_session
from speech_mtl.export import export_model
from speech_mtl.initial import start_from
from speech_mtl.recognizer import Recognizer
from speech_mtl.results import Result
from speech_mtl.tasks import Frames

pytest.importorskip("onnxscript", reason="the onnx extra is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")
SAMPLES = [16000, 25999, 4321]


def model_folder(folder: Path, kind: str) -> Path:
    """Random weights: 'own' has three tasks, of which one has a block of its own; 'parakeet' is as an imported one.

    'mel' has a single block.
    """
    values = tiny_values({"train": "", "dev": ""})
    if kind == "own":
        values["tasks"] |= {"gender": {"type": "classify", "branch": 1}}
    else:
        values["tasks"] = {"asr": {"type": "asr"}}
    if kind == "mel":
        values["encoder"] |= {"n_blocks": 1}
    if kind == "parakeet":
        values["features"] = {"normalize": "utterance"}
        values["encoder"] |= {
            "positions": "relative", "conv_norm": "batch", "subsampling": 8, "scale_input": True, "reach_s": 0,
        }  # fmt: skip
    model = tiny_model(parse_config(values, "test"))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        model.get_parameter("tasks.asr.linear.bias").normal_(generator=generator)  # writes more than blanks
        for name, value in model.state_dict().items():
            if name.endswith(("running_var", "bias_u", "bias_v")):
                value.uniform_(0.5, 2.0, generator=generator)
    save_model(model, folder, "card")
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model folder and its export from audio."""
    folder = model_folder(tmp_path_factory.mktemp("own") / "model", "own")
    export_model(folder, folder.parent / "export")
    return folder, folder.parent / "export"


@pytest.fixture(scope="module")
def parakeet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same of an imported kind."""
    folder = model_folder(tmp_path_factory.mktemp("parakeet") / "model", "parakeet")
    export_model(folder, folder.parent / "export")
    return folder, folder.parent / "export"


@pytest.fixture(scope="module")
def mel(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same from log-mel, with the weights beside the graph as if they were large."""
    folder = model_folder(tmp_path_factory.mktemp("mel") / "model", "mel")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "MOST_WITHIN", 0)
        export_model(folder, folder.parent / "export", start="mel")
    return folder, folder.parent / "export"


def test_an_export_is_no_start_for_training(own: tuple[Path, Path]) -> None:
    model = load_model(own[0])
    with pytest.raises(CheckpointError, match="is an export, which cannot learn; give the folder it was made from"):
        start_from(model, load_model(own[1]), "export")


@pytest.fixture(scope="module")
def int8(own: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / GRAPH
    shutil.copy(own[1] / GRAPH, path)
    exporting.quantize(path)
    return path


def audio_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Speech, beyond whose ends there is noise in the place of silence."""
    audio_BN = 0.1 * torch.randn(len(SAMPLES), max(SAMPLES), generator=torch.Generator().manual_seed(1))
    for row, samples in enumerate(SAMPLES):
        audio_BN[row, :samples] = torch.from_numpy(speech(samples / RATE, seed=row))
    return audio_BN, torch.tensor(SAMPLES)


def run_graph(graph: Path, values: torch.Tensor, lengths_B: torch.Tensor, reach: int) -> dict[str, np.ndarray]:
    session = open_session(graph)
    names = [value.name for value in session.get_inputs()]
    fed = dict(zip(names, (values.numpy(), lengths_B.numpy(), np.array(reach)), strict=False))
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, fed), strict=True))


@torch.inference_mode()
def expected_outputs(model: Any, audio_1N: torch.Tensor) -> dict[str, np.ndarray]:
    """What PyTorch gives for one utterance, by the graph's names."""
    shared = model.trunk(audio_1N, torch.tensor([audio_1N.size(1)]))
    found = {"mel": shared.mel_BTF, "lengths": shared.lengths_B}
    for name in model.tasks:
        frames: Frames = model.up_to_head(name, shared)
        own = model.config.branch_point(name)
        found |= {f"block{i}" if i <= own else f"{name}.block{i}": x for i, x in enumerate(frames.blocks, start=1)}
        found |= {f"{name}.{key}": value for key, value in model.task(name)(frames).items()}
    return {name: value[0].numpy() for name, value in found.items()}


@pytest.mark.parametrize("kind", ["own", "parakeet", "mel"])
@pytest.mark.parametrize("limited", [True, False])
def test_the_graph_gives_for_a_padded_batch_what_the_model_gives_alone(
    kind: str, limited: bool, request: pytest.FixtureRequest
) -> None:
    """Laws 1 and 7, by an ONNX runtime that knows nothing of this package; every output but the padding."""
    folder, exported = request.getfixturevalue(kind)
    model = load_model(folder)
    if limited:
        model.limit_attention()
    reach = model.encoder.reach or 10**6
    assert (reach == 10**6) == (kind == "parakeet" or not limited)
    audio_BN, samples_B = audio_batch()
    for rows in ([0], [1], [0, 1, 2]):
        values, lengths_B = audio_BN[rows][:, : int(samples_B[rows].max())], samples_B[rows]
        if kind == "mel":
            values, lengths_B = model.features(values, lengths_B)
        outputs = run_graph(exported / GRAPH, values, lengths_B, reach)
        for place, row in enumerate(rows):
            alone = expected_outputs(model, audio_BN[row : row + 1, : SAMPLES[row]])
            for name, output in outputs.items():
                if name == "mel_lengths":
                    assert output[place] == SAMPLES[row] // 160
                    continue
                found = output[place]
                if found.ndim == 2:
                    found = found[: len(alone[name])]
                # mel: beside these loud tones the quietest bins' logarithms carry the products' rounding
                atol = 5e-4 if name == "mel" else 1e-4
                np.testing.assert_allclose(found, alone[name], atol=atol, rtol=0, err_msg=name)


@pytest.mark.parametrize("kind", ["own", "parakeet", "mel"])
@pytest.mark.parametrize("padding", [5.0, float("nan")])
def test_the_padding_may_be_anything(kind: str, padding: float, request: pytest.FixtureRequest) -> None:
    """As the export's card says."""
    folder, exported = request.getfixturevalue(kind)
    values, lengths_B = audio_batch()
    values, lengths_B = (values[2:, :9600], lengths_B[2:])
    if kind == "mel":
        values, lengths_B = load_model(folder).features(values, lengths_B)
    given = values.clone()
    given[:, int(lengths_B) :] = padding
    expected, found = (run_graph(exported / GRAPH, x, lengths_B, 10**6) for x in (values, given))
    for name, output in found.items():
        if output.ndim == 3 and name != "mel":
            output, expected[name] = (x[:, : int(found["lengths"][0])] for x in (output, expected[name]))
        np.testing.assert_allclose(output, expected[name], atol=1e-6, err_msg=name)


def test_an_odd_window_is_exported(tmp_path: Path) -> None:
    values = tiny_values({"train": "", "dev": ""})
    values["tasks"], values["features"] = {"asr": {"type": "asr"}}, {"window_samples": 399}
    model = tiny_model(parse_config(values, "test"))
    exporting.write_graph(model, tmp_path / GRAPH, "audio")
    audio_1N = audio_batch()[0][:1, :15999]
    found = run_graph(tmp_path / GRAPH, audio_1N, torch.tensor([15999]), 10**6)
    np.testing.assert_allclose(found["mel"][0], expected_outputs(model, audio_1N)["mel"], atol=5e-4)


def test_the_graph_has_the_outputs_that_heads_read_and_no_others(
    own: tuple[Path, Path], mel: tuple[Path, Path]
) -> None:
    names = {"mel", "mel_lengths", "lengths", "block1", "block2", "gender.block2"}
    assert set(exporting.Graph(load_model(own[0]), "audio").outputs) == names | {
        "asr.log_probs", "speaker.embedding", "gender.log_probs",
    }  # fmt: skip
    outputs = [value.name for value in open_session(mel[1] / GRAPH).get_outputs()]
    assert outputs == ["lengths", "block1", "asr.log_probs"]


def assert_alike(ours: Result, theirs: Result) -> None:
    def plain(result: Result) -> list[Any]:
        return [
            (s.speaker, s.text, s.best_name, [(w.text, w.start_s, w.end_s, w.speaker) for w in s.words])
            for s in result.segments
        ]

    assert plain(ours) == plain(theirs) and ours.text
    assert (ours.notes, ours.fingerprint) == (theirs.notes, theirs.fingerprint)
    for a, b in zip(ours.segments, theirs.segments, strict=True):
        np.testing.assert_allclose([w.confidence for w in a.words], [w.confidence for w in b.words], atol=1e-3)
        assert a.labels.keys() == b.labels.keys()
        assert (a.score or 0) == pytest.approx(b.score or 0, abs=1e-4)
        assert all(a.labels[name].label == b.labels[name].label for name in a.labels)


@pytest.mark.parametrize("kind", ["own", "parakeet", "mel"])
def test_a_transcript_is_the_same_by_either_engine(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Over two windows, with a voice enrolled by one engine and recognised by both."""
    folder, exported = request.getfixturevalue(kind)
    torch_one = Recognizer.from_pretrained(folder, db=tmp_path / "speakers.db", threshold=0.1)
    onnx_one = Recognizer.from_pretrained(exported, db=tmp_path / "speakers.db", threshold=0.1)
    assert isinstance(onnx_one.model, OnnxModel)
    recording = (speech(41.0), RATE)
    if kind == "own":
        torch_one.enroll("ann", [(speech(3.0, seed=2), RATE)])
        np.testing.assert_allclose(torch_one.embed(recording), onnx_one.embed(recording), atol=1e-5)
    ours, theirs = onnx_one.transcribe(recording), torch_one.transcribe(recording)
    assert_alike(ours, theirs)
    assert kind != "own" or ours.segments[0].speaker == "ann"


def test_an_export_evaluates_as_its_model(own: tuple[Path, Path], corpus: dict[str, str], tmp_path: Path) -> None:
    for name, folder in zip(("torch", "onnx"), own, strict=True):
        result = CliRunner().invoke(app, ["evaluate", str(folder), corpus["dev"], "--out", str(tmp_path / name)])
        assert result.exit_code == 0, result.output
    a, b = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("torch", "onnx"))
    assert a["asr"] == b["asr"] and a["speaker"]["accuracy"] == b["speaker"]["accuracy"]
    assert a["cost"]["parameters"] == b["cost"]["parameters"] > 10000


def test_int8_is_in_the_blocks_products_and_stays_near(own: tuple[Path, Path], int8: Path) -> None:
    import onnx

    kinds = [node.op_type for node in onnx.load(int8).graph.node]
    assert kinds.count("MatMulInteger") == 3 * 8  # three blocks: two feed-forward layers twice, attention, convolution
    assert "ConvInteger" not in kinds and not list(int8.parent.glob("tmp*"))
    audio_BN, samples_B = audio_batch()
    exact, rounded = (run_graph(graph, audio_BN, samples_B, 10**6) for graph in (own[1] / GRAPH, int8))
    assert 0.99 < (exact["speaker.embedding"] * rounded["speaker.embedding"]).sum(1).min() < 1 - 1e-7
    assert np.mean(exact["asr.log_probs"].argmax(-1) == rounded["asr.log_probs"].argmax(-1)) > 0.9


def test_check_prints_a_table_and_uses_an_export_that_is_there(
    own: tuple[Path, Path], corpus: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "write_graph", lambda *arguments: pytest.fail("exported anew"))
    command = ["export", str(own[0]), "--out", str(own[1]), "--check", corpus["dev"]]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    for line in ("asr.log_probs: largest difference", "embeddings: least cosine", "WER", "12 of 12", "time for"):
        assert line in result.output
    result = CliRunner().invoke(app, [*command, "--int8"])
    assert result.exit_code == 1 and "exists already; choose another folder" in result.output


def test_check_fails_where_the_outputs_differ(own: tuple[Path, Path], corpus: dict[str, str], tmp_path: Path) -> None:
    from speech_mtl.export_parity import compare

    model = load_model(own[0])
    with torch.no_grad():
        model.get_parameter("encoder.blocks.1.norm_out.bias")[0] += 1e-2
    save_model(model, tmp_path / "other", "card")
    found = compare(tmp_path / "other", own[1], [corpus["dev"]])
    assert any("asr.log_probs" in line and "accepted: 0.0001" in line for line in found.failures())
    found.precision = "int8"
    assert found.failures() == []
    found.export.counts = [{**counts, "insertions": counts["insertions"] + 1} for counts in found.export.counts]
    assert ["points above the model's; accepted: 0.5" in line for line in found.failures()] == [True]
    found.least_cosine = 0.9
    assert "embeddings: least cosine 0.900; accepted: 0.99 or more" in found.failures()


def test_check_fails_where_an_output_is_no_number(
    own: tuple[Path, Path], corpus: dict[str, str], tmp_path: Path
) -> None:
    from speech_mtl.export_parity import compare

    model = load_model(own[0])
    with torch.no_grad():
        model.get_parameter("encoder.blocks.1.norm_out.bias")[0] = float("nan")
    save_model(model, tmp_path / "nan", "card")
    found = compare(tmp_path / "nan", own[1], [corpus["dev"]])
    assert found.differences["asr.log_probs"] == float("inf") and found.least_cosine == -1
    assert len(found.failures()) >= 2
    found.precision = "int8"
    assert "asr.log_probs: not a number" in found.failures()


def test_an_export_is_calibrated_as_itself(own: tuple[Path, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(own[1], tmp_path / "export")
    save_calibration(folder, Calibration.of(0.7, "x"))
    assert Recognizer.from_pretrained(folder).calibration.threshold(1.0) == 0.7


def test_int8_is_another_model_to_the_speaker_database(own: tuple[Path, Path], int8: Path, tmp_path: Path) -> None:
    said = exporting._said(load_model(own[0]).fingerprint, "audio", True)
    assert said["fingerprint"] not in (load_model(own[0]).fingerprint, load_model(own[1]).fingerprint)
    assert load_model(own[1]).fingerprint == load_model(own[0]).fingerprint


@pytest.mark.parametrize("missing", ["onnxruntime", "onnxscript"])
def test_without_the_extra_the_message_names_it(
    missing: str, own: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    message = rf"{missing} is not installed; pip install 'speech_mtl\[onnx\]'"
    with pytest.raises(EngineError, match=message):
        export_model(own[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    if missing == "onnxruntime":
        with pytest.raises(EngineError, match=message):
            load_model(own[1])


def test_wrong_folders_are_refused(own: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is an export itself; give the folder it was made from"):
        export_model(own[1], tmp_path / "again")
    with pytest.raises(CheckpointError, match="exists already; choose another folder"):
        export_model(own[0], own[1])
    with pytest.raises(CheckpointError, match="is an export, which runs on the cpu, not on cuda"):
        load_model(own[1], "cuda")
    damaged = tmp_path / "damaged"
    shutil.copytree(own[1], damaged)
    (damaged / GRAPH).write_bytes((own[1] / GRAPH).read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="was altered: its SHA-256 is not the one in config.json"):
        load_model(damaged)
    with pytest.raises(EngineError, match="not usable"):
        open_session(damaged / GRAPH)


@pytest.mark.parametrize(
    ("which", "engine", "code", "message"),
    [(0, "onnx", 1, "has no model.onnx; write it by"), (1, "torch", 1, "is an export; give"), (0, "tf", 2, "accepted")],
)
def test_an_engine_that_the_folder_does_not_hold_is_refused(
    which: int, engine: str, code: int, message: str, own: tuple[Path, Path]
) -> None:
    result = CliRunner().invoke(app, ["transcribe", "a.wav", "--model", str(own[which]), "--engine", engine])
    assert result.exit_code == code and message in " ".join(result.output.split())


def test_bfloat16_is_near_and_halves_the_products_weights(own: tuple[Path, Path]) -> None:
    exact, rounded = load_model(own[0]), load_model(own[0])
    rounded.round_weights()
    audio_BN, samples_B = audio_batch()
    with torch.inference_mode():
        a, b = exact(audio_BN, samples_B), rounded(audio_BN, samples_B)
    assert a["asr"]["log_probs"].dtype == b["asr"]["log_probs"].dtype == torch.float32
    difference = (a["asr"]["log_probs"] - b["asr"]["log_probs"])[0].abs().max()
    assert 1e-5 < difference < 0.1
    assert (a["speaker"]["embedding"] * b["speaker"]["embedding"]).sum(1).min() > 0.999
    weights = rounded.state_dict()
    assert weights["encoder.blocks.0.attention.qkv_proj.weight"].dtype == torch.bfloat16
    assert (
        weights["tasks.asr.linear.weight"].dtype == weights["encoder.blocks.0.norm_out.weight"].dtype == torch.float32
    )
    with pytest.raises(EngineError, match="an export has the precision that it was written with"):
        Recognizer.from_pretrained(own[1], bf16=True)


def test_weights_beside_the_graph_are_part_of_the_folder(mel: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(mel[1], folder)
    assert (folder / exporting.DATA).stat().st_size > 50_000
    assert str(Path(exporting.__file__).parent).encode() not in (folder / GRAPH).read_bytes()
    load_model(folder)
    (folder / exporting.DATA).rename(tmp_path / "away")
    with pytest.raises(CheckpointError, match="is not complete: model.onnx.data is missing"):
        load_model(folder)
    (tmp_path / "away").rename(folder / exporting.DATA)
    exporting.quantize(folder / GRAPH)
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in mel[1].iterdir())
    open_session(folder / GRAPH)
