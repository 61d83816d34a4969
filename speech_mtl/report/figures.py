"""Numbers -> figures as SVG text to be placed inside an HTML page; no file is written, no address is loaded.

A figure is drawn in stand-in colours that become the page's CSS variables, so that it follows light, dark and print.
"""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from speech_mtl.metrics import det_points, equal_error_rate

INK, MUTED, LINE, ACCENT, CONTRAST = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
SERIES = ("#101112", "#131415", "#161718", "#191a1b", "#1c1d1e", "#1f2021", "#222324", "#252627")
"""Eight colours that can be told apart, for the lines of one figure."""
STAND_INS = {INK: "--ink", MUTED: "--muted", LINE: "--line", ACCENT: "--accent", CONTRAST: "--contrast"}
STAND_INS |= {color: f"--s{i}" for i, color in enumerate(SERIES)}

MELS = 80
FREQUENCY_TICKS_HZ = (250, 500, 1000, 2000, 4000, 8000)
DET_TICKS = (0.00001, 0.0001, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9)
DET_RANGE = (0.0005, 0.6)


def score_histogram(target: np.ndarray, other: np.ndarray, threshold: float | None) -> str:
    """Both kinds of trials on one axis, each as a share of its own number, with the threshold as a line."""
    figure, axes = _figure(7.2, 3.0)
    edges = np.histogram_bin_edges(np.concatenate([target, other]), bins=50)
    for scores, color, label, style in (
        (other, CONTRAST, "different speakers", {"histtype": "step", "hatch": "////", "linewidth": 1.2}),
        (target, ACCENT, "same speaker", {"histtype": "stepfilled", "alpha": 0.55}),
    ):
        if len(scores):
            share = np.full(len(scores), 100 / len(scores))
            name = f"{label} ({len(scores):,} trials)"
            axes.hist(scores, bins=edges, weights=share, edgecolor=color, facecolor=color, label=name, **style)
    if threshold is not None:
        axes.axvline(threshold, color=INK, linestyle="--", linewidth=1.2, label=f"EER threshold {threshold:.3f}")
    axes.set_xlabel("score (cosine)")
    axes.set_ylabel("share of the trials, %")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=3, frameon=False, labelcolor=INK, fontsize=8)
    return svg(figure, "histogram")


def det_curve(target: np.ndarray, other: np.ndarray) -> str:
    """False acceptances against false rejections on normal-deviate axes; needs trials of both kinds, and errors.

    The axes reach from 0.05 to 60 %, and further where the EER is close to their ends or beyond.
    """
    from scipy.stats import norm

    scores = np.concatenate([target, other])
    is_target = np.arange(len(scores)) < len(target)
    acceptance, rejection, _ = det_points(scores, is_target)
    eer, _ = equal_error_rate(scores, is_target)
    figure, axes = _figure(4.4, 4.2)
    rates = (norm.ppf(np.clip(rate, 1e-9, 1 - 1e-9)) for rate in (acceptance, rejection))
    axes.plot(*rates, color=ACCENT, linewidth=1.8)
    low, high = min(DET_RANGE[0], eer / 4), max(DET_RANGE[1], (1 + eer) / 2 if eer > DET_RANGE[1] / 2 else 0)
    corner = norm.ppf(np.array([low, high]))
    axes.plot(corner, corner, color=MUTED, linestyle=":", linewidth=1)
    place = norm.ppf(eer)
    axes.plot(place, place, "o", color=INK, markersize=5)
    axes.annotate(f"EER {100 * eer:.2g} %", (place, place), (8, 4), textcoords="offset points", color=INK)
    shown = [tick for tick in DET_TICKS if low <= tick <= high]
    ticks, labels = norm.ppf(np.array(shown)), [f"{100 * tick:g}" for tick in shown]
    axes.set(xlim=corner, ylim=corner, aspect="equal", xticks=ticks, yticks=ticks)
    axes.set_xticklabels(labels)
    axes.set_yticklabels(labels)
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_xlabel("other voices wrongly accepted, %")
    axes.set_ylabel("the right voice wrongly rejected, %")
    return svg(figure, "det")


def read_audio(path: Path, start_s: float = 0.0, duration_s: float | None = None) -> tuple[np.ndarray, int]:
    """Mono samples and their rate. Raises OSError or RuntimeError where the file cannot be read."""
    import soundfile

    with soundfile.SoundFile(path) as file:
        rate = file.samplerate
        file.seek(min(round(start_s * rate), file.frames))
        samples = file.read(-1 if duration_s is None else round(duration_s * rate), dtype="float32", always_2d=True)
    if not len(samples):
        raise RuntimeError(f"{path.name} holds no samples from {start_s:.2f} s on")
    return samples.mean(axis=1), rate


