"""Noises to lay under speech: ESC-10's environmental recordings, and made noise of devices.

Takes ESC-10's root, or ESC-50's with its ``audio`` folder; returns the splits train (folds 1, 4 and 5), dev (3) and
test (2): the corpus has what comes from one recording in one fold. Each is written to the folder ``audio`` as 16 kHz
FLAC, without the digital silence that fills it up to five seconds. Beside them stand `devices` made noises, a fifth of
them in dev and in test each, since hardly a recording is without: the hiss of a microphone, fans and ventilation, which
fall with frequency by a drawn slope, a third of them with a mains hum. Label: category (ESC-50's by its number). The
text is empty, since nothing is said, and there is no speaker: these manifests are for `augment.noise`, for the noise of
simulated conversations, and among `data.train` for a recogniser that is to hear no words in noise.

Source: https://github.com/karoldvl/ESC-10 (Piczak 2015), CC BY 3.0 and CC0, by recording.
"""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import numpy as np
import soundfile
import soxr
from lhotse import MonoCut
from lhotse.utils import fastcopy

from data_prep.common import (
    LeftOut,
    Prepared,
    PrepareError,
    Unusable,
    check_counts,
    make_cut,
    open_recording,
    progress,
    to_cuts,
    write_flac,
)
from data_prep.download import Archive

SAMPLE_RATE = 16000
FILE_NAME = re.compile(
    r"(?P<fold>[1-5])-(?P<clip>[0-9]+)-(?P<take>[A-Z])(-(?P<kind>[0-9]+))?\.(ogg|wav)", re.IGNORECASE
)
SPLIT_OF_FOLD = {"1": "train", "2": "test", "3": "dev", "4": "train", "5": "train"}
LEAST_S = 0.5
"""What is left of a recording without its digital silence, at least."""
DEVICE_S, DEVICE_DB = 10.0, -30.0
SLOPE_DB = (-9.0, 1.5)
"""A device's noise, per octave."""
STEP_DB = 2.0
"""Deviation of an octave's level from that slope, relative to the octave below."""
HUM_HZ, HUM_DB, HUM_SHARE = (50, 60), (-15.0, 0.0), 1 / 3
"""A mains hum with its overtones, relative to the rest of the noise."""


def archives() -> list[Archive]:
    return [Archive("https://github.com/karoldvl/ESC-10/archive/refs/heads/master.zip", file_name="esc10.zip")]


def prepare(source: Path, *, audio: Path, devices: int = 60, seed: int = 0) -> Prepared:
    check_counts(0, devices=devices)
    splits: dict[str, list[MonoCut]] = {"train": [], "dev": [], "test": []}
    left_out = []
    for path, name in progress(_recordings(source), "noises"):
        try:
            copy = audio / f"{name['fold']}-{name['clip']}-{name['take'].upper()}.flac"
            cut = _recorded(path, copy, name["kind"] or re.sub(r"^[0-9]+ - ", "", path.parent.name).lower())
        except Unusable as unusable:
            left_out.append(LeftOut(str(path.relative_to(source)), str(unusable)))
        else:
            splits[SPLIT_OF_FOLD[name["fold"]]].append(cut)
    for number in range(devices):
        split = ("dev", "test", "train", "train", "train")[number % 5]
        path = audio / f"device-{seed}-{number:03d}.flac"
        write_flac(path, device_noise(Random(f"{seed}/{number}")), SAMPLE_RATE)
        splits[split].append(_cut(path, "device"))
    return Prepared({split: to_cuts(cuts) for split, cuts in splits.items() if cuts}, left_out)


def device_noise(rng: Random) -> np.ndarray:
    """DEVICE_S seconds of stationary noise (N,) float32, at DEVICE_DB."""
    generator = np.random.default_rng(rng.getrandbits(32))
    size = round(DEVICE_S * SAMPLE_RATE)
    spectrum_K = np.fft.rfft(generator.standard_normal(size))
    octaves = np.arange(9)  # from 31 Hz on
    levels_db = rng.uniform(*SLOPE_DB) * octaves + STEP_DB * generator.standard_normal(len(octaves)).cumsum()
    hz_K = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    spectrum_K *= 10 ** (np.interp(np.log2(np.maximum(hz_K, 1) / 31.25), octaves, levels_db) / 20)
    noise = np.fft.irfft(spectrum_K, size)
    noise /= np.sqrt(np.mean(noise**2))
    if rng.random() < HUM_SHARE:
        mains_hz, strength_db = rng.choice(HUM_HZ), rng.uniform(*HUM_DB)
        time_s = np.arange(size) / SAMPLE_RATE
        tones = [np.sin(2 * np.pi * (k * mains_hz * time_s + rng.random())) / k for k in range(1, 9)]
        hum = np.sum(tones, axis=0)
        noise += 10 ** (strength_db / 20) * hum / np.sqrt(np.mean(hum**2))
    return (10 ** (DEVICE_DB / 20) * noise / np.sqrt(np.mean(noise**2))).astype(np.float32)


def _recordings(source: Path) -> list[tuple[Path, re.Match[str]]]:
    names = ((path, FILE_NAME.fullmatch(path.name)) for path in sorted(source.rglob("*")))
    if found := [(path, name) for path, name in names if name]:
        return found
    raise PrepareError(f"source {source}: no recordings of ESC-10; expected files such as 1-17367-A.ogg in it")


def _recorded(path: Path, copy: Path, category: str) -> MonoCut:
    recording = open_recording(path, path.stem)
    samples_NC, rate = soundfile.read(path, dtype="float32", always_2d=True)
    samples = soxr.resample(samples_NC.mean(axis=1), rate, SAMPLE_RATE)
    (heard,) = np.nonzero(np.abs(samples) > 0.5 / 2**15)
    samples = samples[heard[0] : heard[-1] + 1] if len(heard) else samples[:0]
    if len(samples) < LEAST_S * SAMPLE_RATE:
        raise Unusable(f"less than {LEAST_S:g} s of {recording.duration:.1f} s are no digital silence")
    write_flac(copy, samples, SAMPLE_RATE)
    return _cut(copy, category)


def _cut(path: Path, category: str) -> MonoCut:
    cut_id = f"noise-{path.stem}"
    recording = open_recording(path, cut_id)
    cut = make_cut(recording, cut_id, "noises", language=None, labels={"category": category})
    return cut.map_supervisions(lambda supervision: fastcopy(supervision, text=""))
