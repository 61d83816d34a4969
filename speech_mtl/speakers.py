"""Enrolled speakers: an SQLite file of embeddings, and what names they may have.

One row per enrolment utterance; a speaker's reference is the mean of the normalised embeddings, normalised, so that
nobody gains by having enrolled more audio. Embeddings of two models do not compare: a database belongs to one model.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

UNKNOWN = "unknown"
SCHEMA_VERSION = 2
APPLICATION_ID = 0x534D544C  # "SMTL", in the file's header: tells our files from other programs' SQLite files
BUSY_TIMEOUT_S = 30.0
SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE utterances (
    id INTEGER PRIMARY KEY,
    speaker TEXT NOT NULL,
    embedding BLOB NOT NULL,
    added TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP,
    speech_s REAL,
    quality TEXT
);
CREATE INDEX utterances_speaker ON utterances (speaker);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""

UPGRADE = f"""
ALTER TABLE utterances ADD COLUMN speech_s REAL;
ALTER TABLE utterances ADD COLUMN quality TEXT;
PRAGMA user_version = {SCHEMA_VERSION};
"""
"""From version 1, which kept no more of an utterance than its embedding."""
READ = {
    1: "SELECT plain(speaker) AS name, embedding, added, NULL, NULL FROM utterances ORDER BY name, id",
    2: "SELECT plain(speaker) AS name, embedding, added, speech_s, quality FROM utterances ORDER BY name, id",
}


RENAME = "UPDATE utterances SET speaker = ? WHERE plain(speaker) = ?"


class SpeakerDatabaseError(ValueError):
    """A speaker database, or a name, that cannot be used; the message says what was found and what is accepted."""


@dataclass(frozen=True)
class Utterance:
    """An enrolment."""

    embedding: np.ndarray
    """(E,), of length 1."""
    speech_s: float | None = None
    """Seconds of speech; None where it was not measured."""
    quality: dict[str, float | None] | None = None
    """snr_db and clipped (a share) of the recording; None where they were not measured."""
    added: str | None = None
    """Date and time, UTC; None where it is not in a database yet."""


@dataclass(frozen=True)
class Enrolled:
    """The speakers of a database, as they were when it was read."""

    names: list[str]
    references: np.ndarray
    """(speakers, E), each of length 1."""
    utterances: dict[str, list[Utterance]]


def normalized(embeddings: np.ndarray) -> np.ndarray:
    """Vectors (..., E) at length 1. Raises ValueError for one that has no direction."""
    embeddings = np.asarray(embeddings, dtype=np.float32)
    norms = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    if not np.isfinite(norms).all() or (norms == 0).any():
        raise ValueError(f"embeddings of length {np.unique(norms).tolist()}; expected finite lengths above 0")
    return embeddings / norms


def default_path() -> Path:
    """$SPEECH_MTL_SPEAKERS, else ~/.local/share/speech_mtl/speakers.db ($XDG_DATA_HOME is followed)."""
    if place := os.environ.get("SPEECH_MTL_SPEAKERS"):
        return Path(place)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "speech_mtl" / "speakers.db"


class SpeakerDatabase:
    """The enrolled speakers of one model. Safe to use from several processes at once.

    `fingerprint` is the model's; None opens any model's database to list, rename or remove. `size` is that of its
    embeddings, where it is known. The file is made by the first `add`; before that the database is empty, and once
    nobody is left in it, it may become another model's. All methods raise SpeakerDatabaseError.
    """

    def __init__(self, path: str | Path, fingerprint: str | None, size: int | None = None):
        self.path, self.fingerprint, self.size = Path(path), fingerprint, size
        if self.path.is_dir():
            raise SpeakerDatabaseError(f"speaker database {self.path} is a folder; expected a file")
        if self._is_there():
            with self._transaction():  # refuse a wrong file now, not after an hour of audio
                pass

    def add(self, name: str, embeddings: np.ndarray) -> None:
        """Enrol utterances (n, E) of a speaker, beside those enrolled before."""
        self.add_utterances({name: [Utterance(row) for row in np.atleast_2d(embeddings)]})

    def add_utterances(
        self, speakers: Mapping[str, Sequence[Utterance]], only_new: bool = False, calibration: str | None = None
    ) -> None:
        """Enrol utterances of speakers, all or none; with `only_new` names that are there already are refused.

        A calibration is kept beside them where there is none yet.
        """
        for name in speakers:
            checked_name(name)
        with self._transaction(write=True) as connection:
            self._insert(connection, speakers, only_new, calibration)

    def add_chosen(self, choose: Callable[[dict[str, list[Utterance]]], Mapping[str, Sequence[Utterance]]]) -> None:
        """Enrol what `choose` gives for those that are there; no other process adds any meanwhile.

        Where it raises, nothing is changed. Of a file that is not there yet it is asked twice.
        """
        if not self._is_there():
            choose({})  # a refusal makes no file
        with self._transaction(write=True) as connection:
            self._insert(connection, choose(self._parsed(connection.execute(READ[SCHEMA_VERSION]).fetchall())))

    def _insert(
        self, connection: sqlite3.Connection, speakers: Mapping[str, Sequence[Utterance]], only_new: bool = False,
        calibration: str | None = None,
    ) -> None:  # fmt: skip
        rows = [(checked_name(name), utterance) for name, own in speakers.items() for utterance in own]
        embeddings_NE = normalized(np.stack([utterance.embedding for _, utterance in rows]))
        known = connection.execute("SELECT length(embedding) / 4 FROM utterances LIMIT 1").fetchone()
        expected = self.size or (known[0] if known else embeddings_NE.shape[1])
        if expected != embeddings_NE.shape[1]:
            found = f"embeddings of {embeddings_NE.shape[1]} values"
            raise SpeakerDatabaseError(f"{self.path}: {found}; expected {expected}")
        if calibration is not None:
            connection.execute("INSERT OR IGNORE INTO meta VALUES ('calibration', ?)", [calibration])
        there = {row[0] for row in connection.execute("SELECT DISTINCT plain(speaker) FROM utterances")}
        if only_new and (taken := sorted(there & {name for name, _ in rows})):
            names = ", ".join(f"'{name}'" for name in taken)
            raise SpeakerDatabaseError(f"{self.path}: {names} enrolled already; rename or remove them first")
        values = [
            (name, row.astype("<f4").tobytes(), one.added, one.speech_s, one.quality and json.dumps(one.quality))
            for (name, one), row in zip(rows, embeddings_NE, strict=True)
        ]
        connection.executemany(
            "INSERT INTO utterances (speaker, embedding, added, speech_s, quality) "
            "VALUES (?, ?, coalesce(?, CURRENT_TIMESTAMP), ?, ?)",
            values,
        )

    def names(self) -> list[str]:
        """The enrolled speakers, sorted."""
        return list(self.utterances())

    def utterances(self) -> dict[str, list[Utterance]]:
        """What is enrolled, by speaker, sorted by name."""
        return self._parsed(self._read())

    def _parsed(self, rows: list[tuple]) -> dict[str, list[Utterance]]:
        found: dict[str, list[Utterance]] = {}
        size = None if self.size is None else 4 * self.size
        for name, blob, added, speech_s, quality in rows:
            if not isinstance(name, str):
                raise SpeakerDatabaseError(f"speaker database {self.path} was altered: {name!r:.40} is no name")
            size = len(blob) if size is None and isinstance(blob, bytes) else size
            if not isinstance(blob, bytes) or len(blob) != size or size % 4 or not _is_unit(blob):
                there = f"of {len(blob)} bytes" if isinstance(blob, bytes) else f"{blob!r:.40}"
                whole = f"{size} bytes that hold" if size and size % 4 == 0 else "bytes, four a number, that hold"
                raise self._altered(f"an embedding of '{name}' {there}; expected {whole} a vector of length 1")
            if not (speech_s is None or is_number(speech_s)):
                raise self._altered(f"seconds of '{name}': {speech_s!r:.40}; expected a number")
            if not isinstance(added, str):
                raise self._altered(f"a date of '{name}': {added!r:.40}; expected a text")
            try:
                marks = quality_of(None if quality is None else json.loads(quality))
            except (ValueError, TypeError):
                raise self._altered(f"a quality of '{name}': {quality!r:.40}; expected numbers by name") from None
            found.setdefault(name, []).append(Utterance(np.frombuffer(blob, dtype="<f4"), speech_s, marks, added))
        return found

    def _altered(self, what: str) -> SpeakerDatabaseError:
        hint = "`speech-mtl speakers remove` forgets it"
        return SpeakerDatabaseError(f"speaker database {self.path} was altered: {what}; {hint}")

    def of(self, name: str) -> list[Utterance]:
        """What is enrolled of a speaker."""
        enrolled = self.utterances()
        if (own := enrolled.get(plain(name))) is None:
            there = f"enrolled: {', '.join(enrolled) or 'nobody'}"
            raise SpeakerDatabaseError(f"{self.path}: nobody called '{plain(name)}'; {there}")
        return own

    def enrolled(self) -> Enrolled:
        """The speakers, with one normalised reference each."""
        by_name = self.utterances()
        means = [np.mean([one.embedding for one in own], axis=0) for own in by_name.values()]
        references = normalized(np.stack(means)) if means else np.zeros((0, 0), dtype=np.float32)
        return Enrolled(list(by_name), references, by_name)

    def calibration(self) -> str | None:
        """The calibration that was stored here for the database's model, as JSON."""
        found = self._meta().get("calibration")
        return None if found is None else str(found)

    def set_calibration(self, text: str) -> None:
        """Store a calibration; it goes before that of the model's folder."""
        with self._transaction(write=True) as connection:
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('calibration', ?)", [text])

    def model_fingerprint(self) -> str | None:
        """That of the database's model; None where there is no file yet."""
        return self._meta().get("fingerprint")

    def remove(self, name: str) -> None:
        """Forget a speaker."""
        name = plain(name)
        self._expect_file(name)
        with self._transaction(write=True) as connection:
            if not connection.execute("DELETE FROM utterances WHERE plain(speaker) = ?", [name]).rowcount:
                raise self._nobody(connection, name)

    def rename(self, old: str, new: str) -> None:
        """Give a speaker another name, which nobody has yet."""
        old, new = plain(old), checked_name(new)
        self._expect_file(old)
        with self._transaction(write=True) as connection:
            if connection.execute("SELECT 1 FROM utterances WHERE plain(speaker) = ?", [new]).fetchone():
                raise SpeakerDatabaseError(
                    f"{self.path}: '{new}' is enrolled already; `speech-mtl speakers merge` makes two one"
                )
            if not connection.execute(RENAME, [new, old]).rowcount:
                raise self._nobody(connection, old)

    def merge(self, source: str, target: str) -> None:
        """Make two enrolled names one: the utterances of `source` become those of `target`."""
        source, target = plain(source), plain(target)
        self._expect_file(source)
        if source == target:
            raise SpeakerDatabaseError(f"'{source}' cannot be merged into itself; expected two names")
        with self._transaction(write=True) as connection:
            for name in (source, target):
                if not connection.execute("SELECT 1 FROM utterances WHERE plain(speaker) = ?", [name]).fetchone():
                    raise self._nobody(connection, name)
            connection.execute(RENAME, [target, source])

    def _expect_file(self, name: str) -> None:
        if not self._is_there():
            raise SpeakerDatabaseError(f"{self.path}: nobody called '{name}'; nobody is enrolled there")

    def _nobody(self, connection: sqlite3.Connection, name: str) -> SpeakerDatabaseError:
        names = [str(row[0]) for row in connection.execute("SELECT DISTINCT plain(speaker) FROM utterances ORDER BY 1")]
        return SpeakerDatabaseError(f"{self.path}: nobody called '{name}'; enrolled: {', '.join(names) or 'nobody'}")

    def _read(self) -> list[tuple]:
        if not self._is_there():
            return []
        with self._transaction() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            return connection.execute(READ[version]).fetchall()

    def _meta(self) -> dict[str, str]:
        if not self._is_there():
            return {}
        with self._transaction() as connection:
            return dict(connection.execute("SELECT key, value FROM meta").fetchall())

    def _is_there(self) -> bool:
        """A file of 0 bytes is a database that another process is about to make."""
        return self.path.exists() and self.path.stat().st_size > 0

    @contextmanager
    def _transaction(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        """A checked connection inside one transaction: all of it happens, or nothing.

        A writer takes its lock at the start (IMMEDIATE) and waits for others up to BUSY_TIMEOUT_S. The rollback journal
        is kept, not WAL: writes are rare, and it works on network file systems and in read-only folders, too.
        """
        # readers ask for `rw`, too: after a crash the next one has to roll back (a write-protected file is only read)
        uri = f"{self.path.absolute().as_uri()}?mode={'rwc' if write else 'rw'}"
        try:
            if write:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise SpeakerDatabaseError(f"speaker database {self.path}: {error}") from None
        connection.create_function("plain", 1, plain, deterministic=True)  # names may be written in another way
        try:
            connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            self._check(connection, write)
            yield connection
            connection.execute("COMMIT")
        except sqlite3.OperationalError as error:  # locked, disk full, read-only, a table that is missing
            busy = f"; another program has held it for {BUSY_TIMEOUT_S:g} s" if "locked" in str(error) else ""
            raise SpeakerDatabaseError(f"speaker database {self.path}: {error}{busy}") from None
        except sqlite3.DatabaseError as error:
            message = f"{self.path} is not a speaker database: {error}; expected a file made by `speech-mtl enroll`"
            raise SpeakerDatabaseError(message) from None
        finally:
            connection.close()  # rolls back what was not committed

    def _check(self, connection: sqlite3.Connection, write: bool) -> None:
        """Refuse another program's file, a newer schema, another model; lay out an empty file."""
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not tables and not application and write:
            if self.fingerprint is None:
                raise SpeakerDatabaseError(f"speaker database {self.path}: making it needs the model's fingerprint")
            _run(connection, SCHEMA)
            connection.execute("INSERT INTO meta VALUES ('fingerprint', ?)", [self.fingerprint])
            return
        if application != APPLICATION_ID:
            raise SpeakerDatabaseError(f"{self.path} is not a speaker database; `speech-mtl enroll` makes one")
        if not 1 <= version <= SCHEMA_VERSION:
            raise SpeakerDatabaseError(
                f"speaker database {self.path} has format {version}; this version reads up to {SCHEMA_VERSION}"
            )
        row = connection.execute("SELECT value FROM meta WHERE key = 'fingerprint'").fetchone()
        if row is None or not isinstance(row[0], str):
            raise SpeakerDatabaseError(f"speaker database {self.path} was altered: it does not say whose model's it is")
        found = row[0]
        if self.fingerprint not in (None, found):
            if connection.execute("SELECT 1 FROM utterances LIMIT 1").fetchone():
                raise SpeakerDatabaseError(
                    f"speaker database {self.path} belongs to another model (fingerprint {found}, this model's is "
                    f"{self.fingerprint}); use that model, or enrol anew in another file (--db)"
                )
            if write:  # nobody is left of the other model's
                connection.execute("DELETE FROM meta WHERE key = 'calibration'")
                connection.execute("UPDATE meta SET value = ? WHERE key = 'fingerprint'", [self.fingerprint])
        if write and version < SCHEMA_VERSION:
            _run(connection, UPGRADE)


def _run(connection: sqlite3.Connection, statements: str) -> None:
    """Inside the transaction; `executescript` would commit."""
    for statement in statements.strip().removesuffix(";").split(";"):
        connection.execute(statement)


def _is_unit(blob: bytes) -> bool:
    return bool(np.isclose(np.linalg.norm(np.frombuffer(blob, dtype="<f4")), 1, atol=1e-3))


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def quality_of(values: object) -> dict[str, float | None] | None:
    """What is known of a recording's quality. Raises ValueError where it is no numbers by name."""
    if values is None:
        return None
    if not isinstance(values, dict) or not all(value is None or is_number(value) for value in values.values()):
        raise ValueError(f"quality {values!r:.40}; expected numbers by name")
    return values


def plain(name: Any) -> Any:
    """A name as it is compared: composed letters (NFC), one space between words and none around them."""
    return re.sub(" +", " ", unicodedata.normalize("NFC", name).strip()) if isinstance(name, str) else name


def checked_name(name: str) -> str:
    """A speaker's name in its `plain` form. Raises SpeakerDatabaseError for one that cannot be used."""
    name = plain(name)
    if not name or is_unknown(name) or not name.isprintable():
        raise SpeakerDatabaseError(f"speaker name {name!r}; expected a printable name other than '{UNKNOWN}'")
    return name


def is_unknown(name: str) -> bool:
    """Whether this is no name but a label of one that is not enrolled: 'unknown', 'unknown 1', 'unknown_1', ..."""
    return re.fullmatch(rf"{UNKNOWN}([ _]?\d+)?", name.lower()) is not None


def is_right(speaker: str | None, true_speaker: str) -> bool:
    """Whether a segment's speaker is the true one; every 'unknown n' is right for a stranger."""
    return speaker == true_speaker or (true_speaker == UNKNOWN and speaker is not None and is_unknown(speaker))
