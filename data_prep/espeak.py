"""Speech from text with known word times, by espeak-ng through ctypes: ``synthesize(text, voice)``.

The library and its data come in the wheel espeakng-loader (espeak-ng 1.52, GPL-3.0, https://github.com/espeak-ng);
nothing has to be installed on the system. A ``Voice`` is an accent, a voice variant and four numbers, so any number
of distinct speakers can be made. Equal arguments give equal samples, bit for bit.

Text is plain words; punctuation makes pauses. A single letter is spoken as the letter's name. The exception is 'a',
which is an article in running text: it is a letter where it stands alone, in a row of letters, or as 'A'.
"""

from __future__ import annotations

import _ctypes
import ctypes
import itertools
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import NamedTuple

import numpy as np
import soxr

from data_prep.common import PrepareError

SAMPLE_RATE = 16_000
ESPEAK_RATE = 22_050  # what espeak's formant synthesiser always produces
ACCENTS = {  # our name -> espeak's file of the accent; its British English has no voice of the name en-gb
    "en-us": "en-us",
    "en-gb": "gmw/en",
    "en-gb-scotland": "en-gb-scotland",
    "en-gb-rp": "en-gb-x-rp",
    "en-gb-midlands": "en-gb-x-gbcwmd",
    "en-gb-lancaster": "en-gb-x-gbclan",
    "en-us-nyc": "en-us-nyc",
    "en-caribbean": "en-029",
}
# The variants that sound like people: espeak's whispers, robots and caricatures are not among them. Nor are those with
# breath in espeak's formant synthesiser (f2, f3, f5, Alicia, sandro, victor): their samples differ between processes.
FEMALE_VARIANTS = tuple("f1 f4 Andrea Annie anika aunty belinda grandma linda steph steph2 shelby".split())
MALE_VARIANTS = tuple(
    "m1 m2 m3 m4 m5 m6 m7 m8 Alex Andy Denis Diogo Gene Gene2 Hugo Jacky Lee Marco Mario Michael Mike Nguyen Reed adam "
    "antonio benjamin caleb david ed edward2 grandpa gustave john max michel miguel norbert pablo paul pedro quincy "
    "rob robert travis".split()
)
VARIANTS = (*FEMALE_VARIANTS, *MALE_VARIANTS)

_RETRIEVE_AUDIO = 2
_PHONEME_EVENTS_NO_EXIT = 0x8001
_UTF8_WITH_PHONEMES = 0x101
_WORD, _PHONEME = 1, 7
_RATE, _PITCH, _RANGE, _WORD_GAP = 1, 3, 4, 7
_LETTER_A = "[['eI]]"
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Voice:
    """One synthetic speaker."""

    accent: str = "en-us"
    """A key of ACCENTS."""
    variant: str = "m3"
    """The name of one of espeak's voice variants, e.g. of VARIANTS."""
    pitch: int = 50
    """0-99; 50 is the variant's own."""
    pitch_range: int = 50
    """0-99; 0 is monotone."""
    rate_wpm: int = 165
    """Words a minute in running text."""
    tract: float = 1.0
    """Factor on all formants: above 1 a shorter vocal tract. The speaking rate stays, the pitch moves along."""

    def __post_init__(self) -> None:
        if self.accent not in ACCENTS:
            raise ValueError(f"accent is {self.accent!r}; accepted: {', '.join(ACCENTS)}")
        if not 0.7 <= self.tract <= 1.4:
            raise ValueError(f"tract is {self.tract}; accepted: 0.7 to 1.4")

    @property
    def gender(self) -> str:
        return "female" if self.variant in FEMALE_VARIANTS else "male"


class WordTime(NamedTuple):
    word: str
    start_s: float
    duration_s: float


class Synthesis(NamedTuple):
    samples: np.ndarray
    sample_rate: int
    words: list[WordTime]


