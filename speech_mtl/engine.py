"""An exported model in use: features and blocks run in onnxruntime, the heads in PyTorch.

A folder that `speech-mtl export` wrote holds the graph and the heads' weights. `OnnxModel` gives the graph's frames in
the place of the encoder's, so that whatever reads a model (transcribe, evaluate, identify, enroll) works on it as on
any other. The graph's outputs, by name:

    lengths                         (B,) encoder frames
    mel, mel_lengths                the features (B, T, F), where the graph takes audio
    block1, block2, ...             (B, S, D) of the shared blocks, those that a head reads
    TASK.block3, ...                of a task's own blocks
    TASK.log_probs, TASK.embedding  what the heads give for whole utterances
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from speech_mtl.config import Config
from speech_mtl.encoder import Conformer
from speech_mtl.model import SpeechModel
from speech_mtl.tasks import Frames
from speech_mtl.text import Tokenizer

GRAPH, HEADS = "model.onnx", "heads.safetensors"
INPUTS = {"audio": ["audio", "samples"], "mel": ["mel", "mel_lengths"]}
"""What a graph starts from, and its inputs then; those with a limited attention have `reach` as well."""


class EngineError(ValueError):
    """onnxruntime is missing or cannot run the graph."""


class OnnxModel(SpeechModel):
    """The model of an exported folder. Raises EngineError."""

    def __init__(
        self, config: Config, tokenizer: Tokenizer | None, labels: dict[str, list[str]], graph: Path,
        exported: dict[str, Any],
    ):  # fmt: skip
        super().__init__(config, tokenizer, labels)
        self.exported = exported
        """What the export says of itself: the number of parameters, the precision."""
        self.encoder = Conformer(config.encoder, config.features.n_mels, last=0)  # lengths and reach, no weights
        self.branches = nn.ModuleDict()
        self.session = open_session(graph)
        self.inputs = [value.name for value in self.session.get_inputs()]
        given = {value.name for value in self.session.get_outputs()}
        read = {name: block_names(config, name) for name in config.tasks}
        wanted = list(dict.fromkeys(output for names in read.values() for output in names))
        self.place = {name: [wanted.index(output) for output in names] for name, names in read.items()}
        """For each task, which of the graph's frames its head reads."""
        self.outputs = [name for name in ("mel", "mel_lengths") if name in given] + ["lengths", *wanted]

    def trunk(self, audio_BN: Tensor, samples_B: Tensor, augment: bool = False) -> Frames:
        if self.inputs[:2] == INPUTS["mel"]:
            return super().trunk(audio_BN, samples_B)
        mel_BTF, mel_lengths_B, lengths_B, *blocks = self._run(audio_BN, samples_B)
        return Frames(mel_BTF, mel_lengths_B, blocks, lengths_B)

    def shared(self, mel_BTF: Tensor, mel_lengths_B: Tensor) -> Frames:
        lengths_B, *blocks = self._run(mel_BTF, mel_lengths_B)
        return Frames(mel_BTF, mel_lengths_B, blocks, lengths_B)

    def up_to_head(self, name: str, shared: Frames) -> Frames:
        return shared._replace(blocks=[shared.blocks[i] for i in self.place[name]])

    def round_weights(self) -> None:
        raise EngineError("an export has the precision that it was written with; give the folder it was made from")

    @property
    def n_parameters(self) -> int:
        return self.exported["parameters"]

    def _run(self, *values: Tensor) -> list[Tensor]:
        fed: dict[str, Any] = dict(zip(self.inputs, (value.cpu().numpy() for value in values), strict=False))
        if "reach" in self.inputs:
            reach = self.encoder.reach
            fed["reach"] = torch.tensor(values[0].size(1) if reach is None else reach).numpy()
        options = onnxruntime().RunOptions()
        options.add_run_config_entry("run.only_execute_path_to_fetches", "1")
        try:
            outputs = self.session.run(self.outputs, fed, options)
        except Exception as error:  # onnxruntime raises classes of its own, and bare RuntimeError
            raise EngineError(f"onnxruntime: {' '.join(str(error).split())[:300]}") from None
        return [torch.from_numpy(output) for output in outputs]


def block_names(config: Config, task: str) -> list[str]:
    """The graph's frames that a task's head reads: all of its blocks where it pools, and the last one for words."""
    shared = config.branch_point(task)
    names = [f"block{i}" if i <= shared else f"{task}.block{i}" for i in config.blocks_read(task)]
    return names[-1:] if config.tasks[task].type == "asr" else names


def onnxruntime() -> ModuleType:
    """The package. Raises EngineError that says how to install it."""
    try:
        import onnxruntime
    except ImportError:
        raise EngineError("onnxruntime is not installed; pip install 'speech_mtl[onnx]'") from None
    return onnxruntime


def open_session(graph: Path) -> Any:
    """onnxruntime on the CPU with as many threads as PyTorch has. Raises EngineError."""
    runtime = onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return runtime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own, and bare RuntimeError
        raise EngineError(f"{graph}: not usable: {' '.join(str(error).split())[:300]}") from None
