"""`compare` from the plan to the report, on the tone corpus; representations and cost against known answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import tiny_model, tiny_values
from lhotse import CutSet

from speech_mtl.compare import compare, comparison_config, encoder_cost
from speech_mtl.compare.apart import check_apart
from speech_mtl.compare.arms import encoder_weights, plan_arms
from speech_mtl.compare.cost import flops_per_s, own_peak_mb, peak_mb
from speech_mtl.compare.evidence import Evidence, _cost, _is_scored, _proposal
from speech_mtl.compare.representations import block_vectors, linear_cka, probe_accuracy
from speech_mtl.compare.runs import Run, _note_failure, make_runs
from speech_mtl.config import Config, ConfigError, parse_config
from speech_mtl.data import DataError
from speech_mtl.evaluate import summarize
from speech_mtl.train import Trainer


def compare_values(corpus: dict[str, str], **changes: object) -> dict:
    values = tiny_values(corpus)
    values["train"] |= {"epochs": 1, "interference_every": 3}
    values["compare"] = {"test": [corpus["test"]], "seeds": [1], "branches": [1]} | changes
    return values


def config_of(corpus: dict[str, str], **changes: object) -> Config:
    return parse_config(compare_values(corpus, **changes), "test")


def names(config: Config) -> list[str]:
    return [arm.name for arm in plan_arms(config).arms]


def test_arms_out_of_the_box(corpus: dict[str, str]) -> None:
    config = config_of(
        corpus, branches=[0, 2], weights={"speaker": [0.1, 10]}, methods=["pcgrad"],
        arms={"deeper": ["tasks.speaker.blocks=1"]},
    )  # fmt: skip
    assert names(config) == [
        "asr alone", "speaker alone", "joint", "asr to speaker", "speaker to asr", "frozen asr + speaker",
        "permuted speaker", "small asr", "small speaker", "branch 0", "branch 2", "speaker x0.1", "speaker x10",
        "pcgrad", "deeper",
    ]  # fmt: skip
    plan = plan_arms(config)
    by_name = {arm.name: plan.config_of(arm, 7, "folder" if arm.start_from else "") for arm in plan.arms}
    assert all(config.train.seed == 7 for config in by_name.values())
    assert list(by_name["asr alone"].tasks) == ["asr"] and by_name["asr to speaker"].train.init == "folder"
    assert by_name["frozen asr + speaker"].train.freeze == ["encoder", "tasks.asr."]
    assert by_name["permuted speaker"].data.permute == ["speaker"]
    assert by_name["branch 0"].trunk_depth() == 0 and by_name["speaker x10"].tasks["speaker"].weight == pytest.approx(3)
    assert by_name["pcgrad"].train.weighting == "pcgrad" and by_name["deeper"].tasks["speaker"].blocks == 1
    assert by_name["small asr"].encoder.d_model == by_name["small speaker"].encoder.d_model < 32


@pytest.mark.parametrize(
    ("asr", "speaker"), [({}, {}), ({"branch": 1}, {"branch": 1}), ({"blocks": 1}, {}), ({"branch": 0}, {"branch": 0})]
)
def test_small_models_together_are_as_large_as_the_joint_one(corpus: dict[str, str], asr: dict, speaker: dict) -> None:
    values = compare_values(corpus)
    values["tasks"]["asr"] |= asr
    values["tasks"]["speaker"] |= speaker
    plan = plan_arms(parse_config(values, "test"))
    small = [arm for arm in plan.arms if arm.group == "small"]
    width = plan.config_of(small[0], 1).encoder.d_model

    def apart(width: int) -> int:
        arms = [replace(arm, overrides=(f"encoder.d_model={width}",)) for arm in small]
        return sum(encoder_weights(plan.config_of(arm, 1)) for arm in arms)

    assert apart(width) <= encoder_weights(plan.config) < apart(width + 4)
    assert apart(32) >= encoder_weights(plan.config)


def test_a_probe_and_an_adversary_alone_train_their_encoder(corpus: dict[str, str]) -> None:
    for weight in (0.0, -0.1):
        values = compare_values(corpus, methods=["pcgrad"])
        values["tasks"]["speaker"]["weight"] = weight
        plan = plan_arms(parse_config(values, "test"))
        own = [arm for arm in plan.arms if "speaker" in arm.tasks]
        weights = {arm.name: plan.config_of(arm, 1).tasks["speaker"].weight for arm in own}
        alone = {"speaker alone", "asr to speaker", "small speaker"}
        assert {name for name, own in weights.items() if own == 1} == alone
        assert weights["joint"] == weights["pcgrad"] == weight


def test_weights_of_a_probe_are_not_swept(corpus: dict[str, str]) -> None:
    """Every factor would give the joint arm once more."""
    values = compare_values(corpus, weights={"speaker": [0.1, 10]})
    values["tasks"]["speaker"]["weight"] = 0.0
    with pytest.raises(ConfigError, match="compare.weights: the weight of 'speaker' is 0 in the recipe, every factor"):
        plan_arms(parse_config(values, "test"))


def test_the_label_that_is_shuffled_is_the_tasks(corpus: dict[str, str]) -> None:
    values = compare_values(corpus)
    values["tasks"] = {name: values["tasks"][name] for name in ("speaker", "asr")}
    plan = plan_arms(parse_config(values, "test"))
    (control,) = (arm for arm in plan.arms if arm.group == "control")
    assert control.name == "permuted asr" and plan.config_of(control, 1).data.permute == ["text"]


def test_a_frozen_encoder_ends_where_its_task_does(corpus: dict[str, str]) -> None:
    """Blocks that the first task lacks would be frozen as they were drawn."""
    values = compare_values(corpus)
    values["tasks"]["asr"]["blocks"] = 1
    plan = plan_arms(parse_config(values, "test"))
    (frozen,) = (arm for arm in plan.arms if arm.name.startswith("frozen"))
    config = plan.config_of(frozen, 1)
    assert config.trunk_depth() == 1 and (config.branch_point("speaker"), config.depth("speaker")) == (1, 2)


def test_a_third_task_brings_its_arms(corpus: dict[str, str]) -> None:
    values = compare_values(corpus)
    values["tasks"]["gender"] = {"type": "classify"}
    found = names(parse_config(values, "test"))
    assert {"gender alone", "gender to asr", "asr to gender", "permuted gender", "small gender"} <= set(found)
    assert "frozen asr + speaker + gender" in found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": []}, "names no manifest"),
        ({"seeds": [1, 1]}, r"seeds is \[1, 1\]"),
        ({"branches": [3]}, "3 is beyond the trunk's last block, accepted: 0 to 2"),
        ({"weights": {"gender": [1]}}, "no task 'gender'; accepted: asr, speaker"),
        ({"leave_out": ["jiont"]}, "no arm or group 'jiont'; accepted: single, joint"),
        ({"arms": {"mine": ["train.epoch=3"]}}, "arm 'mine': unknown key 'train.epoch'.*train.epochs"),
        ({"arms": {"mine": ['data.train=["other.jsonl.gz"]']}}, r"arm 'mine': data.train is .*the same utterances"),
        ({"arms": {"mine": ["data.max_utterance_s=3"]}}, r"data.max_utterance_s is 3.0, the other arms have 6.0"),
        ({"arms": {"joint": []}}, "two arms are called 'joint'"),
        ({"overrides": ["epochs"]}, "expected section.key=value"),
        ({"methods": ["pcgard"]}, "train.weighting: unknown weighting 'pcgard'; did you mean 'pcgrad'?"),
    ],
)
def test_refusals_before_anything_is_trained(corpus: dict[str, str], changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_arms(comparison_config(config_of(corpus, **changes), quick=False))


def test_arms_begin_where_the_recipe_does(corpus: dict[str, str]) -> None:
    values = compare_values(corpus)
    values["train"] |= {"init": "some/model", "freeze": ["encoder", "tasks.speaker."]}
    values["trunk"] = {"lr_decay": 0.9}
    values["tasks"]["speaker"]["teacher"] = 2.0
    values["compare"]["arms"] = {"wide": ["encoder.d_model=48"]}
    plan = plan_arms(parse_config(values, "test"))
    configs = {arm.name: plan.config_of(arm, 1, "other" if arm.start_from else "") for arm in plan.arms}
    starts = {name: config.train.init for name, config in configs.items()}
    assert starts["joint"] == starts["asr alone"] == starts["branch 1"] == starts["permuted speaker"] == "some/model"
    assert starts["asr to speaker"] == "other"
    for name in ("small speaker", "wide"):  # a frozen encoder of random weights would learn nothing
        assert (configs[name].train.init, configs[name].train.freeze, configs[name].trunk.lr_decay) == ("", [], 1.0)
    assert configs["asr alone"].train.freeze == ["encoder"] and configs["asr alone"].trunk.lr_decay == 0.9
    assert configs["speaker alone"].train.freeze == ["encoder", "tasks.speaker."]
    assert [name for name, c in configs.items() if "speaker" in c.tasks and not c.tasks["speaker"].teacher] == [
        "permuted speaker"  # vectors stay with their voices, whatever the labels say
    ]


def test_strangers_to_every_arm_count_for_none() -> None:
    known = {"ref": "ann", "hyp": "bob", "mode": "closed", "scores": {"ann": 0.1, "bob": 0.2}}
    assert _is_scored(known) and not _is_scored(known | {"ref": "eve"}) and not _is_scored({"hyp": "ann"})
    assert _is_scored(known | {"ref": "eve", "mode": "enrolled"}) and _is_scored({"ref": "f", "hyp": "m"})


def test_a_task_with_one_class_is_refused_before_anything_is_trained(corpus: dict[str, str], tmp_path: Path) -> None:
    values = compare_values(corpus)
    values["tasks"]["accent"] = {"type": "classify"}
    with pytest.raises(DataError, match="task 'accent': at least two different labels are needed in training, found"):
        compare(parse_config(values, "test"), "test", tmp_path, command="test")
    assert not (tmp_path / "runs").exists()


def test_tests_on_what_was_trained_on_are_refused(corpus: dict[str, str], tmp_path: Path) -> None:
    """By another name and half an utterance as well; a neighbour in the same recording is another utterance."""
    found = r"60 utterances, such as 'ann-1-0', are also in data.train; accepted are utterances that no arm is trained"
    with pytest.raises(DataError, match=rf"compare.test: 48 of {found}"):
        compare(config_of(corpus, test=[corpus["dev"], corpus["train"]]), "test", tmp_path, command="test")
    assert not (tmp_path / "runs").exists()
    first = next(iter(CutSet.from_file(corpus["train"])))
    half = first.duration / 2
    early, late = (str(tmp_path / name) for name in ("early.jsonl.gz", "late.jsonl.gz"))
    CutSet.from_cuts([first.truncate(duration=half).with_id("early")]).to_file(early)
    CutSet.from_cuts([first.truncate(offset=half).with_id("late")]).to_file(late)
    with pytest.raises(DataError, match="compare.out_of_domain: 1 of 1 utterances, such as 'early', are also in"):
        check_apart(config_of(corpus, out_of_domain=[early]))
    values = compare_values(corpus, out_of_domain=[early])
    values["data"]["train"] = [late]
    assert check_apart(parse_config(values, "test")) is None
    values["data"]["dev"] = [late]
    assert "data.dev: 1 of 1 utterances, such as 'late'" in (check_apart(parse_config(values, "test")) or "")


def test_one_task_is_no_comparison(corpus: dict[str, str]) -> None:
    values = compare_values(corpus)
    del values["tasks"]["speaker"]
    with pytest.raises(ConfigError, match="at least two tasks"):
        plan_arms(parse_config(values, "test"))


def test_other_settings_do_not_continue_a_comparison(corpus: dict[str, str], tmp_path: Path) -> None:
    make_runs(plan_arms(config_of(corpus)), tmp_path)
    make_runs(plan_arms(config_of(corpus)), tmp_path)
    values = compare_values(corpus)
    values["train"]["lr"] = 1e-4
    with pytest.raises(ConfigError, match="begun with other settings"):
        make_runs(plan_arms(parse_config(values, "test")), tmp_path)
    with pytest.raises(ConfigError, match="begun with other settings"):  # a margin is set beforehand
        make_runs(plan_arms(config_of(corpus, margin=0.5)), tmp_path)


def test_further_seeds_and_arms_continue_a_comparison(corpus: dict[str, str], tmp_path: Path) -> None:
    """More seeds may decide, the report says; a run that was stopped goes on, too."""
    (first,) = [run for run in make_runs(plan_arms(config_of(corpus)), tmp_path) if run.arm.name == "asr alone"]
    config = parse_config(json.loads((first.folder / "run.json").read_text())["config"], "run.json")
    Trainer(config, first.folder).save_state()
    more = config_of(corpus, seeds=[1, 2], branches=[0, 1], arms={"deeper": ["tasks.speaker.blocks=1"]})
    runs = make_runs(plan_arms(more), tmp_path)
    assert len(runs) == 2 * len(plan_arms(more).arms)
    config = parse_config(json.loads((first.folder / "run.json").read_text())["config"], "run.json")
    Trainer(config, first.folder).load_state(first.folder / "training" / "state.pt")


def test_the_time_holds_that_of_calls_that_were_interrupted(
    corpus: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped_after_an_hour(*args: object) -> None:
        monkeypatch.setattr("speech_mtl.compare.time.monotonic", lambda: 3600.0)
        raise KeyboardInterrupt

    for _ in range(2):
        monkeypatch.setattr("speech_mtl.compare.time.monotonic", lambda: 0.0)
        monkeypatch.setattr("speech_mtl.compare.run_all", stopped_after_an_hour)
        with pytest.raises(KeyboardInterrupt):
            compare(config_of(corpus), "tones", tmp_path, command="test")
    monkeypatch.setattr("speech_mtl.compare.run_all", lambda *args: None)
    for _ in range(2):
        compare(config_of(corpus), "tones", tmp_path, command="test")
        assert json.loads((tmp_path / "compare.json").read_text())["minutes"] == 120


def test_from_recipe_to_report(corpus: dict[str, str], tmp_path: Path) -> None:
    """A few arms; one of them cannot be trained, and is named; called again, only that one is tried."""
    config = config_of(
        corpus, leave_out=["small", "control", "speaker to asr", "frozen asr + speaker"],
        arms={"broken": [f'train.init="{tmp_path / "nowhere"}"']},
    )  # fmt: skip
    page = compare(config, "tones", tmp_path / "out", command="speech-mtl compare tones", jobs=2)
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    arms = {arm["name"]: arm for arm in found["arms"]}
    assert list(arms) == ["asr alone", "speaker alone", "joint", "asr to speaker", "branch 1", "broken"]
    assert "nowhere" in arms["broken"]["failed"]["1"] and not found["complete"]
    assert {name: arm["branch"] for name, arm in arms.items() if len(arm["tasks"]) > 1} == {
        "joint": 2, "branch 1": 1, "broken": 2
    }  # fmt: skip
    assert not any(arm["failed"] for name, arm in arms.items() if name != "broken")
    assert arms["joint"]["examples"] == {"asr": 48, "speaker": 48} and arms["asr alone"]["examples"] == {"asr": 48}
    verdicts = arms["joint"]["verdicts"]["in domain"]
    assert verdicts["asr"]["against"] == "asr alone" and verdicts["speaker"]["against"] == "speaker alone"
    assert verdicts["asr"]["low"] <= verdicts["asr"]["difference"] <= verdicts["asr"]["high"]
    alone, joint = (arms[n]["scores"]["in domain"]["asr"]["mean"] for n in ("asr alone", "joint"))
    assert verdicts["asr"]["difference"] == pytest.approx(joint - alone, abs=1e-6)
    assert found["tasks"]["speaker"]["metrics"] == dict.fromkeys(("in domain", "dev"), "accuracy error")
    assert found["interference"][0]["blocks"] == ["subsampling", "1", "2"]
    assert {c["a"] for c in found["cka"]} == {"asr alone", "speaker alone"} and found["probe"]
    assert 0.4 < found["cost"]["parameter_ratio"] < 0.7 and arms["branch 1"]["parameters"] > arms["joint"]["parameters"]
    html = page.read_text(encoding="utf-8")
    assert "branch 1" in html and "nowhere" in html
    times = {path: path.stat().st_mtime for path in (tmp_path / "out" / "runs").rglob("model.safetensors")}
    log = tmp_path / "out" / "runs" / "asr-alone" / "seed1" / "training" / "metrics.jsonl"
    log.write_text(json.dumps(json.loads(log.read_text().splitlines()[-1]) | {"elapsed_s": 600}) + "\n")
    compare(config, "tones", tmp_path / "out", command="speech-mtl compare tones", jobs=2)
    assert times == {p: p.stat().st_mtime for p in (tmp_path / "out" / "runs").rglob("model.safetensors")}
    arms = {arm["name"]: arm for arm in json.loads((tmp_path / "out" / "compare.json").read_text())["arms"]}
    for key in ("train_flops", "train_minutes"):  # a transfer's training is that of both runs
        assert arms["asr to speaker"][key] >= arms["asr alone"][key]


@pytest.mark.parametrize(
    ("against_1", "confirmed"),
    [
        (("no worse", "helps"), True),
        (("undecided", "helps"), None),
        (("harms", "no worse"), False),
        (("harms", "helps"), None),  # neither point is the better one
    ],
)
def test_training_confirms_a_proposed_branch_point_or_not(against_1: tuple[str, str], confirmed: bool | None) -> None:
    words = {("branch 1", "asr"): against_1[0], ("branch 1", "speaker"): against_1[1]}
    evidence: Any = SimpleNamespace(kinds={"asr": "asr", "speaker": "speaker"})
    evidence.word = lambda arm, other, task, part: words.get((other, task), "no worse")
    arms = [{"name": f"branch {b}", "branch": b, "group": "branch", "failed": {}} for b in (1, 2)]
    pairs = [{"tasks": ["asr", "speaker"], "blocks": ["1", "2"], "rho_mean": [0.5, 0.5], "rho_high": [0.9, 0.9]}]
    found = _proposal(evidence, arms, pairs, "in domain")
    assert found and found["branch"] == 2 and found["confirmed"] is confirmed
    alone = _proposal(evidence, arms[:1], pairs, "in domain")
    assert alone and alone["confirmed"] is None


def recognised(i: int, speaker: str, wrong: bool, confidence: float = 0.9) -> dict[str, Any]:
    answer = {"hyp": "x", "ref": "low", "words": [{"text": "x", "confidence": confidence}]}
    errors = {"substitutions": int(wrong), "deletions": 0, "insertions": 0, "words": 1, "chars": 1, "char_errors": 0}
    return {"id": f"u{i:03}", "true_speaker": speaker, "asr": answer | {"errors": errors}}


def finish(run: Run, rows: list[dict[str, Any]]) -> None:
    """Leave a run as one that is done."""
    scores = run.folder / "scores" / "in domain"
    scores.mkdir(parents=True)
    rows = [row | {"duration_s": 1.0, "compute_s": 0.0} for row in rows]
    kinds = {"asr": "asr", "speaker": "speaker"}
    (scores / "utterances.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (scores / "summary.json").write_text(json.dumps(summarize(rows, kinds, 1)))
    (run.folder / "done.json").write_text("{}")


def test_utterances_that_would_decide_are_of_more_speakers(corpus: dict[str, str], tmp_path: Path) -> None:
    """Where whole speakers are drawn, more utterances of the same ones would not do; with six of them they would."""
    for speakers, told in ((12, True), (6, False)):
        plan = plan_arms(config_of(corpus))
        runs = [run for run in make_runs(plan, tmp_path / str(speakers)) if run.arm.name in ("asr alone", "joint")]
        for run in runs:
            finish(run, [recognised(i, f"s{i % speakers}", i < 2, 0.9 + 0.01 * len(run.name)) for i in range(24)])
        found = Evidence(plan, runs).verdict(runs[1].arm, "asr", "in domain")
        assert found and found["verdict"] == "undecided" and found["needed_utterances"] > 24
        assert found["needed_speakers"] == (-(-found["needed_utterances"] // 2) if told else None)


@pytest.mark.parametrize(("confidence", "word"), [(0.9, "no worse"), (0.8, "undecided")])
def test_a_recogniser_that_is_kept_is_unchanged(
    corpus: dict[str, str], tmp_path: Path, confidence: float, word: str
) -> None:
    """Seeds of 5, 10 and 15 % errors, the same in both arms. Only with the same confidence it is the same model."""
    plan = plan_arms(config_of(corpus, seeds=[1, 2, 3]))
    runs = make_runs(plan, tmp_path)
    for run in runs:
        if run.arm.name in ("asr alone", "frozen asr + speaker"):
            own = confidence if run.arm.group == "transfer" else 0.9
            finish(run, [recognised(i, f"s{i % 20}", i % 20 < run.seed, own) for i in range(200)])
    (arm,) = (arm for arm in plan.arms if arm.name.startswith("frozen"))
    found = Evidence(plan, runs).verdict(arm, "asr", "in domain")
    assert found and found["difference"] == 0 and found["verdict"] == word
    assert (found["low"] == found["high"] == 0 and "unchanged" in found["test"]) is (word == "no worse")


def test_strangers_alone_have_no_error_and_no_verdict(corpus: dict[str, str], tmp_path: Path) -> None:
    plan = plan_arms(config_of(corpus, test_enroll=[corpus["dev"]]))
    runs = [run for run in make_runs(plan, tmp_path) if run.arm.name in ("joint", "branch 1")]
    for run in runs:
        answer = {"hyp": "eve", "ref": "ann", "mode": "enrolled", "scores": {"eve": 0.1 * len(run.name), "flo": 0.2}}
        finish(run, [{"id": "u1", "true_speaker": "ann", "speaker": answer}])
    evidence = Evidence(plan, runs)
    assert evidence.errors("joint", "in domain") == {}
    assert evidence.word("joint", "branch 1", "speaker", "in domain") is None


def test_a_run_that_is_killed_is_said_to_be(corpus: dict[str, str], tmp_path: Path) -> None:
    run = make_runs(plan_arms(config_of(corpus)), tmp_path)[0]
    (run.folder / "run.log").write_text("epoch 1  step 14\n")
    _note_failure(run, code=-9)
    assert run.failure() == "ended by signal 9 (Killed); the last line of its log: epoch 1  step 14"
    _note_failure(run, 1)
    assert run.failure() == "epoch 1  step 14"


def test_cost_is_measured_where_one_seed_of_the_joint_arm_failed(
    corpus: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = make_runs(plan_arms(config_of(corpus, seeds=[1, 2])), tmp_path)
    monkeypatch.setattr("speech_mtl.compare.evidence.measure_cost", lambda joint, singles: [joint, *singles])
    own = [run for run in runs if run.arm.name in ("asr alone", "speaker alone", "joint")]
    for run in own:
        (run.folder / ("failed.txt" if run.arm.name == "joint" else "done.json")).write_text("{}")
    assert _cost(Evidence(plan_arms(config_of(corpus)), own)) is None
    (own[-1].folder / "done.json").write_text("{}")
    assert _cost(Evidence(plan_arms(config_of(corpus)), own)) == [own[-1].folder, "asr alone", "speaker alone"]


def test_peak_memory_is_the_measured_process_own() -> None:
    ballast = np.ones(10**8)  # 800 MB here, which a child's getrusage would count as its own
    assert 100 < peak_mb([]) < 800
    assert own_peak_mb() > ballast.nbytes / 2**20


def test_costs_of_branch_points(corpus: dict[str, str]) -> None:
    """Two blocks: sharing none costs two encoders, sharing all one; a model's own count agrees."""
    costs = []
    for branch in (0, 1, 2):
        values = tiny_values(corpus)
        for task in values["tasks"].values():
            task["branch"] = branch
        costs.append((parse_config(values, "test"), *encoder_cost(parse_config(values, "test"))))
    (_, whole, flops), (_, half, _), (shared, one, flops_one) = costs
    assert whole == 2 * one and flops == 2 * flops_one and one < half < whole
    trunk, heads = flops_per_s(tiny_model(shared))
    filterbank = 2 * 257 * 80 * 100  # a second is 100 frames, each 257 powers to 80 bins
    assert trunk == pytest.approx(flops_one + filterbank, rel=0.01) and set(heads) == {"asr", "speaker"}


