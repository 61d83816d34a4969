"""Shared fixtures: a tiny corpus of tone words and a tiny config, enough to train on in seconds."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, Recording, SupervisionSegment

from speech_mtl.config import Config, parse_config
from speech_mtl.model import SpeechModel
from speech_mtl.text import Tokenizer

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)  # `make test` has two workers
needs_kenlm = pytest.mark.skipif(
    importlib.util.find_spec("flashlight") is None, reason="flashlight-text has no wheel for this Python"
)
RATE = 16000
WORDS = {"low": 300.0, "mid": 700.0, "high": 1500.0}
SPEAKERS = {"ann": 1.0, "bob": 1.17, "cid": 1.35}


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tests of networks so small that two threads mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real recordings."""
    if not os.environ.get("SPEECH_MTL_DATA"):
        pytest.skip("SPEECH_MTL_DATA is not set: no real recordings to test on")
    return Path(os.environ["SPEECH_MTL_DATA"])


def tone_word(word: str, speaker: str, rng: np.random.Generator) -> np.ndarray:
    """0.3 s of a word: a chord whose pitch says the word and whose overtone says the speaker."""
    time_s = np.arange(int(0.3 * RATE)) / RATE
    base = WORDS[word] * SPEAKERS[speaker]
    tone = np.sin(2 * np.pi * base * time_s) + 0.5 * np.sin(2 * np.pi * 3.1 * base * time_s)
    return (0.2 * tone * np.hanning(len(time_s)) + 0.003 * rng.standard_normal(len(time_s))).astype(np.float32)


def make_corpus(folder: Path, per_speaker: int, seed: int, **changes: object) -> Path:
    """A manifest of tone sentences; `changes` override fields of every supervision (such as text=None)."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    cuts = []
    for speaker in SPEAKERS:
        for i in range(per_speaker):
            words = [list(WORDS)[k] for k in rng.integers(0, 3, rng.integers(1, 5))]
            name = f"{speaker}-{seed}-{i}"
            soundfile.write(folder / f"{name}.wav", np.concatenate([tone_word(w, speaker, rng) for w in words]), RATE)
            recording = Recording.from_file(folder / f"{name}.wav", recording_id=name)
            labels = {"text": " ".join(words), "speaker": speaker, "gender": "female" if speaker == "ann" else "male"}
            supervision = SupervisionSegment(name, name, 0.0, recording.duration, **(labels | changes))
            cuts.append(recording.to_cut().with_id(name))
            cuts[-1].supervisions = [supervision]
    path = folder / f"cuts-{seed}.jsonl.gz"
    CutSet.from_cuts(cuts).to_file(path)
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("corpus")
    sizes = {"train": (16, 1), "dev": (4, 2), "test": (20, 6)}
    return {name: str(make_corpus(folder, size, seed=seed)) for name, (size, seed) in sizes.items()}


def tiny_values(corpus: dict[str, str]) -> dict:
    return {
        "encoder": {"d_model": 32, "n_blocks": 2, "n_heads": 2, "kernel_size": 5, "subsampling_channels": 8},
        "tasks": {"asr": {"type": "asr"}, "speaker": {"type": "speaker", "embedding_dim": 16, "weight": 0.3}},
        "data": {
            "train": [corpus["train"]], "dev": [corpus["dev"]],
            "max_duration_s": 6.0, "max_utterance_s": 6.0, "workers": 0, "n_buckets": 2,
        },
        "augment": {"speeds": [0.9, 1.0], "time_mask_frames": 4, "freq_mask_bins": 4, "concat_prob": 0.2},
        "train": {"epochs": 2, "lr": 2e-3, "warmup_epochs": 0.5},
    }  # fmt: skip


@pytest.fixture
def tiny_config(corpus: dict[str, str]) -> Config:
    return parse_config(tiny_values(corpus), "test")


def tiny_model(config: Config, seed: int = 0) -> SpeechModel:
    """A model with random weights, as `prepare_model` would shape it."""
    torch.manual_seed(seed)
    labels = {
        name: list(SPEAKERS) if task.type == "speaker" else ["female", "male"]
        for name, task in config.tasks.items() if task.type != "asr"
    }  # fmt: skip
    model = SpeechModel(config, Tokenizer.train(list(WORDS), config.text), labels)
    model.features.mean_F.fill_(-8.0)
    model.features.scale_F.fill_(4.0)
    return model.eval()
