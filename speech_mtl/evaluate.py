"""A model and cuts -> one row per utterance, and a summary of all of them.

Rows stream: each is written before the next batch is read, so memory does not grow with the data. Speakers are scored
against references: the classes trained on ('closed'), or the normalised mean embeddings of enrolment cuts ('enrolled').
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lhotse import CutSet
from lhotse.cut import Cut
from torch import Tensor

from speech_mtl import metrics
from speech_mtl.augment import in_band
from speech_mtl.checkpoint import CheckpointError
from speech_mtl.config import Config, DataConfig
from speech_mtl.cuts import at_all_speeds, seeded
from speech_mtl.data import Batch, DataError, batches, describe_cut, is_usable, read_cuts
from speech_mtl.lift import lifted
from speech_mtl.model import SpeechModel
from speech_mtl.statistics import paired_wer_bootstrap
from speech_mtl.tasks import Frames, label_of
from speech_mtl.tasks.asr import ASR
from speech_mtl.tasks.classify import Classify
from speech_mtl.tasks.speaker import Speaker
from speech_mtl.text import normalize

Row = dict[str, Any]
BAND_WEIGHT = 0.1
"""Of an utterance in a narrow band, beside 1 of the same one as it is, in the analysis of voices."""


@dataclass(frozen=True)
class References:
    """Enrolled speakers: names and their normalised mean embeddings (speakers, E)."""

    names: list[str]
    embeddings: Tensor


Source = Callable[[SpeechModel, CutSet], Iterator[Batch]]
"""Utterances in batches: the recordings, or what is kept of them (frame_cache.py)."""


def recordings(model: SpeechModel, cuts: CutSet) -> Iterator[Batch]:
    """The utterances' audio."""
    yield from batches(cuts, model.config)


@torch.inference_mode()
def trunk_frames(model: SpeechModel, batch: Batch) -> Frames:
    """What the trunk hands out, computed or kept."""
    device = next(model.parameters()).device
    if batch.frames is not None:
        return batch.frames.to(device)
    return model.trunk(batch.audio_BN.to(device), batch.samples_B.to(device))


def run_batches(
    model: SpeechModel, cuts: CutSet, source: Source = recordings
) -> Iterator[tuple[Batch, list[dict[str, Any]], float]]:
    """Every batch with its predictions, and the seconds they took. Kept frames serve the tasks that learn from them."""
    for batch in source(model, cuts):
        started = time.perf_counter()
        names = list(model.tasks) if batch.frames is None else model.learning()
        predictions = model.predict_from(trunk_frames(model, batch), names) if batch.cuts else []
        yield batch, predictions, time.perf_counter() - started


def enroll_references(model: SpeechModel, cuts: CutSet, source: Source = recordings) -> References:
    """One reference a speaker: the mean of the normalised embeddings, normalised, so that no speaker counts more."""
    task = speaker_task(model)
    by_speaker: dict[str, list[Tensor]] = {}
    for batch, predictions, _ in run_batches(model, cuts, source):
        if batch.failed:
            raise DataError(f"enrolment recording {batch.failed[0][0]}: {batch.failed[0][1]}")
        for cut, prediction in zip(batch.cuts, predictions, strict=True):
            if (speaker := label_of(cut, "speaker")) is None:
                raise DataError(f"enrolment cut '{cut.id}' has no speaker label")
            by_speaker.setdefault(speaker, []).append(prediction[task]["embedding"])
    names = sorted(by_speaker)
    return References(names, F.normalize(torch.stack([torch.stack(by_speaker[n]).mean(0) for n in names]), dim=1))


