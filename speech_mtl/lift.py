"""Soft recordings, made as loud as speech usually is: the gain follows from what was read of them so far."""

from __future__ import annotations

import numpy as np

USUAL_DB = -30.0
"""Level of speech, relative to full scale, that every recording is given at least: two of three of AN4's have it. The
bundled model, without, took all voices of conversations 20 dB softer for one."""
PIECE_S = 0.1
SILENCE_DB = -70.0
"""Pieces below it count as silence, so that the gain is 40 dB at most. Softer speech spans a few dozen of the steps of
16 bits, and no gain mends it: see level.SOFT_DB."""
RANGE_DB = 10.0
"""Pieces so far below the mean are pauses."""
BANGS, BANG_S, LONG_S = 0.02, 0.5, 10.0
"""If the loudest of what is heard, so large a share and so much at least, hold three quarters of its power, and no half
second of them in a row, they are doors, clicks and coughs, and do not count: one of 60 ms, in a recording 30 dB too
soft, took the lift away. In shorter recordings it may be the only word."""


class Lift:
    """The level of a recording's speech, block by block, and the gain for it; what is loud enough stays as it is.

    The level is the mean power of pieces of 0.1 s without the quiet ones, gated as in ITU-R BS.1770-4, but without its
    filter and overlap, and without bangs. One gain serves the whole recording, or all of it up to where it was read: it
    keeps what one voice is louder than another, and follows neither words nor pauses.
    """

    def __init__(self, sample_rate: int):
        self.piece = round(PIECE_S * sample_rate)
        self.powers: list[np.ndarray] = []

    def add(self, block_N: np.ndarray) -> None:
        """More samples of the recording; less than a piece at their end is not looked at."""
        if size := min(self.piece, len(block_N)):
            pieces_PN = block_N[: len(block_N) // size * size].reshape(-1, size)
            self.powers.append(np.square(pieces_PN).mean(axis=1, dtype=np.float64))

    @property
    def gain_db(self) -> float:
        """0 for silence."""
        powers = np.concatenate([np.zeros(0), *self.powers])
        heard = powers[powers > 10 ** (SILENCE_DB / 10)]
        if not len(heard):
            return 0.0
        if len(heard) > LONG_S / PIECE_S:
            rest = np.sort(heard)[: -max(round(BANG_S / PIECE_S), round(BANGS * len(heard)))]
            loudest = np.flatnonzero(powers > 16 * rest.mean())
            runs = np.split(loudest, np.flatnonzero(np.diff(loudest) > 1) + 1)
            if rest.sum() < heard.sum() / 4 and max(map(len, runs)) <= round(BANG_S / PIECE_S):
                heard = rest
        loud = heard[heard >= heard.mean() * 10 ** (-RANGE_DB / 10)]
        return max(0.0, USUAL_DB - 10 * float(np.log10(loud.mean())))

    def of(self, samples_N: np.ndarray) -> np.ndarray:
        """The samples, louder by the gain."""
        gain_db = self.gain_db
        return samples_N * np.float32(10 ** (gain_db / 20)) if gain_db else samples_N


def lifted(samples_N: np.ndarray, sample_rate: int) -> np.ndarray:
    """All samples of a recording, as loud as speech usually is if they are softer."""
    lift = Lift(sample_rate)
    lift.add(samples_N)
    return lift.of(samples_N)
