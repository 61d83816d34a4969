"""An utterance as training hears it: at another speed and level, amid noise, in a room, in a narrower band.

What is drawn follows from the generator that is given. Masks of the features are drawn later, see features.SpecAugment.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import soxr
from lhotse.augmentation import ReverbWithImpulseResponse
from lhotse.cut import Cut, append_cuts
from scipy.signal import butter, sosfilt

from speech_mtl.config import AugmentConfig
from speech_mtl.cuts import labels_at_speed
from speech_mtl.resampling import resample

LOW_HZ, HIGH_HZ, ORDER = (20.0, 400.0), (3300.0, 7500.0), (2, 12)
"""Corners of a band, and how steep they are: from small microphones to a telephone's 300 to 3400 Hz."""
TELEPHONE_RATE = 8000
"""At which half of the bands were once sampled."""


class Augmentation:
    """What config.augment says, with the cuts of its noises and rooms."""

    def __init__(self, config: AugmentConfig, sample_rate: int, noises: Sequence[Cut], rooms: Sequence[Cut]):
        self.config, self.sample_rate, self.noises, self.rooms = config, sample_rate, noises, rooms

    def cut(self, cut: Cut, epoch: int, rng: random.Random) -> tuple[Cut, Cut]:
        """(the cut to be heard, the cut whose labels it has)."""
        config, labels = self.config, cut
        if epoch >= config.start_epoch:
            factor = rng.choice(config.speeds)
            if factor != 1:
                cut, labels = cut.perturb_speed(factor), labels_at_speed(cut, factor)
            if self.noises and rng.random() < config.noise_prob:
                cut = self._amid_noise(cut, rng)
        return cut, labels

    def sound(self, audio: np.ndarray, epoch: int, rng: random.Random) -> np.ndarray:
        """The cut's samples (N,) float32 in a room and a band, noise and all, at another level.

        A cut cannot be given a room before: lhotse's mixed ones lose it when they are resampled.
        """
        if epoch >= self.config.start_epoch:
            if self.rooms and rng.random() < self.config.room_prob:
                room = rng.choice(self.rooms).resample(self.sample_rate)
                audio = ReverbWithImpulseResponse(room)(audio[None], self.sample_rate)[0]
            if self.config.band_prob and rng.random() < self.config.band_prob:
                audio = in_band(audio, self.sample_rate, rng)
        gain = 10 ** (rng.uniform(-self.config.gain_db, self.config.gain_db) / 20)
        return np.clip(audio * np.float32(gain), -1, 1)

    def _amid_noise(self, cut: Cut, rng: random.Random) -> Cut:
        noise = rng.choice(self.noises).resample(cut.sampling_rate)
        if noise.duration < cut.duration:
            noise = append_cuts([noise] * math.ceil(cut.duration / noise.duration))
        if noise.duration > cut.duration:
            noise = noise.truncate(offset=rng.uniform(0, noise.duration - cut.duration), duration=cut.duration)
        return cut.mix(noise, snr=rng.uniform(*self.config.noise_snr_db)).truncate(duration=cut.duration)


def in_band(audio: np.ndarray, sample_rate: int, rng: random.Random) -> np.ndarray:
    """The samples (N,) float32 as they pass what transmits a drawn band only: a Butterworth filter, at 8 kHz or not."""
    low_hz, high_hz, order = rng.uniform(*LOW_HZ), rng.uniform(*HIGH_HZ), rng.randint(*ORDER)
    if high_hz < sample_rate / 2:
        sections = butter(order, [low_hz, high_hz], "bandpass", fs=sample_rate, output="sos")
    else:
        sections = butter(order, low_hz, "highpass", fs=sample_rate, output="sos")
    audio = sosfilt(sections, audio).astype(np.float32)
    if rng.random() < 0.5 and sample_rate > TELEPHONE_RATE:
        through = rng.choice((resample, soxr.resample))  # ours leaves more above the old Nyquist frequency
        sampled = through(through(audio, sample_rate, TELEPHONE_RATE), TELEPHONE_RATE, sample_rate)[: len(audio)]
        audio = np.pad(sampled, (0, len(audio) - len(sampled)))
    return audio
