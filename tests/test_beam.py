"""The beam search against all paths, and its scorer: language model, words it lacks, hot words."""

from __future__ import annotations

import itertools
import os
from math import exp, inf, log
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import needs_kenlm

from speech_mtl import beam
from speech_mtl.config import TextConfig
from speech_mtl.language import (
    HOT_WORDS,
    LANGUAGE_MODEL,
    PRIOR_WEIGHT,
    Decoder,
    Decoding,
    DecodingError,
    LanguageModel,
    WordScorer,
)
from speech_mtl.ngram import END, to_arpa
from speech_mtl.text import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a b c"], TextConfig())  # pieces a b c ▁


def random_rows(frames: int, vocabulary: int, seed: int) -> list[list[float]]:
    logits = 1.5 * np.random.default_rng(seed).standard_normal((frames, vocabulary))
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).tolist()


def all_texts(rows: list[list[float]]) -> dict[tuple[int, ...], float]:
    """Every text's probability, summed over its paths one by one."""
    blank = len(rows[0]) - 1
    texts: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(blank + 1), repeat=len(rows)):
        merged = tuple(token for token, _ in itertools.groupby(path) if token != blank)
        texts[merged] = texts.get(merged, 0.0) + exp(sum(row[token] for row, token in zip(rows, path, strict=True)))
    return texts


class Likes:
    """A scorer with a made-up opinion on the last token and the length, and on how a text ends."""

    def start(self) -> tuple[int, ...]:
        return ()

    def extend(self, context: tuple[int, ...], token: int) -> tuple[int, ...]:
        return (*context, token)

    def bonus(self, context: tuple[int, ...]) -> float:
        return sum(0.7 if token == 1 else -0.4 for token in context)

    def final(self, context: tuple[int, ...]) -> float:
        return self.bonus(context) + (1.5 if context[-1:] == (0,) else 0.0)


@pytest.mark.parametrize("scorer", [beam.Nothing(), Likes()])
@pytest.mark.parametrize("seed", range(8))
def test_the_best_text_is_that_of_all_paths(scorer: beam.Scorer, seed: int) -> None:
    rows = random_rows(frames=6, vocabulary=4, seed=seed)
    totals = {}
    for text, probability in all_texts(rows).items():
        context = scorer.start()
        for token in text:
            context = scorer.extend(context, token)
        totals[text] = log(probability) + scorer.final(context)
    best = max(totals, key=totals.__getitem__)
    tokens, score = beam.search(rows, scorer, width=10_000, token_floor=-inf, prefix_floor=-inf)
    assert tuple(tokens) == best and score == pytest.approx(totals[best], abs=1e-9)


