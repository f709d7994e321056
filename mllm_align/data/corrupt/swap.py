"""The image of another row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mllm_align.data.errors import DataError
from mllm_align.data.images import image_key
from mllm_align.data.schema import parse_row


@dataclass(frozen=True)
class Swap:
    """An image of a random other row of the same dataset, as it is; never one that equals the row's own.

    Equal is what `image_key` says: the same file, or the same content. CHiP's "random" image may be the row's own.
    """

    random: ClassVar[bool] = True
    keeps_size: ClassVar[bool] = False

    def pick(
        self, value: Any, rows: Sequence[Mapping[str, Any]], place: int, rng: np.random.Generator, where: str
    ) -> Any:
        """The image that takes the place of `value`: of a random row, or the next one that has another image.

        Args:
            value: An image of the row at `place`.
            rows: To choose from, that one left out: where it has several images, none replaces another of its own.
            place: Of the row in `rows`.
            rng: Of all draws.
            where: How errors speak of the row.

        Raises:
            DataError: If no row has another image, or a row that is looked at cannot be read.
        """
        own = image_key(value, where)
        start = int(rng.integers(len(rows)))
        for step in range(len(rows)):
            index = (start + step) % len(rows)
            if index == place:
                continue
            other = parse_row(rows[index], index)
            for number in rng.permutation(len(other.images)).tolist():
                if image_key(other.images[number], f"{other.name}, whose image stands in for that of {where}") != own:
                    return other.images[number]
        raise DataError(f"{where}: no other row shows another image, so there is none to swap it for")
