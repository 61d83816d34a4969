"""The report of a comparison made up here: its figures are those of compare.json, its advice says what verdicts say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from speech_mtl.report import percent
from speech_mtl.report.advice import Advice, advice
from speech_mtl.report.advice_words import QUESTIONS
from speech_mtl.report.compare import terminal_summary, write_comparison
from speech_mtl.report.compare_facts import facts, points, scientific
from speech_mtl.report.front import pareto_front, place_against_front

HOSTILE = "<script>alert(1)</script> $x^2$ | _b_"
BASE = {"asr": 0.060, "speaker": 0.045, "gender": 0.030}
SEEDS = (1, 2, 3)
SETS = {"in domain": 1.0, "out of domain": 2.3}
BLOCKS = ["subsampling", "1", "2", "3", "4"]


def make_score(mean: float, std: float = 0.002) -> dict[str, Any]:
    """Three seeds around a mean: mean - std, mean, mean + std, whose standard deviation is std."""
    seeds = {str(seed): round(mean + std * (seed - 2), 6) for seed in SEEDS}
    return {"per_seed": seeds, "mean": round(mean, 6), "std": std}


def make_verdict(task: str, error: float, base: float, half: float = 0.003) -> dict[str, Any]:
    """An interval of ± half around the difference, read as compare does."""
    low, high, margin = error - base - half, error - base + half, 0.02 * base
    word = "helps" if high < 0 else "no worse" if high < margin else "harms" if low > 0 else "undecided"
    return {
        "against": f"{task} alone", "difference": error - base, "low": low, "high": high, "margin": margin,
        "verdict": word, "p": 0.21, "test": "paired bootstrap over speaker blocks, 3 seeds pooled",
        "needed_utterances": 4100 if word == "undecided" else None,
    }  # fmt: skip


def make_arm(name: str, group: str, errors: dict[str, float], tasks: list[str], **changes: Any) -> dict[str, Any]:
    """errors: task -> factor on its error alone, in domain; out of domain everything is SETS times worse."""
    scores: dict[str, Any] = {}
    verdicts: dict[str, Any] = {}
    for place, factor in SETS.items():
        errors_here = {task: BASE[task] * factor * errors[task] for task in errors}
        scores[place] = {task: make_score(error) for task, error in errors_here.items()}
        if group != "single":
            verdicts[place] = {t: make_verdict(t, e, BASE[t] * factor, 0.003 * factor) for t, e in errors_here.items()}
    together = set(errors) == set(tasks)
    return {
        "name": name, "title": f"{name}, in words", "group": group, "tasks": list(errors),
        "branch": 4 if together else None, "weights": dict.fromkeys(errors, 1.0), "method": "fixed",
        "examples": {task: 2400 for task in errors}, "parameters": 1234567, "flops_per_s": 1.2e9,
        "train_flops": 3.1e15, "train_minutes": 4.2, "failed": {}, "scores": scores, "verdicts": verdicts,
        "delta_m": {"in domain": 0.013, "out of domain": -0.021} if together else None,
    } | changes  # fmt: skip


def make_arms(tasks: list[str]) -> list[dict[str, Any]]:
    def everywhere(*factors: float) -> dict[str, float]:
        return dict(zip(tasks, (*factors, 1.0 - 0.2 * (factors[0] - 1.0)), strict=False))

    first, second = tasks[:2]
    arms = [make_arm(f"{task} alone", "single", {task: 1.0}, tasks) for task in tasks]
    arms.append(make_arm("joint", "joint", everywhere(0.9, 1.15), tasks))
    arms.append(make_arm(f"{first} to {second}", "transfer", {second: 0.97}, tasks))
    arms.append(make_arm(f"{second} to {first}", "transfer", {first: 1.02}, tasks))
    frozen = make_arm(f"frozen {first} + {second}", "transfer", everywhere(1.0, 1.4), tasks, branch=4)
    arms += [frozen, make_arm(f"permuted {second}", "control", everywhere(0.98, 20.0), tasks)]
    arms += [make_arm(f"small {task}", "small", {task: 1.3}, tasks) for task in tasks]
    for branch, factors in ((0, (1.0, 1.0)), (2, (0.9, 0.9)), (3, (0.92, 1.01)), (4, (0.9, 1.15))):
        arms.append(make_arm(f"branch {branch}", "branch", everywhere(*factors), tasks, branch=branch))
    for weight, factors in (("0.01", (0.86, 1.6)), ("0.1", (0.88, 1.25)), ("10", (1.25, 0.97))):
        weights = {first: 1.0, second: float(weight)}
        arms.append(make_arm(f"{second} x{weight}", "weight", everywhere(*factors), tasks, weights=weights))
    for method, factors in (("uncertainty", (0.91, 1.18)), ("pcgrad", (0.75, 0.9)), ("dwa", (1.1, 1.4))):
        arms.append(make_arm(method, "method", everywhere(*factors), tasks, method=method))
    return [*arms, make_arm(HOSTILE, "user", everywhere(0.95, 1.05), tasks, failed={"2": f"DataError: {HOSTILE}"})]


def make_interference(pair: list[str], arm: str = "joint") -> dict[str, Any]:
    times = 8
    cosine = [[round(0.5 - 0.15 * b - 0.03 * t, 4) for t in range(times)] for b in range(len(BLOCKS))]
    rho: list[list[float | None]] = [[round(1.4 * value, 4) for value in row] for row in cosine]
    rho[0][:3] = [None] * 3
    mean = [0.55, 0.35, 0.14, -0.07, -0.28]
    return {
        "arm": arm, "tasks": pair, "blocks": BLOCKS, "epochs": [0.5 * (t + 1) for t in range(times)],
        "cosine": cosine, "rho": rho, "conflict_frequency": [0.05, 0.12, 0.31, 0.55, 0.71],
        "magnitude_similarity": [0.9, 0.8, 0.7, 0.55, 0.42], "rho_mean": mean,
        "rho_low": [value - 0.09 for value in mean], "rho_high": [value + 0.09 for value in mean],
        "affinity": {f"{pair[0]} -> {pair[1]}": [0.011, 0.008, 0.004, -0.0021, -0.0034],
                     f"{pair[1]} -> {pair[0]}": [0.02, 0.01, 0.0, -0.001, -0.002]},
    }  # fmt: skip


def make_compare(tasks: tuple[str, ...] = ("asr", "speaker"), **changes: Any) -> dict[str, Any]:
    """A comparison of two or three tasks in which everything is there. The joint arm helps asr and harms speaker."""
    kinds = {"asr": ("asr", "wer"), "speaker": ("speaker", "eer"), "gender": ("classify", "accuracy error")}
    names = list(tasks)
    arms = make_arms(names)
    pairs = [[a, b] for i, a in enumerate(names) for b in names[i + 1 :]]
    return {
        "recipe": "fsdd", "command": "speech-mtl compare fsdd --out runs/fsdd-compare", "commit": "abc1234",
        "machine": "x86_64, 2 cores", "minutes": 95.2, "quick": False, "seeds": list(SEEDS), "complete": True,
        "margin": 0.02, "confidence": 0.95,
        "tasks": {task: dict(zip(("type", "metric"), kinds[task], strict=True)) for task in names},
        "sets": {"in domain": {"manifests": ["data/test.jsonl.gz"], "utterances": 317},
                 "out of domain": {"manifests": ["data/other.jsonl.gz"], "utterances": 1203}},
        "arms": arms, "interference": [make_interference(pair) for pair in pairs], "overhead": 0.021,
        "proposal": {"branch": 2, "why": "in blocks 3 and 4 rho lies below 0", "confirmed": True,
                     "tested": [{"branch": 2, "arm": "branch 2"}, {"branch": 3, "arm": "branch 3"}]},
        "cka": [{"a": "asr alone", "b": "speaker alone", "blocks": [0.98, 0.91, 0.64, 0.37]},
                {"a": "joint", "b": "asr alone", "blocks": [0.99, 0.96, 0.83, 0.77]}],
        "probe": [{"arm": "asr alone", "task": "speaker", "blocks": [0.91, 0.94, 0.82, 0.55]}],
        "curves": {arm["name"]: [{"epoch": e, "minutes": 0.3 * e}
                                 | {t: BASE[t] * (1 + i / 9) + 0.9 / e**2 for t in arm["tasks"]}
                                 for e in range(1, 13)] for i, arm in enumerate(arms)},
        "cost": {"audio_s": 100.0, "time_ratio": 0.53, "parameter_ratio": 0.51,
                 "joint": {"arm": "joint", "parameters": 1234567, "flops_per_s": 1.2e9, "rtf": 0.0107, "peak_mb": 301},
                 "apart": {"arms": [f"{t} alone" for t in names], "parameters": 2420720, "flops_per_s": 2.3e9,
                           "rtf": 0.0202, "peak_mb": 312}},
    } | changes  # fmt: skip


def arm_of(compare: dict[str, Any], name: str) -> dict[str, Any]:
    return next(arm for arm in compare["arms"] if arm["name"] == name)


def set_error(compare: dict[str, Any], name: str, task: str, error: float, half: float = 0.003) -> None:
    """Give an arm another error in domain, with the verdict that belongs to it."""
    arm = arm_of(compare, name)
    arm["scores"]["in domain"][task] = make_score(error)
    if arm["group"] != "single":
        base = arm_of(compare, f"{task} alone")["scores"]["in domain"][task]["mean"]
        arm["verdicts"]["in domain"][task] = make_verdict(task, error, base, half)


def bare() -> dict[str, Any]:
    """Only what must be there, and null wherever the file may say so."""
    compare = make_compare()
    optional = ("commit", "machine", "minutes", "overhead", "proposal", "cost", "cka", "probe", "curves",
                "interference", "quick", "complete", "command")  # fmt: skip
    compare |= dict.fromkeys(optional)
    for key in ("cka", "curves", "command"):
        compare.pop(key)
    compare["sets"] = {"in domain": {"manifests": None, "utterances": None}}
    compare["arms"] = [
        {"name": "asr alone", "tasks": ["asr"], "group": "single"},
        {"name": "joint", "tasks": ["asr", "speaker"], "branch": None, "scores": {"in domain": {"asr": {"mean": None}}},
         "delta_m": {"in domain": None}, "verdicts": None, "parameters": None, "failed": None},
    ]  # fmt: skip
    return compare


def incomplete() -> dict[str, Any]:
    """A run in its middle: the joint arm has no scores yet, one set, quick, a failed seed, nothing measurable."""
    compare = make_compare(complete=False, quick=True, seeds=[1], cost=None, proposal=None)
    compare["sets"].pop("out of domain")
    compare["arms"] = compare["arms"][:5]
    compare["curves"] = dict(list(compare["curves"].items())[:5])
    joint = arm_of(compare, "joint")
    joint |= {"scores": {}, "verdicts": {}, "failed": {"1": "MemoryError:\nout of memory"}, "delta_m": None}
    found = compare["interference"][0]
    found |= {"rho": [[None] * 8] * 5, "rho_mean": [None] * 5, "rho_low": [None] * 5, "rho_high": [None] * 5}
    return compare


def undecided() -> dict[str, Any]:
    """Both verdicts on the joint arm open; few arms, one set."""
    compare = make_compare(curves={}, interference=[], cka=[], probe=[])
    compare["arms"] = compare["arms"][:3]
    compare["sets"].pop("out of domain")
    set_error(compare, "joint", "asr", BASE["asr"], half=0.03)
    set_error(compare, "joint", "speaker", BASE["speaker"], half=0.03)
    arm_of(compare, "joint")["verdicts"]["in domain"]["speaker"]["needed_utterances"] = None
    arm_of(compare, "joint")["verdicts"]["in domain"]["asr"]["needed_speakers"] = 123
    return compare


def one_task() -> dict[str, Any]:
    compare = undecided()
    compare["tasks"].pop("speaker")
    return compare


MAKERS: dict[str, Callable[[], dict[str, Any]]] = {
    "three tasks": lambda: make_compare(("asr", "speaker", "gender")), "bare": bare,
    "incomplete": incomplete, "undecided": undecided, "no arms": lambda: make_compare(arms=[], curves={}, cost=None),
    "one task": one_task,
}  # fmt: skip


def write(folder: Path, compare: dict[str, Any]) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "compare.json").write_text(json.dumps(compare), encoding="utf-8")
    path = write_comparison(folder)
    assert path == folder / "compare.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every case, written once."""
    parent = tmp_path_factory.mktemp("compare")
    for name, make in MAKERS.items():
        write(parent / name, make())
    return {name: parent / name for name in MAKERS}