def synthesize(text: str, voice: Voice, *, word_gap_s: float = 0.0) -> Synthesis:
    """Speak ``text``: float32 samples in [-1, 1], their rate, and when each word is said.

    ``word_gap_s`` is a pause after every word, as in dictation. espeak joins some pairs ('of the') into one event: the
    second word's start is then placed by the number of letters.
    """
    spans = _spoken(text)
    if not spans:
        raise ValueError(f"text is {text!r}; expected at least one word")
    spoken = " ".join(span.spoken for span in spans)
    with _LOCK, _library() as library:
        events, audio = _speak(library, spoken, voice, word_gap_s)
    samples = soxr.resample(audio, ESPEAK_RATE * voice.tract, SAMPLE_RATE)
    end_s = len(samples) / SAMPLE_RATE
    words = _word_times(spans, events, end_s, 1 / (ESPEAK_RATE * voice.tract))
    return Synthesis(np.clip(samples, -1.0, 1.0), SAMPLE_RATE, words)


def phonemes(text: str, accent: str = "en-us") -> str:
    """What espeak would say, in its own phoneme letters: to check a pronunciation."""
    spoken = " ".join(span.spoken for span in _spoken(text))
    with _LOCK, _library() as library:
        _set_voice(library, Voice(accent=accent), 0.0)
        said = [event.phoneme for event in _synth(library, spoken)[0] if event.kind == _PHONEME]
    return " ".join(phoneme for phoneme in said if phoneme and not phoneme.startswith("_"))


@dataclass
class _Span:
    """A word of the transcript and where it stands in the text that espeak is given."""

    word: str
    spoken: str
    start: int
    end: int


def _spoken(text: str) -> list[_Span]:
    tokens = [token for token in text.split() if re.search(r"\w", token)]
    words = [re.sub(r"^\W+|\W+$", "", token) for token in tokens]
    letters = _letters_a(words)
    spans, position = [], 0
    for index, (token, word) in enumerate(zip(tokens, words, strict=True)):
        said = token.replace(word, _LETTER_A, 1) if index in letters else token.lower()
        spans.append(_Span(word.lower(), said, position, position + len(said)))
        position += len(said) + 1
    return spans


def _letters_a(words: list[str]) -> set[int]:
    """Which words are the letter a: every 'A', and an 'a' alone or in a run of single letters.

    'i' and 'a' by themselves make no run: they are words, too ("am i a driver").
    """
    found, index = {place for place, word in enumerate(words) if word == "A"}, 0
    for is_single, group in itertools.groupby(words, key=lambda word: len(word) == 1):
        run = list(group)
        if is_single and (len(words) == 1 or set(run) - {"a", "i", "I"}):
            found |= {index + place for place, word in enumerate(run) if word == "a"}
        index += len(run)
    return found


def _word_times(spans: list[_Span], events: list[_Event], end_s: float, s_per_sample: float) -> list[WordTime]:
    starts: list[float | None] = [None] * len(spans)
    for event in events:
        if event.kind != _WORD:
            continue
        for index, span in enumerate(spans):
            if span.start <= event.position - 1 < span.end and starts[index] is None:
                starts[index] = event.sample * s_per_sample
    filled = _fill(starts, spans, end_s)
    # A pause phoneme is an end of speech: a word ends there if it lies before the next word's start.
    pauses = [e.sample * s_per_sample for e in events if e.kind == _PHONEME and e.phoneme.startswith("_")]
    times = []
    for index, span in enumerate(spans):
        start = filled[index]
        limit = filled[index + 1] if index + 1 < len(spans) else end_s
        end = min([pause for pause in pauses if start < pause < limit], default=limit)
        times.append(WordTime(span.word, round(start, 4), round(end - start, 4)))
    return times


def _fill(starts: list[float | None], spans: list[_Span], end_s: float) -> list[float]:
    """Give words without an event their share, by letters, of the time until the next word that has one."""
    known = {0: 0.0, **{index: start for index, start in enumerate(starts) if start is not None}}
    filled = [0.0] * len(starts)
    for here, following in itertools.pairwise([*known, len(starts)]):
        start, stop = known[here], known.get(following, end_s)
        letters = np.cumsum([0] + [len(span.word) for span in spans[here:following]])
        for offset in range(following - here):
            filled[here + offset] = start + (stop - start) * letters[offset] / letters[-1]
    return filled


