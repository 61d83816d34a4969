"""speech-mtl <command>: parse, call, exit code. What each command does stands in the module that it calls.

Heavy modules are imported inside the commands, so that --help and a wrong call are answered at once.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

import data_prep
from speech_mtl import __version__, cli_calibrate, cli_decode, cli_speakers
from speech_mtl.cli_export import export
from speech_mtl.cli_import import import_
from speech_mtl.cli_options import (
    BeamWidth,
    Boost,
    Cosine,
    Count,
    Device,
    HotWords,
    LmFile,
    LmWeight,
    PriorWeight,
    UnknownScore,
    WordScore,
    check_out,
    checked_device,
    decoding_of,
)  # fmt: skip
from speech_mtl.cli_teach import teach
from speech_mtl.cli_transcribe import transcribe
from speech_mtl.terminal import fail, guarded, note, progress, write_all_characters

# rich's boxes around the help would cost a third of the start
app = typer.Typer(
    name="speech-mtl", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="What was said and who said it, from one Conformer learnt on both tasks.",
)  # fmt: skip


def main() -> None:
    """The console script."""
    write_all_characters()
    app()


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit()


@app.command("prepare")
@guarded
def prepare_(
    corpus: Annotated[str, typer.Argument(metavar="CORPUS", help=f"One of: {', '.join(data_prep.CORPORA)}.")],
    source: Annotated[Path | None, typer.Option(help="Folder or file that holds the corpus.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the manifests; data/CORPUS if not given.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch the corpus from its public address.")] = False,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="An option of the corpus, repeatable; a wrong KEY lists them, data_prep/CORPUS.py explains them.",
        ),
    ] = None,
) -> None:
    """Turn a corpus into manifests, one a split. Says what is in them.

    \b
    Example: speech-mtl prepare fsdd --source free-spoken-digit-dataset --out data/fsdd
    """
    options = dict(_key_value(text) for text in option or [])
    try:
        known = data_prep.options_of(corpus)
    except data_prep.PrepareError as error:
        raise typer.BadParameter(str(error)) from None
    if unknown := options.keys() - known.keys():
        accepted = ", ".join(known) or "none"
        raise typer.BadParameter(f"--option {min(unknown)}: unknown for {corpus}; accepted: {accepted}")
    data_prep.prepare(corpus, source, out or Path("data") / corpus, download=download, **options)


def _key_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise typer.BadParameter(f"--option {text}: expected KEY=VALUE")
    return key.strip(), value.strip()


@app.command("inspect")
@guarded
def inspect_(
    manifests: Annotated[list[str], typer.Argument(metavar="MANIFEST", help="Manifests (jsonl, jsonl.gz).")],
) -> None:
    """Show what manifests hold for each task. Also how the labels overlap, and what will hurt in training.

    \b
    Example: speech-mtl inspect data/fsdd/train.jsonl.gz
    """
    with progress("reading the manifests"):
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        from speech_mtl.survey import survey, tables

        found = survey(manifests)
    console = Console()
    for title, heads, rows in tables(found):
        table = Table(*heads, title=title, title_justify="left")
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)
    for warning in found.warnings():
        note(f"warning: {warning}")


app.command("teach")(teach)


@app.command("train")
@guarded
def train_(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="Name of a bundled recipe (a wrong one lists them), or a .toml file."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the model and its training state.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of the recipe; repeatable."),
    ] = None,
    init: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A model to start from: --set train.init=DIR.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in --out was stopped.")] = False,
) -> None:
    """Train a model; prints its folder. Ctrl-C saves, --resume goes on exactly there.

    A run that trunk.max_wer_increase stops keeps its best model, prints nothing and ends with exit code 1.

    \b
    Example: speech-mtl train fsdd --set train.epochs=20 --out runs/fsdd
    """
    from speech_mtl.recipe import load_recipe

    settings = [*([f"train.init={json.dumps(str(init))}"] if init else []), *(overrides or [])]
    config = load_recipe(recipe, settings)  # before torch is loaded: a wrong key is answered at once
    from speech_mtl.train import train

    try:
        typer.echo(train(config, out, resume=resume))
    except KeyboardInterrupt:
        saved = (out / "training" / "state.pt").is_file()
        fail("interrupted; run again with --resume" if saved else "interrupted before anything was saved", 130)


app.command("import")(import_)
app.command("export")(export)


@app.command("compare")
@guarded
def compare_(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="an4, fsdd, or a .toml file with a [compare] section.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the runs and the report.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of the recipe; repeatable."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The recipe's short form: fewer arms, seeds, epochs.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, each a process of its own.")] = 1,
) -> None:
    """Train every arm with every seed, and report. Says whether, where and how the tasks should share a model.

    What is done is kept: run again, it goes on where it was stopped.

    \b
    Example: speech-mtl compare fsdd --jobs 2 --out runs/fsdd-compare
    """
    from speech_mtl.recipe import load_recipe

    config = load_recipe(recipe, overrides)  # before torch is loaded: a wrong key is answered at once
    from speech_mtl.compare import compare
    from speech_mtl.report.compare import terminal_summary

    command = shlex.join(["speech-mtl", *sys.argv[1:]])
    try:
        page = compare(config, recipe, out, command=command, quick=quick, jobs=jobs)
    except KeyboardInterrupt:
        fail("interrupted; the same command goes on from there", 130)
    found = json.loads((out / "compare.json").read_text(encoding="utf-8"))
    typer.echo(terminal_summary(found))
    typer.echo(f"\nreport: {page}")
    if not found["complete"]:
        fail("not all runs were done; the report names them", 1)


@app.command("evaluate")
@guarded
def evaluate_(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder.")],
    manifests: Annotated[list[str], typer.Argument(metavar="MANIFEST", help="Test cuts (jsonl, jsonl.gz).")],
    enroll: Annotated[
        list[str] | None,
        typer.Option(metavar="MANIFEST", help="Enrolment cuts of speakers that were not trained on; repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; MODEL/eval if not given.")] = None,
    conversations: Annotated[
        bool, typer.Option("--conversations", help="Score who said what: cuts with a supervision per utterance.")
    ] = False,
    count: Count = None,
    threshold: Cosine = None,
    device: Device = "cpu",
    beam: BeamWidth = None,
    lm: LmFile = None,
    lm_weight: LmWeight = None,
    word_score: WordScore = None,
    unknown_score: UnknownScore = None,
    prior_weight: PriorWeight = None,
    hot_word: HotWords = None,
    boost: Boost = None,
) -> None:
    """Score a model. A table here; summary.json, utterances.jsonl and report.html in a folder.

    With --conversations these are summary.json, conversations.jsonl and a result per conversation, ID.json. What
    has the same name is replaced: give evaluations that are to be kept a folder each.

    \b
    Example: speech-mtl evaluate runs/an4 data/an4/trial.jsonl.gz --enroll data/an4/enroll.jsonl.gz --out eval
    """
    out = out or model / "eval"
    decoding = decoding_of(model, beam, lm, lm_weight, word_score, unknown_score, prior_weight, hot_word, boost)
    written = ("summary.json", "conversations.jsonl", "utterances.jsonl", "report.html", "report.md")
    check_out([out / name for name in written], [*manifests, *(enroll or []), lm])
    if conversations:
        from speech_mtl.cli_conversations import evaluate as evaluate_conversations

        evaluate_conversations(model, manifests, enroll, out, count, threshold, checked_device(device), decoding)
        return
    if count is not None or threshold is not None:
        raise typer.BadParameter("--speakers and --threshold go with --conversations")
    bad: list[str] = []
    texts: list[tuple[str, dict[str, str]]] = []
    with progress("loading the model"):
        from speech_mtl.checkpoint import CheckpointError, load_model
        from speech_mtl.data import read_cuts
        from speech_mtl.evaluate import evaluate, task_kinds
        from speech_mtl.recognizer import set_decoder
        from speech_mtl.report import terminal_markdown, write_report

        loaded = load_model(model, checked_device(device))
        decoder = set_decoder(loaded, decoding) if decoding else None
        kinds = task_kinds(loaded)
        if enroll and "speaker" not in kinds.values():
            raise CheckpointError(f"{model} has no speaker task, --enroll needs one; its tasks: {', '.join(kinds)}")
        # a broken line is found now, not at the end of a long run
        voices = [len({one.speaker for one in cut.supervisions}) for cut in read_cuts(manifests)]
        total = len(voices)

    with progress("evaluating", total) as show:
        summary = evaluate(loaded, manifests, out, enroll, on_row=_watcher(show, bad, texts))
    report = write_report(out)
    typer.echo(terminal_markdown(summary))
    for effect in decoder.effects(texts) if decoder else []:
        note(effect)
    if several := sum(number > 1 for number in voices):
        note(f"{several} of {total} cuts hold several speakers: --conversations scores who said what in them")
    if any(
        kind == "speaker" and "accuracy" not in summary.get(name, {"accuracy": None}) for name, kind in kinds.items()
    ):
        unknown = "none of the speakers was trained on: --enroll MANIFEST scores how new ones are told apart"
        note("none of the speakers is among those of --enroll" if enroll else unknown)
    note(f"written: {out / 'summary.json'}, {out / 'utterances.jsonl'}, {report}")
    if bad:
        fail("\n".join([f"{len(bad)} of {total} utterances could not be read:", *bad]))


def _watcher(
    show: Callable[[float], None], bad: list[str], texts: list[tuple[str, dict[str, str]]]
) -> Callable[[dict[str, Any]], None]:
    """Counts the rows as they come; collects the errors, and the texts with those that no help had changed."""
    done = 0

    def see(row: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        show(done)
        if "error" in row:
            bad.append(f"{row['id']}: {row['error']}")
        answers = [answer for answer in row.values() if isinstance(answer, dict)]
        texts.extend((answer["hyp"], answer["without"]) for answer in answers if "without" in answer)

    return see


app.command("transcribe")(transcribe)


@app.command("demo")
@guarded
def demo(out: Annotated[Path, typer.Option(help="Folder for the page.")] = Path("demo")) -> None:
    """Who said what in a bundled recording. Three voices are enrolled, one is a stranger; scored by the truth.

    \b
    Example: speech-mtl demo --out demo
    """
    from speech_mtl.demo import run

    run(out)


cli_decode.register(app)
cli_speakers.register(app)
cli_calibrate.register(app)
