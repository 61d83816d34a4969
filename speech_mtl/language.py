"""Language model and hot words for the beam search: a scorer over the tokenizer's tokens.

A language model is of whole words. Words that it lacks can still be written, at the price of its <unk> and of their
letters. A hot word gains its boost letter by letter and loses it where the word turns out to be another one.

A CTC model has learnt how frequent letters are, and is surest of the frequent ones; a language model that says so once
more makes the rare ones too dear. So with a language model every token's probability is divided by a power of its share
in the model's own words, after the label priors of EESEN (Miao et al. 2015, arXiv 1507.08240) and the density ratio of
McDermott et al. (2019, arXiv 2002.11268).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from math import exp, isfinite, log
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from speech_mtl import beam, metrics
from speech_mtl.kenlm import DecodingError, load, vocabulary
from speech_mtl.ngram import END, Spelling
from speech_mtl.text import WORD_MARK, Tokenizer, normalize

if TYPE_CHECKING:
    from torch import Tensor

LN_10 = log(10)
FORBIDDEN, UNKNOWN = -50.0, -5.0
"""log10; KenLM gives a model without <unk> -100 for it, which would forbid every word that the model lacks, and here it
is -5. On AN4's development speakers, without their models' <unk>, -5 to -3 did alike, -7 less well."""
RANGES = {
    "beam": (1, 1000), "lm_weight": (0.0, 10.0), "word_score": (-20.0, 20.0), "unknown_score": (-100.0, 20.0),
    "prior_weight": (0.0, 2.0), "boost": (0.0, 50.0),
}  # fmt: skip
PRIOR_WEIGHT = 0.4
"""For a tokenizer of characters; with longer pieces, whose shares differ far more, it was not tried and is 0."""
LEAST_SHARE = 1e-3
"""A token's share is not taken for less."""
LANGUAGE_MODEL, HOT_WORDS = "language model", "hot words"


@dataclass(frozen=True)
class Decoding:
    """Settings of the beam search. Raises DecodingError where one is out of range.

    A text's score is ln p(text | sound) + lm_weight · ln p(words) + word_score · words + unknown_score · unknown words
    + boost · hot words, where with a language model every token's ln p gains -prior_weight · ln(its share), and an
    unknown word is as likely as <unk> and the letters that it is spelled with (`ngram.Spelling`) together. Weights and
    scores were chosen on the development sets of AN4, with 4-grams of all other speakers' texts, and of `synthetic`.
    """

    beam: int = 32
    """Prefixes kept after a frame."""
    lm: str | None = None
    """ARPA file or KenLM binary."""
    lm_weight: float = 0.5
    word_score: float = 1.5
    """Of every word, where there is a language model: more than 0 makes up for the words it makes dearer."""
    unknown_score: float = 0.0
    """Of every word that the language model lacks, beside its probability: 4 and more for a model that lacks many."""
    prior_weight: float | None = None
    """None: PRIOR_WEIGHT for a tokenizer of characters, 0 for one of longer pieces."""
    hot_words: tuple[str, ...] = ()
    """A phrase counts as its words."""
    boost: float = 5.0

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not (isfinite(value) and low <= value <= high):
                raise DecodingError(f"{name} {value:g}; expected {low:g} to {high:g}")


