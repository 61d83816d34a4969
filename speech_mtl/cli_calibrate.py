"""The command `calibrate`: thresholds and probabilities from a person's own labelled recordings."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speech_mtl.cli_options import Db, Device, Model, load_recognizer
from speech_mtl.terminal import fail, guarded, note, progress

if TYPE_CHECKING:
    from speech_mtl.calibrating import BandReport
    from speech_mtl.calibration import Calibration

MANY = 10
"""Enrolled voices of the table's second threshold."""


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command("calibrate")(calibrate)


@guarded
def calibrate(
    context: typer.Context,
    sources: Annotated[
        list[Path], typer.Argument(metavar="SOURCE", help="Manifests with speakers, or folders with SPEAKER/x.wav.")
    ],
    rate: Annotated[
        float, typer.Option("--fa", help="Share of strangers that may be given a name, above 0 and below 0.5.")
    ] = 0.01,
    force: Annotated[
        bool, typer.Option("--force", help="Keep even what was measured on fewer than 6 speakers.")
    ] = False,
    model: Model = None,
    db: Db = None,
    device: Device = "cpu",
) -> None:
    """Measure thresholds for a rate of false acceptance. By seconds of speech; and the scores' probabilities.

    The speakers must not be those that the model was trained on. Voices are compared within a source only: those of
    another microphone and room are told apart more easily. The result is kept in the folder of --model, as
    calibration.json; without --model, or with --db, in the database of enrolled speakers.

    \b
    Example: speech-mtl calibrate recordings/ --fa 0.01
    """
    if not 0 < rate < 0.5:
        raise typer.BadParameter(f"--fa {rate:g}; expected a share above 0 and below 0.5, such as 0.01")
    recognizer = load_recognizer(model, db, device=device)
    from speech_mtl import calibrating, trials
    from speech_mtl.calibration import SHORTEST_S, save_calibration
    from speech_mtl.speakers import SpeakerDatabase, SpeakerDatabaseError, default_path

    # by name: typer may have an enumeration of its own, and not click's
    db_is_meant = getattr(context.get_parameter_source("db"), "name", "") == "COMMANDLINE"
    database = None
    if model is None or db_is_meant:  # a wrong one is refused before any recording is read
        database = SpeakerDatabase(db or default_path(), recognizer.model.fingerprint)
    listed = list(trials.labelled(sources))
    recordings = trials.distinct(listed)
    if len(recordings) < len(listed):
        note(f"{len(listed) - len(recordings)} recordings are listed more than once; each counts once")
    with progress("listening", len(recordings)) as show:
        heard, bad = trials.hear_all(recognizer.model, recognizer.speaker_task, recordings, on_done=show)
    if bad:
        note("\n".join([f"{len(recordings) - len(bad)} of {len(recordings)} recordings used; not used:", *bad]))
    speakers = {one.speaker for one in recordings}
    if lost := sorted(speakers - set(heard)):
        reason = f"none of their recordings is read or holds {SHORTEST_S:g} s of speech"
        note(f"warning: {len(lost)} of {len(speakers)} speakers left out ({few(lost)}): {reason}")
    made = trials.trials_of(heard, trials.groups_of(listed))
    measured_on = f"{len(heard)} speakers of {', '.join(map(str, sources))}"
    found, reports = calibrating.calibrate(made, heard, measured_on, rate)
    found = found.model_copy(update={"fingerprint": recognizer.model.fingerprint})
    typer.echo(table(found, reports, calibrating.cllr(made, found) if found.logistic else None))
    if (groups := len(set(made.group_S.tolist()))) > 1:
        note(f"strangers are compared with enrolled voices of their own source only; there are {groups}")
    trained_on = recognizer.model.task(recognizer.speaker_task).speakers  # type: ignore[union-attr]
    if known := sorted(set(heard) & set(trained_on)):  # type: ignore[arg-type]
        note(
            f"warning: {len(known)} of the {len(heard)} speakers have names that the model was trained on "
            f"({few(known)}): if these are their voices, it tells them apart better than others"
        )
    for report in reports:
        if remark := calibrating.remarks(report, rate):
            note(f"warning: {seconds(report)}: {remark}")
    if len(heard) < calibrating.LEAST_SPEAKERS and not force:
        fail(
            f"{len(heard)} speakers; expected {calibrating.LEAST_SPEAKERS} or more: fewer tell too little of others. "
            "Nothing was written, what was in use stays (--force writes it anyway)"
        )
    if database is None:
        assert model is not None
        note(f"written: {save_calibration(model, found)}")
        with suppress(SpeakerDatabaseError):  # it was not asked about
            own = SpeakerDatabase(default_path(), None)
            if own.model_fingerprint() == recognizer.model.fingerprint and own.calibration() is not None:
                note(f"{own.path} has a calibration of its own, which goes first where its speakers are asked for")
    else:
        database.set_calibration(found.to_json())
        note(f"written: the calibration in {database.path}")
    if bad:
        fail(f"{len(bad)} of {len(recordings)} recordings were not used; they are listed above")


def few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def seconds(report: BandReport) -> str:
    return f"{report.low_s:g} s +" if report.high_s == float("inf") else f"{report.low_s:g}-{report.high_s:g} s"


def table(found: Calibration, reports: list[BandReport], cllr: float | None) -> str:
    """A line a band, rates with their 95 % intervals over speakers, and the costs of the probabilities."""

    def percent(rate: tuple[float, float, float]) -> str:
        return "-" if rate[0] != rate[0] else f"{100 * rate[0]:.1f} ({100 * rate[1]:.1f}-{100 * rate[2]:.1f})"

    rows = [("speech", "threshold", f"for {MANY} voices", "false acceptance %", "false rejection %", "trials")]
    for report in reports:
        threshold, of_many = found.threshold(report.low_s), found.threshold(report.low_s, MANY)
        acceptance, rejection = percent(report.acceptance), percent(report.rejection)
        trials = f"{report.own} own, {report.others} others"
        rows.append((seconds(report), f"{threshold:.4f}", f"{of_many:.4f}", acceptance, rejection, trials))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    if cllr is not None:
        lines.append(f"Cllr of the probabilities, on the same trials: {cllr:.3f} bits")
    return "\n".join(lines)
