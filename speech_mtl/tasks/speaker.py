"""Speaker identification: pooled frames -> embedding -> additive angular margin softmax (Deng et al. 2019, 1801.07698).

Output 'embedding' (B, E) of length 1 and 'cosine' (B, classes). Speed perturbation changes who somebody is, so in
training every speed factor has classes of its own.

In use, embeddings pass a linear discriminant analysis of the training speakers' embeddings, as in Kaldi's x-vector
recipes (Snyder et al. 2018): it drops what varies within a speaker. A training speaker is then found as an enrolled one
is, by the mean of their embeddings: on speechocean762 that names 99 % where the softmax's own classes name 4 %.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtl.tasks import Frames, Task, label_of
from speech_mtl.tasks.pooling import Pooling

if TYPE_CHECKING:
    from lhotse.cut import Cut

    from speech_mtl.config import Config


def speed_label(speaker: str, factor: float) -> str:
    """The name of a speaker at a speed; at 1 the speaker."""
    return speaker if factor == 1 else f"{speaker}@{factor:g}"


class Speaker(Task):
    projection_EE: Tensor
    voices_CE: Tensor

    def __init__(self, name: str, config: Config, speakers: list[str]):
        super().__init__()
        task, D = config.tasks[name], config.encoder.d_model
        self.speakers, self.margin, self.scale = speakers, task.margin, task.scale
        speeds = [1.0, *(factor for factor in sorted(set(config.augment.speeds)) if factor != 1)]
        classes = [speed_label(speaker, factor) for factor in speeds for speaker in speakers]
        self.index = {label: i for i, label in enumerate(classes)}
        n_blocks = len(config.blocks_read(name))
        self.pooling = Pooling(D, config.features.n_mels, n_blocks, task.spectrum, task.adaptor_dim)
        self.dropout = nn.Dropout(task.dropout)
        self.embedding = nn.Linear(self.pooling.size, task.embedding_dim)
        self.centres = nn.Parameter(torch.empty(len(classes), task.embedding_dim))
        self.lda_dim = task.lda_dim
        self.register_buffer("projection_EE", torch.eye(task.embedding_dim))
        self.register_buffer("voices_CE", torch.zeros(len(speakers), task.embedding_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start the classes' centres anew."""
        nn.init.normal_(self.centres, std=0.01)

    def targets(self, cuts: list[Cut], lengths_B: Tensor) -> dict[str, Tensor]:
        """A speaker who is not among the classes is no label."""
        classes_B = torch.tensor([self.index.get(label_of(cut, "speaker") or "", -1) for cut in cuts])
        return {"classes": classes_B, "mask": classes_B >= 0}

    def forward(self, frames: Frames, rows_B: Tensor | None = None) -> dict[str, Tensor]:
        return self._from_pooled(self.pooling(frames.of_rows(rows_B)))

    def over_spans(self, frames: Frames, spans: list[tuple[int, int]], mel_ratio: int) -> dict[str, Tensor]:
        """The output for each span (first, last) of one utterance's encoder frames; see Pooling.over_spans."""
        return self._from_pooled(self.pooling.over_spans(frames, spans, mel_ratio))

    def _from_pooled(self, pooled_BP: Tensor) -> dict[str, Tensor]:
        trained_BE = F.normalize(self.embedding(self.dropout(pooled_BP)).float(), dim=1)
        embedding_BE = F.normalize(trained_BE @ self.projection_EE, dim=1)
        return {"embedding": embedding_BE, "cosine": trained_BE @ F.normalize(self.centres.float(), dim=1).T}

    def reset_projection(self) -> None:
        """Have `embedding` be the one that is trained."""
        self.projection_EE.copy_(torch.eye(len(self.projection_EE)))

    def fit(self, embeddings_NE: Tensor, speakers: list[str]) -> None:
        """Set projection and voices from embeddings before projection; too few speakers for the one, and it stays."""
        if 0 < self.lda_dim < min(len(set(speakers)), len(self.projection_EE)):
            # columns beyond the directions are zero, so that the size does not depend on the data
            directions_EK = discriminant_directions(embeddings_NE.numpy(), speakers, self.lda_dim)
            self.projection_EE.zero_()[:, : self.lda_dim] = torch.from_numpy(directions_EK)
        projected_NE = F.normalize(embeddings_NE @ self.projection_EE.cpu(), dim=1)
        for row, speaker in enumerate(self.speakers):
            own_N = torch.tensor([name == speaker for name in speakers])
            self.voices_CE[row] = F.normalize(projected_NE[own_N].sum(0), dim=0)

    def loss(self, output: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        classes_B = targets["classes"][targets["mask"]]
        logits = self.scale * add_margin(output["cosine"], classes_B, self.margin)
        return F.cross_entropy(logits, classes_B, reduction="sum")

    def predict(self, output: dict[str, Tensor]) -> list[dict[str, Any]]:
        """embedding (E,), cosine to the voice of each training speaker (speakers,)."""
        cosine = output["embedding"] @ self.voices_CE.T
        return [{"embedding": e, "cosine": c} for e, c in zip(output["embedding"].cpu(), cosine.cpu(), strict=True)]


def discriminant_directions(embeddings_NE: np.ndarray, speakers: list[str], dimensions: int) -> np.ndarray:
    """(E, dimensions), float32: in which speakers differ most for what their own utterances differ."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    # a little shrinkage: the covariance within speakers is measured on a few utterances of each
    lda = LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.1, n_components=dimensions)
    return lda.fit(embeddings_NE.astype(np.float64), speakers).scalings_[:, :dimensions].astype(np.float32)


def add_margin(cosine_BC: Tensor, classes_B: Tensor, margin: float) -> Tensor:
    """cos(θ + margin) at each row's own class; beyond θ = π - margin, where that would rise again, a straight line."""
    target_B1 = cosine_BC.gather(1, classes_B[:, None])
    sine_B1 = (1 - target_B1.square()).clamp(min=1e-9).sqrt()
    moved_B1 = target_B1 * math.cos(margin) - sine_B1 * math.sin(margin)
    moved_B1 = torch.where(target_B1 > math.cos(math.pi - margin), moved_B1, target_B1 - margin * math.sin(margin))
    return cosine_BC.scatter(1, classes_B[:, None], moved_B1)
