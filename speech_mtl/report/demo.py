"""A transcription -> one page with its sound, its spectrogram and its words under their times, by speaker.

`write_demo_page(result, audio_path, out)` takes a result of the form

    {"audio": str, "duration_s": float, "model": str,
     "segments": [{"start_s", "end_s", "speaker", "score", "text",
                   "words": [{"text", "start_s", "end_s", "confidence"}],
                   "truth": {"speaker", "text"}}],
     "wer": float, "speaker_accuracy": float}

with times in seconds from the start of the file. 'truth', 'wer' and 'speaker_accuracy' may be absent; texts of a truth
are compared word by word, so they stand in the writing of the recognised text. The page loads nothing from elsewhere.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from speech_mtl.report.collect import align
from speech_mtl.report.figures import free_lane, mel_decibels, read_audio
from speech_mtl.report.page import environment
from speech_mtl.report.player import VOICES_CSS, data_uri, embedded_sound, voice_colors
from speech_mtl.speakers import UNKNOWN, is_right

STRIP_S = 10.0
"""Seconds of sound in one line of the page, as bars stand in a score."""
LETTER_SHARE = 0.0085
"""Width of a letter as a share of a line."""
LANES = 3


def write_demo_page(result: dict[str, Any], audio_path: Path, out: Path) -> Path:
    """Write the page to `out` and return it. Raises OSError or RuntimeError where the sound cannot be read."""
    samples, rate = read_audio(Path(audio_path))
    page = environment().get_template("demo.html.j2").render(
        result={"model": None, "wer": None, "speaker_accuracy": None} | result,
        name=Path(result.get("audio") or audio_path).name,
        sound=embedded_sound(samples, rate),
        colors=voice_colors(_name(segment) for segment in result["segments"]),
        segments=[_segment_view(segment) for segment in result["segments"]],
        strips=_strips(result, samples, rate),
        truth_known=any(segment.get("truth") for segment in result["segments"]),
        css=VOICES_CSS,
    )  # fmt: skip
    out = Path(out)
    out.write_text(page, encoding="utf-8")
    return out


def _name(segment: dict[str, Any]) -> str:
    return segment.get("speaker") or UNKNOWN


def _segment_view(segment: dict[str, Any]) -> dict[str, Any]:
    truth = segment.get("truth")
    view = {**segment, "speaker": _name(segment), "score": segment.get("score"), "truth": truth}
    if truth:
        view["named_rightly"] = is_right(view["speaker"], truth.get("speaker") or UNKNOWN)
        view["pairs"] = align(truth.get("text") or "", segment["text"])
    return view


def _strips(result: dict[str, Any], samples: np.ndarray, rate: int) -> list[dict[str, Any]]:
    """The recording in lines of STRIP_S: picture, speakers' bars and words, placed in percent of the line."""
    decibels, _ = mel_decibels(samples, rate)
    frames_per_s = decibels.shape[1] / (len(samples) / rate)
    length_s = min(STRIP_S, len(samples) / rate)
    strips = []
    for number in range(max(1, int(np.ceil(len(samples) / rate / STRIP_S - 0.02)))):
        start_s = number * STRIP_S
        piece = decibels[:, round(start_s * frames_per_s) : round((start_s + length_s) * frames_per_s)]
        strips.append({
            "start_s": start_s,
            "length_s": length_s,
            "width": 100 * piece.shape[1] / (length_s * frames_per_s),
            "picture": data_uri(_png(piece), "image/png"),
            "bars": _bars(result, start_s, length_s),
            "words": _placed_words(result, start_s, length_s),
            "ticks": range(int(np.ceil(start_s)), int(np.ceil(min(start_s + length_s, len(samples) / rate)))),
        })  # fmt: skip
    return strips


def _bars(result: dict[str, Any], start_s: float, length_s: float) -> list[dict[str, Any]]:
    """Who speaks when, within a line."""
    bars = []
    for segment in result["segments"]:
        low, high = max(segment["start_s"], start_s), min(segment["end_s"], start_s + length_s)
        if high > low:
            place = {"left": 100 * (low - start_s) / length_s, "width": 100 * (high - low) / length_s}
            bars.append(place | {"speaker": _name(segment), "start_s": segment["start_s"]})
    return bars


def _placed_words(result: dict[str, Any], start_s: float, length_s: float) -> list[dict[str, Any]]:
    """The words that begin within a line, each in a lane in which it covers no other."""
    lanes: list[float] = []
    placed = []
    for segment in result["segments"]:
        for word in segment.get("words") or []:
            if not start_s <= word["start_s"] < start_s + length_s:
                continue
            left = (word["start_s"] - start_s) / length_s
            width = LETTER_SHARE * (len(word["text"]) + 1.5)
            left = max(0.0, min(left, 1 - width))  # a word at the end of a line stays readable
            lane = free_lane(lanes, left + width / 2, width / 2, LANES)
            placed.append({**word, "left": 100 * left, "lane": lane, "speaker": _name(segment)})
    return placed


def _png(decibels: np.ndarray) -> bytes:
    """Log-mel values between -70 and 0 dB as a picture: a pixel a bin and frame, low pitches at the foot."""
    from matplotlib import colormaps
    from PIL import Image

    levels = np.clip((decibels[::-1] + 70) / 70 * 255, 0, 255).astype(np.uint8)
    image = Image.fromarray(levels)  # one byte a pixel and a palette: a third of the size of full colour
    palette = (colormaps["magma"](np.arange(256))[:, :3] * 255).astype(np.uint8)
    image.putpalette(palette.tobytes())
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()
