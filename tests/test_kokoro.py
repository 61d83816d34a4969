"""The corpus kokoro, spoken by kokoro-onnx itself with a tiny model in place of Kokoro's."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from lhotse import CutSet
from onnx import TensorProto, helper, save

import data_prep
from data_prep.common import PrepareError
from data_prep.kokoro import SPOKEN_AS, draw_speakers, phonemes_of

VOICES = ["af_ann", "af_bea", "am_carl", "bf_dora", "bm_ed"]
SAMPLES_PER_TOKEN = 600


@pytest.fixture(scope="session")
def kokoro_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says every token as a tone as loud as the token's number, times the style's mean."""
    folder = tmp_path_factory.mktemp("kokoro")
    tone = np.sin(np.arange(SAMPLES_PER_TOKEN) / 4).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["tokens"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["style"], ["level"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["numbers", "level"], ["levels"]),
        helper.make_node("Div", ["levels", "speed"], ["slowed"]),
        helper.make_node("Reshape", ["slowed", "column"], ["column_levels"]),
        helper.make_node("Mul", ["column_levels", "tone"], ["tones"]),
        helper.make_node("Reshape", ["tones", "row"], ["audio"]),
    ]
    inputs = [
        helper.make_tensor_value_info("tokens", TensorProto.INT64, [1, "N"]),
        helper.make_tensor_value_info("style", TensorProto.FLOAT, [1, 256]),
        helper.make_tensor_value_info("speed", TensorProto.FLOAT, [1]),
    ]
    constants = [
        helper.make_tensor("column", TensorProto.INT64, [2], [-1, 1]),
        helper.make_tensor("row", TensorProto.INT64, [1], [-1]),
        helper.make_tensor("tone", TensorProto.FLOAT, [1, SAMPLES_PER_TOKEN], tone),
    ]
    outputs = [helper.make_tensor_value_info("audio", TensorProto.FLOAT, ["S"])]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, constants)
    opset = [helper.make_opsetid("", 13)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(folder / "tiny.onnx"))
    rng = np.random.default_rng(0)
    np.savez(folder / "voices.npz", **{name: rng.uniform(0, 0.01, (510, 1, 256)).astype(np.float32) for name in VOICES})
    return folder


def test_every_speaker_says_its_sentences_and_a_second_run_says_none_again(kokoro_files: Path, tmp_path: Path) -> None:
    out = data_prep.prepare("kokoro", kokoro_files, tmp_path / "out", speakers=8, utterances=3)
    cuts = list(CutSet.from_file(out / "train.jsonl.gz"))
    assert len(cuts) == 24 and len({cut.supervisions[0].speaker for cut in cuts}) == 8
    for cut in cuts:
        (supervision,) = cut.supervisions
        assert supervision.text == supervision.text.lower() and "," not in supervision.text
        assert supervision.gender in ("female", "male") and supervision.custom["voice"] in VOICES
        assert cut.sampling_rate == 16000 and 0.02 < np.abs(cut.load_audio()).max() <= 1
    audio = {path: path.stat().st_mtime_ns for path in (out / "audio").rglob("*.flac")}
    last = max(audio, key=lambda path: audio[path])
    samples = last.read_bytes()
    last.unlink()  # as where the first run was stopped
    data_prep.prepare("kokoro", kokoro_files, out, speakers=8, utterances=3)
    assert list(CutSet.from_file(out / "train.jsonl.gz")) == cuts and last.read_bytes() == samples
    others = {path: path.stat().st_mtime_ns for path in audio if path != last}
    assert others == {path: time for path, time in audio.items() if path != last}


def test_speakers_are_the_voices_first_and_then_mixtures_of_one_gender() -> None:
    few, many = draw_speakers(VOICES, 7, seed=1), draw_speakers(VOICES, 30, seed=1)
    assert many[:7] == few and len({speaker.name for speaker in many}) == 30
    assert sorted(speaker.name for speaker in few[:5]) == VOICES
    for speaker in many[5:]:
        assert speaker.voice[1] == speaker.other[1] and speaker.voice != speaker.other
        assert 0.25 <= speaker.share <= 0.5 and speaker.tract != 1
    assert len(draw_speakers(["af_ann", "af_bea"], 2 + 2 * 26, seed=0)) == 54  # all that there are
    assert {speaker.language for speaker in few[:5]} == {"en-gb", "en-us"}


@pytest.mark.parametrize(
    ("text", "paused", "said"),
    [
        ("b o A five", False, "B O A five"),
        ("b o A five", True, "B, O, A, five"),
        ("a house, a garden", False, "a house, a garden"),
        ("area code four, one", True, "area, code, four, one"),
        ("rubout g", False, f"{SPOKEN_AS['rubout']} G"),
    ],
)
def test_letters_are_said_by_their_names(text: str, paused: bool, said: str) -> None:
    echo = SimpleNamespace(phonemize=lambda text, language: text)
    assert phonemes_of(text, paused, "en-us", echo) == said


def test_phonemes_are_those_of_espeak() -> None:
    from kokoro_onnx.tokenizer import Tokenizer

    assert phonemes_of("A z", False, "en-us", Tokenizer()) == "ˈeɪ zˈiː"
    assert phonemes_of("A z", False, "en-gb", Tokenizer()) == "ˈeɪ zˈɛd"


def test_what_is_no_kokoro_is_refused(kokoro_files: Path, tmp_path: Path) -> None:
    def source(**files: bytes) -> Path:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for name, data in files.items():
            (folder / name.replace("_", ".")).write_bytes(data)
        return folder

    np.save(array := BytesIO(), np.zeros(3))
    model, voices = (kokoro_files / "tiny.onnx").read_bytes(), (kokoro_files / "voices.npz").read_bytes()
    for folder, message in (
        (source(a_onnx=model), r"holds a.onnx; expected Kokoro's voices\*"),
        (source(voices_bin=voices), r"expected Kokoro's \*.onnx"),
        (source(a_onnx=b"nothing", voices_bin=voices), "a.onnx: .*expected Kokoro's ONNX model"),
        (source(a_onnx=model, voices_bin=voices[:2000]), "voices.bin: .*expected Kokoro's voices as numpy's npz"),
        (source(a_onnx=model, voices_bin=array.getvalue()), "voices.bin: .*expected Kokoro's voices as numpy's npz"),
        (source(a_onnx=model, voices_bin=b"nothing"), "voices.bin: .*expected Kokoro's voices as numpy's npz"),
    ):
        with pytest.raises(PrepareError, match=message):
            data_prep.prepare("kokoro", folder, tmp_path / "out", speakers=2, utterances=1)
    with pytest.raises(PrepareError, match="option speakers: 0 given; accepted: 1 or more"):
        data_prep.prepare("kokoro", kokoro_files, tmp_path / "out", speakers=0)
    with pytest.raises(PrepareError, match="voice 'heart': expected a language"):
        draw_speakers(["heart"], 1, seed=0)
    with pytest.raises(PrepareError, match="2 given; 1 voices and their mixtures make 1"):
        draw_speakers(["af_heart"], 2, seed=0)
