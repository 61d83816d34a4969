"""The database of enrolled speakers, and open-set identification."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from speech_mtl.calibration import Calibration
from speech_mtl.exchange import export_speakers, import_speakers
from speech_mtl.naming import match_of
from speech_mtl.speakers import (
    APPLICATION_ID,
    SCHEMA_VERSION,
    Enrolled,
    SpeakerDatabase,
    SpeakerDatabaseError,
    Utterance,
    checked_name,
    default_path,
    is_unknown,
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
    np.testing.assert_allclose(np.linalg.norm(found.references, axis=1), 1, atol=1e-6)
    between = normalized(0.45 * AXES[0] + 0.55 * AXES[1])
    assert match_of(between, 1.0, found, Calibration.of(0.5, "")).name == "little"


def test_below_the_threshold_everybody_is_unknown() -> None:
    two = Enrolled(["ann", "bob"], AXES[:2], {})
    embedding = normalized(AXES[0] + AXES[2])  # cosine 0.707 with ann
    assert match_of(embedding, 1.0, two, Calibration.of(0.7, "")).name == "ann"
    assert match_of(AXES[1], 1.0, two, Calibration.of(1.0, "")).name == "bob"  # accepted from the threshold on
    match = match_of(embedding, 1.0, two, Calibration.of(0.71, ""))
    assert (match.name, match.best_name) == ("unknown", "ann") and match.score == pytest.approx(0.5**0.5)
    lowest, nobody = Calibration.of(-1, ""), Enrolled([], np.zeros((0, 0)), {})
    for found in (match_of(embedding, 1.0, nobody, lowest), match_of(None, 0.0, two, lowest)):
        assert (found.name, found.score, found.best_name, found.threshold) == ("unknown", None, None, -1)


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


STRANGERS = ["unknown", "Unknown", "unknown  1", "unknown_1", "unknown1", "UNKNOWN 12"]


@pytest.mark.parametrize("name", ["", "  ", *STRANGERS, "two\nlines", "tab\tin it"])
def test_names_that_cannot_be_used(database: SpeakerDatabase, name: str) -> None:
    with pytest.raises(SpeakerDatabaseError, match="speaker name"):
        database.add(name, AXES[0])
    assert not database.path.exists()


def test_one_name_is_one_however_it_is_written(database: SpeakerDatabase) -> None:
    composed, apart = "Jos\u00e9  Lu\u00eds", "Jose\u0301 Lui\u0301s"
    name = "Jos\u00e9 Lu\u00eds"
    assert checked_name(composed) == checked_name(apart) == name
    assert not is_unknown("unknown man") and is_unknown("unknown_3")
    database.add(composed, AXES[0])
    database.add(apart, AXES[1])
    assert counts(database) == {name: 2} and len(database.of(apart)) == 2
    with sqlite3.connect(database.path) as connection:  # as older versions wrote it
        connection.execute("UPDATE utterances SET speaker = ? WHERE id = 2", [apart])
        connection.execute("INSERT INTO utterances (speaker, embedding) VALUES ('unknown_1', ?)", [AXES[2].tobytes()])
    assert counts(database) == {name: 2, "unknown_1": 1}
    with pytest.raises(SpeakerDatabaseError, match="enrolled already"):
        database.rename("unknown_1", apart)
    database.merge("unknown_1 ", apart)
    assert counts(database) == {name: 3}
    database.rename(composed, "Ann  Lee")
    assert database.names() == ["Ann Lee"]
    database.remove(" Ann Lee ")
    with pytest.raises(SpeakerDatabaseError, match="nobody called 'Ann Lee'; enrolled: nobody"):
        database.of("Ann Lee")


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
    with pytest.raises(SpeakerDatabaseError, match="s.db: .*Not a directory"):
        SpeakerDatabase(text / "speakers" / "s.db", "model-1").add("ann", AXES[:1])


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
    exported = json.loads(json.dumps(export_speakers(database)))
    other = SpeakerDatabase(tmp_path / "other.db", None)
    assert import_speakers(other, exported, "x.json") == (["ann", "bob"], [])
    for name, own in database.utterances().items():
        for one, two in zip(own, other.utterances()[name], strict=True):
            np.testing.assert_allclose(one.embedding, two.embedding, atol=1e-6)
            assert (one.speech_s, one.quality, one.added) == (two.speech_s, two.quality, two.added)
    assert other.model_fingerprint() == "model-1"
    exported["speakers"] = {"cid": exported["speakers"]["ann"], "bob": exported["speakers"]["bob"]}
    with pytest.raises(SpeakerDatabaseError, match="'bob' enrolled already; rename or remove"):
        import_speakers(other, exported, "x.json")
    assert other.names() == ["ann", "bob"]


ROW = {"embedding": [1, 0, 0, 0], "speech_s": 2.0, "quality": None, "added": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "x.json has format 2; this version reads up to 1"), ({"speakers": {}}, "holds no speakers"),
        ({"fingerprint": "model-2"}, "belongs to another model"), ({"speakers": []}, "AttributeError.*expected what"),
        ({"speakers": {"eve": [ROW | {"embedding": [0, 0]}]}}, "ValueError"),
        ({"speakers": {"unknown": [1]}}, "speaker name"),
        ({"speakers": {"eve": [{"embedding": "a"}]}}, "ValueError.*expected what"),
        ({"speakers": {"eve": [ROW], "eve ": [ROW]}}, "'eve' is there twice, as 'eve ', too"),
        ({"speakers": {"eve": [ROW | {"quality": {"snr_db": "high"}}]}}, "quality .*; expected numbers by name"),
        ({"speakers": {"eve": [ROW | {"quality": [1]}]}}, "quality .*; expected numbers by name"),
        ({"speakers": {"eve": [ROW | {"speech_s": "long"}]}}, "speech_s of 'eve' is 'long'; expected a number"),
        ({"speakers": {"eve": [ROW | {"embedding": [10**400] * 4}]}}, "OverflowError"),
        ({"speakers": {"eve": [ROW | {"embedding": [1] * 5}]}}, "embeddings of 5 values; expected 4"),
        ({"calibration": 5}, "x.json: calibration: .*; expected what"),
        ({"calibration": {"bands": [{"thresholds": [0.5]}], "fingerprint": "model-2"}}, "belongs to other weights"),
    ],
)  # fmt: skip
def test_imports_that_are_refused(database: SpeakerDatabase, change: dict, message: str) -> None:
    database.add("ann", AXES[0])
    exported = export_speakers(database)
    exported["speakers"] = {"eve": exported["speakers"]["ann"]}
    with pytest.raises(SpeakerDatabaseError, match=message):
        import_speakers(database, exported | change, "x.json")
    assert database.names() == ["ann"]
    with pytest.raises(SpeakerDatabaseError, match="TypeError"):
        import_speakers(database, [1], "x.json")


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE utterances SET embedding = x'0000803f00' WHERE id = 2", "altered: an embedding of 'ann' of 5 bytes"),
        ("UPDATE utterances SET embedding = zeroblob(16) WHERE id = 2", "altered: an embedding of 'ann' of 16 bytes"),
        ("UPDATE utterances SET embedding = 'text' WHERE id = 1", "altered: an embedding of 'ann' 'text'; expected"),
        ("UPDATE utterances SET embedding = x'0000803f00'", "altered: an embedding of 'ann' of 5 bytes; expected"),
        ("UPDATE utterances SET speech_s = 'long' WHERE id = 2", "altered: seconds of 'ann': 'long'; expected a num"),
        ("UPDATE utterances SET quality = '[1]' WHERE id = 2", "altered: a quality of 'ann': .*; expected numbers by"),
        ("UPDATE utterances SET quality = '{' WHERE id = 2", "altered: a quality of 'ann': '{'; expected numbers by"),
        ("UPDATE utterances SET added = x'00' WHERE id = 2", "altered: a date of 'ann': b'.x00'; expected a text"),
        ("UPDATE utterances SET speaker = x'ff' WHERE id = 2", "altered: b'.xff' is no name"),
        ("UPDATE meta SET value = x'00'", "altered: it does not say whose model"),
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


def test_a_database_of_another_size_than_the_models_is_refused(database: SpeakerDatabase) -> None:
    database.add("ann", AXES[0])
    other = SpeakerDatabase(database.path, "model-1", 5)
    with pytest.raises(SpeakerDatabaseError, match="an embedding of 'ann' of 16 bytes; expected 20 bytes"):
        other.enrolled()
    with pytest.raises(SpeakerDatabaseError, match="embeddings of 4 values; expected 5"):
        other.add("bob", AXES[1])


def test_a_database_that_nobody_is_left_in_becomes_another_models(database: SpeakerDatabase, tmp_path: Path) -> None:
    database.add("ann", AXES[0])
    database.set_calibration("{}")
    made = SpeakerDatabase(tmp_path / "other.db", "model-2")
    made.add("bob", np.eye(5)[0])
    exported = export_speakers(made)
    database.remove("ann")
    assert SpeakerDatabase(database.path, "model-2").names() == [] and database.model_fingerprint() == "model-1"
    assert import_speakers(SpeakerDatabase(database.path, None), exported, "x.json") == (["bob"], [])
    again = SpeakerDatabase(database.path, None)
    assert again.model_fingerprint() == "model-2" and again.calibration() is None
    again.remove("bob")
    SpeakerDatabase(database.path, "model-1").add("ann", AXES[0])
    assert again.model_fingerprint() == "model-1" and again.names() == ["ann"]


def test_a_calibration_goes_with_its_speakers(database: SpeakerDatabase, tmp_path: Path) -> None:
    database.add("ann", AXES[0])
    database.set_calibration(Calibration.of(0.7, "here", "model-1").to_json())
    exported = json.loads(json.dumps(export_speakers(database)))
    other = SpeakerDatabase(tmp_path / "other.db", None)
    assert import_speakers(other, exported, "x.json") == (["ann"], [])
    assert Calibration.model_validate_json(other.calibration() or "") == Calibration.of(0.7, "here", "model-1")
    exported["speakers"] = {"bob": exported["speakers"]["ann"]}
    assert import_speakers(other, exported, "x.json") == (["bob"], [])  # the same one
    exported["speakers"] = {"cid": exported["speakers"]["bob"]}
    exported["calibration"]["measured_on"] = "elsewhere"
    _, [remark] = import_speakers(other, exported, "x.json")
    assert remark == f"the calibration of x.json is left out: {other.path} has one of its own"
    assert json.loads(other.calibration() or "")["measured_on"] == "here" and other.names() == ["ann", "bob", "cid"]


def test_default_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPEECH_MTL_SPEAKERS", str(tmp_path / "mine.db"))
    assert default_path() == tmp_path / "mine.db"
    monkeypatch.delenv("SPEECH_MTL_SPEAKERS")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_path() == tmp_path / ".local/share/speech_mtl/speakers.db"


def test_what_is_chosen_for_those_who_are_there_goes_before_anybody_else(database: SpeakerDatabase) -> None:
    """Two `enroll` of one recording at once would each find it new; a refusal leaves all as it was."""
    seen = []

    def choose(name: str, there: dict[str, list[Utterance]]) -> dict[str, list[Utterance]]:
        seen.append((name, list(there)))
        if name == "nobody":
            raise ValueError(f"beside {list(there)}")
        if name == "ann" and len(seen) == 3:  # inside the transaction
            other.start()
            other.join(0.3)
        return {name: [Utterance(AXES[0])]}

    other = threading.Thread(target=lambda: database.add_chosen(partial(choose, "bob")))
    with pytest.raises(ValueError, match=r"beside \[\]"):
        database.add_chosen(partial(choose, "nobody"))
    assert not database.path.exists()
    database.add_chosen(partial(choose, "ann"))
    other.join()
    assert seen[1:3] == [("ann", []), ("ann", [])] and seen[-1] == ("bob", ["ann"])
    with pytest.raises(ValueError, match="beside"):
        database.add_chosen(partial(choose, "nobody"))
    assert database.names() == ["ann", "bob"]
