"""speech-mtl import: a public checkpoint becomes a model folder, and can be compared with what it was."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from speech_mtl.terminal import fail, guarded, note, progress


@guarded
def import_(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A transformers folder, its name on the hub, or a .nemo file.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for the model; may be left out with --check.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Compare with transformers; exit code 1 if outputs differ.")
    ] = False,
    audio: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A recording to compare on, repeatable; noise if not given."),
    ] = None,
) -> None:
    """Make a Parakeet-CTC checkpoint a model folder. Prints the folder.

    With --check, a model that --out holds already is compared as it is.

    \b
    Example: speech-mtl import parakeet-ctc-0.6b --out runs/parakeet --check --audio meeting.wav
    """
    if out is None and not check:
        raise typer.BadParameter("give --out DIR, the folder for the model, or --check")
    if audio and not check:
        raise typer.BadParameter("--audio is what --check compares on; give --check too")
    with tempfile.TemporaryDirectory() as temporary:
        folder = out or Path(temporary) / "model"
        with progress("importing"):
            from speech_mtl.importing import import_model, locate

            place = locate(source)
            if not (check and (folder / "config.json").is_file()):
                import_model(place, folder, note)
        if out:
            typer.echo(out)
        if check:
            _check(place, folder, audio or [])


def _check(checkpoint: Path, folder: Path, files: list[Path]) -> None:
    """A table of the largest differences from transformers; ends with 1 where one is above its limit."""
    with progress("comparing with transformers"):
        from rich.console import Console
        from rich.table import Table

        from speech_mtl.parity import NOISE_S, compare

        rows = compare(checkpoint, folder, files)
    table = Table("step", "largest difference", "limit", title="beside transformers", title_justify="left")
    for row in rows:
        table.add_row(row.step, f"{row.difference:.2g}", "" if row.limit is None else f"{row.limit:g}")
    Console().print(table)
    if wrong := [row for row in rows if not row.passed]:
        fail("\n".join(f"{row.step}: {row.difference:.2g}; accepted: at most {row.limit:g}" for row in wrong))
    what = f"{len(files)} recordings" if files else f"{len(NOISE_S)} recordings of noise"
    note(f"the same as transformers' on {what}, alone and in one batch")
