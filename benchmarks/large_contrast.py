"""2,048 pairs of images and texts, each a negative of all others, in one step: what it takes with cached gradients.

    python benchmarks/large_contrast.py --json benchmarks/large_contrast.json
    python benchmarks/large_contrast.py --preset small --json benchmarks/large_contrast_small.json

A step is that of `AlignTrainer` with `InfoNCE` between what LLaVA (images of 16 tokens; a tiny one, or with `--preset
small` one of 24 M parameters) reads images and captions as, LoRA on its language model, forward and backward. *Cached*
is `cache_gradients` in passes of 1,152 padded tokens (some 32 images), *one graph* is the plain step. Both double the
batch until it is of 2,048 pairs or the process has more than 6 GB.

Written to the JSON: of both `points` with the number of `pairs`, `resident_mb` (peak of the whole process: model,
pixels and libraries), `seconds` and whether it `fits`; `most_pairs` that fit; and `mb_per_pair`, what each further
pair takes from the first size to the last.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from harness import Build, Process
from pairs import Contrast, Pairs, pair_shape, tokens_at_once
from results import finish, parser_of, print_table
from shapes import Shape

COUNTS = (64, 128, 256, 512, 1024, 2048)
LIMIT_MB = 6000


def one_graph(shape: Shape) -> Contrast:
    """The whole batch in one graph."""
    return Contrast(shape)


def cached(shape: Shape) -> Contrast:
    """Gradients cached."""
    return Contrast(shape, cache_gradients=True, max_tokens_per_forward=tokens_at_once(shape))


def grow(build: Build, shape: Shape, threads: int, counts: Iterable[int], limit: float) -> list[dict[str, Any]]:
    """Steps of more and more pairs in a process that does nothing else, until one takes more than the limit in MB."""
    points: list[dict[str, Any]] = []
    with Process(build, shape, threads) as process:
        process.time(Pairs(2))
        for count in counts:
            seconds = process.time(Pairs(count)).seconds
            resident = _peak_of(process.process.pid) / 2**20
            points.append({"pairs": count, "resident_mb": resident, "seconds": seconds, "fits": resident <= limit})
            if resident > limit:
                break
    return points


def _peak_of(pid: int | None) -> int:
    """Bytes that a process had in memory at the most since it began."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("memory is measured on Linux")


def summed_up(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The points of one way, the most pairs that fit, and what each further pair takes."""
    first, last = points[0], points[-1]
    fitting = [point["pairs"] for point in points if point["fits"]]
    slope = (last["resident_mb"] - first["resident_mb"]) / (last["pairs"] - first["pairs"])
    return {"points": list(points), "most_pairs": max(fitting, default=0), "mb_per_pair": slope}


def main() -> None:
    """Measures both steps and prints a table; see the module's text."""
    parser = parser_of(__doc__, rounds=1)
    parser.set_defaults(preset="tiny")
    parser.add_argument("--pairs", type=int, default=COUNTS[-1], help=f"the most (default: {COUNTS[-1]})")
    arguments = parser.parse_args()
    load, shape = os.getloadavg()[0], pair_shape(arguments.preset)
    counts = [count for count in COUNTS if count <= arguments.pairs]
    result: dict[str, Any] = {}
    lines = []
    for name, build in (("one_graph", one_graph), ("cached", cached)):
        result[name] = summed_up(grow(build, shape, arguments.threads, counts, LIMIT_MB))
        for point in result[name]["points"]:
            cells = [str(point["pairs"]), f"{point['resident_mb']:.0f}", f"{point['seconds']:.2f}"]
            lines.append([name.replace("_", " "), *cells, "yes" if point["fits"] else "no"])
    print_table(["step", "pairs", "resident MB", "s", "fits"], lines)
    each = {name: found["mb_per_pair"] for name, found in result.items()}
    print(f"One more pair: {each['one_graph']:.2f} MB in one graph, {each['cached']:.2f} MB cached")
    settings = {"limit_mb": LIMIT_MB, "image_tokens": shape.image_tokens, "tokens_per_forward": tokens_at_once(shape)}
    finish({**settings, **result, "load_at_start": load}, arguments)


if __name__ == "__main__":
    main()
