"""Enrolled speakers: an SQLite file of embeddings, and the question whose voice an embedding is.

One row per enrolment utterance; a speaker's reference is the mean of the normalised embeddings, normalised, so that
nobody gains by having enrolled more audio. Embeddings of two models do not compare: a database belongs to one model.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

UNKNOWN = "unknown"
SCHEMA_VERSION = 1
APPLICATION_ID = 0x534D544C  # "SMTL", in the file's header: tells our files from other programs' SQLite files
BUSY_TIMEOUT_S = 30.0
SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE utterances (
    id INTEGER PRIMARY KEY,
    speaker TEXT NOT NULL,
    embedding BLOB NOT NULL,
    added TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE INDEX utterances_speaker ON utterances (speaker);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""


class SpeakerDatabaseError(ValueError):
    """A speaker database, or a name, that cannot be used; the message says what was found and what is accepted."""


@dataclass(frozen=True)
class Match:
    """Whose voice it is: `name` is 'unknown' where the best score is below the threshold, or nobody is enrolled."""

    name: str
    score: float | None
    """Cosine with the best reference, -1 to 1; None where nobody is enrolled."""
    best_name: str | None
    """The nearest enrolled speaker, whatever the score."""


def identify(embedding: np.ndarray, names: Sequence[str], references: np.ndarray, threshold: float) -> Match:
    """Compare an embedding (E,) with normalised references (speakers, E); accepted from `threshold` on."""
    if not len(names):
        return Match(UNKNOWN, None, None)
    scores = references @ normalized(embedding)
    best = int(scores.argmax())
    score = float(scores[best])
    return Match(names[best] if score >= threshold else UNKNOWN, score, names[best])


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

    `fingerprint` is the model's; None opens any model's database to list, rename or remove. The file is made by the
    first `add`; before that the database is empty. All methods raise SpeakerDatabaseError.
    """

    def __init__(self, path: str | Path, fingerprint: str | None):
        self.path, self.fingerprint = Path(path), fingerprint
        if self.path.is_dir():
            raise SpeakerDatabaseError(f"speaker database {self.path} is a folder; expected a file")
        if self._is_there():
            with self._transaction():  # refuse a wrong file now, not after an hour of audio
                pass

    def add(self, name: str, embeddings: np.ndarray) -> None:
        """Enrol utterances (n, E) of a speaker, beside those enrolled before."""
        name = checked_name(name)
        if self.fingerprint is None:
            raise SpeakerDatabaseError(f"speaker database {self.path}: enrolling needs the model's fingerprint")
        rows_NE = normalized(np.atleast_2d(embeddings))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._transaction(write=True) as connection:
            known = connection.execute("SELECT length(embedding) / 4 FROM utterances LIMIT 1").fetchone()
            if known and known[0] != rows_NE.shape[1]:
                raise SpeakerDatabaseError(f"{self.path}: embeddings of {rows_NE.shape[1]} values; expected {known[0]}")
            connection.executemany(
                "INSERT INTO utterances (speaker, embedding) VALUES (?, ?)",
                [(name, row.astype("<f4").tobytes()) for row in rows_NE],
            )

    def names(self) -> list[str]:
        """The enrolled speakers, sorted."""
        return list(self.counts())

    def counts(self) -> dict[str, int]:
        """Enrolment utterances by speaker, sorted by name."""
        return dict(self._rows("SELECT speaker, count(*) FROM utterances GROUP BY speaker ORDER BY speaker"))

    def references(self) -> tuple[list[str], np.ndarray]:
        """Names, and one normalised reference each: (speakers, E)."""
        by_name: dict[str, list[np.ndarray]] = {}
        for name, blob in self._rows("SELECT speaker, embedding FROM utterances ORDER BY speaker, id"):
            by_name.setdefault(name, []).append(np.frombuffer(blob, dtype="<f4"))
        means = [np.mean(rows, axis=0) for rows in by_name.values()]
        return list(by_name), normalized(np.stack(means)) if means else np.zeros((0, 0), dtype=np.float32)

    def remove(self, name: str) -> None:
        """Forget a speaker."""
        self._expect_file(name)
        with self._transaction(write=True) as connection:
            if not connection.execute("DELETE FROM utterances WHERE speaker = ?", [name]).rowcount:
                raise self._nobody(connection, name)

    def rename(self, old: str, new: str) -> None:
        """Give a speaker another name, which nobody has yet."""
        new = checked_name(new)
        self._expect_file(old)
        with self._transaction(write=True) as connection:
            if connection.execute("SELECT 1 FROM utterances WHERE speaker = ?", [new]).fetchone():
                raise SpeakerDatabaseError(f"{self.path}: '{new}' is enrolled already; remove one of the two first")
            if not connection.execute("UPDATE utterances SET speaker = ? WHERE speaker = ?", [new, old]).rowcount:
                raise self._nobody(connection, old)

    def _expect_file(self, name: str) -> None:
        if not self._is_there():
            raise SpeakerDatabaseError(f"{self.path}: nobody called '{name}'; nobody is enrolled there")

    def _nobody(self, connection: sqlite3.Connection, name: str) -> SpeakerDatabaseError:
        names = [row[0] for row in connection.execute("SELECT DISTINCT speaker FROM utterances ORDER BY speaker")]
        return SpeakerDatabaseError(f"{self.path}: nobody called '{name}'; enrolled: {', '.join(names) or 'nobody'}")

    def _rows(self, query: str) -> list[tuple]:
        if not self._is_there():
            return []
        with self._transaction() as connection:
            return connection.execute(query).fetchall()

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
            connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        except sqlite3.Error as error:
            raise SpeakerDatabaseError(f"speaker database {self.path}: {error}") from None
        try:
            connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            self._check(connection, write)
            yield connection
            connection.execute("COMMIT")
        except sqlite3.OperationalError as error:  # locked, disk full, read-only
            raise SpeakerDatabaseError(f"speaker database {self.path}: {error}") from None
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
            for statement in SCHEMA.strip().removesuffix(";").split(";"):  # executescript would commit
                connection.execute(statement)
            connection.execute("INSERT INTO meta VALUES ('fingerprint', ?)", [self.fingerprint])
            return
        if application != APPLICATION_ID:
            raise SpeakerDatabaseError(f"{self.path} is not a speaker database; `speech-mtl enroll` makes one")
        if version > SCHEMA_VERSION:
            raise SpeakerDatabaseError(
                f"speaker database {self.path} has format {version}; this version reads up to {SCHEMA_VERSION}"
            )
        found = connection.execute("SELECT value FROM meta WHERE key = 'fingerprint'").fetchone()[0]
        if self.fingerprint not in (None, found):
            raise SpeakerDatabaseError(
                f"speaker database {self.path} belongs to another model (fingerprint {found}, this model's is "
                f"{self.fingerprint}); use that model, or enrol anew in another file (--db)"
            )


def checked_name(name: str) -> str:
    """A speaker's name without outer spaces. Raises SpeakerDatabaseError for one that cannot be used."""
    name = name.strip()
    if not name or is_unknown(name) or not name.isprintable():
        raise SpeakerDatabaseError(f"speaker name {name!r}; expected a printable name other than '{UNKNOWN}'")
    return name


def is_unknown(name: str) -> bool:
    """Whether this is no name but a label of one that is not enrolled: 'unknown', 'unknown 1', ..."""
    return re.fullmatch(rf"{UNKNOWN}( \d+)?", name.lower()) is not None


def is_right(speaker: str | None, true_speaker: str) -> bool:
    """Whether a segment's speaker is the true one; every 'unknown n' is right for a stranger."""
    return speaker == true_speaker or (true_speaker == UNKNOWN and speaker is not None and is_unknown(speaker))
