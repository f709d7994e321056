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
from mllm_align import AlignConfig, AlignTrainer
from mllm_align.demo.quiet import quiet
from mllm_align.models import ModelArguments, load_model, lora_config
from mllm_align.objectives.load import objective_from
from region_arms import REPLAY_PER_STEP, ROWS_PER_STEP, TASKS, Run, base_run, objective_of
from region_evaluation import packed, test_parts, validation_score

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


def train(run: Run, folder: Path, cache: Path, device: str, teacher: str | None = None) -> tuple[Any, Any, Any]:
    """The trained model, its processor, and what it cost. The rows are the same for every seed, which orders them."""
    set_seed(run.seed)
    model, processor = load_model(MODEL, device=torch.device(device))
    rows = TASKS[run.task].rows(run.num_rows, 0, "train", run.level)
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": run.steps,
        "per_device_train_batch_size": ROWS_PER_STEP + REPLAY_PER_STEP,
        "learning_rate": run.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "seed": run.seed,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 20,
        "disable_tqdm": True,
        "check_data": False,
        "use_cpu": device == "cpu",
        "bf16": False,
        "cache_dir": str(cache),
        "cache_pixels": True,
    }
    trainer = AlignTrainer(
        model,
        objective_from(objective_of(run.task, run.arm, teacher)),
        AlignConfig(**settings),
        processing_class=processor,
        train_dataset={
            "pairs": datasets.Dataset.from_list(rows),
            "replay": datasets.Dataset.from_list(replay_rows(0, NUM_REPLAY)),
        },
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
