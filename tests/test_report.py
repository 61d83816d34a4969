"""The report of an evaluation made up here: its figures are those of summary.json, and its page stands alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speech_mtl.metrics import equal_error_rate, error_rates, min_dcf, word_errors
from speech_mtl.report import figures, terminal_markdown, write_report
from speech_mtl.report.collect import Tally, align, by_duration, by_speaker, collect, confusion
from speech_mtl.report.demo import write_demo_page

RATE = 16000
DANGEROUS = "<script>alert(1)</script>"
SPEAKERS = ["Ann", "Béla", "<b>Cy</b>"]
TEXTS = [("one two three", "one too three"), (f"größe {DANGEROUS}", "große"), ("你好 世界", "你好 世间"),
         ("a b c", "a b c d"), ("", "uh")]  # fmt: skip


def make_row(i: int, audio: Path, speakers: list[str], **changes: Any) -> dict[str, Any]:
    reference, hypothesis = TEXTS[i % len(TEXTS)]
    scores = {name: round(0.2 + 0.01 * (i % 7) + 0.4 * (name == speakers[i % len(speakers)]), 4) for name in speakers}
    if i == 1 and len(speakers) > 1:
        scores[speakers[0]] = 0.9
    words = [
        {"text": word, "start_s": 0.1 + 0.2 * k, "end_s": 0.25 + 0.2 * k, "confidence": 0.9}
        for k, word in enumerate(hypothesis.split())
    ]
    errors = word_errors(reference, hypothesis)
    return {
        "id": f"utt-{i}", "audio": str(audio), "start_s": 0.0, "duration_s": 0.5 + 0.5 * i, "compute_s": 0.01,
        "asr": {"hyp": hypothesis, "words": words, "ref": reference, "errors": errors},
        "speaker": {"hyp": max(scores, key=scores.__getitem__), "score": max(scores.values()), "scores": scores,
                    "mode": "enrolled", "ref": speakers[i % len(speakers)]},
        "gender": {"hyp": "f" if i % 3 else "m", "probability": 0.8, "ref": "f"},
        "accent": {"hyp": "north", "probability": 0.6},
    } | changes  # fmt: skip


def summary_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counted here from the rows, apart from evaluate.py, so that this file needs no torch."""
    good = [row for row in rows if "error" not in row]
    summary: dict[str, Any] = {}
    if texts := [row["asr"]["errors"] for row in good if "errors" in row.get("asr", {})]:
        summary["asr"] = error_rates(texts)
    if named := [row["speaker"] for row in good if "ref" in row.get("speaker", {})]:
        known = [answer for answer in named if answer["ref"] in answer["scores"]]
        pairs = [(score, name == a["ref"]) for a in named for name, score in a["scores"].items()]
        scores, is_target = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
        summary["speaker"] = {
            "mode": "enrolled", "speakers": len(named[0]["scores"]), "unknown_utterances": len(named) - len(known),
            "accuracy": round(sum(a["ref"] == a["hyp"] for a in known) / len(known), 6), "utterances": len(known),
            "trials": len(pairs),
        }  # fmt: skip
        if is_target.any() and not is_target.all():
            eer, threshold = equal_error_rate(scores, is_target)
            measures = {"eer": round(eer, 6), "eer_threshold": threshold, "min_dcf": min_dcf(scores, is_target)}
            summary["speaker"] |= measures
    if classes := [row["gender"] for row in good if "ref" in row.get("gender", {})]:
        right = sum(answer["ref"] == answer["hyp"] for answer in classes)
        summary["gender"] = {"accuracy": right / len(classes), "utterances": len(classes)}
    audio_s = sum(row["duration_s"] for row in good)
    cost = {"parameters": 1234567, "rtf": 0.025 if good else None, "audio_s": audio_s}
    return summary | {"cost": cost, "utterances": len(good), "failed": len(rows) - len(good)}


