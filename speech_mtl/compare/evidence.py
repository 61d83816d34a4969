"""What the finished runs show: rows and logs of every arm -> the facts that compare.json holds.

Scores are paired utterance by utterance with those of the task's single model, over all seeds (statistics.py); an arm
that keeps that model as it is answers the same, which is no matter of chance. Nothing here decides what a person should
do; report/advice.py puts the facts into words.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from math import ceil
from statistics import mean, stdev
from typing import Any

from speech_mtl import interference
from speech_mtl.checkpoint import load_model
from speech_mtl.compare.arms import Arm, Plan, common_branch
from speech_mtl.compare.cost import flops_per_s, measure_cost
from speech_mtl.compare.representations import block_vectors, linear_cka, probe_accuracy
from speech_mtl.compare.runs import Run, test_sets
from speech_mtl.config import Config
from speech_mtl.console import METRICS
from speech_mtl.data import DataError
from speech_mtl.evaluate import Row, headline, read_rows
from speech_mtl.inventory import take_inventory
from speech_mtl.metrics import word_error_count
from speech_mtl.mixture import read_training
from speech_mtl.statistics import Comparison, eer_bootstrap, paired_accuracy, paired_wer_bootstrap
from speech_mtl.verdicts import delta_m, utterances_needed
from speech_mtl.verdicts import verdict as verdict_of

CONFIDENCE = 0.95
UNCHANGED = "every answer is that of the reference, seed by seed: unchanged"


class Evidence:
    """The finished runs by arm and seed, their rows read once."""

    def __init__(self, plan: Plan, runs: list[Run]):
        self.plan, self.sets = plan, test_sets(plan)
        self.kinds: dict[str, str] = {name: task.type for name, task in plan.config.tasks.items()}
        self.done: dict[str, list[Run]] = defaultdict(list)
        self.failed: dict[str, dict[str, str]] = defaultdict(dict)
        for run in runs:
            if run.done():
                self.done[run.arm.name].append(run)
            elif reason := run.failure():
                self.failed[run.arm.name][str(run.seed)] = reason
        self.arms = [arm for arm in plan.arms if self.done[arm.name] or self.failed[arm.name]]
        self._rows: dict[tuple[str, str], list[list[Row]]] = {}

    def rows(self, arm: str, part: str) -> list[list[Row]]:
        """Of every seed, the scored utterances in the order of their ids."""
        if (arm, part) not in self._rows:
            found = [read_rows(run.folder / "scores" / part / "utterances.jsonl") for run in self.done[arm]]
            scored = [sorted((r for r in rows if "error" not in r), key=lambda r: r["id"]) for rows in found]
            self._rows[arm, part] = scored
        return self._rows[arm, part]

    def errors(self, arm: str, part: str) -> dict[str, dict[str, float]]:
        """By task and seed, the headline error on a test set."""
        found: dict[str, dict[str, float]] = defaultdict(dict)
        for run in self.done[arm]:
            summary = json.loads((run.folder / "scores" / part / "summary.json").read_text(encoding="utf-8"))
            kinds = {name: self.kinds[name] for name in run.arm.tasks}
            for task, error in headline(summary, kinds).items():
                found[task][str(run.seed)] = error
        return found

    def compare(self, arm: str, reference: str, task: str, part: str) -> Comparison | None:
        """The arm against the reference; None where they have no utterance in common that could be right or wrong."""
        runs = [*self.rows(arm, part), *self.rows(reference, part)]
        if not self.done[arm] or not self.done[reference]:
            return None
        ids = set.intersection(*({row["id"] for row in rows if _is_scored(row[task])} for rows in runs))
        if not ids:
            return None
        a, b = ([[r for r in rows if r["id"] in ids] for rows in self.rows(name, part)] for name in (arm, reference))
        if self._unchanged(arm, reference, task, a, b):
            return Comparison(0.0, 0.0, 0.0, 1.0, UNCHANGED, len(ids), len(ids))
        speakers = [row["true_speaker"] or row["id"] for row in a[0]]

        def of_both(figure: Callable[[dict[str, Any]], Any]) -> list[list[list[Any]]]:
            """A figure of each of the two arms' answers, by arm, seed and utterance."""
            return [[[figure(row[task]) for row in rows] for rows in arm_rows] for arm_rows in (a, b)]

        if self.kinds[task] == "asr":
            words = [row[task]["errors"]["words"] for row in a[0]]
            if not sum(words):
                return None
            ours, theirs = of_both(lambda answer: word_error_count(answer["errors"]))
            return paired_wer_bootstrap(ours, theirs, words, speakers, confidence=CONFIDENCE)
        if self.kinds[task] == "speaker" and a[0][0][task]["mode"] == "enrolled":
            names = sorted(a[0][0][task]["scores"])
            is_target = [[row[task]["ref"] == name for name in names] for row in a[0]]
            kinds = {target for row in is_target for target in row}
            if kinds == {True, False}:
                ours, theirs = of_both(lambda answer: [answer["scores"][name] for name in names])
                return eer_bootstrap(ours, theirs, is_target, speakers, confidence=CONFIDENCE)
            if kinds == {False}:  # strangers alone have no error, as in `headline`; one reference alone has accuracy
                return None
        ours, theirs = of_both(lambda answer: answer["ref"] == answer["hyp"])
        return paired_accuracy(ours, theirs, speakers, confidence=CONFIDENCE)

    def _unchanged(self, arm: str, reference: str, task: str, a: list[list[Row]], b: list[list[Row]]) -> bool:
        """Whether each seed's answers, scores and confidences included, are those of the reference's same seed.

        Equal errors would be no proof: two models may well make the same few, or none, or hear nothing at all.
        """
        seeds = [[run.seed for run in self.done[name]] for name in (arm, reference)]
        answers = [[[row[task] for row in rows] for rows in arm_rows] for arm_rows in (a, b)]
        heard = all(any(answer["hyp"] for answer in rows) for rows in answers[0])
        return heard and seeds[0] == seeds[1] and answers[0] == answers[1]

    def verdict(self, arm: Arm, task: str, part: str) -> dict[str, Any] | None:
        """An arm against the task alone, with what would decide it; None for that arm itself, and as `compare`."""
        reference = f"{task} alone"
        if arm.name == reference or not self.done[reference]:
            return None
        found = self.compare(arm.name, reference, task, part)
        if found is None:
            return None
        margin = self.margin(reference, task, part)
        word = verdict_of(found.difference, found.low, found.high, margin)
        needed = utterances_needed(
            found.low, found.high, found.difference, margin, found.utterances, training_share=found.training_share
        )
        by_speaker = found.blocks < found.utterances  # more utterances of the same voices would not do
        return {
            "against": reference, "difference": found.difference, "low": found.low, "high": found.high,
            "margin": margin, "verdict": word, "p": found.p, "test": found.test, "needed_utterances": needed,
            "needed_speakers": ceil(needed * found.blocks / found.utterances) if needed and by_speaker else None,
        }  # fmt: skip

    def margin(self, reference: str, task: str, part: str) -> float:
        """The share of wrong answers by which an arm may be worse than the reference and still be 'no worse'."""
        settings = self.plan.config.compare
        return max(settings.margin * mean(self.errors(reference, part)[task].values()), settings.margin_points / 100)

    def word(self, arm: str, reference: str, task: str, part: str) -> str | None:
        """The verdict on an arm against any other; None where they have no utterance in common."""
        if (found := self.compare(arm, reference, task, part)) is None:
            return None
        return verdict_of(found.difference, found.low, found.high, self.margin(reference, task, part))


