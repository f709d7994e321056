"""What finding neighbours costs as images grow: exact search, inverted lists and a graph.

    python benchmarks/retrieval_scale.py --json benchmarks/retrieval_scale.json

Vectors are synthetic, of length 1: a topic, a kind within it and what is a picture's own, all with a spectrum that
falls, and topics of very unequal size; neighbours lie across clusters, so that an index that looks at a part misses
some. Queries are drawn the same way and are not among them. Every index is built with its default parameters in a
process of its own, from blocks that are read from disk, and asked for the 10 nearest.

Written to the JSON: `points`, for each size and kind of index seconds to build it and milliseconds of one query (all
asked at once), by the clock and of processor time, which others on the machine disturb less; `recall_at_10` against
all similarities taken in float64; `peak_mb` above the process before it builds; `file_mb`. `nearest`: quantiles of the
similarity of the nearest. `at_10m`: core hours that follow from the processor time for ten million vectors that are
each a query, as `linear` (seconds = a + b N, from the sizes measured) and as `law` (a + b g(N), with the growth that
the algorithm has, `law_is`). Both assume vectors like these, cores like these, and room for the index in memory.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing as mp
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mllm_align.data.mine.faiss_settings import load_faiss
from mllm_align.data.mine.index import build_index
from results import finish, parser_of, print_table

KINDS = ("exact", "ivf", "hnsw")
NEIGHBOURS, TARGET = 10, 10_000_000
BLOCK = 4096


class Growth(NamedTuple):
    """How the time to build an index and the time of a query grow with the number of vectors."""

    build: Callable[[float], float]
    query: Callable[[float], float]
    text: str


LAWS = {
    "exact": Growth(lambda n: n, lambda n: n, "build N, query N"),
    "ivf": Growth(lambda n: n**1.5, math.sqrt, "4 sqrt(N) lists, 64 probed: build N^1.5, query sqrt(N)"),
    "hnsw": Growth(lambda n: n * math.log(n), math.log, "build N log N, query log N"),
}


class Sizes(NamedTuple):
    """Numbers of vectors, their length, and how many queries."""

    vectors: tuple[int, ...]
    dim: int
    queries: int


SIZES = {"small": Sizes((25_000, 50_000, 100_000), 256, 1000), "tiny": Sizes((300, 600, 1200), 32, 50)}


class Blocks:
    """Vectors of a file of float32, read a block at a time, as often as wanted.

    Args:
        path: The file.
        count: How many of its vectors.
        dim: Their length.
    """

    def __init__(self, path: Path, count: int, dim: int) -> None:
        self.path, self.count, self.dim = path, count, dim

    def __iter__(self) -> Iterator[np.ndarray]:
        with open(self.path, "rb") as file:
            for start in range(0, self.count, BLOCK):
                size = min(BLOCK, self.count - start)
                yield np.fromfile(file, np.float32, size * self.dim).reshape(size, self.dim)


def clustered(count: int, dim: int, seed: int, *, topics: int = 200, kinds: int = 10) -> np.ndarray:
    """(count, dim) float32 unit vectors; see the module's text."""
    centres = np.random.default_rng(0)  # the same for vectors and queries
    topic = centres.standard_normal((topics, dim))
    kind = centres.standard_normal((topics, kinds, dim))
    share = np.arange(1, topics + 1) ** -0.8
    spectrum = np.arange(1, dim + 1) ** -0.5
    rng = np.random.default_rng(seed)
    parts = []
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        drawn = rng.choice(topics, size, p=share / share.sum())
        found = 0.7 * topic[drawn] + 0.5 * kind[drawn, rng.integers(0, kinds, size)] + rng.standard_normal((size, dim))
        found *= spectrum
        parts.append((found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32))
    return np.concatenate(parts)


