"""Two commands beside transcription: `lm` makes a language model for it, `align` finds the times of a known text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from speech_mtl import formats
from speech_mtl.cli_options import Device, Model, check_out, check_sound, load_recognizer
from speech_mtl.terminal import fail, guarded, note, progress

ALIGNED = [fmt for fmt in formats.FORMATS if fmt != "rttm"]
"""Formats of `align`; rttm is of speakers alone, whom it does not know."""


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("lm")(lm)
    app.command("align")(align)


@guarded
def lm(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="TEXTS", help="Text files, a sentence per line, or manifests (jsonl, jsonl.gz)."),
    ],
    out: Annotated[Path, typer.Option(help="The ARPA file to write.")],
    order: Annotated[int, typer.Option(min=2, max=6, help="Words in the longest n-gram.")] = 4,
    model: Model = None,
) -> None:
    """Estimate an n-gram language model for --lm. It is of words as the model writes them.

    \b
    Example: speech-mtl lm data/an4/train.jsonl.gz --order 4 --out lm.arpa
    """
    check_out([out], sources)
    with progress("estimating"):
        from speech_mtl.checkpoint import load_model
        from speech_mtl.ngram import to_arpa
        from speech_mtl.recognizer import PRETRAINED, asr_of
        from speech_mtl.text import normalize

        tokenizer = asr_of(load_model(model or PRETRAINED)).tokenizer
        texts = [normalize(text, tokenizer.config) for source in sources for text in _texts(source)]
        try:
            content = to_arpa(texts, order)
        except ValueError as error:
            fail(f"{', '.join(map(str, sources))}: {error}")
        out.write_text(content, encoding="utf-8")
    if unwritable := {word for text in texts for word in text.split() if tokenizer.unknown(word)}:
        note(f"{len(unwritable)} words have characters that the model cannot write, such as '{min(unwritable)}'")
    words = {word for text in texts for word in text.split()}
    longest = content.count("\nngram ")  # short texts have no long ones
    note(f"written: {out}: {longest}-grams of {len(words)} words from {sum(map(bool, texts))} texts")


def _texts(source: Path) -> Iterator[str]:
    from speech_mtl.data import DataError, read_cuts
    from speech_mtl.tasks import label_of

    if source.name.endswith((".jsonl", ".jsonl.gz")):
        yield from (text for cut in read_cuts([source]) if (text := label_of(cut, "text")) is not None)
        return
    try:
        yield from source.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{source}: neither a text in UTF-8 nor a manifest (.jsonl, .jsonl.gz)") from None


@guarded
def align(
    recording: Annotated[Path, typer.Argument(metavar="RECORDING", help="Any format that libsndfile reads.")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What is said in it: a text file, or the text itself.")],
    fmt: Annotated[str, typer.Option("--format", "-f", help=", ".join(ALIGNED) + ".")] = "ctm",
    out: Annotated[Path | None, typer.Option(help="File to write; stdout if not given.")] = None,
    model: Model = None,
    device: Device = "cpu",
) -> None:
    """Find the word times of a known text (forced alignment).

    \b
    Example: speech-mtl align speech.wav "what is said in it" --format textgrid --out speech.TextGrid
    """
    if fmt not in ALIGNED:
        raise typer.BadParameter(f"--format {fmt}; accepted: {', '.join(ALIGNED)}")
    check_sound(fmt, [recording])
    check_out([out], [recording, text])
    recognizer = load_recognizer(model, None, device=device)
    from speech_mtl import alignment

    known = alignment.read_text(text)
    with progress("aligning", 1.0) as show:
        result = alignment.align(recognizer, recording, known, on_progress=show)
    for remark in result.notes:
        note(f"{recording}: {remark}")
    content = formats.format_result(result, fmt)
    if out is None:
        typer.echo(content, nl=False)
    else:
        out.write_text(content, encoding="utf-8")
        note(f"written: {out}")
