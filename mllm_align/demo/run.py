"""The main job: a small model that answers by prior, aligned to look at the picture, and what changed.

world -> pairs and instruction rows -> S-VCO arm and its control -> the same held-out questions -> report
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mllm_align.demo.arms import ALIGNED, BASE, CONTROL, Log, Progressed, control_recipe, train_arms
from mllm_align.demo.quiet import quiet
from mllm_align.models import load_adapter, load_model
from mllm_align.models.export import refuse_file
from mllm_align.recipe import Recipe, load_recipe
from mllm_align_eval.arms import Arm
from mllm_align_eval.benchmarks.world import world_items
from mllm_align_eval.cache import AnswerCache
from mllm_align_eval.changes import changed_answers
from mllm_align_eval.items import Item
from mllm_align_eval.report import print_table, write_report, write_results
from mllm_align_eval.runner import answer_arms
from mllm_align_eval.summary import summarise

RECIPE = "demo_svco"
FULL_PRECISION = "base_16bit"
TEST_SIZE = {"num_scenes": 300, "num_pairs": 300, "num_polls": 200}
EVAL_BATCH = 100
# What the terminal shows; the report has everything.
SHOWN = (
    "world/pair_acc",
    "world/adversarial/acc",
    "world/pope_adversarial/acc",
    "world/pope_adversarial/dprime",
    "world/visual_gap",
    "world/adversarial/other_image_acc",
    "world/adversarial/no_image_acc",
    "world/in_distribution/acc",
)


@dataclass
class _Clock:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = time.perf_counter() - start


def run_demo(
    output: str | Path = "runs/demo",
    *,
    seed: int = 0,
    overwrite: bool = False,
    size: Mapping[str, int] = TEST_SIZE,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Aligns the shipped base model and reports what changed.

    Args:
        output: Folder for `report.html`, `results.json`, the two adapters and the answers.
        seed: Of the runs and of the test questions. The training rows are the recipe's.
        overwrite: Replace an earlier demo in `output`.
        size: How much is asked; see `world_items`.
        overrides: Changes to the recipe, `section.key=value`.

    Returns:
        What `results.json` holds.

    Raises:
        FileExistsError: If `output` has something in it and `overwrite` is False, or it is no demo's folder.
    """
    started, clock, console = time.perf_counter(), _Clock(), Console()
    folder = claim(Path(output), overwrite)
    quiet()
    recipe = load_recipe(RECIPE, [*overrides, f"train.seed={seed}"])
    console.print("[bold]1/3[/bold] Training: S-VCO beside next-token, and the control (next-token on the same rows)")
    with clock.stage("training"):
        training = _train(recipe, folder)
    items = world_items(**size, seed=seed)
    console.print(f"[bold]2/3[/bold] Asking {len(items):,} held-out questions of base, control and aligned")
    with clock.stage("evaluation"):
        answers = _answer(recipe, folder, items)
    console.print("[bold]3/3[/bold] Intervals and report")
    with clock.stage("statistics"):
        results = summarise(items, answers, seed=seed, recipe=recipe.text, stages=clock.seconds)
    results["seconds"] = time.perf_counter() - started
    write_results(results, folder / "results.json", overwrite=overwrite)
    gallery = changed_answers(items, answers)
    title = "S-VCO on the rendered world"
    report = write_report(
        results, gallery, folder / "report.html", title=title, training=training, overwrite=overwrite
    )
    print_table(results | {part: _shown(results[part]) for part in ("arms", "differences")}, console)
    console.print(f"{results['seconds']:.0f} s in all. Open {report}")
    return results


def _shown(part: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {metric: metrics[metric] for metric in SHOWN if metric in metrics} for name, metrics in part.items()}


def claim(folder: Path, overwrite: bool) -> Path:
    """The output folder, empty.

    Raises:
        FileExistsError: If something is in it and `overwrite` is False, or it holds no demo that could be replaced.
        ValueError: If it is a file.
    """
    refuse_file(folder)
    if folder.exists() and any(folder.iterdir()):
        if not overwrite:
            raise FileExistsError(f"{folder} has something in it: name another folder (--output), or --overwrite")
        if not any((folder / name).exists() for name in ("results.json", ALIGNED, CONTROL)):
            raise FileExistsError(f"{folder} holds something else than a demo and is kept: name another folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _train(recipe: Recipe, folder: Path) -> dict[str, Log]:
    note = TextColumn("{task.fields[note]}")
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), note)
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn()) as progress:
        tasks = {name: progress.add_task(name, total=None, note="") for name in (ALIGNED, CONTROL)}

        def show(event: Progressed) -> None:
            text = "" if event.loss is None else f"loss {event.loss:.3f}"
            progress.update(tasks[event.arm], total=event.steps, completed=event.step, note=text)

        return train_arms({ALIGNED: recipe, CONTROL: control_recipe(recipe)}, folder, show)


def _answer(recipe: Recipe, folder: Path, items: Sequence[Item]) -> dict[str, Any]:
    """Answers of all arms: three on one NF4 load, and the base in full precision on the same questions."""
    cache = AnswerCache(folder / "answers.jsonl")
    model, processor = load_model(recipe.model, adapter=folder / ALIGNED, use_peft=False)
    model = load_adapter(model, folder / CONTROL, name=CONTROL)
    arms = [Arm(BASE), Arm(CONTROL, CONTROL), Arm(ALIGNED, "default")]
    settings = {"batch_size": EVAL_BATCH, "cache": cache, "max_new_tokens": 4, "wanted": is_asked}
    answers = answer_arms(model, processor, items, arms, **settings)
    full, processor = load_model(recipe.model, load_in_4bit=False, use_peft=False)
    return answers | answer_arms(
        full, processor, items, [Arm(FULL_PRECISION)], images=("right",), methods=("logprob",), **settings
    )


def is_asked(item: Item, method: str, image: str) -> bool:
    """The wrong-picture and no-picture arms are asked of the adversarial questions alone, by log-probability."""
    return image == "right" or (method == "logprob" and item.split == "adversarial")
