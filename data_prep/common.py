"""What every corpus file needs: the result it returns, and how a recording becomes a cut.

A corpus module is one file with ``prepare(source: Path, **options) -> Prepared``. Whatever it cannot use goes into
``Prepared.left_out`` with a reason that names the value found and what would be accepted; nothing vanishes silently.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_prep import PrepareError

# Times in manifests are rounded; an end this little past the recording is taken as its end.
END_TOLERANCE_S = 0.1
LEFT_OUT_FILE = "left_out.jsonl"
GENDERS = {"f": "female", "female": "female", "m": "male", "male": "male"}


@dataclass(frozen=True)
class LeftOut:
    """One item (a file, an utterance, a line) that is in no split, and why."""

    item: str
    reason: str


@dataclass
class Prepared:
    """A corpus after preparation: a CutSet per split, and everything that is in none of them."""

    splits: dict[str, CutSet]
    left_out: list[LeftOut] = field(default_factory=list)
    manifests: list[Path] = field(default_factory=list)
    """What it was read from, if a split might be written there."""


class Unusable(Exception):
    """One recording that cannot be used; callers turn it into a LeftOut."""


def open_recording(path: Path, recording_id: str) -> Recording:
    """Read the header of an audio file; raise Unusable with a reason when there is nothing to train on in it."""
    if not path.is_file():
        raise Unusable("audio file is missing")
    try:
        info = soundfile.info(str(path))
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise Unusable(f"audio file is unreadable ({_reason_of(error)})") from error
    if info.frames == 0:
        raise Unusable("audio file holds no samples")
    source = AudioSource(type="file", channels=list(range(info.channels)), source=str(path.resolve()))
    return Recording(
        id=recording_id,
        sources=[source],
        sampling_rate=info.samplerate,
        num_samples=info.frames,
        duration=info.frames / info.samplerate,
    )


def _reason_of(error: Exception) -> str:
    # libsndfile's message repeats the path; without it equal reasons group into one line of the table.
    return str(error).rsplit(": ", 1)[-1].strip().rstrip(".") or type(error).__name__


def make_cut(
    recording: Recording,
    cut_id: str,
    corpus: str,
    *,
    text: str | None = None,
    speaker: str | None = None,
    gender: str | None = None,
    language: str | None = "en",
    labels: dict[str, Any] | None = None,
    start_s: float = 0.0,
    duration_s: float | None = None,
    channel: int | None = None,
) -> MonoCut:
    """A cut with exactly one supervision over its whole length; an empty label is absent (None), never ''.

    So is a text without a letter or digit: tables have a '-' where it is not known.
    """
    if channel is None and len(recording.channel_ids) > 1:
        raise Unusable(f"audio has {len(recording.channel_ids)} channels; name the one to use with the option channel")
    channel = channel or 0
    if channel not in recording.channel_ids:
        raise Unusable(f"channel {channel} is not in the audio, which has {len(recording.channel_ids)}")
    duration_s = recording.duration - start_s if duration_s is None else duration_s
    supervision = SupervisionSegment(
        id=cut_id,
        recording_id=recording.id,
        start=0.0,
        duration=duration_s,
        channel=channel,
        text=text if any(map(str.isalnum, text or "")) else None,
        speaker=f"{corpus}-{name}" if (name := (speaker or "").strip()) else None,
        gender=gender_of(gender),
        language=language or None,
        custom={"corpus": corpus, **{k: v for k, v in (labels or {}).items() if v not in (None, "")}},
    )
    return MonoCut(
        id=cut_id,
        start=start_s,
        duration=duration_s,
        channel=channel,
        recording=recording,
        supervisions=[supervision],
        custom={"corpus": corpus},
    )


def checked_span(start_s: float, end_s: float | None, recording: Recording) -> tuple[float, float]:
    """(start, duration) of a stretch of a recording; no end means the recording's end."""
    end_s = recording.duration if end_s is None else end_s
    if not (math.isfinite(start_s) and math.isfinite(end_s)):
        raise Unusable("start or end is no finite number")
    if start_s < 0:
        raise Unusable("start is before the recording's beginning")
    if end_s <= start_s:
        raise Unusable("end is not after the start")
    if end_s > recording.duration + END_TOLERANCE_S:
        raise Unusable(f"end is more than {END_TOLERANCE_S} s after the recording's end")
    if start_s >= recording.duration:
        raise Unusable("start is not before the recording's end")
    return start_s, min(end_s, recording.duration) - start_s


def gender_of(value: str | None) -> str | None:
    """'f', 'F', 'female' -> 'female'; 'm', ... -> 'male'; anything else is no label."""
    return GENDERS.get((value or "").strip().lower())


def check_counts(least: int, **options: int) -> None:
    """Raises PrepareError for an option below `least`."""
    for name, value in options.items():
        if value < least:
            raise PrepareError(f"option {name}: {value} given; accepted: {least} or more")


def check_shares(**options: float) -> None:
    """Raises PrepareError for an option that is no share."""
    for name, share in options.items():
        if not 0 <= share <= 1:
            raise PrepareError(f"option {name}: {share} given; accepted: a share from 0 to 1")


def find_folder(source: Path, candidates: Sequence[str], needs: str) -> Path:
    """The first of source/candidate that holds ``needs`` (a file or folder); PrepareError when none does."""
    if not source.is_dir():
        raise PrepareError(f"source {source}: no such folder; expected a folder that holds {needs}")
    for candidate in candidates:
        if (source / candidate / needs).exists():
            return source / candidate
    found = ", ".join(sorted(path.name for path in source.iterdir())[:8]) or "nothing"
    places = " or ".join(str(Path(candidate) / needs) for candidate in candidates)
    raise PrepareError(f"source {source}: holds {found}; expected {places}")


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, gzipped or not; only a line feed, after a carriage return or not, ends one.

    Raises PrepareError where it is no such file.
    """
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = 1 + data[: error.start].count(b"\n")
        raise PrepareError(f"{path} line {number}: not UTF-8 ({error.reason}); accepted: text in UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        raise PrepareError(f"{path}: cannot be read: {error}") from None
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines if lines[-1] else lines[:-1]


def read_table(path: Path) -> dict[str, str]:
    """A Kaldi-style table: the first word of a line is the key, the rest the value. No file, no entries."""
    table: dict[str, str] = {}
    for number, line in enumerate(read_lines(path) if path.is_file() else [], start=1):
        key, *value = line.strip().split(None, 1) or [""]
        if key in table:
            raise PrepareError(f"{path} line {number}: {key} stands there twice; expected one line each")
        if key:
            table[key] = value[0] if value else ""
    return table


def write_flac(path: Path, samples: np.ndarray, rate: int) -> None:
    """16-bit FLAC, whole or not there; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    soundfile.write(part, samples, rate, subtype="PCM_16", format="FLAC")
    part.replace(path)


def progress(items: Iterable[Any], description: str, total: int | None = None) -> Iterator[Any]:
    """A bar on standard error, so that standard output stays fit for pipes."""
    total = len(items) if total is None and isinstance(items, Sized) else total
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield from bar.track(items, total=total, description=description)


def to_cuts(cuts: Iterable[MonoCut]) -> CutSet:
    """A CutSet in the order of the ids, so that the same source gives the same file on any file system."""
    return CutSet.from_cuts(sorted(cuts, key=lambda cut: cut.id))
