"""Rows and summaries against counts made by hand; enrolment; failures; memory of names."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE, make_corpus, tiny_model
from lhotse import CutSet, Recording

from speech_mtl.checkpoint import CheckpointError
from speech_mtl.config import Config, parse_config
from speech_mtl.data import DataError, describe_cut, read_cuts
from speech_mtl.evaluate import (
    BAND_WEIGHT,
    enroll_references,
    evaluate,
    evaluate_rows,
    fit_speakers,
    headline,
    read_rows,
    summarize,
    without_each_help,
)
from speech_mtl.report import terminal_markdown, write_report
from speech_mtl.tasks import label_of


def test_summary_equals_counts_made_by_hand() -> None:
    errors = {"words": 4, "substitutions": 1, "deletions": 0, "insertions": 1, "chars": 20, "char_errors": 5}
    rows = [
        {
            "id": str(i), "duration_s": 2.0, "compute_s": 0.5, "asr": {"hyp": "x", "ref": "y", "errors": errors},
            "speaker": {"hyp": hyp, "ref": ref, "mode": "closed", "scores": {"a": a, "b": b}},
        }
        for i, (ref, hyp, a, b) in enumerate([("a", "a", 0.9, 0.1), ("b", "a", 0.6, 0.5), ("z", "b", 0.2, 0.3)])
    ]  # fmt: skip
    rows += [{"id": "bad", "error": "unreadable"}]
    rows += [{"id": "3", "duration_s": 4.0, "compute_s": 1.0, "asr": {"hyp": "x"}, "speaker": {"hyp": "a"}}]
    summary = summarize(rows, {"asr": "asr", "speaker": "speaker", "gender": "classify"}, parameters=7)
    assert summary["asr"]["wer"] == 0.5 and summary["asr"]["cer"] == 0.25 and summary["asr"]["words"] == 12
    assert summary["speaker"]["accuracy"] == 0.5 and summary["speaker"]["unknown_utterances"] == 1
    assert summary["speaker"]["trials"] == 6 and summary["speaker"]["utterances"] == 2
    assert summary["cost"] == {"parameters": 7, "rtf": 0.25, "audio_s": 10.0}
    assert summary["failed"] == 1 and summary["utterances"] == 4 and "gender" not in summary
    assert headline(summary, {"asr": "asr", "speaker": "speaker"}) == {"asr": 0.5, "speaker": 0.5}


def test_what_a_help_is_worth_worked_by_hand() -> None:
    """Of 36 words 6 are wrong, without the language model 12, one in each utterance; the hot words do nothing."""
    rows: list[dict] = [{"id": "bad", "error": "unreadable"}, {"id": "x", "asr": {"hyp": "a"}, "true_speaker": None}]
    for i in range(12):
        errors = {"words": 3, "substitutions": i % 2, "deletions": 0, "insertions": 0, "chars": 5, "char_errors": i % 2}
        hyp = "a b x" if i % 2 else "a b c"
        answer = {"hyp": hyp, "ref": "a b c", "errors": errors, "without": {"lm": "a y c", "hot": hyp}}
        rows.append({"id": str(i), "true_speaker": f"s{i}", "asr": answer})
    found = without_each_help(rows, "asr")
    assert (found["lm"]["wer"], found["lm"]["difference"]) == (round(12 / 36, 6), round(-6 / 36, 6))
    assert found["lm"]["low"] < found["lm"]["difference"] < found["lm"]["high"] < 0.1
    assert (found["hot"]["wer"], found["hot"]["difference"]) == (round(6 / 36, 6), 0)
    assert found["hot"]["low"] < 0 < found["hot"]["high"]
    assert without_each_help(rows[:2], "asr") == {}
    for row in rows[2:]:
        row["true_speaker"] = None  # each utterance by itself, as each is another speaker's here
    unnamed = without_each_help(rows, "asr")["lm"]
    assert (unnamed["low"], unnamed["high"]) == (found["lm"]["low"], found["lm"]["high"])


def test_evaluation_writes_a_row_an_utterance(tiny_config: Config, corpus: dict[str, str], tmp_path: Path) -> None:
    summary = evaluate(tiny_model(tiny_config), [corpus["dev"]], tmp_path)
    rows = list(read_rows(tmp_path / "utterances.jsonl"))
    assert sorted(row["id"] for row in rows) == sorted(cut.id for cut in read_cuts([corpus["dev"]]))
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["asr"]["words"] == sum(len(row["asr"]["ref"].split()) for row in rows)
    right = sum(row["speaker"]["hyp"] == row["speaker"]["ref"] for row in rows)
    assert summary["speaker"]["accuracy"] == pytest.approx(right / len(rows), abs=1e-6)


def test_an_evaluation_that_is_stopped_leaves_the_last_one(
    tiny_config: Config, corpus: dict[str, str], tmp_path: Path
) -> None:
    evaluate(tiny_model(tiny_config), [corpus["dev"]], tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def stop(row: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny_model(tiny_config), [corpus["train"]], tmp_path, on_row=stop)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_what_is_not_the_file_as_it_is_is_marked(tiny_config: Config, corpus: dict[str, str], tmp_path: Path) -> None:
    plain = next(iter(read_cuts([corpus["dev"]])))
    assert "altered" not in describe_cut(plain) and describe_cut(plain.perturb_speed(1.1))["altered"]
    assert describe_cut(plain.mix(plain))["altered"]
    soundfile.write(tmp_path / "two.wav", np.zeros((RATE, 2)), RATE)
    assert describe_cut(Recording.from_file(tmp_path / "two.wav").to_cut().with_channels([1]))["altered"]


def test_a_task_without_labels_is_absent(tiny_config: Config, tmp_path: Path) -> None:
    summary = evaluate(tiny_model(tiny_config), [str(make_corpus(tmp_path, 2, seed=4, text=None))], tmp_path / "eval")
    assert "asr" not in summary and "speaker" in summary


def test_a_class_that_the_model_lacks_is_counted_apart(tiny_config: Config, tmp_path: Path) -> None:
    """There is no right answer to it, so that it is no error either; also where there is no other."""
    model = tiny_model(parse_config(tiny_config.model_dump() | {"tasks": {"gender": {"type": "classify"}}}, "x"))
    known, other = make_corpus(tmp_path, 2, seed=4), make_corpus(tmp_path, 1, seed=5, gender="other")
    alone, both = (evaluate(model, [str(m) for m in given], tmp_path / "x") for given in ([known], [known, other]))
    assert both["gender"] == alone["gender"] | {"unknown_utterances": 3} and alone["gender"]["utterances"] == 6
    write_report(tmp_path / "x")
    summary = evaluate(model, [str(other)], tmp_path / "x")
    assert summary["gender"] == {"unknown_utterances": 3} and not headline(summary, {"gender": "classify"})
    write_report(tmp_path / "x")
    assert "gender" in terminal_markdown(summary)


def test_rows_do_not_depend_on_the_batch(tiny_config: Config, corpus: dict[str, str]) -> None:
    model = tiny_model(tiny_config)
    together = {row["id"]: row for row in evaluate_rows(model, read_cuts([corpus["dev"]]))}
    for cut in list(read_cuts([corpus["dev"]]))[:4]:
        (alone,) = evaluate_rows(model, CutSet.from_cuts([cut]))
        for row in (alone, together[cut.id]):
            row.pop("compute_s", None)
        assert alone["asr"]["hyp"] == together[cut.id]["asr"]["hyp"]
        assert alone["speaker"]["score"] == pytest.approx(together[cut.id]["speaker"]["score"], abs=2e-4)


def test_enrolment_is_the_normalised_mean(tiny_config: Config, corpus: dict[str, str]) -> None:
    model = tiny_model(tiny_config)
    references = enroll_references(model, read_cuts([corpus["dev"]]))
    assert references.names == ["ann", "bob", "cid"]
    torch.testing.assert_close(references.embeddings.norm(dim=1), torch.ones(3))
    rows = list(evaluate_rows(model, read_cuts([corpus["dev"]]), references))
    assert all(row["speaker"]["mode"] == "enrolled" and len(row["speaker"]["scores"]) == 3 for row in rows)


def test_enrolment_without_names_is_an_error(tiny_config: Config, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no speaker label"):
        enroll_references(tiny_model(tiny_config), read_cuts([make_corpus(tmp_path, 1, seed=8, speaker=None)]))


def test_a_model_without_a_speaker_task_says_so(tiny_config: Config, corpus: dict[str, str]) -> None:
    values = tiny_config.model_dump()
    del values["tasks"]["speaker"]
    with pytest.raises(CheckpointError, match="no speaker task; its tasks: asr"):
        enroll_references(tiny_model(parse_config(values, "x")), read_cuts([corpus["dev"]]))


def test_unreadable_recordings_become_rows(tiny_config: Config, tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path, 2, seed=7)
    gone = next(tmp_path.glob("*.wav"))
    gone.unlink()
    summary = evaluate(tiny_model(tiny_config), [str(manifest)], tmp_path / "eval")
    assert summary["failed"] == 1 and summary["utterances"] == 5
    failed = [row for row in read_rows(tmp_path / "eval" / "utterances.jsonl") if "error" in row]
    assert [row["id"] for row in failed] == [gone.stem] and gone.name in failed[0]["error"]


def test_the_speaker_analysis_hears_every_corpus_at_every_speed(
    corpus: dict[str, str], tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each of three speakers six utterances, from the first corpus as far as it has them, at both speeds.

    Each is heard as it is and through another channel, which features normalised by the utterance do not tell; and in
    a narrower band, which counts less, where training hears such.
    """
    model = tiny_model(tiny_config)
    seen: list[tuple[torch.Tensor, list[str], list[int], list[float] | None, list[float]]] = []
    monkeypatch.setattr(model.task("speaker"), "fit", lambda *given: seen.append(given))
    fit_speakers(model, [read_cuts([corpus["train"]]), read_cuts([corpus["dev"]])], utterances=18)
    (features_NP, speakers, numbers, shares, weights), *_ = seen
    assert shares is None and set(weights) == {1.0}
    at_both = {f"{name}{speed}" for name in ("ann", "bob", "cid") for speed in ("", "@0.9")}
    assert Counter(speakers) == dict.fromkeys(at_both, 12) and len(features_NP) == len(numbers) == 72
    assert set(numbers) == {0}  # the first corpus has enough
    fit_speakers(model, [read_cuts([corpus["dev"]]), read_cuts([corpus["train"]])], [3.0, 1.0], utterances=18)
    assert seen[1][3] == [3.0, 1.0]
    assert Counter(seen[1][2]) == {0: 3 * 4 * 2 * 2, 1: 3 * 2 * 2 * 2}
    model.config.features.normalize = "utterance"
    fit_speakers(model, [read_cuts([corpus["train"]])], utterances=18)
    assert Counter(seen[2][1]) == dict.fromkeys(at_both, 6)
    model.config.augment.band_prob = 0.1
    fit_speakers(model, [read_cuts([corpus["train"]])], utterances=18)
    banded_NP, _, _, _, weights = seen[3]
    assert Counter(weights) == {1.0: 36, BAND_WEIGHT: 36} and len(banded_NP) == 72
    is_banded = torch.tensor(weights) == BAND_WEIGHT
    assert torch.allclose(banded_NP[~is_banded], seen[2][0], atol=1e-5)
    assert (banded_NP[is_banded] - banded_NP[~is_banded]).abs().amax(dim=1).min() > 1e-3
    slow = [i for i, name in enumerate(speakers) if name == "ann@0.9"]
    usual = [i for i, name in enumerate(speakers) if name == "ann"]
    assert not torch.allclose(features_NP[slow].mean(0), features_NP[usual].mean(0), atol=1e-3)


