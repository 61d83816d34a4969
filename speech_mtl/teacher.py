"""A public speaker encoder as a teacher: its vectors of the training utterances, as one more label in the manifests.

The few dozen speakers of a small corpus tell a head little of how voices differ. An encoder that heard thousands of
people says of every utterance where its voice lies among theirs, and with `tasks.NAME.teacher` the embedding is drawn
there too (distillation: Hinton et al. 2015, arXiv 1503.02531). The teacher is needed here alone, not in training.

Accepted are ONNX files with one input, Kaldi's 80 filterbanks less their mean (N, T, 80), and one output (N, E):
- 3D-Speaker's, such as CAM++ (https://github.com/modelscope/3D-Speaker, export_speaker_embedding_onnx.py);
- WeSpeaker's, whose input is named feats: a Hamming window on 16-bit samples (https://github.com/wenet-e2e/wespeaker).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse import CutSet, SupervisionSegment
from lhotse.utils import fastcopy
from torchaudio.compliance import kaldi

from speech_mtl.audio import reason_of
from speech_mtl.data import DataError, Manifest
from speech_mtl.engine import EngineError, open_session
from speech_mtl.inventory import check_ids
from speech_mtl.tasks import label_of
from speech_mtl.tasks.speaker import CORPUS_SPEAKERS, VECTORS

SAMPLE_RATE, MEL_BINS = 16000, 80
SHORTEST_S = 0.1
DIGITS = 5
"""Of the numbers in a manifest; vectors have length 1."""


class Teacher:
    """The encoder of an ONNX file. Raises EngineError for one that takes or gives something else."""

    def __init__(self, path: Path):
        if not path.is_file():
            raise EngineError(f"teacher {path}: no such file; expected a speaker encoder as ONNX")
        self.session = open_session(path)
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        self.input = inputs[0].name
        shape = inputs[0].shape
        if len(inputs) != 1 or len(shape) != 3 or shape[2] not in (MEL_BINS, None) and not isinstance(shape[2], str):
            found = ", ".join(f"{value.name} {value.shape}" for value in inputs)
            raise EngineError(
                f"teacher {path}: takes {found}; accepted: one input of {MEL_BINS} filterbanks (N, T, 80)"
            )
        self.output = outputs[0].name
        self.key = hashlib.sha256(path.read_bytes()).hexdigest()

    def __call__(self, audio_N: np.ndarray) -> np.ndarray:
        """The vector (E,) of length 1 of 16 kHz audio. Raises EngineError."""
        wespeaker = self.input == "feats"
        samples_1N = torch.from_numpy(audio_N)[None] * (32768 if wespeaker else 1)
        window = "hamming" if wespeaker else "povey"
        fbank_TF = kaldi.fbank(samples_1N, num_mel_bins=MEL_BINS, sample_frequency=SAMPLE_RATE, window_type=window)
        fed = {self.input: (fbank_TF - fbank_TF.mean(0))[None].numpy()}
        try:
            vector_E = self.session.run([self.output], fed)[0][0].astype(np.float64)
        except Exception as error:  # onnxruntime raises classes of its own, and bare RuntimeError
            raise EngineError(f"teacher: {' '.join(str(error).split())[:300]}") from None
        if vector_E.ndim != 1 or not np.isfinite(vector_E).all() or not vector_E.any():
            raise EngineError(f"teacher: gives an array {vector_E.shape} that is no vector of finite numbers")
        return vector_E / np.linalg.norm(vector_E)


def teach(
    manifest: Path, out: Path, teacher: Teacher, speeds: Sequence[float],
    on_done: Callable[[float], None] = lambda utterances: None,
) -> list[str]:  # fmt: skip
    """Write the manifest's cuts to `out`, with the teacher's vectors at every speed; returns what could not be heard.

    The vectors are less their mean where there are several speakers, which says more of a corpus than of its voices,
    and of length 1 again. What is heard already is kept in `out`.part, from which a stopped call goes on.
    Raises DataError.
    """
    cuts = list(Manifest(manifest))
    check_ids((cut.id for cut in cuts), f"manifest {manifest}")
    part = out.with_name(f"{out.name}.part")
    heard, bad = _begun(part, [teacher.key, list(speeds), hashlib.sha256(manifest.read_bytes()).hexdigest()]), []
    with part.open("a", encoding="utf-8") as file:
        for number, cut in enumerate(cuts, start=1):
            if cut.id not in heard:
                try:
                    audios = [_audio(cut if speed == 1 else cut.perturb_speed(speed)) for speed in speeds]
                    vectors = [teacher(audio).tolist() for audio in audios]
                except Exception as error:  # lhotse raises many kinds; the cut's name is what the user needs
                    bad.append(f"{manifest}: cut '{cut.id}': {reason_of(error)}")
                else:
                    heard[cut.id] = vectors
                    file.write(json.dumps([cut.id, heard[cut.id]]) + "\n")
                    file.flush()
            on_done(number)
    if len(bad) == len(cuts):
        raise DataError(f"manifest {manifest}: none of {len(cuts)} utterances could be heard; the first: {bad[0]}")
    row = {cut.id: i for i, cut in enumerate(cut for cut in cuts if cut.id in heard)}
    vectors_NVE = np.array([heard[cut_id] for cut_id in row])
    if len({label_of(cut, "speaker") for cut in cuts if cut.id in row}) >= CORPUS_SPEAKERS:
        vectors_NVE -= vectors_NVE.mean(axis=(0, 1))
        vectors_NVE /= np.linalg.norm(vectors_NVE, axis=-1, keepdims=True)
    names = [f"{speed:g}" for speed in speeds]

    def taught(supervision: SupervisionSegment, cut_id: str) -> SupervisionSegment:
        by_speed = dict(zip(names, vectors_NVE[row[cut_id]].round(DIGITS).tolist(), strict=True))
        return fastcopy(supervision, custom=(supervision.custom or {}) | {VECTORS: by_speed})

    temporary = out.with_name(f".{out.name.split('.')[0]}.{os.getpid()}.jsonl.gz")
    CutSet.from_cuts(
        cut.map_supervisions(partial(taught, cut_id=cut.id)) if cut.id in row else cut for cut in cuts
    ).to_jsonl(temporary)
    temporary.replace(out)
    part.unlink()
    return bad


def _audio(cut: Any) -> np.ndarray:
    audio_N = cut.resample(SAMPLE_RATE).load_audio().mean(axis=0, dtype=np.float32)
    if len(audio_N) < SHORTEST_S * SAMPLE_RATE:
        raise DataError(f"{len(audio_N) / SAMPLE_RATE:.3f} s, shorter than {SHORTEST_S:g} s")
    return audio_N


def _begun(part: Path, key: list[Any]) -> dict[str, list[list[float]]]:
    """What a stopped call with this teacher, these speeds and this manifest has heard; another's file is begun anew."""
    head = json.dumps(key)
    if part.exists():
        lines = part.read_text(encoding="utf-8").split("\n")
        if lines[0] == head:
            whole = lines[1:-1]  # the last line may be cut short
            part.write_text("".join(f"{line}\n" for line in [head, *whole]), encoding="utf-8")
            return dict(json.loads(line) for line in whole)
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(f"{head}\n", encoding="utf-8")
    return {}
