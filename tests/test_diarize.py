"""Who speaks when, on made-up voices whose truth is known, and the parts of it against slow or independent ways."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_model, tiny_values

from speech_mtl.config import parse_config
from speech_mtl.decode import Word
from speech_mtl.diarize import Phrase, Population, Voices, find_voices, forward_backward, phrases_of
from speech_mtl.speakers import normalized
from speech_mtl.tasks import Frames
from speech_mtl.windows import cut_frames

E = 64


def conversation(
    n_voices: int, n_phrases: int, seed: int = 0, noise: float = 0.055
) -> tuple[list[Phrase], np.ndarray, np.ndarray]:
    """Phrases of 0.3 to 3 s, whose embeddings are their voice's and noise, more of it in short ones; truth; voices."""
    rng = np.random.default_rng(seed)
    voices = normalized(0.4 + rng.standard_normal((n_voices, E)))
    phrases, truth, place_s, voice = [], [], 0.0, 0
    for _ in range(n_phrases):
        voice = rng.integers(n_voices) if rng.random() < 0.6 else voice
        length_s = rng.uniform(0.3, 3.0)
        embedding = normalized(voices[voice] + noise / length_s**0.5 * rng.standard_normal(E))
        place_s += 0.5
        phrases.append(Phrase([Word("a", place_s, place_s + length_s, 0.9)], embedding, {}))
        truth.append(voice)
        place_s += length_s
    return phrases, np.array(truth), voices


def purity(found: Voices, truth: np.ndarray) -> float:
    """Share of the phrases that are of their voice's most frequent true voice."""
    return sum(np.bincount(truth[found.of_phrase == k]).max() for k in set(found.of_phrase)) / len(truth)


POPULATION = Population(np.zeros(E), np.full(E, 0.5 / E))


@pytest.mark.parametrize("n_voices", [1, 2, 4, 7, 10])
def test_voices_and_their_number_are_found(n_voices: int) -> None:
    phrases, truth, voices = conversation(n_voices, 40 * n_voices)
    found = find_voices(phrases, POPULATION)
    assert len(found.centres) == n_voices and purity(found, truth) > 0.97
    firsts = [int(np.argmax(found.of_phrase == k)) for k in range(n_voices)]
    assert firsts == sorted(firsts)  # numbered as they are first heard
    assert found.seconds.sum() == pytest.approx(sum(p.end_s - p.start_s for p in phrases))
    assert ((found.centres @ voices.T).max(axis=1) > 0.95).all()


def test_the_number_can_be_given() -> None:
    phrases, truth, _ = conversation(4, 120)
    for count in (1, 2, 4):
        assert len(find_voices(phrases, POPULATION, count).centres) <= count
    assert purity(find_voices(phrases, POPULATION, 4), truth) > 0.97


def test_more_than_ten_voices_are_ten() -> None:
    phrases, _, _ = conversation(14, 300)
    assert len(find_voices(phrases, POPULATION).centres) <= 10


@pytest.mark.parametrize("n_phrases", [1, 2, 3])
def test_a_few_phrases_do_not_crash(n_phrases: int) -> None:
    phrases, _, _ = conversation(1, n_phrases)
    for count in (None, 1, 3):
        found = find_voices(phrases, POPULATION, count)
        assert len(found.of_phrase) == n_phrases and (found.probability > 0).all()
    assert len(find_voices([phrases[0]] * 5, POPULATION).centres) == 1  # embeddings alike in every digit


def test_a_long_recording_is_done_in_seconds() -> None:
    import time

    phrases, truth, _ = conversation(4, 5000)  # two and a half hours
    started = time.process_time()
    found = find_voices(phrases, POPULATION)
    assert time.process_time() - started < 30 and purity(found, truth) > 0.97


def test_forward_backward_against_all_paths() -> None:
    rng = np.random.default_rng(0)
    U, K = 5, 3
    log_likelihood, prior, stay = rng.normal(size=(U, K)), np.array([0.5, 0.3, 0.2]), np.array([0, 0.9, 0.5, 0.7, 0.2])
    posterior, total, entries = np.zeros((U, K)), 0.0, np.zeros(K)
    for path in np.ndindex(*[K] * U):
        p = prior[path[0]] * np.exp(sum(log_likelihood[u, k] for u, k in enumerate(path)))
        drawn = []
        for u in range(1, U):
            kept = stay[u] * (path[u] == path[u - 1])
            new = (1 - stay[u]) * prior[path[u]]
            p *= kept + new
            drawn.append((path[u], new / (kept + new)))
        total += p
        for u, k in enumerate(path):
            posterior[u, k] += p
        entries[path[0]] += p
        for k, share in drawn:
            entries[k] += p * share
    found, new_prior = forward_backward(log_likelihood, prior, stay)
    np.testing.assert_allclose(found, posterior / total, atol=1e-10)
    np.testing.assert_allclose(new_prior, entries / entries.sum(), atol=1e-10)


def word(text: str, start_s: float, end_s: float) -> Word:
    return Word(text, start_s, end_s, 0.9)


def test_phrases_end_at_pauses_and_long_ones_at_their_longest() -> None:
    words = [word("a", 0.0, 0.3), word("b", 0.4, 0.8), word("c", 1.1, 1.5)]
    assert [[w.text for w in run] for run in phrases_of(words)] == [["a", "b"], ["c"]]
    long = [word(str(i), 0.5 * i, 0.5 * i + (0.35 if i == 3 else 0.45)) for i in range(8)]
    assert [[w.text for w in run] for run in phrases_of(long)] == [list("0123"), list("4567")]
    assert phrases_of([]) == [] and len(phrases_of([word("loooong", 0, 60)])) == 1


def test_spans_give_what_the_head_gives_for_them_alone() -> None:
    values = tiny_values({"train": "", "dev": ""})
    values["tasks"]["gender"] = {"type": "classify"}
    model = tiny_model(parse_config(values, "test"))
    spans = [(0, 50), (3, 4), (10, 31), (20, 50), (49, 50)]
    with torch.inference_mode():
        whole = model.trunk(0.1 * torch.randn(1, 50 * 640 - 200), torch.tensor([50 * 640 - 200]))
        for name, key in (("speaker", "embedding"), ("gender", "log_probs")):
            frames = Frames(
                whole.mel_BTF, whole.mel_lengths_B, [b + torch.randn(32) for b in whole.blocks], whole.lengths_B
            )
            found = model.task(name).over_spans(frames, spans, 4)[key]  # type: ignore[operator]
            for row, span in zip(found, spans, strict=True):
                alone = model.task(name)(cut_frames(frames, *span, 4))[key][0]
                torch.testing.assert_close(row, alone, atol=1e-5, rtol=1e-4)
