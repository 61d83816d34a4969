"""Impulse responses of rooms to hear speech in, made by lhotse's generator (no source needed).

Returns the splits train (three of five), dev and test. Each recording is a room of its own, drawn with up to 0.8 s of
reverberation (to -60 dB), and a place in it, 0.2 to 12 m from the microphone; the direct sound comes first, so that
words keep their times. They are for `augment.rooms`, where rooms that were measured do as well. Everything follows from
the seed.

Source: Luo & Gu 2022, FRA-RIR, arXiv 2208.04101.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import torch
from lhotse import MonoCut

from data_prep.common import Prepared, check_counts, make_cut, open_recording, progress, to_cuts, write_flac

GENERATES = True
SAMPLE_RATE = 16000
LONGEST_S = 0.8
PEAK = 0.9


def prepare(source: Path, *, rooms: int = 200, seed: int = 0) -> Prepared:
    check_counts(1, rooms=rooms)
    splits: dict[str, list[MonoCut]] = {"train": [], "dev": [], "test": []}
    for number in progress(range(rooms), "rooms"):
        response = impulse_response(Random(f"{seed}/{number}"), LONGEST_S)
        cut_id = f"room-{seed}-{number:03d}"
        write_flac(path := source / f"{cut_id}.flac", PEAK / np.abs(response).max() * response, SAMPLE_RATE)
        cut = make_cut(open_recording(path, cut_id), cut_id, "rooms", language=None)
        splits[("train", "train", "train", "dev", "test")[number % 5]].append(cut)
    return Prepared({split: to_cuts(cuts) for split, cuts in splits.items() if cuts})


def impulse_response(rng: Random, longest_s: float) -> np.ndarray:
    """(N,) float32 at SAMPLE_RATE from the direct sound on; reverberation of 0.1 s to `longest_s`."""
    from lhotse.augmentation.utils import FastRandomRIRGenerator

    seeds = {"room_seed": rng.getrandbits(31), "source_seed": rng.getrandbits(31)}
    generator = FastRandomRIRGenerator(SAMPLE_RATE, max_T60=max(longest_s, 0.11), **seeds)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of several sounds that arrive at one moment, the one counts that is written last
    try:
        with torch.random.fork_rng([]):  # of which it draws, beside its seeds
            torch.manual_seed(seeds["room_seed"])
            response = generator(nsource=1)[0]
    finally:
        torch.set_num_threads(threads)
    return response[np.abs(response).argmax() :]
