"""2,048 pairs of images and texts, each a negative of all others, in one step: what it takes with cached gradients.

    python benchmarks/large_contrast.py --json benchmarks/large_contrast.json

A step is that of `AlignTrainer` with `InfoNCE` between what LLaVA (24 M parameters, images of 16 tokens) reads images
and captions as, LoRA on its language model, forward and backward. *Cached* is `cache_gradients` in passes of 1,152
padded tokens (some 32 images); *one graph* is the plain step at the largest batch whose memory stays within 6 GB,
which is looked for by steps of two sizes and a line through them.

Written to the JSON: `pairs`, `resident_mb` (peak of the whole process: model, pixels and libraries), `seconds` and
`seconds_per_pair` of both; `mb_per_pair` of the plain step; and `times_as_many`, the ratio of both numbers of pairs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import Build, Process
from pairs import Contrast, Pairs, pair_shape, tokens_at_once
from results import finish, parser_of, print_table
from shapes import Shape

PAIRS = {"tiny": 48, "small": 2048}
TRIED = {"tiny": (64, 256), "small": (16, 48)}
LIMIT_MB = {"tiny": 1536, "small": 6144}
STEP = 8  # batches of the plain step are multiples of it


def one_graph(shape: Shape) -> Contrast:
    """The whole batch in one graph."""
    return Contrast(shape)


def cached(shape: Shape) -> Contrast:
    """Gradients cached."""
    return Contrast(shape, cache_gradients=True, max_tokens_per_forward=tokens_at_once(shape))


def measured(build: Build, shape: Shape, threads: int, count: int) -> dict[str, float]:
    """One step of so many pairs in a process that does nothing else: its memory, images read in counted, and time."""
    with Process(build, shape, threads) as process:
        process.time(Pairs(2))
        seconds = process.time(Pairs(count)).seconds
        peak = _peak_of(process.process.pid)
    return {"pairs": count, "resident_mb": peak / 2**20, "seconds": seconds, "seconds_per_pair": seconds / count}


def _peak_of(pid: int | None) -> int:
    """Bytes that a process had in memory at the most since it began."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("memory is measured on Linux")


def most(tried: dict[int, float], limit: float) -> tuple[int, float]:
    """The largest number of pairs within a limit, a multiple of `STEP`, by the line through two sizes; and its slope.

    Args:
        tried: Memory by number of pairs.
        limit: In the same unit.
    """
    (small, least), (large, more) = sorted(tried.items())
    slope = (more - least) / (large - small)
    return int((small + (limit - least) / slope) // STEP * STEP), slope


def largest(measure: Callable[[int], dict[str, float]], tried: tuple[int, int], limit: float) -> dict[str, float]:
    """The plain step at the most pairs that stay within a limit of resident memory, and what each pair takes."""
    count, slope = most({size: measure(size)["resident_mb"] for size in tried}, limit)
    found = measure(count)
    while found["resident_mb"] > limit:
        count -= STEP
        found = measure(count)
    return {**found, "mb_per_pair": slope}


def main() -> None:
    """Measures both steps and prints a table; see the module's text."""
    arguments = parser_of(__doc__, rounds=1).parse_args()
    if arguments.preset not in PAIRS:
        raise SystemExit(f"--preset must be one of {', '.join(PAIRS)}: memory is measured on the CPU")
    load = os.getloadavg()[0]
    preset, threads = arguments.preset, arguments.threads
    shape, limit = pair_shape(preset), LIMIT_MB[preset]
    plain = largest(lambda count: measured(one_graph, shape, threads, count), TRIED[preset], limit)
    result: dict[str, Any] = {"one_graph": plain, "cached": measured(cached, shape, threads, PAIRS[preset])}
    lines = []
    for name, found in result.items():
        cells = [f"{found[key]:.0f}" for key in ("pairs", "resident_mb", "seconds")]
        lines.append([name.replace("_", " "), *cells, f"{found['seconds_per_pair']:.3f}"])
    print_table(["step", "pairs", "resident MB", "s", "s a pair"], lines)
    settings = {"limit_mb": limit, "image_tokens": shape.image_tokens, "tokens_per_forward": tokens_at_once(shape)}
    ratio = result["cached"]["pairs"] / result["one_graph"]["pairs"]
    print(f"{ratio:.1f} times as many pairs; the plain step takes {plain['mb_per_pair']:.1f} MB for each further pair")
    finish({**settings, **result, "times_as_many": ratio, "load_at_start": load}, arguments)


if __name__ == "__main__":
    main()
