"""Every corpus in its own layout, made small in a temporary folder: splits, labels, what is left out, errors."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import lhotse
import numpy as np
import pytest
import soundfile
from lhotse import CutSet, load_manifest_lazy

import data_prep
from data_prep.common import PrepareError
from data_prep.download import Archive, fetch

REAL = os.environ.get("SPEECH_MTL_DATA")
real_data = [
    pytest.mark.real_data,
    pytest.mark.skipif(REAL is None, reason="SPEECH_MTL_DATA does not name the folder with fsdd/, an4/, ..."),
]


def sine(path: Path, seconds: float = 0.25, rate: int = 8000, channels: int = 1, **options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.1 * np.sin(2 * np.pi * 220 * np.arange(round(seconds * rate)) / rate)
    soundfile.write(path, np.tile(wave[:, None], channels), rate, **options)
    return path


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def read(out: Path) -> tuple[dict[str, CutSet], dict[str, str]]:
    """The splits of a prepared folder and {item: reason} of what was left out; every cut keeps the contract."""
    splits = {path.name.removesuffix(".jsonl.gz"): load_manifest_lazy(path) for path in out.glob("*.jsonl.gz")}
    for split, cuts in splits.items():
        assert cuts.is_lazy, split
        assert len({cut.id for cut in cuts}) == len(list(cuts)), split
        for cut in cuts:
            lhotse.validate(cut, read_data=False)
            (supervision,) = cut.supervisions
            assert (supervision.start, supervision.duration) == (0, cut.duration)
            assert Path(cut.recording.sources[0].source).is_absolute()
            assert "" not in (supervision.speaker, supervision.gender, supervision.language)
            assert (supervision.text == "") == (cut.custom["corpus"] == "noises")  # where nothing is said
            assert supervision.custom["corpus"] == cut.custom["corpus"]
            assert cut.load_audio().shape == (1, cut.num_samples)
    lines = [json.loads(line) for line in (out / "left_out.jsonl").read_text().splitlines()]
    return splits, {line["item"]: line["reason"] for line in lines}


def ids(cuts: CutSet) -> list[str]:
    return [cut.id for cut in cuts]


def test_every_registered_corpus_has_a_documented_prepare() -> None:
    for corpus in data_prep.CORPORA:
        module = data_prep.load(corpus)
        assert module.__doc__
        for option in data_prep.options_of(corpus).values():
            assert option.kind is option.KEYWORD_ONLY and option.annotation is not option.empty


# ---------------------------------------------------------------- fsdd


def make_fsdd(root: Path) -> Path:
    for speaker in ("theo", "newcomer"):
        for index in (0, 4, 5, 9, 10, 49):
            sine(root / "recordings" / f"7_{speaker}_{index}.wav")
    return root


@pytest.mark.parametrize("given", [".", "recordings", ".."])
def test_fsdd_splits_by_index(tmp_path: Path, given: str) -> None:
    root = make_fsdd(tmp_path / "corpora" / "fsdd")
    splits, left_out = read(data_prep.prepare("fsdd", root / given, tmp_path / "out"))
    assert {split: len(list(cuts)) for split, cuts in splits.items()} == {"train": 4, "dev": 4, "test": 4}
    assert ids(splits["test"]) == [f"fsdd-7_{s}_{i}" for s in ("newcomer", "theo") for i in (0, 4)]
    newcomer, theo = splits["test"][0].supervisions[0], splits["test"][2].supervisions[0]
    assert (theo.text, theo.speaker, theo.gender, theo.language) == ("seven", "fsdd-theo", "male", "en")
    assert theo.custom == {"corpus": "fsdd", "accent": "USA/neutral"}
    assert (newcomer.gender, newcomer.custom) == (None, {"corpus": "fsdd"})
    assert left_out == {}


def test_fsdd_says_what_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_fsdd(tmp_path / "fsdd")
    (root / "recordings" / "7_theo_11.wav").write_bytes(b"not audio")
    sine(root / "recordings" / "7_theo_12.wav", seconds=0)
    sine(root / "recordings" / "cough.wav")
    _, left_out = read(data_prep.prepare("fsdd", root, tmp_path / "out"))
    assert left_out["cough.wav"] == "file name is not {digit}_{speaker}_{index}.wav"
    assert left_out["7_theo_11.wav"].startswith("audio file is unreadable")
    assert left_out["7_theo_12.wav"] == "audio file holds no samples"
    printed = capsys.readouterr().out
    assert "left out: 3" in printed and "cough.wav" in printed and "speakers" in printed


# ---------------------------------------------------------------- an4


def make_an4(root: Path, suffix: str = ".wav", speakers: int = 18) -> Path:
    options = {"format": "NIST"} if suffix == ".sph" else {}
    lines: dict[str, list[str]] = {"train": [], "test": []}
    texts: dict[str, list[str]] = {"train": [], "test": []}
    for part, count in (("train", speakers), ("test", 2)):
        folder = "an4_clstk" if part == "train" else "an4test_clstk"
        for number in range(count):
            speaker = f"{'fm'[number % 2]}{part[:2]}{number:02d}"
            for utterance in ("an1", "an2", "cen1", "cen2"):
                name = f"{utterance}-{speaker}-b"
                sine(root / "wav" / folder / speaker / (name + suffix), rate=16000, **options)
                lines[part].append(f"{folder}/{speaker}/{name}")
                texts[part].append(f"<s> ERASE G M </s> ({name})" if part == "train" else f"ERASE G M ({name})")
    for part in lines:
        write(root / "etc" / f"an4_{part}.fileids", *lines[part])
        write(root / "etc" / f"an4_{part}.transcription", *texts[part])
    return root


@pytest.mark.parametrize(("suffix", "given"), [(".wav", "."), (".sph", "..")])
def test_an4_holds_speakers_out_and_enrols(tmp_path: Path, suffix: str, given: str) -> None:
    root = make_an4(tmp_path / "an4", suffix)
    splits, left_out = read(data_prep.prepare("an4", root / given, tmp_path / "out"))
    counts = {split: len(list(cuts)) for split, cuts in splits.items()}
    assert counts == {"train": 64, "dev": 8, "test": 8, "enroll": 6, "trial": 2, "dev_enroll": 6, "dev_trial": 2}
    speakers = {split: {cut.supervisions[0].speaker for cut in cuts} for split, cuts in splits.items()}
    assert not speakers["train"] & (speakers["dev"] | speakers["test"])
    assert speakers["dev"] == {"an4-ftr10", "an4-mtr17"}  # the 6th and 18th in sorted order
    assert sorted(ids(splits["enroll"]) + ids(splits["trial"])) == ids(splits["test"])
    assert ids(splits["trial"]) == ["an4-cen2-fte00-b", "an4-cen2-mte01-b"]
    first = splits["train"][0].supervisions[0]
    assert (first.text, first.speaker, first.gender) == ("ERASE G M", "an4-ftr00", "female")
    assert left_out == {}
    assert (tmp_path / "out" / "audio").exists() == (suffix == ".sph")  # lhotse cannot read .sph by itself
    source = root / "wav" / "an4_clstk" / "ftr00" / f"an1-ftr00-b{suffix}"
    np.testing.assert_array_equal(splits["train"][0].load_audio()[0], soundfile.read(source, dtype="float32")[0])


def test_an4_names_raw_missing_and_unlisted_files(tmp_path: Path) -> None:
    root = make_an4(tmp_path / "an4", speakers=6)
    folder = root / "wav" / "an4_clstk" / "ftr00"
    (folder / "an1-ftr00-b.wav").rename(folder / "an1-ftr00-b.raw")
    (folder / "an2-ftr00-b.wav").unlink()
    sine(folder / "an9-ftr00-b.wav")
    with (root / "etc" / "an4_train.transcription").open("a") as file:
        file.write("NO UTTERANCE NAME\n")
    _, left_out = read(data_prep.prepare("an4", root, tmp_path / "out"))
    assert "headerless .raw" in left_out["an4_clstk/ftr00/an1-ftr00-b"]
    assert left_out["an4_clstk/ftr00/an2-ftr00-b"] == "audio file is missing"
    assert left_out["an4_clstk/ftr00/an9-ftr00-b.wav"] == "file is in neither list of etc/"
    assert "an4_train.transcription line 25" in left_out


# ---------------------------------------------------------------- speechocean762


def test_speechocean762_divides_inside_each_speaker_and_pools_test(tmp_path: Path) -> None:
    root = tmp_path / "speechocean762"
    for part, speaker in (("train", "0036"), ("test", "0003")):
        names = [f"{speaker}{number:05d}" for number in range(20)]
        for name in names[:19]:
            sine(root / "WAVE" / f"SPEAKER{speaker}" / f"{name}.WAV", rate=16000)
        scp = [f"{name}\tWAVE/SPEAKER{speaker}/{name}.WAV" for name in names]
        write(root / part / "wav.scp", *scp)
        write(root / part / "text", *(f"{name}\tMARK IS GOING" for name in names))
        write(root / part / "utt2spk", *(f"{name} {speaker}" for name in names))
        write(root / part / "spk2gender", f"{speaker} f")
        write(root / part / "spk2age", f"{speaker}\t6")
    sine(root / "WAVE" / "SPEAKER0036" / "extra.WAV")
    splits, left_out = read(data_prep.prepare("speechocean762", tmp_path, tmp_path / "out"))
    assert {split: len(list(cuts)) for split, cuts in splits.items()} == {"train": 32, "dev": 4, "test": 2}
    assert ids(splits["dev"]) == [f"speechocean762-{s}{n:05d}" for s in ("0003", "0036") for n in (4, 14)]
    label = splits["dev"][0].supervisions[0]
    assert (label.text, label.speaker, label.gender) == ("MARK IS GOING", "speechocean762-0003", "female")
    assert label.custom == {"corpus": "speechocean762", "age": 6}
    missing = "audio file is missing"
    assert left_out == {"003600019": missing, "000300019": missing, "extra.WAV": "file is in no wav.scp"}


# ---------------------------------------------------------------- librispeech


def make_librispeech(root: Path) -> Path:
    for subset, speaker in (("dev-clean", "84"), ("test-clean", "61")):
        chapter = root / subset / speaker / "121"
        for number in range(3):
            sine(chapter / f"{speaker}-121-{number:04d}.flac", rate=16000)
        write(chapter / f"{speaker}-121.trans.txt", *(f"{speaker}-121-{n:04d} HELLO WORLD" for n in (0, 1, 9)))
    write(
        root / "SPEAKERS.TXT", "; comment | x", "84   | F | dev-clean | 8.02 | Name", "61 | M | test-clean | 8 | Name"
    )
    return root


def test_librispeech_finds_its_subsets(tmp_path: Path) -> None:
    make_librispeech(tmp_path / "LibriSpeech")
    splits, left_out = read(data_prep.prepare("librispeech", tmp_path, tmp_path / "out"))
    assert {split: len(list(cuts)) for split, cuts in splits.items()} == {"dev-clean": 3, "test-clean": 3}
    first, _, last = (cut.supervisions[0] for cut in splits["dev-clean"])
    assert (first.text, first.speaker, first.gender) == ("HELLO WORLD", "librispeech-84", "female")
    assert last.text is None  # no transcript: the recording still has a speaker
    assert left_out == {"84-121-0009": "audio file is missing", "61-121-0009": "audio file is missing"}


def test_librispeech_options(tmp_path: Path) -> None:
    root = make_librispeech(tmp_path / "LibriSpeech")
    splits, _ = read(data_prep.prepare("librispeech", root, tmp_path / "out", subsets="dev-clean,"))
    assert list(splits) == ["dev-clean"]
    with pytest.raises(PrepareError, match="'dev-other' is not in .*found: dev-clean, test-clean"):
        data_prep.prepare("librispeech", root, tmp_path / "out", subsets="dev-other")


# ---------------------------------------------------------------- kaldi


def test_kaldi_with_nothing_but_wav_scp(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe"
    sine(recipe / "audio" / "one take.wav")
    write(recipe / "data" / "train" / "wav.scp", "r1 audio/one take.wav", "r2 audio/gone.wav")
    out = data_prep.prepare("kaldi", recipe / "data" / "train", tmp_path / "out", split="train", name="mine")
    splits, left_out = read(out)
    (cut,) = splits["train"]
    label = cut.supervisions[0]
    assert cut.id == "mine-r1"
    assert (label.text, label.speaker, label.gender, label.language) == (None, None, None, None)
    assert left_out == {"r2": "audio file is missing"}


def test_kaldi_segments_labels_and_left_outs(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    witness = tmp_path / "ran"
    absolute = sine(tmp_path / "r1.wav", seconds=2.0)
    sine(folder / "stereo.wav", channels=2)
    scp = [f"r1 {absolute}", f"r2 touch {witness} |", "r3 raw.ark:17", "r4 stereo.wav", "r5 stereo.wav"]
    write(folder / "wav.scp", *scp)
    segments = [
        "u1 r1 0.5 1.0",
        "u2 r1 1.5 -1",
        "u3 r1 1.0 0.5",
        "u4 r1 0 9",
        "u5 r1 zero one",
        "u6 r2 0 1",
        "u7 r3 0 1",
    ]
    write(folder / "segments", *segments, "u8 r4 0 0.2", "u9 r9 0 1")
    write(folder / "text", "u1 HELLO THERE", "u2", "u99 NO AUDIO")
    write(folder / "utt2spk", "u1 ann", "u2 bob")
    write(folder / "spk2gender", "ann F", "bob ?")
    write(folder / "utt2gender", "u2 x")
    write(folder / "spk2language", "bob fr")
    write(folder / "utt2emotion", "u1 happy")
    write(folder / "utt2power", "u1 ²")  # a digit, and no number
    write(folder / "spk2age", "ann 30")
    write(folder / "utt2zone", "u1 07", "u2 7")
    splits, left_out = read(data_prep.prepare("kaldi", folder, tmp_path / "out", language="en"))
    first, second = splits["all"]
    assert (first.start, first.duration, second.start, second.duration) == (0.5, 0.5, 1.5, 0.5)
    label = first.supervisions[0]
    assert (label.text, label.speaker, label.gender, label.language) == ("HELLO THERE", "kaldi-ann", "female", "en")
    assert label.custom == {"corpus": "kaldi", "emotion": "happy", "power": "²", "age": 30, "zone": "07"}
    assert second.supervisions[0].custom == {"corpus": "kaldi", "zone": 7}
    second = second.supervisions[0]
    assert (second.text, second.gender, second.language) == (None, None, "fr")
    expected = {
        "u3": "end is not after the start",
        "u4": "end is more than",
        "u5": "segments line is not",
        "u6": "holds a command, which is never run",
        "u7": "Kaldi archive",
        "u8": "2 channels",
        "u9": "recording is not in wav.scp",
        "u99": "no audio in wav.scp or segments",
        "r5": "no entry in segments",
        "speaker bob": "label gender dropped, its utterances are kept: '?'",
        "utterance u2": "label gender dropped, its utterances are kept: 'x'",
    }
    assert left_out.keys() == expected.keys()
    assert all(reason in left_out[item] for item, reason in expected.items())
    assert not witness.exists()


def test_kaldi_takes_the_named_channel(tmp_path: Path) -> None:
    sine(tmp_path / "stereo.wav", channels=2)
    write(tmp_path / "wav.scp", "r1 stereo.wav")
    splits, _ = read(data_prep.prepare("kaldi", tmp_path, tmp_path / "out", channel=1))
    assert splits["all"][0].channel == 1


def test_kaldi_refuses_a_key_that_stands_twice(tmp_path: Path) -> None:
    write(tmp_path / "wav.scp", "r1 a.wav", "r1 b.wav")
    with pytest.raises(PrepareError, match="wav.scp line 2: r1 stands there twice"):
        data_prep.prepare("kaldi", tmp_path, tmp_path / "out")


# ---------------------------------------------------------------- jsonl


def test_jsonl_keeps_labels_and_names_every_bad_line(tmp_path: Path) -> None:
    sine(tmp_path / "clips" / "a.wav", seconds=1.0)
    good = {"audio_filepath": "clips/a.wav", "text": "hello", "speaker": 7, "gender": "m", "emotion": "calm", "take": 3}
    lines = [
        json.dumps(good),
        json.dumps({"audio_filepath": "clips/a.wav", "offset": 0.25, "duration": 0.5, "words": [1], "gender": "?"}),
        "{broken",
        "[1]",
        json.dumps({"audio_filepath": "clips/a.wav", "text": ["hello"]}),
        json.dumps({"audio_filepath": "clips/a.wav", "duration": -1}),
        json.dumps({"audio_filepath": "clips/a.wav", "duration": 60}),
        json.dumps({"audio_filepath": "clips/gone.wav"}),
        json.dumps({"text": "no audio"}),
        "",
    ]
    write(tmp_path / "train.jsonl", *lines)
    changed = [{"text": "", "lang": "de"}, {"text": "-", "speaker": " ann "}, {"text": " ", "speaker": " "}]
    write(tmp_path / "dev.json", *(json.dumps(good | changes) for changes in changed))
    splits, left_out = read(data_prep.prepare("jsonl", tmp_path, tmp_path / "out", language="en"))
    first, second = splits["train"]
    label = first.supervisions[0]
    assert (label.text, label.speaker, label.gender, label.language) == ("hello", "jsonl-7", "male", "en")
    assert label.custom == {"corpus": "jsonl", "emotion": "calm", "take": 3}
    assert (second.start, second.duration, second.supervisions[0].speaker) == (0.25, 0.5, None)
    dev, *unknown = splits["dev"]
    assert (dev.supervisions[0].text, dev.supervisions[0].language) == (None, "de")
    assert [(cut.supervisions[0].text, cut.supervisions[0].speaker) for cut in unknown] == [
        (None, "jsonl-ann"),
        (None, None),
    ]
    expected = {
        3: "line is not JSON",
        4: "line is a JSON list",
        5: "field text is of type list; accepted: str",
        6: "end is not after the start",
        7: "end is more than",
        8: "audio file is missing",
        9: "field audio_filepath is missing",
        2: "dropped, the line is kept",
    }
    assert left_out.keys() == {f"train.jsonl line {number}" for number in expected}
    assert all(reason in left_out[f"train.jsonl line {number}"] for number, reason in expected.items())


def test_jsonl_takes_one_file(tmp_path: Path) -> None:
    sine(tmp_path / "a.wav")
    manifest = write(tmp_path / "mine.json", json.dumps({"audio_filepath": "a.wav"}))
    splits, _ = read(data_prep.prepare("jsonl", manifest, tmp_path / "out", name="mine"))
    assert ids(splits["mine"]) == ["mine-mine-000001"]


def test_no_source_is_replaced_by_what_is_made_of_it(tmp_path: Path) -> None:
    sine(tmp_path / "a.wav")
    before = gzip.compress(json.dumps({"audio_filepath": "a.wav", "text": "x"}).encode())
    (tmp_path / "conversations.jsonl.gz").write_bytes(before)
    for source in (tmp_path, tmp_path / "conversations.jsonl.gz"):
        with pytest.raises(PrepareError, match="conversations.jsonl.gz would be replaced, which is the source"):
            data_prep.prepare("jsonl", source, tmp_path)
    assert (tmp_path / "conversations.jsonl.gz").read_bytes() == before
    assert not (tmp_path / "left_out.jsonl").exists()


# ---------------------------------------------------------------- errors and files


@pytest.mark.parametrize("corpus", [name for name in data_prep.CORPORA if name not in ("synthetic", "rooms")])
def test_an_unusable_source_is_named(tmp_path: Path, corpus: str) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(PrepareError, match="empty.*expected"):
        data_prep.prepare(corpus, empty, tmp_path / "out")
    with pytest.raises(PrepareError, match="nowhere: no such file or folder"):
        data_prep.prepare(corpus, tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(PrepareError, match="no source given; expected --source DIR"):
        data_prep.prepare(corpus, None, tmp_path / "out")


@pytest.mark.parametrize(
    ("corpus", "options", "message"),
    [
        ("an5", {}, "'an5' is unknown .did you mean 'an4'"),
        ("fsdd", {"speed": 1}, "'speed' is unknown for fsdd; accepted: none"),
        ("synthetic", {"sped": 1}, "did you mean 'seed'"),
        ("synthetic", {"seed": "x"}, "option seed: 'x' is no int"),
        ("kaldi", {"channel": "left"}, "option channel: 'left' is no int"),
        ("kaldi", {"download": True}, "no public address"),
    ],
)
def test_a_wrong_call_is_named(tmp_path: Path, corpus: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(PrepareError, match=message):
        data_prep.prepare(corpus, tmp_path, tmp_path / "out", **options)


def test_nothing_usable_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "0_theo_0.wav").write_bytes(b"")
    with pytest.raises(PrepareError, match="no usable utterance; 1 left out, the first: 0_theo_0.wav"):
        data_prep.prepare("fsdd", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("unpacked", ["yes", "no"])
def test_only_line_feeds_end_lines(tmp_path: Path, unpacked: str) -> None:
    sine(tmp_path / "a.wav")
    said = ["one\u2028two", "three\x85four", "five\x0csix"]
    lines = [json.dumps({"audio_filepath": "a.wav", "text": text}, ensure_ascii=False) for text in said]
    data = ("\ufeff" + "\r\n".join(lines)).encode()
    name = "train.jsonl" if unpacked == "yes" else "train.jsonl.gz"
    (tmp_path / name).write_bytes(data if unpacked == "yes" else gzip.compress(data))
    splits, left_out = read(data_prep.prepare("jsonl", tmp_path / name, tmp_path / "out"))
    assert [cut.supervisions[0].text for cut in splits["train"]] == said and not left_out
    write(tmp_path / "kaldi" / "wav.scp", f"r1 {tmp_path / 'a.wav'}")
    (tmp_path / "kaldi" / "text").write_text("r1 good\u2028morning\n", encoding="utf-8")
    splits, left_out = read(data_prep.prepare("kaldi", tmp_path / "kaldi", tmp_path / "kaldi-out"))
    assert splits["all"][0].supervisions[0].text == "good\u2028morning" and not left_out


def test_files_that_are_not_utf8_or_damaged_are_named(tmp_path: Path) -> None:
    sine(tmp_path / "a.wav")
    write(tmp_path / "wav.scp", "r1 a.wav")
    (tmp_path / "text").write_bytes("r0 x\nr1 caf\xe9\n".encode("latin-1"))
    with pytest.raises(PrepareError, match="text line 2: not UTF-8"):
        data_prep.prepare("kaldi", tmp_path, tmp_path / "out")
    an4 = make_an4(tmp_path / "an4")
    (an4 / "etc/an4_test.fileids").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(PrepareError, match="an4_test.fileids line 1: not UTF-8"):
        data_prep.prepare("an4", an4, tmp_path / "out")
    whole = gzip.compress(b"{}" * 1000)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PrepareError, match="cut.jsonl.gz: cannot be read"):
        data_prep.prepare("jsonl", tmp_path / "cut.jsonl.gz", tmp_path / "out")


def test_times_that_are_no_numbers(tmp_path: Path) -> None:
    sine(tmp_path / "r1.wav", seconds=1.0)
    write(tmp_path / "wav.scp", "r1 r1.wav")
    write(tmp_path / "segments", "u1 r1 0.1 nan", "u2 r1 nan 0.5", "u3 r1 0.1 0.5")
    splits, left_out = read(data_prep.prepare("kaldi", tmp_path, tmp_path / "out"))
    assert ids(splits["all"]) == ["kaldi-u3"]
    assert left_out == dict.fromkeys(["u1", "u2"], "start or end is no finite number")
    with pytest.raises(PrepareError, match="option minutes: 'nan' given; accepted: a finite number"):
        data_prep.prepare("conversations", tmp_path / "out" / "all.jsonl.gz", tmp_path / "c", minutes="nan")


def test_jsonl_refuses_two_files_of_one_split_and_passes_its_own_list_by(tmp_path: Path) -> None:
    sine(tmp_path / "a.wav")
    line = json.dumps({"audio_filepath": "a.wav"})
    write(tmp_path / "train.jsonl", line, "{")
    for _ in range(2):  # into the folder of the source: what was left out is no manifest
        splits, left_out = read(data_prep.prepare("jsonl", tmp_path, tmp_path))
        (tmp_path / "train.jsonl.gz").unlink()
        assert list(splits) == ["train"] and list(left_out) == ["train.jsonl line 2"]
    write(tmp_path / "train.json", line)
    with pytest.raises(PrepareError, match="train.json and train.jsonl would both be split 'train'"):
        data_prep.prepare("jsonl", tmp_path, tmp_path / "out")


def test_sphere_files_of_one_name_stay_apart(tmp_path: Path) -> None:
    for folder, seconds in (("a", 0.25), ("b", 0.5)):
        sine(tmp_path / folder / "utt1.sph", seconds, subtype="PCM_16", format="NIST")
    write(tmp_path / "m" / "train.jsonl", json.dumps({"audio_filepath": "../a/utt1.sph"}))
    write(tmp_path / "m" / "test.jsonl", json.dumps({"audio_filepath": "../b/utt1.sph"}))
    splits, _ = read(data_prep.prepare("jsonl", tmp_path / "m", tmp_path / "out"))
    lengths = {name: cuts[0].load_audio().shape[1] for name, cuts in splits.items()}
    assert lengths == {"train": 2000, "test": 4000}


def test_splits_prepared_one_by_one_keep_what_each_left_out(tmp_path: Path) -> None:
    for split in ("train", "test"):
        sine(tmp_path / split / "a.wav")
        write(tmp_path / split / "wav.scp", "r1 a.wav", f"{split}-gone gone.wav")
        write(tmp_path / split / "utt2spk", "r1 ann")
        write(tmp_path / split / "utt2spk.bak", "r1 old")
    for split in ("train", "test", "test"):
        splits, left_out = read(data_prep.prepare("kaldi", tmp_path / split, tmp_path / "out", split=split))
        assert splits[split][0].supervisions[0].custom == {"corpus": "kaldi"}
    assert list(left_out) == ["train-gone", "test-gone"]
    assert len((tmp_path / "out" / "left_out.jsonl").read_text().splitlines()) == 2


def test_a_second_run_replaces_every_file_of_the_first(tmp_path: Path) -> None:
    root = make_fsdd(tmp_path / "fsdd")
    out = data_prep.prepare("fsdd", root, tmp_path / "out")
    first = {path.name: path.read_bytes() for path in out.glob("*.gz")}
    assert all(data[3] == 0 and data[4:8] == bytes(4) for data in first.values())  # gzip's header: no name, no time
    data_prep.prepare("fsdd", root, out)
    assert first == {path.name: path.read_bytes() for path in out.glob("*.gz")}
    for path in (root / "recordings").glob("*_0.wav"):
        path.unlink()
    for path in (root / "recordings").glob("*_4.wav"):
        path.unlink()
    splits, _ = read(data_prep.prepare("fsdd", root, out))
    assert sorted(splits) == ["dev", "train"]
    assert {path.name for path in out.iterdir()} == {"dev.jsonl.gz", "train.jsonl.gz", "left_out.jsonl"}


# ---------------------------------------------------------------- download


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files with Range; ``break_after`` cuts the first answer off, ``ranges`` records what was asked for."""

    break_after: int | None = None
    ranges: list[str | None]
    accepts_ranges = True

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data, asked = path.read_bytes(), self.headers.get("Range")
        type(self).ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.accepts_ranges else 0
        if start >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        end, type(self).break_after = type(self).break_after, None
        self.wfile.write(data[start:end])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, type[RangeHandler], Path]]:
    folder = tmp_path / "served"
    folder.mkdir()
    handler = type("Handler", (RangeHandler,), {"ranges": []})
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}", handler, folder
    httpd.shutdown()
    httpd.server_close()


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_download_continues_where_it_broke_off(tmp_path: Path, server: tuple[str, type[RangeHandler], Path]) -> None:
    url, handler, folder = server
    payload = np.random.default_rng(0).bytes(50_000)
    path = tar_of(folder / "c.tar.gz", {"corpus/a.bin": payload})
    archive = Archive(f"{url}/c.tar.gz", sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    handler.break_after = 20_000
    with pytest.raises(PrepareError, match="run the same command again"):
        fetch([archive], tmp_path / "to")
    assert (tmp_path / "to" / "c.tar.gz.part").stat().st_size == 20_000
    fetch([archive], tmp_path / "to")
    assert (tmp_path / "to" / "corpus" / "a.bin").read_bytes() == payload
    assert {path.name for path in (tmp_path / "to").iterdir()} == {"corpus", ".c.tar.gz.done"}
    fetch([archive], tmp_path / "to")
    assert handler.ranges == [None, "bytes=20000-"]  # the mark of completion: no third request


@pytest.mark.parametrize("has_filter", [True, False])
def test_download_of_a_whole_part_and_without_ranges(
    tmp_path: Path, server: tuple[str, type[RangeHandler], Path], monkeypatch: pytest.MonkeyPatch, has_filter: bool
) -> None:
    if not has_filter:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    url, handler, folder = server
    data = tar_of(folder / "c.tar.gz", {"a.txt": b"hello"}).read_bytes()
    for accepts_ranges, part in ((True, data), (False, data[:30])):
        handler.accepts_ranges = accepts_ranges
        target = tmp_path / str(accepts_ranges)
        target.mkdir()
        (target / "c.tar.gz.part").write_bytes(part)
        assert (fetch([Archive(f"{url}/c.tar.gz")], target) / "a.txt").read_bytes() == b"hello"


def test_a_part_longer_than_the_file_is_begun_anew(
    tmp_path: Path, server: tuple[str, type[RangeHandler], Path]
) -> None:
    url, _, folder = server
    data = tar_of(folder / "c.tar.gz", {"a.txt": b"hello"}).read_bytes()
    (tmp_path / "c.tar.gz.part").write_bytes(data + b"more")
    with pytest.raises(PrepareError, match="shorter than .*c.tar.gz.part, which is removed"):
        fetch([Archive(f"{url}/c.tar.gz")], tmp_path)
    assert (fetch([Archive(f"{url}/c.tar.gz")], tmp_path) / "a.txt").read_bytes() == b"hello"


def test_a_file_that_is_no_archive_stays_as_it_is(tmp_path: Path, server: tuple[str, type[RangeHandler], Path]) -> None:
    url, handler, folder = server
    with zipfile.ZipFile(folder / "voices.bin", "w") as archive:  # as numpy's files are
        archive.writestr("a.npy", "x")
    for _ in range(2):
        fetch([Archive(f"{url}/voices.bin", unpack=False)], tmp_path / "to")
    assert (tmp_path / "to" / "voices.bin").read_bytes() == (folder / "voices.bin").read_bytes()
    assert {path.name for path in (tmp_path / "to").iterdir()} == {"voices.bin", ".voices.bin.done"}
    assert handler.ranges == [None]


@pytest.mark.parametrize("has_filter", [True, False])
def test_download_refuses_what_is_wrong(
    tmp_path: Path, server: tuple[str, type[RangeHandler], Path], monkeypatch: pytest.MonkeyPatch, has_filter: bool
) -> None:
    if not has_filter:  # as Python before 3.11.4
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    url, _, folder = server
    tar_of(folder / "c.tar.gz", {"a.txt": b"hello"})
    tar_of(folder / "escape.tar.gz", {"../outside.txt": b"x"})
    with tarfile.open(folder / "link.tar.gz", "w:gz") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    write(folder / "page.tar.gz", "<html>moved</html>")
    with zipfile.ZipFile(folder / "escape.zip", "w") as archive_zip:
        archive_zip.writestr("../outside.txt", "x")
    sound = tar_of(folder / "crc.tar.gz", {"a.bin": np.random.default_rng(0).bytes(30_000)}).read_bytes()
    (folder / "crc.tar.gz").write_bytes(sound[:-8] + bytes(4) + sound[-4:])
    (folder / "bits.tar.gz").write_bytes(sound[:20_000] + bytes(64) + sound[20_064:])
    for name, sha256, message in (
        ("gone.tar.gz", None, "answers 404"),
        ("page.tar.gz", None, "neither a zip nor a tar"),
        ("c.tar.gz", "0" * 64, "SHA-256 is .*expected 0000"),
        ("crc.tar.gz", None, "arrived damaged .CRC"),
        ("bits.tar.gz", None, "arrived damaged"),
        ("escape.tar.gz", None, "cannot be unpacked safely"),
        ("link.tar.gz", None, "cannot be unpacked safely .*link"),
        ("escape.zip", None, "cannot be unpacked safely"),
    ):
        with pytest.raises(PrepareError, match=message):
            fetch([Archive(f"{url}/{name}", sha256=sha256)], tmp_path / "to")
    assert list(tmp_path.rglob("outside.txt")) == []
    assert list((tmp_path / "to").iterdir()) == []


def test_prepare_downloads(
    tmp_path: Path, server: tuple[str, type[RangeHandler], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _, folder = server
    root = make_fsdd(tmp_path / "fsdd-master")
    with zipfile.ZipFile(folder / "fsdd.zip", "w") as archive:
        for path in root.rglob("*.wav"):
            archive.write(path, path.relative_to(tmp_path))
    monkeypatch.setattr(data_prep.load("fsdd"), "archives", lambda: [Archive(f"{url}/fsdd.zip")])
    splits, _ = read(data_prep.prepare("fsdd", None, tmp_path / "out", download=True))
    assert len(list(splits["train"])) == 4
    assert str(tmp_path / "out" / "source") in splits["train"][0].recording.sources[0].source


def test_every_public_address_is_well_formed() -> None:
    for corpus in ("fsdd", "an4", "speechocean762", "librispeech", "kokoro", "noises"):
        for archive in data_prep.load(corpus).archives():
            assert archive.url.startswith(("http://", "https://"))
            assert archive.name.endswith((".zip", ".tar.gz") if archive.unpack else (".onnx", ".bin"))


def test_noises_split_by_fold_and_lose_their_silence(tmp_path: Path) -> None:
    root, generator = tmp_path / "ESC-10-master", np.random.default_rng(0)
    for fold, folder, seconds in (("1", "002 - Rain", 2.0), ("2", "002 - Rain", 1.0), ("3", "005 - Clock tick", 0.6)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        sound = np.zeros((5 * 44100, 2))
        sound[44100 : 44100 + round(seconds * 44100)] = 0.1 * generator.standard_normal((round(seconds * 44100), 2))
        soundfile.write(root / folder / f"{fold}-17-A.ogg", sound, 44100)
    soundfile.write(root / "002 - Rain" / "4-18-B.ogg", np.zeros(44100), 44100)
    (root / "audio").mkdir()
    soundfile.write(root / "audio" / "5-19-A-41.wav", 0.1 * generator.standard_normal(44100), 44100)
    splits, left_out = read(data_prep.prepare("noises", root, tmp_path / "out", devices=5))
    recorded = {name: [cut for cut in cuts if "device" not in cut.id] for name, cuts in splits.items()}
    assert {name: [cut.id for cut in cuts] for name, cuts in recorded.items()} == {
        "train": ["noise-1-17-A", "noise-5-19-A"], "dev": ["noise-3-17-A"], "test": ["noise-2-17-A"],
    }  # fmt: skip
    categories = {cut.id: cut.supervisions[0].custom["category"] for cuts in recorded.values() for cut in cuts}
    assert categories["noise-1-17-A"] == "rain" and categories["noise-5-19-A"] == "41"
    for name, seconds in (("train", 2.0), ("test", 1.0), ("dev", 0.6)):
        cut = recorded[name][0]
        assert abs(cut.duration - seconds) < 0.05 and cut.sampling_rate == 16000
        assert cut.supervisions[0].text == "" and cut.supervisions[0].speaker is None
    assert left_out == {"002 - Rain/4-18-B.ogg": "less than 0.5 s of 1.0 s are no digital silence"}
    assert {name: len(list(cuts)) - 1 for name, cuts in splits.items()} == {"train": 4, "dev": 1, "test": 1}


def test_rooms_follow_from_the_seed_and_begin_with_the_direct_sound(tmp_path: Path) -> None:
    found = [read(data_prep.prepare("rooms", None, tmp_path / str(i), rooms=6, seed=i // 2))[0] for i in range(3)]
    assert {name: ids(cuts) for name, cuts in found[2].items()} == {
        "train": ["room-1-000", "room-1-001", "room-1-002", "room-1-005"], "dev": ["room-1-003"],
        "test": ["room-1-004"],
    }  # fmt: skip
    sounds = [[cut.load_audio()[0] for cuts in splits.values() for cut in cuts] for splits in found]
    assert all(np.array_equal(one, other) for one, other in zip(*sounds[:2], strict=True))
    for sound in sounds[2] + sounds[1]:
        assert (
            np.abs(sound).argmax() == 0 and 0.1 * 16000 <= len(sound) + 16000 * 12 / 340 and len(sound) <= 0.8 * 16000
        )
    assert len({len(sound) for sound in sounds[1]}) == 6


def test_noises_of_devices_are_stationary_and_fall_with_frequency(tmp_path: Path) -> None:
    from data_prep.noises import device_noise

    noises = [device_noise(Random(str(number))) for number in range(20)]
    falls_db = []
    for noise in noises:
        levels_db = 20 * np.log10(np.sqrt(np.mean(noise.reshape(10, -1) ** 2, axis=1)))
        assert len(noise) == 160_000 and np.abs(levels_db + 30).max() < 2
        power_K = np.abs(np.fft.rfft(noise)) ** 2
        falls_db.append(10 * np.log10(power_K[5_000:10_000].mean() / power_K[40_000:80_000].mean()))
    assert np.median(falls_db) > 5 and np.ptp(falls_db) > 10  # 0.5-1 kHz against 4-8 kHz
    assert np.array_equal(device_noise(Random("3")), noises[3])


def test_speechocean762_holds_every_fourth_speaker_out(tmp_path: Path) -> None:
    root = tmp_path / "speechocean762" / "train"
    names = [f"{speaker:04d}{number:02d}" for speaker in range(8) for number in range(5)]
    for name in names:
        sine(root / f"{name}.wav", rate=16000)
    write(root / "wav.scp", *(f"{name}\ttrain/{name}.wav" for name in names))
    write(root / "text", *(f"{name}\tHERE" for name in names))
    write(root / "utt2spk", *(f"{name} {name[:4]}" for name in names))
    splits, _ = read(data_prep.prepare("speechocean762", tmp_path, tmp_path / "out"))
    held_out = {name: ids(splits[name]) for name in ("dev_enroll", "dev_trial", "enroll", "trial")}
    assert held_out == {
        "dev_enroll": [f"speechocean762-0003{n:02d}" for n in range(3)],
        "dev_trial": [f"speechocean762-0003{n:02d}" for n in (3, 4)],
        "enroll": [f"speechocean762-0007{n:02d}" for n in range(3)],
        "trial": [f"speechocean762-0007{n:02d}" for n in (3, 4)],
    }
    assert {cut.supervisions[0].speaker[-1] for cut in splits["train"]} == set("012456")


# ---------------------------------------------------------------- real corpora


@pytest.mark.parametrize(
    ("corpus", "counts", "speakers"),
    [
        pytest.param("fsdd", {"train": 2400, "dev": 300, "test": 300}, 6, marks=real_data),
        pytest.param(
            "an4",
            {"train": 869, "dev": 79, "test": 130, "enroll": 30, "trial": 100, "dev_enroll": 18, "dev_trial": 61},
            68,
            marks=real_data,
        ),
        pytest.param(
            "speechocean762",
            {"train": 576, "dev": 72, "test": 72, "enroll": 18, "trial": 102, "dev_enroll": 18, "dev_trial": 102},
            36,
            marks=real_data,
        ),
    ],
)
def test_real_corpus(tmp_path: Path, corpus: str, counts: dict[str, int], speakers: int) -> None:
    out = data_prep.prepare(corpus, Path(REAL or "") / corpus, tmp_path)
    assert (out / "left_out.jsonl").read_text() == ""
    splits = {split: list(load_manifest_lazy(out / f"{split}.jsonl.gz")) for split in counts}
    assert {split: len(cuts) for split, cuts in splits.items()} == counts
    assert len({cut.supervisions[0].speaker for cut in splits["train"]}) == speakers
    for cut in splits["test"]:
        label = cut.supervisions[0]
        assert label.text and label.speaker and label.gender and "<" not in label.text
