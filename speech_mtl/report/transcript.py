"""A result of the recognizer -> one page: the recording's sound, and who said what; a click on a word plays it.

Takes the result as a plain dict (`dataclasses.asdict`). The page loads nothing from elsewhere and opens from disk.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from speech_mtl.audio import AudioError, open_sound
from speech_mtl.report.page import environment
from speech_mtl.report.player import VOICES_CSS, embedded_sound, voice_colors
from speech_mtl.speakers import is_unknown

SOUND_HZ = 16000
"""Of the page's sound, whatever the recording's: enough for speech, and MP3 has it."""
NOBODY = ""
"""Who speaks, where the model names no speakers."""


def transcript_page(result: dict[str, Any]) -> str:
    """The page as text. Raises AudioError where nothing of the file `result['audio']` can be read."""
    turns = _turns(result)
    names = list(dict.fromkeys(turn["speaker"] for turn in turns))
    return environment().get_template("transcript.html.j2").render(
        result=result,
        name=Path(result["audio"]).name,
        sound=embedded_sound(_sound(result["audio"]), SOUND_HZ),
        colors=voice_colors(names) if names != [NOBODY] else {NOBODY: 0},
        voices=[_voice(name, turns) for name in sorted(names, key=is_unknown)],
        turns=turns,
        css=VOICES_CSS,
    )  # fmt: skip


def _sound(audio: str) -> np.ndarray:
    """The recording up to its end, or to where it breaks off. Raises AudioError where that is at once."""
    blocks: list[np.ndarray] = []
    try:
        for block in open_sound(audio, SOUND_HZ).blocks:
            blocks.append(block)
    except AudioError:
        if not blocks:
            raise
    return np.concatenate(blocks)


def _turns(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Every segment's words, cut where the speaker of the words changes."""
    turns = []
    for segment in result["segments"]:
        score = segment["score"]
        for speaker, group in groupby(segment["words"], key=lambda word: word["speaker"] or NOBODY):
            words = list(group)
            own = speaker == (segment["speaker"] or NOBODY)
            turns.append({
                "speaker": speaker, "words": words, "start_s": words[0]["start_s"], "end_s": words[-1]["end_s"],
                "score": score if own else None,
            })  # fmt: skip
    return turns


def _voice(name: str, turns: list[dict[str, Any]]) -> dict[str, Any]:
    own = [turn for turn in turns if turn["speaker"] == name]
    return {
        "name": name, "turns": len(own), "words": sum(len(turn["words"]) for turn in own),
        "seconds": sum(turn["end_s"] - turn["start_s"] for turn in own),
    }  # fmt: skip