def test_cka_is_blind_to_rotation_and_scale() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 200, 8))
    rotation, _ = np.linalg.qr(rng.standard_normal((8, 8)))
    assert linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1)
    assert linear_cka(x, y) < 0.2
    # by hand: centred x = (-1, 1), y = (-1, 1) in one dimension, and z = (1, -1): the same up to sign
    assert linear_cka(np.array([[0.0], [2.0]]), np.array([[5.0], [3.0]])) == pytest.approx(1)


def test_block_k_is_block_k_whatever_a_head_reads(corpus: dict[str, str]) -> None:
    """A speaker head that reads the second block alone, of its own or shared, hides none of the two."""
    found = []
    for settings in ({}, {"blocks": [2]}, {"blocks": [2], "branch": 1}):
        values = tiny_values(corpus)
        values["tasks"] = {"speaker": values["tasks"]["speaker"] | settings}
        config = parse_config(values, "test")
        model = tiny_model(config)
        model.seed_weights(1)
        found.append(block_vectors(model, [corpus["dev"]], config)[0])
    for vectors in found:
        assert len(vectors) == 2 and all(np.allclose(x, y) for x, y in zip(vectors, found[0], strict=True))


def test_recordings_that_cannot_be_read_are_left_out_of_the_vectors(corpus: dict[str, str], tmp_path: Path) -> None:
    """Also where a whole batch is of them."""
    values = tiny_values(corpus)
    values["data"]["max_duration_s"] = 0.2  # a batch an utterance
    config = parse_config(values, "test")
    cuts = list(CutSet.from_file(corpus["dev"]))
    cuts[0].recording.sources[0].source = "nowhere.wav"
    manifest = str(tmp_path / "some.jsonl.gz")
    CutSet.from_cuts(cuts[:4]).to_file(manifest)
    vectors, labels = block_vectors(tiny_model(config), [manifest], config)
    assert [len(block) for block in vectors] == [3, 3] and len(labels["speaker"]) == 3
    CutSet.from_cuts(cuts[:1]).to_file(manifest)
    with pytest.raises(DataError, match="none of 1 recordings could be read"):
        block_vectors(tiny_model(config), [manifest], config)