@pytest.fixture(scope="module")
def folder(folders: dict[str, Path]) -> Path:
    return folders["three tasks"]


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "compare.html").read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Tables as rows of cell texts, the ids met, and the tags left open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.in_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in ("meta", "br", "link"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.in_cell = True

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.in_cell = False

    def handle_data(self, data: str) -> None:
        if self.in_cell:
            self.tables[-1][-1][-1] += data


def squeezed(cell: str) -> str:
    return " ".join(cell.split())


@pytest.mark.parametrize("name", MAKERS)
def test_everything_optional_renders_and_is_sound_html(folders: dict[str, Path], name: str) -> None:
    compare = MAKERS[name]()
    reader = Reader((folders[name] / "compare.html").read_text(encoding="utf-8"))
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids))
    for told in advice(facts(compare)):
        assert told.text and told.figures and all(told.figures) and told.topic in QUESTIONS
        assert "None" not in (told.text + "".join(told.figures)).replace("None of the", "")
    assert "Cost: " in terminal_summary(compare)


def test_figures_in_the_tables_are_those_of_the_file(folder: Path, page: str) -> None:
    compare = json.loads((folder / "compare.json").read_text())
    tables = {table[0][0] + table[0][1]: table for table in Reader(page).tables if len(table[0]) > 1}
    rows = {squeezed(row[0]).split(" ✗")[0]: [squeezed(cell) for cell in row] for row in tables["armtitle"]}
    scored = [table for table in Reader(page).tables if squeezed(table[0][1]).startswith("asr: word error rate")]
    assert len(scored) == 2  # one table a set
    for arm in compare["arms"]:
        row = rows[squeezed(arm["name"])]
        assert row[6:] == ["1,234,567", "1.20e9", "3.10e15", "4.2"]
        for table, place in zip(scored, compare["sets"], strict=True):
            cells = next(line for line in table if squeezed(line[0]).split(" ✗")[0] == squeezed(arm["name"]))
            for i, task in enumerate(compare["tasks"]):
                score = arm["scores"][place].get(task)
                shown = [squeezed(cell) for cell in cells[1 + 2 * i : 3 + 2 * i]]
                assert shown[0] == (f"{100 * score['mean']:.2f} ± {100 * score['std']:.2f} %" if score else "–")
                if found := arm["verdicts"].get(place, {}).get(task):
                    texts = [
                        re.sub(r"^.0\.00$", "0.00", f"{100 * found[key]:+.2f}").replace("-", "−")
                        for key in ("difference", "low", "high")
                    ]
                    assert (
                        re.sub("[▲●▼?] ", "", shown[1]) == f"{texts[0]} {found['verdict']} ({texts[1]} to {texts[2]})"
                    )
    cost = next(table for table in Reader(page).tables if table[0][-1:] == ["joint / apart"])
    assert ["real-time factor", "0.0107", "0.0202", "0.53"] in cost and [
        "peak memory, MB",
        "301",
        "312",
        "0.96",
    ] in cost
    for value in ("abc1234", "x86_64, 2 cores", "95.2 min", "speech-mtl compare fsdd", "1, 2, 3", "2.10 %"):
        assert value in page


