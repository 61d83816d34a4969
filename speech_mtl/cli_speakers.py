"""The commands around voices and their names: `identify`, `verify`, `enroll`, `speakers`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speech_mtl.cli_options import Cosine, Db, Device, Model, check_out, load_recognizer, with_remarks
from speech_mtl.terminal import fail, for_each_file, guarded, note

if TYPE_CHECKING:
    from speech_mtl.enrolment import Heard
    from speech_mtl.speakers import SpeakerDatabase


class Form(StrEnum):
    txt = "txt"
    json = "json"


Format = Annotated[Form, typer.Option("--format", "-f", help="txt, or json: one object a line.")]
Force = Annotated[
    bool, typer.Option("--force", help="Enrol even what is too short, too noisy, or seems to be another voice.")
]
Name = Annotated[str, typer.Argument(metavar="NAME")]
LaterDb = Annotated[Path | None, typer.Option("--db", help="Enrolled speakers; the same as --db before the command.")]
"""Of a command of `speakers`; without a variable of the environment, which would outdo a --db before its name."""

speakers = typer.Typer(rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("identify")(identify)
    app.command("verify")(verify)
    app.command("enroll")(enroll)
    app.add_typer(speakers, name="speakers")


@guarded
def identify(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Recordings of one voice each.")],
    model: Model = None,
    db: Db = None,
    threshold: Cosine = None,
    form: Format = Form.txt,
    device: Device = "cpu",
) -> None:
    """Say whose voice it is. Tab-separated: file, name or 'unknown', score, probability, threshold, nearest name.

    The probability is that it is the nearest speaker, if half of all voices are enrolled; '-' without a calibration.

    \b
    Example: speech-mtl identify clip.wav
    """
    recognizer = with_remarks(load_recognizer(model, db, threshold, device))

    def work(file: Path, show: Callable[[float], None]) -> None:
        found = recognizer.identify(file)
        for remark in found.notes:
            note(f"{file}: {remark}")
        if form is Form.json:
            typer.echo(json.dumps(asdict(found), ensure_ascii=False))
            return
        figures = f"{_figure(found.score)}\t{_figure(found.probability)}\t{found.threshold:g}"
        typer.echo(f"{file}\t{found.speaker}\t{figures}\t{found.best_name or '-'}")

    for_each_file("identifying", files, work)


@guarded
def verify(
    a: Annotated[Path, typer.Argument(metavar="A", help="A recording of one voice.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    model: Model = None,
    db: Db = None,
    threshold: Cosine = None,
    form: Format = Form.txt,
    device: Device = "cpu",
) -> None:
    """Whether two recordings hold one voice. Tab-separated: 'same' or 'different', score, probability, threshold.

    The threshold is calibrated for enrolled speakers: below two seconds each, 'different' is answered too often.

    \b
    Example: speech-mtl verify a.wav b.wav
    """
    recognizer = load_recognizer(model, db, threshold, device)
    note(recognizer.calibration.note)
    found = recognizer.verify(a, b)
    for remark in found.notes:
        note(remark)
    if form is Form.json:
        typer.echo(json.dumps(asdict(found), ensure_ascii=False))
        return
    answer = "same" if found.same else "different"
    typer.echo(f"{answer}\t{_figure(found.score)}\t{_figure(found.probability)}\t{found.threshold:g}")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


@guarded
def enroll(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The speaker; with --from: a voice of the transcript.")],
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", help="Recordings of this voice alone; with --from: its new name."),
    ],
    transcript: Annotated[
        Path | None, typer.Option("--from", metavar="RESULT.json", help="Enrol a voice of this transcript.")
    ] = None,
    force: Force = False,
    model: Model = None,
    db: Db = None,
    device: Device = "cpu",
) -> None:
    """Enrol recordings of a speaker, or a transcript's voice. They stand beside those enrolled before.

    A recording is refused that has less than half a second of speech (a name: a second in all), too much noise, or two
    voices, and one whose voice is not that of the name's other recordings or is that of another name.

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
    recognizer = load_recognizer(model, db, device=device)
    database = recognizer.database  # a wrong one is refused before any recording is read
    heard: list[Heard] = []
    try:
        if transcript is not None:
            from speech_mtl.cli_conversations import enroll_from

            _warn(enroll_from(recognizer, transcript, voice, name, force))
        else:
            try:
                for_each_file(
                    "enrolling", files, lambda file, _: heard.append(recognizer.listen_to_enroll(file, force))
                )
            except KeyboardInterrupt:  # perhaps it was the wrong name
                heard = []
                raise
            finally:  # the good ones are enrolled, whatever is wrong with the others
                if heard:
                    _warn(recognizer.enroll_heard(name, heard, force))
    finally:
        count = len(database.utterances().get(name, []))
        enrolled = f"{count} utterance{'s' * (count != 1)} enrolled in" if count else "nothing enrolled in"
        note(f"{name}: {enrolled} {database.path}")


def _warn(remarks: list[str]) -> None:
    for remark in remarks:
        note(f"warning: {remark}")


