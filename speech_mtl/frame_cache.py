"""The frames of a frozen trunk, kept on disk: computed once an utterance, read at every step after that.

A folder per trunk and manifest, named by what its content depends on: the weights below the heads, the blocks kept, the
features' and encoder's settings, the manifest's bytes. So one that does not fit is never read, and one that nobody
needs any more can be deleted. (A recording that changes under an unchanged manifest is not noticed.) In it:

    index.json     the key, and every utterance's id and number of samples, in the files' order
    frames.f32     (S of all utterances, blocks · D), float32
    mel.f32        (T of all utterances, F), float32

Each utterance is computed by itself, so that what is kept depends on nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet
from lhotse.cut import Cut
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speech_mtl.config import Config
from speech_mtl.data import Batch, DataError, Manifest, filled, is_usable, utterances
from speech_mtl.inventory import check_ids
from speech_mtl.lift import USUAL_DB
from speech_mtl.model import SpeechModel
from speech_mtl.tasks import Frames

INDEX, FRAMES, MEL = "index.json", "frames.f32", "mel.f32"
BYTES = 4


class KeptFrames:
    """One manifest's kept frames, and where each utterance lies. Raises DataError where the files are not whole."""

    def __init__(self, folder: Path, model: SpeechModel, blocks: list[int], manifest: str):
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        check_ids(index["ids"], f"trunk.cache: manifest {manifest}")  # kept frames may be of before they were checked
        retry = f"(when {folder} was made; delete it to try again)"
        self.failed = {cut_id: f"{reason} {retry}" for cut_id, reason in index["failed"].items()}
        self.row = {cut_id: row for row, cut_id in enumerate(index["ids"])}
        self.samples = torch.tensor(index["samples"], dtype=torch.long)
        self.mel_bounds = [0, *model.features.lengths(self.samples).cumsum(0).tolist()]
        self.bounds = [0, *model.lengths(self.samples).cumsum(0).tolist()]
        self.mel = _mapped(folder / MEL, self.mel_bounds[-1], model.config.features.n_mels)
        self.frames = _mapped(folder / FRAMES, self.bounds[-1], len(blocks) * model.config.encoder.d_model)

    def read(self, row: int) -> tuple[Tensor, Tensor]:
        """(frames (S, blocks·D), mel_TF) of an utterance, as views of the files."""
        frames = self.frames[self.bounds[row] : self.bounds[row + 1]]
        return frames, self.mel[self.mel_bounds[row] : self.mel_bounds[row + 1]]


class FrameCache:
    """The kept frames of several manifests' utterances, as batches."""

    def __init__(self, model: SpeechModel, folders: dict[str, Path]):
        self.model, self.config = model, model.config
        self.blocks = blocks_kept(model)
        self.kept: dict[str, KeptFrames] = {}
        self.failed: dict[str, str] = {}
        owners: dict[str, str] = {}
        for manifest, folder in folders.items():
            of_manifest = KeptFrames(folder, model, self.blocks, manifest)
            for cut_id in of_manifest.row:
                if cut_id in owners:
                    raise DataError(
                        f"trunk.cache: cut '{cut_id}' is in {owners[cut_id]} and in {manifest}; ids must differ"
                    )
                owners[cut_id] = manifest
                self.kept[cut_id] = of_manifest
            self.failed |= of_manifest.failed

    def batch(self, cuts: list[Cut]) -> Batch:
        """The utterances' frames, padded; those that could not be read when the frames were made are in `failed`."""
        kept, failed, read, samples = [], [], [], []
        for cut in cuts:
            cut_id = cut.id if cut.id in self.kept else re.sub(r"~\d+$", "", cut.id)  # data.repetition
            if cut_id not in self.kept:
                failed.append((cut.id, self.failed.get(cut_id, "its frames are not kept")))
                continue
            of_manifest = self.kept[cut_id]
            row = of_manifest.row[cut_id]
            kept.append(cut)
            read.append(of_manifest.read(row))
            samples.append(of_manifest.samples[row])
        samples_B = torch.stack(samples) if samples else torch.zeros(0, dtype=torch.long)
        frames = self._padded(read, samples_B) if read else None
        return Batch(torch.zeros(len(kept), 0), samples_B, kept, failed, frames)

    def _padded(self, read: list[tuple[Tensor, Tensor]], samples_B: Tensor) -> Frames:
        frames_BSD = pad_sequence([frames for frames, _ in read], batch_first=True)
        kept = frames_BSD.unflatten(-1, (len(self.blocks), self.config.encoder.d_model)).unbind(2)
        nobody_reads = torch.zeros(len(read), 0, 0)
        by_place = dict(zip(self.blocks, kept, strict=True))
        blocks = [by_place.get(i, nobody_reads) for i in range(1, self.config.trunk_depth() + 1)]
        mel_BTF = pad_sequence([mel for _, mel in read], batch_first=True)
        return Frames(mel_BTF, self.model.features.lengths(samples_B), blocks, self.model.lengths(samples_B))

    def utterances(self, model: SpeechModel, cuts: CutSet) -> Iterator[Batch]:
        """Those of some cuts, as batches; evaluate.Source."""
        for group in filled(sorted(cuts, key=lambda cut: (cut.duration, cut.id)), self.config.data.max_duration_s):
            yield self.batch(group)