def test_headline_tiles_say_difference_interval_margin_and_reference(page: str) -> None:
    text = squeezed(re.sub(r"<[^>]+>", " ", page))
    assert (
        "speaker: learnt together harms The equal error rate is 5.17 ± 0.20 % against 4.50 ± 0.20 % of speaker alone"
        in text
    )
    assert "Difference +0.67 points (95 % interval +0.37 to +0.97); margin 0.09" in text
    first, second, third = (page.index(f"<h2>{i}. ") for i in (1, 2, 3))
    assert page.index("<h2>Advice") < first < second < third


def test_three_tasks_are_in_every_figure(page: str) -> None:
    figures = {name: svg for svg, name in re.findall(r'(<svg(?:(?!</svg>).)*?id="([a-z]+(?:-\d)*)-figure_1".*?</svg>)',
                                                     page, flags=re.DOTALL)}  # fmt: skip
    assert set(figures) == {*(f"forest-{i}-{k}" for i in range(3) for k in range(2)), "pareto-0", "pareto-1", "sweep-0",
                            "sweep-1", "curves", "blocks-0", "cka", "probe"}  # fmt: skip
    for name in ("pareto-0", "pareto-1", "sweep-0", "curves"):
        for task in ("asr", "speaker", "gender"):
            assert task in figures[name], (name, task)
    for pair in ("asr and speaker", "asr and gender", "speaker and gender"):
        assert pair in figures["blocks-0"]
        assert f"Conflict of {pair} in joint" in page
    for task, i in (("asr", 0), ("speaker", 1), ("gender", 2)):
        assert f"{task}: difference" in figures[f"forest-{i}-0"]
    assert "pcgrad" in figures["pareto-0"] and "speaker x0.01" in figures["pareto-0"]
    assert "proposed from conflict" in figures["sweep-0"]