@needs_kenlm
def test_a_program_without_stderr_reads_a_language_model(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "lm.arpa").write_text(to_arpa(["ab"], order=2))
    kept = os.dup(2)
    os.close(2)
    try:
        assert LanguageModel(tmp_path / "lm.arpa", tokenizer).knows("ab")
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@needs_kenlm
def test_words_of_the_language_model_worked_by_hand(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Every text's score: the sound, and the model's logarithms of its words and its end."""
    (tmp_path / "lm.arpa").write_text(to_arpa(["ab", "ab ab c"], order=2))
    decoding = Decoding(lm=str(tmp_path / "lm.arpa"), lm_weight=0.8, word_score=0.3, unknown_score=-1.5)
    lm = LanguageModel(tmp_path / "lm.arpa", tokenizer)
    scorer = WordScorer(tokenizer.pieces, decoding, lm, [])
    state = lm.start()
    state, ab = lm.score(state, "ab")
    state, ba = lm.score(state, "ba")
    letters = [lm.spelling.letter(begun, letter) for begun, letter in (("", "b"), ("b", "a"), ("ba", END))]
    expected = 0.8 * (ab + ba + sum(letters) + lm.end(state)) + 2 * 0.3 - 1.5
    context = scorer.start()
    for token in tokenizer.encode("ab ba"):
        context = scorer.extend(context, token)
    assert scorer.final(context) == pytest.approx(expected)
    assert lm.knows("ab") and not lm.knows("ba") and lm.begins_a_word("a") and not lm.begins_a_word("b")
    # what the search goes by: 'b' begins no known word, so its price is on account already
    begun = scorer.extend(scorer.start(), tokenizer.pieces.index("▁"))
    assert scorer.bonus(scorer.extend(begun, tokenizer.pieces.index("a"))) == 0
    expected = scorer.unknown + 0.8 * letters[0]
    assert scorer.bonus(scorer.extend(begun, tokenizer.pieces.index("b"))) == pytest.approx(expected)


@needs_kenlm
def test_a_model_without_unk_still_lets_unknown_words_be_written(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """KenLM would give them 10^-100; an <unk> that the model has counts as it is."""
    content = to_arpa(["ab"], order=2)
    [line] = [line for line in content.splitlines() if "<unk>" in line]
    for value, expected in ((line.split("\t")[0], float(line.split("\t")[0])), ("-100", -5.0), ("-8.0", -8.0)):
        (tmp_path / "lm.arpa").write_text(content.replace(line, f"{value}\t<unk>"))
        lm = LanguageModel(tmp_path / "lm.arpa", tokenizer)
        back_off = float(next(row for row in content.splitlines() if "\t<s>\t" in row).split("\t")[2])
        unseen = -5.0 if value == "-100" else expected + back_off
        assert lm.score(lm.start(), "cc")[1] == pytest.approx(log(10) * unseen, abs=1e-4)
    [line] = [line for line in content.splitlines() if "\t<s> ab" in line]
    (tmp_path / "lm.arpa").write_text(content.replace(line, "-99.0\t<s> ab"))  # a word that the model rules out
    lm = LanguageModel(tmp_path / "lm.arpa", tokenizer)
    assert lm.score(lm.start(), "ab")[1] == pytest.approx(log(10) * -99)


@needs_kenlm
def test_an_unknown_word_costs_more_the_longer_it_is(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Else two words that the model lacks would be glued together, to pay for one."""
    (tmp_path / "lm.arpa").write_text(to_arpa(["ab"], order=2))
    lm = LanguageModel(tmp_path / "lm.arpa", tokenizer)
    scorer = WordScorer(tokenizer.pieces, Decoding(lm="lm.arpa"), lm, [])
    context, seen = scorer.start(), []
    for token in tokenizer.encode("cbccac"):
        context = scorer.extend(context, token)
        seen.append(scorer.bonus(context))
    steps = np.diff(seen)[1:]  # the first letter pays for <unk>, too
    assert steps.max() < -0.5 and scorer.unknown < 0


@needs_kenlm
def test_a_hot_word_pays_for_no_letters(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "lm.arpa").write_text(to_arpa(["ab"], order=2))
    lm = LanguageModel(tmp_path / "lm.arpa", tokenizer)
    finals = {}
    for hot in ([], ["cc"]):
        scorer = WordScorer(tokenizer.pieces, Decoding(lm="lm.arpa", boost=0.0), lm, hot)
        context = scorer.start()
        for token in tokenizer.encode("cc"):
            context = scorer.extend(context, token)
        finals[bool(hot)] = scorer.bonus(context), scorer.final(context)
    spelled = 0.5 * sum(lm.spelling.letter(begun, letter) for begun, letter in (("", "c"), ("c", "c")))
    assert finals[True][0] - finals[False][0] == pytest.approx(-spelled)
    assert finals[True][1] - finals[False][1] == pytest.approx(-spelled - 0.5 * lm.spelling.letter("cc", END))


def test_a_hot_word_gains_letter_by_letter_and_loses_it_again(tokenizer: Tokenizer) -> None:
    scorer = WordScorer(tokenizer.pieces, Decoding(boost=6.0), None, ["abc", "ab"])
    context, seen = scorer.start(), []
    for token in tokenizer.encode("abcc abc"):
        context = scorer.extend(context, token)
        seen.append(round(scorer.bonus(context), 6))
    assert seen == [0, 3, 6, 6, 0, 0, 3, 6, 6]  # ▁ a ab abc abcc ▁ a ab abc: 'a' is half of 'ab', 'ab' all of it
    assert scorer.final(context) == 6


def confusable(tokenizer: Tokenizer) -> torch.Tensor:
    """Sound of 'ab' in which the a could be a c, somewhat more likely: the best path writes 'cb'."""
    probabilities_SV = torch.full((4, 5), 0.01)
    for frame, heard in enumerate([{"▁": 0.9}, {"c": 0.6, "a": 0.35}, {"b": 0.9}, {"": 0.9}]):
        for piece, probability in heard.items():
            probabilities_SV[frame, tokenizer.pieces.index(piece) if piece else 4] = probability
    return (probabilities_SV / probabilities_SV.sum(dim=1, keepdim=True)).log()


@needs_kenlm
def test_each_help_changes_the_text_and_says_so(tokenizer: Tokenizer, tmp_path: Path) -> None:
    sound_SV = confusable(tokenizer)
    (tmp_path / "lm.arpa").write_text(to_arpa(["ab"], order=2))
    alone = Decoder(Decoding(), tokenizer)
    assert tokenizer.decode(alone(sound_SV)[0]) == "cb" and alone(sound_SV)[1] == {} and alone.effects([]) == []
    for decoding, name in (
        (Decoding(lm=str(tmp_path / "lm.arpa")), LANGUAGE_MODEL),
        (Decoding(hot_words=("AB!",)), HOT_WORDS),
    ):
        decoder = Decoder(decoding, tokenizer)
        ids, without = decoder(sound_SV)
        assert tokenizer.decode(ids) == "ab" and tokenizer.decode(without[name]) == "cb"
        assert "changed 1 of 1 words" in decoder.effects([("ab", {name: "cb"})])[0]
        assert "changed nothing" in decoder.effects([("ab", {name: "ab"}), ("", {name: ""})])[0]
    both = Decoder(Decoding(lm=str(tmp_path / "lm.arpa"), hot_words=("ab",)), tokenizer)
    ids, without = both(sound_SV)
    assert {name: tokenizer.decode(other) for name, other in without.items()} == {LANGUAGE_MODEL: "ab", HOT_WORDS: "ab"}
    weak = Decoder(Decoding(hot_words=("ab", "c"), boost=0.1), tokenizer)
    assert tokenizer.decode(weak(sound_SV)[0]) == "cb"
    assert weak.effects([("cb", {HOT_WORDS: "cb"})]) == ["hot words: changed nothing; ab 0 ×, c 0 ×"]


@needs_kenlm
def test_a_word_the_language_model_lacks_can_still_be_written(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "lm.arpa").write_text(to_arpa(["ab"], order=2))
    sound_SV = torch.full((4, 5), 1e-6)
    for frame, piece in enumerate(["▁", "c", "a", "c"]):
        sound_SV[frame, tokenizer.pieces.index(piece)] = 1.0
    ids, _ = Decoder(Decoding(lm=str(tmp_path / "lm.arpa")), tokenizer)(sound_SV.log())
    assert tokenizer.decode(ids) == "cac"


@needs_kenlm
def test_a_letters_price_is_its_share_of_the_language_models_words(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Worked by hand from the unigrams' column: 'ab' has ▁, a and b, 'c' has ▁ and c."""
    text = to_arpa(["ab", "ab ab c"], order=2)
    (tmp_path / "lm.arpa").write_text(text)
    columns = [line.split("\t") for line in text.split("\\2-grams:")[0].splitlines() if "\t" in line]
    p = {word: 10 ** float(value) for value, word, *_ in columns}
    total = 3 * p["ab"] + 2 * p["c"]
    expected = {"▁": (p["ab"] + p["c"]) / total, "a": p["ab"] / total, "b": p["ab"] / total, "c": p["c"] / total}
    shares = LanguageModel(tmp_path / "lm.arpa", tokenizer).shares(tokenizer)
    for piece, share in zip(tokenizer.pieces, shares, strict=True):
        assert share == pytest.approx(expected.get(piece, 0.0), abs=1e-6)
    decoder = Decoder(Decoding(lm=str(tmp_path / "lm.arpa"), prior_weight=0.5), tokenizer)
    gains = dict(zip([*tokenizer.pieces, "blank"], decoder.gains_V, strict=True))
    assert gains["c"] == pytest.approx(-0.5 * log(expected["c"]), abs=1e-5) and gains["blank"] == 0
    assert gains["c"] > gains["a"] > gains["▁"] > 0
    assert [Decoder(Decoding(lm=str(tmp_path / "lm.arpa"), prior_weight=0.0), tokenizer).gains_V] == [[0.0] * 5]
    assert Decoder(Decoding(lm=str(tmp_path / "lm.arpa")), tokenizer).describe()["prior_weight"] == PRIOR_WEIGHT
    assert Decoder(Decoding(hot_words=("ab",)), tokenizer).describe()["prior_weight"] == 0


@needs_kenlm
def test_between_words_alike_the_rarer_letters_are_believed(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "lm.arpa").write_text(to_arpa(["a a a a a b", "b c"], order=2))
    sound_SV = torch.full((3, 5), 1e-6)
    for frame, heard in enumerate([{"▁": 1.0}, {"a": 0.5, "c": 0.45}, {"": 1.0}]):
        for piece, probability in heard.items():
            sound_SV[frame, tokenizer.pieces.index(piece) if piece else 4] = probability
    for weight, text in ((0.0, "a"), (1.0, "c")):
        decoding = Decoding(lm=str(tmp_path / "lm.arpa"), lm_weight=0.0, prior_weight=weight)
        assert tokenizer.decode(Decoder(decoding, tokenizer)(sound_SV.log())[0]) == text


def test_a_narrow_beam_keeps_the_tree_small(tokenizer: Tokenizer) -> None:
    rows = random_rows(frames=300, vocabulary=5, seed=1)
    tokens, score = beam.search(rows, beam.Nothing(), width=4)
    wide, better = beam.search(rows, beam.Nothing(), width=64)
    assert score <= better + 1e-9 and 50 < len(tokens) < 300


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beam": 0}, "beam 0; expected 1 to 1000"), ({"lm_weight": -0.1}, "lm_weight -0.1; expected 0 to 10"),
        ({"lm_weight": float("nan")}, "lm_weight nan"), ({"boost": 51.0}, "boost 51; expected 0 to 50"),
        ({"unknown_score": 21.0}, "unknown_score 21; expected -100 to 20"), ({"word_score": inf}, "word_score inf"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(DecodingError, match=message):
        Decoding(**settings)


@needs_kenlm
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (to_arpa(["мир"], 2), "none of the language model's 1 words can be written.*'мир'; the model's characters: a"),
        ("hello\n", "neither an ARPA file nor a KenLM binary: it begins with 'hello' and has no line"),
        ("", "neither an ARPA file nor a KenLM binary: it begins with ''"),
        (to_arpa(["ab"], 2).replace("\t", " "), "KenLM cannot read it"),
        ("mmap lm http://kheafield.com/code format version 5\n\0 and no more", "a KenLM binary without its words"),
        ("mmap lm http://kheafield.com/code format version 5\n\0 <unk>\0ab\0", "KenLM cannot read it"),
    ],
)  # fmt: skip
def test_files_that_are_no_language_model_are_refused(
    tokenizer: Tokenizer, tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "lm.arpa").write_text(content)
    with pytest.raises(DecodingError, match=f"lm.arpa: {message}"):
        Decoder(Decoding(lm=str(tmp_path / "lm.arpa")), tokenizer)


def test_a_missing_file_and_hot_words_in_other_letters_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DecodingError, match="none.arpa: No such file or directory; expected an ARPA file"):
        Decoder(Decoding(lm=str(tmp_path / "none.arpa")), tokenizer)
    with pytest.raises(DecodingError, match="hot word 'zab' has characters that this model cannot write: 'z'"):
        Decoder(Decoding(hot_words=("ab", "zab")), tokenizer)
    with pytest.raises(DecodingError, match="hot word '?!' has no letters".replace("?", r"\?")):
        Decoder(Decoding(hot_words=("?!",)), tokenizer)
    assert Decoder(Decoding(hot_words=("A b", "ab", "b")), tokenizer).hot_words == ["a", "b", "ab"]


