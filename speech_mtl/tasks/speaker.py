"""Speaker identification: pooled frames -> embedding -> additive angular margin softmax (Deng et al. 2019, 1801.07698).

Output 'embedding' (B, E) of length 1, and in training 'cosine' (B, classes). Speed perturbation changes who somebody
is, so in training every speed factor has classes of its own.

In use, embeddings pass a linear discriminant analysis of the training speakers' embeddings, as in Kaldi's x-vector
recipes (Snyder et al. 2018): it drops what varies within a speaker. It reads the spectrum of the speech beside what was
trained, which knows the training speakers too well: on phrases of unseen AN4 voices that halves the errors. Each corpus
is centred first, since what its recordings have in common is no voice, and a voice at another speed counts as another
speaker; both, with the scale of the directions, halve the EER of unseen speakers' turns in conversations. Corpora
count as they do in training: synthetic voices are many, and differ in other ways than people do. What their means
differ in counts as what varies within a speaker (inter-dataset variability, Aronowitz 2014), and so does another
microphone's sound (LogMel.through_channels): strangers of one place are alike in it, and a threshold that was measured
in one place would not hold in the next. A training
speaker is found as an enrolled one is, by the mean of their embeddings: on speechocean762 that names 99 % where the
softmax's own classes name 4 %.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtl.tasks import Frames, Task, label_of
from speech_mtl.tasks.pooling import Pooling, level_free

if TYPE_CHECKING:
    from lhotse import SupervisionSegment
    from lhotse.cut import Cut

    from speech_mtl.config import Config

VECTORS = "voice_vectors"
"""Where a supervision's custom dict keeps a teacher's vectors: speed -> numbers."""
SPECTRUM_SCALE = 0.1
"""Of the spectrum, in nats, beside embeddings of length 1: how far the analysis' shrinkage trusts each."""
CORPUS_SPEAKERS = 5
"""A corpus of fewer speakers has no mean of its own to be taken off."""
SHRINKAGE = 0.05
"""Of the covariance within speakers, to a multiple of the unit matrix."""
BETWEEN = 0.05
"""Directions are scaled to a variance of 1, in which that between speakers counts so much: with 0 the few directions in
which speakers differ most, sex above all, decide the cosine."""


def voice_vector(supervision: SupervisionSegment, speed: float = 1.0) -> list[float] | None:
    """A teacher's vector of an utterance at a speed, as `speech-mtl teach` writes it; None where there is none."""
    return ((supervision.custom or {}).get(VECTORS) or {}).get(f"{speed:g}")


def speed_label(speaker: str, factor: float) -> str:
    """The name of a speaker at a speed; at 1 the speaker."""
    return speaker if factor == 1 else f"{speaker}@{factor:g}"