def test_heat_map_shows_rho_and_greys_what_could_not_be_measured(page: str) -> None:
    found = make_interference(["asr", "speaker"])
    assert (found["rho"][4][7], found["cosine"][0][0]) == (-0.434, 0.5)
    assert "block 4, epoch 4: rho −0.434</title>" in page
    assert "block subsampling, epoch 0.5: cosine +0.500 (rho not measurable)" in page
    assert page.count('<g class="unsure">') == 3 * 3 and page.count('<g class="against">') > 0


def test_long_measurements_are_averaged_into_fewer_columns(tmp_path: Path) -> None:
    compare = make_compare(arms=[], curves={}, cka=[], probe=[])
    found = compare["interference"][0]
    found |= {"epochs": list(range(96)), "cosine": [[0.1] * 96] * 5, "rho": [[0.2, 0.4] * 48] * 5}
    page = write(tmp_path, compare)
    assert "2 times are averaged" in page and page.count('<g class="along">') == 5 * 48
    assert "epoch 0: rho +0.300" in page


def test_the_page_stands_alone_and_hostile_names_are_escaped(page: str, folder: Path) -> None:
    found = re.findall(r"""(?:src|href|action|srcset)\s*=\s*["']?([^"'\s>]+)|url\(\s*["']?([^"')]+)""", page)
    assert [a for pair in found for a in pair if a and not a.startswith(("data:", "#"))] == []
    assert "@import" not in page and "<link" not in page and "default-src 'none'" in page
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt; $x^2$" in page
    assert re.search(r"<text[^>]*>&lt;script&gt;alert\(1\)", page)  # in a figure, as it was written
    assert len(page.encode()) < 3_000_000


