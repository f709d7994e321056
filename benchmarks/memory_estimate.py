"""What the memory plan of a run says, against what the run takes. Needs a GPU.

    python benchmarks/memory_estimate.py --preset llava-1.5-7b --json benchmarks/memory_estimate_gpu.json

A case is a method and a number of rows of a micro-batch. `AlignTrainer` is set up as for training and makes two
optimiser steps; the estimate is the one that `mllm-align train` prints and that `memory_budget` steers by, for the
rows that it gets.

Written to the JSON: per case `estimated_gb`, `measured_gb` (the most that live tensors took, the model included),
`reserved_gb` (the most that the allocator took from the device), `ratio` (estimated / measured, the estimate without
what it adds for driver and allocator) and `whole_ratio` (estimated / reserved and driver).
"""

from __future__ import annotations

import dataclasses
import gc
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset

from mllm_align.objectives import DPO, SVCO, InfoNCE, NextToken
from mllm_align.recipe.plan import plan_of
from mllm_align.trainers import AlignConfig, AlignTrainer
from mllm_align.trainers.memory import CUDA_CONTEXT
from results import finish, parser_of, print_table, shape_of
from shapes import Shape, build_base, build_processor, lora, preference_rows

GB = 2**30
OVERHEAD = "driver and allocator"
CASES: dict[str, tuple[Callable[[], Any], tuple[int, ...], dict[str, Any]]] = {
    "next_token": (lambda: NextToken(matched=False), (1, 4, 16), {}),
    "dpo": (DPO, (1, 4, 16), {}),
    "svco": (SVCO, (1, 4), {}),
    "svco without checkpointing": (SVCO, (1, 2), {"activation_checkpointing": False}),
    "info_nce, cached": (InfoNCE, (16, 64), {"cache_gradients": True}),
}


def rows_of(shape: Shape, count: int) -> list[dict[str, Any]]:
    """Preference rows that have a contrast image too."""
    wanted = dataclasses.replace(shape, batch=2 * count)
    rows = preference_rows(wanted, shape.lengths[1])
    others = [row["images"][0] for row in rows[1:] + rows[:1]]
    return [
        {"image": row["images"][0], "contrast_image": other, **{k: row[k] for k in ("prompt", "chosen", "rejected")}}
        for row, other in zip(rows, others, strict=True)
    ]


def measure(shape: Shape, name: str, rows: int) -> dict[str, Any]:
    """Estimate and peak of two optimiser steps."""
    objective, _, changes = CASES[name]
    base = build_base(shape)
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {
            "output_dir": folder,
            "per_device_train_batch_size": rows,
            "activation_checkpointing": True,
            "max_steps": 2,
            "learning_rate": 1e-5,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "dataloader_num_workers": 0,
        }
        trainer = AlignTrainer(
            base,
            objective(),
            AlignConfig(**(settings | changes), check_data=False),
            processing_class=build_processor(shape),
            train_dataset=Dataset.from_list(rows_of(shape, rows)),
            peft_config=lora(shape, base),
        )
        parts = dict(plan_of(trainer).memory.parts)
        total = plan_of(trainer).memory.total
        torch.cuda.reset_peak_memory_stats()
        trainer.train()
    measured, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return {
        "method": name,
        "rows": rows,
        "estimated_gb": total / GB,
        "measured_gb": measured / GB,
        "reserved_gb": reserved / GB,
        "ratio": (total - parts.get(OVERHEAD, 0)) / measured,
        "whole_ratio": total / (reserved + CUDA_CONTEXT),
        "parts_gb": {part: size / GB for part, size in parts.items()},
    }


def main() -> None:
    """Measures all cases and prints a table; see the module's text."""
    arguments = parser_of(__doc__).parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("memory_estimate.py needs a GPU, and torch finds none")
    shape = dataclasses.replace(shape_of(arguments.preset), device="cuda")
    points = []
    for name, (_, sizes, _) in CASES.items():
        for rows in sizes:
            points.append(measure(shape, name, rows))
            gc.collect()
            torch.cuda.empty_cache()
            print(name, rows, f"{points[-1]['ratio']:.2f}", flush=True)
    cells = [
        [point["method"], str(point["rows"])]
        + [f"{point[key]:.2f}" for key in ("estimated_gb", "measured_gb", "reserved_gb", "ratio", "whole_ratio")]
        for point in points
    ]
    print_table(["method", "rows", "estimated GB", "measured GB", "reserved GB", "ratio", "whole ratio"], cells)
    finish({"points": points}, arguments)


if __name__ == "__main__":
    main()
