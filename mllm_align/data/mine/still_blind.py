"""To how many of the pairs that were found another encoder is blind too: a mixed one, before and after.

Its bound on the cosine is its own: take the one that as many of all pairs are above as were for the encoder that the
pairs were mined by (`thresholds.Distribution`), or compare the shares at several bounds.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from mllm_align.data.loading import undecoded
from mllm_align.data.mine.counterfactual import Embedder
from mllm_align.data.mine.problems import Problems, RowProblem, read_picture


class StillBlind(NamedTuple):
    """How alike the two images of pairs are to one encoder.

    Attributes:
        encoder: Its identity.
        above: The bound.
        pairs: How many could be read.
        alike: Those of them with a cosine above the bound.
        cosines: (pairs,) float64, in the order of the rows that could be read.
        problems: Of the others.
    """

    encoder: str
    above: float
    pairs: int
    alike: int
    cosines: np.ndarray
    problems: Problems

    @property
    def share(self) -> float:
        """The part of the pairs that the encoder still finds alike; NaN where there are none."""
        return self.alike / self.pairs if self.pairs else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """For a report."""
        quantiles = np.quantile(self.cosines, (0.1, 0.5, 0.9)).round(4).tolist() if self.pairs else []
        return {
            "encoder": self.encoder,
            "above": self.above,
            "pairs": self.pairs,
            "alike": self.alike,
            "share": self.share if self.pairs else None,
            "cosines": dict(zip(("10%", "50%", "90%"), quantiles, strict=False)),
            "problems": self.problems.as_dict(),
        }


def still_blind(rows: Any, encoder: Embedder, above: float = 0.95, *, batch_size: int = 16) -> StillBlind:
    """The share of pairs whose two images an encoder finds alike.

    Args:
        rows: A dataset or mappings, with one `image` and one `contrast_image` each, as `mine_blind_pairs` writes
            them; texts are not needed.
        encoder: Images to unit vectors: an `ImageEmbedder`, or what wraps a model with a mixer.
        above: Its bound on the cosine, exclusive.
        batch_size: Pairs whose images are in memory.

    Raises:
        ValueError: If the bound is no cosine.
    """
    if not -1 <= above <= 1:
        raise ValueError(f"above is a cosine, between -1 and 1, not {above}")
    problems, found = Problems(), [np.empty(0)]
    numbered = enumerate(undecoded(rows))
    while batch := list(islice(numbered, max(1, batch_size))):
        pictures = []
        for number, row in batch:
            try:
                pictures += [
                    read_picture(row.get(column), f"row {number}, {column}") for column in ("image", "contrast_image")
                ]
            except RowProblem as problem:
                problems.add(problem)
        if pictures:
            vectors = np.asarray(encoder(pictures)).astype(np.float64)
            cosines = (vectors[::2] * vectors[1::2]).sum(1)
            if not np.isfinite(cosines).all():
                raise ValueError(f"{encoder.identity} gives no finite vector for an image of these pairs")
            found.append(cosines)
    cosines = np.concatenate(found)
    return StillBlind(encoder.identity, above, len(cosines), int((cosines > above).sum()), cosines, problems)
