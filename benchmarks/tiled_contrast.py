"""What InfoNCE itself costs as its batch grows: all pairs at once, in tiles, and a peer's rows.

    python benchmarks/tiled_contrast.py --json benchmarks/tiled_contrast.json

Given are unit vectors of N images and N texts, (N, 512) in float32, and nothing else: no model runs. A step is the
symmetric loss and its backward pass to the vectors. *Dense* is two cross-entropies over one matrix of similarities in
torch, *tiled* is `tiled_info_nce` with tiles of 512, *rows* is `calculate_loss` of sentence-transformers'
`CachedMultipleNegativesRankingLoss` with 32 rows at a time and both directions, which has a fixed temperature; the
other two also differentiate theirs.

Written to the JSON: per N `seconds` and `peak_mb` of each, vectors and their gradients counted, and `memory_ratio`
(tiled / dense) and `slowdown` (tiled / dense seconds); and `exponent`, the slope of the logarithm of the memory over
that of N: 1 is linear, 2 is the square.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from sentence_transformers.util import dot_score
from torch import Tensor, nn

from comparison import check_losses
from harness import Process, in_turn, peaks_of
from mllm_align.objectives.tiled import tiled_info_nce
from results import finish, parser_of, print_table, shape_of
from shapes import Shape

SIZES = {"tiny": (256, 1024), "small": (1024, 2048, 4096, 8192)}
WIDTH, TEMPERATURE = 512, 0.07
TILE, ROWS = 512, 32


class Vectors(NamedTuple):
    """(N, d) unit vectors of images and texts."""

    images: Tensor
    texts: Tensor


class Contrast:
    """A loss on vectors, and its backward pass.

    Args:
        loss: Of images, texts and one over the temperature; returns the mean over rows.
    """

    def __init__(self, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        self.loss = loss
        self.model = nn.ParameterDict({"scale": nn.Parameter(torch.tensor(1 / TEMPERATURE))})

    def prepare(self, case: int) -> Vectors:
        """Vectors of that many rows, those of a row alike."""
        generator = torch.Generator().manual_seed(case)
        images = torch.randn(case, WIDTH, generator=generator)
        texts = images + torch.randn(case, WIDTH, generator=generator)
        return Vectors(*(F.normalize(each, dim=1).requires_grad_() for each in (images, texts)))

    def step(self, data: Vectors) -> float:
        """The loss, backward."""
        loss = self.loss(*data, self.model["scale"])
        if loss.requires_grad:
            loss.backward()
        return loss.item()


def dense(shape: Shape) -> Contrast:
    """All similarities at once."""

    def loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        similarities = scale * images @ texts.T
        own = torch.arange(len(images))
        return (F.cross_entropy(similarities, own) + F.cross_entropy(similarities.T, own)) / 2

    return Contrast(loss)


def tiled(shape: Shape) -> Contrast:
    """A tile of them at a time."""

    def loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        present = torch.ones(len(images), dtype=torch.bool)
        return tiled_info_nce(images, texts, present, scale, TILE)[0].mean()

    return Contrast(loss)


def rows(shape: Shape) -> Contrast:
    """Some rows of them at a time, as sentence-transformers does; its backward pass is inside."""
    peer = CachedMultipleNegativesRankingLoss(
        nn.Sequential(nn.Identity()),  # never called
        scale=1 / TEMPERATURE,
        similarity_fct=dot_score,
        mini_batch_size=ROWS,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )

    def loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        return peer.calculate_loss([[images], [texts]], with_backward=True)

    return Contrast(loss)


ARMS = {"dense": dense, "tiled": tiled, "rows": rows}


def grow(shape: Shape, sizes: Sequence[int], rounds: int, threads: int) -> dict[str, Any]:
    """Seconds and memory of each for every number of rows."""
    points: dict[int, dict[str, Any]] = {}
    with (
        Process(dense, shape, threads) as whole,
        Process(tiled, shape, threads) as tiles,
        Process(rows, shape, threads) as parts,
    ):
        for size in sizes:
            arms = {"dense": (whole, size), "tiled": (tiles, size), "rows": (parts, size)}
            timed = in_turn(arms, rounds)
            check_losses({name: steps[-1].loss for name, steps in timed.items()}, shape.tolerance)
            pairs = zip(timed["tiled"], timed["dense"], strict=True)
            points[size] = {
                "rows": size,
                "seconds": {name: statistics.median(s.seconds for s in steps) for name, steps in timed.items()},
                "slowdown": statistics.median(late.seconds / early.seconds for late, early in pairs),
            }
    for name, build in ARMS.items():
        for size, peak in peaks_of(build, shape, threads, sizes).items():
            points[size].setdefault("peak_mb", {})[name] = peak / 2**20
    for point in points.values():
        point["memory_ratio"] = point["peak_mb"]["tiled"] / point["peak_mb"]["dense"]
    exponents = {name: exponent({size: point["peak_mb"][name] for size, point in points.items()}) for name in ARMS}
    return {"points": list(points.values()), "exponent": exponents}


def exponent(amounts: Mapping[int, float]) -> float:
    """How an amount grows with a size: the slope of the line nearest to their logarithms."""
    sizes, values = [[math.log(each) for each in part] for part in (amounts, amounts.values())]
    return statistics.linear_regression(sizes, values).slope


def main() -> None:
    """Measures every size and prints a table; see the module's text."""
    arguments = parser_of(__doc__, rounds=3).parse_args()
    if arguments.preset not in SIZES:
        raise SystemExit(f"--preset must be one of {', '.join(SIZES)}: vectors are measured on the CPU")
    load = os.getloadavg()[0]
    result = grow(shape_of(arguments.preset), SIZES[arguments.preset], arguments.rounds, arguments.threads)
    lines = []
    for point in result["points"]:
        seconds, peaks = point["seconds"], point["peak_mb"]
        cells = [f"{seconds[name]:.2f}" for name in ARMS] + [f"{peaks[name]:.0f}" for name in ARMS]
        lines.append([str(point["rows"]), *cells, f"{point['slowdown']:.2f}", f"{point['memory_ratio']:.2f}"])
    heads = [f"{name} {unit}" for unit in ("s", "MB") for name in ARMS]
    print_table(["rows", *heads, "times as long", "memory"], lines)
    print(
        "Memory grows with the power " + ", ".join(f"{each:.2f} ({name})" for name, each in result["exponent"].items())
    )
    settings = {"width": WIDTH, "tile": TILE, "rows_at_a_time": ROWS}
    peer = {"sentence-transformers": metadata.version("sentence-transformers")}
    finish({**settings, **result, "peer": peer, "load_at_start": load}, arguments)


if __name__ == "__main__":
    main()
