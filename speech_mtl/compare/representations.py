"""What the blocks of different models have in common, and what can be read from them.

Every utterance becomes one vector a block: mean and deviation of its frames. Linear CKA (Kornblith et al. 2019, arXiv
1905.00414) says how alike two models' blocks order the utterances, 1 for the same up to rotation and scale. A probe
(Alain & Bengio 2016, arXiv 1610.01644) says how well a label can be read from a block by a linear classifier.
"""

from __future__ import annotations

import numpy as np
import torch
from lhotse import CutSet

from speech_mtl.config import Config
from speech_mtl.cuts import label_names
from speech_mtl.data import DataError, batches, read_cuts
from speech_mtl.model import SpeechModel
from speech_mtl.tasks import label_of

UTTERANCES = 400


def block_vectors(
    model: SpeechModel, manifests: list[str], config: Config
) -> tuple[list[np.ndarray], dict[str, list[str | None]]]:
    """([(N, 2·D) a block], labels of the config's tasks but recognition by name), of up to 400 utterances.

    The blocks are all those on the way to the model's first task, so that block k is block k in every model.
    Raises DataError where none of them can be read.
    """
    cuts = sorted(read_cuts(manifests), key=lambda cut: cut.id)
    spread = np.linspace(0, len(cuts) - 1, min(len(cuts), UTTERANCES)).round().astype(int)
    chosen = CutSet.from_cuts([cuts[i] for i in spread])
    labelled = {task: name for task, name in label_names(config).items() if config.tasks[task].type != "asr"}
    first = next(iter(model.tasks))
    found: dict[str, tuple[list[torch.Tensor], dict[str, str | None]]] = {}
    for batch in batches(chosen, model.config):
        if not batch.cuts:
            continue
        with torch.inference_mode():
            frames = model.trunk(batch.audio_BN, batch.samples_B)
            blocks = model.way_to_head(first, frames)
        for i, cut in enumerate(batch.cuts):
            own = [block[i, : int(frames.lengths_B[i])] for block in blocks]
            vectors = [torch.cat([x.mean(0), x.std(0, correction=0)]) for x in own]
            found[cut.id] = vectors, {task: label_of(cut, name) for task, name in labelled.items()}
    if not found:
        raise DataError(f"none of {len(cuts)} recordings could be read")
    order = sorted(found)  # the same for every model, whatever their batches were
    stacked = [np.stack([found[i][0][b].numpy() for i in order]).astype(np.float64) for b in range(len(blocks))]
    return stacked, {task: [found[i][1][task] for i in order] for task in labelled}


def linear_cka(x_ND: np.ndarray, y_ND: np.ndarray) -> float:
    """Linear centred kernel alignment of two models' vectors of the same N utterances, 0 to 1."""
    x_ND, y_ND = x_ND - x_ND.mean(0), y_ND - y_ND.mean(0)
    own = np.linalg.norm(x_ND.T @ x_ND) * np.linalg.norm(y_ND.T @ y_ND)
    return float(np.linalg.norm(x_ND.T @ y_ND) ** 2 / own) if own > 0 else 0.0


def probe_accuracy(x_ND: np.ndarray, labels: list[str | None], folds: int = 5) -> float | None:
    """Cross-validated accuracy of a linear classifier; None with fewer than two classes of `folds` utterances each."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    names, counts = np.unique([label for label in labels if label is not None], return_counts=True)
    often = set(names[counts >= folds])
    rows = [i for i, label in enumerate(labels) if label in often]
    if len(often) < 2:
        return None
    classifier = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1)
    split = StratifiedKFold(folds, shuffle=True, random_state=0)
    return round(float(cross_val_score(classifier, x_ND[rows], [labels[i] for i in rows], cv=split).mean()), 4)
