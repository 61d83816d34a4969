"""Speech recognition: a linear CTC head (Graves et al. 2006) on the last block.

Output 'log_probs' (B, S, V+1) with the blank last, 'lengths' (B,). Target: the text's token ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtl import decode
from speech_mtl.tasks import Task, label_of

if TYPE_CHECKING:
    from lhotse.cut import Cut

    from speech_mtl.config import Config
    from speech_mtl.text import Tokenizer


class ASR(Task):
    def __init__(self, name: str, config: Config, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer = tokenizer
        self.frame_s = config.features.hop_samples * config.encoder.subsampling / config.features.sample_rate
        self.dropout = nn.Dropout(config.tasks[name].dropout)
        self.linear = nn.Linear(config.encoder.d_model, len(tokenizer) + 1)

    def targets(self, cuts: list[Cut], lengths_B: Tensor) -> dict[str, Tensor]:
        """A text that needs more frames than there are, or has characters the tokenizer lacks, is not usable."""
        ids, mask = [], []
        for cut, length in zip(cuts, lengths_B.tolist(), strict=True):
            text = label_of(cut, "text")
            tokens = [] if text is None else self.tokenizer.encode(text)
            usable = text is not None and frames_needed(tokens) <= length and not self.tokenizer.unknown(text)
            ids.append(torch.tensor(tokens if usable else [], dtype=torch.long))
            mask.append(usable)
        return {
            "tokens": nn.utils.rnn.pad_sequence(ids, batch_first=True),
            "lengths": torch.tensor([len(tokens) for tokens in ids]),
            "mask": torch.tensor(mask),
        }

    def forward(self, blocks: list[Tensor], lengths_B: Tensor, rows_B: Tensor | None = None) -> dict[str, Tensor]:
        frames_BSD = blocks[-1]
        if rows_B is not None:
            frames_BSD, lengths_B = frames_BSD[rows_B], lengths_B[rows_B]
        logits_BSV = self.linear(self.dropout(frames_BSD))
        return {"log_probs": F.log_softmax(logits_BSV.float(), dim=-1), "lengths": lengths_B}

    def loss(self, output: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        """Negative log-likelihood per token, summed over the labelled utterances."""
        log_probs_BSV, mask = output["log_probs"], targets["mask"]
        if not bool(mask.any()):
            return log_probs_BSV.sum()  # of no rows: zero, and still part of the graph
        lengths = targets["lengths"][mask]
        nll_B = F.ctc_loss(
            log_probs_BSV.transpose(0, 1), targets["tokens"][mask], output["lengths"], lengths,
            blank=log_probs_BSV.size(-1) - 1, reduction="none",
        )  # fmt: skip
        return (nll_B / lengths.clamp(min=1)).sum()

    def predict(self, output: dict[str, Tensor]) -> list[dict[str, Any]]:
        """text, words (list of decode.Word)."""
        predictions = []
        for log_probs_SV, length in zip(output["log_probs"].cpu(), output["lengths"].tolist(), strict=True):
            tokens = decode.greedy(log_probs_SV[:length])
            words = decode.words(tokens, self.tokenizer.pieces, self.frame_s)
            predictions.append({"text": " ".join(word.text for word in words), "words": words})
        return predictions


def frames_needed(tokens: list[int]) -> int:
    """The fewest frames CTC can write these tokens in: one each, and a blank between equal neighbours."""
    return len(tokens) + sum(a == b for a, b in zip(tokens, tokens[1:], strict=False))
