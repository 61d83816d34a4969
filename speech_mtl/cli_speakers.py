"""The commands around voices and their names: `identify`, `verify`, `enroll`, `speakers`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from speech_mtl.cli_options import Cosine, Db, Model, load_recognizer, with_remarks
from speech_mtl.terminal import for_each_file, guarded, note


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("identify")(identify)
    app.command("verify")(verify)
    app.command("enroll")(enroll)
    app.command("speakers")(speakers)


@guarded
def identify(
    files: Annotated[list[Path], typer.Argument(metavar="FILES...")],
    model: Model = None,
    db: Db = None,
    threshold: Cosine = None,
) -> None:
    """Whose voice it is, one line a file: file, name or 'unknown', score, threshold, nearest name (tab-separated).

    \b
    Example: speech-mtl identify clip.wav
    """
    recognizer = with_remarks(load_recognizer(model, db, threshold))

    def work(file: Path, show: Callable[[float], None]) -> None:
        found = recognizer.identify(file)
        for remark in found.notes:
            note(f"{file}: {remark}")
        score = "-" if found.score is None else f"{found.score:.4f}"
        typer.echo(f"{file}\t{found.speaker}\t{score}\t{found.threshold.value:g}\t{found.best_name or '-'}")

    for_each_file("identifying", files, work)


@guarded
def verify(
    a: Annotated[Path, typer.Argument(metavar="A")],
    b: Annotated[Path, typer.Argument(metavar="B")],
    model: Model = None,
    threshold: Cosine = None,
) -> None:
    """Whether two recordings hold one voice: 'same' or 'different', score, threshold (tab-separated).

    \b
    Example: speech-mtl verify a.wav b.wav
    """
    recognizer = load_recognizer(model, None, threshold)
    note(recognizer.threshold.note)
    score, value, same = recognizer.verify(a, b)
    typer.echo(f"{'same' if same else 'different'}\t{score:.4f}\t{value:g}")


@guarded
def enroll(
    name: Annotated[str, typer.Argument(metavar="NAME", help="With --from: the voice's name in the transcript.")],
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILES...", help="Recordings of this voice alone; with --from: its new name."),
    ],
    transcript: Annotated[
        Path | None, typer.Option("--from", metavar="RESULT.json", help="Enrol a voice of this transcript.")
    ] = None,
    model: Model = None,
    db: Db = None,
) -> None:
    """Enrol recordings of a speaker, beside those enrolled before; or give a voice of a transcript its name.

    \b
    Example: speech-mtl enroll alice alice-1.wav alice-2.wav alice-3.wav
             speech-mtl enroll --from result.json "unknown 1" alice
    """
    from speech_mtl.speakers import SpeakerDatabaseError, checked_name

    if transcript is not None and len(files) != 1:
        raise typer.BadParameter(f"--from takes a voice and its new name, {1 + len(files)} words given")
    voice, name = name, str(files[0]) if transcript is not None else name
    try:
        name = checked_name(name)
    except SpeakerDatabaseError as error:
        raise typer.BadParameter(str(error)) from None
    recognizer = load_recognizer(model, db)
    database = recognizer.database  # a wrong one is refused before any recording is read
    try:
        if transcript is not None:
            from speech_mtl.cli_conversations import enroll_from

            enroll_from(recognizer, transcript, voice, name)
            return
        for_each_file("enrolling", files, lambda file, show: recognizer.enroll(name, [file]))
    finally:
        note(f"{name}: {database.counts().get(name, 0)} utterances enrolled in {database.path}")


@guarded
def speakers(
    remove: Annotated[str | None, typer.Option(metavar="NAME", help="Forget a speaker.")] = None,
    rename: Annotated[
        tuple[str, str] | None, typer.Option(metavar="OLD NEW", help="Give a speaker another name.")
    ] = None,
    db: Db = None,
) -> None:
    """List the enrolled speakers: name, number of utterances (tab-separated); or remove or rename one.

    \b
    Example: speech-mtl speakers --rename alice "Alice Miller"
    """
    from speech_mtl.speakers import SpeakerDatabase, default_path

    if remove is not None and rename is not None:
        raise typer.BadParameter("--remove and --rename are two calls")
    database = SpeakerDatabase(db or default_path(), None)
    if remove is not None:
        database.remove(remove)
    elif rename is not None:
        database.rename(*rename)
    else:
        for name, count in database.counts().items():
            typer.echo(f"{name}\t{count}")
        if not database.names():
            note(f"nobody is enrolled in {database.path}")
