"""Open set: calibrated on some speakers, how often are strangers named, and enrolled voices not, among fresh speakers?

    python benchmarks/open_set.py                       # the bundled model
    python benchmarks/open_set.py --model runs/an4 --fa 0.01
    python benchmarks/open_set.py --peer campplus.onnx  # beside a public speaker encoder (those that `teach` takes)

Half of the fresh speakers are enrolled, about ten seconds each, the others are strangers; this is drawn many times.
A trial is a piece of a recording, as in `speech-mtl calibrate`, named as `identify` would. Rates are means over the
speakers, with a 95 % interval from drawing speakers anew. Then the same in conversations of four, where a voice is
named by all that it says: rates are of words, and the interval is that of drawing conversations anew. A peer hears the
same recordings and pieces and is calibrated in the same way; its time is that of a second encoder over all of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from lhotse import CutSet

import data_prep
from speech_mtl.calibrating import calibrate, cllr
from speech_mtl.calibration import Calibration
from speech_mtl.conversations import Row, evaluate_conversations
from speech_mtl.enrolment import Heard, listen
from speech_mtl.model import SpeechModel
from speech_mtl.recognizer import PRETRAINED, Recognizer
from speech_mtl.tasks import label_of
from speech_mtl.teacher import Teacher
from speech_mtl.trials import BANDS_S, Trials, groups_of, hear_all, labelled, trials_of

LEAST_SAMPLES = 1600
"""That a peer is given: less is padded with silence."""
KINDS = ("strangers named", "enrolled not named", "enrolled named wrongly")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=PRETRAINED)
    held_out = [f"data/speechocean762/{name}.jsonl.gz" for name in ("dev_enroll", "dev_trial", "enroll", "trial")]
    defaults = ["data/an4/dev.jsonl.gz", *held_out[:2]]
    parser.add_argument("--calibrate", nargs="+", default=defaults, metavar="SOURCE", help="manifests or folders")
    fresh = ["data/an4/enroll.jsonl.gz", "data/an4/trial.jsonl.gz", *held_out[2:]]
    parser.add_argument("--fresh", nargs="+", default=fresh, metavar="SOURCE", help="of other speakers")
    parser.add_argument("--fa", type=float, default=0.01, help="wanted share of strangers who are given a name")
    parser.add_argument("--draws", type=int, default=100, help="how often half of the speakers are enrolled")
    pairs = [("data/an4/enroll.jsonl.gz", "data/an4/trial.jsonl.gz"), (held_out[2], held_out[3])]
    conversations = [f"{enroll},{trial}" for enroll, trial in pairs]
    parser.add_argument("--peer", type=Path, metavar="FILE.onnx", help="a public speaker encoder, in the same protocol")
    parser.add_argument("--conversations", nargs="*", default=conversations, metavar="ENROLL,TRIAL", help="manifests")
    args = parser.parse_args()

    recognizer = Recognizer.from_pretrained(args.model)
    recordings = [list(labelled(sources)) for sources in (args.calibrate, args.fresh)]
    hear = partial(hear_all, recognizer.model, recognizer.speaker_task)
    heard = [hear(own)[0] for own in recordings]
    if both := sorted(heard[0].keys() & heard[1].keys()):
        parser.error(f"speakers both in --calibrate and in --fresh: {', '.join(both[:5])}")
    print(f"fresh: {len(heard[1])} speakers of {', '.join(args.fresh)}; half of them enrolled, {args.draws} draws")
    calibration = report(heard, groups_of(recordings[0]), ", ".join(args.calibrate), args.fa, args.draws)
    if args.peer is not None:
        listen_as, seconds = by_peer(args.peer)
        theirs = [hear(own, listen=listen_as)[0] for own in recordings]
        print(f"the peer {args.peer.name}, {seconds['vectors'] / seconds['sound']:.4f} of the sound's duration:")
        report(theirs, groups_of(recordings[0]), ", ".join(args.calibrate), args.fa, args.draws)
    every: list[Row] = []
    for pair in args.conversations:
        enroll, trial = pair.split(",")
        rows = list(conversation_rows(recognizer.model, calibration, enroll, trial))
        print_conversations(trial, rows)
        every += [row | {"id": f"{trial}: {row['id']}"} for row in rows]
    if len(args.conversations) > 1:
        print_conversations("all of these", every)


def print_conversations(source: str, rows: list[Row]) -> None:
    shown = f"{KINDS[0]} {of_words(rows, 'strangers')} of the words, {KINDS[1]} {of_words(rows, 'known')}"
    print(f"conversations of {source}, {len(rows)}: {shown}")


def report(
    heard: list[dict[str, list[Heard]]], groups: dict[str, int], measured_on: str, fa: float, draws: int
) -> Calibration:  # fmt: skip
    """Calibrate on the first speakers, and print how often the others are named wrongly or not at all."""
    calibration, _ = calibrate(trials_of(heard[0], groups), heard[0], measured_on, fa)
    trials = trials_of(heard[1], dict.fromkeys(heard[1], 0), seed=1)
    print(f"calibrated on {len(heard[0])} speakers, {calibration.note}")
    print(f"Cllr on the fresh speakers: {cllr(trials, calibration):.3f} bits")
    edges = (0.0, *BANDS_S, np.inf)
    rows = [(f"{low:g}-{high:g} s", low, high) for low, high in pairwise(edges)]
    for name, low, high in [*rows, ("phrases (0.5-4 s)", 0.5, 4.0), ("all", 0.0, np.inf)]:
        part = trials.within(low, high)
        if len(part.seconds_P):
            rates = zip(KINDS, shares(part, calibration, draws), strict=True)
            shown = [f"{kind} {interval(of_kind)}" for kind, of_kind in rates]
            print(f"{name:<18}{'; '.join(shown)} ({len(part.seconds_P)} pieces)")
    return calibration


def by_peer(path: Path) -> tuple[Callable[..., Heard], dict[str, float]]:
    """A `listen` whose voices are an ONNX encoder's vectors, and the seconds of sound and of work on whole parts."""
    encoder = Teacher(path)
    spent = {"sound": 0.0, "vectors": 0.0}

    def vector(audio_N: np.ndarray) -> np.ndarray:
        return encoder(np.pad(audio_N, (0, max(0, LEAST_SAMPLES - len(audio_N))))).astype(np.float32)

    def listen_as(model: SpeechModel, task: str, audio: tuple[np.ndarray, int], pieces_of: Callable) -> Heard:
        heard = listen(model, task, audio, pieces_of)
        if heard.embedding is None:
            return heard
        samples, rate = audio
        started = time.perf_counter()
        whole = vector(samples)
        spent["sound"] += len(samples) / rate
        spent["vectors"] += time.perf_counter() - started
        times = heard.pieces.times_W3[:, :2]
        vectors = [vector(samples[round(a * rate) : round(b * rate)]) for a, b in times]
        pieces = replace(heard.pieces, embeddings_WE=np.array(vectors).reshape(len(times), len(whole)))
        return replace(heard, embedding=whole, pieces=pieces)

    return listen_as, spent


