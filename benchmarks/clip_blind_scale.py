"""What it costs to find CLIP-blind pairs among N images, of all N x N: ours, a plain NumPy loop, FAISS.

    python benchmarks/clip_blind_scale.py --json benchmarks/clip_blind_scale.json

Vectors are synthetic and lie on disk as `data embed` writes them (float16): 768 numbers for the encoder to which
images must look alike (cosine above 0.95), 1024 for that of meaning (below 0.6), drawn as in `retrieval_scale.py`.
Planted are pairs that are blind, with cosines around the first bound, and pairs that are alike to both. Every arm is a
process of its own and does the same: vectors from disk, the pairs of the definition out, each once.

| arm | does |
|---|---|
| `ours` | `blind_pairs`: tiles, a sketch that rules pairs out, exact cosines in float64, results on disk |
| `whole` | the same without the sketch: what is left where a sketch saves nothing |
| `numpy` | both arrays in memory, blocks of 4096 x 4096 products of float32, `nonzero`, cosines of what is above |
| `faiss` | `IndexFlatIP.range_search`, 4096 queries at a time, cosines of what is above |
| `command` | `mine_blind_pairs`: `ours`, before it the search for images that come twice, after it rows and report |

Written to the JSON: `points`, for each size and arm `seconds` (the median of the rounds; arms in turn), `cpu_seconds`,
`peak_mb` (the whole process, interpreter and libraries too), `pairs`, and `planted`, the part of the planted pairs
that it found. `ratios`: how many times as long as `ours` the others took at the largest size. `at_1m`: hours of one
million images by N x N, from the largest size. `cells`: pairs that `ours` compares in a second.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mllm_align.data.blocks import BlockJob
from mllm_align.data.mine.alike_pairs import TilePairs
from mllm_align.data.mine.blind_search import blind_pairs
from mllm_align.data.mine.clip_blind import BlindOptions, mine_blind_pairs
from mllm_align.data.mine.embeddings import Embeddings, embedding_schema
from mllm_align.data.mine.faiss_settings import load_faiss
from mllm_align.data.mine.tiles import Tiles
from results import finish, parser_of, print_table
from retrieval_scale import clustered

ABOVE, BELOW, BLOCK, TARGET = 0.95, 0.6, 4096, 1_000_000
Pairs = set[tuple[int, int]]


class Sizes(NamedTuple):
    """Numbers of images, lengths of both vectors, and how many pairs of each kind are planted."""

    images: tuple[int, ...]
    dims: tuple[int, int]
    planted: int


SIZES = {
    "small": Sizes((25_000, 50_000, 100_000), (768, 1024), 1000),
    "tiny": Sizes((300, 600), (48, 64), 20),
}


def vectors_of(count: int, sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """Of both encoders, with planted pairs `place`, `count - 1 - place`: blind ones, then ones alike to both."""
    visual, semantic = clustered(count, sizes.dims[0], 1), clustered(count, sizes.dims[1], 2)
    rng = np.random.default_rng(3)
    for place in range(2 * sizes.planted):
        cosine = rng.uniform(0.94, 0.99)
        other = count - 1 - place
        visual[other] = _near(visual[place], cosine, rng)
        if place >= sizes.planted:
            semantic[other] = _near(semantic[place], cosine, rng)
    return visual, semantic


def _near(vector: np.ndarray, cosine: float, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(len(vector)).astype(np.float32) * np.abs(vector)
    noise -= noise @ vector * vector
    return cosine * vector + np.sqrt(1 - cosine**2) * noise / np.linalg.norm(noise)


def written(folder: Path, vectors: np.ndarray) -> Embeddings:
    """As `data embed --half` would."""
    settings = {"job": "embed", "dim": vectors.shape[1], "precision": "float16", "embedder": folder.name}
    job = BlockJob(folder, settings, len(vectors), embedding_schema(vectors.shape[1], "float16"), 1024)

    def work(rows: range) -> list[dict[str, Any]]:
        block = vectors[rows.start : rows.stop].astype(np.float16)
        return [
            {"row": row, "id": str(row), "digest": row.to_bytes(16, "big"), "embedding": vector}
            for row, vector in zip(rows, block, strict=True)
        ]

    job.run(work, "made", progress=False)
    return Embeddings(folder)


# -- arms ----------------------------------------------------------------------------------------------------------


def ours(folder: Path, work: Path, *, sketch: bool = True) -> Pairs:
    """The search of the library."""
    visual, semantic = (Embeddings(folder / name) for name in ("visual", "semantic"))
    size = BlindOptions().tile
    search = TilePairs(Tiles(visual, visual.rows, size), ABOVE, sketch=sketch)
    tiles = Tiles(semantic, semantic.rows, size)
    pairs = blind_pairs(search, tiles, BELOW, 100, (), work / "pairs", {"images": "these"}, progress=False).pairs
    return set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))


def whole(folder: Path, work: Path) -> Pairs:
    """The same by products of whole vectors."""
    return ours(folder, work, sketch=False)


def plain_loop(folder: Path, work: Path) -> Pairs:
    """What one would write: both arrays, two loops over blocks."""
    visual, semantic = (Embeddings(folder / name).array() for name in ("visual", "semantic"))
    found: Pairs = set()
    for top in range(0, len(visual), BLOCK):
        for left in range(top, len(visual), BLOCK):
            products = visual[top : top + BLOCK] @ visual[left : left + BLOCK].T
            first, second = np.nonzero(products > ABOVE)
            first, second = first + top, second + left
            found |= _unlike(semantic, first[first < second], second[first < second])
    return found


def by_faiss(folder: Path, work: Path) -> Pairs:
    """A flat index, asked for all within the bound."""
    visual, semantic = (Embeddings(folder / name).array() for name in ("visual", "semantic"))
    index = load_faiss().IndexFlatIP(visual.shape[1])
    index.add(visual)
    found: Pairs = set()
    for top in range(0, len(visual), BLOCK):
        limits, _, second = index.range_search(visual[top : top + BLOCK], ABOVE)
        first = np.repeat(np.arange(len(limits) - 1), np.diff(limits).astype(np.int64)) + top
        found |= _unlike(semantic, first[first < second], second[first < second])
    return found


def command(folder: Path, work: Path) -> Pairs:
    """All that `data clip-blind` does after the vectors are there."""
    rows = [{"id": str(number), "image": f"{number}.jpg"} for number in range(Embeddings(folder / "visual").num_rows)]
    sides = (Embeddings(folder / name) for name in ("visual", "semantic"))
    mine_blind_pairs(rows, *sides, work / "out.parquet", BlindOptions(), sheet=0, progress=False)
    import pyarrow.parquet as pq

    table = pq.read_table(work / "out.parquet", columns=["made_of", "contrast_made_of"]).to_pydict()
    return {(int(one), int(other)) for one, other in zip(*table.values(), strict=True)}


def _unlike(semantic: np.ndarray, first: np.ndarray, second: np.ndarray) -> Pairs:
    cosines = np.einsum("nd,nd->n", semantic[first], semantic[second])
    kept = cosines < BELOW
    return set(zip(first[kept].tolist(), second[kept].tolist(), strict=True))


ARMS: dict[str, Callable[[Path, Path], Pairs]] = {
    "ours": ours,
    "whole": whole,
    "numpy": plain_loop,
    "faiss": by_faiss,
    "command": command,
}


def measure(arm: str, folder: Path, threads: int) -> tuple[float, float, float, Pairs]:
    """Seconds, of the processor, peak in MB and pairs of one arm; to be run in a fresh process."""
    import torch

    torch.set_num_threads(threads)
    load_faiss().omp_set_num_threads(threads)
    with tempfile.TemporaryDirectory() as work:
        start, processor = time.perf_counter(), time.process_time()
        found = ARMS[arm](folder, Path(work))
        seconds = time.perf_counter() - start, time.process_time() - processor
    return *seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, found


def planted_pairs(count: int, visual: np.ndarray, sizes: Sizes) -> Pairs:
    """The blind ones of those that were planted, clear of the bound by more than float16 rounds."""
    places = np.arange(sizes.planted)
    cosines = np.einsum("nd,nd->n", visual[places], visual[count - 1 - places])
    return {(int(place), int(count - 1 - place)) for place in places[cosines > ABOVE + 1e-3]}


def compare(sizes: Sizes, arguments: argparse.Namespace) -> dict[str, Any]:
    """All arms; those of others at the largest size alone."""
    points: list[dict[str, Any]] = []
    processes = mp.get_context("forkserver")
    processes.set_forkserver_preload(["mllm_align.data.mine.clip_blind", "results"])
    with tempfile.TemporaryDirectory() as temporary:
        for count in sizes.images:
            folder = Path(temporary) / str(count)
            vectors = vectors_of(count, sizes)
            for name, array in zip(("visual", "semantic"), vectors, strict=True):
                written(folder / name, array)
            planted = planted_pairs(count, vectors[0], sizes)
            del vectors
            arms = list(ARMS) if count == sizes.images[-1] else ["ours"]
            timed: dict[str, list[Any]] = {arm: [] for arm in arms}
            for _ in range(arguments.rounds):
                for arm in arms:
                    with processes.Pool(1) as pool:
                        timed[arm].append(pool.apply(measure, (arm, folder, arguments.threads)))
            points += _points(count, timed, planted)
    return {"dims": sizes.dims, "above": ABOVE, "below": BELOW, "points": points, **_conclusions(points)}


def _points(count: int, timed: dict[str, list[Any]], planted: Pairs) -> Iterator[dict[str, Any]]:
    for arm, rounds in timed.items():
        found: Pairs = rounds[0][3]
        yield {
            "images": count,
            "arm": arm,
            "seconds": float(np.median([entry[0] for entry in rounds])),
            "cpu_seconds": float(np.median([entry[1] for entry in rounds])),
            "peak_mb": max(entry[2] for entry in rounds),
            "pairs": len(found),
            "planted": len(found & planted) / len(planted),
            "differs_from_ours": len(found ^ timed["ours"][0][3]),
        }


def _conclusions(points: list[dict[str, Any]]) -> dict[str, Any]:
    last = {point["arm"]: point for point in points if point["images"] == points[-1]["images"]}
    base = last["ours"]
    return {
        "ratios": {
            measure: {arm: point[measure] / base[measure] for arm, point in last.items() if arm != "ours"}
            for measure in ("seconds", "cpu_seconds", "peak_mb")
        },
        "cells": base["images"] * (base["images"] - 1) / 2 / base["seconds"],
        "at_1m": {arm: point["seconds"] * (TARGET / point["images"]) ** 2 / 3600 for arm, point in last.items()},
        "faiss": metadata.version("faiss-cpu"),
    }


def main() -> None:
    """Measures all and prints a table; see the module's text."""
    parser = parser_of(__doc__, rounds=1)
    parser.add_argument("--images", type=int, nargs="+", help="numbers of images, rising (default: of the preset)")
    arguments = parser.parse_args()
    sizes = SIZES["tiny" if arguments.preset.startswith("tiny") else "small"]
    sizes = sizes._replace(images=tuple(arguments.images)) if arguments.images else sizes
    result = compare(sizes, arguments)
    rows = []
    for point in result["points"]:
        cells = [f"{point['images']}", f"{point['seconds']:.1f}", f"{point['cpu_seconds']:.1f}"]
        cells += [f"{point['peak_mb']:.0f}", f"{point['pairs']}", f"{point['planted']:.4f}"]
        rows.append([point["arm"], *cells, f"{point['differs_from_ours']}"])
    print_table(["arm", "images", "seconds", "cpu", "peak MB", "pairs", "planted", "differs"], rows)
    print("\nOne million images, hours: " + ", ".join(f"{arm} {hours:.2f}" for arm, hours in result["at_1m"].items()))
    finish(result, arguments)


if __name__ == "__main__":
    main()