def write_eval(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "utterances.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps(summary_of(rows)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "tone.wav"
    time_s = np.arange(13 * RATE) / RATE
    soundfile.write(path, 0.2 * np.sin(2 * np.pi * 440 * time_s) * (time_s % 1 < 0.7), RATE)
    return path


@pytest.fixture(scope="module")
def eval_dir(tmp_path_factory: pytest.TempPathFactory, audio: Path) -> Path:
    rows = [make_row(i, audio, SPEAKERS) for i in range(12)]
    rows[5]["speaker"]["ref"] = "nobody enrolled"
    for task in ("asr", "speaker", "gender"):
        rows[7][task].pop("ref")
    rows[7]["asr"].pop("errors")
    rows.append({"id": "broken", "error": f"no such file: {DANGEROUS}.wav"})
    folder = write_eval(tmp_path_factory.mktemp("eval"), rows)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(eval_dir: Path) -> str:
    return (eval_dir / "report.html").read_text(encoding="utf-8")


def loads_of(page: str) -> list[str]:
    """What a page would fetch: values of src, href and url() that are neither inside the page nor part of it."""
    found = re.findall(r"""(?:src|href|action|srcset)\s*=\s*["']?([^"'\s>]+)|url\(\s*["']?([^"')]+)""", page)
    return [address for pair in found for address in pair if address and not address.startswith(("data:", "#"))]


def test_the_page_stands_alone_and_is_small(page: str) -> None:
    assert loads_of(page) == []
    assert "@import" not in page and "<link" not in page
    assert "default-src 'none'" in page
    assert len(page.encode()) < 3_000_000


def test_the_figures_are_those_of_the_summary(page: str, eval_dir: Path) -> None:
    summary = json.loads((eval_dir / "summary.json").read_text())
    for rate in (summary["asr"]["wer"], summary["asr"]["cer"], summary["speaker"]["accuracy"],
                 summary["speaker"]["eer"], summary["gender"]["accuracy"]):  # fmt: skip
        assert f"{100 * rate:.2f} %" in page
    wrong = sum(summary["asr"][part] for part in ("substitutions", "deletions", "insertions"))
    assert f"{wrong} errors in {summary['asr']['words']} words" in page
    assert "9 of 10 utterances" in page  # 12, less the unlabelled one and the one of an unknown speaker
    assert "1,234,567" in page


def test_counts_of_the_tables_add_up_to_the_summary(eval_dir: Path) -> None:
    evidence = collect(eval_dir)
    summary = evidence.summary
    bands: list[Tally] = by_duration(evidence)
    assert sum(band.words for band in bands) == summary["asr"]["words"]
    assert sum(band.utterances for band in bands) == summary["utterances"]
    assert sum(band.right for band in bands) / sum(band.named for band in bands) == summary["speaker"]["accuracy"]
    found = confusion(evidence, "speaker")
    assert (found.total, found.right, found.left_out) == (10, 9, 1)
    assert sum(count for _, _, count, _ in found.cells) == found.total
    trials = evidence.trials["speaker"]
    assert len(trials.target) + len(trials.other) == summary["speaker"]["trials"]
    assert {tally.label for tally in by_speaker(evidence)} == {*SPEAKERS, "nobody enrolled"}


def test_utterances_of_no_class_are_told_apart_from_those_without_a_label(tmp_path: Path, audio: Path) -> None:
    rows = [make_row(i, audio, SPEAKERS) for i in range(12)]
    for row in rows:
        del row["asr"], row["speaker"]
    for i in (3, 5):
        rows[i]["gender"]["unknown"] = rows[i]["gender"].pop("ref")
    rows[7]["gender"].pop("ref")
    folder = write_eval(tmp_path / "eval", rows)
    summary = json.loads((folder / "summary.json").read_text())
    summary["gender"]["unknown_utterances"] = 2
    (folder / "summary.json").write_text(json.dumps(summary))
    page = write_report(folder).read_text(encoding="utf-8")
    assert "No label for gender: 1 of 12 utterances" in page
    assert "2 utterances are of a class that the model was not trained on." in page
    assert re.search(r"\| utterances of unknown classes \|\n.*\n.*\| 2 +\|", terminal_markdown(summary))
    assert "named rightly come first" not in page and "share of wrong words" not in page


def test_texts_and_names_are_escaped_wherever_they_come_from(page: str) -> None:
    assert "<script" not in page and "<b>Cy" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "&lt;b&gt;Cy&lt;/b&gt;" in page
    assert "größe" in page and "你好" in page


def test_every_part_is_there(page: str) -> None:
    for part in (
        "most wrong words", "Commonest errors", "Who was taken for whom", "DET curve", "EER threshold", "By speaker",
        "By length", "An example", 'id="spectrogram-', "1 of 13 utterances failed",
    ):  # fmt: skip
        assert part in page, part
    assert "<b>accent</b> was not scored" in page
    assert "No label for asr: 1 of 12 utterances" in page
    for mark in ("≠", "−", "+"):
        assert f"<i>{mark}</i>" in page


def test_markdown_for_the_terminal(eval_dir: Path) -> None:
    summary = json.loads((eval_dir / "summary.json").read_text())
    text = terminal_markdown(summary)
    assert f"{100 * summary['asr']['wer']:.2f} %" in text and "| 1 " in text
    assert text.count("###") == 4 and "accent" not in text
    report = (eval_dir / "report.md").read_text(encoding="utf-8")
    assert report.startswith(text) and "said:" in report and "broken" in report


def test_a_summary_without_tasks_still_has_a_page(tmp_path: Path, audio: Path) -> None:
    folder = write_eval(tmp_path / "empty", [{"id": "a", "error": "truncated"}])
    page = write_report(folder).read_text(encoding="utf-8")
    assert "No utterance was evaluated" in page and "truncated" in page
    assert "no task was scored" in terminal_markdown(json.loads((folder / "summary.json").read_text()))


def test_one_speaker_gives_no_error_rates_and_says_so(tmp_path: Path, audio: Path) -> None:
    folder = write_eval(tmp_path / "one", [make_row(i, audio, ["Ann"]) for i in range(4)])
    page = write_report(folder).read_text("utf-8")
    assert "these data give only one kind" in page and "equal error rate<b>" not in page


def test_no_speaker_task_and_no_readable_sound(tmp_path: Path) -> None:
    rows = [make_row(i, tmp_path / "gone.wav", SPEAKERS) for i in range(4)]
    for row in rows:
        for task in ("speaker", "gender", "accent"):
            row.pop(task)
    page = write_report(write_eval(tmp_path / "asr", rows)).read_text("utf-8")
    assert "the sound cannot be read" in page and "gone.wav" in page and "By speaker" not in page


def test_perfect_scores_have_no_det_curve_and_many_speakers_no_matrix(tmp_path: Path, audio: Path) -> None:
    speakers = [f"voice {i}" for i in range(45)]
    rows = [make_row(i, audio, speakers) for i in range(90) if i != 1]
    page = write_report(write_eval(tmp_path / "many", rows)).read_text("utf-8")
    assert "separates all trials without error" in page and "Matrix of speakers" not in page
    assert "5 more speakers" in page


def test_the_det_curve_is_in_sight_whatever_the_error_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    monkeypatch.setattr(figures, "svg", lambda figure, name: figure)
    for shift, least, most in ((7.3, 0.00001, 0.0005), (2.0, 0.1, 0.2), (-1.0, 0.6, 0.8), (-3.0, 0.9, 0.99)):
        target, other = rng.normal(shift, 1, 9000), rng.normal(0, 1, 60000)
        eer, _ = equal_error_rate(np.concatenate([target, other]), np.arange(69000) < 9000)
        assert least < eer < most
        [axes] = figures.det_curve(target, other).axes  # type: ignore[attr-defined]
        curve, _, dot = axes.get_lines()
        (low, high), x = axes.get_xlim(), curve.get_xdata()
        assert low < dot.get_xdata()[0] < high and ((low < x) & (x < high)).sum() > 1
        assert len(axes.get_xticks()) > 2


def test_a_slow_model_is_called_slow_and_changed_sound_is_not_shown(tmp_path: Path, audio: Path) -> None:
    rows = [make_row(i, audio, SPEAKERS) | {"altered": True} for i in range(4)]
    folder = write_eval(tmp_path / "slow", rows)
    summary = json.loads((folder / "summary.json").read_text())
    summary["cost"]["rtf"] = 2.0
    (folder / "summary.json").write_text(json.dumps(summary))
    page = write_report(folder).read_text("utf-8")
    assert "2.0 ×</b><small>slower than the sound plays" in page
    assert "The figure is left out: what was recognised is not the file as it is" in page


def test_a_broken_line_is_named(tmp_path: Path, audio: Path) -> None:
    folder = write_eval(tmp_path / "broken", [make_row(0, audio, SPEAKERS)])
    with open(folder / "utterances.jsonl", "a") as file:
        file.write('{"id": "cut o')
    with pytest.raises(ValueError, match="utterances.jsonl, line 2"):
        write_report(folder)


def test_alignment_keeps_every_word_of_both_sides() -> None:
    pairs = align("a b c d", "a x c d e")
    assert [pair.kind for pair in pairs] == ["equal", "substitute", "equal", "equal", "insert"]
    assert [pair.reference for pair in align("a b", "")] == ["a", "b"]
    assert [pair.kind for pair in align("", "uh huh")] == ["insert", "insert"]


def test_importing_the_report_imports_no_torch_and_nothing_heavy() -> None:
    heavy = ["torch", "matplotlib", "librosa", "sklearn", "jinja2"]
    code = f"import sys, speech_mtl.report; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_writing_a_report_imports_no_torch(eval_dir: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from speech_mtl.report import write_report
from speech_mtl.report.demo import write_demo_page
write_report(Path({str(eval_dir)!r}))
print('torch' in sys.modules)"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def transcription(with_truth: bool) -> dict[str, Any]:
    words = [{"text": w, "start_s": 9.5 + 0.4 * i, "end_s": 9.8 + 0.4 * i, "confidence": 0.3 + 0.2 * i}
             for i, w in enumerate(["hello", DANGEROUS, "世界"])]  # fmt: skip
    segments: list[dict[str, Any]] = [
        {"start_s": 9.5, "end_s": 10.7, "speaker": "Béla", "score": 0.71, "words": words,
         "text": f"hello {DANGEROUS} 世界"},
        {"start_s": 11.0, "end_s": 12.5, "speaker": "unknown", "score": 0.2, "text": "", "words": []},
        {"start_s": 12.5, "end_s": 12.9, "speaker": "unknown 1", "score": 0.2, "text": "", "words": []},
    ]  # fmt: skip
    result: dict[str, Any] = {"audio": "folder/tone.wav", "duration_s": 13.0, "segments": segments}
    if with_truth:
        segments[0]["truth"] = {"speaker": "Ann", "text": "hello world"}
        result |= {"wer": 0.125, "speaker_accuracy": 0.5, "model": "small"}
    return result


@pytest.mark.parametrize("with_truth", [True, False])
def test_demo_page_stands_alone_and_leaves_out_what_is_unknown(tmp_path: Path, audio: Path, with_truth: bool) -> None:
    page = write_demo_page(transcription(with_truth), audio, tmp_path / "demo.html").read_text("utf-8")
    assert loads_of(page) == [] and page.count("<script") == 1 and "alert(1)&lt;/script&gt;" in page
    assert 'src="data:audio/wav;base64,' in page and page.count("data:image/png;base64,") == 2
    assert "named speakers<b>1</b>" in page and 'class="voice c2 unknown">unknown 1' in page
    assert page.count('data-start="9.9"') == 2  # once under the picture, once in the transcript
    assert ("12.50 %" in page, "50.00 %" in page, "✗ in truth Ann" in page) == (with_truth,) * 3


def test_demo_page_of_unreadable_sound_is_refused(tmp_path: Path) -> None:
    with pytest.raises((OSError, RuntimeError), match="gone"):
        write_demo_page(transcription(False), tmp_path / "gone.wav", tmp_path / "demo.html")
