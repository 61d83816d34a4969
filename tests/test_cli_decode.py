"""The commands lm and align, and the beam search's options of transcribe and evaluate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile
from conftest import RATE, make_corpus, needs_kenlm
from test_cli import call
from test_recognizer import save_tiny, speech

import speech_mtl
from speech_mtl.alignment import read_text
from speech_mtl.cli_decode import _texts
from speech_mtl.metrics import word_error_count, word_errors


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPEECH_MTL_SPEAKERS", str(tmp_path / "speakers.db"))
    soundfile.write(tmp_path / "0.wav", speech(2.0), RATE)
    (tmp_path / "texts.txt").write_text("Low mid.\n\nhigh low\n")
    return tmp_path


@needs_kenlm
def test_lm_reads_texts_and_manifests_and_serves_transcribe_and_evaluate(place: Path, model: Path) -> None:
    cuts = make_corpus(place / "corpus", 2, seed=5)
    made = call("lm", place / "texts.txt", cuts, "--order", "2", "--out", place / "lm.arpa", "-m", model)
    assert made.exit_code == 0, made.output
    assert "2-grams of 3 words from 8 texts" in made.stderr
    assert (place / "lm.arpa").read_text().startswith("\\data\\\nngram 1=6\n")
    short = call("lm", place / "texts.txt", "--order", "6", "--out", place / "short.arpa", "-m", model)
    assert "short.arpa: 4-grams of 3 words from 2 texts" in short.stderr  # <s> low mid </s>
    options = ["--lm", place / "lm.arpa", "--lm-weight", "2", "--beam", "8", "--hot-word", "mid", "--boost", "3"]
    result = call("transcribe", place / "0.wav", "-m", model, "-f", "json", *options)
    assert result.exit_code == 0, result.output
    notes = json.loads(result.stdout)["notes"]
    assert [note.split(":")[0] for note in notes[-2:]] == ["language model lm.arpa", "hot words"]
    assert all(f"0.wav: {note}" in result.stderr for note in notes)
    scored = call("evaluate", model, cuts, "--out", place / "eval", *options)
    assert scored.exit_code == 0, scored.output
    summary = json.loads((place / "eval" / "summary.json").read_text())
    assert summary["asr"]["decoding"]["lm_weight"] == 2 and summary["asr"]["decoding"]["hot_words"] == ["mid"]
    assert "language model lm.arpa: changed " in scored.stderr
    row = json.loads((place / "eval" / "utterances.jsonl").read_text().splitlines()[0])
    assert set(row["asr"]["without"]) == {"language model", "hot words"}
    assert set(summary["asr"]["without"]) == {"language model", "hot words"}
    worth = summary["asr"]["without"]["language model"]
    assert worth["difference"] == pytest.approx(summary["asr"]["wer"] - worth["wer"], abs=2e-6)
    sentence = f"language model: word error rate {100 * worth['wer']:.2f} % without it; "
    assert sentence in scored.stdout and sentence in (place / "eval" / "report.md").read_text()
    assert sentence.capitalize() in (place / "eval" / "report.html").read_text()


@needs_kenlm
def test_own_is_the_language_model_in_the_models_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = save_tiny(place / "own_model")
    for command in (["transcribe", place / "0.wav", "-m", own], ["evaluate", own, "none.jsonl"]):
        refused = call(*command, "--lm", "own")
        assert refused.exit_code == 2 and not refused.stdout
        said = " ".join(refused.stderr.replace("│", " ").split())
        assert "--lm own: no lm.arpa in" in said and "makes one" in said
    missing = call("transcribe", place / "0.wav", "-m", place / "nowhere", "--lm", "own")
    assert missing.exit_code == 1 and "is not a model folder" in missing.stderr
    monkeypatch.chdir(place)
    (place / "own").write_text("no language model\n")
    file = call("transcribe", place / "0.wav", "-m", own, "--lm", "./own")
    assert file.exit_code == 1 and "own: neither an ARPA file" in file.stderr
    assert call("lm", place / "texts.txt", "--model", own, "--out", own / "lm.arpa").exit_code == 0
    options = ["-f", "json", "--lm-weight", "2"]
    named = call("transcribe", place / "0.wav", "-m", own, *options, "--lm", own / "lm.arpa")
    result = call("transcribe", place / "0.wav", "-m", own, *options, "--lm", "own")
    assert result.exit_code == 0 and result.stdout == named.stdout and "language model lm.arpa" in result.stdout


@needs_kenlm
def test_the_bundled_language_model_serves_the_bundled_model(place: Path) -> None:
    demo = Path(speech_mtl.__file__).parent / "demo_data"
    truth = " ".join(turn["text"] for turn in json.loads((demo / "truth.json").read_text()))
    errors = []
    for options in ([], ["--lm", "own"]):
        result = call("transcribe", demo / "conversation.flac", "-f", "json", *options)
        errors.append(word_error_count(word_errors(truth, json.loads(result.stdout)["text"])))
    assert errors[1] <= errors[0] <= 0.2 * len(truth.split())


def test_greedy_stays_the_default(place: Path, model: Path) -> None:
    result = call("transcribe", place / "0.wav", "-m", model, "-f", "json")
    assert not any("language model" in note or "hot words" in note for note in json.loads(result.stdout)["notes"])
    call("evaluate", model, make_corpus(place / "corpus", 1, seed=6), "--out", place / "eval")
    assert "decoding" not in json.loads((place / "eval" / "summary.json").read_text())["asr"]


def test_align_takes_a_text_or_its_file(place: Path, model: Path) -> None:
    given = call("align", place / "0.wav", "low mid high low", "-m", model)
    assert given.exit_code == 0, given.output
    assert [line.split()[4] for line in given.stdout.splitlines()] == ["low", "mid", "high", "low"]
    from_file = call(
        "align", place / "0.wav", place / "texts.txt", "-m", model, "-f", "json", "--out", place / "a.json"
    )
    assert from_file.exit_code == 0 and from_file.stdout == ""
    assert json.loads((place / "a.json").read_text())["text"] == "low mid high low"


def test_a_byte_order_mark_is_no_letter(place: Path) -> None:
    """A model that keeps punctuation would have to write it."""
    (place / "marked.txt").write_text("low mid\n", encoding="utf-8-sig")
    assert read_text(str(place / "marked.txt")) == "low mid\n"
    assert list(_texts(place / "marked.txt")) == ["low mid"]


def test_nothing_is_written_over_what_it_is_made_from(place: Path, model: Path) -> None:
    texts, sound, link = place / "texts.txt", place / "0.wav", place / "link.txt"
    link.symlink_to(texts)
    before = {path: path.read_bytes() for path in (texts, sound)}
    for arguments in (
        ["lm", sound, texts, "--out", texts], ["lm", texts, "--out", link], ["align", sound, "low", "--out", sound],
        ["align", sound, texts, "--out", texts],
    ):  # fmt: skip
        result = call(*arguments, "-m", model)
        assert result.exit_code == 2 and result.stdout == "", (arguments, result.output)
        assert "which is read and would be lost" in " ".join(result.stderr.replace("│", " ").split())
    assert before == {path: path.read_bytes() for path in before}


def test_errors_are_one_line(place: Path, model: Path) -> None:
    (place / "other.arpa").write_text("no model")
    (place / "latin.txt").write_bytes(b"caf\xe9")
    cases: list[tuple[int, list[object], str]] = [
        (1, ["align", place / "0.wav", "low 7", "-m", model], "characters that this model cannot write: '7'"),
        (1, ["align", place / "0.wav", "mid " * 60, "-m", model], "too long for 2.00 s of audio"),
        (1, ["align", place / "0.wav", place / "latin.txt", "-m", model], "latin.txt: not a text in UTF-8"),
        (1, ["align", place / "none.wav", "low", "-m", model], "none.wav: No such file or directory"),
        (1, ["transcribe", place / "0.wav", "-m", model, "--lm", place / "other.arpa"], "neither an ARPA file nor"),
        (1, ["transcribe", place / "0.wav", "-m", model, "--lm", place / "none.arpa"], "none.arpa: No such file"),
        (1, ["transcribe", place / "0.wav", "-m", model, "--hot-word", "Zoë"], "cannot write: 'z', 'ë'"),
        (1, ["lm", place / "latin.txt", "--out", place / "x.arpa", "-m", model], "neither a text in UTF-8 nor"),
        (1, ["lm", place / "missing.txt", "--out", place / "x.arpa", "-m", model], "missing.txt: No such file"),
        (2, ["transcribe", place / "0.wav", "--beam", "0"], "beam 0; expected 1 to 1000"),
        (2, ["transcribe", place / "0.wav", "--boost", "3"], "--boost has a meaning only with --hot-word"),
        (2, ["evaluate", model, "x.jsonl", "--lm-weight", "1"], "--lm-weight has a meaning only with --lm FILE"),
        (2, ["transcribe", "0.wav", "--lm", "x", "--lm-weight", "11"], "lm_weight 11; expected 0 to 10"),
        (2, ["align", place / "0.wav", "low", "-f", "docx"], "--format docx; accepted: txt, json"),
        (2, ["align", place / "0.wav", "low", "-f", "rttm"], "rttm; accepted: txt, json, srt, vtt, ctm, text"),
        (2, ["align", "-", "low", "-f", "html"], "which a pipe gives but once; give a file"),
        (2, ["lm", place / "texts.txt", "--order", "9", "--out", place / "x.arpa"], "less than or equal to 6"),
    ]  # fmt: skip
    (place / "empty.txt").write_text("")
    cases.append((1, ["lm", place / "empty.txt", "--out", place / "x.arpa", "-m", model], "every text is empty"))
    for code, arguments, message in cases:
        result = call(*arguments)
        assert result.exit_code == code and result.stdout == "", (arguments, result.output)
        assert message in " ".join(result.stderr.replace("│", " ").split()) and "Traceback" not in result.stderr
