"""Long recordings and conversations: `python benchmarks/conversations.py SOURCE ENROLL [--minutes 10 30 60]`.

SOURCE and ENROLL are manifests of single speakers, such as data/an4/trial.jsonl.gz and data/an4/enroll.jsonl.gz. Prints
the real-time factor and the peak memory of long recordings, each in a process of its own (`--minutes 600`: ten hours);
what the speakers cost on top of recognition; what short recordings gain by being heard together; how many words differ
between windows and one piece of five minutes; and the scores of conversations without overlap, with everybody enrolled
and with nobody.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from cost import recognition_alone
from lhotse import CutSet

import data_prep
from speech_mtl.audio import open_sound
from speech_mtl.calibration import Calibration
from speech_mtl.cli_conversations import table
from speech_mtl.conversations import evaluate_conversations
from speech_mtl.metrics import error_rates, word_errors
from speech_mtl.recognizer import PRETRAINED, Recognizer
from speech_mtl.results import Result
from speech_mtl.windows import stretches

ROUNDS = 15
ONE_RUN = """
import json, re, sys, time
from pathlib import Path
from speech_mtl.recognizer import Recognizer
recognizer = Recognizer.from_pretrained(db=sys.argv[2])
started, used = time.perf_counter(), time.process_time()
result = recognizer.transcribe(sys.argv[1])
seconds, used = time.perf_counter() - started, time.process_time() - used
# getrusage would give the parent's peak, where that was higher
peak_kb = int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text()).group(1))
print(json.dumps({"audio_s": result.duration_s, "rtf": seconds / result.duration_s, "peak_mb": peak_kb / 1024,
                  "processor_s": used, "voices": len(result.speakers)}))
"""


def simulate(source: str, folder: Path, minutes: float, conversations: int) -> str:
    options = {"minutes": minutes, "conversations": conversations, "speakers": 4, "seed": 11}
    data_prep.prepare("conversations", Path(source), folder, **options)
    return str(folder / "conversations.jsonl.gz")


def recording(manifest: str) -> str:
    return next(iter(CutSet.from_file(manifest))).recording.sources[0].source


def length_and_memory(source: str, folder: Path, minutes: list[float]) -> None:
    for length in minutes:
        path = recording(simulate(source, folder / f"{length:g}", length, 1))
        command = [sys.executable, "-c", ONE_RUN, path, str(folder / "nobody.db")]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(
            f"{found['audio_s'] / 60:.0f} min, 4 voices: real-time factor {found['rtf']:.4f}, "
            f"processor time {found['processor_s']:.1f} s, peak memory {found['peak_mb']:.0f} MB, "
            f"{found['voices']} voices found",
            flush=True,
        )
        Path(path).unlink()


def speakers_cost(path: str, folder: Path) -> None:
    joint = Recognizer.from_pretrained(db=folder / "nobody.db")
    alone = Recognizer(recognition_alone(joint.model), Calibration.of(0.5, ""), folder / "nobody.db")
    times: dict[str, list[float]] = {"joint": [], "alone": []}
    for _ in range(ROUNDS + 1):
        for name, recognizer in (("joint", joint), ("alone", alone)):
            started = time.process_time()
            recognizer.transcribe(path)
            times[name].append(time.process_time() - started)
    ratio = median(a / b for a, b in zip(times["joint"][1:], times["alone"][1:], strict=True))  # the first warms up
    print(f"text and speakers against text alone, 5 min, processor time, {ROUNDS} rounds: {ratio:.3f}", flush=True)


def together(source: str, folder: Path) -> None:
    """Short recordings one after another against `transcribe_all`."""
    recognizer = Recognizer.from_pretrained(db=folder / "nobody.db")
    audios = [(cut.load_audio().T, cut.sampling_rate) for cut in CutSet.from_file(source)]
    times: dict[str, list[float]] = {"alone": [], "together": []}
    for _ in range(ROUNDS):
        started = time.process_time()
        alone = [recognizer.transcribe(audio).text for audio in audios]
        middle = time.process_time()
        found = [result.text for result in recognizer.transcribe_all(audios) if isinstance(result, Result)]
        times["alone"].append(middle - started)
        times["together"].append(time.process_time() - middle)
    ratio = median(a / b for a, b in zip(times["together"], times["alone"], strict=True))
    seconds = sum(len(samples) / rate for samples, rate in audios) / len(audios)
    differing = sum(a != b for a, b in zip(alone, found, strict=True))
    print(
        f"{len(audios)} recordings of {seconds:.1f} s, together against one by one, processor time, {ROUNDS} rounds: "
        f"{ratio:.3f}; {differing} texts differ",
        flush=True,
    )


def windows_and_one_piece(path: str) -> None:
    model = Recognizer.from_pretrained().model
    texts = []
    for sizes in ({}, {"core_s": 10_000.0}):
        words = []
        for stretch in stretches(model, open_sound(path, 16000).blocks, "asr", [], **sizes):
            output = {"log_probs": stretch.log_probs_SV[None], "lengths": torch.tensor([len(stretch.log_probs_SV)])}
            words.append(model.task("asr").predict(output)[0]["text"])
        texts.append(" ".join(words))
    rates = error_rates([word_errors(texts[1], texts[0])])
    differing = rates["substitutions"] + rates["deletions"] + rates["insertions"]
    print(f"windows against one piece, 5 min: {differing} of {rates['words']} words differ", flush=True)


def scores(manifest: str, enroll: str, folder: Path) -> None:
    for name, manifests in (("everybody enrolled", [enroll]), ("nobody enrolled, number of voices unknown", None)):
        recognizer = Recognizer.from_pretrained(PRETRAINED, db=folder / f"{name}.db")
        print(f"\n{name}\n{table(evaluate_conversations(recognizer, [manifest], folder / name, manifests))}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("enroll")
    parser.add_argument("--minutes", type=float, nargs="+", default=[10, 30, 60])
    arguments = parser.parse_args()
    with TemporaryDirectory() as place:
        place = Path(place)
        length_and_memory(arguments.source, place, arguments.minutes)
        five_minutes = recording(simulate(arguments.source, place / "five", 5, 1))
        speakers_cost(five_minutes, place)
        together(arguments.source, place)
        windows_and_one_piece(five_minutes)
        scores(simulate(arguments.source, place / "many", 2, 10), arguments.enroll, place)
