"""The synthetic corpus: the same twice, letters that are letters, word times that lie where the sound is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
from lhotse import load_manifest_lazy

import data_prep
from data_prep.common import PrepareError
from data_prep.espeak import ACCENTS, VARIANTS, phonemes
from data_prep.synthetic import Voice, draw_voices, synthesize
from data_prep.synthetic_text import sentence

ROOT = Path(__file__).parents[1]
SMALL = {"speakers": 3, "utterances": 3, "dev_speakers": 1, "test_speakers": 2, "held_out_utterances": 2}


@pytest.mark.parametrize("variant", ["m3", "f4", "Reed"])  # Reed is of the Klatt kind, which uses rand()
def test_equal_arguments_give_equal_samples(variant: str) -> None:
    voice = Voice(variant=variant)
    first = synthesize("go home now", voice)
    synthesize("something else in between", Voice(variant="f1"))
    again = synthesize("go home now", voice)
    np.testing.assert_array_equal(first.samples, again.samples)
    assert first.words == again.words
    assert first.samples.dtype == np.float32 and first.sample_rate == 16000 and np.abs(first.samples).max() > 0.05


@pytest.mark.parametrize(
    "text", ["g m e f three nine", "the end of the road is in the north", "area code four, one two."]
)
@pytest.mark.parametrize("word_gap_s", [0.0, 0.2])
def test_word_times_are_in_order_and_hold_the_sound(text: str, word_gap_s: float) -> None:
    samples, rate, words = synthesize(text, Voice(accent="en-gb", tract=1.1), word_gap_s=word_gap_s)
    assert [word.word for word in words] == text.replace(",", "").replace(".", "").split()
    end = 0.0
    inside = np.zeros(len(samples), bool)
    for _, start_s, duration_s in words:
        assert start_s >= end - 1e-3 and duration_s > 0.02
        end = start_s + duration_s
        inside[round(start_s * rate) : round(end * rate)] = True
    assert end <= len(samples) / rate + 1e-3
    energy = samples.astype(np.float64) ** 2
    assert energy[inside].sum() > 0.99 * energy.sum()


def test_pauses_are_no_part_of_words() -> None:
    dense, spaced = (synthesize("b c d", Voice(), word_gap_s=gap).words for gap in (0.0, 0.3))
    assert spaced[1].start_s - (spaced[0].start_s + spaced[0].duration_s) > 0.2
    assert spaced[1].duration_s < dense[1].duration_s + 0.1


def test_a_letter_is_spoken_as_its_name() -> None:
    # espeak's own letters: eI as in 'day'; a# and @ are the article's vowels.
    assert phonemes("a") == "'eI"
    assert phonemes("b a r b a r a").count("'eI") == 3
    assert phonemes("m a r i a").count("'eI") == 2
    assert phonemes("enter A five").count("'eI") == 1
    assert "'eI" not in phonemes("it is a dog")
    assert "'eI" not in phonemes("am i a driver")


@pytest.mark.parametrize("accent", ACCENTS)
def test_every_letter_sounds_alone_as_in_a_row_in_every_accent(accent: str) -> None:
    names = {letter: phonemes(letter, accent).split() for letter in "abcdefghijklmnopqrstuvwxyz"}
    assert len({tuple(name) for name in names.values()}) == 26
    for letter, name in names.items():
        assert any("'" in phoneme for phoneme in name), letter  # stressed: a name, not a particle


def test_vocal_tract_moves_formants_but_not_pace() -> None:
    short, long = (synthesize("one two three four five", Voice(tract=tract)) for tract in (1.12, 0.9))
    assert len(short.samples) == pytest.approx(len(long.samples), rel=0.06)
    centroid_hz = []
    for synthesis in (short, long):
        power = np.abs(np.fft.rfft(synthesis.samples)) ** 2
        centroid_hz.append((np.fft.rfftfreq(len(synthesis.samples), 1 / 16000) * power).sum() / power.sum())
    assert centroid_hz[0] > 1.05 * centroid_hz[1]


DIGESTS = """
import hashlib
from data_prep.espeak import VARIANTS, Voice, synthesize
for variant in VARIANTS:
    samples = synthesize("go home now", Voice(variant=variant)).samples
    assert abs(samples).max() > 0.02, variant
    print(variant, hashlib.sha256(samples.tobytes()).hexdigest())
