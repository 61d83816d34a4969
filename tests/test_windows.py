"""Law 2: windows give what one piece gives. Where nothing but the context is heard, to 1e-5; else the same words."""

from __future__ import annotations

import os
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RATE, tiny_model, tiny_values
from test_recognizer import speech

from speech_mtl.audio import open_sound
from speech_mtl.config import parse_config
from speech_mtl.demo import DATA
from speech_mtl.model import SpeechModel
from speech_mtl.recognizer import Recognizer
from speech_mtl.windows import Stretch, cores, stretches, windows

CELL = 640
ONE_PIECE = {"core_s": 10_000.0}


def noise(duration_s: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(duration_s * RATE)).astype(np.float32)


def blocks(samples: np.ndarray, size_s: float = 7.3) -> list[np.ndarray]:
    size = round(size_s * RATE)
    return [samples[start : start + size] for start in range(0, len(samples), size)]


@pytest.fixture(scope="module")
def model() -> SpeechModel:
    """Two blocks whose attention sees 0.2 s: together with the convolutions they reach less than 1 s."""
    values = tiny_values({"train": "", "dev": ""})
    values["encoder"]["reach_s"] = 0.2
    model = tiny_model(parse_config(values, "test"))
    torch.nn.init.normal_(model.get_parameter("tasks.asr.linear.bias"), std=1.0)
    model.limit_attention()
    return model


@pytest.mark.parametrize("duration_s", [0.1, 5.0, 5.01, 23.456, 40.0])
@pytest.mark.parametrize("size_s", [0.05, 7.3, 100.0])
def test_cores_cover_the_recording_once(duration_s: float, size_s: float) -> None:
    samples = noise(duration_s)
    found = list(windows(blocks(samples, size_s), RATE, CELL, core_s=5.0, context_s=1.0))
    assert found[0].first == 0 and found[-1].last == len(samples) and found[-1].ends
    for before, after in zip(found, found[1:], strict=False):
        assert before.last == after.first and not before.ends
    for window in found:
        assert window.start % CELL == 0 == window.first % CELL
        assert 0 < window.last - window.first <= 5 * RATE
        np.testing.assert_array_equal(window.samples, samples[window.start :][: len(window.samples)])
        assert window.start == max(0, window.first - RATE)
        end = window.start + len(window.samples)
        assert min(len(samples), window.last + RATE) <= end < window.last + 2 * RATE  # lengths are on a grid
        assert end == len(samples) or len(window.samples) % RATE == 0


@pytest.mark.parametrize("size_s", [0.5, 7.3, 100.0])
def test_digital_silence_is_skipped(size_s: float) -> None:
    samples = noise(60.0)
    silences = [(0.0, 3.0), (10.0, 10.5), (20.0, 41.7), (50.0, 60.0)]
    for start_s, end_s in silences:
        samples[round(start_s * RATE) : round(end_s * RATE)] = 0.001  # constant, as a microphone's offset
    found = list(windows(blocks(samples, size_s), RATE, CELL, core_s=8.0, context_s=1.0))
    heard = np.zeros(len(samples), dtype=bool)
    for window in found:
        assert not heard[window.first : window.last].any()
        heard[window.first : window.last] = True
        assert len(window.samples) <= 11 * RATE
    sound = np.ptp(samples.reshape(-1, CELL), axis=1) > 0
    assert heard.reshape(-1, CELL)[sound].all()
    assert (~heard).sum() / RATE == pytest.approx(3 + 21.7 + 10 - 4 * 0.24, abs=0.2)  # the short one is kept
    assert list(windows(blocks(np.zeros(100 * RATE)), RATE, CELL)) == []


@pytest.mark.parametrize("sound_s", [7.6, 7.72, 7.8, 7.88, 7.96, 8.0, 8.04])
def test_a_silence_at_the_end_of_a_core_ends_the_sound(sound_s: float) -> None:
    sound, silence = noise(sound_s), np.zeros(3 * RATE, dtype=np.float32)
    for after_s in (0.0, 4.0):
        samples = np.r_[sound, silence, noise(after_s)]
        found = list(windows(blocks(samples), RATE, CELL, core_s=8.0, context_s=1.0))
        ends = [window.last for window in found if window.ends]
        assert len(ends) == (2 if after_s else 1) and 0 <= ends[0] - len(sound) <= 0.25 * RATE
        assert sum(window.first > ends[0] for window in found) == len(ends) - 1


def all_of(model: SpeechModel, samples: np.ndarray, **sizes: float) -> tuple[torch.Tensor, list[torch.Tensor]]:
    parts = [core for core, _ in cores(model, blocks(samples), "asr", ["speaker"], **sizes)]
    frames = [part.frames["speaker"] for part in parts]
    seen = [torch.cat([f.mel_BTF for f in frames], dim=1)]
    seen += [torch.cat(block, dim=1) for block in zip(*(f.blocks for f in frames), strict=True)]
    return torch.cat([part.log_probs_SV for part in parts]), seen