def mel_decibels(samples: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-mel (bins, frames) in dB below the loudest, cut at -70, with each bin's centre frequency in Hz."""
    import librosa

    top_hz = min(rate / 2, 8000)
    window, hop = round(0.032 * rate), round(0.010 * rate)
    power = librosa.feature.melspectrogram(
        y=samples, sr=rate, n_fft=2 ** int(np.ceil(np.log2(window))), win_length=window, hop_length=hop, n_mels=MELS,
        fmin=40, fmax=top_hz,
    )  # fmt: skip
    return librosa.power_to_db(power, ref=np.max, top_db=70), librosa.mel_frequencies(MELS, fmin=40, fmax=top_hz)


def spectrogram(samples: np.ndarray, rate: int, words: list[dict[str, Any]]) -> str:
    """Log-mel over time with the words above it, at the times they were recognised at."""
    decibels, centres_hz = mel_decibels(samples, rate)
    duration_s = len(samples) / rate
    figure, axes = _figure(9.2, 3.2)
    place = (0, duration_s, 0, MELS)
    axes.imshow(decibels, origin="lower", aspect="auto", cmap="magma", extent=place, vmin=-70, vmax=0)
    ticks = [hz for hz in FREQUENCY_TICKS_HZ if hz <= centres_hz[-1]]
    axes.set_yticks(np.interp(ticks, centres_hz, np.arange(MELS)), [f"{hz:,}" for hz in ticks])
    axes.set_xlabel("seconds")
    axes.set_ylabel("Hz (mel scale)")
    character_s = duration_s / 120  # about the width of a letter in this figure
    lanes: list[float] = []
    for word in words:
        middle = (word["start_s"] + word["end_s"]) / 2
        lane = free_lane(lanes, middle, character_s * (len(word["text"]) + 1) / 2, limit=3)
        height = MELS * (1.04 + 0.09 * lane)
        axes.annotate(
            word["text"], (middle, height), ha="center", va="bottom", color=INK, fontsize=9, annotation_clip=False,
            parse_math=False,
        )  # fmt: skip
        axes.plot([word["start_s"], word["end_s"]], [height, height], color=ACCENT, linewidth=2, clip_on=False)
    axes.set(xlim=(0, duration_s), ylim=(0, MELS))
    return svg(figure, "spectrogram")


def free_lane(lanes: list[float], middle: float, half_width: float, limit: int) -> int:
    """The first of `limit` rows where a label meets no earlier one, else the least full; notes its end in `lanes`."""
    start = middle - half_width
    free = next((i for i, end in enumerate(lanes) if end <= start), len(lanes))
    lane = free if free < limit else min(range(limit), key=lanes.__getitem__)
    lanes[lane : lane + 1] = [middle + half_width]
    return lane


def _figure(width: float, height: float) -> tuple[Any, Any]:
    figure, (axes,) = panels(width, height, 1)
    return figure, axes


def panels(width: float, height: float, count: int, columns: int = 1) -> tuple[Any, list[Any]]:
    """A figure of `width` x `height` inches with `count` axes, `columns` of them side by side."""
    from matplotlib.figure import Figure

    rows = -(-count // columns)
    figure = Figure(figsize=(width, height), dpi=110, layout="tight" if count == 1 else None)
    if count > 1:  # room for the labels between panels; what is outside them, saving crops
        figure.subplots_adjust(wspace=0.9 * columns / width, hspace=1.15 * rows / height)
    figure.patch.set_alpha(0)
    every = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    for axes in every:
        axes.patch.set_alpha(0)
        axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=8)
        for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
            text.set_color(INK)
        axes.spines[:].set_color(MUTED)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, every


def svg(figure: Any, name: str) -> str:
    """The figure as an <svg> element. Its ids differ from other figures' by `name`; text stays text."""
    import matplotlib

    file = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "path.simplify_threshold": 0.3}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # matplotlib measures with its own font; the browser draws the text, in a font that has its script
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(file, format="svg", bbox_inches="tight", pad_inches=0.05, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = svg.replace('id="', f'id="{name}-').replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    for stand_in, variable in STAND_INS.items():
        svg = svg.replace(stand_in, f"var({variable})")
    return re.sub(r'<svg ([^>]*?)width="[\d.]+pt" height="[\d.]+pt"', r"<svg \1", svg, count=1)