def blocks_kept(model: SpeechModel) -> list[int]:
    """The trunk's blocks, from 1, that a task which learns reads, or builds its own blocks on."""
    config, kept = model.config, set()
    for name in model.learning():
        shared = config.branch_point(name)
        kept |= {i for i in config.blocks_read(name) if i <= shared}
        if name in model.branches and shared:
            kept.add(shared)
    return sorted(kept)


def make(
    model: SpeechModel, manifest: str, training: bool, say: Callable[[str], None], show: Callable[[float], None]
) -> None:
    """Compute a manifest's frames where they are not kept yet; in training only of the usable utterances.

    `say` gets a line for the person, `show` the share done. Raises DataError where the disk lacks room.
    """
    config, folder = model.config, folder_of(model, manifest, training)
    if folder.is_dir():
        return
    cuts = [cut for cut in Manifest(manifest) if not training or is_usable(cut, config.data)]
    check_ids((cut.id for cut in cuts), f"trunk.cache: manifest {manifest}")
    rate = config.features.sample_rate
    samples = torch.tensor([round(cut.duration * rate) for cut in cuts], dtype=torch.long)
    blocks = blocks_kept(model)
    numbers = int(model.features.lengths(samples).sum()) * config.features.n_mels
    numbers += int(model.lengths(samples).sum()) * len(blocks) * config.encoder.d_model
    needed = BYTES * numbers
    folder.parent.mkdir(parents=True, exist_ok=True)
    if needed > (free := shutil.disk_usage(folder.parent).free):
        raise DataError(
            f"trunk.cache {folder.parent}: the frames of {manifest} take {needed / 1e9:.2f} GB, and "
            f"{free / 1e9:.2f} GB are free; read fewer blocks (tasks.NAME.blocks), or choose another folder"
        )
    say(f"the frames of {len(cuts)} utterances of {manifest}, {needed / 1e9:.2f} GB, are computed into {folder}")
    _fill(model, cuts, folder, {"key": _key(model, manifest, training), "made_of": manifest}, show)


def _fill(
    model: SpeechModel, cuts: list[Cut], folder: Path, described: dict[str, Any], show: Callable[[float], None]
) -> None:
    """Write the folder beside its place, and rename it when it is whole. Raises DataError where nothing can be read."""
    device, blocks = next(model.parameters()).device, blocks_kept(model)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    ids, samples = [], []
    failed: dict[str, str] = {}
    try:
        with open(temporary / FRAMES, "wb") as frames_file, open(temporary / MEL, "wb") as mel_file:
            for i, batch in enumerate(utterances(cuts, model.config)):
                failed |= dict(batch.failed)
                if batch.cuts:
                    n = int(batch.samples_B[0])
                    with torch.inference_mode():
                        shared = model.trunk(batch.audio_BN[:, :n].to(device), batch.samples_B.to(device))
                    if blocks:
                        frames = torch.cat([shared.blocks[b - 1][0].float() for b in blocks], dim=-1)
                        frames_file.write(frames.cpu().numpy().tobytes())
                    mel_file.write(shared.mel_BTF[0].cpu().numpy().tobytes())
                    ids.append(batch.cuts[0].id)
                    samples.append(n)
                show((i + 1) / len(cuts))
            if failed and not ids:  # their folder may be away today, and kept is kept
                found = f"none of {len(failed)} recordings could be read; the first: {next(iter(failed.values()))}"
                raise DataError(f"trunk.cache: manifest {described['made_of']}: {found}")
            for file in (frames_file, mel_file):
                file.flush()
                os.fsync(file.fileno())
        index = described | {"failed": failed, "ids": ids, "samples": samples}
        (temporary / INDEX).write_text(json.dumps(index) + "\n", encoding="utf-8")
        try:
            os.replace(temporary, folder)
        except OSError:  # another run was there first; its frames are the same
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def folder_of(model: SpeechModel, manifest: str, training: bool) -> Path:
    """Where a manifest's frames are kept."""
    described = json.dumps(_key(model, manifest, training), sort_keys=True)
    return Path(model.config.trunk.cache) / hashlib.sha256(described.encode()).hexdigest()[:16]


def _key(model: SpeechModel, manifest: str, training: bool) -> dict[str, Any]:
    """All that the kept frames depend on."""
    config: Config = model.config
    weights = hashlib.sha256()
    for name, value in model.state_dict().items():
        if name.startswith(("features.", "encoder.")):
            weights.update(name.encode())
            weights.update(value.detach().cpu().contiguous().numpy().tobytes())
    return {
        "trunk": weights.hexdigest(), "blocks": blocks_kept(model), "features": config.features.model_dump(),
        "encoder": config.encoder.model_dump(), "manifest": hashlib.sha256(Path(manifest).read_bytes()).hexdigest(),
        "shortest_s": config.data.min_utterance_s, "longest_s": config.data.max_utterance_s if training else None,
        "level_db": USUAL_DB,
    }  # fmt: skip


def _mapped(path: Path, rows: int, columns: int) -> Tensor:
    size = path.stat().st_size if path.is_file() else 0
    if size != (expected := rows * columns * BYTES):
        raise DataError(f"{path}: {size} bytes, expected {expected}; delete {path.parent}, and it is made anew")
    numbers = torch.from_file(str(path), shared=False, size=rows * columns) if size else torch.zeros(0)
    return numbers.view(rows, columns)
