"""Writing a prepared corpus and saying what is in it: ``write(corpus, prepared, out)``.

Writes ``out/{split}.jsonl.gz`` (lhotse cuts as JSON lines, which lhotse can open lazily) and ``out/left_out.jsonl``,
each through a temporary file and a rename, so that a reader never sees half a file. Prints a table of the splits and
one of the reasons for which items were left out. Recordings in SPHERE format are converted into ``out/audio``:
libsndfile reads them, but lhotse hands every .sph file to an external program.
"""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import soundfile
from lhotse import MonoCut, Recording
from lhotse.utils import fastcopy
from rich.console import Console
from rich.table import Table

from data_prep.common import LEFT_OUT_FILE, LeftOut, Prepared, PrepareError, progress, read_lines, write_flac

EXAMPLES_SHOWN = 3


def write(corpus: str, prepared: Prepared, out: Path, console: Console | None = None) -> None:
    """Raises PrepareError where nothing is usable, ids are not unique, or a manifest would replace its source."""
    console = console or Console()
    splits = {name: list(cuts) for name, cuts in prepared.splits.items()}
    if not any(splits.values()):
        first = prepared.left_out[0] if prepared.left_out else None
        why = f"{len(prepared.left_out)} left out, the first: {first.item}: {first.reason}" if first else "it is empty"
        raise PrepareError(f"corpus {corpus}: no usable utterance; {why}")
    _check_ids(corpus, splits)
    for split in splits:
        if (path := out / f"{split}.jsonl.gz").resolve() in [manifest.resolve() for manifest in prepared.manifests]:
            raise PrepareError(f"{path} would be replaced, which is the source; expected another --out")
    out.mkdir(parents=True, exist_ok=True)
    _convert_sphere(splits, out / "audio")
    for split, cuts in splits.items():
        _write_split(cuts, out / f"{split}.jsonl.gz")
    _write_left_out(prepared.left_out, list(splits), out / LEFT_OUT_FILE)
    console.print(split_table(corpus, splits, out))
    if prepared.left_out:
        console.print(left_out_table(prepared.left_out, out))


def _check_ids(corpus: str, splits: dict[str, list[MonoCut]]) -> None:
    for split, cuts in splits.items():
        repeated = [cut_id for cut_id, count in Counter(cut.id for cut in cuts).items() if count > 1]
        if repeated:
            raise PrepareError(f"corpus {corpus}, split {split}: id {repeated[0]} occurs twice; ids must be unique")
    paths: dict[str, Path] = {}
    for cut in (cut for cuts in splits.values() for cut in cuts):
        if (path := paths.setdefault(cut.recording_id, _path(cut))) != _path(cut):
            raise PrepareError(f"corpus {corpus}: {path} and {_path(cut)} would both be recording {cut.recording_id}")


def _convert_sphere(splits: dict[str, list[MonoCut]], folder: Path) -> None:
    """Point the cuts of .sph recordings to FLAC copies (lossless), one per recording."""
    cuts = [cut for of_split in splits.values() for cut in of_split if _path(cut).suffix.lower() == ".sph"]
    converted: dict[str, Recording] = {}
    for cut in progress(cuts, "converting .sph") if cuts else []:
        if cut.recording_id not in converted:
            path = folder / f"{cut.recording_id}.flac"
            samples, rate = soundfile.read(_path(cut), dtype="int16")
            write_flac(path, samples, rate)
            source = fastcopy(cut.recording.sources[0], source=str(path.resolve()))
            converted[cut.recording_id] = fastcopy(cut.recording, sources=[source])
        cut.recording = converted[cut.recording_id]


def _path(cut: MonoCut) -> Path:
    return Path(cut.recording.sources[0].source)


def _write_split(cuts: list[MonoCut], path: Path) -> None:
    if not cuts:
        # lhotse cannot open an empty file; a file of an earlier run would be taken for this one's.
        path.unlink(missing_ok=True)
        return
    temporary = path.with_name(f".{path.name.removesuffix('.jsonl.gz')}.{os.getpid()}.jsonl.gz")
    # without the time and the name that gzip puts in: the same cuts are the same file
    with temporary.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        for cut in cuts:
            packed.write(json.dumps(cut.to_dict(), ensure_ascii=False).encode() + b"\n")
    temporary.replace(path)


def _write_left_out(left_out: Iterable[LeftOut], splits: list[str], path: Path) -> None:
    """Where splits are prepared one by one into a folder, each call replaces the entries of its own split alone."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    split = splits[0] if len(splits) == 1 else None
    entries = [json.loads(line) for line in read_lines(path)] if split is not None and path.exists() else []
    kept = [entry for entry in entries if entry.get("split", split) != split]
    kept += [{"item": item.item, "reason": item.reason} | ({"split": split} if split else {}) for item in left_out]
    lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in kept)
    temporary.write_text("".join(lines), encoding="utf-8")
    temporary.replace(path)


def split_table(corpus: str, splits: dict[str, list[MonoCut]], out: Path) -> Table:
    table = Table("split", title=f"{corpus} -> {out}", title_justify="left")
    for column in ("speakers", "utterances", "hours"):
        table.add_column(column, justify="right")
    table.add_column("labels (utterances that carry them)")
    for split, cuts in splits.items():
        speakers = {supervision.speaker for cut in cuts for supervision in cut.supervisions} - {None}
        hours = sum(cut.duration for cut in cuts) / 3600
        labels = ", ".join(f"{label} {count}" for label, count in label_counts(cuts).items())
        table.add_row(
            split,
            str(len(speakers)),
            str(sum(len(cut.supervisions) for cut in cuts)),
            f"{hours:.2f}",
            labels or ("none" if cuts else "no file written"),
        )
    return table


def label_counts(cuts: Iterable[MonoCut]) -> Counter[str]:
    """How many utterances carry each label; word times count as the label 'word times'."""
    counts: Counter[str] = Counter()
    for supervision in (supervision for cut in cuts for supervision in cut.supervisions):
        counts.update(name for name in ("text", "speaker", "gender", "language") if getattr(supervision, name))
        counts.update(name for name in supervision.custom or {} if name != "corpus")
        counts.update(["word times"] if supervision.alignment else [])
    return counts


def left_out_table(left_out: list[LeftOut], out: Path) -> Table:
    of_reason = defaultdict(list)
    for item in left_out:
        of_reason[item.reason].append(item.item)
    title = f"left out: {len(left_out)}, all in {out / LEFT_OUT_FILE}"
    table = Table("left out because", title=title, title_justify="left")
    table.add_column("items", justify="right")
    table.add_column("for example")
    for reason, items in sorted(of_reason.items(), key=lambda pair: -len(pair[1])):
        table.add_row(reason, str(len(items)), ", ".join(items[:EXAMPLES_SHOWN]))
    return table
