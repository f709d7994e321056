"""Pictures that an encoder takes for the same one: saved again, resized, cropped a little."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mllm_align.data.mine.index import VectorIndex

_FIRST = 16  # neighbours that are looked at before more are


class SamePictures:
    """Of a picture all others whose cosine reaches a threshold.

    Args:
        vectors: (P, d) float32 of length 1.
        index: Of these vectors.
        threshold: The least cosine of two copies of one picture.

    Raises:
        ValueError: If the threshold is no cosine.
    """

    def __init__(self, vectors: np.ndarray, index: VectorIndex, threshold: float) -> None:
        if not -1 <= threshold <= 1:
            raise ValueError(f"what is taken for the same picture is a cosine from -1 to 1, not {threshold}")
        self.vectors, self.index, self.threshold = vectors, index, threshold

    def of(self, pictures: Sequence[int]) -> list[frozenset[int]]:
        """Of each picture the numbers of those others."""
        found: list[frozenset[int]] = [frozenset()] * len(pictures)
        pending, k = list(range(len(pictures))), _FIRST
        while pending:
            k = min(k, len(self.index))
            numbers, cosines = self.index.search(self.vectors[[pictures[place] for place in pending]], k)
            for place, own, near in zip(pending, numbers, cosines >= self.threshold, strict=True):
                found[place] = frozenset(own[near].tolist()) - {pictures[place], -1}
            # All that were looked at were near enough: there may be more.
            more = (cosines[:, -1] >= self.threshold) & (k < len(self.index))
            pending, k = [place for place, again in zip(pending, more, strict=True) if again], 4 * k
        return found