def collect(plan: Plan, runs: list[Run]) -> dict[str, Any]:
    """compare.json, less what only the caller knows (command, commit, machine, minutes)."""
    evidence = Evidence(plan, runs)
    config = plan.config
    pairs = [p for arm in evidence.arms if arm.group in ("joint", "user") for p in _interference(evidence, arm)]
    arms = [_arm(evidence, arm) for arm in evidence.arms]
    parts = list(evidence.sets)
    return {
        "seeds": config.compare.seeds,
        "complete": all(run.done() for run in runs),
        "margin": config.compare.margin,
        "margin_points": config.compare.margin_points,
        "confidence": CONFIDENCE,
        "tasks": {name: {"type": kind, "metrics": _by_set(evidence, kind)} for name, kind in evidence.kinds.items()},
        "sets": {part: {"manifests": evidence.sets[part]["manifests"], "utterances": _utterances(evidence, part)}
                 for part in parts},
        "arms": arms,
        "interference": pairs,
        "overhead": _overhead(evidence),
        "proposal": _proposal(evidence, arms, [p for p in pairs if p["arm"] == "joint"], parts[0]),
        **_representations(evidence, parts[0]),
        "curves": {arm.name: curve for arm in evidence.arms if (curve := _curve(evidence, arm))},
        "cost": _cost(evidence),
    }  # fmt: skip


