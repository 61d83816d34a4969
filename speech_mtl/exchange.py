"""Enrolled speakers from one database to another, as JSON: `speech-mtl speakers export` and `import`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from speech_mtl.calibration import parse_calibration
from speech_mtl.checkpoint import CheckpointError
from speech_mtl.speakers import (
    SpeakerDatabase,
    SpeakerDatabaseError,
    Utterance,
    checked_name,
    is_number,
    normalized,
    quality_of,
)

EXPORT_FORMAT = 1
EXPECTED = "expected what `speech-mtl speakers export` writes"


def export_speakers(database: SpeakerDatabase) -> dict[str, Any]:
    """All that is enrolled, for JSON, with the calibration that is kept beside it. Raises SpeakerDatabaseError."""
    speakers = {
        name: [
            {"embedding": [round(float(x), 7) for x in one.embedding], "speech_s": one.speech_s,
             "quality": one.quality, "added": one.added}
            for one in own
        ]
        for name, own in database.utterances().items()
    }  # fmt: skip
    fingerprint = database.model_fingerprint()
    exported = {"format": EXPORT_FORMAT, "fingerprint": fingerprint, "speakers": speakers}
    if (stored := database.calibration()) is not None:
        exported["calibration"] = _calibration(stored, f"{database.path}: its calibration", fingerprint)
    return exported


def import_speakers(database: SpeakerDatabase, exported: Any, where: str) -> tuple[list[str], list[str]]:
    """Enrol what `export_speakers` gave, all or nothing; returns the names and what a person should know.

    An empty database becomes one of the exporting model; another model's, a newer format and names that are enrolled
    already are refused. `where` names the file. Raises SpeakerDatabaseError.
    """
    version = exported.get("format") if isinstance(exported, dict) else None
    if isinstance(version, int) and version > EXPORT_FORMAT:
        raise SpeakerDatabaseError(f"{where} has format {version}; this version reads up to {EXPORT_FORMAT}")
    speakers: dict[str, list[Utterance]] = {}
    calibration = None
    try:
        fingerprint = str(exported["fingerprint"])
        for given, own in exported["speakers"].items():
            if (name := checked_name(given)) in speakers:
                raise ValueError(f"'{name}' is there twice, as {given!r}, too")
            if own:
                speakers[name] = [_utterance(name, one) for one in own]
        if len({one.embedding.shape for own in speakers.values() for one in own}) > 1:
            raise ValueError("embeddings of different sizes")
        if (found := exported.get("calibration")) is not None:
            text = json.dumps(found, ensure_ascii=False)
            calibration = json.dumps(_calibration(text, f"{where}: calibration", fingerprint), ensure_ascii=False)
    except SpeakerDatabaseError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise SpeakerDatabaseError(f"{where}: {type(error).__name__}: {error}; {EXPECTED}") from None
    if not speakers:
        raise SpeakerDatabaseError(f"{where} holds no speakers; {EXPECTED}")
    target = SpeakerDatabase(database.path, fingerprint, database.size)
    target.add_utterances(speakers, only_new=True, calibration=calibration)
    if calibration is None or target.calibration() == calibration:
        return list(speakers), []
    return list(speakers), [f"the calibration of {where} is left out: {database.path} has one of its own"]


def _utterance(name: str, values: Any) -> Utterance:
    """Raises ValueError, KeyError or TypeError for other values than an export's."""
    embedding, speech_s, added = np.array(values["embedding"], dtype=np.float32), values["speech_s"], values["added"]
    if embedding.ndim != 1:
        raise ValueError(f"an embedding of '{name}' of shape {embedding.shape}; expected a list of numbers")
    if speech_s is not None and not is_number(speech_s):
        raise ValueError(f"speech_s of '{name}' is {speech_s!r:.40}; expected a number")
    return Utterance(normalized(embedding), speech_s, quality_of(values["quality"]), added and str(added))


def _calibration(text: str, where: str, fingerprint: str | None) -> dict[str, Any]:
    try:
        return json.loads(parse_calibration(text, where, fingerprint).to_json())
    except CheckpointError as error:
        raise SpeakerDatabaseError(str(error)) from None
