"""What a step costs as prompts, responses, images and views grow: shared prefixes, and row by row.

    python benchmarks/scaling.py --json benchmarks/scaling.json
    python benchmarks/scaling.py --preset llava-1.5-7b --json benchmarks/scaling_gpu.json

A step scores a number of responses (views) after one prompt under some images, for policy and reference, and runs the
backward pass of a preference loss on every view. *Shared* is the engine as it is, *row by row* the engine with
`EngineOptions(packing="off")`, where every view is a sequence of its own; both encode an image once. One size at a
time grows, the others stay at their first value.

Written to the JSON, per axis a list of points: `size`, `seconds` and `peak_mb` of both, `speedup` (row by row / shared
seconds) and `memory_ratio` (shared / row by row).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from comparison import check_losses
from harness import Process, in_turn, peaks_of
from mllm_align.contract import Batch, Branch, Prefix, View
from mllm_align.signals import AdaptersOff, EngineOptions, measure
from results import finish, parser_of, print_table, shape_of
from shapes import Shape, build_model, random_ids, random_pixels, with_images


class Size(NamedTuple):
    """Tokens of the prompt without its images, tokens of each response, images, responses."""

    prompt: int
    response: int
    images: int
    views: int


AXES = {
    "small": {
        "prompt": (40, 160, 640),
        "response": (80, 160, 320),
        "images": (1, 0, 2, 4),
        "views": (2, 1, 4, 8),
    },
    "tiny": {"prompt": (8, 16), "response": (6, 12), "images": (1, 0, 2), "views": (2, 1, 4)},
}


def sizes(axes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, Size]]:
    """Every axis with the sizes along it, in order."""
    base = {name: values[0] for name, values in axes.items()}
    for name, values in axes.items():
        for value in sorted(values):
            yield name, Size(**{**base, name: value})


class Engine:
    """A step through the engine.

    Args:
        shape: Of the model.
        options: How it measures.
    """

    def __init__(self, shape: Shape, options: EngineOptions) -> None:
        self.shape, self.options, self.model = shape, options, build_model(shape)

    def prepare(self, case: Size) -> Batch:
        """One row."""
        generator = torch.Generator().manual_seed(0)
        prompt = random_ids(self.shape, case.prompt, generator)
        images = tuple(
            {"pixel_values": random_pixels(self.shape, generator).to(self.shape.device, self.shape.dtype)}
            for _ in range(case.images)
        )
        prefix = Prefix(with_images(self.shape, prompt, case.images), tuple(range(case.images)), {})
        column = "image" if images else None
        branches = tuple(
            Branch(0, 0, View(column, str(number)), random_ids(self.shape, case.response, generator))
            for number in range(case.views)
        )
        return Batch(("rows",), ("0",), images, (prefix,), branches, (True,))

    def step(self, data: Batch) -> float:
        """Measure policy and reference, a loss on every view, backward."""
        with self.shape.autocast():
            policy, reference = measure(self.model, data, reference=AdaptersOff(), options=self.options)
        assert reference is not None
        ratios = torch.cat([policy.logps[view] - reference.logps[view] for view in data.views])
        loss = -F.logsigmoid(0.1 * ratios).mean()
        loss.backward()
        return loss.item()


def shared(shape: Shape) -> Engine:
    """The engine as it is."""
    return Engine(shape, EngineOptions())


def row_by_row(shape: Shape) -> Engine:
    """The engine with every view as a sequence of its own."""
    return Engine(shape, EngineOptions(packing="off"))


SIDES = {"shared": shared, "row_by_row": row_by_row}


def grow(shape: Shape, axes: dict[str, tuple[int, ...]], rounds: int, threads: int) -> dict[str, list[dict[str, Any]]]:
    """The points of every axis; a size that lies on several is measured once."""
    distinct = list(dict.fromkeys(size for _, size in sizes(axes)))
    points: dict[Size, dict[str, Any]] = {}
    with Process(shared, shape, threads) as one, Process(row_by_row, shape, threads) as other:
        for size in distinct:
            timed = in_turn({"shared": (one, size), "row_by_row": (other, size)}, rounds)
            check_losses({name: steps[-1].loss for name, steps in timed.items()}, shape.tolerance)
            pairs = zip(timed["row_by_row"], timed["shared"], strict=True)
            points[size] = {
                "seconds": {name: statistics.median(s.seconds for s in steps) for name, steps in timed.items()},
                "speedup": statistics.median(apart.seconds / together.seconds for apart, together in pairs),
            }
    for name, build in SIDES.items():
        for size, peak in peaks_of(build, shape, threads, distinct).items():
            points[size].setdefault("peak_mb", {})[name] = peak / 2**20
    for point in points.values():
        point["memory_ratio"] = point["peak_mb"]["shared"] / point["peak_mb"]["row_by_row"]
    result: dict[str, list[dict[str, Any]]] = {}
    for axis, size in sizes(axes):
        result.setdefault(axis, []).append({"size": size._asdict(), **points[size]})
    return result


def main() -> None:
    """Measures all axes and prints a table; see the module's text."""
    arguments = parser_of(__doc__, rounds=3).parse_args()
    axes = AXES["tiny" if arguments.preset.startswith("tiny") else "small"]
    result = grow(shape_of(arguments.preset), axes, arguments.rounds, arguments.threads)
    rows = []
    for axis, points in result.items():
        for point in points:
            seconds, peaks = point["seconds"], point["peak_mb"]
            cells = [f"{seconds['shared']:.2f}", f"{seconds['row_by_row']:.2f}", f"{point['speedup']:.2f}"]
            cells += [f"{peaks['shared']:.0f}", f"{peaks['row_by_row']:.0f}", f"{point['memory_ratio']:.2f}"]
            rows.append([axis, str(point["size"][axis]), *cells])
    print_table(["axis", "size", "shared s", "row by row s", "times", "shared MB", "row by row MB", "ratio"], rows)
    finish({"axes": result}, arguments)


if __name__ == "__main__":
    main()
