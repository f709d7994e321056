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
from mllm_align.data.world.references import LOOKS, PICTURE_NAMES
from mllm_align.demo.quiet import quiet
from mllm_align.models import ModelArguments, load_model, lora_config
from mllm_align.objectives import NextToken
from reference_arms import BASE, BY_LOOKS, LEARNING_RATE, LORA_ALPHA, LORA_RANK, ROWS_PER_STEP, STAGES, Run, ordered
from training import settings_of

NUM_TEST = 300
TEST = "test_in_distribution"
# Both that training asks, and one that it does not.
ASKED = ("look", "describe", "where")
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


def training_rows(run: Run) -> list[Row]:
    """The rows of a run, which its seed orders; those of arms differ in the order of pictures alone."""
    found: list[Row] = []
    steps = [round(stage.share * run.steps) for stage in STAGES[:-1]]
    for number, (stage, own) in enumerate(zip(STAGES, [*steps, run.steps - sum(steps)], strict=True)):
        rows = reference_rows(own * ROWS_PER_STEP, seed=number, declared=False, asks=stage.asks)
        rng = Random(f"references|{number}|{run.seed}")
        rng.shuffle(rows)
        share = ordered(run.arm, stage)
        found += [placed(row, False) if rng.random() < share else declare_references(row) for row in rows]
    return found


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


def nearest_name(model: Any, processor: Any, rows: Sequence[Mapping[str, Any]], turned: bool) -> list[int]:
    """Of each "which" row 0 if its looks tell the right name, and 1 if they tell the other one or neither.

    In place of the question itself each picture is asked, by its name, for size and colour of the shape: the answer is
    the name under which those of the object are the more probable.
    """
    found = []
    for name in ("chosen", "rejected"):
        nats = [0.0] * len(rows)
        for place, what in enumerate(("size", "colour")):
            looks = []
            for row in rows:
                words = row["prompt"].removesuffix("?").split()[-3:]
                prompt = LOOKS[what].format(shape=words[-1], name=row[name])
                looks.append(placed({**row, "prompt": prompt, "chosen": words[place]}, turned))
            nats = [sum(each) for each in zip(nats, losses(model, processor, looks).nats, strict=True)]
        found.append(nats)
    return [int(own >= other) for own, other in zip(*found, strict=True)]


def test_parts(model: Any, processor: Any) -> dict[str, Part]:
    """By question and order whether the right answer is the more probable of two, and of both orders together.

    The other answer is true of the other picture, or its name. "both" is right in both orders, of which a guess has a
    quarter; "equal" is the same answer in both orders.
    """
    found: dict[str, Part] = {}
    for ask in ASKED:
        rows = asked(ask)
        answers = [(row["chosen"], row["rejected"]) for row in rows]
        wrong = [chosen(model, processor, [placed(row, turned) for row in rows], answers) for turned in (False, True)]
        found |= in_both(ask, rows, wrong)
    rows = asked("which")
    return found | in_both(BY_LOOKS, rows, [nearest_name(model, processor, rows, turned) for turned in (False, True)])


def in_both(ask: str, rows: Sequence[Mapping[str, Any]], wrong: Sequence[Sequence[int]]) -> dict[str, Part]:
    """A question's parts by order and of both together, from whether each row's answer is wrong in each."""
    ids = [row["id"] for row in rows]
    found = {
        f"{ask}/{order}": Part([float(not each) for each in own], ids)
        for order, own in zip(ORDERS, wrong, strict=True)
    }
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
