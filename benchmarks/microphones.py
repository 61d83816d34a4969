"""Enrolled in one place, heard in another: how often are voices taken for others, and missed, and words misheard?

    python benchmarks/microphones.py                                   # the bundled model
    python benchmarks/microphones.py speech_mtl/pretrained runs/an4    # several models beside one another

Pieces of 0.8 to 4 s of speakers that no model was trained on are compared with pieces of other recordings of theirs and
of the other speakers of their corpus. One side is as recorded; the other is, too, or softer, or has passed a filter
(more bass, more treble, an mp3's band, a telephone's, one of 8 kHz), or is heard in a room, or amid noise: a hiss, or
recordings that `speech-mtl prepare noises` holds out. Rates are means over the corpora: the equal error rate, and the
share of own pieces missed where 1 % of others' are accepted. The word error rate is that of the first corpus. Last come
the words heard in such noises, and in a hiss, where nobody speaks.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import soxr
import torch
from scipy.signal import butter, fftconvolve, sosfilt, sosfiltfilt

from data_prep.rooms import impulse_response
from speech_mtl.checkpoint import load_model
from speech_mtl.data import read_cuts
from speech_mtl.evaluate import speaker_task
from speech_mtl.lift import lifted
from speech_mtl.metrics import equal_error_rate, word_error_count, word_errors
from speech_mtl.model import SpeechModel
from speech_mtl.recognizer import PRETRAINED
from speech_mtl.tasks import label_of
from speech_mtl.text import normalize

RATE = 16000
PIECES, SHORTEST_S, LONGEST_S = 3, 0.8, 4.0
NOISE_S, NOISE_DB = 10, -45.0


def shelf(low_db: float, high_db: float, corner_hz: float) -> Callable[[np.ndarray, int], np.ndarray]:
    """A gain that goes from low_db to high_db around the corner."""

    def filtered(samples: np.ndarray, seed: int) -> np.ndarray:
        hz = np.fft.rfftfreq(len(samples), 1 / RATE)
        gain_db = high_db + (low_db - high_db) / (1 + (hz / corner_hz) ** 2)
        return np.fft.irfft(np.fft.rfft(samples) * 10 ** (gain_db / 20), len(samples))

    return filtered


def telephone(samples: np.ndarray, seed: int) -> np.ndarray:
    return sosfilt(butter(4, [300, 3400], "band", fs=RATE, output="sos"), samples)


def at_8_khz(samples: np.ndarray, seed: int) -> np.ndarray:
    return soxr.resample(soxr.resample(samples, RATE, RATE // 2), RATE // 2, RATE)[: len(samples)]


def below_7_khz(samples: np.ndarray, seed: int) -> np.ndarray:
    return sosfiltfilt(butter(12, 7000, fs=RATE, output="sos"), samples)


def room(samples: np.ndarray, seed: int) -> np.ndarray:
    return fftconvolve(samples, impulse_response(Random(seed), 0.35))[: len(samples)]


def softer(by_db: float) -> Callable[..., np.ndarray]:
    return lambda samples, seed: samples * 10 ** (-by_db / 20)


def amid(noise: Callable[[int, np.random.Generator], np.ndarray], snr_db: float) -> Callable[..., np.ndarray]:
    """Noise that is so far below the mean of the utterance."""

    def mixed(samples: np.ndarray, seed: int) -> np.ndarray:
        added = noise(len(samples), np.random.default_rng(seed))
        return samples + added * np.sqrt(np.mean(samples**2) / np.mean(added**2)) * 10 ** (-snr_db / 20)

    return mixed


def hiss(size: int, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(size)


def noise_around(size: int, rng: np.random.Generator) -> np.ndarray:
    return np.resize(noises()[rng.integers(len(noises()))], size)


@cache
def noises() -> list[np.ndarray]:
    return [cut.load_audio()[0] for cut in read_cuts(["data/noises/test.jsonl.gz"])]


MICROPHONES = {
    "the same": lambda samples, seed: samples, "softer, 12 dB": softer(12), "softer, 30 dB": softer(30),
    "more bass, 16 dB": shelf(8, -8, 500),
    "more treble, 12 dB": shelf(-4, 8, 1500), "below 7 kHz": below_7_khz, "telephone": telephone,
    "at 8 kHz": at_8_khz, "a room": room,
    "a hiss 30 dB below": amid(hiss, 30), "a hiss 20 dB below": amid(hiss, 20),
    "noise 20 dB below": amid(noise_around, 20), "noise 10 dB below": amid(noise_around, 10),
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
            eer, missed, _ = np.mean([of_one[name] for of_one in rates], axis=0)
            print(
                f"{folder}  {name:<20} EER {100 * eer:5.2f} %  missed {100 * missed:5.1f} %  "
                f"WER {100 * rates[0][name][2]:5.2f} %",
                flush=True,
            )
        rng = np.random.default_rng(0)
        alone = {"noise": noises(), "a hiss": [hiss(NOISE_S * RATE, rng) for _ in noises()]}
        for name, sounds in alone.items():
            words = words_in([np.resize(sound, NOISE_S * RATE) for sound in sounds], model)
            print(
                f"{folder}  {name + ' alone':<20} {words / len(sounds) / NOISE_S * 60:.1f} words a minute", flush=True
            )


def words_in(sounds: list[np.ndarray], model: SpeechModel) -> int:
    """Words that are heard in sounds of NOISE_DB each."""
    words = 0
    for number, sound in enumerate(sounds):
        soft = sound / np.sqrt(np.mean(sound**2)) * 10 ** (NOISE_DB / 20)
        heard = lifted(np.clip(soft, -1, 1).astype(np.float32), RATE)
        words += len(hear(model, heard, np.random.default_rng(number))[0].split())
    return words


def of_corpus(model: SpeechModel, manifests: list[str]) -> dict[str, tuple[float, float, float]]:
    """Microphone -> (equal error rate, share missed at 1 % accepted, word error rate)."""
    embeddings: dict[str, list[np.ndarray]] = {name: [] for name in MICROPHONES}
    errors, words = dict.fromkeys(MICROPHONES, 0), 0
    speakers, utterances = [], []
    for number, cut in enumerate(read_cuts(manifests)):
        samples = cut.resample(RATE).load_audio()[0]
        reference = normalize(label_of(cut, "text") or "", model.config.text)
        words += len(reference.split())
        for name, through in MICROPHONES.items():
            heard = lifted(np.clip(through(samples, number), -1, 1).astype(np.float32), RATE)
            text, voices = hear(model, heard, np.random.default_rng(number))
            embeddings[name].append(voices)
            errors[name] += word_error_count(word_errors(reference, text))
        speakers += [label_of(cut, "speaker")] * PIECES
        utterances += [number] * PIECES
    is_same = np.array(speakers)[:, None] == np.array(speakers)
    apart = np.array(utterances)[:, None] != np.array(utterances)
    found = {}
    for name, of_pieces in embeddings.items():
        scores = np.concatenate(embeddings["the same"]) @ np.concatenate(of_pieces).T
        own, others = scores[apart & is_same], scores[apart & ~is_same]
        eer, _ = equal_error_rate(np.concatenate([own, others]), np.arange(len(own) + len(others)) < len(own))
        found[name] = (eer, float(np.mean(own < np.quantile(others, 0.99))), errors[name] / words)
    return found


@torch.inference_mode()
def hear(model: SpeechModel, samples: np.ndarray, rng: np.random.Generator) -> tuple[str, np.ndarray]:
    """(text, embeddings (PIECES, E) of pieces at drawn places: the same for every microphone)."""
    frames = model.trunk(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
    (asr,) = (name for name, task in model.config.tasks.items() if task.type == "asr")
    text = model.predict_from(frames, [asr])[0][asr]["text"]
    size, name = int(frames.lengths_B[0]), speaker_task(model)
    spans = []
    for _ in range(PIECES):
        length = min(size, max(1, round(rng.uniform(SHORTEST_S, LONGEST_S) / model.frame_s)))
        first = int(rng.integers(0, size - length + 1))
        spans.append((first, first + length))
    return text, model.task(name).over_spans(model.up_to_head(name, frames), spans)["embedding"].numpy()


if __name__ == "__main__":
    main()