@pytest.mark.parametrize("duration_s", [4.0, 23.456, 30.02])
def test_stitched_windows_are_the_whole_to_the_last_digit(model: SpeechModel, duration_s: float) -> None:
    samples = noise(duration_s)
    log_probs_SV, frames = all_of(model, samples, core_s=4.0, context_s=1.2)
    whole_SV, whole = all_of(model, samples, **ONE_PIECE)
    torch.testing.assert_close(log_probs_SV, whole_SV, atol=1e-5, rtol=0)
    for found, expected in zip(frames, whole, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_too_little_context_is_noticed(model: SpeechModel) -> None:
    """The test above can fail."""
    samples = noise(12.0)
    log_probs_SV, _ = all_of(model, samples, core_s=4.0, context_s=0.1)
    assert (log_probs_SV - all_of(model, samples, **ONE_PIECE)[0]).abs().max() > 1e-3


def said(model: SpeechModel, parts: list[Stretch]) -> list[tuple[str, float, float]]:
    words = []
    for part in parts:
        output = {"log_probs": part.log_probs_SV[None], "lengths": torch.tensor([len(part.log_probs_SV)])}
        start_s = part.start * model.frame_s
        for word in model.task("asr").predict(output)[0]["words"]:
            words.append((word.text, round(start_s + word.start_s, 2), round(start_s + word.end_s, 2)))
    return words


def test_stretches_hold_the_words_and_frames_of_the_whole(model: SpeechModel) -> None:
    samples = np.concatenate([speech(9.0), noise(2.0) / 100, speech(7.0, seed=1), noise(1.0) / 100, speech(12.0)])
    [(whole, _)] = cores(model, blocks(samples), "asr", ["speaker"], **ONE_PIECE)
    found = list(stretches(model, blocks(samples), "asr", ["speaker"], core_s=4.0, context_s=1.2))
    assert said(model, found) == said(model, [whole])
    assert [part.start for part in found] == np.cumsum([0, *(len(part.log_probs_SV) for part in found)])[:-1].tolist()
    for part in found:
        frames = part.frames["speaker"]
        assert frames.blocks[0].size(1) == len(part.log_probs_SV) == int(frames.lengths_B[0])
        assert frames.mel_BTF.size(1) == int(frames.mel_lengths_B[0])


def test_the_encoder_runs_once_a_window_and_memory_is_flat(model: SpeechModel) -> None:
    runs: list[int] = []
    hook = model.encoder.register_forward_hook(lambda module, inputs, output: runs.append(inputs[0].size(1)))
    minute = noise(60.0) / 1000

    def hour() -> object:
        for number in range(60):
            yield (
                speech(60.0, seed=number % 3)
                if number % 10 == 0
                else minute
                if number % 2
                else np.zeros(60 * RATE, dtype=np.float32)
            )

    longest = max(len(part.log_probs_SV) for part in stretches(model, hour(), "asr", ["speaker"]))  # type: ignore[arg-type]
    hook.remove()
    expected = len(list(windows(hour(), RATE, CELL)))  # type: ignore[arg-type]
    assert len(runs) == expected < 2 * 40 * 60 / 25  # silent minutes cost nothing
    assert max(runs) <= 100 * (30 + 8 + 1) + 1 and len(set(runs)) < 20
    assert longest <= (60 + 30 + 1) / 0.04


def test_padding_changes_nothing_where_attention_is_limited(model: SpeechModel) -> None:
    short, long = noise(2.0), noise(5.0, seed=1)
    both = torch.zeros(2, len(long))
    both[0, : len(short)], both[1] = torch.from_numpy(short), torch.from_numpy(long)
    alone = model.predict(torch.from_numpy(short)[None], torch.tensor([len(short)]))[0]
    padded = model.predict(both, torch.tensor([len(short), len(long)]))[0]
    assert alone["asr"]["text"] == padded["asr"]["text"]
    torch.testing.assert_close(alone["speaker"]["embedding"], padded["speaker"]["embedding"], atol=1e-5, rtol=0)


def test_the_bundled_model_says_the_same_in_windows() -> None:
    """Its blocks reach further than the context, and no word of the demo changes; the demo thrice is 2 minutes."""
    model = Recognizer.from_pretrained().model
    samples = np.concatenate(list(open_sound(DATA / "conversation.flac", RATE).blocks) * 3)
    whole = said(model, list(stretches(model, blocks(samples), "asr", [], **ONE_PIECE)))
    found = said(model, list(stretches(model, blocks(samples), "asr", [])))
    assert [word for word, *_ in found] == [word for word, *_ in whole] and len(whole) > 150
    assert np.abs(np.array([w[1:] for w in found]) - np.array([w[1:] for w in whole])).max() <= 0.081


@pytest.mark.real_data
def test_five_minutes_of_real_speech_in_windows(real_data: Path) -> None:
    import soundfile

    files = sorted((real_data / "an4" / "wav" / "an4test_clstk").rglob("*.wav"))
    if not files:
        pytest.skip(f"no .wav under {os.fspath(real_data)}/an4")
    samples = np.concatenate([soundfile.read(file, dtype="float32")[0] for file in files])[: 300 * RATE]
    model = Recognizer.from_pretrained().model
    whole = [word for word, *_ in said(model, list(stretches(model, blocks(samples), "asr", [], **ONE_PIECE)))]
    found = [word for word, *_ in said(model, list(stretches(model, blocks(samples), "asr", [])))]
    assert found == whole


def test_noise_without_a_word_is_not_held_back(model: SpeechModel) -> None:
    """All frames blank: stretches still end after a minute, or hours of noise would fill the memory."""
    deaf = deepcopy(model)
    deaf.task("asr").linear.bias.data[-1] = 1000.0  # type: ignore[union-attr]
    found = list(stretches(deaf, iter([noise(60.0) / 100] * 5), "asr", ["speaker"]))
    assert len(found) >= 5 and max(len(part.log_probs_SV) for part in found) <= 60 / 0.04
    assert sum(len(part.log_probs_SV) for part in found) == 5 * 60 / 0.04
