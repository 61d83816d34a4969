"""How far the words' times are off where they are known: `python benchmarks/word_times.py [MANIFEST] [--model FOLDER]`.

The manifest's cuts carry word alignments, as those of the synthetic corpus do (data/synthetic/test.jsonl.gz if none is
given). Prints the errors of the recognised words that are right, as greedy decoding times them, and of all words of the
known text, as forced alignment does.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import jiwer
import numpy as np
import torch
from lhotse.cut import Cut
from rich.console import Console
from rich.table import Table

from speech_mtl import decode
from speech_mtl.checkpoint import load_model
from speech_mtl.data import batches, read_cuts
from speech_mtl.recognizer import PRETRAINED, asr_of
from speech_mtl.tasks.asr import ASR
from speech_mtl.text import normalize

Times = tuple[float, float]


def known_words(cut: Cut, asr: ASR) -> list[tuple[str, Times]]:
    """(word in the model's writing, (start, end)) of a cut's alignment."""
    items = cut.supervisions[0].alignment["word"]
    return [(normalize(item.symbol, asr.tokenizer.config), (item.start, item.end)) for item in items]


def recognised_rightly(known: list[tuple[str, Times]], found: list[decode.Word]) -> Iterator[tuple[Times, Times]]:
    """(true, found) times of the words that are the same in both texts."""
    if not known or not found:
        return
    texts = " ".join(word for word, _ in known), " ".join(word.text for word in found)
    for chunk in jiwer.process_words(*texts).alignments[0]:
        if chunk.type == "equal":
            for k in range(chunk.ref_end_idx - chunk.ref_start_idx):
                word = found[chunk.hyp_start_idx + k]
                yield known[chunk.ref_start_idx + k][1], (word.start_s, word.end_s)


@torch.inference_mode()
def measure(manifest: Path, model_folder: Path) -> tuple[dict[str, list[tuple[Times, Times]]], int]:
    """(true, found) times of words, by the way they were found; and how many cuts are too fast to be aligned."""
    model = load_model(model_folder)
    asr = asr_of(model)
    too_fast = 0
    pairs: dict[str, list[tuple[Times, Times]]] = {"greedy, right words": [], "forced alignment, all words": []}
    for batch in batches(read_cuts([manifest]), model.config):
        output = model.head(asr.name, model.trunk(batch.audio_BN, batch.samples_B))
        for cut, rows, length in zip(batch.cuts, output["log_probs"], output["lengths"].tolist(), strict=True):
            log_probs_SV = rows[:length]
            known = known_words(cut, asr)
            pairs["greedy, right words"] += recognised_rightly(known, asr.transcribe(log_probs_SV)["words"])
            ids = asr.tokenizer.encode(" ".join(word for word, _ in known))
            if decode.frames_needed(ids) > length:
                too_fast += 1
                continue
            tokens = decode.align(log_probs_SV, ids)
            aligned = decode.words(tokens, asr.tokenizer.pieces, asr.frame_s, length * asr.frame_s)
            pairs["forced alignment, all words"] += [
                (times, (word.start_s, word.end_s)) for (_, times), word in zip(known, aligned, strict=True)
            ]
    return pairs, too_fast


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", nargs="?", type=Path, default=Path("data/synthetic/test.jsonl.gz"))
    parser.add_argument("--model", type=Path, default=PRETRAINED)
    arguments = parser.parse_args()
    table = Table(title=f"errors of word times in ms, {arguments.manifest}")
    for column in ("found by", "words", "which", "median", "95th percentile", "bias (median of found - true)"):
        table.add_column(column, justify="left" if column in ("found by", "which") else "right")
    measured, too_fast = measure(arguments.manifest, arguments.model)
    for way, pairs in measured.items():
        errors_W2 = 1000 * np.array([[f - t for t, f in zip(true, found, strict=True)] for true, found in pairs])
        for name, errors in (("starts", errors_W2[:, 0]), ("ends", errors_W2[:, 1]), ("both", errors_W2.ravel())):
            shown = (np.median(np.abs(errors)), np.percentile(np.abs(errors), 95), np.median(errors))
            table.add_row(way, str(len(pairs)), name, *(f"{value:.0f}" for value in shown))
    Console().print(table)
    print(f"not aligned: {too_fast} cuts with more letters than encoder frames")


if __name__ == "__main__":
    main()
