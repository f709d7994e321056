"""One run of the study: an arm, a learning rate, a seed; trained under NF4 with LoRA, then asked."""

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

from conditions import CONDITIONS, mirrored, replay_rows
from evaluation import packed, test_parts, validation_score
from methods import METHODS, PAIRS_PER_STEP, REPLAY_PER_STEP
from mllm_align import AlignConfig, AlignTrainer
from mllm_align.demo.quiet import quiet
from mllm_align.models import ModelArguments, load_model, lora_config
from mllm_align.objectives.load import objective_from
from records import Run
from training import settings_of

STEPS = 300
MODEL = ModelArguments(
    model_name_or_path="demo-base", load_in_4bit=True, lora_r=8, lora_alpha=16, lora_dropout=0.0, train_projector=True
)


def rows_of(run: Run) -> dict[str, Any]:
    """The training rows by source; the same for every seed of the run, which draws their order alone."""
    from mllm_align.data.corrupt import corrupted, corruption_from

    method, condition = METHODS[run.method], CONDITIONS[run.condition]
    pairs = condition.rows(seed=0)
    if method.mirrored and not condition.one_sided:
        pairs = mirrored(pairs)
    if method.corrupt is not None:
        pairs = [{key: value for key, value in row.items() if key != "contrast_image"} for row in pairs]
    found: Any = datasets.Dataset.from_list(pairs)
    if method.corrupt is not None:
        found = corrupted(found, corruption_from(method.corrupt), redraw=False)
    parts = {"pairs": found}
    if run.replay:
        parts["replay"] = datasets.Dataset.from_list(replay_rows(seed=0))
    return parts


def batch_size(run: Run) -> int:
    """Rows of a step: as many pairs for every arm, whichever way they are shown, and as many replay rows."""
    method, condition = METHODS[run.method], CONDITIONS[run.condition]
    rows_per_pair = 2 if method.mirrored and not condition.one_sided else 1
    return PAIRS_PER_STEP * rows_per_pair + (REPLAY_PER_STEP if run.replay else 0)


def train(run: Run, folder: Path, cache: Path, **changes: Any) -> tuple[Any, Any, dict[str, float]]:
    """The trained model, its processor, and what it cost."""
    set_seed(run.seed)
    model, processor = load_model(MODEL, device=torch.device("cpu"))
    objective = objective_from(run.arm.objective())
    settings = settings_of(
        folder,
        max_steps=STEPS,
        per_device_train_batch_size=batch_size(run),
        learning_rate=run.learning_rate,
        seed=run.seed,
        cache_dir=str(cache),
        precompute_ref_log_probs=objective.needs.reference,
    )
    trainer = AlignTrainer(
        model,
        objective,
        AlignConfig(**(settings | changes)),
        processing_class=processor,
        train_dataset=rows_of(run),
        peft_config=lora_config(model, replace(MODEL, use_peft=True)),
    )
    trainer.remove_callback(PrinterCallback)
    started = time.perf_counter()
    loss = trainer.train().training_loss
    seconds = time.perf_counter() - started
    cost = {"seconds": seconds, "tokens": float(trainer.state.num_input_tokens_seen), "loss": loss}
    return trainer.model, processor, cost


def carry_out(run: Run, cache: Path, *, tested: bool) -> dict[str, Any]:
    """The record of a run: validation always, the test's columns where it is `tested`."""
    quiet()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model, processor, cost = train(run, Path(folder) / "run", cache)
        record = {"run": run._asdict(), "steps": STEPS, **cost, "validation": validation_score(model, processor)}
        if tested:
            record["test"] = packed(test_parts(model, processor))
    return record


def base_record() -> dict[str, Any]:
    """The base itself under NF4, untrained, with every test column."""
    quiet()
    torch.set_num_threads(1)
    model, processor = load_model(MODEL, device=torch.device("cpu"))
    return {
        "run": "base",
        "validation": validation_score(model, processor),
        "test": packed(test_parts(model, processor)),
    }
