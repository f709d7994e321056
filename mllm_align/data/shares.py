"""How much of each source an epoch has: caps, weights, exact counts, and their turns."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fractions import Fraction

import numpy as np

from mllm_align.data.errors import DataError


@dataclass(frozen=True)
class Shares:
    """What a run takes of each of its sources.

    The caps are the data balancing of Cambrian-1 (Tong et al., 2024, section 5.2): a threshold on the number of rows
    that one source gives, so that a few large sources do not drown the others. The weights are its data ratio.

    Args:
        weights: Share of an epoch's rows by source name, relative to the others; 0 leaves a source out. A source
            without one counts with the number of its rows.
        caps: Rows of a source that are used at the most, drawn by the seed; of other sources all.
        redraw: Whether other rows of a capped source are drawn in every epoch.
        epoch_rows: Rows of an epoch; None for as many as the sources have, after caps.
        seed: Of the draws.

    Raises:
        DataError: If a weight is negative or no number, or a cap or the rows of an epoch are below 1.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    caps: Mapping[str, int] = field(default_factory=dict)
    redraw: bool = False
    epoch_rows: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses numbers that make no sense."""
        for name, weight in self.weights.items():
            check_weight(weight, f"source_weights[{name!r}]")
        for name, cap in self.caps.items():
            check_count(cap, f"source_caps[{name!r}]")
        if self.epoch_rows is not None:
            check_count(self.epoch_rows, "epoch_rows")
        if self.redraw and not self.caps:
            raise DataError("redraw_caps has nothing to draw anew: set source_caps, or leave it out")

    @property
    def draws(self) -> bool:
        """Whether an epoch is anything but every row (after caps) once."""
        return bool(self.weights) or self.epoch_rows is not None or self.redraw

    def check_names(self, names: Iterable[str]) -> None:
        """Refuses a weight or cap of a source that is not there, and weights that leave every source out.

        Raises:
            DataError: Naming the sources.
        """
        known = list(names)
        for setting, given in (("source_weights", self.weights), ("source_caps", self.caps)):
            for name in given:
                if name not in known:
                    near = get_close_matches(name, known, n=1)
                    hint = f"; did you mean {near[0]!r}?" if near else ""
                    raise DataError(f"{setting} names {name!r}, but the sources are {', '.join(known)}{hint}")
        if all(self.weights.get(name) == 0 for name in known):
            raise DataError(
                "every source has weight 0, so there is nothing to draw: give one of them a weight above 0"
            )

    def rows_of(self, name: str, size: int) -> np.ndarray | None:
        """(cap,) int64, ascending: the rows that a cap leaves of a source for the whole run; None for all of them."""
        cap = self.caps.get(name)
        if cap is None or cap >= size or self.redraw:
            return None
        return np.sort(generator(self.seed, name).permutation(size)[:cap])

    def per_epoch(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Rows that an epoch draws of each source.

        Args:
            sizes: Rows of each source.

        Raises:
            DataError: If a source that has a weight would never be drawn.
        """
        used = {name: min(size, self.caps.get(name, size)) for name, size in sizes.items()}
        weights = {name: self.weights.get(name, size) for name, size in used.items()}
        total = self.epoch_rows or sum(size for name, size in used.items() if weights[name])
        return self._split(total, weights)

    def of_streams(self, names: Iterable[str]) -> dict[str, int] | None:
        """Rows that an epoch draws of each stream; None where they take turns until they end.

        Raises:
            DataError: If there is a cap, or a weight or the rows of an epoch are not told.
        """
        known = list(names)
        if self.caps:
            raise DataError(
                f"source_caps draws among all rows of a source ({', '.join(self.caps)}), which a stream does not have "
                "at hand: load without streaming, or take the first ones with num_rows"
            )
        if not self.draws:
            return None
        absent = [name for name in known if name not in self.weights]
        if absent or self.epoch_rows is None:
            what = f"a weight for {', '.join(absent)}" if absent else "epoch_rows, how many rows make an epoch"
            raise DataError(
                f"a stream does not tell how many rows it has, so shares need {what}; or load all sources "
                "without streaming"
            )
        return self._split(self.epoch_rows, self.weights)

    def _split(self, total: int, weights: Mapping[str, float]) -> dict[str, int]:
        counts = split(total, weights)
        for name, count in counts.items():
            if weights[name] and not count:
                rest = " (a source without a weight counts with its rows)" if self.weights else ""
                raise DataError(
                    f"source {name!r} has {weights[name]:g} of {sum(weights.values()):g} shares{rest}, which is none "
                    f"of the {total} rows of an epoch: raise its weight or epoch_rows, or leave it out with weight 0"
                )
        return counts


def check_weight(weight: float, where: str) -> None:
    """Refuses what is no weight.

    Raises:
        DataError: Naming the setting.
    """
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise DataError(f"{where} must be a number of at least 0, not {weight!r}")


def check_count(count: int, where: str) -> None:
    """Refuses what is no number of rows.

    Raises:
        DataError: Naming the setting.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise DataError(f"{where} must be a whole number of rows of at least 1, not {count!r}")


def split(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """A total in shares as near to the weights as whole numbers can be (largest remainder), which add up to it.

    Args:
        total: To be shared.
        weights: By name, at least one above 0. Of equal remainders the first one gets more.

    Example:
        >>> split(10, {"a": 2, "b": 1})
        {'a': 7, 'b': 3}
    """
    whole = sum(map(Fraction, weights.values()))
    exact = {name: total * Fraction(weight) / whole for name, weight in weights.items()}
    counts = {name: math.floor(share) for name, share in exact.items()}
    first = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in first[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def turns(counts: Sequence[int]) -> np.ndarray:
    """(sum of counts,) int64: whose turn it is, as evenly as can be.

    The k-th of n rows is put at (k + 1/2) / n of the way. So, in the first t of N turns of S sources, one with n rows
    has had within (1 + S n / N) / 2 of its share t n / N, and in any window of turns within 1 + S n / N.

    Example:
        >>> turns([4, 2, 1]).tolist()
        [0, 1, 0, 2, 0, 1, 0]
    """
    places = np.concatenate([(np.arange(count) + 0.5) / max(count, 1) for count in counts])
    return np.repeat(np.arange(len(counts)), counts)[np.argsort(places, kind="stable")]


def generator(seed: int, name: str, *more: int) -> np.random.Generator:
    """Random numbers of a source, the same whatever other sources there are."""
    return np.random.default_rng((seed, zlib.crc32(name.encode()), *more))
