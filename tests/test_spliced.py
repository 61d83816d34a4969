"""The corpus spliced: utterances of a speaker's own phrases, which hold what their texts say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import RATE, make_corpus
from lhotse import CutSet, Recording, SupervisionSegment

import data_prep
from data_prep.common import PrepareError
from data_prep.spliced import _pause
from speech_mtl.demo import DATA
from speech_mtl.metrics import word_error_count, word_errors
from speech_mtl.recognizer import Recognizer


@pytest.fixture(scope="module")
def turns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's conversation as single utterances."""
    recording = Recording.from_file(DATA / "conversation.flac", recording_id="conversation")
    cuts = []
    for number, turn in enumerate(json.loads((DATA / "truth.json").read_text())):
        start_s, duration_s = turn["start_s"] - 0.2, turn["end_s"] - turn["start_s"] + 0.4
        cut = recording.to_cut().truncate(offset=start_s, duration=duration_s).with_id(f"turn-{number:02d}")
        said = SupervisionSegment(cut.id, recording.id, 0.0, duration_s, text=turn["text"], speaker=turn["speaker"])
        said.gender, said.custom = "female", {"corpus": "demo", "voice": turn["speaker"][0]}
        cut.supervisions = [said]
        cuts.append(cut)
    CutSet.from_cuts(cuts).to_file(path := tmp_path_factory.mktemp("turns") / "turns.jsonl.gz")
    return path


def prepared(source: Path, out: Path, **options: object) -> list:
    return list(CutSet.from_file(data_prep.prepare("spliced", source, out, **options) / "train.jsonl.gz"))


def test_what_is_spliced_holds_what_its_text_says(turns: Path, tmp_path: Path) -> None:
    cuts = prepared(turns, tmp_path / "out", utterances=8)
    source = list(CutSet.from_file(turns))
    said: dict[str, list[list[str]]] = {}
    for cut in source:
        said.setdefault(cut.supervisions[0].speaker, []).append(cut.supervisions[0].text.split())
    recognizer = Recognizer.from_pretrained(db=tmp_path / "speakers.db")
    wrong = words = new = 0
    for cut in cuts:
        supervision, text = cut.supervisions[0], cut.supervisions[0].text.split()
        own = said[cut.id.split("-")[0]]
        assert supervision.speaker is None
        assert supervision.gender == "female" and supervision.duration == cut.duration == cut.recording.duration
        assert supervision.custom == {"corpus": "spliced"}  # "voice" is the first utterance's
        assert text[0] in {words[0] for words in own} and text[-1] in {words[-1] for words in own}
        assert set(text) <= {word for words in own for word in words}
        new += text not in own
        heard = recognizer.transcribe((cut.load_audio()[0], RATE))
        wrong += word_error_count(word_errors(" ".join(text), " ".join(s.text for s in heard.segments)))
        words += len(text)
    assert {cut.id.split("-")[0] for cut in cuts} >= {"anna", "ben", "carla"}
    assert len(cuts) >= 20 and new > 0.8 * len(cuts)
    assert wrong < 0.25 * words  # the sound of other words would make three times as many
    again = prepared(turns, tmp_path / "again", utterances=8)
    assert [cut.supervisions[0].text for cut in again] == [cut.supervisions[0].text for cut in cuts]
    assert all(np.array_equal(a.load_audio(), b.load_audio()) for a, b in zip(cuts, again, strict=True))
    other = prepared(turns, tmp_path / "other", utterances=8, seed=1)
    assert [cut.supervisions[0].text for cut in other] != [cut.supervisions[0].text for cut in cuts]


@pytest.mark.parametrize(
    ("pause_s", "residue", "is_pause"),
    [(0.2, 0.0, True), (0.2, 0.05, True), (0.2, 0.3, False), (0.03, 0.0, False), (0.0, 0.0, False)],
)
def test_a_pause_is_long_and_quiet_enough(pause_s: float, residue: float, is_pause: bool) -> None:
    """Two words of noise with a pause between them: silent, 26 dB below them, or 10 dB below them."""
    rng = np.random.default_rng(0)
    gains = np.concatenate([np.ones(RATE // 2), np.full(round(pause_s * RATE), residue), np.ones(RATE // 2)])
    found = _pause((0.1 * gains * rng.standard_normal(len(gains))).astype(np.float32), 0.25, 0.75 + pause_s)
    assert (found is not None) == is_pause
    if found:
        assert abs(found / RATE - 0.5 - pause_s / 2) < 0.02


def test_a_source_without_pauses_or_speakers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "single").mkdir()
    source = make_corpus(tmp_path / "single", 2, seed=1, text="low")
    with pytest.raises(PrepareError, match=r"none of \d speakers pauses within"):
        prepared(source, tmp_path / "out")
    with pytest.raises(PrepareError, match="no utterance with a text and a speaker"):
        prepared(make_corpus(tmp_path / "single", 2, seed=2, speaker=None), tmp_path / "out")
    with pytest.raises(PrepareError, match="option utterances: 0 given"):
        prepared(source, tmp_path / "out", utterances=0)
    with pytest.raises(PrepareError, match="is no file"):
        prepared(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.jsonl.gz"))
