"""One run of the mixing study: trained under NF4 with LoRA, projector and mixer, then asked."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback

from mixing_arms import (
    ARMS,
    BASE,
    BATCH,
    CONTROL,
    LONG_STEPS,
    QUESTIONS,
    STAGE_1,
    STEPS,
    WITH_CAPTIONS,
    WITHOUT_PROJECTOR,
    Run,
    mixer_of,
)
from mixing_evaluation import packed, test_parts, validation_score
from mixing_folders import folders
from mllm_align import AlignConfig, AlignTrainer
from mllm_align.data.world import instruction_rows, render, scenes
from mllm_align.demo.quiet import quiet
from mllm_align.families import unwrap
from mllm_align.models import ModelArguments, load_model, lora_config
from mllm_align.objectives import NextToken
from mllm_align.vision.mixed_vision import mixed_of
from training import settings_of


def arguments_of(arm: str, root: Path, steps: int = STEPS) -> ModelArguments:
    """What is loaded and trained; the same for all arms but for the mixer."""
    found = folders(root)
    return ModelArguments(
        model_name_or_path=str(found.llava),
        dtype="float32",
        load_in_4bit=True,
        lora_r=8,
        lora_alpha=16,
        lora_dropout=0.0,
        train_projector=ARMS[arm].kind not in WITHOUT_PROJECTOR,
        mixer=mixer_of(arm, found.towers, steps),
    )


def stages(mixer: Any, steps: int) -> list[tuple[int, bool]]:
    """Steps of each stage, and whether LoRA trains in it: mixers that leave the model as it was need but one."""
    first = round(STAGE_1 * steps)
    if mixer is None or mixer.starts_as_identity or not first:
        return [(steps, True)]
    return [(first, False), (steps - first, True)]


@cache
def training_rows(steps: int) -> datasets.Dataset:
    """The rows of every arm, as many as all steps read, made once in a process."""
    num_rows, kinds = steps * BATCH, WITH_CAPTIONS if steps == LONG_STEPS else QUESTIONS
    return datasets.Dataset.from_list(instruction_rows(num_rows, 0, distribution="balanced", kinds=kinds, noise=0.0))


def train(run: Run, folder: Path, root: Path, device: str) -> tuple[Any, Any, dict[str, Any]]:
    """The trained model, its processor, and what it cost. The rows are the same for every seed, which orders them."""
    set_seed(run.seed)
    arguments = arguments_of(run.arm, root, run.steps)
    model, processor = load_model(arguments, device=torch.device(device))
    mixed = mixed_of(model.model)
    rows = training_rows(run.steps)
    adapters, seconds, log = lora_config(model, replace(arguments, use_peft=True)), 0.0, []
    for number, (steps, with_lora) in enumerate(stages(mixed and mixed.kind, run.steps)):
        settings = settings_of(
            folder / str(number),
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=run.learning_rate,
            seed=run.seed + 100 * number,
            logging_steps=10,
            use_cpu=device == "cpu",
        )
        trainer = AlignTrainer(
            model,
            NextToken(),
            AlignConfig(**settings),
            processing_class=processor,
            train_dataset=rows,
            peft_config=adapters if number == 0 else None,
        )
        trainer.remove_callback(PrinterCallback)
        model = trainer.model
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.requires_grad_(with_lora)
        started = time.perf_counter()
        trainer.train()
        seconds += time.perf_counter() - started
        log += [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    cost = {"seconds": round(seconds, 1), "losses": log}
    return model, processor, cost | size_of(model, processor)


def size_of(model: Any, processor: Any) -> dict[str, int]:
    """Parameters that train, and image tokens that the language model reads of one picture."""
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    picture = render(scenes("validation", 1)[0])
    ids = processor(text=processor.image_token, images=picture, return_tensors="pt").input_ids
    tokens = int((ids == unwrap(model).config.image_token_id).sum())
    return {"trained_parameters": trained, "image_tokens": tokens}


def carry_out(run: Run, root: Path, device: str) -> dict[str, Any]:
    """The record of a run: what it cost, validation, and the test's columns; of the base without training."""
    quiet()
    torch.set_num_threads(1)
    if run == BASE:
        model, processor = load_model(arguments_of(CONTROL, root), device=torch.device(device))
        cost: dict[str, Any] = {}
    else:
        with tempfile.TemporaryDirectory() as folder:
            model, processor, cost = train(run, Path(folder), root, device)
    started = time.perf_counter()
    record = {
        "run": run._asdict(),
        **cost,
        "validation": round(validation_score(model, processor), 4),
        "test": packed(test_parts(model, processor)),
    }
    return record | {"asking": round(time.perf_counter() - started, 1)}
