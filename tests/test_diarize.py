"""Who speaks when, on made-up voices whose truth is known, and the parts of it against slow or independent ways."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_model, tiny_values

from speech_mtl import diarize
from speech_mtl.config import parse_config
from speech_mtl.decode import Word
from speech_mtl.diarize import Population, Voices, _joined, _Said, find_voices, forward_backward, parted
from speech_mtl.phrases import MARGIN_S, Phrase, phrases_of, pooled
from speech_mtl.speakers import normalized
from speech_mtl.tasks import Frames
from speech_mtl.tasks.pooling import Pooling
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
        phrases.append(phrase([one_piece(place_s, place_s + length_s, embedding)]))
        truth.append(voice)
        place_s += length_s
    return phrases, np.array(truth), voices


def one_piece(start_s: float, end_s: float, embedding: np.ndarray) -> Phrase:
    return Phrase([Word("a", start_s, end_s, 0.9)], embedding, {})


def phrase(pieces: list[Phrase]) -> Phrase:
    """Its embedding is the mean of its pieces', longer ones counting more."""
    total = sum((piece.end_s - piece.start_s) * piece.embedding for piece in pieces)  # type: ignore[operator]
    return Phrase([word for piece in pieces for word in piece.words], normalized(total), {}, pieces)  # type: ignore[arg-type]


def purity(found: Voices, truth: np.ndarray) -> float:
    """Share of the pieces that are of their voice's most frequent true voice."""
    return sum(np.bincount(truth[found.of_piece == k]).max() for k in set(found.of_piece)) / len(truth)


POPULATION = Population(np.zeros(E), np.full(E, 0.5 / E))


def test_a_speaker_without_a_voice_is_no_part_of_the_population() -> None:
    voices = normalized(0.4 + np.random.default_rng(0).standard_normal((40, E)))
    with_none = Population.of(np.vstack([voices, np.zeros_like(voices)]))
    assert np.array_equal(with_none.mean, Population.of(voices).mean)
    assert np.array_equal(with_none.between, voices.var(axis=0))
    assert np.array_equal(Population.of(np.zeros((40, E))).between, POPULATION.between)


