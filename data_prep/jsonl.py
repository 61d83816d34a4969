"""A JSON-lines manifest, as NeMo writes them: one object a line.

``audio_filepath`` (relative to the manifest), and as far as they are there ``offset`` and ``duration`` in seconds,
``text``, ``speaker``, ``gender``, ``language`` (or ``lang``), ``channel``; every further field that is text or a number
becomes a label. Takes one .jsonl or .json file, gzipped or not, or a folder of them: one split per file, named after
it. A line that cannot be used is left out with its number and the reason.

Format: https://docs.nvidia.com/nemo-framework/user-guide/latest/nemotoolkit/asr/datasets.html
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lhotse import MonoCut, Recording

from data_prep.common import (
    GENDERS,
    LEFT_OUT_FILE,
    LeftOut,
    Prepared,
    PrepareError,
    Unusable,
    checked_span,
    make_cut,
    open_recording,
    progress,
    read_lines,
    to_cuts,
)

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")

TYPES: dict[str, tuple[type, ...]] = {
    "audio_filepath": (str,),
    "offset": (int, float),
    "duration": (int, float),
    "text": (str,),
    "speaker": (str, int),
    "gender": (str,),
    "language": (str,),
    "lang": (str,),
    "channel": (int,),
}


def prepare(source: Path, *, name: str = "jsonl", language: str | None = None, channel: int | None = None) -> Prepared:
    """``name`` is the prefix of ids and speakers; ``language`` and ``channel`` hold where a line names none."""
    files = [source] if source.is_file() else _manifests(source)
    left_out: list[LeftOut] = []
    opened: dict[Path, Recording] = {}
    splits = {_split(file): to_cuts(_read(file, name, language, channel, opened, left_out)) for file in files}
    return Prepared(splits, left_out, files)


def _manifests(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.glob("*") if path.name.endswith(SUFFIXES) and path.name != LEFT_OUT_FILE)
    if not files:
        raise PrepareError(f"source {folder}: no .jsonl or .json file; expected a manifest or a folder of manifests")
    of_split = {_split(file): file for file in files}
    for file in files:
        if (other := of_split[_split(file)]) != file:
            raise PrepareError(f"source {folder}: {file.name} and {other.name} would both be split {_split(file)!r}")
    return files


def _split(file: Path) -> str:
    """The file's name without what says its format."""
    return next((file.name.removesuffix(suffix) for suffix in SUFFIXES if file.name.endswith(suffix)), file.stem)


def _read(
    file: Path, name: str, language: str | None, channel: int | None, opened: dict[Path, Recording],
    left_out: list[LeftOut],
) -> list[MonoCut]:  # fmt: skip
    cuts = []
    lines = read_lines(file)
    for number, line in enumerate(progress(lines, f"jsonl {file.name}"), start=1):
        if not line.strip():
            continue
        item = f"{file.name} line {number}"
        try:
            entry, dropped = _parse(line)
            recording = _recording(file.parent / entry["audio_filepath"], name, opened)
            entry = {"language": language, "channel": channel, **entry}
            cuts.append(_cut(entry, recording, f"{name}-{_split(file)}-{number:06d}", name))
        except Unusable as unusable:
            left_out.append(LeftOut(item, str(unusable)))
        else:
            left_out += [LeftOut(item, reason) for reason in dropped]
    return cuts


def _parse(line: str) -> tuple[dict[str, Any], list[str]]:
    """The fields of a line that can be used, and what was dropped of a line that is kept."""
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise Unusable(f"line is not JSON ({error.msg})") from error
    if not isinstance(entry, dict):
        raise Unusable(f"line is a JSON {type(entry).__name__}; accepted: an object")
    entry = {key: value for key, value in entry.items() if value is not None and value != ""}
    if "audio_filepath" not in entry:
        raise Unusable("field audio_filepath is missing")
    for key, accepted in TYPES.items():
        value = entry.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, accepted)):
            expected = " or ".join(kind.__name__ for kind in accepted)
            raise Unusable(f"field {key} is of type {type(value).__name__}; accepted: {expected}")
    dropped = []
    for key in [key for key in entry if key not in TYPES and not isinstance(entry[key], (str, int, float))]:
        kind = type(entry.pop(key)).__name__
        dropped.append(f"label {key} dropped, the line is kept: type {kind}; accepted: text or number")
    if entry.get("gender", "f").lower() not in GENDERS:
        gender = entry.pop("gender")
        dropped.append(f"label gender dropped, the line is kept: {gender!r}; accepted: {', '.join(GENDERS)}")
    return entry, dropped


def _recording(path: Path, name: str, opened: dict[Path, Recording]) -> Recording:
    if path not in opened:
        # The path's place in the manifests makes the id unique where two folders hold files of one name.
        opened[path] = open_recording(path, f"{name}-{path.stem}-{len(opened)}")
    return opened[path]


def _cut(entry: dict[str, Any], recording: Recording, cut_id: str, name: str) -> MonoCut:
    offset_s, duration_s = float(entry.get("offset", 0.0)), entry.get("duration")
    end_s = None if duration_s is None else offset_s + duration_s
    start_s, duration_s = checked_span(offset_s, end_s, recording)
    return make_cut(
        recording,
        cut_id,
        name,
        text=entry.get("text"),
        speaker=str(entry["speaker"]) if "speaker" in entry else None,
        gender=entry.get("gender"),
        language=entry.get("lang") or entry.get("language"),
        labels={key: value for key, value in entry.items() if key not in TYPES},
        start_s=start_s,
        duration_s=duration_s,
        channel=entry.get("channel"),
    )
