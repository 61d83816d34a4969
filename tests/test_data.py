"""Manifests with faults, unreadable recordings, augmentation, batches."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE, make_corpus, tiny_values
from lhotse import CutSet, Recording
from lhotse.cut import MixedCut

from speech_mtl.augment import HIGH_HZ, LOW_HZ, ORDER, in_band
from speech_mtl.config import Config, parse_config
from speech_mtl.data import Batch, DataError, Manifest, SpeechDataset, batches, read_cuts
from speech_mtl.evaluate import fit_speakers
from speech_mtl.initial import prepare_model
from speech_mtl.inventory import take_inventory
from speech_mtl.mixture import training_corpora
from speech_mtl.tasks import label_of


def lines_of(path: str) -> list[dict]:
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(line + "\n" for line in lines))
    return path


def with_label(cut: dict, **changes: object) -> str:
    return json.dumps(cut | {"supervisions": [cut["supervisions"][0] | changes]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cut: "{broken", "line 2: not valid JSON: .*; expected a lhotse cut on every line"),
        (lambda cut: json.dumps(cut | {"colour": "red"}), "line 2: not a lhotse cut: TypeError: .*colour"),
        (lambda cut: json.dumps(cut | {"duration": -1.0}), "line 2: cut '.*' ends before it starts: duration -1.0 s"),
        (lambda cut: with_label(cut, duration=-2.0), "line 2: supervision '.*' ends before it starts: -2.0 s"),
        (lambda cut: json.dumps(cut | {"duration": "1.5"}), "line 2: cut '.*': duration is '1.5'; expected seconds"),
        (lambda cut: with_label(cut, duration="1.5"), "line 2: supervision '.*': duration is '1.5'; expected seconds"),
        (lambda cut: with_label(cut, start="0"), "line 2: supervision '.*': start is '0'; expected seconds, a number"),
        (lambda cut: json.dumps(cut | {"id": 5}), "line 2: a cut's id is 5; expected text in quotes"),
        (lambda cut: with_label(cut, text=5), "line 2: supervision '.*': text is 5; expected text in quotes, or null"),
        (lambda cut: json.dumps({"type": "MixedCut", "id": "m", "tracks": []}), "line 2: not a lhotse cut: ValueError"),
        (lambda cut: json.dumps(cut["recording"]), "line 2: expected a cut, found a Recording"),
        (lambda cut: json.dumps([1, 2]), "line 2: not a lhotse cut"),
        (lambda cut: '{"audio_filepath": "a.wav"}', "line 2: not a lhotse cut: .*`speech-mtl prepare jsonl`"),
    ],
)
def test_a_faulty_line_is_named(corpus: dict[str, str], tmp_path: Path, change: object, message: str) -> None:
    cuts = lines_of(corpus["dev"])
    path = write(tmp_path / "cuts.jsonl", [json.dumps(cuts[0]), change(cuts[1])])  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        list(Manifest(path))


def test_missing_empty_and_truncated_manifests(corpus: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        Manifest(tmp_path / "no.jsonl.gz")
    with pytest.raises(DataError, match=r"is a folder; expected a manifest, of which it holds: .*cuts-1.jsonl.gz, "):
        Manifest(Path(corpus["train"]).parent)
    with pytest.raises(DataError, match="is empty"):
        list(Manifest(write(tmp_path / "empty.jsonl", [])))
    whole = Path(corpus["dev"]).read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="unreadable after line"):
        list(Manifest(tmp_path / "cut.jsonl.gz"))
    (tmp_path / "bits.jsonl.gz").write_bytes(whole[:20] + bytes(64) + whole[84:])
    with pytest.raises(DataError, match="unreadable after line"):
        list(Manifest(tmp_path / "bits.jsonl.gz"))


def test_a_manifest_listed_twice_has_distinct_ids(corpus: dict[str, str]) -> None:
    ids = [cut.id for cut in read_cuts([corpus["dev"], corpus["dev"]])]
    assert len(ids) == len(set(ids)) == 24


@pytest.mark.parametrize(
    ("rate", "channels", "subtype", "suffix"),
    [
        (8000, 1, "PCM_16", "wav"),
        (44100, 2, "PCM_24", "wav"),
        (22050, 1, "PCM_16", "flac"),
        (48000, 2, "VORBIS", "ogg"),
    ],
)
def test_any_rate_channels_and_format(
    tiny_config: Config, tmp_path: Path, rate: int, channels: int, subtype: str, suffix: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, 0.1 * np.ones((rate, channels)), rate, subtype=subtype)
    batch = SpeechDataset(tiny_config)[0, [Recording.from_file(path).to_cut()]]
    assert not batch.failed and abs(batch.audio_BN.shape[1] - RATE) <= 2


def test_bad_recordings_are_reported_and_the_others_read(
    tiny_config: Config, corpus: dict[str, str], tmp_path: Path
) -> None:
    good = list(read_cuts([corpus["dev"]]))[:2]
    bad = []
    for name, samples in {"nan": np.full(RATE, np.nan), "short": np.zeros(800), "gone": np.zeros(RATE)}.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, RATE, subtype="FLOAT")
        bad.append(Recording.from_file(tmp_path / f"{name}.wav").to_cut().with_id(name))
    (tmp_path / "gone.wav").unlink()
    batch = SpeechDataset(tiny_config)[0, [good[0], *bad, good[1]]]
    assert [cut.id for cut in batch.cuts] == [cut.id for cut in good]
    reasons = dict(batch.failed)
    assert set(reasons) == {"nan", "short", "gone"}
    assert "NaN" in reasons["nan"] and "shorter than" in reasons["short"]
    assert "gone.wav: Error opening" in reasons["gone"] and "Details" not in reasons["gone"]


def test_an_utterance_without_a_frame_is_too_short(corpus: dict[str, str], tmp_path: Path) -> None:
    config = parse_config(tiny_values(corpus) | {"data": {"min_utterance_s": 0.001}}, "test")
    cuts = []
    for samples in (159, 160):
        soundfile.write(tmp_path / f"{samples}.wav", 0.1 * np.ones(samples), RATE)
        cuts.append(Recording.from_file(tmp_path / f"{samples}.wav").to_cut().with_id(str(samples)))
    batch = SpeechDataset(config)[0, cuts]
    assert [cut.id for cut in batch.cuts] == ["160"] and "0.010 s, shorter than 0.01 s" in dict(batch.failed)["159"]


def test_the_shortest_utterances_are_trained_on_at_every_speed(corpus: dict[str, str]) -> None:
    values = tiny_values(corpus)
    values["augment"], values["data"]["min_utterance_s"] = {"speeds": [1.1]}, 0.25
    cuts = CutSet.from_cuts(c.truncate(duration=0.25).with_id(c.id) for c in read_cuts([corpus["train"]]))
    read = list(batches(cuts, parse_config(values, "test"), train=True))
    assert sum(len(batch.cuts) for batch in read) == 48 and not any(batch.failed for batch in read)


def test_speed_makes_a_new_speaker(corpus: dict[str, str]) -> None:
    values = tiny_values(corpus)
    values["augment"] = {"speeds": [0.8], "gain_db": 0.0}
    cuts = list(read_cuts([corpus["dev"]]))[:3]
    batch = SpeechDataset(parse_config(values, "test"), augment=True)[0, cuts]
    assert [label_of(cut, "speaker") for cut in batch.cuts] == [f"{label_of(cut, 'speaker')}@0.8" for cut in cuts]
    assert [label_of(cut, "text") for cut in batch.cuts] == [label_of(cut, "text") for cut in cuts]
    for cut, samples in zip(cuts, batch.samples_B.tolist(), strict=True):
        assert abs(samples - cut.duration * RATE / 0.8) < 20


def test_channels_in_opposite_phase_do_not_cancel_in_a_cut(corpus: dict[str, str], tmp_path: Path) -> None:
    voice = np.random.default_rng(0).standard_normal(RATE) / 10
    soundfile.write(tmp_path / "pair.wav", np.stack([voice, -voice], axis=1), RATE, subtype="FLOAT")
    cut = Recording.from_file(tmp_path / "pair.wav").to_cut()
    batch = SpeechDataset(parse_config(tiny_values(corpus), "x"))[0, [cut]]
    assert np.allclose(batch.audio_BN[0, :RATE].abs(), np.abs(voice), atol=1e-6)


def test_noise_is_mixed_at_its_ratio(corpus: dict[str, str], tmp_path: Path) -> None:
    soundfile.write(tmp_path / "noise.wav", 0.1 * np.random.default_rng(0).standard_normal(5 * RATE), RATE)
    noise = Recording.from_file(tmp_path / "noise.wav").to_cut()
    CutSet.from_cuts([noise]).to_file(tmp_path / "noise.jsonl.gz")
    values = tiny_values(corpus)
    noisy = {"noise": str(tmp_path / "noise.jsonl.gz"), "noise_prob": 1.0, "noise_snr_db": (10.0, 10.0), "gain_db": 0.0}
    cuts = list(read_cuts([corpus["dev"]]))[:3]
    with pytest.raises(DataError, match="nope.jsonl.gz does not exist"):  # and not every utterance one by one
        SpeechDataset(parse_config(values | {"augment": noisy | {"noise": "nope.jsonl.gz"}}, "gone"), augment=True)
    clean = SpeechDataset(parse_config(values, "clean"))[0, cuts]
    mixed = SpeechDataset(parse_config(values | {"augment": noisy}, "noisy"), augment=True)[0, cuts]
    assert mixed.samples_B.tolist() == clean.samples_B.tolist() and not mixed.failed
    size = mixed.audio_BN.size(1)
    assert clean.audio_BN.size(1) % (RATE // 2) == 0  # what is not augmented is padded to half seconds
    power = clean.audio_BN.square().sum(1) / (mixed.audio_BN - clean.audio_BN[:, :size]).square().sum(1)
    assert (10 * power.log10() - 10).abs().max() < 1.0


def test_noise_shorter_than_the_utterance_is_heard_to_its_end(corpus: dict[str, str], tmp_path: Path) -> None:
    soundfile.write(tmp_path / "noise.wav", 0.1 * np.random.default_rng(0).standard_normal(RATE // 20), RATE)
    CutSet.from_cuts([Recording.from_file(tmp_path / "noise.wav").to_cut()]).to_file(tmp_path / "noise.jsonl.gz")
    noisy = {"noise": str(tmp_path / "noise.jsonl.gz"), "noise_prob": 1.0, "noise_snr_db": (10.0, 10.0), "gain_db": 0.0}
    cuts, values = list(read_cuts([corpus["dev"]]))[:3], tiny_values(corpus)
    clean = SpeechDataset(parse_config(values, "clean"))[0, cuts]
    mixed = SpeechDataset(parse_config(values | {"augment": noisy}, "noisy"), augment=True)[0, cuts]
    for before_N, after_N, samples in zip(clean.audio_BN, mixed.audio_BN, mixed.samples_B.tolist(), strict=True):
        noise_N = (after_N[:samples] - before_N[:samples]).abs()
        assert samples > 0.25 * RATE and noise_N[-RATE // 20 :].mean() > 0.8 * noise_N[: RATE // 20].mean() > 0


def test_a_room_rings_on_and_keeps_level_and_length(corpus: dict[str, str], tmp_path: Path) -> None:
    """An echo half as loud, a tenth of a second later; in an utterance alone, and in two strung together."""
    echo = np.zeros(RATE // 10)
    echo[0], echo[-1] = 0.9, 0.45
    soundfile.write(tmp_path / "echo.wav", echo, RATE)
    CutSet.from_cuts([Recording.from_file(tmp_path / "echo.wav").to_cut()]).to_file(tmp_path / "rooms.jsonl.gz")
    cuts, values = list(read_cuts([corpus["dev"]]))[:6], tiny_values(corpus)
    cuts[0] = cuts[0].append(cuts[0]).with_id("twice")
    room = {"rooms": str(tmp_path / "rooms.jsonl.gz"), "room_prob": 1.0, "gain_db": 0.0}
    with pytest.raises(DataError, match="nope.jsonl.gz does not exist"):
        SpeechDataset(parse_config(values | {"augment": room | {"rooms": "nope.jsonl.gz"}}, "gone"), augment=True)
    dry = SpeechDataset(parse_config(values, "dry"))[0, cuts]
    heard = SpeechDataset(parse_config(values | {"augment": room}, "room"), augment=True)[0, cuts]
    assert heard.samples_B.tolist() == dry.samples_B.tolist() and not heard.failed
    for dry_N, heard_N, samples in zip(dry.audio_BN, heard.audio_BN, heard.samples_B.tolist(), strict=True):
        expected_N = dry_N[:samples].clone()
        expected_N[len(echo) - 1 :] += 0.5 * dry_N[: samples - len(echo) + 1]
        expected_N *= (dry_N.square().sum() / expected_N.square().sum()).sqrt()
        assert torch.allclose(heard_N[:samples], expected_N, atol=1e-4)


def test_a_band_ends_at_its_corners(corpus: dict[str, str]) -> None:
    impulse, ends = np.zeros(2 * 16000, dtype=np.float32), set()
    impulse[len(impulse) // 2] = 1
    for seed in range(20):
        drawn = random.Random(seed)
        low_hz, high_hz, _ = drawn.uniform(*LOW_HZ), drawn.uniform(*HIGH_HZ), drawn.randint(*ORDER)
        gains_K = np.abs(np.fft.rfft(in_band(impulse, 16000, random.Random(seed))))
        at_low, within, at_high, above = (gains_K[round(2 * hz)] for hz in (low_hz, 1200, high_hz, 4800))
        assert abs(at_low - 0.5**0.5) < 0.05 and abs(within - 1) < 0.05 and gains_K[0] < 0.02 and gains_K[-1] < 0.02
        ends.add(at_8_khz := drawn.random() < 0.5)
        assert above < 0.05 if at_8_khz else abs(at_high - 0.5**0.5) < 0.05
        gains_K = np.abs(np.fft.rfft(in_band(impulse, 6000, random.Random(seed))))  # all that there is but the low
        assert gains_K[0] < 0.02 and abs(gains_K[-1] - 1) < 0.05
    assert ends == {False, True}
    values, cuts = tiny_values(corpus), list(read_cuts([corpus["dev"]]))[:3]
    banded = parse_config(values | {"augment": {"band_prob": 1.0, "gain_db": 0.0, "start_epoch": 1}}, "band")
    whole, before, after = (
        SpeechDataset(config, augment=augment)[epoch, cuts]
        for config, augment, epoch in ((parse_config(values, "dry"), False, 0), (banded, True, 0), (banded, True, 1))
    )
    assert after.audio_BN.dtype == whole.audio_BN.dtype and after.samples_B.tolist() == whole.samples_B.tolist()
    size = before.audio_BN.size(1)
    assert torch.equal(before.audio_BN, whole.audio_BN[:, :size])
    assert (after.audio_BN - before.audio_BN).abs().amax(dim=1).min() > 1e-3


def test_strung_together_utterances_keep_speaker_and_texts(corpus: dict[str, str]) -> None:
    values = tiny_values(corpus)
    values["augment"] = {"concat_prob": 1.0, "concat_max_s": 5.0, "gain_db": 0.0}
    config = parse_config(values, "test")
    originals = {cut.id: cut for cut in read_cuts([corpus["train"]])}
    longer = 0
    for batch in batches(read_cuts([corpus["train"]]), config, train=True):
        for cut, samples in zip(batch.cuts, batch.samples_B.tolist(), strict=True):
            first = originals[cut.id]
            assert label_of(cut, "speaker") == label_of(first, "speaker")
            text = label_of(cut, "text") or ""
            assert text.startswith(label_of(first, "text") or "?")
            assert abs(samples / RATE - 0.3 * len(text.split())) < 0.01  # a word lasts 0.3 s
            longer += text != label_of(first, "text")
    assert longer > 10


def test_recordings_of_two_rates_are_not_strung_together(corpus: dict[str, str], tmp_path: Path) -> None:
    values = tiny_values(corpus)
    values["augment"] = {"concat_prob": 1.0, "concat_max_s": 5.0, "gain_db": 0.0}
    cuts = [cut if i % 2 else cut.resample(8000) for i, cut in enumerate(read_cuts([corpus["train"]]))]
    CutSet.from_cuts(cuts).to_file(tmp_path / "two.jsonl.gz")
    found = [cut for batch in batches(read_cuts([tmp_path / "two.jsonl.gz"]), parse_config(values, "test"), train=True)
             for cut in batch.cuts]  # fmt: skip
    assert len(found) == len(cuts) and {cut.sampling_rate for cut in found} == {8000, RATE}
    assert any(isinstance(cut, MixedCut) for cut in found)


def test_utterances_that_are_left_out_are_heard_nowhere(
    corpus: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = tiny_values(corpus)
    values["data"] |= {"max_utterance_s": 0.7}
    config, heard = parse_config(values, "test"), []
    load = SpeechDataset.__getitem__

    def watched(dataset: SpeechDataset, item: tuple[int, list]) -> Batch:
        heard.extend(item[1])
        return load(dataset, item)  # type: ignore[arg-type]

    monkeypatch.setattr(SpeechDataset, "__getitem__", watched)
    model, inventory = prepare_model(config)
    measured = len(heard)
    fit_speakers(model.eval(), training_corpora(config))
    assert inventory.left_out and measured and len(heard) > measured
    assert all(cut.duration <= 0.7 / 0.9 + 0.01 for cut in heard)  # at the lowest speed


def test_batches_keep_to_their_limit(tiny_config: Config) -> None:
    for batch in batches(read_cuts(tiny_config.data.dev), tiny_config):
        assert batch.audio_BN.numel() <= 1.01 * tiny_config.data.max_duration_s * RATE


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("few", [1, 2, 3])
def test_few_cuts_are_batches_too(tiny_config: Config, corpus: dict[str, str], few: int) -> None:
    cuts = CutSet.from_cuts(list(CutSet.from_file(corpus["dev"]))[:few])
    assert sum(len(batch.cuts) for batch in batches(cuts, tiny_config)) == few


def test_sorted_epochs_begin_with_the_short(corpus: dict[str, str]) -> None:
    values = tiny_values(corpus)
    values["data"]["sorted_epochs"] = 1
    config = parse_config(values | {"augment": {}}, "test")
    durations = [c.duration for b in batches(read_cuts([corpus["train"]]), config, train=True) for c in b.cuts]
    assert durations == sorted(durations) and len(durations) == 48


def test_inventory_counts_what_is_labelled(tiny_config: Config, tmp_path: Path, corpus: dict[str, str]) -> None:
    silent = str(make_corpus(tmp_path, 2, seed=9, text=None))
    found = take_inventory(read_cuts([corpus["dev"], silent]), tiny_config)
    assert (found.utterances, len(found.texts)) == (18, 12)
    assert found.labels() == {"speaker": ["ann", "bob", "cid"]}


def test_an_error_that_holds_the_loader_does_not_keep_the_process(corpus: dict[str, str]) -> None:
    """Its workers ignore SIGTERM, by which multiprocessing ends them at the exit, and waits."""
    values = tiny_values(corpus)
    values["data"]["workers"] = 1
    script = (
        "import json, sys\n"
        "from speech_mtl.config import parse_config\n"
        "from speech_mtl.data import batches, read_cuts\n"
        "config = parse_config(json.loads(sys.argv[1]), 'test')\n"
        "held = iter(batches(read_cuts(config.data.train), config))\n"
        "next(held)\n"
        "raise SystemError('not known to anybody')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(values)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "not known to anybody" in done.stderr