def _by_set(evidence: Evidence, kind: str) -> dict[str, str]:
    """What a task's error is on every test set and the dev data: speakers may be enrolled in one and not in another."""
    enroll = {part: of_part["enroll"] for part, of_part in evidence.sets.items()}
    enroll["dev"] = evidence.plan.config.data.dev_enroll
    usual = "wer" if kind == "asr" else "accuracy error"
    return {part: "eer" if manifests and kind == "speaker" else usual for part, manifests in enroll.items()}


def _is_scored(row: dict[str, Any]) -> bool:
    """Whether a task's row has a label that the model can give: as in the summary, a stranger to all arms is none."""
    return "ref" in row and (row.get("mode") != "closed" or row["ref"] in row["scores"])


def _utterances(evidence: Evidence, part: str) -> int:
    return max((len(rows[0]) for arm in evidence.arms if (rows := evidence.rows(arm.name, part))), default=0)


def _arm(evidence: Evidence, arm: Arm) -> dict[str, Any]:
    config = evidence.plan.config_of(arm, evidence.plan.config.compare.seeds[0])
    facts: dict[str, Any] = {
        "name": arm.name, "title": arm.title, "group": arm.group, "tasks": list(arm.tasks),
        "branch": common_branch(config), "weights": {name: task.weight for name, task in config.tasks.items()},
        "method": config.train.weighting,
        "failed": evidence.failed[arm.name], "delta_m": None, "scores": {}, "verdicts": {},
    }  # fmt: skip
    facts |= _size(evidence, arm, config)
    for part in evidence.sets:
        errors = evidence.errors(arm.name, part)
        facts["scores"][part] = {
            task: {"per_seed": e, "mean": mean(e.values()), "std": stdev(e.values()) if len(e) > 1 else None}
            for task, e in errors.items()
        }
        found = {task: evidence.verdict(arm, task, part) for task in errors}
        facts["verdicts"][part] = {task: v for task, v in found.items() if v}
        singles = {task: evidence.errors(f"{task} alone", part).get(task) for task in evidence.kinds}
        if set(errors) == set(evidence.kinds) and all(singles.values()):
            ours = {task: mean(e.values()) for task, e in errors.items()}
            theirs = {task: mean((e or {}).values()) for task, e in singles.items()}
            facts["delta_m"] = (facts["delta_m"] or {}) | {part: delta_m(ours, theirs)}
    return facts


def _size(evidence: Evidence, arm: Arm, config: Config) -> dict[str, Any]:
    """Examples, parameters, FLOPs, and minutes of training, with those of the arm that it starts from."""
    runs = evidence.done[arm.name]
    if not runs:
        unknown = dict.fromkeys(("parameters", "flops_per_s", "train_flops", "train_minutes"))
        return {"examples": {}} | unknown
    inventory = take_inventory(read_training(config), config)
    examples = {
        name: len(inventory.texts) if task.type == "asr" else sum(inventory.classes[name].values())
        for name, task in config.tasks.items()
    }
    model = load_model(runs[0].folder)
    trunk, heads = flops_per_s(model)
    frozen = config.frozen_parts()
    # a backward pass costs twice the forward one, and is not run through what is frozen
    passes = trunk * (1 if "encoder.".startswith(frozen) else 3)
    passes += sum(f * (1 if f"tasks.{name}.".startswith(frozen) else 3) for name, f in heads.items())
    learning = set(model.learning())
    views = 2 if any(config.tasks[name].consistency for name in learning) else 1  # every utterance heard twice
    train_flops = views * passes * inventory.duration_s * config.train.epochs
    train_minutes = mean(_metrics(run)[-1]["elapsed_s"] / 60 for run in runs)
    if arm.start_from:
        source = evidence.plan.arm(arm.start_from)
        its = _size(evidence, source, evidence.plan.config_of(source, config.train.seed))
        train_flops += its["train_flops"] or 0.0
        train_minutes += its["train_minutes"] or 0.0
    return {
        "examples": examples, "parameters": model.n_parameters,
        "flops_per_s": trunk + sum(heads.values()), "train_flops": train_flops,
        "train_minutes": round(train_minutes, 2),
    }  # fmt: skip


