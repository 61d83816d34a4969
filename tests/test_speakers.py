"""The database of enrolled speakers, and open-set identification."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from speech_mtl.speakers import (
    APPLICATION_ID,
    SCHEMA_VERSION,
    SpeakerDatabase,
    SpeakerDatabaseError,
    Utterance,
    default_path,
    identify,
    normalized,
)

AXES = np.eye(4, dtype=np.float32)


def counts(database: SpeakerDatabase) -> dict[str, int]:
    return {name: len(own) for name, own in database.utterances().items()}


@pytest.fixture
def database(tmp_path: Path) -> SpeakerDatabase:
    return SpeakerDatabase(tmp_path / "folder" / "speakers.db", "model-1")


def test_reference_is_the_normalised_mean_of_normalised_embeddings(database: SpeakerDatabase) -> None:
    database.add("ann", np.stack([10 * AXES[0], AXES[1]]))  # a loud embedding counts no more than the other
    found = SpeakerDatabase(database.path, "model-1").enrolled()
    assert found.names == ["ann"]
    np.testing.assert_allclose(found.references, [[0.5**0.5, 0.5**0.5, 0, 0]], atol=1e-6)


def test_who_enrols_most_audio_does_not_win(database: SpeakerDatabase) -> None:
    rng = np.random.default_rng(0)
    database.add("much", AXES[0] + 0.3 * rng.standard_normal((200, 4)))
    database.add("little", AXES[1])
    found = database.enrolled()
    names, references = found.names, found.references
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
    assert counts(database) == {"ann": 2, "bob": 3}
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
    assert counts(database) == {"ann": 2}


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
    assert counts(SpeakerDatabase(path, "model-1")) == {"ann": each, "bob": each, "cid": each}


def version_1(path: Path) -> None:
    """A database as the first version wrote it."""
    with sqlite3.connect(path) as connection:
        connection.executescript(
            "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);"
            "CREATE TABLE utterances (id INTEGER PRIMARY KEY, speaker TEXT NOT NULL, embedding BLOB NOT NULL, "
            "added TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP);"
            "CREATE INDEX utterances_speaker ON utterances (speaker);"
            f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 1;"
            "INSERT INTO meta VALUES ('fingerprint', 'model-1');"
        )
        connection.execute("INSERT INTO utterances (speaker, embedding) VALUES ('ann', ?)", [AXES[0].tobytes()])


def test_version_1_is_read_as_it_is_and_upgraded_by_the_first_write(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    version_1(path)
    before = path.read_bytes()
    database = SpeakerDatabase(path, "model-1")
    (one,) = database.utterances()["ann"]
    assert (one.speech_s, one.quality) == (None, None) and one.added
    assert path.read_bytes() == before
    database.add_utterances({"ann": [Utterance(AXES[1], 2.5, {"snr_db": 30.0, "clipped": 0.0})]})
    old, new = SpeakerDatabase(path, "model-1").utterances()["ann"]
    assert (old.added, old.speech_s, new.speech_s, new.quality) == (
        one.added,
        None,
        2.5,
        {"snr_db": 30.0, "clipped": 0.0},
    )
    np.testing.assert_array_equal([old.embedding, new.embedding], AXES[:2])
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION


def test_merge(database: SpeakerDatabase) -> None:
    database.add("ann", AXES[:2])
    database.add("anne", AXES[2])
    database.merge("anne", "ann")
    assert counts(database) == {"ann": 3}
    for pair, message in ((("eve", "ann"), "nobody called 'eve'"), (("ann", "eve"), "nobody called 'eve'"),
                          (("ann", "ann"), "expected two names")):  # fmt: skip
        with pytest.raises(SpeakerDatabaseError, match=message):
            database.merge(*pair)
    assert counts(database) == {"ann": 3}


def test_export_and_import_give_the_same(database: SpeakerDatabase, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    database.add_utterances({"ann": [Utterance(rng.normal(size=4), 3.25, {"snr_db": None, "clipped": 0.5})]})
    database.add("bob", AXES[:2])
    exported = json.loads(json.dumps(database.export()))
    other = SpeakerDatabase(tmp_path / "other.db", None)
    assert other.import_(exported, "x.json") == ["ann", "bob"]
    for name, own in database.utterances().items():
        for one, two in zip(own, other.utterances()[name], strict=True):
            np.testing.assert_allclose(one.embedding, two.embedding, atol=1e-6)
            assert (one.speech_s, one.quality, one.added) == (two.speech_s, two.quality, two.added)
    assert other.model_fingerprint() == "model-1"
    exported["speakers"] = {"cid": exported["speakers"]["ann"], "bob": exported["speakers"]["bob"]}
    with pytest.raises(SpeakerDatabaseError, match="'bob' enrolled already; rename or remove"):
        other.import_(exported, "x.json")
    assert other.names() == ["ann", "bob"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "x.json has format 2; this version reads up to 1"), ({"speakers": {}}, "holds no speakers"),
        ({"fingerprint": "model-2"}, "belongs to another model"), ({"speakers": []}, "AttributeError.*expected what"),
        ({"speakers": {"eve": [{"embedding": [0, 0]}]}}, "ValueError"),
        ({"speakers": {"unknown": [1]}}, "speaker name"),
        ({"speakers": {"eve": [{"embedding": "a"}]}}, "ValueError.*expected what"),
    ],
)  # fmt: skip
def test_imports_that_are_refused(database: SpeakerDatabase, change: dict, message: str) -> None:
    database.add("ann", AXES[0])
    exported = database.export()
    exported["speakers"] = {"eve": exported["speakers"]["ann"]}
    with pytest.raises(SpeakerDatabaseError, match=message):
        database.import_(exported | change, "x.json")
    assert database.names() == ["ann"]
    with pytest.raises(SpeakerDatabaseError, match="TypeError"):
        database.import_([1], "x.json")


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE utterances SET embedding = x'0000803f00' WHERE id = 2", "altered: an embedding of 'ann' of 5 bytes"),
        ("UPDATE utterances SET embedding = zeroblob(16) WHERE id = 2", "altered: an embedding of 'ann' of 16 bytes"),
        ("DROP TABLE utterances", "no such table: utterances"), ("DELETE FROM meta", "does not say whose model"),
    ],
)  # fmt: skip
def test_an_altered_database_is_refused(database: SpeakerDatabase, statement: str, message: str) -> None:
    database.add("ann", AXES[:3])
    with sqlite3.connect(database.path) as connection:
        connection.execute(statement)
    with pytest.raises(SpeakerDatabaseError, match=message):
        SpeakerDatabase(database.path, "model-1").enrolled()


def test_a_locked_database_is_said_to_be(database: SpeakerDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    database.add("ann", AXES[0])
    monkeypatch.setattr("speech_mtl.speakers.BUSY_TIMEOUT_S", 0.05)
    holder = sqlite3.connect(database.path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(SpeakerDatabaseError, match="database is locked; another program has held it for 0.05 s"):
            database.add("bob", AXES[1])
    finally:
        holder.close()
    assert database.names() == ["ann"]


def test_a_calibration_is_kept_with_the_model_it_belongs_to(database: SpeakerDatabase) -> None:
    assert database.calibration() is None
    database.set_calibration("{}")  # before anybody is enrolled
    assert SpeakerDatabase(database.path, None).calibration() == "{}" and database.model_fingerprint() == "model-1"
    assert database.names() == []


def test_default_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPEECH_MTL_SPEAKERS", str(tmp_path / "mine.db"))
    assert default_path() == tmp_path / "mine.db"
    monkeypatch.delenv("SPEECH_MTL_SPEAKERS")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_path() == tmp_path / ".local/share/speech_mtl/speakers.db"