def shares(trials: Trials, calibration: Calibration, draws: int, seed: int = 0) -> list[np.ndarray]:
    """Of each of KINDS the share of a speaker's pieces (speakers,), over the draws in which it is of that kind."""
    rng = np.random.default_rng(seed)
    M = trials.scores_PM.shape[1]
    speakers = int(trials.speaker_P.max()) + 1
    half = max(1, M // 2)
    threshold_P = np.array([calibration.threshold(s, half) for s in trials.seconds_P])
    hits, tried = np.zeros((3, speakers)), np.zeros((3, speakers))
    for _ in range(draws):
        enrolled = rng.permutation(M)[:half]
        scores = trials.scores_PM[:, enrolled]
        best_P, accepted_P = enrolled[scores.argmax(axis=1)], scores.max(axis=1) >= threshold_P
        known_P = np.isin(trials.speaker_P, enrolled)
        wrong_P = known_P & accepted_P & (best_P != trials.speaker_P)
        for kind, (of_P, hit_P) in enumerate(
            [(~known_P, ~known_P & accepted_P), (known_P, known_P & ~accepted_P), (known_P, wrong_P)]
        ):
            tried[kind] += np.bincount(trials.speaker_P, of_P, minlength=speakers)
            hits[kind] += np.bincount(trials.speaker_P, hit_P, minlength=speakers)
    return [h[t > 0] / t[t > 0] for h, t in zip(hits, tried, strict=True)]


def conversation_rows(
    model: SpeechModel, calibration: Calibration, enroll: str, trial: str, draws: int = 10
) -> Iterator[Row]:
    """Ten simulated conversations, scored with another half of the speakers enrolled in each draw."""
    cuts = list(CutSet.from_file(enroll))
    speakers = sorted({label_of(cut, "speaker") or "" for cut in cuts})
    with TemporaryDirectory() as place:
        folder = Path(place)
        data_prep.prepare("conversations", Path(trial), folder, minutes=2, conversations=10, speakers=4, seed=11)
        for draw in range(draws):
            half = set(np.random.default_rng(draw).permutation(speakers)[: len(speakers) // 2].tolist())
            enrolled = CutSet.from_cuts(cut for cut in cuts if label_of(cut, "speaker") in half)
            enrolled.to_file(folder / f"{draw}.jsonl.gz")
            recognizer = Recognizer(model, calibration, folder / f"{draw}.db")
            rows: list[Row] = []
            manifest, enrolled_manifest = (str(folder / f"{name}.jsonl.gz") for name in ("conversations", draw))
            evaluate_conversations(recognizer, [manifest], folder / str(draw), [enrolled_manifest], on_row=rows.append)
            yield from rows


def of_words(rows: list[Row], part: str, rounds: int = 2000) -> str:
    """Share of the wrong words in per cent, with its interval over conversations."""
    counts = np.array([[row[part]["errors"], row[part]["words"]] for row in rows])
    ids = np.array([row["id"] for row in rows])
    of_id = np.array([counts[ids == one].sum(axis=0) for one in sorted(set(ids.tolist()))])
    drawn = of_id[np.random.default_rng(0).integers(len(of_id), size=(rounds, len(of_id)))].sum(axis=1)
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    errors, words = counts.sum(axis=0)
    return f"{100 * errors / words:.1f} % ({100 * low:.1f}-{100 * high:.1f})"


def interval(rates: np.ndarray, rounds: int = 2000) -> str:
    """Mean over speakers in per cent, with its interval."""
    drawn = np.random.default_rng(0).choice(rates, (rounds, len(rates))).mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return f"{100 * rates.mean():.1f} % ({100 * low:.1f}-{100 * high:.1f})"


if __name__ == "__main__":
    main()