def test_failed_runs_are_named_with_their_reason(folders: dict[str, Path]) -> None:
    page = (folders["incomplete"] / "compare.html").read_text()
    assert "MemoryError: out of memory" in page and "<b>1 run failed.</b>" in page
    assert "not complete" in page and "Quick form" in page and "No sweep over branch points" in page
    text = (folders["incomplete"] / "compare.md").read_text()
    assert "joint (seed 1)" in text and "| MemoryError: out of memory |" in text


@pytest.mark.parametrize("name", MAKERS)
def test_markdown_columns_line_up(folders: dict[str, Path], name: str) -> None:
    text = (folders[name] / "compare.md").read_text(encoding="utf-8")
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        lines = table.splitlines()
        bars = [[i for i, c in enumerate(line) if c == "|" and line[i - 1] != "\\"] for line in lines]
        assert len(lines) > 2 or "no arms" in name
        assert all(places == bars[0] for places in bars), table


def test_terminal_summary_holds_verdicts_cost_and_proposal() -> None:
    text = terminal_summary(make_compare())
    assert "| speaker | in domain     | joint | 5.17 ± 0.20 %" in text and "| harms" in text
    assert "takes 53.00 % of the time of 2 separate passes (real-time factor 0.0107 against 0.0202)" in text
    assert "Proposal: branch point 2: in blocks 3 and 4 rho lies below 0; confirmed by training" in text


def lose(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda compare: compare.pop(key)


@pytest.mark.parametrize(("change", "message"), [
    (lose("tasks"), "'tasks' is missing"),
    (lose("margin"), "'margin' is missing"),
    (lambda compare: compare["arms"][0].pop("name"), r"'arms\.0\.name' is missing"),
    (lambda compare: compare.update(sets={}), "'sets' is {}"),
    (lambda compare: compare.update(seeds="three"), "'seeds' is 'three'"),
    (lambda compare: arm_of(compare, "joint")["verdicts"]["in domain"]["asr"].update(verdict="better"),
     "'better'; accepted are helps, no worse, harms, undecided"),
])  # fmt: skip
def test_a_missing_key_or_a_wrong_value_is_named(tmp_path: Path, change: Callable[..., Any], message: str) -> None:
    compare = make_compare()
    change(compare)
    (tmp_path / "compare.json").write_text(json.dumps(compare))
    with pytest.raises(ValueError, match=message) as raised:
        write_comparison(tmp_path)
    assert "compare.json" in str(raised.value) and not (tmp_path / "compare.html").exists()


def test_a_missing_file_and_a_broken_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"compare\.json is missing"):
        write_comparison(tmp_path)
    (tmp_path / "compare.json").write_text('{"recipe": "fs')
    with pytest.raises(ValueError, match=r"compare\.json is no JSON"):
        write_comparison(tmp_path)
    (tmp_path / "compare.json").write_text("[]")
    with pytest.raises(ValueError, match="holds a list"):
        write_comparison(tmp_path)