def fit_speakers(
    model: SpeechModel, corpora: Sequence[CutSet], shares: Sequence[float] | None = None, source: Source = recordings,
    utterances: int = 3000,
) -> None:  # fmt: skip
    """Refit the speaker task's projection and voices on the first training utterances of every speaker.

    They are heard at every speed of the training, at most `utterances` of them at each, as they are and through another
    channel; with augment.band_prob also in narrower bands, which count for BAND_WEIGHT. Where the head is trained on
    stretches, two stretches of every utterance take part beside the whole. A corpus counts by its share; without shares
    all speakers count alike. A head on a trunk that is frozen as it is stays what it is.
    """
    for name, task in model.tasks.items():
        if not isinstance(task, Speaker) or not model.moves(name):
            continue
        task.mel_scale_F.copy_(model.features.scale_F)
        per_speaker = min(max(2, utterances // len(task.speakers)), 50)
        taken: Counter[str] = Counter()
        features, speakers, numbers, weights = [], [], [], []
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(0)
            for number, cuts in enumerate(corpora):
                chosen = _first_of_speakers(cuts, task, model.config.data, per_speaker, taken)
                for batch in source(model, CutSet.from_cuts(at_all_speeds(chosen, model.config.augment.speeds))):
                    if not batch.cuts:
                        continue
                    shared = trunk_frames(model, batch)
                    heards = [(model.up_to_head(name, shared), 1.0)]
                    if model.config.features.normalize == "corpus":  # by the utterance, a channel would leave no trace
                        mel_BTF = model.features.through_channels(shared.mel_BTF, shared.mel_lengths_B)
                        heards.append((model.up_to_head(name, model.shared(mel_BTF, shared.mel_lengths_B)), 1.0))
                    if model.config.augment.band_prob:
                        banded = trunk_frames(model, _in_bands(batch, model.config))
                        heards.append((model.up_to_head(name, banded), BAND_WEIGHT))
                    views = [(view, weight) for heard, weight in heards for view in (heard, *_stretches(task, heard))]
                    features += [task(frames)["features"].cpu() for frames, _ in views]
                    speakers += len(views) * [label_of(cut, "speaker") or "" for cut in batch.cuts]
                    numbers += len(views) * len(batch.cuts) * [number]
                    weights += [weight for _, weight in views for _ in batch.cuts]
            if features:  # a frozen head's speakers may be none of these: it stays as it is
                task.fit(torch.cat(features), speakers, numbers, shares, weights)


def _in_bands(batch: Batch, config: Config) -> Batch:
    """The utterances, each in a band that follows from its id."""
    audio_BN, rate = torch.zeros_like(batch.audio_BN), config.features.sample_rate
    for row, (cut, samples) in enumerate(zip(batch.cuts, batch.samples_B.tolist(), strict=True)):
        heard = in_band(batch.audio_BN[row, :samples].numpy(), rate, seeded("band", cut.id))
        audio_BN[row, :samples] = torch.from_numpy(lifted(heard, rate))
    return replace(batch, audio_BN=audio_BN)


def _first_of_speakers(cuts: CutSet, task: Speaker, config: DataConfig, most: int, taken: Counter[str]) -> list[Cut]:
    """The first usable utterances of every speaker of the task, `most` with those `taken` before; these are counted."""
    chosen = []
    for cut in cuts:
        speaker = label_of(cut, "speaker") or ""
        if speaker in task.index and is_usable(cut, config) and taken[speaker] < most:
            taken[speaker] += 1
            chosen.append(cut)
    return chosen


def _stretches(task: Speaker, heard: Frames) -> list[Frames]:
    return [task.crop(heard), task.crop(heard)] if task.crop_S else []


def speaker_task(model: SpeechModel) -> str:
    """The name of the model's speaker task. Raises CheckpointError where it has none."""
    for name, task in model.config.tasks.items():
        if task.type == "speaker":
            return name
    raise CheckpointError(f"the model has no speaker task; its tasks: {', '.join(model.config.tasks)}")


def evaluate_rows(
    model: SpeechModel, cuts: CutSet, references: References | None = None, source: Source = recordings
) -> Iterator[Row]:
    """One row an utterance, in no particular order; an unreadable one gives {'id', 'error'}."""
    for batch, predictions, seconds in run_batches(model, cuts, source):
        audio_s = batch.samples_B.sum().item() / model.config.features.sample_rate
        for cut, prediction in zip(batch.cuts, predictions, strict=True):
            row = describe_cut(cut) | {"compute_s": round(seconds * cut.duration / audio_s, 6)}
            for name in prediction:
                row[name] = _ROW[model.config.tasks[name].type](model, name, cut, prediction[name], references)
            yield row
        for cut_id, reason in batch.failed:
            yield {"id": cut_id, "error": reason}


def _asr_row(model: SpeechModel, name: str, cut: Cut, prediction: dict, references: References | None) -> Row:
    row = {"hyp": prediction["text"], "words": [asdict(word) for word in prediction["words"]]}
    if "without" in prediction:  # a language model or hot words: the texts without them
        row["without"] = prediction["without"]
    if (text := label_of(cut, "text")) is None:
        return row
    reference = normalize(text, model.config.text)
    return row | {"ref": reference, "errors": metrics.word_errors(reference, prediction["text"])}


def _speaker_row(model: SpeechModel, name: str, cut: Cut, prediction: dict, references: References | None) -> Row:
    if references is None:
        names, scores = model.labels[name], prediction["cosine"]
    else:
        names, scores = references.names, references.embeddings @ prediction["embedding"]
    if not bool(scores.isfinite().all()):
        raise CheckpointError(f"cut '{cut.id}': the model's speaker scores are not numbers; its weights are broken")
    best = int(scores.argmax())
    row = {
        "hyp": names[best],
        "score": round(scores[best].item(), 4),
        "scores": dict(zip(names, scores.double().round(decimals=4).tolist(), strict=True)),
        "mode": "closed" if references is None else "enrolled",
    }
    speaker = label_of(cut, "speaker")
    return row if speaker is None else row | {"ref": speaker}


def _classify_row(model: SpeechModel, name: str, cut: Cut, prediction: dict, references: References | None) -> Row:
    row = {"hyp": prediction["label"], "probability": prediction["probability"]}
    task = model.task(name)
    label = label_of(cut, task.label if isinstance(task, Classify) else name)
    if label is None:
        return row
    return row | ({"ref": label} if label in model.labels[name] else {"unknown": label})  # no class: no right answer


_ROW: dict[str, Callable[..., Row]] = {"asr": _asr_row, "speaker": _speaker_row, "classify": _classify_row}


def summarize(rows: Iterable[Row], kinds: dict[str, str], parameters: int) -> dict[str, Any]:
    """The summary.json of rows; `kinds` maps a task's name to its type. A task without labels is absent."""
    collected: dict[str, list[Any]] = {name: [] for name in kinds}
    names: dict[tuple[str, ...], tuple[str, ...]] = {}  # every row repeats the references' names: keep them once
    unknown: Counter[str] = Counter()  # utterances of a class that the model lacks
    audio_s = compute_s = 0.0
    utterances = failed = 0
    for row in rows:
        if "error" in row:
            failed += 1
            continue
        utterances += 1
        audio_s += row["duration_s"]
        compute_s += row["compute_s"]
        for name, kind in kinds.items():
            if "ref" in row.get(name, ()):
                collected[name].append(_essence(kind, row[name], names))
            unknown[name] += "unknown" in row.get(name, ())
    summary: dict[str, Any] = {name: _SCORE[kinds[name]](items) for name, items in collected.items() if items}
    for name in +unknown:
        summary[name] = summary.get(name, {}) | {"unknown_utterances": unknown[name]}
    rtf = round(compute_s / audio_s, 6) if audio_s else None
    return summary | {
        "cost": {"parameters": parameters, "rtf": rtf, "audio_s": round(audio_s, 3)},
        "utterances": utterances,
        "failed": failed,
    }


def summarize_dev(
    rows: Iterable[Row], kinds: dict[str, str], parameters: int, failed: dict[str, str]
) -> dict[str, Any]:
    """The summary of the dev data's rows; `failed` gets id and reason of what could not be read.

    Raises DataError where nothing could.
    """
    bad: dict[str, str] = {}

    def noted() -> Iterator[Row]:
        for row in rows:
            if "error" in row:
                bad[row["id"]] = row["error"]
            yield row

    summary = summarize(noted(), kinds, parameters)
    if not summary["utterances"]:
        first = next(iter(bad.values()), "none")
        raise DataError(f"data.dev: none of {len(bad)} recordings could be read; the first: {first}")
    failed |= bad
    return summary


def _essence(kind: str, row: Row, names: dict[tuple[str, ...], tuple[str, ...]]) -> Any:
    """What a task's score needs of a row; the rest is let go."""
    if kind == "asr":
        return row["errors"]
    if kind == "speaker":
        references = tuple(row["scores"])
        scores = np.array(list(row["scores"].values()), dtype=np.float32)
        return row["ref"], row["hyp"], row["mode"], scores, names.setdefault(references, references)
    return row["ref"] == row["hyp"]


def _score_speaker(items: list[Any]) -> dict[str, Any]:
    """accuracy over the utterances of known speakers; eer and min_dcf over utterance × reference trials."""
    known = [item for item in items if item[0] in item[4]]
    result: dict[str, Any] = {
        "mode": items[0][2],
        "speakers": len(items[0][4]),
        "unknown_utterances": len(items) - len(known),
    }
    if known:
        result |= {
            "accuracy": round(float(np.mean([ref == hyp for ref, hyp, *_ in known])), 6),
            "utterances": len(known),
        }
    scores = np.concatenate([item[3] for item in items])
    is_target = np.concatenate([np.array([name == item[0] for name in item[4]]) for item in items])
    result["trials"] = len(scores)
    if is_target.any() and not is_target.all():
        eer, threshold = metrics.equal_error_rate(scores, is_target)
        result |= {"eer": round(eer, 6), "eer_threshold": round(threshold, 4)}
        result["min_dcf"] = round(metrics.min_dcf(scores, is_target), 6)
    return result


_SCORE: dict[str, Callable[[list[Any]], dict[str, Any]]] = {
    "asr": metrics.error_rates,
    "speaker": _score_speaker,
    "classify": lambda items: {"accuracy": round(float(np.mean(items)), 6), "utterances": len(items)},
}


def without_each_help(rows: Iterable[Row], task: str) -> dict[str, dict[str, Any]]:
    """By the name of a decoder's help: the WER without it, and the difference that it makes, with its 95 % interval."""
    errors: dict[str, list[int]] = {}
    found: list[tuple[int, int, str]] = []
    for row in rows:
        answer = row.get(task, {})
        if "ref" in answer:
            found.append((metrics.word_error_count(answer["errors"]), answer["errors"]["words"], _drawn_with(row)))
            for name, text in answer["without"].items():
                counts = metrics.word_errors(answer["ref"], text)
                errors.setdefault(name, []).append(metrics.word_error_count(counts))
    if not sum(words for _, words, _ in found):
        return {}
    with_U, words_U, speakers = zip(*found, strict=True)
    effects = {}
    for name, without_U in errors.items():
        effect = paired_wer_bootstrap(with_U, without_U, words_U, speakers)
        interval = {end: round(getattr(effect, end), 6) for end in ("difference", "low", "high")}
        effects[name] = {"wer": round(sum(without_U) / sum(words_U), 6)} | interval | {"test": effect.test}
    return effects


def _drawn_with(row: Row) -> str:
    """Whose utterances a resampling draws together: a speaker's, or each by itself."""
    return row["true_speaker"] or f"utterance {row['id']}"


def headline(summary: dict[str, Any], kinds: dict[str, str]) -> dict[str, float]:
    """Each task's one error figure, lower is better: WER; EER of enrolled speakers; 1 - accuracy."""
    figures = {}
    for name, kind in kinds.items():
        scores = summary.get(name, {})
        enrolled = scores.get("mode") == "enrolled" and "eer" in scores
        value = scores.get("wer") if kind == "asr" else scores.get("eer") if enrolled else scores.get("accuracy")
        if value is not None:
            figures[name] = value if kind == "asr" or enrolled else 1 - value
    return figures


def evaluate(
    model: SpeechModel, manifests: list[str], out: Path, enroll: list[str] | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
) -> dict[str, Any]:  # fmt: skip
    """Write out/utterances.jsonl and out/summary.json; returns the summary. `on_row` sees every row as it comes."""
    out.mkdir(parents=True, exist_ok=True)
    references = enroll_references(model, read_cuts(enroll)) if enroll else None
    part = out / "utterances.jsonl.part"  # an evaluation that is stopped leaves the last one's rows and summary
    with open(part, "w", encoding="utf-8") as file:
        for row in evaluate_rows(model, read_cuts(manifests), references):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            on_row(row)
    (out / "summary.json").unlink(missing_ok=True)
    part.replace(out / "utterances.jsonl")
    summary = summarize(read_rows(out / "utterances.jsonl"), task_kinds(model), model.n_parameters)
    for name, task in model.tasks.items():
        if isinstance(task, ASR) and task.decoder and name in summary:
            summary[name]["decoding"] = task.decoder.describe()
            if effects := without_each_help(read_rows(out / "utterances.jsonl"), name):
                summary[name]["without"] = effects
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def read_rows(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def task_kinds(model: SpeechModel) -> dict[str, str]:
    return {name: task.type for name, task in model.config.tasks.items()}
