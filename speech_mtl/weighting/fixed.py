"""The plain sum: every task's gradient counts as the config's task weights left it.

A well-tuned fixed sum matches the adaptive methods (Kurin 2022, 2201.04122; Xin 2022, 2209.11379), so it is the
yardstick for the others.
"""

from __future__ import annotations

from torch import Tensor

from speech_mtl.weighting import Weighting, ones
from speech_mtl.weighting.inputs import masked


class Fixed(Weighting):
    """Weight 1 for every present task."""

    def weights(self, gram_KK: Tensor | None, present_K: Tensor) -> Tensor:
        return masked(ones(self.tasks), present_K)
