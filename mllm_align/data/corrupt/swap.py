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

    def pick(self, value: Any, rows: Sequence[Mapping[str, Any]], rng: np.random.Generator, where: str) -> Any:
        """The image that takes the place of `value`: of a random row, or the next one that has another image.

        Raises:
            DataError: If no row has another image, or a row that is looked at cannot be read.
        """
        own = image_key(value, where)
        start = int(rng.integers(len(rows)))
        for step in range(len(rows)):
            index = (start + step) % len(rows)
            other = parse_row(rows[index], index)
            for place in rng.permutation(len(other.images)).tolist():
                if image_key(other.images[place], f"{other.name}, whose image stands in for that of {where}") != own:
                    return other.images[place]
        raise DataError(f"{where}: all {len(rows)} rows show this one image, so there is none to swap it for")