def test_probe_reads_what_is_there() -> None:
    rng = np.random.default_rng(0)
    labels: list[str | None] = ["a", "b"] * 30
    x = rng.standard_normal((60, 5))
    assert 0.2 < (probe_accuracy(x, labels) or 0) < 0.8
    x[::2, 0] += 8
    assert probe_accuracy(x, labels) == 1
    assert probe_accuracy(x, ["a"] * 60) is None


@pytest.mark.parametrize("opposed", [False, True])
def test_the_instrument_on_planted_cases(corpus: dict[str, str], tmp_path: Path, opposed: bool) -> None:
    """Two copies of one task: no worse, gradients agree. One of them turned against the trunk: harms, they conflict.

    Both labels are the gender, read from the trunk alone; with weight -3 the second works to remove it.
    """
    values = compare_values(
        corpus, branches=[], leave_out=["transfer", "control", "small"], margin_points=7.0, weights={},
        arms={"planted": [f"tasks.two.weight={-3 if opposed else 1}"]},
    )  # fmt: skip
    values["tasks"] = {
        name: {"type": "classify", "label": "gender", "spectrum": False, "dropout": 0.0} for name in ("one", "two")
    }
    values["augment"] = {"time_masks": 0, "freq_masks": 0}
    values["train"] |= {"epochs": 12, "eval_every": 12, "lr": 3e-3, "ema_decay": 0.8}
    compare(parse_config(values, "test"), "tones", tmp_path / "out", command="test", jobs=2)
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    planted = next(arm for arm in found["arms"] if arm["name"] == "planted")
    verdicts = {task: v["verdict"] for task, v in planted["verdicts"]["in domain"].items()}
    (pair,) = [p for p in found["interference"] if p["arm"] == "planted"]
    measured = [rho for rho in pair["rho_mean"] if rho is not None]  # what is learnt to the end has no gradient left
    assert measured
    if opposed:
        assert verdicts == {"one": "harms", "two": "harms"}
        assert all(rho < -0.5 for rho in measured) and min(pair["conflict_frequency"]) == 1
    else:
        assert verdicts == {"one": "no worse", "two": "no worse"}
        assert all(rho > 0.9 for rho in measured) and max(pair["conflict_frequency"]) == 0
