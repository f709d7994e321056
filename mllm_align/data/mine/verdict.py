"""What text alone tells of pair data: the numbers, a table for a terminal, and plain sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from mllm_align.data.mine.intervals import Share
from mllm_align.data.mine.problems import Problems

OVERALL = "all"
TELLING = 0.6  # three to two: from here on text alone is worth a warning
PRIOR = 0.05  # beyond chance


class Prior(NamedTuple):
    """How often the most frequent answer to a question is right.

    Attributes:
        share: How often.
        chance: How often it would be if all its answers were as frequent.
        covered: The share of right answers whose question is asked more than once, which alone can be counted.
    """

    share: Share
    chance: float
    covered: float

    @property
    def excess(self) -> float:
        """What the prior gives beyond chance."""
        return self.share.value - self.chance

    @property
    def is_learnt(self) -> bool:
        """Whether that is something: more than noise, and enough to matter."""
        return self.excess >= PRIOR and _low(self.share) > self.chance


@dataclass(frozen=True)
class Balance:
    """What text alone tells.

    Attributes:
        rows: Rows read.
        problems: Rows that could not be read.
        grouping: What rows in one fold and one cluster share.
        telling: Per probe and category the share of pairs whose chosen text it names; "all" is over all categories.
        naming: Per category the prior of the answers.
    """

    rows: int
    problems: Problems
    grouping: str
    telling: Mapping[str, Mapping[str, Share]]
    naming: Mapping[str, Prior]

    def verdict(self) -> list[str]:
        """Plain sentences: on the pairs, on categories that stand out of them, and on the answers' prior."""
        lines = []
        overall = {probe: shares[OVERALL] for probe, shares in self.telling.items() if shares[OVERALL].rows}
        if overall:
            probe, best = max(overall.items(), key=lambda item: _low(item[1]))
            lines.append(f"text alone tells {best} of the pairs{_how(best, probe)}")
            standing = self._standing_out() if best.value < TELLING or _low(best) <= 0.5 else {}
            lines += [f"but of {name!r} it tells {one}{_how(one, by)}" for name, (by, one) in standing.items()]
        priors = {name: prior for name, prior in self.naming.items() if prior.share.rows}
        if OVERALL in priors:
            worst = max(priors, key=lambda name: priors[name].excess if priors[name].is_learnt else -1.0)
            name = worst if priors[worst].is_learnt else OVERALL
            prior = priors[name]
            end = "training on right answers alone learns it" if prior.is_learnt else "there is no prior to learn"
            place = "" if name == OVERALL else f" of {name!r}"
            even = f"in {100 * prior.chance:.0f} % if all its answers were as frequent"
            lines.append(f"the most frequent answer to a question is right in {prior.share}{place}, {even}: {end}")
        return lines

    def _standing_out(self) -> dict[str, tuple[str, Share]]:
        found: dict[str, tuple[str, Share]] = {}
        for probe, shares in self.telling.items():
            for name, one in shares.items():
                stands = name != OVERALL and _low(one) > 0.5 and one.value >= TELLING
                if stands and (name not in found or _low(one) > _low(found[name][1])):
                    found[name] = (probe, one)
        return dict(sorted(found.items()))

    def __str__(self) -> str:
        """For a terminal: what each probe tells of each category, the prior of the answers, the verdict."""
        lines = [f"{self.rows:,} rows; kept together: {self.grouping}"]
        lines += [
            f"  {kind} {count:,}, such as {self.problems.examples[kind][0]}"
            for kind, count in sorted(self.problems.counts.items())
        ]
        table = {**self.telling, "most frequent answer": {name: prior.share for name, prior in self.naming.items()}}
        table["even answers"] = {name: f"{100 * prior.chance:.0f} %" for name, prior in self.naming.items()}
        width = max(map(len, table))
        for category in dict.fromkeys(name for cells in table.values() for name in cells):
            lines.append(f"{category}:")
            lines += [f"  {probe:{width}}  {cells[category]}" for probe, cells in table.items() if category in cells]
        return "\n".join([*lines, *self.verdict()])

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "rows": self.rows,
            "problems": self.problems.as_dict(),
            "grouping": self.grouping,
            "telling": {
                probe: {name: one._asdict() for name, one in shares.items()} for probe, shares in self.telling.items()
            },
            "naming": {
                name: {**prior.share._asdict(), "chance": prior.chance, "covered": prior.covered}
                for name, prior in self.naming.items()
            },
            "verdict": self.verdict(),
        }


def _low(one: Share) -> float:
    """The lower bound; below everything where there is none."""
    return -1.0 if math.isnan(one.low) else one.low


def _how(one: Share, probe: str) -> str:
    if math.isnan(one.low) or (_low(one) <= 0.5 and one.high >= TELLING):
        within = f"interval {100 * one.low:.0f}-{100 * one.high:.0f} %" if one.clusters > 1 else "all share an image"
        return f": whether it tells more than a coin cannot be told from {one.rows:,} rows ({within})"
    if _low(one) <= 0.5:
        return ": no more than a coin would"
    if one.value < TELLING:
        return f" by {probe}: hardly more than a coin would"
    return f" by {probe}: an objective can be lowered without looking"