def _database(context: typer.Context, db: Path | None) -> SpeakerDatabase:
    from speech_mtl.speakers import SpeakerDatabase, default_path

    return SpeakerDatabase(db or context.obj or default_path(), None)


@speakers.callback(invoke_without_command=True)
@guarded
def _speakers(context: typer.Context, db: Db = None) -> None:
    """The enrolled speakers. Commands: list (the default), show, rename, merge, remove, export, import.

    \b
    Example: speech-mtl speakers rename alice "Alice Miller"
    """
    context.obj = db
    if context.invoked_subcommand is None:
        _list(_database(context, db))


@speakers.command("list")
@guarded
def list_(context: typer.Context, db: LaterDb = None) -> None:
    """Name, utterances, seconds of speech, date of the last utterance (tab-separated).

    \b
    Example: speech-mtl speakers list
    """
    _list(_database(context, db))


def _list(database: SpeakerDatabase) -> None:
    enrolled = database.utterances()
    for name, own in enrolled.items():
        known = [one.speech_s for one in own if one.speech_s is not None]
        seconds = f"{sum(known):.1f}" if known else "-"
        typer.echo(f"{name}\t{len(own)}\t{seconds}\t{max(one.added or '' for one in own)}")
    if not enrolled:
        note(f"nobody is enrolled in {database.path}")


@speakers.command()
@guarded
def show(context: typer.Context, name: Name, db: LaterDb = None) -> None:
    """A speaker's utterances: date, seconds of speech, dB above the noise, % clipped, cosine to the others
    (tab-separated).

    \b
    Example: speech-mtl speakers show alice
    """
    import numpy as np

    from speech_mtl.speakers import normalized

    own = _database(context, db).of(name)
    for i, one in enumerate(own):
        others = [other.embedding for other in (*own[:i], *own[i + 1 :])]
        likeness = f"{float(normalized(np.mean(others, axis=0)) @ one.embedding):.4f}" if others else "-"
        quality = one.quality or {}
        seconds = "-" if one.speech_s is None else f"{one.speech_s:.1f}"
        snr_db, clipped = quality.get("snr_db"), quality.get("clipped")
        noise = "-" if snr_db is None else f"{snr_db:.1f}"
        typer.echo(f"{one.added}\t{seconds}\t{noise}\t{'-' if clipped is None else f'{100 * clipped:.1f}'}\t{likeness}")


@speakers.command()
@guarded
def rename(
    context: typer.Context,
    old: Annotated[str, typer.Argument(metavar="OLD")],
    new: Annotated[str, typer.Argument(metavar="NEW")],
    db: LaterDb = None,
) -> None:
    """Give a speaker another name, which nobody has yet.

    \b
    Example: speech-mtl speakers rename alice "Alice Miller"
    """
    _database(context, db).rename(old, new)


@speakers.command()
@guarded
def merge(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="FROM")],
    target: Annotated[str, typer.Argument(metavar="INTO")],
    db: LaterDb = None,
) -> None:
    """Make two names one: what is enrolled as FROM belongs to INTO.

    \b
    Example: speech-mtl speakers merge "alice miller" alice
    """
    _database(context, db).merge(source, target)


@speakers.command()
@guarded
def remove(context: typer.Context, name: Name, db: LaterDb = None) -> None:
    """Forget a speaker.

    \b
    Example: speech-mtl speakers remove alice
    """
    _database(context, db).remove(name)


@speakers.command("export")
@guarded
def export_(
    context: typer.Context, file: Annotated[Path, typer.Argument(metavar="FILE.json")], db: LaterDb = None
) -> None:  # fmt: skip
    """Write all that is enrolled to a JSON file: embeddings, seconds, quality, calibration, the model's fingerprint.

    \b
    Example: speech-mtl speakers export speakers.json
    """
    from speech_mtl.checkpoint import write_atomically
    from speech_mtl.exchange import export_speakers

    database = _database(context, db)
    check_out([file], [database.path])
    if file.exists() and not file.is_file():
        raise typer.BadParameter(f"{file} is a folder, a pipe or a device; expected a file's name")
    exported = export_speakers(database)
    if not exported["speakers"]:
        fail(f"nobody is enrolled in {database.path}")
    text = json.dumps(exported, ensure_ascii=False) + "\n"
    write_atomically(file.resolve(), lambda path: path.write_text(text, encoding="utf-8"))
    note(f"{len(exported['speakers'])} speakers written to {file}")


@speakers.command("import")
@guarded
def import_(
    context: typer.Context, file: Annotated[Path, typer.Argument(metavar="FILE.json")], db: LaterDb = None
) -> None:  # fmt: skip
    """Enrol the speakers of an exported file, all or none: a name that is there already is refused.

    \b
    Example: speech-mtl speakers import speakers.json
    """
    from speech_mtl.exchange import import_speakers

    database = _database(context, db)
    try:
        exported = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        fail(f"{file}: not valid JSON: {error}; expected what `speech-mtl speakers export` writes")
    names, remarks = import_speakers(database, exported, str(file))
    for remark in remarks:
        note(remark)
    note(f"{len(names)} speakers enrolled in {database.path}: {', '.join(names)}")
