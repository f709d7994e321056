"""One run of the discriminative study: the base trained by LoRA, or a dual encoder; then asked."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback

from discriminative_arms import (
    ARMS,
    HEAD_RATE,
    LORA_ALPHA,
    LORA_RANK,
    TOWER_RATE,
    UNTRAINED,
    Arm,
    Run,
    objective_of,
    steps_of,
)
from discriminative_dual import train_dual
from discriminative_evaluation import embedding_parts, language_parts, packed, validation_scores
from discriminative_likelihood import likelihood_parts
from discriminative_rows import training_rows
from flops import count_flops
from mllm_align import AlignConfig, AlignTrainer
from mllm_align.data.world.captions import IMAGE_INSTRUCTION, TEXT_INSTRUCTION
from mllm_align.demo.quiet import quiet
from mllm_align.encoding import Encoder
from mllm_align.models import ModelArguments, load_model, lora_config
from mllm_align.objectives import Discriminative
from mllm_align.objectives.temperature import bounded_scale
from mllm_align_eval.encoders import EmbeddingModel
from training import settings_of

BATCH = 100
COUNTED_STEPS = 2


def arguments_of(arm: Arm) -> ModelArguments:
    """What is loaded and trained; the same for all arms but for soft prompts and the tower."""
    return ModelArguments(
        model_name_or_path="demo-base",
        dtype="float32",
        lora_r=LORA_RANK,
        lora_alpha=LORA_ALPHA,
        lora_dropout=0.0,
        train_projector=True,
        train_vision=arm.tower,
        soft_prompts=[IMAGE_INSTRUCTION, TEXT_INSTRUCTION] if arm.soft_prompts else [],
    )


def trainer_of(run: Run, folder: Path, root: Path) -> tuple[AlignTrainer, Any, Any]:
    """The trainer of a run, its processor, and the part of its objective that has an embedding, if one has."""
    arm = ARMS[run.arm]
    set_seed(run.seed)
    arguments = arguments_of(arm)
    model, processor = load_model(arguments, device=torch.device("cpu"))
    objective, contrast = objective_of(arm)
    rows, per_step = training_rows(run, arm)
    settings = settings_of(
        folder,
        max_steps=steps_of(run),
        per_device_train_batch_size=per_step,
        train_sampling_strategy="sequential",
        max_tokens_per_forward=None,
        learning_rate=run.learning_rate,
        vision_learning_rate=HEAD_RATE if arm.tokens else TOWER_RATE if arm.tower else None,
        projector_learning_rate=HEAD_RATE if arm.tokens else None,
        head_learning_rate=HEAD_RATE if arm.tokens and arm.contrast else None,
        seed=run.seed,
        cache_dir=str(root),
    )
    trainer = AlignTrainer(
        model,
        objective,
        AlignConfig(**settings),
        processing_class=processor,
        train_dataset=rows,
        peft_config=lora_config(model, replace(arguments, use_peft=True)),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, processor, contrast


def train(run: Run, folder: Path, root: Path) -> tuple[Any, Any, Encoder, float | None, dict[str, Any]]:
    """The trained model, its processor, its encoder, what its contrast multiplies cosines by, and what it cost."""
    short = run._replace(steps=COUNTED_STEPS)
    flops = count_flops(trainer_of(short, folder / "counted", root)[0].train) // steps_of(short)
    trainer, processor, contrast = trainer_of(run, folder / "run", root)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    model: Any = trainer.model
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    cost = {
        "seconds": round(seconds, 1),
        "flops_per_step": flops,
        "tokens": int(trainer.state.num_input_tokens_seen),
        "trained_parameters": sum(each.numel() for each in model.parameters() if each.requires_grad),
        "parameters": sum(each.numel() for each in model.get_base_model().parameters()),
        "losses": [round(entry["loss"], 3) for entry in log],
    }
    if contrast is None:
        return model, processor, read_as_it_is(model, processor, ARMS[run.arm]), None, cost
    pairs = contrast.contrast if isinstance(contrast, Discriminative) else contrast
    return model, processor, Encoder(model, processor, contrast.embedding), bounded_scale(pairs.log_scale).item(), cost


def read_as_it_is(model: Any, processor: Any, arm: Arm) -> Encoder:
    """The encoder of a model that no contrast trained, behind the instructions of those that one did."""
    return Encoder.zero_shot(
        model, processor, image_prompt=IMAGE_INSTRUCTION, text_prompt=TEXT_INSTRUCTION, pooling=arm.pooling
    )


def carry_out(run: Run, root: Path) -> dict[str, Any]:
    """The record of a run: what it cost, validation, and the test's columns; of the base without training."""
    quiet()
    torch.set_num_threads(1)
    cost: dict[str, Any] = {}
    language: tuple[Any, Any] | None = None
    scale: float | None = None
    if run.arm in UNTRAINED:
        arm = UNTRAINED[run.arm]
        language = load_model(arguments_of(arm), device=torch.device("cpu"))
        encoder: Any = EmbeddingModel(read_as_it_is(*language, arm), BATCH)
    elif ARMS[run.arm].dual:
        base, processor = load_model(arguments_of(ARMS[run.arm]), device=torch.device("cpu"))
        encoder, cost = train_dual(run, base, processor)
    else:
        with tempfile.TemporaryDirectory() as folder:
            model, processor, found, scale, cost = train(run, Path(folder), root)
        language, encoder = (model, processor), EmbeddingModel(found, BATCH)
    started = time.perf_counter()
    validation = validation_scores(encoder, language)
    test = embedding_parts(encoder)
    if language is not None:
        test |= language_parts(*language) | likelihood_parts(encoder, scale, *language)
    asking = round(time.perf_counter() - started, 1)
    return {"run": run._asdict(), **cost, "validation": validation, "test": packed(test), "asking": asking}
