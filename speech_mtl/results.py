"""What a recogniser answers: who said what in a recording, whose voice it is, whether two recordings hold one voice."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Word:
    """Times in seconds from the start of the recording; `confidence` 0 to 1."""

    text: str
    start_s: float
    end_s: float
    confidence: float
    speaker: str | None
    speaker_probability: float | None = None
    """That this voice said it, given the recording's voices; None without a speaker task, and until all is heard."""


@dataclass(frozen=True)
class Label:
    """A classify task's answer."""

    label: str
    probability: float


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording, in seconds from its start."""

    start_s: float
    end_s: float
    text: str
    words: list[Word]
    speaker: str | None
    """A name, 'unknown 1', 'unknown 2', ..., or None where the model has no speaker task."""
    score: float | None
    """Cosine of the speaker's voice, from all of the recording, with the nearest enrolled one; None where there is none
    to compare with."""
    best_name: str | None
    """The nearest enrolled speaker, also where the score is below the threshold or another voice has the name."""
    labels: dict[str, Label]
    """The classify tasks' answers by task name."""
    threshold: float | None = None
    """From which on the score gives the voice its name, unless another voice of the recording is nearer to it; it
    depends on how long the voice was heard."""
    probability: float | None = None
    """That the voice is best_name's, if it is as likely as not to be enrolled; None where that is not calibrated."""


@dataclass(frozen=True)
class Voice:
    """One of a recording's voices, by the name its segments carry."""

    speaker: str
    speech_s: float
    score: float | None
    best_name: str | None
    embedding: list[float]
    """Of length 1; with it `speech-mtl enroll --from` gives a voice its name."""
    threshold: float | None = None
    probability: float | None = None
    """As a segment has them."""


@dataclass(frozen=True)
class Result:
    audio: str
    duration_s: float
    calibration: str
    """Where the thresholds come from."""
    segments: list[Segment]
    notes: list[str] = field(default_factory=list)
    """What a person should know: clipped, soft, silent, no words."""
    speakers: list[Voice] = field(default_factory=list)
    fingerprint: str = ""
    """The model's; embeddings of two models do not compare."""
    damage: str = ""
    """Why the recording could not be read to its end, and where it breaks off; what comes before is in this result."""

    @property
    def text(self) -> str:
        return " ".join(segment.text for segment in self.segments if segment.text)

    @classmethod
    def from_json(cls, text: str) -> Result:
        """The result that `formats.format_result` wrote as json. Raises ValueError for another text."""
        from pydantic import TypeAdapter, ValidationError

        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the text"
            raise ValueError(f"{place}: {first['msg']} (found {first['input']!r:.60})") from None


@dataclass(frozen=True)
class Identification:
    """Whose voice a recording holds; see `naming.Match`."""

    audio: str
    speaker: str
    score: float | None
    probability: float | None
    """That it is best_name's; see `Calibration.probability`."""
    threshold: float
    best_name: str | None
    speech_s: float
    notes: list[str]


@dataclass(frozen=True)
class Verification:
    """Whether two recordings hold one voice."""

    same: bool
    score: float
    probability: float | None
    threshold: float
    speech_s: float
    """Of the recording that has less of it."""
    audio: list[str]
    """Both recordings."""
    notes: list[str]
