"""Shares of corpora in an epoch, lengths matched across tasks, permuted labels, disjoint tasks."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RATE, make_corpus, tiny_values
from lhotse import CutSet, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.cut import Cut

from speech_mtl.config import Config, ConfigError, parse_config
from speech_mtl.cuts import MatchedLengths, StrungTogether, labels_at_speed, voice_of, with_labels
from speech_mtl.data import DataError, Manifest, SpeechDataset, batches, read_cuts
from speech_mtl.initial import prepare_model
from speech_mtl.inventory import take_inventory
from speech_mtl.mixture import apportion, corpus_shares, read_training, training_corpora, training_cuts
from speech_mtl.survey import disjoint_tasks, label_groups, length_auc, survey
from speech_mtl.tasks import label_of


def silent_cut(name: str, duration_s: float, **labels: Any) -> Cut:
    """A cut of a recording that is never read."""
    samples = int(duration_s * RATE)
    recording = Recording(name, [AudioSource("file", [0], f"{name}.wav")], RATE, samples, samples / RATE)
    cut = recording.to_cut().with_id(name)
    cut.supervisions = [SupervisionSegment(name, name, 0.0, recording.duration, **labels)]
    return cut


def manifest(folder: Path, name: str, durations_s: list[float], **labels: Any) -> str:
    """Silent cuts <name>-<i>; a label that is a function gets i."""
    cuts = [
        silent_cut(f"{name}-{i}", d, **{k: v(i) if callable(v) else v for k, v in labels.items()})
        for i, d in enumerate(durations_s)
    ]
    CutSet.from_cuts(cuts).to_file(folder / f"{name}.jsonl.gz")
    return str(folder / f"{name}.jsonl.gz")


def config_for(train: list[str], seed: int = 1, **data: Any) -> Config:
    values = tiny_values({"train": "", "dev": ""})
    values["data"] |= {"train": train, "dev": [], "max_utterance_s": 20.0, "max_duration_s": 40.0, **data}
    values["augment"], values["train"] = {}, {"seed": seed}
    return parse_config(values, "test")


@pytest.fixture
def three(tmp_path: Path) -> list[str]:
    """Corpora of 30, 7 and 3 usable utterances; one more is too long."""
    return [
        manifest(tmp_path, "a", [1.0] * 30, text="low", speaker=lambda i: f"s{i % 5}"),
        manifest(tmp_path, "b", [2.0] * 3 + [99.0] + [2.0] * 4, speaker=lambda i: f"t{i % 2}"),
        manifest(tmp_path, "c", [3.0] * 3, text="high"),
    ]


def corpora(cuts: Any) -> Counter[str]:
    return Counter(cut.id[0] for cut in cuts)


def test_apportioned_numbers_sum_up() -> None:
    assert apportion(10, [1, 1, 1]) == [4, 3, 3]
    assert apportion(40, [3, 1]) == [30, 10]
    assert apportion(7, [0.5, 0.3, 0.2]) == [4, 2, 1]  # 3.5, 2.1, 1.4


def test_by_default_the_cuts_are_the_manifests_own(three: list[str]) -> None:
    config = config_for([*three, three[0]])
    for epoch in (0, 3):
        assert list(training_cuts(config, epoch)) == list(read_cuts([*three, three[0]]))
    assert list(training_cuts(config, 0))[-1].id == "a-29~2"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"shares": [2, 1, 1]}, {"a": 20, "b": 10, "c": 10}),
        ({"shares": [0.1, 0.8, 0.1]}, {"a": 4, "b": 32, "c": 4}),
        # square roots 5.477, 2.646, 1.732 of 40: 22.23, 10.74, 7.03
        ({"temperature": 2}, {"a": 22, "b": 11, "c": 7}),
        ({"temperature": 1e6}, {"a": 14, "b": 13, "c": 13}),
    ],
)
def test_shares_and_temperature_give_the_stated_counts(three: list[str], data: dict, expected: dict) -> None:
    config = config_for(three, **data)
    for epoch in range(3):
        ids = [cut.id for cut in training_cuts(config, epoch)]
        assert corpora(training_cuts(config, epoch)) == expected
        assert len(set(ids)) == len(ids) == take_inventory(read_training(config), config).utterances == 40
        assert "b-3" not in ids  # too long for training


def test_every_stretch_of_an_epoch_has_the_shares(three: list[str]) -> None:
    cuts = list(training_cuts(config_for(three, shares=[2, 1, 1]), 0))
    for k in range(0, 40, 4):
        assert corpora(cuts[k : k + 4]) == {"a": 2, "b": 1, "c": 1}


def test_over_epochs_every_utterance_is_used_equally_often(three: list[str]) -> None:
    config = config_for(three, shares=[1, 2, 2])  # 8 of 30, 16 of 7, 16 of 3
    uses: Counter[str] = Counter()
    for epoch in range(105):  # 8 · 105 = 30 · 28
        uses.update(cut.id.split("~")[0] for cut in training_cuts(config, epoch))
        for name in "abc":  # at every moment
            counts = [uses[f"{name}-{i}"] for i in range({"a": 30, "b": 8, "c": 3}[name]) if (name, i) != ("b", 3)]
            assert max(counts) - min(counts) <= 1
    assert {uses[f"a-{i}"] for i in range(30)} == {28}
    assert {uses[f"b-{i}"] for i in range(8) if i != 3} == {240} and {uses[f"c-{i}"] for i in range(3)} == {560}


def test_the_part_changes_with_epoch_and_seed_alone(three: list[str]) -> None:
    def ids(epoch: int, seed: int = 1) -> list[str]:
        return [cut.id for cut in training_cuts(config_for(three, seed=seed, shares=[1, 2, 2]), epoch)]

    assert ids(4) == ids(4)
    assert set(ids(4)) != set(ids(5)) and set(ids(4)) != set(ids(4, seed=2))
    assert {"c-0", "c-1~5", "b-0~2"} <= set(ids(4))


def test_a_manifest_listed_twice_keeps_its_ids_apart(three: list[str]) -> None:
    config = config_for([three[2], three[0], three[2]], shares=[2, 1, 1])
    assert corpus_shares(config) == [3, 1] and corpus_shares(config_for(three)) is None
    ids = [cut.id for cut in training_cuts(config, 1)]
    assert len(ids) == len(set(ids)) == 36
    # 18 cuts are six passes, and 9 more are three: the second listing goes on with the names
    assert {name.split("~")[-1] for name in ids if name.startswith("c-0~")} == set("23456789")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"shares": [1.0, 2.0]}, "shares: found 2, accepted: one for each of 3 in train"),
        ({"shares": [1, 0, 1]}, "shares: found 0, accepted: numbers above 0"),
        ({"shares": [1, float("nan"), 1]}, "shares: found nan"),
        ({"shares": [1, 1, 1], "temperature": 2}, "exclude each other"),
        ({"temperature": 0.5}, "data.temperature: .* greater than or equal to 1, found 0.5"),
    ],
)
def test_shares_that_cannot_be_are_refused(three: list[str], data: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_for(three, **data)


def test_a_share_without_utterances_is_refused(three: list[str], tmp_path: Path) -> None:
    empty = manifest(tmp_path, "long", [50.0])
    with pytest.raises(DataError, match=r"long.jsonl.gz has a share in data.shares, but no usable utterance"):
        training_cuts(config_for([three[0], empty], shares=[1, 1]), 0)
    with pytest.raises(DataError, match=r"0.001 is none of 33 utterances an epoch for .*c.jsonl.gz"):
        training_cuts(config_for([three[0], three[2]], shares=[1, 0.001]), 0)
    assert corpora(training_cuts(config_for([three[0], empty], temperature=2), 0)) == {"a": 30}


@pytest.fixture
def heard(tmp_path: Path) -> list[str]:
    """Tone sentences with texts, and more without: these are longer, and many are of few speakers."""
    return [
        str(make_corpus(tmp_path / "x", 3, seed=1, speaker=None)),
        str(make_corpus(tmp_path / "y", 3, seed=2, text=None)),
    ]


def heard_config(heard: list[str]) -> Config:
    values = tiny_values({"train": "", "dev": ""})
    values["data"] |= {
        "train": heard, "dev": [], "max_duration_s": 3.0, "shares": [2, 1], "match_lengths": True,
        "permute": ["speaker"],
    }  # fmt: skip
    return parse_config(values, "test")


def epoch_of(config: Config, **place: int) -> list[dict[str, np.ndarray]]:
    loader = batches(training_cuts(config, place["epoch"]), config, train=True, **place)
    return [{cut.id: b.audio_BN[i, : b.samples_B[i]].numpy() for i, cut in enumerate(b.cuts)} for b in loader]


def test_two_processes_share_out_one_epoch_and_a_resumed_one_goes_on(heard: list[str]) -> None:
    """Law 4 and 5 of the mixture with everything switched on, audio included."""
    config = heard_config(heard)
    whole = epoch_of(config, epoch=3)
    ranks = [epoch_of(config, epoch=3, rank=rank, processes=2) for rank in (0, 1)]
    # lhotse gives a process that would come away empty the copy of a cut in the last step
    seen = [{name for batch in rank for name in batch if "_dup" not in name} for rank in ranks]
    everything = {name: audio for batch in whole for name, audio in batch.items()}
    assert len(everything) == 18 and len(whole) > 3
    assert not seen[0] & seen[1] and seen[0] | seen[1] == set(everything)
    for batch in [*ranks[0], *ranks[1]]:
        assert all(np.array_equal(audio, everything[name]) for name, audio in batch.items() if "_dup" not in name)
    resumed = epoch_of(config, epoch=3, skip=2)
    assert [list(batch) for batch in resumed] == [list(batch) for batch in whole[2:]]
    assert all(np.array_equal(batch[n], everything[n]) for batch in resumed for n in batch)


QUANTILES = [0.1, 0.25, 0.5, 0.75, 0.9]


def lengths(cuts: Any, has_text: bool) -> list[float]:
    return [cut.duration for cut in cuts if (label_of(cut, "text") is not None) == has_text]


@pytest.mark.parametrize("others_s", [[6.0, 16.0], [0.5, 1.5]])  # to be cropped, to be strung together
def test_matched_lengths_are_those_of_the_texts(tmp_path: Path, others_s: list[float]) -> None:
    rng = np.random.default_rng(0)
    spoken = manifest(tmp_path, "a", list(rng.uniform(2, 5, 300)), text="low")
    others = manifest(tmp_path, "b", list(rng.uniform(*others_s, 300)), speaker=lambda i: f"s{i % 20}")
    config = config_for([spoken, others], match_lengths=True)
    before = list(training_cuts(config, 0))
    after = list(MatchedLengths(before, config, 0))
    target = np.quantile(lengths(before, True), QUANTILES)
    assert np.abs(np.quantile(lengths(before, False), QUANTILES) - target).min() > 0.5
    assert np.abs(np.quantile(lengths(after, False), QUANTILES) - target).max() < 0.25
    assert [cut.id for cut in after] == [cut.id for cut in before]
    for old, new in zip(before, after, strict=True):
        assert label_of(new, "speaker") == label_of(old, "speaker")
        if label_of(old, "text") is not None:
            assert new is old
    again, later = list(MatchedLengths(before, config, 0)), list(MatchedLengths(before, config, 1))
    assert [(c.id, c.duration) for c in again] == [(c.id, c.duration) for c in after]
    assert sum(a.duration != b.duration for a, b in zip(later, after, strict=True)) > 250
    if others_s[0] > 5:  # cropped anywhere
        starts = np.array([cut.start / (old.duration - cut.duration) for old, cut in zip(before, after, strict=True)
                           if label_of(old, "text") is None])  # fmt: skip
        assert 0 <= starts.min() < 0.05 and 0.95 < starts.max() <= 1 and abs(starts.mean() - 0.5) < 0.05


def test_a_crop_keeps_labels_that_only_a_part_carried(tmp_path: Path) -> None:
    cut = silent_cut("long", 10.0, speaker="ann")
    cut.supervisions[0].duration = 0.5
    config = config_for(["unread"], match_lengths=True)
    for epoch in range(10):
        _, matched = MatchedLengths([silent_cut("short", 1.0, text="low"), cut], config, epoch)
        assert matched.duration == 1.0 and label_of(matched, "speaker") == "ann"


def test_a_crop_holds_more_than_padding() -> None:
    """A second of somebody, and nine of silence that were put behind it."""
    config = config_for(["unread"], match_lengths=True)
    padded = silent_cut("padded", 1.0, speaker="ann").pad(10.0, preserve_id=True)
    kinds = set()
    for epoch in range(10):
        _, matched = MatchedLengths([silent_cut("short", 1.0, text="low"), padded], config, epoch)
        assert matched.id == "padded" and label_of(matched, "speaker") == "ann"
        kinds.add(matched.duration)
    assert kinds >= {10.0} and len(kinds) <= 2


def test_only_the_same_labels_are_strung_together() -> None:
    values = tiny_values({"train": "", "dev": ""})
    values["tasks"]["mood"] = {"type": "classify", "label": "emotion"}
    values["data"]["match_lengths"] = True
    config = parse_config(values, "test")
    moods = ["sad", "glad", "sad", "glad"]
    cuts = [silent_cut(f"{i}", 1.0, speaker="ann", custom={"emotion": mood}) for i, mood in enumerate(moods)]
    text = silent_cut("text", 5.0, text="low")
    matched = list(MatchedLengths([text, *cuts], config, 0))[1:]
    assert [(cut.duration, label_of(cut, "emotion")) for cut in matched] == [(2.0, mood) for mood in moods]
    nameless = silent_cut("nobody", 1.0)
    assert list(MatchedLengths([text, nameless], config, 0))[1].duration == 1.0


def test_lengths_stay_where_there_is_nothing_to_match(three: list[str]) -> None:
    for path in (three[0], three[1]):  # all with a text, none with a text
        config = config_for([path], match_lengths=True)
        cuts = list(training_cuts(config, 0))
        assert all(new is old for new, old in zip(MatchedLengths(cuts, config, 0), cuts, strict=True))


def test_matched_cuts_are_read_at_their_length(heard: list[str]) -> None:
    config = heard_config(heard).model_copy(deep=True)
    config.augment.speeds = [1.0]
    total = Counter()
    for epoch in range(4):
        matched = {cut.id: cut for cut in MatchedLengths(list(training_cuts(config, epoch)), config, epoch)}
        batch = SpeechDataset(config)[epoch, list(matched.values())]
        assert not batch.failed
        for cut, samples in zip(batch.cuts, batch.samples_B.tolist(), strict=True):
            assert abs(samples - matched[cut.id].duration * RATE) <= 1
            total[type(cut).__name__] += 1
    assert total["MixedCut"] > 3 and total["MonoCut"] > 3


def test_bucketing_sees_the_matched_lengths(tmp_path: Path) -> None:
    """Batches of at most 6 s hold many matched utterances, where the unmatched ones of 16 s stand alone."""
    spoken = manifest(tmp_path, "a", [1.0] * 12, text="low")
    others = manifest(tmp_path, "b", [16.0] * 12, speaker="ann")
    config = config_for([spoken, others], match_lengths=True, max_duration_s=6.0)
    loader = batches(training_cuts(config, 0), config, train=True)
    sizes = [len(cuts) for _, cuts in loader.sampler]
    assert sum(sizes) == 24 and min(sizes) >= 6
    config.data.sorted_epochs = 1
    assert [len(cuts) for _, cuts in batches(training_cuts(config, 0), config, train=True).sampler] == [6] * 4


def test_permuted_labels_keep_their_counts_and_leave_the_rest(three: list[str]) -> None:
    plain, permuted = config_for([three[0], *three]), config_for([three[0], *three], permute=["speaker"])
    old, new = [[cut for part in training_corpora(config) for cut in part] for config in (plain, permuted)]
    assert [len(list(part)) for part in training_corpora(plain)] == [sum(1 for _ in Manifest(path)) for path in three]
    assert len(old) == len(new) == 41

    def speakers(cuts: list[Cut]) -> Counter[str | None]:
        return Counter(label_of(cut, "speaker") for cut in cuts if cut.duration < 20)

    assert speakers(old) == speakers(new) == {**{f"s{i}": 6 for i in range(5)}, "t0": 4, "t1": 3, None: 3}
    changed = [a.id for a, b in zip(old, new, strict=True) if label_of(a, "speaker") != label_of(b, "speaker")]
    assert len(changed) > 20
    assert any(label_of(cut, "speaker") in ("t0", "t1") for cut in new if cut.id.startswith("a"))
    for a, b in zip(old, new, strict=True):
        assert a.id == b.id and label_of(a, "text") == label_of(b, "text") and a.duration == b.duration
        assert voice_of(b) == label_of(a, "speaker")
    assert take_inventory(new, permuted).classes == take_inventory(old, plain).classes


def test_a_teacher_would_tell_what_a_permutation_hides(three: list[str]) -> None:
    values = tiny_values({"train": three[0], "dev": three[0]})
    values["data"]["permute"] = ["speaker"]
    values["tasks"]["speaker"]["teacher"] = 1.0
    config = parse_config(values, "test")  # that of a finished model is still read
    with pytest.raises(ConfigError, match="a teacher's vectors stay with their voices; set tasks.speaker.teacher=0"):
        prepare_model(config)


def test_the_permutation_is_one_over_epochs_and_repetitions(three: list[str]) -> None:
    config = config_for([three[0], *three], permute=["speaker"], shares=[3, 1, 2, 2])
    labels: dict[str, set] = {}
    for epoch in range(6):
        for cut in training_cuts(config, epoch):
            labels.setdefault(cut.id.split("~")[0], set()).add(label_of(cut, "speaker"))
    for cut in read_training(config):
        labels[cut.id.split("~")[0]].add(label_of(cut, "speaker")) if cut.duration < 20 else None
    assert len(labels) == 40 and all(len(values) == 1 for values in labels.values())
    other = config_for([three[0], *three], seed=2, permute=["speaker"])
    assert any(label_of(cut, "speaker") not in labels[cut.id] for part in training_corpora(other) for cut in part
               if cut.id in labels)  # fmt: skip


def test_permuted_custom_label_and_text(tmp_path: Path) -> None:
    path = manifest(
        tmp_path, "a", [1.0] * 30, text=lambda i: f"text {i}", custom=lambda i: {"accent": "xyz"[i % 3], "take": str(i)}
    )
    cuts = list(read_training(config_for([path], permute=["accent", "text"])))
    assert Counter(label_of(cut, "accent") for cut in cuts) == {"x": 10, "y": 10, "z": 10}
    assert sum(label_of(cut, "accent") != "xyz"[i % 3] for i, cut in enumerate(cuts)) > 10
    assert sum(label_of(cut, "text") != f"text {i}" for i, cut in enumerate(cuts)) > 25
    assert {label_of(cut, "text") for cut in cuts} == {f"text {i}" for i in range(30)}
    assert [label_of(cut, "take") for cut in cuts] == [str(i) for i in range(30)]


def test_a_text_stands_once_in_a_cut_of_several_supervisions() -> None:
    cut = silent_cut("a", 2.0, text="one")
    cut.supervisions.append(SupervisionSegment("b", "a", 1.0, 1.0, text="two"))
    assert label_of(with_labels(cut, {"text": "three"}), "text") == "three"
    assert label_of(cut, "text") == "one two"


def test_a_part_of_a_cut_has_no_text_and_more_than_it_has_all() -> None:
    whole = silent_cut("a", 1.6, text="one two")
    windows = CutSet.from_cuts([whole]).cut_into_windows(0.8)
    assert [label_of(part, "text") for part in (*windows, whole.truncate(duration=0.8))] == [None] * 3
    assert label_of(whole.truncate(duration=0.8).pad(2.0), "text") is None
    more = [whole.perturb_speed(0.9), whole.perturb_speed(1.1), whole.pad(3.0, direction="left"), whole.pad(3.0)]
    assert [label_of(cut, "text") for cut in more] == ["one two"] * 4
    assert label_of(more[0].append(more[2]), "text") == "one two one two"


def test_a_text_that_is_known_in_part_is_none_at_any_length() -> None:
    """Beside texts that are known: neither strung to others, nor known when it is cropped."""
    part = silent_cut("part", 4.0, text="one", speaker="ann").truncate(duration=2.0).with_id("part")
    mixed = part.append(silent_cut("b", 2.0, text="two", speaker="ann")).with_id("mixed")
    texts = [silent_cut(f"{i}", 1.0, text="three", speaker="ann") for i in range(3)]
    config = config_for(["unread"], match_lengths=True)
    for epoch in range(5):
        cuts = list(MatchedLengths(StrungTogether([part, mixed, *texts], config, epoch), config, epoch))
        assert label_of(cuts[0], "text") is None and cuts[0].duration == cuts[1].duration == 1.0
    found = take_inventory([part, mixed, *texts], config)
    assert list(found.texts_left_out.values()) == [2] and len(found.texts) == 3


def test_strung_together_utterances_lose_no_label() -> None:
    """Labels other than the voice differ from one utterance to the next, or are missing."""
    emotions = ["calm", "angry", None]
    cuts = [
        silent_cut(f"{i}", 1.0, text="one", speaker="ann", custom={"emotion": emotions[i % 3]} if i % 3 < 2 else None)
        for i in range(12)
    ]
    values = config_for(["unread"]).model_dump()
    values["tasks"]["mood"] = {"type": "classify", "label": "emotion"}
    values["augment"] |= {"concat_prob": 1.0, "concat_max_s": 5.0}
    config, strung = parse_config(values, "test"), 0
    for epoch in range(3):
        found = list(StrungTogether(cuts, config, epoch))
        assert [label_of(cut, "emotion") for cut in found] == [emotions[i % 3] for i in range(12)]
        strung += sum(len(cut.supervisions) > 1 for cut in found)
    assert strung > 10


def test_labels_of_a_mixed_cut_change_in_the_copy_alone() -> None:
    """Also of one that opens with silence."""
    mixed = silent_cut("a", 1.0, text="one", speaker="ann").pad(2.0, direction="left").with_id("mixed")
    slow = labels_at_speed(mixed, 0.9)
    other = with_labels(mixed, {"speaker": "bob"})
    assert [label_of(cut, "speaker") for cut in (slow, other, mixed)] == ["ann@0.9", "bob", "ann"]
    assert {label_of(cut, "text") for cut in (slow, other, mixed)} == {"one"} and slow.id == "mixed"


def test_a_permuted_speaker_has_its_speeds(corpus: dict[str, str]) -> None:
    values = tiny_values(corpus)
    values["data"]["permute"] = ["speaker"]
    values["augment"] = {"speeds": [0.8], "gain_db": 0.0}
    config = parse_config(values, "test")
    cuts = list(read_training(config))[:3]
    batch = SpeechDataset(config, augment=True)[0, cuts]
    assert [label_of(cut, "speaker") for cut in batch.cuts] == [f"{label_of(cut, 'speaker')}@0.8" for cut in cuts]


def test_permuted_labels_change_no_audio(corpus: dict[str, str]) -> None:
    """Utterances are strung together by voice: the control differs from its arm in the labels alone."""
    values = tiny_values(corpus)
    values["augment"] = {"concat_prob": 1.0, "concat_max_s": 5.0}
    plain = parse_config(values, "plain")
    values["data"]["permute"] = ["speaker"]
    permuted = parse_config(values, "permuted")
    old, new = (list(StrungTogether(list(training_cuts(c, 1)), c, 1)) for c in (plain, permuted))
    given = {cut.id: label_of(cut, "speaker") for cut in training_cuts(permuted, 1)}
    strung = 0
    for a, b in zip(old, new, strict=True):
        assert (a.id, a.duration, label_of(a, "text")) == (b.id, b.duration, label_of(b, "text"))
        assert label_of(b, "speaker") == given[a.id]
        strung += len(b.supervisions) > 1
    assert strung > 10


def test_a_label_nobody_has_is_not_permuted(three: list[str]) -> None:
    with pytest.raises(DataError, match="data.permute: no training utterance has a label 'speeker'; .*: text, speaker"):
        read_training(config_for(three, permute=["speeker"]))


def test_auc_of_lengths() -> None:
    assert length_auc(np.array([1.0, 2.0]), np.array([3.0, 4.0])) == 1.0
    assert length_auc(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == 1.0
    assert length_auc(np.array([1.0, 2.0]), np.array([1.0, 2.0])) == 0.5
    # by hand: pairs (1,2) (1,2) (3,2) (3,2): half each way; with a tie (2,2) counted half
    assert length_auc(np.array([1.0, 2.0, 2.0]), np.array([2.0, 3.0])) == pytest.approx(5 / 6)


@pytest.mark.parametrize(
    ("texts_s", "speakers_s", "by_length"), [([1.0, 1.2], [8.0, 9.0], True), ([1.0, 4.0], [1.1, 4.1], False)]
)
def test_disjoint_tasks_are_warned_of(
    tmp_path: Path, texts_s: list[float], speakers_s: list[float], by_length: bool
) -> None:
    texts = manifest(tmp_path, "a", texts_s * 20, text="low")
    speakers = manifest(tmp_path, "b", speakers_s * 20, speaker=lambda i: f"s{i % 4}")
    config = config_for([texts, speakers])
    groups = label_groups(config.data.train, config)
    (warning,) = disjoint_tasks(groups)
    assert "asr and speaker are disjoint: no utterances have labels for both" in warning
    assert ("length (median 1.1 s against 8.5 s, AUC 1.00;" in warning) == by_length
    assert "by corpus" in warning or "and corpus (they are from different manifests)" in warning
    matched = config_for([texts, speakers], match_lengths=True)
    assert "AUC" not in disjoint_tasks(groups, matched)[0] and "corpus" in disjoint_tasks(groups, matched)[0]
    assert warning in survey([texts, speakers]).warnings()


def test_tasks_within_one_manifest_of_like_lengths_are_not_told_apart(tmp_path: Path) -> None:
    path = manifest(
        tmp_path, "a", [1.0, 2.0, 2.0, 1.0] * 10,
        text=lambda i: "low" if i % 2 else None, speaker=lambda i: None if i % 2 else f"s{i % 4}",
    )  # fmt: skip
    config = config_for([path])
    (warning,) = disjoint_tasks(label_groups([path], config))
    assert warning.endswith("neither length nor manifest tells them apart")


@pytest.mark.parametrize(("both", "warned"), [(1, True), (4, False)])
def test_few_shared_utterances_are_disjoint(tmp_path: Path, both: int, warned: bool) -> None:
    """1 of 41 is 2.4 %, 4 of 44 are 9.1 %."""
    paths = [
        manifest(tmp_path, "a", [1.0] * 60, text="low"),
        manifest(tmp_path, "b", [1.0] * 40, speaker=lambda i: f"s{i % 4}"),
        manifest(tmp_path, "c", [1.0] * both, text="low", speaker="s0"),
    ]
    config = config_for(paths)
    found = disjoint_tasks(label_groups(paths, config))
    assert bool(found) == warned
    assert not warned or "1 utterances have labels for both" in found[0]


def test_labelled_together_or_not_at_all_is_not_disjoint(tmp_path: Path) -> None:
    long_texts = manifest(tmp_path, "a", [9.0] * 40, text="low")
    both = manifest(tmp_path, "b", [1.0] * 10, text="low", speaker=lambda i: f"s{i % 2}")
    for paths in ([long_texts], [both], [long_texts, both]):  # every speaker's utterance has a text
        assert disjoint_tasks(label_groups(paths, config_for(paths))) == []


def test_lhotse_warns_of_nothing_that_is_meant(three: list[str], tmp_path: Path) -> None:
    config = config_for([three[0], three[2]], max_duration_s=2.0)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        sizes = [len(cuts) for _, cuts in batches(training_cuts(config, 0), config, train=True).sampler]
        assert sum(sizes) == 33 and 1 in sizes
        eager = CutSet.from_cuts(list(read_cuts([three[0]])))
        assert sum(len(cuts) for _, cuts in batches(eager, config).sampler) == 30
    assert [str(w.message) for w in found if "max_duration" in str(w.message) or "eagerly" in str(w.message)] == []