def test_every_set_has_its_own_kind_of_error(tmp_path: Path) -> None:
    """Speakers known from training in domain, enrolled ones out of it; the dev speakers are known ones, too."""
    compare = make_compare()
    places = {"in domain": "accuracy error", "out of domain": "eer", "dev": "accuracy error"}
    compare["tasks"]["speaker"] = {"type": "speaker", "metrics": places}
    page = write(tmp_path, compare)
    heads = [squeezed(table[0][2]) for table in Reader(page).tables if len(table[0]) > 2 and "asr: word" in table[0][1]]
    assert heads == ["speaker: share answered wrongly", "speaker: equal error rate"]
    axes = re.findall(r"difference in ([a-z ]+), percentage", page)
    assert axes == ["word error rate"] * 2 + ["share answered wrongly", "equal error rate"]
    assert "dev share answered wrongly, %" in page and "dev equal error rate" not in page
    text = (tmp_path / "compare.md").read_text()
    assert [f"speaker: {found}" for found in re.findall(r"\| speaker: ([a-z ]+[a-z]) +\|", text)] == heads


def test_not_a_number_counts_as_absent() -> None:
    compare = make_compare()
    arm_of(compare, "joint")["scores"]["in domain"]["asr"] = {
        "per_seed": {"1": 0.054},
        "mean": 0.054,
        "std": float("nan"),
    }
    text = terminal_summary(compare) + told(compare)
    assert "5.40 % · helps" in text and "nan" not in text


def told(compare: dict[str, Any], topic: str = "") -> str:
    """All advice as one text, a line each, figures behind."""
    return "\n".join(f"{a.text} [{'; '.join(a.figures)}]" for a in advice(facts(compare)) if topic in ("", a.topic))


def permuted_keeps(share: float) -> Callable[[dict[str, Any]], None]:
    return lambda compare: set_error(compare, "permuted speaker", "asr", BASE["asr"] * (1 - 0.1 * share), 0.0001)


def refute(compare: dict[str, Any]) -> None:
    compare["proposal"]["confirmed"] = False


def untested(compare: dict[str, Any]) -> None:
    compare["proposal"]["confirmed"] = None


def frozen_is_good(compare: dict[str, Any]) -> None:
    set_error(compare, "frozen asr + speaker", "speaker", BASE["speaker"] * 1.1)


def small_is_good(compare: dict[str, Any]) -> None:
    set_error(compare, "small asr", "asr", 0.054)


def near_zero(compare: dict[str, Any]) -> None:
    set_error(compare, "speaker alone", "speaker", 0.004)


def imbalance(compare: dict[str, Any]) -> None:
    arm_of(compare, "joint")["examples"] = {"asr": 2400, "speaker": 300}


def same_seeds(compare: dict[str, Any]) -> None:
    for tasks in arm_of(compare, "joint")["scores"].values():
        for score in tasks.values():
            score["per_seed"] = dict.fromkeys(("1", "2", "3"), score["mean"])


def contradict(compare: dict[str, Any]) -> None:
    joint = arm_of(compare, "joint")["verdicts"]
    joint["out of domain"]["asr"] = make_verdict("asr", 0.200, 0.138)


def all_good(compare: dict[str, Any]) -> None:
    set_error(compare, "joint", "speaker", 0.045, half=0.0005)


def unmeasurable(compare: dict[str, Any]) -> None:
    compare["interference"][0] |= {"rho_mean": [None] * 5}


def no_interval(compare: dict[str, Any]) -> None:
    compare["interference"][0] |= {"rho_low": [], "rho_high": None}


def plain_sum(compare: dict[str, Any]) -> None:
    """Among the methods, with all weights 1."""
    arm_of(compare, "dwa")["method"] = "fixed"


def by_seeds(compare: dict[str, Any]) -> None:
    """One verdict that no number of utterances decides."""
    verdicts = [v for arm in compare["arms"] for v in arm["verdicts"].get("in domain", {}).values()]
    next(v for v in verdicts if v["verdict"] == "undecided")["needed_utterances"] = None


def none_good(compare: dict[str, Any]) -> None:
    for arm in compare["arms"]:
        if set(arm["tasks"]) == {"asr", "speaker"} and arm["group"] != "single":
            set_error(compare, arm["name"], "speaker", 0.09)


def nothing(compare: dict[str, Any]) -> None:
    pass


