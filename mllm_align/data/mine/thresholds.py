"""Bounds on cosines by how rare they are: the same number means another thing to every encoder.

0.95 is MMVP's bound for CLIP ViT-L/14. Of another encoder a bound is comparable if as many of all pairs are above it;
that share is in the report of every search (`share above`), to be given to the next one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mllm_align.data.mine.tiles import Tiles

SAMPLED = 4096  # images whose pairs are the sample
LEAST = 100  # sampled pairs beyond a bound that a share is told by
_QUANTILES = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)


class Distribution:
    """Cosines of all pairs of some images, drawn by the hash of their number.

    Args:
        tiles: The vectors.
        seed: Of the draw.
        count: Images that are drawn.
    """

    def __init__(self, tiles: Tiles, seed: int = 0, count: int = SAMPLED) -> None:
        sample = tiles.sample(count, seed)
        self._cosines = np.sort((sample @ sample.T)[np.triu_indices(len(sample), 1)])

    def __len__(self) -> int:
        """How many pairs."""
        return len(self._cosines)

    def share_above(self, cosine: float) -> float:
        """Of the pairs whose cosine is above."""
        beyond = len(self) - int(np.searchsorted(self._cosines, cosine, "right"))
        return beyond / max(len(self), 1)

    def bound_above(self, share: float, what: str) -> float:
        """The cosine that this share of pairs is above, to four digits.

        Raises:
            ValueError: If the share is none, or less than the sample can tell.
        """
        self._check(share, what)
        return round(float(np.quantile(self._cosines, 1 - share)), 4)

    def bound_below(self, share: float, what: str) -> float:
        """The cosine that this share of pairs is below, to four digits.

        Raises:
            ValueError: If the share is none, or less than the sample can tell.
        """
        self._check(share, what)
        return round(float(np.quantile(self._cosines, share)), 4)

    def as_dict(self) -> Mapping[str, Any]:
        """Quantiles, for a report."""
        if not len(self):
            return {}
        values = np.quantile(self._cosines, _QUANTILES)
        return {f"{share:.1%}": round(float(value), 4) for share, value in zip(_QUANTILES, values, strict=True)}

    def _check(self, share: float, what: str) -> None:
        if not 0 < share < 1:
            raise ValueError(f"{what} is a share of all pairs, between 0 and 1, not {share:g}")
        if share * len(self) < LEAST:
            raise ValueError(
                f"{what} {share:g} is too small a share to be told from {len(self):,} pairs of a sample: at least "
                f"{LEAST / max(len(self), 1):.1g} can be, or give the cosine itself"
            )
