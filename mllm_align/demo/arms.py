"""The two trained arms of the demo: the recipe's objective, and its control on the same rows and steps."""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import queue
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from mllm_align.demo.quiet import quiet
from mllm_align.recipe import Recipe, build_trainer

BASE, CONTROL, ALIGNED = "base", "control", "aligned"

Log = list[dict[str, float]]


def control_recipe(recipe: Recipe) -> Recipe:
    """The same run with next-token on every source: on pairs that is both matched views.

    Model, rows, their order, steps, learning rate and everything else stay.
    """
    objective = [{"name": "next_token", "weight": 1.0, "sources": name} for name in recipe.data]
    raw = yaml.safe_load(recipe.text)
    raw["objective"] = objective
    return replace(recipe, objective=objective, text=yaml.safe_dump(raw, sort_keys=False))


def with_settings(recipe: Recipe, **settings: Any) -> Recipe:
    """The recipe with other settings of the trainer."""
    changed = copy.deepcopy(recipe)
    changed.train.update(settings)
    raw = yaml.safe_load(recipe.text)
    raw["train"].update(settings)
    changed.text = yaml.safe_dump(raw, sort_keys=False)
    return changed


def train_arms(recipes: Mapping[str, Recipe], folder: Path, show: Callable[[Progressed], None]) -> dict[str, Log]:
    """Trains the arms and saves their adapters in `folder`/<name>.

    Each arm is a process of its own, so that on CPU two arms use two cores: one thread each is faster than two threads
    in turn for a model of this size. On a GPU they take turns.

    Args:
        recipes: By the name of the arm.
        folder: Where the output folders go.
        show: Told of every step.

    Returns:
        Per arm its log: one entry per logging step.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = 1 if torch.cuda.is_available() else min(len(recipes), cores)
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(workers, context, quiet) as pool:
        events = manager.Queue()
        running = {
            name: pool.submit(_train_arm, name, recipe, folder / name, events, max(1, cores // workers))
            for name, recipe in recipes.items()
        }
        while not all(future.done() for future in running.values()):
            with contextlib.suppress(queue.Empty):
                show(Progressed(*events.get(timeout=0.2)))
        return {name: future.result() for name, future in running.items()}


def _train_arm(name: str, recipe: Recipe, folder: Path, events: Any, threads: int) -> Log:
    torch.set_num_threads(threads)
    trainer = build_trainer(with_settings(recipe, output_dir=str(folder), disable_tqdm=True))
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StepReport(name, events))
    trainer.train()
    trainer.save_model()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


class Progressed(NamedTuple):
    """How far an arm is: steps done, steps in all, the last logged loss."""

    arm: str
    step: int
    steps: int
    loss: float | None


class StepReport(TrainerCallback):
    """Puts how far the run is on a queue after every step.

    Args:
        arm: Name of the run.
        events: The queue.
    """

    def __init__(self, arm: str, events: Any) -> None:
        self.arm, self.events = arm, events

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """One step further."""
        logged = [entry["loss"] for entry in state.log_history[-2:] if "loss" in entry]
        told = Progressed(self.arm, state.global_step, state.max_steps, logged[-1] if logged else None)
        # As a plain tuple: the process that keeps the queue would else import all that this module does.
        self.events.put(tuple(told))
