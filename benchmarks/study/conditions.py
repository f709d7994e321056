"""The data that the arms are compared on: pairs of the rendered world, and what may be wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from mllm_align.data.world import instruction_rows, pair_rows

Row = dict[str, Any]
CAPTION = ("caption",)
NOISE = 0.3


@dataclass(frozen=True)
class Condition:
    """One kind of pair data.

    Attributes:
        name: In tables.
        text: What it is, for readers.
        num_pairs: Pairs to train on.
        kinds: What the pairs differ in and are asked for; the world's default where None.
        change: Made of all rows, given a generator.
        one_sided: Whether only the chosen response has a text.
    """

    name: str
    text: str
    num_pairs: int = 1000
    kinds: tuple[str, ...] | None = None
    change: Callable[[list[Row], Random], list[Row]] | None = None
    one_sided: bool = False

    def rows(self, seed: int) -> list[Row]:
        """The pairs, the same for every arm."""
        more: Mapping[str, Any] = {} if self.kinds is None else {"kinds": self.kinds}
        rows = pair_rows(self.num_pairs, seed, distribution="balanced", **more)
        return self.change(rows, Random(f"{self.name}|{seed}")) if self.change else rows


def swapped_answers(rows: list[Row], rng: Random) -> list[Row]:
    """Three rows in ten have their two answers the wrong way round."""
    return [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]} if rng.random() < NOISE else row for row in rows
    ]


def without_rejected(rows: list[Row], rng: Random) -> list[Row]:
    """The contrast image has no text of its own."""
    return [{key: value for key, value in row.items() if key != "rejected"} for row in rows]


def mirrored(rows: list[Row]) -> list[Row]:
    """Every pair twice, once from either side, for objectives that look at a row from one side alone."""
    found = []
    for row in rows:
        other = {
            **row,
            "id": f"{row['id']}/mirrored",
            "image": row["contrast_image"],
            "contrast_image": row["image"],
            "chosen": row["rejected"],
            "rejected": row["chosen"],
        }
        found += [row, other]
    return found


def replay_rows(seed: int, num_rows: int = 2000) -> list[Row]:
    """Ordinary instruction rows, with the prior and its noise."""
    return instruction_rows(num_rows, seed)


CONDITIONS = {
    condition.name: condition
    for condition in (
        Condition("clean", "1,000 balanced minimal pairs, answers of one word"),
        Condition("few", "60 such pairs", num_pairs=60),
        Condition("noisy", "1,000 pairs, three in ten with their answers the wrong way round", change=swapped_answers),
        Condition("long", "1,000 pairs of captions of up to 40 words", kinds=CAPTION),
        Condition(
            "one_sided",
            "1,000 pairs whose contrast image has no text of its own",
            change=without_rejected,
            one_sided=True,
        ),
    )
}