@dataclass
class _Event:
    kind: int
    position: int  # of the character in the text, from 1
    sample: int
    phoneme: str


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _RawEvent(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_RawEvent))


@contextmanager
def _library() -> Iterator[ctypes.CDLL]:
    """espeak-ng, freshly loaded (about 5 ms).

    Its oscillators keep their phase between calls and nothing in its interface resets them, so the same call gives
    other samples the second time. Unloading the library does reset them; so it is a copy that is loaded, which nothing
    else in the process holds (phonemizer, for one, does).
    """
    library = ctypes.CDLL(str(_own_copy()[1]))
    data_path = _loader().get_data_path().encode()
    rate = library.espeak_Initialize(_RETRIEVE_AUDIO, 0, data_path, _PHONEME_EVENTS_NO_EXIT)
    if rate != ESPEAK_RATE:
        raise RuntimeError(f"espeak-ng could not be started (it answers {rate}, expected {ESPEAK_RATE})")
    _seed_c_library()
    try:
        yield library
    finally:
        library.espeak_Terminate()
        unload = getattr(_ctypes, "dlclose", None) or getattr(_ctypes, "FreeLibrary", None)
        if unload is not None:
            unload(library._handle)


@cache
def _own_copy() -> tuple[TemporaryDirectory[str], Path]:
    """The library in a folder that lasts as long as the process."""
    folder = TemporaryDirectory(prefix="espeak-")
    return folder, Path(shutil.copy(_loader().get_library_path(), folder.name))


def _loader() -> ModuleType:
    try:
        import espeakng_loader
    except ImportError as error:
        raise PrepareError("espeakng-loader is not installed; pip install espeakng-loader") from error
    return espeakng_loader


def _seed_c_library() -> None:
    # The Klatt variants take their noise from the C library's rand().
    try:
        ctypes.CDLL(None).srand(1)
    except (TypeError, AttributeError, OSError):  # Windows has no handle of the process itself
        ctypes.cdll.msvcrt.srand(1)


def _speak(library: ctypes.CDLL, text: str, voice: Voice, word_gap_s: float) -> tuple[list[_Event], np.ndarray]:
    _set_voice(library, voice, word_gap_s)
    events, audio = _synth(library, text)
    if audio.size == 0:
        raise RuntimeError(f"espeak-ng gave no sound for {text!r}")
    return events, audio


def _set_voice(library: ctypes.CDLL, voice: Voice, word_gap_s: float) -> None:
    # espeak takes an unknown variant for none and says nothing.
    known = Path(_loader().get_data_path()) / "voices" / "!v" / voice.variant
    name = f"{ACCENTS[voice.accent]}+{voice.variant}"
    if not known.is_file() or library.espeak_SetVoiceByName(name.encode()) != 0:
        raise RuntimeError(f"espeak-ng has no voice {name!r}; accepted variants: {', '.join(VARIANTS)}")
    # Played faster by the tract factor afterwards, so spoken slower here.
    parameters = {
        _RATE: round(voice.rate_wpm / voice.tract),
        _PITCH: voice.pitch,
        _RANGE: voice.pitch_range,
        _WORD_GAP: round(100 * word_gap_s * voice.tract),
    }
    for parameter, value in parameters.items():
        library.espeak_SetParameter(parameter, value, 0)


def _synth(library: ctypes.CDLL, text: str) -> tuple[list[_Event], np.ndarray]:
    chunks: list[np.ndarray] = []
    found: list[_Event] = []

    def receive(samples: ctypes._Pointer, count: int, events: ctypes._Pointer) -> int:
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != 0:
            raw = events[index]
            phoneme = raw.id.string.decode("utf-8", "replace") if raw.type == _PHONEME else ""
            found.append(_Event(raw.type, raw.text_position, raw.sample, phoneme))
            index += 1
        return 0

    callback = _Callback(receive)  # a name, so that it lives until the last call
    library.espeak_SetSynthCallback(callback)
    data = text.encode()
    library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8_WITH_PHONEMES, None, None)
    library.espeak_Synchronize()
    audio = np.concatenate(chunks) if chunks else np.zeros(0, np.int16)
    return found, audio.astype(np.float32) / 32768