class LanguageModel:
    """ln p(word | the words before), for words in the tokenizer's writing. Raises DecodingError."""

    def __init__(self, path: str | Path, tokenizer: Tokenizer):
        self.path = Path(path)
        found, start = vocabulary(self.path)
        writable: dict[str, str] = {}
        for word in found:
            written = normalize(word, tokenizer.config)
            if written and " " not in written and not tokenizer.unknown(written):
                writable.setdefault(written, word)
                if word == written:  # a capitalised entry beside it may be of sentences' beginnings, or a name
                    writable[written] = word
        if not writable:
            examples = ", ".join(repr(word) for word in found[:5]) or "none"
            letters = " ".join(piece for piece in tokenizer.pieces if len(piece) == 1 and piece != WORD_MARK)
            raise DecodingError(
                f"{self.path}: none of the language model's {len(found)} words can be written by this model "
                f"(its words: {examples}; the model's characters: {letters})"
            )
        self.words = sorted(writable)
        self._index = {word: i for i, word in enumerate(writable)}
        self._unknown = len(writable)
        self._model = load(self.path, start, [*writable.values(), "<unk>"])
        self.spelling = Spelling(self.words)

    def start(self) -> Any:
        return self._model.start(False)

    def score(self, state: Any, word: str) -> tuple[Any, float]:
        """(the state after the word, ln p(word)); of a word that it lacks, ln p(<unk>)."""
        index = self._index.get(word, self._unknown)
        state, score = self._model.score(state, index)
        return state, LN_10 * (UNKNOWN if index == self._unknown and score < FORBIDDEN else score)

    def knows(self, word: str) -> bool:
        return word in self._index

    def end(self, state: Any) -> float:
        """ln p(the text ends here)."""
        return LN_10 * self._model.finish(state)[1]

    def shares(self, tokenizer: Tokenizer) -> list[float]:
        """Of each of the tokenizer's pieces, in the model's words by their own probabilities; 0 where none has it."""
        counts = [0.0] * len(tokenizer.pieces)
        for word, index in self._index.items():
            probability = exp(LN_10 * self._model.score(self._model.start(True), index)[1])
            for token in tokenizer.encode(word):
                counts[token] += probability
        return [count / sum(counts) for count in counts]

    def begins_a_word(self, letters: str) -> bool:
        """Whether a known word starts with these letters."""
        place = bisect_left(self.words, letters)
        return place < len(self.words) and self.words[place].startswith(letters)


class Context(NamedTuple):
    """A text so far, as far as words are concerned."""

    state: Any
    """The language model's, after the words that are complete."""
    gained: float
    """By the complete words."""
    word: str
    """The letters of the word that is being written."""
    spelled: float
    """Lost by these letters, should the language model lack the word."""
    ahead: float
    """Gained or lost by these letters, on account."""


class WordScorer:
    """Scores the words of a text as they become complete; `beam.Scorer`."""

    def __init__(self, pieces: list[str], decoding: Decoding, lm: LanguageModel | None, hot_words: Iterable[str]):
        self.pieces, self.decoding, self.lm = pieces, decoding, lm
        self.shares: dict[str, float] = {}
        """Of a hot word's beginnings: the share of the word that is written."""
        self.hot = set(hot_words)
        for word in self.hot:
            for n in range(1, len(word) + 1):
                self.shares[word[:n]] = max(n / len(word), self.shares.get(word[:n], 0.0))
        self.unknown = 0.0
        """What a word that the language model lacks costs, before it is known after which words it stands."""
        if lm:
            self.unknown = decoding.lm_weight * lm.score(lm.start(), "<unk>")[1] + decoding.unknown_score

    def start(self) -> Context:
        return Context(self.lm.start() if self.lm else None, 0.0, "", 0.0, 0.0)

    def extend(self, context: Context, token: int) -> Context:
        piece = self.pieces[token]
        if piece.startswith(WORD_MARK):
            piece = piece.removeprefix(WORD_MARK)
            context = Context(*self._complete(context), "", 0.0, 0.0)
        word, spelled = context.word, context.spelled
        for letter in piece:
            spelled += self._spelling(word, letter)
            word += letter
        return context._replace(word=word, spelled=spelled, ahead=self._ahead(word, spelled))

    def bonus(self, context: Context) -> float:
        return context.gained + context.ahead

    def final(self, context: Context) -> float:
        state, gained = self._complete(context)
        return gained + self.decoding.lm_weight * self.lm.end(state) if self.lm else gained

    def _spelling(self, word: str, letter: str) -> float:
        return self.decoding.lm_weight * self.lm.spelling.letter(word, letter) if self.lm else 0.0

    def _ahead(self, word: str, spelled: float) -> float:
        boost = self.decoding.boost * self.shares.get(word, 0.0)
        if self.lm and word and not self.lm.begins_a_word(word):
            boost += self.unknown + (0.0 if word in self.shares else spelled)  # a hot word is spelled by the user
        return boost

    def _complete(self, context: Context) -> tuple[Any, float]:
        """(language model's state, what is gained) once the word is complete."""
        state, gained, word, spelled, _ = context
        if not word:
            return state, gained
        if word in self.hot:
            gained += self.decoding.boost
        if self.lm:
            state, score = self.lm.score(state, word)
            gained += self.decoding.lm_weight * score + self.decoding.word_score
            if not self.lm.knows(word):
                spelled = 0.0 if word in self.hot else spelled + self._spelling(word, END)
                gained += self.decoding.unknown_score + spelled
        return state, gained