class Speaker(Task):
    offset_P: Tensor
    projection_PE: Tensor
    voices_CE: Tensor
    mel_scale_F: Tensor

    def __init__(self, name: str, config: Config, speakers: list[str]):
        super().__init__()
        task, D = config.tasks[name], config.encoder.d_model
        self.speakers, self.margin, self.scale = speakers, task.margin, task.scale
        speeds = [1.0, *(factor for factor in sorted(set(config.augment.speeds)) if factor != 1)]
        classes = [speed_label(speaker, factor) for factor in speeds for speaker in speakers]
        self.index = {label: i for i, label in enumerate(classes)}
        self.crop_S: tuple[float, float] | None = None
        self.mel_ratio = config.encoder.subsampling
        if task.crop_s is not None:
            frame_s = config.features.hop_samples * self.mel_ratio / config.features.sample_rate
            self.crop_S = (task.crop_s[0] / frame_s, task.crop_s[1] / frame_s)
        n_blocks = len(config.blocks_read(name))
        self.pooling = Pooling(D, config.features.n_mels, n_blocks, self.mel_ratio, task.spectrum, task.adaptor_dim)
        self.dropout = nn.Dropout(task.dropout)
        self.embedding = nn.Linear(self.pooling.size, task.embedding_dim)
        self.centres = nn.Parameter(torch.empty(len(classes), task.embedding_dim))
        self.lda_dim, self.teacher, self.size = task.lda_dim, task.teacher, task.embedding_dim
        E, n_mels = task.embedding_dim, config.features.n_mels
        self.spectrum = task.spectrum
        self.register_buffer("offset_P", torch.zeros(E + 2 * n_mels * task.spectrum))
        self.register_buffer("projection_PE", torch.eye(len(self.offset_P), E))
        self.register_buffer("voices_CE", torch.zeros(len(speakers), E))
        self.register_buffer("mel_scale_F", torch.ones(n_mels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start the classes' centres anew."""
        nn.init.normal_(self.centres, std=0.01)

    def targets(self, cuts: list[Cut], lengths_B: Tensor) -> dict[str, Tensor]:
        """A speaker who is not among the classes is no label; a teacher's vector is one (zeros: there is none)."""
        classes_B = torch.tensor([self.index.get(label_of(cut, "speaker") or "", -1) for cut in cuts])
        if not self.teacher:
            return {"classes": classes_B, "mask": classes_B >= 0}
        taught_BE = torch.stack([self._taught(cut) for cut in cuts]) if cuts else torch.zeros(0, self.size)
        return {"classes": classes_B, "taught": taught_BE, "mask": (classes_B >= 0) | taught_BE.any(1)}

    def _taught(self, cut: Cut) -> Tensor:
        """The mean (E,) of the vectors of the cut's utterances, of length 1; zeros where one of them has none."""
        vectors = [voice_vector(supervision) for supervision in cut.supervisions]
        if not vectors or None in vectors:
            return torch.zeros(self.size)
        return F.normalize(torch.tensor(vectors).mean(0), dim=0)

    def forward(self, frames: Frames, rows_B: Tensor | None = None) -> dict[str, Tensor]:
        frames = frames.of_rows(rows_B)
        if self.training:
            trained_BE = self._trained(self.pooling.statistics(self.crop(frames) if self.crop_S else frames))
            return {"embedding": trained_BE, "cosine": self._cosine(trained_BE)}
        return self._projected(self.pooling.statistics(frames))

    def over_spans(self, frames: Frames, spans: list[tuple[int, int]]) -> dict[str, Tensor]:
        """The output for each span (first, last) of one utterance's encoder frames."""
        return self._projected(self.pooling.span_statistics(frames, spans))

    def _trained(self, statistics_BP: Tensor) -> Tensor:
        return F.normalize(self.embedding(self.dropout(self.pooling.norm(statistics_BP))).float(), dim=1)

    def _cosine(self, trained_BE: Tensor) -> Tensor:
        return trained_BE @ F.normalize(self.centres.float(), dim=1).T

    def _projected(self, statistics_BP: Tensor) -> dict[str, Tensor]:
        """In use; 'features' (B, P) are what the embedding is projected from."""
        features_BP = trained_BE = self._trained(statistics_BP)
        if self.spectrum:
            spectrum_BP = level_free(statistics_BP[:, -2 * len(self.mel_scale_F) :], self.mel_scale_F)
            features_BP = torch.cat([trained_BE, SPECTRUM_SCALE * spectrum_BP], dim=1)
        return {"embedding": self.project(features_BP), "features": features_BP, "trained": trained_BE}

    def project(self, features_BP: Tensor) -> Tensor:
        """Embeddings (B, E) of length 1."""
        return F.normalize(((features_BP - self.offset_P) @ self.projection_PE).float(), dim=1)  # bf16 under autocast

    def crop(self, frames: Frames) -> Frames:
        """A stretch of each utterance, of a drawn length at a drawn place."""
        low, high = self.crop_S  # type: ignore[misc]
        lengths_B = frames.lengths_B
        draws_2B = torch.rand(2, len(lengths_B), device=lengths_B.device)
        kept_B = torch.minimum((low + draws_2B[0] * (high - low)).round().long().clamp(min=1), lengths_B)
        first_B = (draws_2B[1] * (lengths_B - kept_B + 1)).long().clamp(max=lengths_B - kept_B)
        return frames.stretch(first_B, first_B + kept_B, self.mel_ratio)

    def fit(
        self, features_NP: Tensor, speakers: list[str], corpora: list[int], shares: Sequence[float] | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        """Set projection and voices from 'features' of utterances, with the number of the corpus that each is from.

        `weights` are the utterances' among those of their speaker in a corpus; None: all count alike. A speaker without
        an utterance has no voice: zeros, like nobody's. But a frozen head loses none that it knows: where one of them
        has no utterance, that voice and the projection in which it lies stay.
        """
        device = self.offset_P.device
        features_NP = features_NP.to(device)
        weights_N = np.ones(len(speakers)) if weights is None else np.array(weights)
        if any(parameter.requires_grad for parameter in self.parameters()):
            self.voices_CE.zero_()
        known = {name for name, voice_E in zip(self.speakers, self.voices_CE, strict=True) if bool(voice_E.any())}
        if known <= set(speakers):
            self._fit_projection(features_NP, speakers, corpora, shares, weights_N)
        projected_NE = self.project(features_NP) * torch.from_numpy(weights_N).to(features_NP)[:, None]
        for row, speaker in enumerate(self.speakers):
            own_N = torch.tensor([name == speaker for name in speakers], device=device)
            if bool(own_N.any()):
                self.voices_CE[row] = F.normalize(projected_NE[own_N].sum(0), dim=0)

    def _fit_projection(
        self, features_NP: Tensor, speakers: list[str], corpora: list[int], shares: Sequence[float] | None,
        weights_N: np.ndarray,
    ) -> None:  # fmt: skip
        """A corpus counts by its share; without shares all speakers count alike.

        With too few speakers for it the embedding is the trained one.
        """
        self.offset_P.zero_()
        self.projection_PE.copy_(torch.eye(*self.projection_PE.shape))
        if 0 < self.lda_dim < min(len(set(speakers)), self.projection_PE.size(1)):
            features = features_NP.cpu().numpy().astype(np.float64)
            self.offset_P.copy_(torch.from_numpy(np.average(features, axis=0, weights=weights_N)))
            weights_N = weights_N * utterance_weights(speakers, corpora, shares)
            centred_NP, apart_PP = centred_by_corpus(features, weights_N, speakers, corpora, set(self.speakers))
            # columns beyond the directions are zero, so that the size does not depend on the data
            directions_PK = discriminant_directions(centred_NP, apart_PP, speakers, weights_N, self.lda_dim)
            self.projection_PE.zero_()[:, : self.lda_dim] = torch.from_numpy(directions_PK)

    def loss(self, output: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        classes_B = targets["classes"][targets["mask"]]
        # in use nobody asks for the classes, and there may be thousands
        trained_BE = output.get("trained", output["embedding"])
        cosine_BC = output["cosine"] if "cosine" in output else self._cosine(trained_BE)
        logits_BC = self.scale * add_margin(cosine_BC, classes_B.clamp(min=0), self.margin)
        loss = F.cross_entropy(logits_BC, classes_B, ignore_index=-1, reduction="sum")
        if self.teacher:
            taught_BE = targets["taught"][targets["mask"]]
            loss = loss + self.teacher * (taught_BE.any(1).sum() - (trained_BE * taught_BE).sum())
        return loss

    def predict(self, output: dict[str, Tensor]) -> list[dict[str, Any]]:
        """embedding (E,), cosine to the voice of each training speaker (speakers,)."""
        cosine = (output["embedding"] @ self.voices_CE.T).float()
        return [{"embedding": e, "cosine": c} for e, c in zip(output["embedding"].cpu(), cosine.cpu(), strict=True)]


def centred_by_corpus(
    features_NP: np.ndarray, weights_N: np.ndarray, speakers: list[str], corpora: list[int], people: set[str]
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(less the mean of the corpus, covariance (P, P) of the corpora's means).

    A corpus of too few people for its mean to be nobody's voice is less the mean of all, and takes no part in the
    covariance. `people` are the speakers at their own speed: at another one they are no further people.
    """
    names, numbers = np.array(speakers), np.array(corpora)
    centred_NP, means, shares = features_NP - np.average(features_NP, axis=0, weights=weights_N), [], []
    for number in sorted(set(corpora)):
        own_N = numbers == number
        if len(people & set(names[own_N].tolist())) >= CORPUS_SPEAKERS:
            means.append(np.average(centred_NP[own_N], axis=0, weights=weights_N[own_N]))
            shares.append(weights_N[own_N].sum())
            centred_NP[own_N] -= means[-1]
    means_KP = np.array(means) if means else np.zeros((1, features_NP.shape[1]))
    return centred_NP, np.cov(means_KP.T, bias=True, aweights=shares or None)


def utterance_weights(speakers: list[str], corpora: list[int], shares: Sequence[float] | None) -> np.ndarray:
    """(N,): of all utterances of a corpus its share, without shares its number of speakers; all its speakers alike."""
    of_both = Counter(zip(corpora, speakers, strict=True))
    counts = Counter(number for number, _ in of_both)
    share = {number: shares[number] if shares else count for number, count in counts.items()}
    pairs = zip(corpora, speakers, strict=True)
    return np.array([share[number] / counts[number] / of_both[number, speaker] for number, speaker in pairs])


def discriminant_directions(
    features_NP: np.ndarray, apart_PP: np.ndarray, speakers: list[str], weights_N: np.ndarray, dimensions: int
) -> np.ndarray:
    """(P, dimensions), float32: in which speakers differ most for what utterances of one, and corpora (apart_PP), do.

    scikit-learn's analysis shrinks the total covariance, too, and then finds directions in which nothing differs.
    """
    from scipy.linalg import eigh

    names, own_N = np.unique(speakers, return_inverse=True)
    weights_C = np.bincount(own_N, weights_N)
    means_CP = np.stack(
        [np.average(features_NP[own_N == i], axis=0, weights=weights_N[own_N == i]) for i in range(len(names))]
    )
    within_PP = np.cov((features_NP - means_CP[own_N]).T, bias=True, aweights=weights_N)
    # a little shrinkage: the covariance within speakers is measured on a few utterances of each
    ridge_PP = np.eye(len(within_PP)) * np.trace(within_PP) / len(within_PP)
    between_PP = np.cov(means_CP.T, bias=True, aweights=weights_C)
    ratios, directions_PP = eigh(between_PP, (1 - SHRINKAGE) * within_PP + SHRINKAGE * ridge_PP + apart_PP)
    ratios_K, directions_PK = ratios[: -dimensions - 1 : -1], directions_PP[:, : -dimensions - 1 : -1]
    return (directions_PK / np.sqrt(1 + BETWEEN * ratios_K)).astype(np.float32)


def add_margin(cosine_BC: Tensor, classes_B: Tensor, margin: float) -> Tensor:
    """cos(θ + margin) at each row's own class; beyond θ = π - margin, where that would rise again, a straight line."""
    target_B1 = cosine_BC.gather(1, classes_B[:, None])
    sine_B1 = (1 - target_B1.square()).clamp(min=1e-9).sqrt()
    moved_B1 = target_B1 * math.cos(margin) - sine_B1 * math.sin(margin)
    moved_B1 = torch.where(target_B1 > math.cos(math.pi - margin), moved_B1, target_B1 - margin * math.sin(margin))
    return cosine_BC.scatter(1, classes_B[:, None], moved_B1)
