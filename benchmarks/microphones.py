"""Enrolled with one microphone, heard through another: how often are voices taken for others, and missed?

    python benchmarks/microphones.py                                   # the bundled model
    python benchmarks/microphones.py speech_mtl/pretrained runs/an4    # several models beside one another

Pieces of 0.8 to 4 s of speakers that no model was trained on are compared with pieces of other recordings of theirs and
of the other speakers of their corpus. One side is as recorded; the other is, too, or has passed a filter: more bass,
more treble, an mp3's band, a telephone's, a room. Rates are means over the corpora: the equal error rate, and the share
of own pieces missed where 1 % of others' are accepted.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lhotse.augmentation.utils import FastRandomRIRGenerator
from scipy.signal import butter, fftconvolve, sosfilt, sosfiltfilt

from speech_mtl.checkpoint import load_model
from speech_mtl.data import read_cuts
from speech_mtl.evaluate import speaker_task
from speech_mtl.metrics import equal_error_rate
from speech_mtl.model import SpeechModel
from speech_mtl.recognizer import PRETRAINED
from speech_mtl.tasks import label_of

RATE = 16000
PIECES, SHORTEST_S, LONGEST_S = 3, 0.8, 4.0


def shelf(low_db: float, high_db: float, corner_hz: float) -> Callable[[np.ndarray, int], np.ndarray]:
    """A gain that goes from low_db to high_db around the corner."""

    def filtered(samples: np.ndarray, seed: int) -> np.ndarray:
        hz = np.fft.rfftfreq(len(samples), 1 / RATE)
        gain_db = high_db + (low_db - high_db) / (1 + (hz / corner_hz) ** 2)
        return np.fft.irfft(np.fft.rfft(samples) * 10 ** (gain_db / 20), len(samples))

    return filtered


def telephone(samples: np.ndarray, seed: int) -> np.ndarray:
    return sosfilt(butter(4, [300, 3400], "band", fs=RATE, output="sos"), samples)


def below_7_khz(samples: np.ndarray, seed: int) -> np.ndarray:
    return sosfiltfilt(butter(12, 7000, fs=RATE, output="sos"), samples)


def room(samples: np.ndarray, seed: int) -> np.ndarray:
    response = FastRandomRIRGenerator(RATE, max_T60=0.35, room_seed=seed, source_seed=seed + 1)(nsource=1)[0]
    return fftconvolve(samples, response)[: len(samples)]


MICROPHONES = {
    "the same": lambda samples, seed: samples, "more bass, 16 dB": shelf(8, -8, 500),
    "more treble, 12 dB": shelf(-4, 8, 1500), "below 7 kHz": below_7_khz,
    "telephone": telephone, "a room": room,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="*", default=[PRETRAINED], metavar="MODEL")
    manifests = [
        f"data/{corpus}/{part}.jsonl.gz" for corpus in ("an4", "speechocean762") for part in ("enroll", "trial")
    ]
    default = [",".join(manifests[:2]), ",".join(manifests[2:])]
    parser.add_argument("--corpora", nargs="+", default=default, metavar="MANIFEST,MANIFEST", help="speakers to hear")
    args = parser.parse_args()
    for folder in args.models:
        model = load_model(folder)
        rates = [of_corpus(model, corpus.split(",")) for corpus in args.corpora]
        for name in MICROPHONES:
            eer, missed = np.mean([of_one[name] for of_one in rates], axis=0)
            print(f"{folder}  {name:<20} EER {100 * eer:5.2f} %  missed {100 * missed:5.1f} %", flush=True)


def of_corpus(model: SpeechModel, manifests: list[str]) -> dict[str, tuple[float, float]]:
    """Microphone -> (equal error rate, share missed at 1 % accepted)."""
    embeddings: dict[str, list[np.ndarray]] = {name: [] for name in MICROPHONES}
    speakers, utterances = [], []
    for number, cut in enumerate(read_cuts(manifests)):
        samples = cut.resample(RATE).load_audio()[0]
        for name, through in MICROPHONES.items():
            heard = np.clip(through(samples, number), -1, 1).astype(np.float32)
            embeddings[name].append(pieces(model, heard, np.random.default_rng(number)))
        speakers += [label_of(cut, "speaker")] * PIECES
        utterances += [number] * PIECES
    is_same = np.array(speakers)[:, None] == np.array(speakers)
    apart = np.array(utterances)[:, None] != np.array(utterances)
    found = {}
    for name, of_pieces in embeddings.items():
        scores = np.concatenate(embeddings["the same"]) @ np.concatenate(of_pieces).T
        own, others = scores[apart & is_same], scores[apart & ~is_same]
        eer, _ = equal_error_rate(np.concatenate([own, others]), np.arange(len(own) + len(others)) < len(own))
        found[name] = (eer, float(np.mean(own < np.quantile(others, 0.99))))
    return found


@torch.inference_mode()
def pieces(model: SpeechModel, samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Embeddings (PIECES, E) of pieces at drawn places: the same for every microphone."""
    frames = model.trunk(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
    size, name = int(frames.lengths_B[0]), speaker_task(model)
    spans = []
    for _ in range(PIECES):
        length = min(size, max(1, round(rng.uniform(SHORTEST_S, LONGEST_S) / model.frame_s)))
        first = int(rng.integers(0, size - length + 1))
        spans.append((first, first + length))
    return model.task(name).over_spans(model.up_to_head(name, frames), spans)["embedding"].numpy()


if __name__ == "__main__":
    main()