class Decoder:
    """The beam search with its language model and hot words, for one tokenizer. Raises DecodingError."""

    def __init__(self, decoding: Decoding, tokenizer: Tokenizer):
        if decoding.prior_weight is None:
            is_used = decoding.lm is not None and tokenizer.config.units == "characters"
            decoding = replace(decoding, prior_weight=PRIOR_WEIGHT if is_used else 0.0)
        self.decoding, self.tokenizer = decoding, tokenizer
        self.hot_words = checked_hot_words(decoding.hot_words, tokenizer)
        self.lm = LanguageModel(decoding.lm, tokenizer) if decoding.lm is not None else None
        self.gains_V = self._gains() if self.lm else []
        """What each token gains by the language model's use, the blank (the last one) nothing."""
        used = {LANGUAGE_MODEL: self.lm is not None, HOT_WORDS: bool(self.hot_words)}
        self.helps = [name for name, is_used in used.items() if is_used]

    def __call__(self, log_probs_SV: Tensor) -> tuple[list[int], dict[str, list[int]]]:
        """(the text's tokens, the tokens found without each help by its name), so that its effect can be told."""
        without = {
            name: self._search(log_probs_SV, [other for other in self.helps if other != name]) for name in self.helps
        }
        return self._search(log_probs_SV, self.helps), without

    def _gains(self) -> list[float]:
        assert self.lm is not None
        if not (weight := self.decoding.prior_weight):
            return [0.0] * (len(self.tokenizer) + 1)
        shares = self.lm.shares(self.tokenizer)
        return [*(-weight * log(max(share, LEAST_SHARE)) if share else 0.0 for share in shares), 0.0]

    def _search(self, log_probs_SV: Tensor, helps: list[str]) -> list[int]:
        scorer: beam.Scorer = beam.Nothing()
        if LANGUAGE_MODEL in helps:
            log_probs_SV = log_probs_SV + log_probs_SV.new_tensor(self.gains_V)
        if helps:
            lm = self.lm if LANGUAGE_MODEL in helps else None
            hot_words = self.hot_words if HOT_WORDS in helps else []
            scorer = WordScorer(self.tokenizer.pieces, self.decoding, lm, hot_words)
        return beam.search(log_probs_SV.tolist(), scorer, self.decoding.beam)[0]

    def describe(self) -> dict[str, Any]:
        """The settings, for a file that records them."""
        return asdict(self.decoding)

    def effects(self, texts: Iterable[tuple[str, dict[str, str]]]) -> list[str]:
        """A sentence on what each help changed, from (text, texts without each help) of every stretch of speech."""
        texts = list(texts)
        sentences = []
        for name in self.helps:
            title = f"{name} {self.lm.path.name}" if self.lm and name == LANGUAGE_MODEL else name
            counts = [metrics.word_errors(without[name], text) for text, without in texts]
            changed = sum(map(metrics.word_error_count, counts))
            words = sum(len(text.split()) for text, _ in texts)
            effect = f"changed {changed} of {words} words" if changed else "changed nothing"
            sentences.append(f"{title}: {effect}")
            if name == HOT_WORDS:
                written = [word for text, _ in texts for word in text.split()]
                sentences[-1] += "; " + ", ".join(f"{word} {written.count(word)} ×" for word in self.hot_words)
        return sentences


def checked_hot_words(hot_words: Iterable[str], tokenizer: Tokenizer) -> list[str]:
    """The words in the tokenizer's writing, each once. Raises DecodingError."""
    words: dict[str, None] = {}
    for given in hot_words:
        written = normalize(given, tokenizer.config)
        if not written:
            raise DecodingError(f"hot word {given!r} has no letters")
        if unknown := tokenizer.unknown(written):
            letters = ", ".join(repr(char) for char in sorted(unknown))
            raise DecodingError(f"hot word {given!r} has characters that this model cannot write: {letters}")
        words |= dict.fromkeys(written.split())
    return list(words)
