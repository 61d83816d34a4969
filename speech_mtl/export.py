"""A model -> a folder that runs in onnxruntime: one ONNX graph for any batch and length, and the heads' weights.

Padding is masked inside the graph, so that an utterance in a padded batch gives what it gives alone. The graph starts
from audio at the model's rate, soft recordings made louder (lift.py), or from log-mel features; engine.py lists its
outputs, and runs the folder. What the speaker and classify heads pool over are outputs as well, since in recordings of
any length they pool over phrases.

With `int8` the blocks' matrix products run on 8-bit integers: weights quantised per output, activations as they come
(onnxruntime's dynamic quantisation). Convolutions, the subsampling and the heads stay as they are.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speech_mtl.calibration import CALIBRATION, read_calibration
from speech_mtl.checkpoint import (
    LABELS,
    LM,
    TOKENIZER,
    WEIGHTS,
    CheckpointError,
    describe,
    fingerprint_of,
    load_model,
    read_object,
    save_tensors,
)
from speech_mtl.encoder import Conformer
from speech_mtl.engine import GRAPH, HEADS, INPUTS, EngineError, OnnxModel, block_names, onnxruntime
from speech_mtl.features import frame_mask
from speech_mtl.model import SpeechModel
from speech_mtl.tasks import Frames

OPSET = 20
DATA = f"{GRAPH}.data"
"""The graph's weights, where they do not fit in its own file (2 GB)."""
MOST_WITHIN = 2**30
"""Bytes of weights up to which they stand in the graph's own file."""


class Graph(nn.Module):
    """A model with tensors in and tensors out, in the order of `outputs`; `start` is 'audio' or 'mel'."""

    def __init__(self, model: SpeechModel, start: str):
        super().__init__()
        self.model, self.start, config = model, start, model.config
        self.inputs = INPUTS[start] + ["reach"] * bool(config.encoder.reach_s)
        pooling = [name for name, task in config.tasks.items() if task.type != "asr"]
        words = [name for name in config.tasks if name not in pooling]
        heads = [f"{name}.log_probs" for name in words]
        heads += [f"{name}.{'embedding' if config.tasks[name].type == 'speaker' else 'log_probs'}" for name in pooling]
        blocks = dict.fromkeys(block for name in config.tasks for block in block_names(config, name))
        self.outputs = ["mel", "mel_lengths"] * (start == "audio") + ["lengths", *blocks, *heads]

    def forward(self, values: Tensor, lengths_B: Tensor, reach: Tensor | None = None) -> tuple[Tensor, ...]:
        model = self.model
        stacks = [module for module in model.modules() if isinstance(module, Conformer)]
        for stack in stacks:
            stack.reach = reach
        if self.start == "audio":
            shared = model.trunk(values, lengths_B)
        else:  # features are 0 beyond an utterance's end; what is given may be anything there
            shared = model.shared(values.masked_fill(~frame_mask(lengths_B, values.size(1))[..., None], 0.0), lengths_B)
        found = {"mel": shared.mel_BTF, "mel_lengths": shared.mel_lengths_B, "lengths": shared.lengths_B}
        for name in model.tasks:
            frames: Frames = model.up_to_head(name, shared)
            names = block_names(model.config, name)
            found |= dict(zip(names, frames.blocks[-len(names) :], strict=True))
            found |= {f"{name}.{key}": value for key, value in model.task(name)(frames).items()}
        for stack in stacks:
            stack.reach = None
        return tuple(found[name] for name in self.outputs)


def export_model(folder: str | Path, out: Path, start: str = "audio", int8: bool = False) -> None:
    """Write the export of a model folder; a folder that exists is not touched. Raises CheckpointError, EngineError."""
    require_packages()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} exists already; choose another folder")
    model = load_model(folder)
    if isinstance(model, OnnxModel):
        raise CheckpointError(f"{folder} is an export itself; give the folder it was made from")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        whole = Path(temporary) / "export"
        whole.mkdir()
        write_graph(model, whole / GRAPH, start)
        if int8:
            quantize(whole / GRAPH)
        in_graph = ("encoder.", "branches.")
        heads = {name: value for name, value in model.state_dict().items() if not name.startswith(in_graph)}
        save_tensors({name: value.contiguous() for name, value in heads.items()}, whole / HEADS)
        for name in (TOKENIZER, LABELS, LM):
            if (Path(folder) / name).is_file():
                shutil.copy(Path(folder) / name, whole / name)
        (whole / "README.md").write_text(card(model, start, int8), encoding="utf-8")
        said: dict[str, Any] = {**_said(model.fingerprint, start, int8), "parameters": model.n_parameters}
        calibration = read_calibration(Path(folder), model.fingerprint)
        bound = calibration.model_copy(update={"fingerprint": said["fingerprint"]})
        (whole / CALIBRATION).write_text(bound.to_json(), encoding="utf-8")
        describe(whole, model.config, [GRAPH, DATA, HEADS, TOKENIZER, LABELS], exported=said)
        if out.exists():
            out.rmdir()
        whole.rename(out)


