"""What the commands do about conversations: score them, and give a voice of a transcript its name."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import typer

from speech_mtl.audio import AudioError
from speech_mtl.results import Result
from speech_mtl.terminal import fail, note, progress

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
    with progress("loading the model"):
        from speech_mtl.conversations import evaluate_conversations
        from speech_mtl.data import read_cuts
        from speech_mtl.recognizer import Recognizer

        total = sum(1 for _ in read_cuts(manifests))
    done = 0
    bad: list[str] = []
    with TemporaryDirectory() as folder, progress("conversations", total) as show:
        recognizer = Recognizer.from_pretrained(model, device, Path(folder) / "speakers.db", threshold, decoding)

        def on_row(row: dict[str, Any]) -> None:
            nonlocal done
            done += 1
            show(done)
            bad.extend([f"cut '{row['id']}': {row['error']}"] if "error" in row else [])

        summary = evaluate_conversations(recognizer, manifests, out, enroll, count, on_row)
    typer.echo(table(summary))
    note(f"written: {out / 'summary.json'}, {out / 'conversations.jsonl'}")
    if bad:
        fail("\n".join([f"{len(bad)} of {total} conversations could not be read:", *bad]))


def table(summary: dict[str, Any]) -> str:
    """The summary of conversations, a line a score."""

    def percent(share: float | None) -> str:
        return "-" if share is None else f"{100 * share:.2f} %"

    named = f"{summary['enrolled']} speakers enrolled" if summary["enrolled"] else "best assignment, nobody enrolled"
    count, right, few = (summary[name] for name in ("conversations", "voices_right", "voices_too_few"))
    lines = {
        "WER": f"{percent(summary['asr']['wer'])} of {summary['asr']['words']} words",
        "cpWER": percent(summary["cpwer"]),
        "tcpWER": f"{percent(summary['tcpwer'])} (5 s)",
        "DER": f"{percent(summary['der'])} (collar 0.25 s) of {summary['der_s']['total']:.0f} s",
        "words under the right name": f"{percent(summary['named'])} of {summary['recognised_words']} ({named})",
        "number of voices right": f"{right} of {count} conversations ({few} too few, {count - right - few} too many)",
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
    results = _results(transcript)
    having = [result for result in results if any(one.speaker == voice for one in result.speakers)]
    if len(having) > 1:
        named = ", ".join(result.audio for result in having)
        raise AudioError(f"{transcript}: {len(having)} recordings have a voice '{voice}': {named}; expected one result")
    if not having and len(results) > 1:
        voices = ", ".join(dict.fromkeys(one.speaker for result in results for one in result.speakers))
        raise AudioError(f"{transcript}: no voice '{voice}'; its voices: {voices or 'none'}")
    return recognizer.enroll_voice(name, (having or results)[0], voice, force)


def _results(transcript: Path) -> list[Result]:
    """The results that a file holds, an object each, without the provisional ones of --stream. Raises AudioError."""
    results, at, decoder = [], 0, json.JSONDecoder()
    try:
        text = transcript.read_text(encoding="utf-8").rstrip()
        while at < len(text):
            start = at
            while text[start].isspace():
                start += 1
            values, at = decoder.raw_decode(text, start)
            if not (isinstance(values, dict) and values.get("provisional")):
                results.append(Result.from_json(text[start:at]))
        if not results:
            raise ValueError("no result")
    except ValueError as error:
        expected = "expected what `speech-mtl transcribe --format json` writes"
        raise AudioError(f"{transcript}: {error}; {expected}") from None
    return results
