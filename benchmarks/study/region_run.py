"""One run of the regions study: trained under NF4 with LoRA on language model and tower, then asked."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback

from conditions import replay_rows
from discriminative_arms import order
from mllm_align import AlignConfig, AlignTrainer
from mllm_align.demo.quiet import quiet
from mllm_align.models import ModelArguments, load_model, lora_config
from mllm_align.objectives.load import objective_from
from region_arms import REPLAY_PER_STEP, ROWS_PER_STEP, TASKS, Run, base_run, objective_of
from region_evaluation import packed, test_parts, validation_score
from training import settings_of

NUM_REPLAY = 2000
MODEL = ModelArguments(
    model_name_or_path="demo-base",
    dtype="float32",  # also on a GPU: a copy of the projector that is kept in bfloat16 loses small updates
    load_in_4bit=True,
    lora_r=8,
    lora_alpha=16,
    lora_dropout=0.0,
    lora_scope=["language", "vision"],
    train_projector=True,
)


def training_data(run: Run) -> tuple[Any, int]:
    """The rows of a run, and how many make a step.

    Where the task has a plan they are one data set in the order of its steps, each with its replay behind it; else two
    of which the trainer draws.
    """
    task = TASKS[run.task]
    rows, replay = task.rows(run.num_rows, 0, "train", run.level), replay_rows(0, NUM_REPLAY)
    if task.plan is None:
        each = {"pairs": rows, "replay": replay}
        return {name: datasets.Dataset.from_list(own) for name, own in each.items()}, ROWS_PER_STEP + REPLAY_PER_STEP
    steps = task.plan(rows, run.seed, run.steps, run.level)
    behind = order(run.seed, run.steps, len(replay), REPLAY_PER_STEP, "replay")
    columns = ("id", "source", *(name for name in rows[0] if name != "id"))
    both = [{**row, "source": "pairs"} for row in rows] + [{**row, "source": "replay"} for row in replay]
    table = datasets.Dataset.from_list([{name: row.get(name) for name in columns} for row in both])
    places = [
        place for own, more in zip(steps, behind, strict=True) for place in [*own, *(len(rows) + row for row in more)]
    ]
    return table.select(places), len(steps[0]) + REPLAY_PER_STEP


def train(run: Run, folder: Path, cache: Path, device: str, teacher: str | None = None) -> tuple[Any, Any, Any]:
    """The trained model, its processor, and what it cost. The rows are the same for every seed, which orders them."""
    set_seed(run.seed)
    model, processor = load_model(MODEL, device=torch.device(device))
    data, per_step = training_data(run)
    settings = settings_of(
        folder,
        max_steps=run.steps,
        per_device_train_batch_size=per_step,
        # The rows of a plan are in its order.
        train_sampling_strategy="random" if isinstance(data, dict) else "sequential",
        learning_rate=run.learning_rate,
        seed=run.seed,
        use_cpu=device == "cpu",
        cache_dir=str(cache),
    )
    trainer = AlignTrainer(
        model,
        objective_from(objective_of(run.task, run.arm, teacher)),
        AlignConfig(**settings),
        processing_class=processor,
        train_dataset=data,
        peft_config=lora_config(model, replace(MODEL, use_peft=True)),
    )
    trainer.remove_callback(PrinterCallback)
    started = time.perf_counter()
    loss = trainer.train().training_loss
    cost = {"seconds": time.perf_counter() - started, "loss": loss, "log": trainer.state.log_history}
    return trainer.model, processor, cost


def carry_out(run: Run, cache: Path, device: str, teacher: str | None = None) -> dict[str, Any]:
    """The record of a run: validation and the test's columns."""
    quiet()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model, processor, cost = train(run, Path(folder) / "run", cache, device, teacher)
    started = time.perf_counter()
    record = {
        "run": run._asdict(),
        **cost,
        "validation": validation_score(model, processor, run.task, run.level),
        "test": packed(test_parts(model, processor, run.task, run.level)),
    }
    return record | {"asking": time.perf_counter() - started}


def base_record(task: str, level: str, device: str) -> dict[str, Any]:
    """That of the base under NF4."""
    quiet()
    torch.set_num_threads(1)
    model, processor = load_model(MODEL, device=torch.device(device))
    return {
        "run": base_run(task, level)._asdict(),
        "validation": validation_score(model, processor, task, level),
        "test": packed(test_parts(model, processor, task, level)),
    }