@pytest.mark.parametrize("n_voices", [1, 2, 4, 7, 10])
def test_voices_and_their_number_are_found(n_voices: int) -> None:
    phrases, truth, voices = conversation(n_voices, 40 * n_voices)
    found = find_voices(phrases, POPULATION)
    assert len(found.centres) == n_voices and purity(found, truth) > 0.97
    firsts = [int(np.argmax(found.of_piece == k)) for k in range(n_voices)]
    assert firsts == sorted(firsts)  # numbered as they are first heard
    assert found.seconds.sum() == pytest.approx(sum(p.end_s - p.start_s for p in phrases))
    assert ((found.centres @ voices.T).max(axis=1) > 0.95).all()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_voices_that_are_alike_are_told_apart(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a start with both in one cluster they stay one; of all starts the one that explains them best is kept."""
    rng = np.random.default_rng(seed)
    voices = normalized(0.4 + rng.standard_normal((4, E)))
    voices[3] = normalized(0.7 * voices[2] + 0.51**0.5 * normalized(rng.standard_normal(E)))
    phrases, truth, place_s = [], [], 0.0
    for _ in range(60):
        voice, length_s = rng.integers(4), rng.uniform(0.5, 2.5)
        embedding = normalized(voices[voice] + 0.055 / length_s**0.5 * rng.standard_normal(E))
        phrases.append(phrase([one_piece(place_s + 0.5, place_s + 0.5 + length_s, embedding)]))
        truth.append(voice)
        place_s += 0.5 + length_s
    found = find_voices(phrases, POPULATION)
    assert len(found.centres) == 4 and purity(found, np.array(truth)) > 0.97
    monkeypatch.setattr(diarize, "START_COSINES", (0.1,))
    assert len(find_voices(phrases, POPULATION).centres) == 3


def test_a_voice_changes_where_words_touch_and_is_known_by_its_phrases() -> None:
    phrases, _, voices = conversation(2, 40)
    end_s = phrases[-1].end_s
    mixed = [one_piece(end_s + 0.5, end_s + 1.5, voices[0]), one_piece(end_s + 1.5, end_s + 2.5, voices[1])]
    found = find_voices([*phrases, phrase(mixed)], POPULATION)
    assert len(found.centres) == 2 and found.of_piece[-2] != found.of_piece[-1]
    alone = find_voices(phrases, POPULATION)
    assert found.seconds - alone.seconds == pytest.approx([1.0, 1.0])  # of the mixed phrase each voice has its word
    odd = [Phrase(one.words, one.embedding, {}, [one_piece(one.start_s, one.end_s, -one.embedding)]) for one in phrases]  # type: ignore[operator]
    assert (found.centres @ voices.T).max(axis=1).min() > 0.95
    assert (diarize._numbered(alone.of_piece, alone.probability, odd).centres == alone.centres).all()


def in_manners(
    n_voices: int, n_phrases: int, size: float, seed: int = 0, host: float = 0.0
) -> tuple[list[Phrase], np.ndarray]:
    """Three phrases each in one manner, the voice's embedding shifted in twelve directions; truth.

    `host` is the share of the phrases that are the first voice's besides its turns.
    """
    rng = np.random.default_rng(seed)
    voices, directions = normalized(0.4 + rng.standard_normal((n_voices, E))), rng.standard_normal((n_voices, 12, E))
    phrases, truth, place_s = [], [], 0.0
    for u in range(n_phrases):
        voice, length_s = 0 if u // 3 % 10 < 10 * host else u // 3 % n_voices, rng.uniform(1.0, 2.5)
        manner = rng.standard_normal(12) / 12**0.5 if u % 3 == 0 else manner  # noqa: F821
        shifted = voices[voice] + size * (manner @ directions[voice])
        embedding = normalized(shifted + 0.055 / length_s**0.5 * rng.standard_normal(E))
        phrases.append(phrase([one_piece(place_s + 0.4, place_s + 0.4 + length_s, embedding)]))
        truth.append(voice)
        place_s += 0.4 + length_s
    return phrases, np.array(truth)


@pytest.mark.parametrize("n_phrases", [30, 100, 900])
def test_one_speaker_in_many_manners_is_one_voice(n_phrases: int) -> None:
    """As many as there are in a dictation; with the same microphone for any number of voices it was up to ten."""
    phrases, _ = in_manners(1, n_phrases, size=0.09)
    assert len(find_voices(phrases, POPULATION).centres) == 1


def test_voices_stay_whole_however_long_they_speak() -> None:
    phrases, truth = in_manners(2, 900, size=0.12)
    found = find_voices(phrases, POPULATION)
    assert len(found.centres) == 2 and purity(found, truth) > 0.97


@pytest.mark.parametrize("n_voices", [3, 4])
def test_who_talks_most_of_the_time_is_one_voice(n_voices: int) -> None:
    """The mean of all phrases is the host's, then, and not the microphone's: the host was up to three voices."""
    phrases, truth = in_manners(n_voices, 900, size=0.09, host=0.7)
    found = find_voices(phrases, POPULATION)
    assert len(found.centres) == n_voices and purity(found, truth) > 0.97


def test_one_utterance_in_another_manner_is_no_voice_in_a_long_recording_either() -> None:
    phrases, _, voices = conversation(2, 80)
    odd = normalized(voices[0] + 0.22 * np.random.default_rng(2).standard_normal(E))
    assert 0.5 < odd @ voices[0] < 0.6
    end_s = phrases[-1].end_s
    phrases += [phrase([one_piece(end_s + start_s, end_s + start_s + 2.2, odd)]) for start_s in (1.0, 4.0)]
    assert len(find_voices(phrases, POPULATION).centres) == 2


def test_a_voice_may_change_within_a_phrase() -> None:
    """Of phrases in which one voice answers another at once, every piece is given to its own voice."""
    phrases, truth, voices = conversation(2, 60)
    rng, place_s = np.random.default_rng(1), phrases[-1].end_s
    said = list(truth)
    for _ in range(10):
        place_s += 1.0
        first, second = (normalized(voice + 0.05 * rng.standard_normal(E)) for voice in voices)
        pieces = [one_piece(place_s, place_s + 1.0, first), one_piece(place_s + 1.1, place_s + 1.7, second)]
        phrases.append(phrase(pieces))
        place_s += 1.7
        said += [0, 1]
    found = find_voices(phrases, POPULATION)
    assert len(found.centres) == 2 and purity(found, np.array(said)) == 1


def test_where_little_is_said_voices_alike_are_one() -> None:
    """Two seconds of one voice in two phrases that are far apart for it; in a minute of them the evidence decides."""
    rng = np.random.default_rng(0)
    voice = normalized(rng.standard_normal(E))
    phrases = []
    for i, side in enumerate((1.0, -1.0)):
        embedding = normalized(voice + 0.55 * side * normalized(rng.standard_normal(E)))
        phrases.append(phrase([one_piece(3.0 * i, 3.0 * i + 2.0, embedding)]))
    assert phrases[0].embedding @ phrases[1].embedding > 0.5  # type: ignore[operator]
    assert len(find_voices(phrases, POPULATION).centres) == 1
    other = normalized(voice + 5 * normalized(rng.standard_normal(E)))
    phrases.append(phrase([one_piece(9.0, 11.0, other)]))
    assert len(find_voices(phrases, POPULATION).centres) == 2
    assert len(find_voices(phrases, POPULATION, 3).centres) == 3  # as asked


def test_a_voice_that_is_two_enrolled_ones_is_taken_apart() -> None:
    """Voices as alike as 0.7, which were found as one; whoever is one voice stays one, however many are enrolled."""
    rng = np.random.default_rng(3)
    ann = normalized(rng.standard_normal(E))
    bob = normalized(ann + normalized(rng.standard_normal(E)))
    others = normalized(rng.standard_normal((6, E)))
    references = np.stack([ann, *others, bob])
    phrases, truth = [], []
    for i in range(20):
        embedding = normalized((ann, bob)[i % 2] + 0.06 * rng.standard_normal(E))
        pieces = [one_piece(2.0 * i, 2.0 * i + 0.6, embedding), one_piece(2.0 * i + 0.7, 2.0 * i + 1.2, embedding)]
        phrases.append(phrase(pieces))
        truth += [i % 2] * 2
    together = find_voices(phrases, POPULATION, 1)
    assert len(together.centres) == 1
    found = parted(together, phrases, references, lambda seconds: 0.8)
    assert found.of_piece.tolist() == truth
    assert (found.centres @ np.stack([ann, bob]).T).argmax(axis=1).tolist() == [0, 1]
    assert found.seconds == pytest.approx([11.0, 11.0])
    for kept in (
        parted(together, phrases, references, lambda seconds: 0.999),  # neither part is known beyond doubt
        parted(together, phrases, references[:-1], lambda seconds: 0.8),  # one of the two is not enrolled
        parted(together, phrases, references[:1], lambda seconds: 0.8),
        parted(find_voices(phrases[::2], POPULATION), phrases[::2], references, lambda seconds: 0.8),
    ):
        assert len(kept.centres) == 1
    tilted = normalized(ann + 0.35 * normalized(rng.standard_normal((2, E))))  # one voice, and two names on either side
    one_voice = [phrase([one_piece(2.0 * i, 2.0 * i + 1.2, normalized(tilted[i % 2]))]) for i in range(20)]
    both = find_voices(one_voice, POPULATION, 1)
    assert len(parted(both, one_voice, tilted, lambda seconds: 0.8).centres) == 1
    short = [phrases[0], phrases[1], phrases[2]]  # 1.1 s of bob
    assert len(parted(find_voices(short, POPULATION, 1), short, references, lambda seconds: 0.8).centres) == 1


def test_the_number_can_be_given() -> None:
    """More than can be told apart, too: who knows the number knows better."""
    phrases, truth, _ = conversation(4, 120)
    for count in (1, 2, 4, 6, 9, 15):
        assert len(find_voices(phrases, POPULATION, count).centres) == count
    assert len(find_voices(phrases[:3], POPULATION, 5).centres) == 3  # a phrase is one voice's
    assert purity(find_voices(phrases, POPULATION, 4), truth) > 0.97


@pytest.mark.parametrize(
    ("seconds", "likeness", "voices"), [(1.0, 0.4, 1), (4.0, 0.4, 2), (4.0, 0.6, 1), (1.0, 0.3, 2)]
)
def test_in_a_short_recording_voices_heard_for_less_are_one_more_easily(
    seconds: float, likeness: float, voices: int
) -> None:
    one, other = np.eye(E)[0], likeness * np.eye(E)[0] + np.sqrt(1 - likeness**2) * np.eye(E)[1]
    said = _Said.of([one_piece(0.0, seconds, one), one_piece(seconds + 1, 2 * seconds + 1, other)])
    assert len(set(_joined(np.eye(2), said).argmax(axis=1))) == voices


def test_more_than_ten_voices_are_ten() -> None:
    phrases, _, _ = conversation(14, 300)
    assert len(find_voices(phrases, POPULATION).centres) <= 10


@pytest.mark.parametrize("n_phrases", [1, 2, 3])
def test_a_few_phrases_do_not_crash(n_phrases: int) -> None:
    phrases, _, _ = conversation(1, n_phrases)
    for count in (None, 1, 3):
        found = find_voices(phrases, POPULATION, count)
        assert len(found.of_piece) == n_phrases and (found.probability > 0).all()
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
    found, new_prior, evidence = forward_backward(log_likelihood, prior, stay)
    assert evidence == pytest.approx(np.log(total))
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


def test_what_is_pooled_reaches_halfway_into_pauses() -> None:
    runs = [[word("a", 0.0, 0.3), word("b", 0.3, 0.5)], [word("c", 0.6, 0.9)], [word("d", 2.0, 2.2)]]
    expected = [(-MARGIN_S, 0.55), (0.55, 0.9 + MARGIN_S), (2.0 - MARGIN_S, 2.2 + MARGIN_S)]
    np.testing.assert_allclose(pooled(runs), expected)


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
            found = model.task(name).over_spans(frames, spans)[key]  # type: ignore[operator]
            for row, span in zip(found, spans, strict=True):
                alone = model.task(name)(cut_frames(frames, *span, 4))[key][0]
                torch.testing.assert_close(row, alone, atol=1e-5, rtol=1e-4)


def test_a_span_of_scores_far_below_the_others_is_pooled() -> None:
    """Attention that all but leaves a span out of the recording: in the span alone it counts as if it were none."""
    pooling = Pooling(d_model=4, n_mels=2, n_blocks=1, mel_ratio=4, spectrum=False).eval()
    pooling.attention = torch.nn.Linear(4, 4)  # type: ignore[assignment]
    torch.nn.init.eye_(pooling.attention.weight)
    block = torch.cat([torch.full((1, 5, 4), 200.0), torch.randn(1, 5, 4)], dim=1)
    frames = Frames(torch.zeros(1, 40, 2), torch.tensor([40]), [block], torch.tensor([10]))
    loud, quiet = pooling.span_statistics(frames, [(0, 5), (5, 10)])
    torch.testing.assert_close(loud[:4], torch.full((4,), 200.0))
    torch.testing.assert_close(quiet[:4], block[0, 5:].mean(0), atol=1e-5, rtol=1e-4)


def test_a_voice_of_many_phrases_is_divided_by_its_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them would take memory by the square of their number."""
    phrases, truth, _ = conversation(2, 400, seed=3)
    expected = diarize._two_parts(*said_of(phrases))
    assert (expected == truth).all() or (expected != truth).all()
    sizes, two_groups = [], diarize.two_groups
    monkeypatch.setattr(diarize, "two_groups", lambda group_NE: sizes.append(len(group_NE)) or two_groups(group_NE))
    monkeypatch.setattr(diarize, "START_PHRASES", 30)
    found = diarize._two_parts(*said_of(phrases))
    assert sizes == [30] and max(np.mean(found == expected), np.mean(found != expected)) > 0.99


def said_of(phrases: list[Phrase]) -> tuple[np.ndarray, np.ndarray]:
    said = _Said.of(phrases)
    return said.embeddings_UE, said.durations_U