@pytest.mark.parametrize("learning", ["nothing", "another block", "trunk"])
def test_a_frozen_speaker_head_follows_a_trunk_that_learns_and_loses_no_voice(
    corpus: dict[str, str], tiny_config: Config, tmp_path: Path, learning: str
) -> None:
    """Without ann her voice stays, and the analysis in which it lies; on a trunk that stays, everything does."""
    tiny_config.tasks["speaker"].lda_dim = 2
    tiny_config.tasks["speaker"].blocks = 1
    model = tiny_model(tiny_config)
    everyone = [read_cuts([corpus["train"]])]
    fit_speakers(model, everyone)
    learns = {"nothing": "none", "another block": "encoder.blocks.1.", "trunk": "encoder."}[learning]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(learns))
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    before = {name: value.clone() for name, value in model.task("speaker").state_dict().items()}
    CutSet.from_cuts(cut for cut in everyone[0] if label_of(cut, "speaker") != "ann").to_file(
        tmp_path / "some.jsonl.gz"
    )

    def changed_by_fit(manifest: Path | str) -> set[str]:
        fit_speakers(model, [read_cuts([manifest])])
        return {name for name, value in model.task("speaker").state_dict().items() if not value.equal(before[name])}

    assert model.moves("speaker") == (learning == "trunk")
    assert changed_by_fit(tmp_path / "some.jsonl.gz") == ({"voices_CE"} if learning == "trunk" else set())
    voices_CE = model.task("speaker").state_dict()["voices_CE"]
    assert voices_CE[0].equal(before["voices_CE"][0]) and voices_CE[0].any()
    analysis = {"voices_CE", "projection_PE", "offset_P"}
    assert changed_by_fit(corpus["train"]) == (analysis if learning == "trunk" else set())
