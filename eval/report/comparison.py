"""Which arms are set against which, and what the intervals allow to say about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Roles:
    """The arms that the report speaks of.

    Attributes:
        before: The model before training.
        after: The aligned model.
        control: The plain next-token model on the same pairs, or None where none was run.
    """

    before: str
    after: str
    control: str | None

    @classmethod
    def of(cls, arms: Mapping[str, Any]) -> Roles:
        """Finds the roles: by the names base, aligned and control, else first and last arm.

        Raises:
            ValueError: If there is no arm at all.
        """
        if not arms:
            raise ValueError('results["arms"] is empty: there is nothing to report')
        names = list(arms)
        before = "base" if "base" in arms else names[0]
        after = "aligned" if "aligned" in arms else names[-1]
        return cls(before, after, "control" if "control" in arms else None)


@dataclass(frozen=True)
class Change:
    """One metric in two arms.

    Attributes:
        metric: Its name.
        first: Value in the arm that is compared.
        second: Value in the arm that it is compared with.
        low: Lower bound of the paired difference, None where no paired difference was computed.
        high: Its upper bound.
        clear: 1 or -1 where the difference is above or below zero with its interval, else 0. Without a paired
            difference the two arms' own intervals must be disjoint, which is stricter.
        disjoint: Whether the two arms' own intervals do not overlap.
        detectable: The smallest difference that would have been found, where known.
    """

    metric: str
    first: float
    second: float
    low: float | None
    high: float | None
    clear: int
    disjoint: bool
    detectable: float | None = None

    @property
    def difference(self) -> float:
        """First minus second."""
        return self.first - self.second


def compare(results: Mapping[str, Any], first: str, second: str, metric: str) -> Change | None:
    """Compares two arms in one metric; None where one of them has no value for it."""
    cells = [results["arms"].get(arm, {}).get(metric) for arm in (first, second)]
    if any(not cell or not finite(cell.get("value")) for cell in cells):
        return None
    a, b = cells
    disjoint = all(finite(cell.get(bound)) for cell in cells for bound in ("low", "high")) and (
        a["low"] > b["high"] or a["high"] < b["low"]
    )
    paired, flipped = results.get("differences", {}).get(f"{first}-{second}", {}).get(metric), False
    if paired is None:
        paired, flipped = results.get("differences", {}).get(f"{second}-{first}", {}).get(metric), True
    sign = int(math.copysign(1, a["value"] - b["value"]))
    if not paired or not finite(paired.get("value")):
        return Change(metric, a["value"], b["value"], None, None, sign if disjoint else 0, disjoint)
    low, high = paired.get("low"), paired.get("high")
    if flipped:
        low, high = (-bound if finite(bound) else None for bound in (high, low))
    sign = int(math.copysign(1, paired["value"])) * (-1 if flipped else 1)
    detectable = paired.get("detectable")
    return Change(
        metric,
        a["value"],
        b["value"],
        low,
        high,
        sign if paired.get("excludes_zero") else 0,
        disjoint,
        detectable if finite(detectable) else None,
    )


def finite(value: Any) -> bool:
    """Whether this is a number that can be drawn and written (True and False are not)."""
    return value is not None and not isinstance(value, bool) and math.isfinite(value)
