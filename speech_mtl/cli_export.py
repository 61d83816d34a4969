"""speech-mtl export: a model becomes an ONNX graph, and can be compared with what it was."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speech_mtl.terminal import fail, guarded, progress

if TYPE_CHECKING:
    from speech_mtl.export_parity import Comparison


class Start(StrEnum):
    audio = "audio"
    mel = "mel"


@guarded
def export(
    out: Annotated[Path, typer.Option(help="Folder for the export.")],
    model: Annotated[
        Path | None, typer.Argument(metavar="MODEL", help="Model folder; the bundled model if not given.")
    ] = None,
    start: Annotated[Start, typer.Option("--from", help="Whether the graph takes audio or log-mel.")] = Start.audio,
    int8: Annotated[bool, typer.Option("--int8", help="Matrix products of the blocks on 8-bit integers.")] = False,
    check: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MANIFEST", help="Compare with the model on these cuts; exit code 1 if they differ; repeatable."
        ),
    ] = None,
) -> None:
    """Write a model as an ONNX graph. It takes any batch and length; `transcribe --engine onnx` reads the folder.

    With --check, an export that --out holds already is compared as it is.

    \b
    Example: speech-mtl export runs/an4 --out runs/an4-int8 --int8 --check data/an4/test.jsonl.gz
    """
    with progress("exporting"):
        from speech_mtl.export import export_model, is_export_of
        from speech_mtl.recognizer import PRETRAINED

        model = model or PRETRAINED
        if not (check and is_export_of(out, model, start.value, int8)):
            export_model(model, out, start.value, int8)
    typer.echo(out)
    if not check:
        return
    with progress("comparing"):
        from speech_mtl.export_parity import compare

        found = compare(model, out, check)
    _show(found)
    if failures := found.failures():
        fail("\n".join(failures))


def _show(found: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", found.model.name, f"{found.export.name} {found.precision}")
    for name, value in found.differences.items():
        table.add_row(f"{name}: largest difference", "", f"{value:.2g}")
    if any(name.endswith("embedding") for name in found.differences):
        table.add_row("embeddings: least cosine", "", f"{found.least_cosine:.5f}")
    sides = (found.model, found.export)
    if found.model.wer is not None:
        table.add_row("WER", *(f"{side.wer:.2f} %" for side in sides))
        same = sum(a == b for a, b in zip(found.model.texts, found.export.texts, strict=True))
        table.add_row("texts that are the same", "", f"{same} of {len(found.model.texts)}")
    table.add_row("folder", *(f"{side.size_mb:.1f} MB" for side in sides))
    table.add_row(f"time for {found.audio_s:.0f} s of audio", *(f"{side.seconds:.1f} s" for side in sides))
    Console().print(table)
