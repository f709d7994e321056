"""What a contrastive step costs as its batch grows: one graph, and gradient caching.

    python benchmarks/contrastive_memory.py --json benchmarks/contrastive_memory.json
    python benchmarks/contrastive_memory.py --preset llava-1.5-7b --json benchmarks/contrastive_memory_gpu.json

A step is InfoNCE between the images and the texts of a batch, every row a negative of every other, with LoRA on the
language model, the projector and the vision tower, and its backward pass. *One graph* is `signals.measure`, *cached*
is `signals.Replay`: the same gradients, from passes over 4 images or 256 text tokens at a time
(on a GPU 16 images or 2,048).

Written to the JSON: per number of rows `seconds` and `peak_mb` of both, `slowdown` (cached / one graph seconds) and
`memory_ratio` (cached / one graph), and `mb_per_row`, what one more row takes from the first size to the last.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from comparison import check_losses
from harness import Process, in_turn, peaks_of
from mllm_align.contract import Batch, Branch, Prefix, View
from mllm_align.families import family_of
from mllm_align.objectives import InfoNCE
from mllm_align.signals import EngineOptions, Replay, measure
from results import finish, parser_of, print_table, shape_of
from shapes import Shape, build_base, fill_adapters, random_ids, random_pixels

ROWS = {"tiny": (2, 4), "tiny-nf4": (2, 4), "small": (4, 8, 16, 32), "llava-1.5-7b": (8, 32, 96)}
TEXT_TOKENS = 40
AT_ONCE = EngineOptions(max_tokens_per_forward=256, max_images_per_forward=4)
AT_ONCE_ON_GPU = EngineOptions(max_tokens_per_forward=2048, max_images_per_forward=16)


class Contrast:
    """A step of InfoNCE.

    Args:
        shape: Of the model.
        cached: Whether gradients are cached.
    """

    def __init__(self, shape: Shape, cached: bool) -> None:
        self.shape, self.cached, self.objective = shape, cached, InfoNCE()
        self.at_once = AT_ONCE_ON_GPU if shape.device == "cuda" else AT_ONCE
        base = build_base(shape)
        targets = family_of(base).lora_targets(base, ["language", "projector", "vision"])
        self.model: Any = get_peft_model(
            base, LoraConfig(r=shape.lora_rank, lora_alpha=2 * shape.lora_rank, target_modules=targets)
        ).train()
        fill_adapters(self.model)
        self.objective.to(shape.device)

    def prepare(self, case: int) -> Batch:
        """A batch of that many rows, each with an image and a text of its own."""
        generator = torch.Generator().manual_seed(0)
        view = View(None, "chosen")
        pixels = (random_pixels(self.shape, generator) for _ in range(case))
        prompt = random_ids(self.shape, 4, generator)
        return Batch(
            sources=("rows",) * case,
            row_ids=tuple(map(str, range(case))),
            images=tuple({"pixel_values": each.to(self.shape.device, self.shape.dtype)} for each in pixels),
            # A prefix of its own for each row: texts of unlike prompts share nothing.
            prefixes=tuple(Prefix(prompt, (), {}) for _ in range(case)),
            branches=tuple(
                Branch(row, row, view, random_ids(self.shape, TEXT_TOKENS, generator)) for row in range(case)
            ),
            reference_rows=(False,) * case,
            row_images={"image": tuple((row,) for row in range(case))},
        )

    def step(self, data: Batch) -> float:
        """Measure, InfoNCE, backward."""
        wanted: dict[str, Any] = {"features": self.objective.needs.features, "scored": ()}
        if not self.cached:
            with self.shape.autocast():
                policy, _ = measure(self.model, data, **wanted)
            loss = self.objective(policy, None).loss
            loss.backward()
            return loss.item()
        with self.shape.autocast():
            replay = Replay(self.model, data, options=self.at_once, **wanted)
        loss = self.objective(replay.policy, None).loss
        loss.backward()
        for again in replay.passes():
            with self.shape.autocast():
                value = again()
            value.backward()
        return loss.item()


def one_graph(shape: Shape) -> Contrast:
    """The whole batch in one graph."""
    return Contrast(shape, cached=False)


def cached(shape: Shape) -> Contrast:
    """Gradients cached."""
    return Contrast(shape, cached=True)


SIDES = {"one_graph": one_graph, "cached": cached}


def grow(shape: Shape, rows: tuple[int, ...], rounds: int, threads: int) -> dict[str, Any]:
    """Seconds and memory of both for every number of rows."""
    points: dict[int, dict[str, Any]] = {}
    with Process(one_graph, shape, threads) as whole, Process(cached, shape, threads) as parts:
        for count in rows:
            timed = in_turn({"one_graph": (whole, count), "cached": (parts, count)}, rounds)
            check_losses({name: steps[-1].loss for name, steps in timed.items()}, shape.tolerance)
            pairs = zip(timed["cached"], timed["one_graph"], strict=True)
            points[count] = {
                "rows": count,
                "seconds": {name: statistics.median(s.seconds for s in steps) for name, steps in timed.items()},
                "slowdown": statistics.median(late.seconds / early.seconds for late, early in pairs),
            }
    for name, build in SIDES.items():
        for count, peak in peaks_of(build, shape, threads, rows).items():
            points[count].setdefault("peak_mb", {})[name] = peak / 2**20
    for point in points.values():
        point["memory_ratio"] = point["peak_mb"]["cached"] / point["peak_mb"]["one_graph"]
    first, last = points[rows[0]], points[rows[-1]]
    slopes = {
        name: (last["peak_mb"][name] - first["peak_mb"][name]) / (last["rows"] - first["rows"]) for name in SIDES
    }
    return {"points": list(points.values()), "mb_per_row": slopes}


def main() -> None:
    """Measures every size and prints a table; see the module's text."""
    arguments = parser_of(__doc__, rounds=3).parse_args()
    result = grow(shape_of(arguments.preset), ROWS[arguments.preset], arguments.rounds, arguments.threads)
    lines = []
    for point in result["points"]:
        seconds, peaks = point["seconds"], point["peak_mb"]
        cells = [f"{seconds['one_graph']:.2f}", f"{seconds['cached']:.2f}", f"{point['slowdown']:.2f}"]
        cells += [f"{peaks['one_graph']:.0f}", f"{peaks['cached']:.0f}", f"{point['memory_ratio']:.2f}"]
        lines.append([str(point["rows"]), *cells])
    print_table(["rows", "one graph s", "cached s", "times", "one graph MB", "cached MB", "ratio"], lines)
    each = result["mb_per_row"]
    print(f"One more row: {each['one_graph']:.1f} MB in one graph, {each['cached']:.1f} MB cached")
    finish(result, arguments)


if __name__ == "__main__":
    main()
