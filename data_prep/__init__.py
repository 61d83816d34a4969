"""Corpora on disk -> lhotse CutSets: ``prepare(corpus, source, out)`` writes ``out/{split}.jsonl.gz``, one per split.

Every cut has exactly one supervision (a conversation's one an utterance) with the labels the corpus knows: text,
speaker, gender, language, and in its ``custom`` dictionary the corpus and further labels; a label the corpus lacks is
absent. What was left out is printed by reason and listed in ``out/left_out.jsonl``.

A new corpus is one module with ``prepare(source: Path, **options) -> Prepared`` and one line in CORPORA. Where it has
a public address the module also has ``archives(**options) -> list[Archive]``; where it writes its own audio (no
``--source`` needed) it sets ``GENERATES = True`` and gets the folder to write to as ``source``; where it writes audio
made from its source, its ``prepare`` takes that folder as ``audio``.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
from pathlib import Path
from types import ModuleType
from typing import Any

CORPORA: dict[str, str] = {
    "fsdd": "data_prep.fsdd",
    "an4": "data_prep.an4",
    "speechocean762": "data_prep.speechocean762",
    "librispeech": "data_prep.librispeech",
    "kaldi": "data_prep.kaldi",
    "jsonl": "data_prep.jsonl",
    "synthetic": "data_prep.synthetic",
    "kokoro": "data_prep.kokoro",
    "spliced": "data_prep.spliced",
    "noises": "data_prep.noises",
    "rooms": "data_prep.rooms",
    "conversations": "data_prep.conversations",
}


class PrepareError(ValueError):
    """A source that cannot be prepared; the message names the item, the value found and what would be accepted."""


def prepare(corpus: str, source: Path | None, out: Path, *, download: bool = False, **options: Any) -> Path:
    """Prepare one corpus into the folder ``out`` and print what is in it; returns ``out``."""
    from data_prep.output import write  # here, so that the list of corpora is cheap to show in --help

    module = load(corpus)
    out = Path(out)
    options = _checked(corpus, options)
    if download:
        if not hasattr(module, "archives"):
            raise PrepareError(f"corpus {corpus}: has no public address to --download from; expected --source DIR")
        from data_prep.download import fetch

        accepted = inspect.signature(module.archives).parameters
        archives = module.archives(**{name: value for name, value in options.items() if name in accepted})
        source = fetch(archives, Path(source) if source else out / "source")
    elif source is None:
        if not getattr(module, "GENERATES", False):
            also = " or --download" if hasattr(module, "archives") else ""
            raise PrepareError(f"corpus {corpus}: no source given; expected --source DIR{also}")
        source = out / "audio"
    elif not Path(source).exists() and not getattr(module, "GENERATES", False):
        raise PrepareError(f"source {source}: no such file or folder")
    if "audio" in inspect.signature(module.prepare).parameters:
        options["audio"] = out / "audio"
    write(corpus, module.prepare(Path(source), **options), out)
    return out


def load(corpus: str) -> ModuleType:
    """The module of a corpus; PrepareError with the nearest name when there is none."""
    if corpus not in CORPORA:
        raise PrepareError(f"corpus {corpus!r} is unknown{_nearest(corpus, CORPORA)}; accepted: {', '.join(CORPORA)}")
    return importlib.import_module(CORPORA[corpus])


def options_of(corpus: str) -> dict[str, inspect.Parameter]:
    """The extra options of a corpus, by name: what its prepare() takes after the source, with types and defaults."""
    parameters = inspect.signature(load(corpus).prepare, eval_str=True).parameters
    return {name: parameter for name, parameter in parameters.items() if name not in ("source", "audio")}


def _checked(corpus: str, options: dict[str, Any]) -> dict[str, Any]:
    """Options as their types say; text (from a command line) is converted, an unknown option is refused."""
    known = options_of(corpus)
    for name in options:
        if name not in known:
            accepted = ", ".join(known) or "none"
            nearest = _nearest(name, known)
            raise PrepareError(f"option {name!r} is unknown for {corpus}{nearest}; accepted: {accepted}")
    return {name: _converted(name, value, known[name].annotation) for name, value in options.items()}


def _converted(name: str, value: Any, annotation: Any) -> Any:
    if not isinstance(value, str):
        return value
    types = {int: int, int | None: int, float: float, Path: Path, Path | None: Path, str: str, str | None: str}
    if annotation == tuple[str, ...]:
        return tuple(part.strip() for part in value.split(",") if part.strip())
    try:
        converted = types[annotation](value)
    except ValueError as error:
        raise PrepareError(f"option {name}: {value!r} is no {types[annotation].__name__}") from error
    if isinstance(converted, float) and not math.isfinite(converted):
        raise PrepareError(f"option {name}: {value!r} given; accepted: a finite number")
    return converted


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