def _metrics(run: Run) -> list[dict[str, Any]]:
    text = (run.folder / "training" / METRICS).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _curve(evidence: Evidence, arm: Arm) -> list[dict[str, Any]]:
    """Dev errors by epoch, mean over seeds."""
    by_epoch: dict[float, list[dict[str, float]]] = defaultdict(list)
    kinds = {name: evidence.kinds[name] for name in arm.tasks}
    for run in evidence.done[arm.name]:
        for line in _metrics(run):
            errors = headline(line["dev"], kinds)
            by_epoch[line["epoch"]].append({"minutes": line["elapsed_s"] / 60} | errors)
    return [
        {"epoch": epoch} | {key: mean(line[key] for line in lines) for key in lines[0]}
        for epoch, lines in sorted(by_epoch.items())
        if all(lines[0].keys() == line.keys() for line in lines)
    ]


def _records(evidence: Evidence, arm: str) -> list[dict[str, Any]]:
    return [r for run in evidence.done[arm] for r in interference.read_records(run.folder / "training")]


def _interference(evidence: Evidence, arm: Arm) -> list[dict[str, Any]]:
    config = evidence.plan.config_of(arm, evidence.plan.config.compare.seeds[0])
    weights = {name: task.weight for name, task in config.tasks.items()}
    return [{"arm": arm.name} | pair for pair in interference.agreement(_records(evidence, arm.name), weights)]


def _overhead(evidence: Evidence) -> float | None:
    """The share of the joint arm's training time that went into measuring interference."""
    runs = evidence.done["joint"]
    seconds = sum(record["seconds"] for record in _records(evidence, "joint"))
    total = sum(_metrics(run)[-1]["elapsed_s"] for run in runs)
    return round(seconds / total, 4) if seconds and total else None


def _proposal(evidence: Evidence, arms: list[dict], pairs: list[dict], part: str) -> dict[str, Any] | None:
    """Where the measured conflict says to part, and whether training agrees, by paired tests of the trained points.

    None where nothing was measured. Confirmed: beyond doubt no task is worse there than at any other trained branch
    point by more than the margin. Refuted: at another point some task is better beyond doubt, and none is worse. Null
    where training says neither, or the proposed point was not trained.
    """
    if not pairs or (proposed := interference.propose_branch(pairs)) is None:
        return None
    branch, why = proposed
    swept = [a for a in arms if a["group"] in ("branch", "joint") and a["branch"] is not None and not a["failed"]]
    found = {"branch": branch, "why": why, "tested": [{"branch": a["branch"], "arm": a["name"]} for a in swept]}
    ours = [a["name"] for a in swept if a["branch"] == branch]
    others = [a["name"] for a in swept if a["branch"] != branch]
    if not ours or not others:
        return found | {"confirmed": None}
    words = [[evidence.word(ours[0], other, task, part) for task in evidence.kinds] for other in others]
    if any("harms" in of_one and "helps" not in of_one for of_one in words):
        return found | {"confirmed": False}
    sure = all(word in ("helps", "no worse") for of_one in words for word in of_one if word)
    return found | {"confirmed": True if sure else None}


def _representations(evidence: Evidence, part: str) -> dict[str, Any]:
    """CKA between the single models, and between each and the joint one; a probe of every label on every block."""
    names = [n for n in [*(f"{t} alone" for t in evidence.kinds), "joint"] if evidence.done[n]]
    found: dict[str, Any] = {"cka": [], "probe": []}
    vectors, labels = {}, None
    for name in names:
        model = load_model(evidence.done[name][0].folder)
        try:
            vectors[name], labels = block_vectors(model, evidence.sets[part]["manifests"], evidence.plan.config)
        except DataError:
            return found
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            depth = min(len(vectors[a]), len(vectors[b]))
            pairs = zip(vectors[a][:depth], vectors[b][:depth], strict=True)
            found["cka"].append({"a": a, "b": b, "blocks": [round(linear_cka(x, y), 4) for x, y in pairs]})
    for task, values in (labels or {}).items():
        for name in names:
            blocks = [probe_accuracy(x, values) for x in vectors[name]]
            if all(block is not None for block in blocks):
                found["probe"].append({"arm": name, "task": task, "blocks": blocks})
    return found


def _cost(evidence: Evidence) -> dict[str, Any] | None:
    """One joint pass against one pass of every single model, on the same input; None where one of them is lacking."""
    names = ["joint", *(f"{task} alone" for task in evidence.kinds)]
    folders = {name: evidence.done[name][0].folder for name in names if evidence.done[name]}
    return measure_cost(folders.pop("joint"), folders) if len(folders) == len(names) else None