"""


def test_every_variant_sounds_and_is_the_same_in_every_process() -> None:
    # Another environment moves the addresses, and with them what uninitialised memory would hold.
    runs = []
    for padding in ("", "x" * 3000):
        environment = {**os.environ, "PADDING": padding}
        command = [sys.executable, "-c", DIGESTS]
        run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
        runs.append(run.stdout.splitlines())
    assert runs[0] == runs[1] and len(runs[0]) == len(VARIANTS)


def test_what_cannot_be_spoken_is_refused() -> None:
    with pytest.raises(ValueError, match="text is ' , '"):
        synthesize(" , ", Voice())
    with pytest.raises(ValueError, match="accent is 'klingon'; accepted: en-us"):
        Voice(accent="klingon")
    with pytest.raises(ValueError, match="tract is 3"):
        Voice(tract=3.0)
    with pytest.raises(RuntimeError, match=r"no voice 'en-us\+nobody'"):
        synthesize("go", Voice(variant="nobody"))


def test_voices_are_distinct_and_do_not_depend_on_their_number() -> None:
    voices = draw_voices(300, seed=1)
    assert len(set(voices)) == 300
    assert voices[:20] == draw_voices(20, seed=1) != draw_voices(20, seed=2)
    assert Counter(voice.gender for voice in voices) == {"female": 150, "male": 150}


def test_sentences_cover_the_domain() -> None:
    rng = Random(0)
    texts = [sentence(rng).text.lower().replace(",", "") for _ in range(3000)]
    words = Counter(word for text in texts for word in text.split())
    for word in ("rubout", "erase", "nineteen", "thirteen", "november", "zero", "oh", "area", "hundred", "w", "q", "z"):
        assert words[word] >= 5, word
    assert len(words) > 400 and len(set(texts)) > 2000
    assert not any(character not in "abcdefghijklmnopqrstuvwxyz '" for text in texts for character in text)


def test_the_corpus_is_the_same_twice_and_splits_speakers(tmp_path: Path) -> None:
    outs = [data_prep.prepare("synthetic", None, tmp_path / name, **SMALL) for name in ("one", "two")]
    first, second = (
        [list(load_manifest_lazy(out / f"{s}.jsonl.gz")) for s in ("train", "dev", "test")] for out in outs
    )
    assert [len(cuts) for cuts in first] == [9, 2, 4]
    speakers = [{cut.supervisions[0].speaker for cut in cuts} for cuts in first]
    assert [len(s) for s in speakers] == [3, 1, 2] and not (speakers[0] & (speakers[1] | speakers[2]))
    for one, two in zip(sum(first, []), sum(second, []), strict=True):
        assert (one.id, one.supervisions[0].text) == (two.id, two.supervisions[0].text)
        np.testing.assert_array_equal(one.load_audio(), two.load_audio())
        label = one.supervisions[0]
        assert label.text == label.text.lower() and label.gender in ("female", "male")
        assert one.sampling_rate == 16000 and label.custom["accent"] in ACCENTS
        assert [item.symbol for item in label.alignment["word"]] == label.text.split()
        assert all(0 <= item.start and item.end <= one.duration + 1e-3 for item in label.alignment["word"])


def test_texts_of_the_user(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("turn the light on\nroom 5\n\n")
    out = data_prep.prepare("synthetic", None, tmp_path / "out", texts=texts, **SMALL)
    assert {cut.supervisions[0].text for cut in load_manifest_lazy(out / "train.jsonl.gz")} == {"turn the light on"}
    assert "texts.txt line 2" in (out / "left_out.jsonl").read_text()
    with pytest.raises(PrepareError, match="option texts: .* is no file"):
        data_prep.prepare("synthetic", None, tmp_path / "out", texts=tmp_path / "gone.txt")
    with pytest.raises(PrepareError, match="option speakers: 0 given; accepted: 1 or more"):
        data_prep.prepare("synthetic", None, tmp_path / "out", speakers=0)
