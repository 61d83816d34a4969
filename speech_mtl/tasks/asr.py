"""Speech recognition: a linear CTC head (Graves et al. 2006) on the last block.

In training the same head also reads the middle block, for a share of the loss (Lee & Watanabe 2021, arXiv 2102.03216),
and two views of a batch may be drawn to each other (CR-CTC, Yao et al. 2024, arXiv 2410.05101).
Output 'log_probs' (B, S, V+1) with the blank last, 'lengths' (B,). Target: the text's token ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtl import decode
from speech_mtl.features import frame_mask
from speech_mtl.tasks import Frames, Task, label_of

if TYPE_CHECKING:
    from lhotse.cut import Cut

    from speech_mtl.config import Config
    from speech_mtl.language import Decoder
    from speech_mtl.text import Tokenizer


class ASR(Task):
    def __init__(self, name: str, config: Config, tokenizer: Tokenizer):
        super().__init__()
        self.name, self.tokenizer = name, tokenizer
        self.frame_s = config.features.hop_samples * config.encoder.subsampling / config.features.sample_rate
        self.intermediate = config.tasks[name].intermediate
        self.consistency = config.tasks[name].consistency
        self.dropout = nn.Dropout(config.tasks[name].dropout)
        self.linear = nn.Linear(config.encoder.d_model, len(tokenizer) + 1)
        self.decoder: Decoder | None = None
        """Beam search, set for use; without it the best path is taken."""

    def targets(self, cuts: list[Cut], lengths_B: Tensor) -> dict[str, Tensor]:
        """A text that needs more frames than there are, or has characters the tokenizer lacks, is not usable."""
        ids, mask = [], []
        for cut, length in zip(cuts, lengths_B.tolist(), strict=True):
            text = label_of(cut, "text")
            tokens = [] if text is None else self.tokenizer.encode(text)
            usable = text is not None and self.refused(text, tokens, length) is None
            ids.append(torch.tensor(tokens if usable else [], dtype=torch.long))
            mask.append(usable)
        return {
            "tokens": nn.utils.rnn.pad_sequence(ids, batch_first=True),
            "lengths": torch.tensor([len(tokens) for tokens in ids]),
            "mask": torch.tensor(mask),
        }

    def refused(self, text: str, tokens: list[int], length: int) -> str | None:
        """Why a text cannot be learnt from so many encoder frames; None where it can."""
        if decode.frames_needed(tokens) > length:
            return "needs more encoder frames than the audio has"
        return "has characters that the tokenizer lacks" if self.tokenizer.unknown(text) else None

    def forward(self, frames: Frames, rows_B: Tensor | None = None) -> dict[str, Tensor]:
        blocks, lengths_B = frames.blocks, frames.lengths_B
        output = {"lengths": lengths_B if rows_B is None else lengths_B[rows_B]}
        output["log_probs"] = self._log_probs(blocks[-1], rows_B)
        if self.training and self.intermediate:
            output["middle"] = self._log_probs(blocks[(len(blocks) - 1) // 2], rows_B)
        return output

    def _log_probs(self, frames_BSD: Tensor, rows_B: Tensor | None) -> Tensor:
        frames_BSD = frames_BSD if rows_B is None else frames_BSD[rows_B]
        return F.log_softmax(self.linear(self.dropout(frames_BSD)).float(), dim=-1)

    def loss(self, output: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        """Negative log-likelihood per token, summed over the labelled utterances.

        With `consistency`, in training, the second half of the rows are the utterances of the first half once more.
        """
        final = self._ctc(output["log_probs"], output["lengths"], targets)
        if self.training and self.consistency:
            token_counts = targets["lengths"][targets["mask"]]
            final = final + self.consistency * disagreement(output["log_probs"], output["lengths"], token_counts)
        if "middle" not in output:
            return final
        return (1 - self.intermediate) * final + self.intermediate * self._ctc(
            output["middle"], output["lengths"], targets
        )

    def _ctc(self, log_probs_BSV: Tensor, lengths_B: Tensor, targets: dict[str, Tensor]) -> Tensor:
        mask = targets["mask"]
        if not bool(mask.any()):
            return log_probs_BSV.sum()  # of no rows: zero, and still part of the graph
        token_counts = targets["lengths"][mask]
        nll_B = F.ctc_loss(
            log_probs_BSV.transpose(0, 1), targets["tokens"][mask], lengths_B, token_counts,
            blank=log_probs_BSV.size(-1) - 1, reduction="none",
        )  # fmt: skip
        return (nll_B / token_counts.clamp(min=1)).sum()

    def predict(self, output: dict[str, Tensor]) -> list[dict[str, Any]]:
        """One `transcribe` an utterance."""
        lengths = output["lengths"].tolist()
        return [self.transcribe(rows[:n]) for rows, n in zip(output["log_probs"].cpu(), lengths, strict=True)]

    def transcribe(self, log_probs_SV: Tensor) -> dict[str, Any]:
        """text, words (list of decode.Word); with a `decoder` also 'without': the texts without each of its helps.

        log_probs_SV holds one utterance without padding, on the CPU.
        """
        pieces, limit_s = self.tokenizer.pieces, len(log_probs_SV) * self.frame_s
        if self.decoder is None:
            words = decode.words(decode.greedy(log_probs_SV), pieces, self.frame_s, limit_s)
            return {"text": " ".join(word.text for word in words), "words": words}
        ids, without = self.decoder(log_probs_SV)
        words = decode.words(decode.align(log_probs_SV, ids), pieces, self.frame_s, limit_s)
        texts = {name: self.tokenizer.decode(other) for name, other in without.items()}
        return {"text": " ".join(word.text for word in words), "words": words, "without": texts}


def disagreement(log_probs_BSV: Tensor, lengths_B: Tensor, token_counts_B: Tensor) -> Tensor:
    """Sum over the rows of KL(the other view || this one), over their frames and per token; the others are fixed."""
    half = len(log_probs_BSV) // 2
    other_BSV = torch.cat([log_probs_BSV[half:], log_probs_BSV[:half]]).detach()
    kl_BS = F.kl_div(log_probs_BSV, other_BSV, reduction="none", log_target=True).sum(-1)
    kl_B = (kl_BS * frame_mask(lengths_B, kl_BS.size(1))).sum(1)
    return (kl_B / token_counts_B.clamp(min=1)).sum()
