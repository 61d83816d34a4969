"""Kept frames where several runs keep them; what they train is in test_frozen.py."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from test_frozen import branch_values, recogniser

from speech_mtl import frame_cache
from speech_mtl.config import parse_config
from speech_mtl.initial import prepare_model


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
