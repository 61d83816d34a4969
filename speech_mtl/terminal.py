"""What the commands share: known errors as one line and an exit code, notes, progress, and lists of files.

stdout carries results only; notes, progress and errors go to stderr. Exit code 0: everything asked for was done;
2: a wrong call; 1: anything else; 130: interrupted.
"""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, ParamSpec

import typer

P = ParamSpec("P")

# The known errors, by where they are defined: one of them can only be raised once its module is loaded.
KNOWN_ERRORS = {
    "speech_mtl.audio": "AudioError", "speech_mtl.data": "DataError", "speech_mtl.checkpoint": "CheckpointError",
    "speech_mtl.speakers": "SpeakerDatabaseError", "speech_mtl.language": "DecodingError",
    "speech_mtl.trunk": "RecognitionLost", "speech_mtl.engine": "EngineError", "data_prep": "PrepareError",
    "speech_mtl.train": "Diverged",
}  # fmt: skip


def write_all_characters() -> None:
    """Have stdout and stderr write names and signs that their encoding lacks: files and pipes get UTF-8, as --out does.

    A terminal keeps its encoding, which it alone knows, and shows what is beyond it as escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what replaces them in a notebook or a test is of other kinds
            encoding = stream.encoding if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")


def guarded(function: Callable[P, None]) -> Callable[P, None]:
    """The command, with its known errors shown without a traceback."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except KeyboardInterrupt:
            fail("interrupted", 130)
        except Exception as error:
            code = _exit_code(error)
            if code is None:
                raise
            fail(_sentence(error), code)

    return run


def _exit_code(error: Exception) -> int | None:
    """2 for a wrong call, 1 for a known error, None for one that is the program's own fault."""
    config = sys.modules.get("speech_mtl.config")
    if config and isinstance(error, config.ConfigError):
        return 2
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):  # that one is typer's: `| head`
        return 1
    known = tuple(getattr(sys.modules[module], name) for module, name in KNOWN_ERRORS.items() if module in sys.modules)
    return 1 if isinstance(error, known) else None


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def fail(message: str, code: int = 1) -> NoReturn:
    """Show each line of the message as an error, and end with the code."""
    for line in message.splitlines():
        typer.echo(f"error: {line}", err=True)
    raise typer.Exit(code)


def note(message: str) -> None:
    """A line for the person, not part of the result."""
    typer.echo(message, err=True)


@contextmanager
def progress(what: str, total: float | None = None) -> Iterator[Callable[[float], None]]:
    """A bar on stderr, if that is a terminal; yields the function that says how much of `total` is done."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    # results printed meanwhile go above the bar where both share a screen, and past rich where they are piped
    shared = sys.stdout.isatty()
    with Progress(console=console, transient=True, disable=not console.is_terminal, redirect_stdout=shared) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def bad_ones_last(what: str, files: Sequence[Path]) -> Iterator[tuple[Callable[[float], None], list[str]]]:
    """A bar that counts files, and a list for what is wrong with some: it is shown last, with exit code 1."""
    bad: list[str] = []
    with progress(what, len(files)) as show:
        yield show, bad
    if bad and len(files) > 1:
        note(f"{len(files) - len(bad)} of {len(files)} files done; not done:")
    if bad:
        fail("\n".join(bad))


def for_each_file(what: str, files: Iterable[Path], work: Callable[[Path, Callable[[float], None]], object]) -> None:
    """`work(file, show_share_done)` for every file; the bad ones are listed at the end, and the exit code is then 1."""
    from speech_mtl.audio import AudioError

    files = list(files)
    with bad_ones_last(what, files) as (show, bad):
        for i, file in enumerate(files):
            try:
                work(file, lambda share, i=i: show(i + share))  # type: ignore[misc]
            except AudioError as error:
                bad.append(str(error))
            show(i + 1)
