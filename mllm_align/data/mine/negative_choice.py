"""Which of the candidates near a query are its hard negatives: ranks, bounds and margins on their scores.

The filters mean what those of `mine_hard_negatives` of sentence-transformers mean
(https://sbert.net/docs/package_reference/util/hard_negatives.html), on float64 scores.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import numpy as np

from mllm_align.data.corrupt.drawn import seed_of

# In the order in which they are asked; a candidate counts for the first one that it fails.
FILTERS = ("known positive", "same picture", "absolute margin", "relative margin", "max score", "min score")
SAMPLINGS = ("top", "random")
_WIDER = 10  # candidates for each negative, where some will be dropped for their scores


class Chosen(NamedTuple):
    """Hard negatives of one query, nearest first.

    Attributes:
        numbers: (n,) int64.
        scores: (n,) float64.
        dropped: Of each of `FILTERS` how many candidates it dropped.
    """

    numbers: np.ndarray
    scores: np.ndarray
    dropped: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class NegativeChoice:
    """What counts as a hard negative. Every bound is exclusive of what it drops: a score that equals it stays.

    Args:
        per_row: Negatives of a query at the most.
        range_min: How many of the nearest that passed all filters are skipped.
        range_max: How many of those that passed are looked at; by default range_min + per_row + the greatest number
            of positives of any query, or + 10 per_row in place of + per_row where scores are filtered.
        max_score: Dropped above it.
        min_score: Dropped below it.
        absolute_margin: m, dropped where score + m > that of the query's positive.
        relative_margin: r, dropped where score > positive - |positive| r, whatever the sign of the positive's score.
            NV-Retriever (Moreira et al., 2024, https://arxiv.org/abs/2407.15831) recommends 0.05.
        sampling: "top" takes the nearest, "random" any within the range.
        seed: Of the draws; those of a query hang on the seed and its key alone.

    Raises:
        ValueError: If there can be no such negative.
    """

    per_row: int = 3
    range_min: int = 0
    range_max: int | None = None
    max_score: float | None = None
    min_score: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None
    sampling: str = "top"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.per_row < 1:
            raise ValueError(f"per_row must be at least 1, not {self.per_row}")
        if self.range_min < 0:
            raise ValueError(f"range_min must not be negative, but is {self.range_min}")
        if self.range_max is not None and self.range_max - self.range_min < self.per_row:
            raise ValueError(
                f"range_min {self.range_min} to range_max {self.range_max} leaves {self.range_max - self.range_min} "
                f"candidates for {self.per_row} negatives: raise range_max, or ask for fewer"
            )
        if self.sampling not in SAMPLINGS:
            raise ValueError(f"sampling must be one of {', '.join(SAMPLINGS)}, not {self.sampling!r}")
        for name in ("absolute_margin", "relative_margin"):
            margin = getattr(self, name)
            if margin is not None and not margin >= 0:
                raise ValueError(f"{name} must not be negative, but is {margin}: negatives would be above positives")
        if self.max_score is not None and self.min_score is not None and self.min_score > self.max_score:
            raise ValueError(f"min_score {self.min_score} is above max_score {self.max_score}: nothing is between")

    def reach(self, most_positives: int) -> int:
        """`range_max`, where no query has more positives than this."""
        if self.range_max is not None:
            return self.range_max
        filtered = any(each is not None for each in (self.absolute_margin, self.relative_margin, self.max_score))
        return self.range_min + self.per_row * (_WIDER if filtered else 1) + most_positives

    def choose(
        self,
        numbers: np.ndarray,
        scores: np.ndarray,
        *,
        reach: int,
        known: Collection[int],
        alike: Collection[int],
        positive: float,
        key: str = "",
    ) -> Chosen:
        """The hard negatives of one query.

        Args:
            numbers: (K,) int64 candidates, nearest first; -1 for none.
            scores: (K,) float64.
            reach: See `reach`.
            known: Those that are known to be true of the query.
            alike: Those that are true of what is taken for the same picture.
            positive: The least score of the query's own positives.
            key: What draws hang on.
        """
        left = numbers >= 0
        dropped = []
        for failed in self._failed(numbers, scores, known, alike, positive):
            dropped.append(int((left & failed).sum()))
            left &= ~failed
        places = np.flatnonzero(left)[:reach][self.range_min :]
        if self.sampling == "random" and len(places) > self.per_row:
            drawn = Random(seed_of(self.seed, key)).sample(range(len(places)), self.per_row)
            places = places[sorted(drawn)]
        places = places[: self.per_row]
        return Chosen(numbers[places], scores[places], tuple(dropped))

    def _failed(
        self,
        numbers: np.ndarray,
        scores: np.ndarray,
        known: Collection[int],
        alike: Collection[int],
        positive: float,
    ) -> list[np.ndarray]:
        """(K,) bool for each of `FILTERS`."""
        none = np.zeros(len(numbers), bool)
        margin, share, most, least = self.absolute_margin, self.relative_margin, self.max_score, self.min_score
        return [
            np.isin(numbers, list(known)),
            np.isin(numbers, list(alike)),
            none if margin is None else scores + margin > positive,
            none if share is None else scores > positive - abs(positive) * share,
            none if most is None else scores > most,
            none if least is None else scores < least,
        ]
