"""speech-mtl transcribe: recordings -> who said what, on stdout or in a file each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speech_mtl import formats
from speech_mtl.cli_options import (
    BeamWidth,
    Boost,
    Cosine,
    Count,
    Db,
    Device,
    Engine,
    HotWords,
    LmFile,
    LmWeight,
    Model,
    Precision,
    PriorWeight,
    UnknownScore,
    WordScore,
    check_engine,
    check_out,
    check_sound,
    decoding_of,
    load_recognizer,
    with_remarks,
)  # fmt: skip
from speech_mtl.terminal import bad_ones_last, guarded, note

if TYPE_CHECKING:
    from speech_mtl.recognizer import Recognizer
    from speech_mtl.results import Result, Segment


@guarded
def transcribe(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="Any format that libsndfile reads; - is wav from stdin.")
    ],
    fmt: Annotated[str, typer.Option("--format", "-f", help=", ".join(formats.FORMATS) + ".")] = "txt",
    out: Annotated[Path | None, typer.Option(help="Folder for one file per recording; stdout if not given.")] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Words on stdout as soon as they are final, ahead of the result's names.")
    ] = False,
    model: Model = None,
    db: Db = None,
    threshold: Cosine = None,
    count: Count = None,
    engine: Engine = None,
    precision: Precision = "fp32",
    device: Device = "cpu",
    beam: BeamWidth = None,
    lm: LmFile = None,
    lm_weight: LmWeight = None,
    word_score: WordScore = None,
    unknown_score: UnknownScore = None,
    prior_weight: PriorWeight = None,
    hot_word: HotWords = None,
    boost: Boost = None,
) -> None:
    """Who said what: text, times and enrolled speakers. json gives one object a line.

    With --stream words come as they are final, as lines that begin with ~, or as json objects with "provisional": true;
    who said them is settled at the recording's end, by the result that follows.

    \b
    Example: speech-mtl transcribe meeting.wav --format srt --out subtitles
    """
    if fmt not in formats.FORMATS:
        raise typer.BadParameter(f"--format {fmt}; accepted: {', '.join(formats.FORMATS)}")
    if out is None and len(files) > 1 and fmt not in formats.JOINABLE:
        raise typer.BadParameter(f"several recordings as {fmt} do not fit in one stream; give --out DIR")
    names = [formats.recording_id(file) for file in files] if out is None and fmt in formats.NAMED else []
    if twice := [name for name in names if names.count(name) > 1]:
        raise typer.BadParameter(f"two recordings would both be '{twice[0]}' in one {fmt}; transcribe them one by one")
    check_sound(fmt, files)
    if stream and out is None and fmt not in ("txt", "json"):
        raise typer.BadParameter(f"--stream writes to stdout, where {fmt} would not be alone; give --out DIR")
    if out and not out.is_dir() and (out.exists() or out.suffix == f".{fmt}"):
        raise typer.BadParameter(f"--out {out}: expected a folder, for one file a recording; or write > {out}")
    targets = {file: out / f"{file.stem}.{fmt}" for file in files} if out else {}
    if len(set(targets.values())) < len(targets):
        raise typer.BadParameter(f"two recordings have the same name and would share one file in {out}")
    check_out(targets.values(), [*files, lm, db])
    check_engine(engine, model)
    decoding = decoding_of(model, beam, lm, lm_weight, word_score, unknown_score, prior_weight, hot_word, boost)
    recognizer = with_remarks(load_recognizer(model, db, threshold, device, decoding, precision))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    _transcribe(recognizer, files, fmt, targets, stream, count)


def _transcribe(
    recognizer: Recognizer, files: list[Path], fmt: str, targets: dict[Path, Path], stream: bool, count: int | None
) -> None:
    """The files' results to their targets, or to stdout where there are none."""
    from speech_mtl.audio import AudioError
    from speech_mtl.checkpoint import write_atomically

    def early(name: str, segment: Segment) -> None:
        typer.echo(formats.stream_line(name, segment, fmt), nl=False)

    def write(file: Path, result: Result) -> None:
        for remark in result.notes:
            note(f"{file}: {remark}")
        text = formats.format_result(result, fmt)
        if file not in targets:
            typer.echo(text, nl=False)
            return
        target = targets[file].resolve()
        if target.exists() and not target.is_file():  # a device is written to, never replaced
            target.write_text(text, encoding="utf-8")
        else:
            write_atomically(target, lambda part: part.write_text(text, encoding="utf-8"))
        note(f"written: {targets[file]}")

    with bad_ones_last("transcribing", files) as (show, bad):
        results = recognizer.transcribe_all(files, show, count, early if stream else None)
        for file, result in zip(files, results, strict=True):
            try:
                if isinstance(result, AudioError):
                    raise result
                write(file, result)
                if result.damage:
                    bad.append(f"{result.damage}; what comes before is transcribed")
            except AudioError as error:
                bad.append(str(error))
            except OSError as error:
                if file not in targets or isinstance(error, BrokenPipeError):  # nobody reads on
                    raise
                bad.append(f"{targets[file]}: {error.strerror}")
