"""Kept frames where several runs keep them; what they train is in test_frozen.py."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import make_corpus
from test_frozen import branch_values, recogniser

from speech_mtl import frame_cache
from speech_mtl.config import parse_config
from speech_mtl.data import DataError, read_cuts
from speech_mtl.initial import prepare_model
from speech_mtl.mixture import read_training


def test_an_id_that_is_there_twice(corpus: dict[str, str], tmp_path: Path) -> None:
    """Also where its frames are kept already: which of them were an utterance's could not be told."""
    cuts = [cut.with_id("twice") if i < 2 else cut for i, cut in enumerate(read_cuts([corpus["dev"]]))]
    path = tmp_path / "cuts.jsonl"
    path.write_text("\n".join(json.dumps(cut.to_dict()) for cut in cuts))
    values = branch_values(corpus, recogniser(tmp_path / "asr", corpus), cache=str(tmp_path / "frames"))
    model = prepare_model(parse_config(values, "x"))[0].eval()
    with pytest.raises(DataError, match=r"trunk\.cache: manifest .*cuts\.jsonl: cut 'twice' is there 2 times"):
        frame_cache.make(model, str(path), False, print, lambda share: None)
    frame_cache.make(model, corpus["dev"], False, print, lambda share: None)
    folder = frame_cache.folder_of(model, corpus["dev"], False)
    index = json.loads((folder / frame_cache.INDEX).read_text())
    index["ids"][1] = index["ids"][0]
    (folder / frame_cache.INDEX).write_text(json.dumps(index))
    with pytest.raises(DataError, match="is there 2 times"):
        frame_cache.FrameCache(model, {corpus["dev"]: folder})
    values["data"] |= {"train": [str(path)], "permute": ["speaker"]}
    with pytest.raises(DataError, match=r"data\.permute: manifest .*cuts\.jsonl: cut 'twice' is there 2 times"):
        read_training(parse_config(values | {"trunk": {}}, "x"))


def test_two_runs_that_keep_the_same_frames_at_once(
    corpus: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = branch_values(corpus, recogniser(tmp_path / "asr", corpus), cache=str(tmp_path / "frames"))
    model = prepare_model(parse_config(values, "x"))[0].eval()
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: shutil.copytree(*paths) and replace(*paths))  # the other is first
    frame_cache.make(model, corpus["dev"], False, print, lambda share: None)
    assert list((tmp_path / "frames").iterdir()) == [frame_cache.folder_of(model, corpus["dev"], False)]
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        frame_cache.make(model, corpus["train"], True, print, lambda share: None)


def test_recordings_that_are_away_while_frames_are_made(corpus: dict[str, str], tmp_path: Path) -> None:
    values = branch_values(corpus, recogniser(tmp_path / "asr", corpus), cache=str(tmp_path / "frames"))
    model = prepare_model(parse_config(values, "x"))[0].eval()
    manifest = str(make_corpus(tmp_path / "corpus", 1, seed=3))
    first, *others = sorted((tmp_path / "corpus").glob("*.wav"))
    for path in (first, *others):
        path.rename(path.with_suffix(".away"))
    with pytest.raises(DataError, match=r"manifest .*: none of 3 recordings could be read; the first: .*\.wav"):
        frame_cache.make(model, manifest, False, print, lambda share: None)
    for path in others:
        path.with_suffix(".away").rename(path)
    frame_cache.make(model, manifest, False, print, lambda share: None)
    folder = frame_cache.folder_of(model, manifest, False)
    (batch,) = frame_cache.FrameCache(model, {manifest: folder}).utterances(model, read_cuts([manifest]))
    (failed,) = batch.failed
    assert len(batch.cuts) == 2 and f"(when {folder} was made; delete it to try again)" in failed[1]