@needs_kenlm
def test_a_language_model_in_capitals_serves_a_tokenizer_of_small_letters(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "lm.arpa").write_text(to_arpa(["AB", "C"], order=2))
    lm = LanguageModel(tmp_path / "lm.arpa", tokenizer)
    assert lm.words == ["ab", "c"] and lm.score(lm.start(), "ab")[1] > lm.score(lm.start(), "b")[1]


@needs_kenlm
def test_the_entry_that_is_spelt_as_it_is_written_goes_before_others(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "lm.arpa").write_text(to_arpa(["AB c", "ab", "ab c", "ab ab"], order=2))  # AB is the first unigram
    (tmp_path / "plain.arpa").write_text(to_arpa(["b c", "ab", "ab c", "ab ab"], order=2))
    for words in (["ab"], ["c", "ab"]):
        scores = []
        for lm in (LanguageModel(tmp_path / name, tokenizer) for name in ("lm.arpa", "plain.arpa")):
            state = lm.start()
            for word in words:
                state, score = lm.score(state, word)
            scores.append(score)
        assert scores[0] == pytest.approx(scores[1])


@needs_kenlm
def test_remarks_before_an_arpa_file_change_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The toolkits of the 1990s put the formulas of the probabilities there; an editor may put a mark of UTF-8."""
    content = to_arpa(["ab", "ab ab c"], order=2)
    (tmp_path / "lm.arpa").write_text(content)
    (tmp_path / "old.arpa").write_text("####\nThis is a 2-gram model\n\n  \\data\\ begins it\n" + content)
    (tmp_path / "marked.arpa").write_text(content, encoding="utf-8-sig")
    plain, *others = (LanguageModel(tmp_path / name, tokenizer) for name in ("lm.arpa", "old.arpa", "marked.arpa"))
    for other in others:
        assert other.words == plain.words
        assert other.score(other.start(), "ab")[1] == plain.score(plain.start(), "ab")[1]


@needs_kenlm
def test_kenlm_binary_gives_the_scores_of_its_arpa(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "lm.arpa").write_text(TINY_ARPA)
    text, binary = LanguageModel(tmp_path / "lm.arpa", tokenizer), LanguageModel(TINY_BINARY, tokenizer)
    assert text.words == binary.words == ["ab", "c"]
    for words in (["ab", "c"], ["c", "ab", "b"]):
        states = [text.start(), binary.start()]
        for word in words:
            (states[0], a), (states[1], b) = text.score(states[0], word), binary.score(states[1], word)
            assert a == pytest.approx(b)
        assert text.end(states[0]) == pytest.approx(binary.end(states[1]))


TINY_ARPA = """\\data\\
ngram 1=5
ngram 2=5

\\1-grams:
-99.0000000\t<s>\t-0.4771213
-1.0791812\t<unk>
-0.3802112\tab\t-0.3010300
-0.5149098\t</s>
-0.7112045\tc\t-0.3010300

\\2-grams:
-0.0939045\t<s> ab
-0.4956047\tab </s>
-0.4259687\tab ab
-0.5785789\tab c
-0.1852346\tc </s>

\\end\\
"""
TINY_BINARY = Path(__file__).parent / "tiny.binary"
"""What KenLM's build_binary made of TINY_ARPA."""
