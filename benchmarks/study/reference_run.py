"""One run of the study of named pictures: next-token training by LoRA, then the same questions in both orders."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import datasets
import torch
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback

from answer_losses import losses
from discriminative_evaluation import Part, packed
from mllm_align import AlignConfig, AlignTrainer
from mllm_align.data.references import NAMES, declare_references, reordered
from mllm_align.data.world import reference_rows
from mllm_align.data.world.references import PICTURE_NAMES
from mllm_align.demo.quiet import quiet
from mllm_align.models import ModelArguments, load_model, lora_config
from mllm_align.objectives import NextToken
from reference_arms import (
    ASKS,
    BASE,
    CONTROL,
    LEARNING_RATE,
    LORA_ALPHA,
    LORA_RANK,
    NUM_ROWS,
    ROWS_PER_STEP,
    Run,
)
from training import settings_of

NUM_TEST = 300
TEST = "test_in_distribution"
ORDERS = ("first", "turned")  # pictures in the order of their names, and the other way round
MODEL = ModelArguments(
    model_name_or_path="demo-base",
    dtype="float32",
    lora_r=LORA_RANK,
    lora_alpha=LORA_ALPHA,
    lora_dropout=0.0,
    train_projector=True,
)
Row = dict[str, Any]


def placed(row: Mapping[str, Any], turned: bool) -> Row:
    """A row with names, its pictures in their order or in the other one, declared."""
    order = [row[NAMES].index(name) for name in PICTURE_NAMES[: len(row[NAMES])]]
    return declare_references(reordered(row, order[::-1] if turned else order))


def training_rows(run: Run, num_rows: int = NUM_ROWS) -> list[Row]:
    """The rows of a run, which its seed orders; those of both arms differ in the order of pictures alone."""
    rows = reference_rows(num_rows, declared=False, asks=ASKS)
    Random(f"references|{run.seed}").shuffle(rows)
    return [placed(row, False) if run.arm == CONTROL else declare_references(row) for row in rows]


@cache
def asked(ask: str) -> list[Row]:
    """Rows of test scenes, not declared yet."""
    return reference_rows(NUM_TEST, split=TEST, declared=False, asks=[ask])


def train(run: Run, folder: Path, cache: Path) -> tuple[Any, Any, dict[str, Any]]:
    """The trained model, its processor, and what it cost."""
    set_seed(run.seed)
    model, processor = load_model(MODEL, device=torch.device("cpu"))
    config: Any = lora_config(model, replace(MODEL, use_peft=True))
    # The base was never trained to say the names.
    config.modules_to_save = [*(config.modules_to_save or ()), "lm_head"]
    settings = settings_of(
        folder,
        max_steps=run.steps,
        per_device_train_batch_size=ROWS_PER_STEP,
        train_sampling_strategy="sequential",
        learning_rate=LEARNING_RATE,
        seed=run.seed,
        logging_steps=max(1, run.steps // 30),
        cache_dir=str(cache),
    )
    trainer = AlignTrainer(
        model,
        NextToken(matched=False),
        AlignConfig(**settings),
        processing_class=processor,
        train_dataset=datasets.Dataset.from_list(training_rows(run)),
        peft_config=config,
    )
    trainer.remove_callback(PrinterCallback)
    started = time.perf_counter()
    trainer.train()
    log = [round(entry["loss"], 3) for entry in trainer.state.log_history if "loss" in entry]
    return trainer.model, processor, {"seconds": round(time.perf_counter() - started, 1), "losses": log}


def chosen(
    model: Any, processor: Any, rows: Sequence[Mapping[str, Any]], answers: Sequence[Sequence[str]]
) -> list[int]:
    """Of each row which of its two answers is the more probable, by nats; a tie is the second, which is wrong."""
    first, second = (
        losses(model, processor, [{**row, "chosen": own[place]} for row, own in zip(rows, answers, strict=True)]).nats
        for place in range(2)
    )
    return [int(one >= two) for one, two in zip(first, second, strict=True)]


def test_parts(model: Any, processor: Any) -> dict[str, Part]:
    """By question and order whether the right answer is the more probable of two, and of both orders together.

    "which": the names; "describe": the long captions of both pictures. "both" is right in both orders, of which a
    guess has a quarter; "equal" is the same answer in both orders.
    """
    found: dict[str, Part] = {}
    for ask in ("which", "describe"):
        rows = asked(ask)
        answers = [(row["chosen"], row["rejected"]) for row in rows]
        wrong = [chosen(model, processor, [placed(row, turned) for row in rows], answers) for turned in (False, True)]
        ids = [row["id"] for row in rows]
        for order, own in zip(ORDERS, wrong, strict=True):
            found[f"{ask}/{order}"] = Part([float(not each) for each in own], ids)
        pairs = list(zip(*wrong, strict=True))
        found[f"{ask}/both"] = Part([float(not any(pair)) for pair in pairs], ids)
        found[f"{ask}/equal"] = Part([float(pair[0] == pair[1]) for pair in pairs], ids)
    return found


def carry_out(run: Run, cache: Path) -> dict[str, Any]:
    """The record of a run: what it cost and the test's columns; of the base without training."""
    quiet()
    torch.set_num_threads(1)
    cost: dict[str, Any] = {}
    if run.arm == BASE:
        model, processor = load_model(MODEL, device=torch.device("cpu"))
    else:
        with tempfile.TemporaryDirectory() as folder:
            model, processor, cost = train(run, Path(folder) / "run", cache)
    return {"run": run._asdict(), **cost, "test": packed(test_parts(model, processor))}