def brute_force(blocks: Blocks, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the nearest of each query, and similarity of the very nearest, from all products in float64."""
    similarities, numbers = np.empty((len(queries), 0)), np.empty((len(queries), 0), np.int64)
    start = 0
    for block in blocks:
        own = np.broadcast_to(np.arange(start, start + len(block)), (len(queries), len(block)))
        similarities = np.concatenate([similarities, queries.astype(np.float64) @ block.T.astype(np.float64)], 1)
        numbers = np.concatenate([numbers, own], 1)
        best = np.argpartition(-similarities, min(NEIGHBOURS, similarities.shape[1]) - 1, axis=1)[:, :NEIGHBOURS]
        similarities = np.take_along_axis(similarities, best, 1)
        numbers = np.take_along_axis(numbers, best, 1)
        start += len(block)
    return numbers, similarities.max(1)


def measure(kind: str, blocks: Blocks, queries: np.ndarray, rounds: int, threads: int) -> dict[str, Any]:
    """One index, built and asked; to be run in a fresh process. `found` holds the numbers."""
    import torch

    torch.set_num_threads(threads)
    load_faiss().omp_set_num_threads(threads)
    before = _peak()
    start = _now()
    index = build_index(blocks, kind)
    built = _now() - start
    asked = []
    found = np.empty(0)
    for _ in range(rounds):
        start = _now()
        found, _ = index.search(queries, NEIGHBOURS)
        asked.append(_now() - start)
    query = 1000 * np.median(asked, 0) / len(queries)
    peak = _peak() - before
    file = blocks.path.with_suffix(".index")
    index.save(file)
    return {
        "kind": kind,
        "vectors": blocks.count,
        "identity": index.identity,
        "build_seconds": built[0],
        "build_cpu_seconds": built[1],
        "query_ms": query[0],
        "query_cpu_ms": query[1],
        "peak_mb": peak / 2**20,
        "file_mb": file.stat().st_size / 2**20,
        "found": found,
    }


def _now() -> np.ndarray:
    """By the clock, and of this process's threads."""
    return np.array([time.perf_counter(), time.process_time()])


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fit(sizes: list[int], seconds: list[float], growth: Callable[[float], float]) -> tuple[float, float]:
    """a and b, neither negative, of seconds = a + b growth(size), by least relative squares.

    Where noise makes one of them negative a is 0: all that was measured is then taken to grow, an upper bound.
    """
    grown, taken = np.array([growth(size) for size in sizes]), np.array(seconds)
    slope, offset = np.polyfit(grown, taken, 1, w=1 / taken)
    if offset < 0 or slope < 0:
        offset, slope = 0.0, float(np.mean(taken / grown))
    return float(offset), float(slope)


def extrapolate(points: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """Core hours and memory for `TARGET` vectors, each a query, by both fits."""
    own = [point for point in points if point["kind"] == kind]
    sizes = [point["vectors"] for point in own]
    law = LAWS[kind]
    result: dict[str, Any] = {"law_is": law.text, "file_gb": own[-1]["file_mb"] / own[-1]["vectors"] * TARGET / 1024}
    linear = Growth(float, float, "")
    for name, growth in (("linear", linear), ("law", law)):
        build = fit(sizes, [point["build_cpu_seconds"] for point in own], growth.build)
        query = fit(sizes, [point["query_cpu_ms"] / 1000 for point in own], growth.query)
        build_hours = (build[0] + build[1] * growth.build(TARGET)) / 3600
        query_hours = TARGET * (query[0] + query[1] * growth.query(TARGET)) / 3600
        result[name] = {"build_hours": build_hours, "query_hours": query_hours, "build": build, "query": query}
    return result


def compare(sizes: Sizes, arguments: argparse.Namespace) -> dict[str, Any]:
    """All kinds at all sizes."""
    points: list[dict[str, Any]] = []
    queries = clustered(sizes.queries, sizes.dim, seed=2)
    quantiles: dict[str, Any] = {}
    processes = mp.get_context("forkserver")
    processes.set_forkserver_preload(["mllm_align.data.mine.index", "results"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.f32"
        clustered(max(sizes.vectors), sizes.dim, seed=1).tofile(path)
        for count in sizes.vectors:
            blocks = Blocks(path, count, sizes.dim)
            truth, nearest = brute_force(blocks, queries)
            quantiles[str(count)] = dict(
                zip(("5%", "50%", "95%"), np.quantile(nearest, (0.05, 0.5, 0.95)), strict=True)
            )
            for kind in KINDS:
                with processes.Pool(1) as pool:
                    point = pool.apply(measure, (kind, blocks, queries, arguments.rounds, arguments.threads))
                found = point.pop("found")
                shared = [len(set(one) & set(other)) for one, other in zip(found, truth, strict=True)]
                points.append({**point, "recall_at_10": sum(shared) / truth.size})
    return {
        "dim": sizes.dim,
        "queries": sizes.queries,
        "nearest": quantiles,
        "points": points,
        "at_10m": {kind: extrapolate(points, kind) for kind in KINDS},
        "faiss": metadata.version("faiss-cpu"),
    }


def main() -> None:
    """Measures all and prints two tables; see the module's text."""
    arguments = parser_of(__doc__, rounds=3).parse_args()
    result = compare(SIZES["tiny" if arguments.preset.startswith("tiny") else "small"], arguments)
    rows = []
    for point in result["points"]:
        cells = [f"{point['vectors']}", f"{point['build_seconds']:.1f}", f"{point['build_cpu_seconds']:.1f}"]
        cells += [f"{point['query_ms']:.3f}", f"{point['query_cpu_ms']:.3f}"]
        cells += [f"{point['recall_at_10']:.4f}", f"{point['peak_mb']:.0f}", f"{point['file_mb']:.0f}"]
        rows.append([point["kind"], *cells])
    print_table(["index", "vectors", "build s", "cpu", "query ms", "cpu", "recall@10", "peak MB", "file MB"], rows)
    print()
    rows = []
    for kind, found in result["at_10m"].items():
        cells = [f"{found[fit][part]:.1f}" for fit in ("linear", "law") for part in ("build_hours", "query_hours")]
        rows.append([kind, *cells, f"{found['file_gb']:.1f}"])
    print_table(["core hours, 10M", "build", "queries", "build by law", "queries by law", "file GB"], rows)
    finish(result, arguments)


if __name__ == "__main__":
    main()
