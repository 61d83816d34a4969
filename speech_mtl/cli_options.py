"""Options that several commands share, and what they are turned into."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speech_mtl.terminal import fail, note, progress

if TYPE_CHECKING:
    from speech_mtl.language import Decoding
    from speech_mtl.recognizer import Recognizer

Model = Annotated[Path | None, typer.Option("--model", "-m", help="Model folder; the bundled model if not given.")]
Db = Annotated[
    Path | None,
    typer.Option(
        "--db", envvar="SPEECH_MTL_SPEAKERS",
        help="Enrolled speakers; ~/.local/share/speech_mtl/speakers.db if not given.",
    ),
]  # fmt: skip
Cosine = Annotated[
    float | None,
    typer.Option("--threshold", min=-1, max=1, help="Least cosine that is the same voice; calibrated if not given."),
]  # fmt: skip
Count = Annotated[
    int | None, typer.Option("--speakers", min=1, help="Number of voices in a recording; estimated if not given.")
]
Engine = Annotated[
    str | None,
    typer.Option("--engine", help="torch, or onnx for what `export` wrote; what the model folder holds if not given."),
]
Precision = Annotated[
    str, typer.Option("--precision", help="fp32, or bf16: faster where the processor has instructions for it.")
]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, ...")]

BeamWidth = Annotated[
    int | None,
    typer.Option(
        "--beam", metavar="N", help="Beam search over N texts, 1 to 1000, not greedy; 32 with --lm or --hot-word."
    ),
]
OWN = "own"
LmFile = Annotated[
    str | None,
    typer.Option(
        "--lm", metavar="FILE",
        help="Language model, ARPA or KenLM binary, or 'own': the model's; asks for a beam search.",
    ),
]  # fmt: skip
LmWeight = Annotated[
    float | None, typer.Option("--lm-weight", help="Weight of the language model, 0 to 10; 0.5 if not given.")
]
WordScore = Annotated[
    float | None, typer.Option("--word-score", help="Added per word with --lm, -20 to 20; 1.5 if not given.")
]
UnknownScore = Annotated[
    float | None,
    typer.Option("--unknown-score", help="Added per word that the language model lacks, -100 to 20; 0 if not given."),
]
PriorWeight = Annotated[
    float | None,
    typer.Option(
        "--prior-weight",
        help="How much frequent letters lose with --lm, 0 to 2; 0.4 for characters, 0 for longer pieces if not given.",
    ),
]
HotWords = Annotated[
    list[str] | None,
    typer.Option("--hot-word", metavar="WORD", help="A word to expect; repeatable; asks for a beam search."),
]
Boost = Annotated[float | None, typer.Option("--boost", help="Added per hot word, 0 to 50; 5 if not given.")]


def load_recognizer(
    model: Path | None,
    db: Path | None,
    threshold: float | None = None,
    device: str = "cpu",
    decoding: Decoding | None = None,
    precision: str = "fp32",
) -> Recognizer:
    """The recogniser that a command's options ask for. Raises BadParameter for a precision or a device."""
    if precision not in ("fp32", "bf16"):
        raise typer.BadParameter(f"--precision {precision}; accepted: fp32, bf16")
    with progress("loading the model"):
        from speech_mtl.recognizer import Recognizer

        return Recognizer.from_pretrained(model, checked_device(device), db, threshold, decoding, precision == "bf16")


def check_engine(engine: str | None, model: Path | None) -> None:
    """A folder holds one engine's model; asking for the other's is answered with the way to get it."""
    if engine not in (None, "torch", "onnx"):
        raise typer.BadParameter(f"--engine {engine}; accepted: torch, onnx")
    from speech_mtl.engine import GRAPH

    held = "onnx" if model and (model / GRAPH).is_file() else "torch"
    if engine == "onnx" and held == "torch":
        fail(
            f"--engine onnx: {model or 'the bundled model'} has no {GRAPH}; write it by "
            f"`speech-mtl export {f'{model} ' if model else ''}--out DIR` and give --model DIR"
        )
    if engine == "torch" and held == "onnx":
        fail(f"--engine torch: {model} is an export; give the folder that it was made from")


def check_sound(fmt: str, files: list[Path]) -> None:
    """Raises BadParameter where a page would have to hold the sound of a pipe."""
    if fmt == "html" and Path("-") in files:
        raise typer.BadParameter("an html page holds the recording's sound, which a pipe gives but once; give a file")


def check_out(targets: Iterable[Path | None], sources: Iterable[Path | str | None]) -> None:
    """Raises BadParameter where a result would be written over what it is made from."""
    read: dict[tuple[int, int] | None, Path | str | None] = {_identity(source): source for source in sources}
    for target in targets:
        if (found := _identity(target)) is not None and found in read:
            raise typer.BadParameter(f"{target} is {read[found]}, which is read and would be lost; write elsewhere")


def _identity(path: Path | str | None) -> tuple[int, int] | None:
    """The same for all names of a file; None where there is none."""
    try:
        found = None if path is None else os.stat(path)
    except (OSError, ValueError):  # a text that is too long for a name, or has zeros
        return None
    return found and (found.st_dev, found.st_ino)


def with_remarks(recognizer: Recognizer) -> Recognizer:
    for remark in recognizer.remarks():
        note(remark)
    return recognizer


def checked_device(device: str) -> str:
    """The device, if tensors can be made there. Raises BadParameter."""
    import torch

    try:  # torch has an error of its own for each kind of device that it lacks: unknown, not compiled in, not there
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise typer.BadParameter(f"--device {device}: {str(error).splitlines()[0]}") from None
    return device


def _own_lm(model: Path | None) -> str:
    """The language model of a model folder, beside its weights."""
    from speech_mtl.checkpoint import CONFIG, LM
    from speech_mtl.recognizer import PRETRAINED

    folder = model or PRETRAINED
    if (folder / CONFIG).is_file() and not (folder / LM).is_file():  # loading says what is wrong with other folders
        made = f"`speech-mtl lm TEXTS --model {folder} --out {folder / LM}` makes one"
        raise typer.BadParameter(f"--lm own: no {LM} in {folder}; {made}")
    return str(folder / LM)


def decoding_of(
    model: Path | None, beam: int | None, lm: str | None, lm_weight: float | None, word_score: float | None,
    unknown_score: float | None, prior_weight: float | None, hot_words: list[str] | None, boost: float | None,
) -> Decoding | None:  # fmt: skip
    """The beam search that was asked for; None for the best path. A setting that would do nothing is a wrong call."""
    of_lm = {
        "lm_weight": lm_weight, "word_score": word_score, "unknown_score": unknown_score, "prior_weight": prior_weight,
    }  # fmt: skip
    for name, value in of_lm.items():
        if value is not None and lm is None:
            raise typer.BadParameter(f"--{name.replace('_', '-')} has a meaning only with --lm FILE")
    if boost is not None and not hot_words:
        raise typer.BadParameter("--boost has a meaning only with --hot-word WORD")
    if beam is None and lm is None and not hot_words:
        return None
    if lm == OWN:
        lm = _own_lm(model)
    from speech_mtl.language import Decoding, DecodingError

    given = of_lm | {"beam": beam, "boost": boost, "lm": lm}
    settings = {name: value for name, value in given.items() if value is not None}
    try:
        return Decoding(**settings, hot_words=tuple(hot_words or ()))  # type: ignore[arg-type]
    except DecodingError as error:
        raise typer.BadParameter(str(error)) from None