CASES: list[tuple[str, Callable[[dict[str, Any]], None], str, str]] = [
    ("together", nothing, "Do not learn these tasks together as in joint: it harms speaker. [asr, in domain: h", ""),
    ("together", nothing, "asr: learning together helps; its word error rate is lower than that of asr alone. [asr, in "
     "domain: joint 5.40 ± 0.20 % against asr alone 6.00 ± 0.20 %; difference −0.60 points, 95 % interval −0.90 to "
     "−0.30, margin 0.12]", "undecided."),
    ("together", nothing, "for every task: branch 2 and pcgrad. They were found among 10 by these same test data", ""),
    ("together", none_good, "None of the other 10 settings that share is 'helps' or 'no worse' for every task.", ""),
    ("together", all_good, "it helps asr and harms no task", "settings that share"),
    ("together", permuted_keeps(0.9), "The gain for asr is explained by the control", "does not explain"),
    ("together", permuted_keeps(0.9), "share of the gain kept: 90 %", ""),
    ("together", permuted_keeps(0.3), "Part of the gain for asr is there with the speaker labels", "is explained"),
    ("together", permuted_keeps(-0.2), "The control does not explain the gain for asr", "undecided: with"),
    ("together", nothing, "Whether the control explains the gain for asr is undecided", "is explained by"),
    ("together", nothing, "Transfer (asr to speaker) comes within the margin of joint for speaker",
     "Transfer (speaker to asr)"),
    ("together", frozen_is_good, "head for speaker (frozen asr + speaker) comes within the margin of joint",
     "head for asr"),
    ("together", nothing, "", "A frozen encoder"),
    ("together", small_is_good, "A smaller model for asr alone (small asr) comes within the margin of joint",
     "small speaker"),
    ("branch", nothing, "proposed to share blocks up to 2 (in blocks 3 and 4 rho lies below 0), and training confirmed",
     "refuted"),
    ("branch", refute, "but training refuted it: do not part there on that ground. [branch 2, in domain: asr 5.4",
     "confirmed"),
    ("branch", untested, "training has neither confirmed nor refuted it", "training confirmed"),
    ("branch", nothing, "is the first 2 blocks (branch 2)", ""),
    ("branch", none_good, "No branch point above 0 was 'helps' or 'no worse' for every task", ""),
    ("branch", nothing, "pull against each other in block 4. [block 4: rho −0.28 (−0.37 to −0.19)]", "beyond noise"),
    ("branch", no_interval, "can be said to conflict or not. [block 4: rho −0.28, no interval]", "beyond noise"),
    ("branch", unmeasurable, "could not be measured above their noise", "pull against"),
    ("branch", nothing, "asr alone and speaker alone are least alike in block 4. [CKA 0.37", "joint and asr"),
    ("branch", nothing, "easiest to read from block 2 of asr alone. [probe 94.00 % right in block 2; 55.00 %", ""),
    ("weights", nothing, "pcgrad: lies outside the front of the fixed weights by more than the spread over seeds: it "
     "helps. [pcgrad, in domain: asr 4.50", "uncertainty: lies outside"),
    ("weights", nothing, "dwa: does not help; it lies inside the front", "dwa: lies outside"),
    ("weights", nothing, "None of the 4 fixed weights is 'helps' or 'no worse' for every task", ""),
    ("weights", plain_sum, "None of the 5 fixed weights is 'helps' or 'no worse' for every task", "dwa:"),
    ("data", imbalance, "asr has 8.0 times the examples of speaker. [asr: 2,400 labelled examples; speaker: 300", ""),
    ("data", nothing, "4,100 test utterances would decide 9 of them. [", "out of balance"),
    ("data", by_seeds, "would decide 8 of them; 1 of them only more seeds may decide. [", ""),
    ("cost", nothing, "takes 53.00 % of the time of separate passes over the same audio. [time ratio 0.53; "
     "real-time factor 0.0107 joint, 0.0202 apart]", "saves no time"),
    ("cost", lambda c: c["cost"].update(time_ratio=1.1), "it saves no time", ""),
    ("cost", nothing, "took 0.50 times the computing of training each task alone", ""),
    ("caution", near_zero, "speaker alone errs so seldom that a small difference in points is a large percentage", ""),
    ("caution", nothing, "Δm is above zero in domain although speaker is harmed", "Δm misleads"),
    ("caution", contradict, "asr, joint: out of domain contradicts in domain ('harms' there, 'helps' here)", ""),
    ("together", contradict, "it harms speaker. But out of domain it harms asr. [", ""),
    ("caution", nothing, "1 run failed", "not complete"),
    ("caution", nothing, "would still be 'helps' or 'harms' by chance", "exactly the same errors"),
    ("caution", same_seeds, "Different seeds gave exactly the same errors, on every task and set", ""),
    ("caution", lambda c: c["sets"].pop("out of domain"), "Only one set was tested", "contradicts"),
    ("caution", lambda c: c.update(seeds=[1, 2]), "With fewer than 3 seeds", ""),
    ("caution", lambda c: c.update(complete=False, quick=True), "The comparison is not complete", ""),
]  # fmt: skip


