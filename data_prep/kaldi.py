"""A Kaldi data folder: wav.scp, and as far as they are there text, utt2spk, segments, spk2gender, reco2channel.

Takes the folder; returns one split. Further tables named ``utt2LABEL`` or ``spk2LABEL`` become labels (``lang`` is the
language). Entries of wav.scp that are commands ('... |') are left out: they are never run. lhotse.kaldi was tried for
this: it opens piped entries by running them, and stops at the first file that is missing.

Relative paths in wav.scp start, by Kaldi's habit, from the folder of the recipe: ``root`` names it; without it the
data folder, its parents and the working directory are tried. Format: https://kaldi-asr.org/doc/data_prep.html
"""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from lhotse import MonoCut, Recording

from data_prep.common import (
    LeftOut,
    Prepared,
    PrepareError,
    Unusable,
    checked_span,
    find_folder,
    gender_of,
    make_cut,
    open_recording,
    progress,
    read_table,
    to_cuts,
)

LABEL = re.compile(r"(utt|spk)2[A-Za-z0-9_]+")  # and no backup such as utt2spk.bak
NUMBER = re.compile(r"0|[1-9][0-9]*")  # and not 07, which is another label than 7
OF_SPEECH = {
    "gender": ("utt2gender", "spk2gender"), "language": ("utt2lang", "utt2language", "spk2lang", "spk2language"),
}  # fmt: skip
"""Tables of what has a field of its own; an utterance's go before its speaker's."""
NOT_LABELS = {"utt2spk", "utt2dur", "utt2num_frames", "utt2uniq", "spk2utt", *chain(*OF_SPEECH.values())}


class Segment(NamedTuple):
    """One utterance: a stretch of a recording; ``end_s`` None means its end."""

    recording: str
    start_s: float = 0.0
    end_s: float | None = None


def prepare(
    source: Path,
    *,
    split: str = "all",
    name: str = "kaldi",
    root: Path | None = None,
    language: str | None = None,
    channel: int | None = None,
) -> Prepared:
    """``name`` is the prefix of ids and speakers; ``channel`` is needed where recordings have more than one."""
    folder = find_folder(source, (".",), "wav.scp")
    if root is not None and not root.is_dir():
        raise PrepareError(f"option root: {root} is no folder; expected where wav.scp's relative paths start from")
    left_out: list[LeftOut] = []
    wavs = read_table(folder / "wav.scp")
    segments = _segments(folder, wavs, left_out)
    tables = {path.name: read_table(path) for path in _tables(folder)}
    recordings = _Recordings(wavs, [root] if root else [folder, *folder.resolve().parents[:3], Path.cwd()], name)
    cuts = []
    for utterance, segment in progress(segments.items(), f"kaldi {folder.name}", total=len(segments)):
        try:
            cuts.append(_cut(utterance, segment, recordings.open(segment.recording), tables, name, language, channel))
        except Unusable as unusable:
            left_out.append(LeftOut(utterance, str(unusable)))
    for utterance in sorted(tables["text"].keys() - segments.keys()):
        left_out.append(LeftOut(utterance, "utterance is in text but has no audio in wav.scp or segments"))
    for table, kind in zip(OF_SPEECH["gender"], ("utterance", "speaker"), strict=True):
        for item, gender in sorted(tables[table].items()):
            if gender_of(gender) is None:
                reason = f"label gender dropped, its utterances are kept: {gender!r}; accepted: f or m"
                left_out.append(LeftOut(f"{kind} {item}", reason))
    return Prepared({split: to_cuts(cuts)}, left_out)


def _tables(folder: Path) -> list[Path]:
    extra = [path for path in folder.iterdir() if LABEL.fullmatch(path.name) and path.name not in NOT_LABELS]
    known = ("text", "utt2spk", "reco2channel", *chain(*OF_SPEECH.values()))
    return [*(folder / name for name in known), *sorted(extra)]


def _segments(folder: Path, wavs: dict[str, str], left_out: list[LeftOut]) -> dict[str, Segment]:
    if not (folder / "segments").is_file():
        return {utterance: Segment(utterance) for utterance in wavs}
    segments = {}
    for utterance, line in read_table(folder / "segments").items():
        try:
            recording, start, end, *_ = line.split()
            # Kaldi writes -1 for 'to the end'.
            segments[utterance] = Segment(recording, float(start), None if float(end) == -1 else float(end))
        except ValueError:
            left_out.append(LeftOut(utterance, "segments line is not 'UTTERANCE RECORDING START END'"))
    for recording in sorted(wavs.keys() - {segment.recording for segment in segments.values()}):
        left_out.append(LeftOut(recording, "recording has no entry in segments"))
    return segments


class _Recordings:
    """Opens each recording of wav.scp once."""

    def __init__(self, wavs: dict[str, str], roots: list[Path], name: str) -> None:
        self.wavs, self.roots, self.name = wavs, roots, name
        self.opened: dict[str, Recording | Unusable] = {}

    def open(self, recording_id: str) -> Recording:
        if recording_id not in self.opened:
            try:
                path = self._path(recording_id)
                self.opened[recording_id] = open_recording(path, f"{self.name}-{recording_id}")
            except Unusable as unusable:
                self.opened[recording_id] = unusable
        result = self.opened[recording_id]
        if isinstance(result, Unusable):
            raise result
        return result

    def _path(self, recording_id: str) -> Path:
        entry = self.wavs.get(recording_id)
        if not entry:
            raise Unusable("recording is not in wav.scp")
        if entry.startswith("|") or entry.endswith("|"):
            raise Unusable("wav.scp holds a command, which is never run; accepted: the path of an audio file")
        if not Path(entry).is_file() and ".ark:" in entry:
            raise Unusable("wav.scp points into a Kaldi archive (.ark:offset); accepted: the path of an audio file")
        candidates = [root / entry for root in self.roots]
        return next((path for path in candidates if path.is_file()), candidates[0])


def _cut(
    utterance: str,
    segment: Segment,
    recording: Recording,
    tables: dict[str, dict[str, str]],
    name: str,
    language: str | None,
    channel: int | None,
) -> MonoCut:
    start_s, duration_s = checked_span(segment.start_s, segment.end_s, recording)
    speaker = tables["utt2spk"].get(utterance)
    of_utterance = {table: values.get(utterance) for table, values in tables.items() if table.startswith("utt2")}
    of_speaker = {table: values.get(speaker or "") for table, values in tables.items() if table.startswith("spk2")}
    both = of_speaker | of_utterance
    labels = {table[4:]: value for table, value in both.items() if table not in NOT_LABELS}
    gender, own_language = (next(filter(None, map(both.get, names)), None) for names in OF_SPEECH.values())
    return make_cut(
        recording,
        f"{name}-{utterance}",
        name,
        text=tables["text"].get(utterance),
        speaker=speaker,
        gender=gender,
        language=own_language or language,
        labels={label: int(value) if value and NUMBER.fullmatch(value) else value for label, value in labels.items()},
        start_s=start_s,
        duration_s=duration_s,
        channel=_channel(tables["reco2channel"].get(segment.recording), channel),
    )


def _channel(entry: str | None, channel: int | None) -> int | None:
    return {"A": 0, "1": 0, "B": 1, "2": 1}.get(entry or "", channel)
