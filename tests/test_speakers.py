"""The database of enrolled speakers, and open-set identification."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from speech_mtl.speakers import (
    SCHEMA_VERSION,
    SpeakerDatabase,
    SpeakerDatabaseError,
    default_path,
    identify,
    normalized,
)

AXES = np.eye(4, dtype=np.float32)


@pytest.fixture
def database(tmp_path: Path) -> SpeakerDatabase:
    return SpeakerDatabase(tmp_path / "folder" / "speakers.db", "model-1")


def test_reference_is_the_normalised_mean_of_normalised_embeddings(database: SpeakerDatabase) -> None:
    database.add("ann", np.stack([10 * AXES[0], AXES[1]]))  # a loud embedding counts no more than the other
    names, references = SpeakerDatabase(database.path, "model-1").references()
    assert names == ["ann"]
    np.testing.assert_allclose(references, [[0.5**0.5, 0.5**0.5, 0, 0]], atol=1e-6)


def test_who_enrols_most_audio_does_not_win(database: SpeakerDatabase) -> None:
    rng = np.random.default_rng(0)
    database.add("much", AXES[0] + 0.3 * rng.standard_normal((200, 4)))
    database.add("little", AXES[1])
    names, references = database.references()
    np.testing.assert_allclose(np.linalg.norm(references, axis=1), 1, atol=1e-6)
    between = normalized(0.45 * AXES[0] + 0.55 * AXES[1])
    assert identify(between, names, references, threshold=0.5).name == "little"


def test_below_the_threshold_everybody_is_unknown() -> None:
    names, references = ["ann", "bob"], AXES[:2]
    embedding = normalized(AXES[0] + AXES[2])  # cosine 0.707 with ann
    assert identify(embedding, names, references, threshold=0.7).name == "ann"
    match = identify(embedding, names, references, threshold=0.71)
    assert (match.name, match.best_name) == ("unknown", "ann") and match.score == pytest.approx(0.5**0.5)
    nobody = identify(embedding, [], np.zeros((0, 0)), threshold=-1)
    assert (nobody.name, nobody.score, nobody.best_name) == ("unknown", None, None)


def test_list_remove_rename(database: SpeakerDatabase) -> None:
    assert database.names() == [] and not database.path.exists()
    database.add("bob", AXES[:3])
    database.add(" ann ", AXES[0])
    database.add("ann", AXES[1])
    assert database.counts() == {"ann": 2, "bob": 3}
    database.rename("bob", "Bob Müller")
    database.remove("ann")
    assert database.names() == ["Bob Müller"]
    for action in (lambda: database.remove("ann"), lambda: database.rename("ann", "eve")):
        with pytest.raises(SpeakerDatabaseError, match="nobody called 'ann'; enrolled: Bob Müller"):
            action()
    database.add("ann", AXES[0])
    with pytest.raises(SpeakerDatabaseError, match="'ann' is enrolled already"):
        database.rename("Bob Müller", "ann")


@pytest.mark.parametrize("name", ["", "  ", "unknown", "Unknown", "two\nlines", "tab\tin it"])
def test_names_that_cannot_be_used(database: SpeakerDatabase, name: str) -> None:
    with pytest.raises(SpeakerDatabaseError, match="speaker name"):
        database.add(name, AXES[0])
    assert not database.path.exists()


@pytest.mark.parametrize("embedding", [np.zeros(4), np.array([1.0, np.nan, 0, 0])])
def test_embeddings_without_a_direction_are_refused(database: SpeakerDatabase, embedding: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite lengths above 0"):
        database.add("ann", embedding)


def test_another_models_database_is_refused(database: SpeakerDatabase) -> None:
    database.add("ann", AXES[0])
    with pytest.raises(SpeakerDatabaseError, match="another model.*model-1.*model-2"):
        SpeakerDatabase(database.path, "model-2")
    assert SpeakerDatabase(database.path, None).names() == ["ann"]  # to list and remove, no model is needed
    with pytest.raises(SpeakerDatabaseError, match="expected 4"):
        database.add("bob", np.ones(5))


def test_a_newer_format_is_refused(database: SpeakerDatabase) -> None:
    database.add("ann", AXES[0])
    with sqlite3.connect(database.path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(SpeakerDatabaseError, match=f"has format {SCHEMA_VERSION + 1}; this version reads up to"):
        SpeakerDatabase(database.path, "model-1")


def test_files_that_are_no_speaker_database_are_refused_and_kept(tmp_path: Path) -> None:
    text, other = tmp_path / "notes.txt", tmp_path / "other.db"
    text.write_text("my notes, long enough to be looked at as a header of an SQLite file" * 20)
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE recipes (cake TEXT)")
    for path in (text, other):
        before = path.read_bytes()
        with pytest.raises(SpeakerDatabaseError, match="not a speaker database"):
            SpeakerDatabase(path, "model-1")
        assert path.read_bytes() == before
    with pytest.raises(SpeakerDatabaseError, match="is a folder"):
        SpeakerDatabase(tmp_path, "model-1")


def test_a_failed_add_leaves_nothing_behind(database: SpeakerDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    database.add("ann", AXES[:2])
    with sqlite3.connect(database.path) as connection:  # the third row fails, as on a full disk
        connection.execute(
            "CREATE TRIGGER full BEFORE INSERT ON utterances WHEN (SELECT count(*) FROM utterances) >= 4 "
            "BEGIN SELECT raise(ABORT, 'disk is full'); END"
        )
    with pytest.raises(SpeakerDatabaseError, match="disk is full"):
        database.add("bob", AXES)
    assert database.counts() == {"ann": 2}


def test_processes_that_enrol_at_once_lose_nothing(tmp_path: Path) -> None:
    path, each = tmp_path / "speakers.db", 25
    script = (
        "import sys, numpy as np\nfrom speech_mtl.speakers import SpeakerDatabase\n"
        f"for i in range({each}):\n"
        "    SpeakerDatabase(sys.argv[1], 'model-1').add(sys.argv[2], np.eye(4)[i % 4])\n"
        "    assert sys.argv[2] in SpeakerDatabase(sys.argv[1], 'model-1').names()\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(path), name], stderr=subprocess.PIPE, text=True)
        for name in ("ann", "bob", "cid")
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert SpeakerDatabase(path, "model-1").counts() == {"ann": each, "bob": each, "cid": each}


def test_default_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPEECH_MTL_SPEAKERS", str(tmp_path / "mine.db"))
    assert default_path() == tmp_path / "mine.db"
    monkeypatch.delenv("SPEECH_MTL_SPEAKERS")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_path() == tmp_path / ".local/share/speech_mtl/speakers.db"
