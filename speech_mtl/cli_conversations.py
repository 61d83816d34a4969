"""What the commands do about conversations: score them, and give a voice of a transcript its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from speech_mtl.terminal import note, progress

if TYPE_CHECKING:
    from speech_mtl.language import Decoding
    from speech_mtl.recognizer import Recognizer


def evaluate(
    model: Path,
    manifests: list[str],
    enroll: list[str] | None,
    out: Path,
    count: int | None,
    threshold: float | None,
    device: str,
    decoding: Decoding | None,
) -> None:
    """`speech-mtl evaluate --conversations`: a table here; summary.json and conversations.jsonl in a folder."""
    from tempfile import TemporaryDirectory

    with progress("loading the model"):
        from speech_mtl.conversations import evaluate_conversations
        from speech_mtl.data import read_cuts
        from speech_mtl.recognizer import Recognizer

        total = sum(1 for _ in read_cuts(manifests))
    done = 0
    with TemporaryDirectory() as folder, progress("conversations", total) as show:
        recognizer = Recognizer.from_pretrained(model, device, Path(folder) / "speakers.db", threshold, decoding)

        def on_row(row: dict[str, Any]) -> None:
            nonlocal done
            done += 1
            show(done)

        summary = evaluate_conversations(recognizer, manifests, out, enroll, count, on_row)
    typer.echo(table(summary))
    note(f"written: {out / 'summary.json'}, {out / 'conversations.jsonl'}")


def table(summary: dict[str, Any]) -> str:
    """The summary of conversations, a line a score."""

    def percent(share: float | None) -> str:
        return "-" if share is None else f"{100 * share:.2f} %"

    named = f"{summary['enrolled']} speakers enrolled" if summary["enrolled"] else "best assignment, nobody enrolled"
    lines = {
        "WER": f"{percent(summary['asr']['wer'])} of {summary['asr']['words']} words",
        "cpWER": percent(summary["cpwer"]),
        "tcpWER": f"{percent(summary['tcpwer'])} (5 s)",
        "DER": f"{percent(summary['der'])} (collar 0.25 s) of {summary['der_s']['total']:.0f} s",
        "words under the right name": f"{percent(summary['named'])} of {summary['recognised_words']} ({named})",
        "number of voices right": f"{summary['voices_right']} of {summary['conversations']} conversations",
        "real-time factor": f"{summary['cost']['rtf']:.4f}",
    }
    if summary["strangers_named"] is not None:
        lines["strangers' words named"] = percent(summary["strangers_named"])
    if summary["enrolled_not_named"] is not None:
        lines["enrolled speakers' words not named"] = percent(summary["enrolled_not_named"])
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


def enroll_from(recognizer: Recognizer, transcript: Path, voice: str, name: str, force: bool) -> list[str]:
    """Enrol a voice of a transcript in json under a name; returns what a person should know.

    Raises AudioError for a file that is none of this model's, and EnrolmentError for a name that seems wrong.
    """
    import numpy as np

    from speech_mtl.audio import AudioError
    from speech_mtl.enrolment import check_names
    from speech_mtl.speakers import Utterance, normalized

    expected = "expected one result of `speech-mtl transcribe --format json`"
    try:
        result = json.loads(transcript.read_text(encoding="utf-8"))
        fingerprint, speakers = result["fingerprint"], {v["speaker"]: v for v in result["speakers"]}
    except (ValueError, KeyError, TypeError) as error:
        raise AudioError(f"{transcript}: {type(error).__name__}: {error}; {expected}") from None
    if fingerprint != recognizer.model.fingerprint:
        ours = recognizer.model.fingerprint
        raise AudioError(f"{transcript} was made by another model (fingerprint {fingerprint}, this model's is {ours})")
    if voice not in speakers:
        raise AudioError(f"{transcript}: no voice '{voice}'; its voices: {', '.join(speakers) or 'none'}")
    found = speakers[voice]
    try:
        embedding, size = np.array(found["embedding"], dtype=float), recognizer.embedding_size
        if embedding.shape != (size,) or not np.isfinite(embedding).all():
            raise ValueError(f"the embedding of '{voice}' is no list of {size} numbers")
        one = Utterance(normalized(embedding), float(found["speech_s"]))
    except (ValueError, KeyError, TypeError) as error:
        raise AudioError(f"{transcript}: {type(error).__name__}: {error}; {expected}") from None
    remarks = check_names(name, [one], [f"{transcript}: {voice}"], recognizer.database, recognizer.calibration, force)
    recognizer.database.add_utterances({name: [one]})
    return remarks
