"""What pages with sound share: the recording inside the page, and a colour a voice. The looks are in player.html.j2."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable

import numpy as np
from markupsafe import Markup

from speech_mtl.speakers import UNKNOWN, is_unknown

COLORS = 8
WAV_LIMIT_S = 120
"""Longer sound is embedded as MP3, a sixth of the size."""
MP3_COMPRESSION = 0.8
"""0 to 1; libsndfile makes 40 kbit/s of it at 16 kHz."""
VOICES_CSS = Markup("\n".join(f".c{i} {{ --voice: var(--s{i}) }}" for i in range(COLORS)))


def voice_colors(names: Iterable[str]) -> dict[str, int | None]:
    """Each name's colour, in the order given, strangers last; 'unknown' without a number has no colour of its own."""
    ordered = sorted(dict.fromkeys(names), key=is_unknown)
    return {name: None if name == UNKNOWN else i % COLORS for i, name in enumerate(ordered)}


def embedded_sound(samples: np.ndarray, rate: int) -> str:
    """Samples (N,) as a data URI that every browser plays, whatever the file's own format was."""
    import soundfile

    file = io.BytesIO()
    if len(samples) / rate <= WAV_LIMIT_S or "MP3" not in soundfile.available_formats():
        soundfile.write(file, samples, rate, format="WAV", subtype="PCM_16")
        return data_uri(file.getvalue(), "audio/wav")
    # at a varying bit rate browsers only guess where a moment lies: they play seconds beside the word
    soundfile.write(file, samples, rate, format="MP3", bitrate_mode="CONSTANT", compression_level=MP3_COMPRESSION)
    return data_uri(file.getvalue(), "audio/mpeg")


def data_uri(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