@pytest.mark.parametrize(("topic", "change", "says", "never"), CASES)
def test_advice_by_case(topic: str, change: Callable[[dict[str, Any]], None], says: str, never: str) -> None:
    compare = make_compare()
    change(compare)
    text = told(compare, topic)
    assert says in text
    assert not never or never not in text


def test_undecided_is_said_as_undecided_and_as_nothing_else() -> None:
    text = told(undecided(), "together")
    assert "stays open: no decision for asr and speaker." in text
    assert "These data do not show whether learning together helps or harms; about 4,100 test utterances of 123" in text
    assert "speaker: undecided." in text and "more test utterances alone would not decide, more seeds may." in text
    for line in text.splitlines():
        if line.startswith(("asr:", "speaker:")):
            assert "learning together helps;" not in line and "no worse than" not in line and "harms; its" not in line


def test_every_verdict_sentence_says_the_verdict_of_the_file() -> None:
    for error, half, word in ((0.05, 0.001, "helps"), (0.06, 0.001, "no worse"), (0.07, 0.001, "harms"),
                              (0.06, 0.02, "undecided")):  # fmt: skip
        compare = make_compare()
        set_error(compare, "joint", "asr", error, half)
        line = next(a for a in advice(facts(compare)) if a.text.startswith("asr:"))
        assert compare["arms"][2]["verdicts"]["in domain"]["asr"]["verdict"] == word
        assert word in line.text.split(";")[0].split(" than")[0]


def test_advice_is_a_pure_function_and_frozen() -> None:
    compare = make_compare()
    before = json.dumps(compare)
    assert advice(facts(compare)) == advice(facts(compare)) and json.dumps(compare) == before
    with pytest.raises(AttributeError):
        Advice("a", ("b",), "cost").text = "c"  # type: ignore[misc]


@pytest.mark.parametrize(("point", "std", "place"), [
    ((3.0, 3.0), (0.1, 0.1), "inside"),  # on the line between the ends itself
    ((4.0, 4.0), (0.1, 0.1), "inside"),
    ((2.0, 2.0), (0.1, 0.1), "outside"),  # beyond the line, though it beats neither end in both tasks
    ((2.0, 2.0), (1.5, 1.5), "outside by less than the spread"),
    ((2.0, 2.0), (None, 0.1), "outside by less than the spread"),
    ((0.5, 6.0), (0.1, 0.1), "on"),  # further out than the sweep went: another compromise
])  # fmt: skip
def test_where_a_method_lies_against_the_front(point: Any, std: Any, place: str) -> None:
    fixed = [(1.0, 5.0), (5.0, 1.0), (6.0, 6.0)]
    for scale in (1.0, 1e-4):
        scaled = [[scale * value for value in row] for row in (point, *fixed)]
        spread = [None if value is None else scale * value for value in std]
        assert place_against_front(scaled[0], spread, scaled[1:], [[0.0, 0.0]] * 3) == place


def test_pareto_front_of_three_tasks() -> None:
    assert pareto_front([(1, 2, 3), (1, 2, 3), (1, 2, 4), (0, 9, 9), (2, 2, 3)]) == [0, 1, 3]


def test_numbers_are_told_without_losing_small_ones() -> None:
    told_points = [points(0.0123), points(-0.00002), points(0.0), points(None), points(0.0004, sign=False)]
    assert told_points == ["+1.23", "−0.002", "0.00", "–", "0.04"]
    assert (scientific(3.1e15), scientific(0.5), percent(None)) == ("3.10e15", "5.00e-01", "–")


def test_the_joint_arm_is_found_without_its_name() -> None:
    compare = make_compare()
    arm_of(compare, "joint")["name"] = "everything shared"
    assert facts(compare).joint is not None and facts(compare).joint.name == "everything shared"  # type: ignore[union-attr]


def test_writing_imports_no_torch(folders: dict[str, Path]) -> None:
    folder = folders["incomplete"]
    code = (f"import sys; from pathlib import Path; from speech_mtl.report.compare import write_comparison as w; "
            f"w(Path({str(folder)!r})); print('torch' in sys.modules)")  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
