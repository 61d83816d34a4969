"""transcribe: where its results go, and what becomes of those that cannot be written or are in other letters."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile
from conftest import RATE
from test_cli import call
from test_recognizer import save_tiny, speech

from speech_mtl.terminal import write_all_characters


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with recordings, and a speaker database of its own."""
    monkeypatch.setenv("SPEECH_MTL_SPEAKERS", str(tmp_path / "speakers.db"))
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", speech(1.5, seed=i), RATE)
    return tmp_path


def test_a_result_that_cannot_be_written_is_listed_and_the_others_are(place: Path, model: Path) -> None:
    (place / "out" / "0.txt").mkdir(parents=True)
    result = call("transcribe", *(place / f"{i}.wav" for i in range(3)), "-m", model, "--out", place / "out")
    assert result.exit_code == 1 and (place / "out" / "1.txt").is_file() and (place / "out" / "2.txt").is_file()
    summary = "2 of 3 files done; not done:"
    assert result.stderr.strip().splitlines()[-2:] == [summary, f"error: {place / 'out' / '0.txt'}: Is a directory"]
    result = call("transcribe", place / "0.wav", place / "1.wav", "-m", model, "--out", place / "0.wav")
    assert result.exit_code == 2 and "expected a folder" in " ".join(result.stderr.replace("│", " ").split())


def test_a_result_that_cannot_be_written_leaves_the_last_one(
    place: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("transcribe", place / "0.wav", "-m", model, "--out", place / "out").exit_code == 0
    before = (place / "out" / "0.txt").read_bytes()

    def full(path: Path, text: str, **options: Any) -> None:
        path.write_bytes(text.encode()[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    result = call("transcribe", place / "0.wav", "-m", model, "--out", place / "out")
    assert result.exit_code == 1 and f"{place / 'out' / '0.txt'}: No space left on device" in result.stderr
    assert before and [(path.name, path.read_bytes()) for path in (place / "out").iterdir()] == [("0.txt", before)]


def test_no_recording_is_replaced_by_its_transcript(place: Path, model: Path) -> None:
    (place / "0.wav").rename(place / "0.txt")
    (place / "out").mkdir()
    (place / "out" / "1.txt").hardlink_to(place / "2.wav")
    for files, out in ((["0.txt", "1.wav"], place), (["1.wav", "2.wav"], place / "out")):
        before = [(place / name).read_bytes() for name in files]
        result = call("transcribe", *(place / name for name in files), "-m", model, "--out", out)
        assert result.exit_code == 2 and [(place / name).read_bytes() for name in files] == before
        assert "which is read and would be lost" in " ".join(result.stderr.replace("│", " ").split())


def test_a_pipe_gets_utf_8_whatever_the_locale(place: Path, model: Path) -> None:
    (place / "0.wav").rename(place / "日本.wav")
    env = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "speech_mtl", "transcribe", place / "日本.wav", "-m", model]
    done = subprocess.run(command, capture_output=True, env=env)
    assert done.returncode == 0 and "日本.wav  1.50 s" in done.stdout.decode(), done.stderr.decode()


def test_a_terminal_shows_escapes_of_what_its_encoding_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.BytesIO):
        def isatty(self) -> bool:
            return True

    screen = Screen()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(screen, encoding="cp1252", write_through=True))
    monkeypatch.setattr("sys.stderr", io.StringIO())
    write_all_characters()
    print("Zoë ≥ 0.5")
    assert screen.getvalue().splitlines() == ["Zoë \\u2265 0.5".encode("cp1252")]
