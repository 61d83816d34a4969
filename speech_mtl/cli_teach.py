"""The command `teach`: a public speaker encoder's vectors of the training utterances, as a label."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speech_mtl.terminal import fail, guarded, note, progress


@guarded
def teach(
    manifests: Annotated[list[Path], typer.Argument(metavar="MANIFEST", help="Manifests (jsonl, jsonl.gz).")],
    teacher: Annotated[Path, typer.Option(metavar="FILE", help="A speaker encoder of 3D-Speaker or WeSpeaker, ONNX.")],
    speeds: Annotated[
        str, typer.Option(metavar="LIST", help="Speed factors of the training, its augment.speeds.")
    ] = "0.9,1,1.1",
) -> None:
    """Add a teacher's embeddings to manifests. Writes NAME_taught.jsonl.gz beside each; prints the files.

    Training with tasks.NAME.teacher pulls the speaker embedding towards them. Ctrl-C keeps what is done; the same call
    goes on from there.

    \b
    Example: speech-mtl teach data/an4/train.jsonl.gz --teacher campplus.onnx
    """
    try:
        factors = sorted({float(text) for text in speeds.split(",")})
    except ValueError:
        factors = []
    if not factors or not 0.1 <= factors[0] <= factors[-1] <= 10:
        raise typer.BadParameter(f"--speeds {speeds}; expected factors from 0.1 to 10, such as 0.9,1,1.1")
    from speech_mtl import teacher as teaching
    from speech_mtl.data import Manifest

    encoder, bad = teaching.Teacher(teacher), []
    for manifest in manifests:
        utterances = sum(1 for _ in Manifest(manifest))
        out = manifest.with_name(f"{manifest.name.split('.jsonl')[0]}_taught.jsonl.gz")
        with progress(str(manifest), utterances) as show:
            unheard = teaching.teach(manifest, out, encoder, factors, show)
        note(f"{manifest}: {utterances - len(unheard)} of {utterances} utterances have a vector")
        typer.echo(out)
        bad += unheard
    if bad:
        fail("\n".join(bad))