def _said(of: str, start: str, int8: bool) -> dict[str, Any]:
    """What an export's config.json says of it; embeddings of rounded weights are another model's."""
    fingerprint = f"{of}-int8" if int8 else of
    return {"of": of, "from": start, "precision": "int8" if int8 else "fp32", "fingerprint": fingerprint}


def is_export_of(out: Path, folder: Path, start: str, int8: bool) -> bool:
    """Whether a folder holds just what `export_model` would write there."""
    if not (out / GRAPH).is_file() or not (out / "config.json").is_file() or not (folder / WEIGHTS).is_file():
        return False
    exported = read_object(out / "config.json").get("exported")
    wanted = _said(fingerprint_of(folder), start, int8)
    return isinstance(exported, dict) and {key: exported.get(key) for key in wanted} == wanted


def require_packages() -> None:
    """Raises EngineError where what writes graphs is not installed."""
    onnxruntime()
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise EngineError(f"{error.name} is not installed; pip install 'speech_mtl[onnx]'") from None


@torch.no_grad()
def write_graph(model: SpeechModel, path: Path, start: str) -> None:
    """The graph of a model in eval mode, with its weights in a file beside it where they are large."""
    graph, config = Graph(model, start).eval(), model.config.features
    B, T = torch.export.Dim("batch"), torch.export.Dim("samples" if start == "audio" else "mel_frames", min=8)
    size = 301 * (config.hop_samples if start == "audio" else 1)
    example = torch.randn(2, size) if start == "audio" else torch.randn(2, size, config.n_mels)
    values: list[Any] = [example, torch.tensor([size, size * 3 // 4])]
    shapes: list[Any] = [{0: B, 1: T}, {0: B}]
    if "reach" in graph.inputs:
        values, shapes = [*values, torch.tensor(50)], [*shapes, None]
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph, tuple(values), dynamo=True, dynamic_shapes=tuple(shapes), opset_version=OPSET, verbose=False,
            input_names=graph.inputs, output_names=graph.outputs,
        )  # fmt: skip
    assert program is not None  # it is None for the older exporter alone
    for node in program.model.graph:
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)  # paths of this machine
    size = sum(4 * weight.numel() for weight in graph.state_dict().values())
    program.save(str(path), external_data=size > MOST_WITHIN)


def quantize(path: Path) -> None:
    """Have the blocks' products of a graph run on 8-bit integers, in place."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(path, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    blocks = [
        node.name
        for node in graph.node
        if node.op_type == "MatMul"
        and node.input[1] in constants
        # the module it stands for, as PyTorch's exporter notes it
        and any(entry.key.endswith("name_scopes") and ".blocks." in entry.value for entry in node.metadata_props)
    ]
    logging.getLogger().setLevel(logging.ERROR)  # it advises a step that is for other kinds of quantisation
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        target = Path(temporary) / path.name
        large = (path.parent / DATA).exists()
        quantize_dynamic(
            # unsigned: signed weights overflow in the 16-bit sums of processors without VNNI
            path, target, per_channel=True, weight_type=QuantType.QUInt8, nodes_to_quantize=blocks,
            use_external_data_format=large,
        )  # fmt: skip
        (path.parent / DATA).unlink(missing_ok=True)
        for file in Path(temporary).iterdir():
            file.rename(path.parent / file.name)


def card(model: SpeechModel, start: str, int8: bool) -> str:
    """The exported folder's README.md."""
    config, graph = model.config, Graph(model, start)
    features = config.features
    given = "float32 in [-1, 1], (B, N)" if start == "audio" else f"log-mel features, (B, T, {features.n_mels})"
    lines = [
        "# An exported model\n",
        f"`{GRAPH}` ({'int8' if int8 else 'fp32'}, {model.n_parameters / 1e6:.1f} million parameters) runs in any ONNX",
        f"runtime of opset {OPSET}. `speech-mtl transcribe --engine onnx --model DIR` runs this folder, and so do",
        "`evaluate`, `identify` and `enroll`.\n",
        "Inputs:\n",
        f"- `{graph.inputs[0]}`: {given}; {features.sample_rate} Hz, padded at the end with anything",
        f"- `{graph.inputs[1]}`: (B,) int64, the length of each without its padding",
    ]
    if "reach" in graph.inputs:
        lines.append(
            f"- `reach`: int64, how many frames to either side attention sees; {model.reach_frames} for long recordings"
        )
    lines += [
        f"\nOutputs: {', '.join(f'`{name}`' for name in graph.outputs)}.",
        f"A frame is {1000 * model.frame_s:g} ms; those beyond `lengths` mean nothing. CTC's blank is the last column",
        "of `log_probs`; the other columns are the pieces of tokenizer.json.",
        "",
    ]
    return "\n".join(lines)
