"""Does a name beside each picture let a model say which picture is meant, in whatever order they come?

    python benchmarks/study/references.py            # every run that is missing, then the page beside this file

Rows of two or three pictures of the rendered world ask in which of them an object is (`reference_rows`). Three ways of
speaking of a picture are trained by next-token on the same pictures, questions, steps and adapters, and differ in what
the prompt says and, for the last, in the answer:

- `declared`: each picture is introduced in its place, "four is <image>" (`declare_references`, after MMICL);
- `listed`: all pictures come first, then all their names in the same order: as much is told, but beside no picture;
- `places`: no names; the answer is the place, "three" being the first. There is no reference to learn.

For each way every learning rate is tried with the first seed, and the best on validation is kept for all seeds; no
choice looks at the test. On scenes that no training row and no validation row has, every question is asked twice: as
it is, and with the pictures in another order, each at another place than before, their names with them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback

from intervals import Columns, Interval, interval, paired_interval
from mllm_align import AlignConfig, AlignTrainer
from mllm_align.data.references import NAMES, declare_references, reordered
from mllm_align.data.world import reference_rows
from mllm_align.data.world.references import PICTURE_NAMES
from mllm_align.demo.quiet import quiet
from mllm_align.models import ModelArguments, load_model, lora_config
from mllm_align.objectives import NextToken
from records import Records

# Of one word: the base has learnt never to say "picture", and adapters do not change its output layer.
SHORT_NAMES = ("three", "four", "five")
HERE = Path(__file__).resolve().parent
ARMS = ("declared", "listed", "places")
SIZES = (2, 3)
SEEDS, LEARNING_RATES = (0, 1, 2), (1e-3, 4e-3)
STEPS, BATCH, NUM_ROWS, NUM_VALIDATION, NUM_TEST = 400, 48, 3000, 150, 300
METRICS = {
    "right": "right",
    "moved": "right, reordered",
    "both": "right in both orders",
    "same": "same picture in both orders",
}
MODEL = ModelArguments(
    model_name_or_path="demo-base",
    dtype="float32",
    lora_r=16,
    lora_alpha=32,
    lora_dropout=0.0,
    train_projector=True,
)
Row = dict[str, Any]


class Run(NamedTuple):
    """What decides a run's result; a `rate` of 0 is the base as it is."""

    arm: str
    rate: float
    seed: int
    steps: int = STEPS


def undeclared_rows(number: int, size: int, split: str = "train") -> list[Row]:
    """Rows of the world that ask in which picture an object is, with short names of the pictures."""
    rows = reference_rows(number, split=split, num_images=size, declared=False)
    short = dict(zip(PICTURE_NAMES, SHORT_NAMES, strict=False))
    return [{**row, NAMES: [short[name] for name in row[NAMES]], "chosen": short[row["chosen"]]} for row in rows]


def spoken(row: Mapping[str, Any], arm: str) -> Row:
    """An undeclared row as the arm says it."""
    if arm == "declared":
        return declare_references(row)
    shown: list[dict[str, str]] = [{"type": "image"} for _ in row["images"]]
    names = [*row[NAMES], row["prompt"]] if arm == "listed" else [row["prompt"]]
    said = {key: value for key, value in row.items() if key != NAMES}
    said["prompt"] = [{"role": "user", "content": [*shown, {"type": "text", "text": "\n".join(names)}]}]
    if arm == "places":
        said["chosen"] = SHORT_NAMES[row[NAMES].index(row["chosen"])]
    return said


def moved(row: Row) -> Row:
    """The row with every picture at another place, its name with it."""
    number = len(row["images"])
    turn = Random(row["id"]).randrange(1, number)
    return reordered(row, [(place + turn) % number for place in range(number)])


def train(run: Run, folder: Path) -> tuple[Any, Any, dict[str, Any]]:
    """The model of a run, its processor, and what it cost. Rows are the same for every run; the seed orders them."""
    set_seed(run.seed)
    model, processor = load_model(MODEL, device=torch.device("cpu"))
    if not run.rate:
        return model, processor, {}
    rows = [
        {key: value for key, value in spoken(row, run.arm).items() if key != "id"}
        for size in SIZES
        for row in undeclared_rows(NUM_ROWS, size)
    ]
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": run.steps,
        "per_device_train_batch_size": BATCH,
        "learning_rate": run.rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "seed": run.seed,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 20,
        "disable_tqdm": True,
        "check_data": False,
        "use_cpu": True,
        "bf16": False,
    }
    trainer = AlignTrainer(
        model,
        NextToken(),
        AlignConfig(**settings),
        processing_class=processor,
        train_dataset=datasets.Dataset.from_list(rows),
        peft_config=lora_config(model, replace(MODEL, use_peft=True)),
    )
    trainer.remove_callback(PrinterCallback)
    started = time.perf_counter()
    trainer.train()
    losses = [round(entry["loss"], 3) for entry in trainer.state.log_history if "loss" in entry]
    return trainer.model, processor, {"seconds": round(time.perf_counter() - started, 1), "losses": losses}


@torch.no_grad()
def answers(model: Any, processor: Any, rows: Sequence[Row], batch_size: int = 50) -> list[str]:
    """The most probable of each row's possible names, as the response to its prompt."""
    model.eval()
    tokenizer, found = processor.tokenizer, []
    tokenizer.padding_side = "right"
    words = tokenizer.convert_tokens_to_ids(list(SHORT_NAMES))
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        texts = [
            processor.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True) for row in some
        ]
        images = [image for row in some for image in row["images"]]
        read = processor(text=texts, images=images, padding=True, add_special_tokens=False, return_tensors="pt")
        last = read["attention_mask"].sum(1) - 1
        logits = model(**read).logits[torch.arange(len(some)), last][:, words]
        for row, scores in zip(some, logits, strict=True):
            found.append(SHORT_NAMES[int(scores[: len(row["images"])].argmax())])
    return found


def measured(model: Any, processor: Any, arm: str, size: int, split: str, number: int) -> dict[str, list[int]]:
    """By metric 0 or 1 of each question."""
    rows = undeclared_rows(number, size, split)
    turned = [moved(row) for row in rows]
    first, second = (
        _meant(answers(model, processor, [spoken(row, arm) for row in asked]), asked, arm) for asked in (rows, turned)
    )
    right = [int(name == row["chosen"]) for name, row in zip(first, rows, strict=True)]
    after = [int(name == row["chosen"]) for name, row in zip(second, turned, strict=True)]
    both = [one * other for one, other in zip(right, after, strict=True)]
    return {
        "right": right,
        "moved": after,
        "both": both,
        "same": [int(a == b) for a, b in zip(first, second, strict=True)],
    }


def _meant(given: Sequence[str], rows: Sequence[Row], arm: str) -> list[str]:
    """The names of the pictures that the answers mean: of a place, that of the picture which is there."""
    if arm != "places":
        return list(given)
    return [row[NAMES][SHORT_NAMES.index(name)] for name, row in zip(given, rows, strict=True)]


def carry_out(run: Run) -> dict[str, Any]:
    """The record of a run: validation and the test's columns."""
    quiet()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model, processor, cost = train(run, Path(folder))
    asked = partial(measured, model, processor, run.arm)
    validation = np.mean([asked(size, "validation", NUM_VALIDATION)["right"] for size in SIZES])
    test = {str(size): asked(size, "test_in_distribution", NUM_TEST) for size in SIZES}
    return {"run": run._asdict(), **cost, "validation": round(float(validation), 4), "test": test}


def chosen_rate(records: Records, arm: str) -> float | None:
    """The learning rate with the best validation score, or None while one has not been tried."""
    tried = {rate: records.get(Run(arm, rate, SEEDS[0])) for rate in LEARNING_RATES}
    if any(record is None for record in tried.values()):
        return None
    return max(LEARNING_RATES, key=lambda rate: tried[rate]["validation"])  # type: ignore[index]


def next_runs(records: Records) -> Iterator[Run]:
    """What is to be done next: the base, all rates of each arm, then the other seeds at the best."""
    wanted = [Run(arm, 0.0, 0, 0) for arm in ARMS]
    wanted += [Run(arm, rate, SEEDS[0]) for arm in ARMS for rate in LEARNING_RATES]
    for seed in SEEDS[1:]:
        wanted += [Run(arm, rate, seed) for arm in ARMS if (rate := chosen_rate(records, arm))]
    yield from (run for run in wanted if records.get(run) is None)


def finished(records: Records, arm: str) -> list[dict[str, Any]]:
    """The records of an arm's seeds at its rate; none while one of them is missing."""
    rate = chosen_rate(records, arm)
    own = [records.get(Run(arm, rate, seed)) for seed in SEEDS] if rate else []
    return [record for record in own if record] if None not in own else []


def columns_of(own: Sequence[Mapping[str, Any]], size: int, metric: str) -> Columns:
    """One metric of an arm's runs; each question has pictures of its own and is a unit."""
    values = np.array([record["test"][str(size)][metric] for record in own], dtype=np.float64)
    return Columns(values, np.ones_like(values), [str(number) for number in range(values.shape[1])])


def table(records: Records, size: int) -> str:
    """Markdown: per cent with 95 % intervals over seeds and questions, and the differences to `declared`."""
    lines = ["| | " + " | ".join(METRICS.values()) + " |", "|---" * (len(METRICS) + 1) + "|"]
    by_chance = {metric: 100 / size ** (2 if metric == "both" else 1) for metric in METRICS}
    lines.append(
        "| an answer drawn at random | " + " | ".join(f"{by_chance[metric]:.1f}" for metric in METRICS) + " |"
    )
    own = {arm: found for arm in ARMS if (found := finished(records, arm))}
    for arm in ARMS:
        base = records.get(Run(arm, 0.0, 0, 0))
        if base:
            lines.append(
                _line(f"base, asked as `{arm}`", [interval(columns_of([base], size, each)) for each in METRICS])
            )
    for arm, found in own.items():
        lines.append(_line(f"`{arm}`", [interval(columns_of(found, size, metric)) for metric in METRICS]))
    for other in ARMS[1:]:
        if ARMS[0] in own and other in own:
            pairs = [[columns_of(own[arm], size, metric) for arm in (ARMS[0], other)] for metric in METRICS]
            lines.append(_line(f"`{ARMS[0]}` - `{other}`", [paired_interval(*pair) for pair in pairs], "+"))
    return "\n".join(lines)


def _line(name: str, cells: Sequence[Interval], sign: str = "") -> str:
    told = (f"{100 * c.value:{sign}.1f} ({100 * c.low:{sign}.1f} to {100 * c.high:{sign}.1f})" for c in cells)
    return f"| {' | '.join((name, *told))} |"


def page(records: Records) -> str:
    """The measured tables in words."""
    _, command, *text = (__doc__ or "").strip().split("\n\n")
    seconds = [record["seconds"] for record in records.found.values() if "seconds" in record]
    rates = ", ".join(f"{rate:g}" for rate in LEARNING_RATES)
    lines = [
        "# References: a name beside each picture",
        "",
        f"`{command.split('  #')[0].strip()}` writes this page.",
        "",
        (__doc__ or "").split("\n")[0],
        "",
        "\n\n".join(text),
        "",
        f"From the shipped base: LoRA of rank {MODEL.lora_r} on the language model, the projector trained whole,",
        f"{STEPS} steps of {BATCH} rows out of {NUM_ROWS:,} of two and as many of three pictures, AdamW with a cosine",
        f"schedule. Rates tried: {rates}. {len(seconds)} runs, {np.median(seconds):.0f} s in the median on a core",
        f"that did other work, too. Validation: {NUM_VALIDATION} questions of two and of three; test: {NUM_TEST}",
        "of each. Per cent; 95 % intervals from resamples of seeds and questions together. An answer is the most",
        "probable one of the names that the row has.",
        "",
        "| arm | "
        + " | ".join(f"validation at {rate:g}" for rate in LEARNING_RATES)
        + " | kept | last training loss |",
        "|---" * (len(LEARNING_RATES) + 3) + "|",
    ]
    for arm in ARMS:
        tried = [records.get(Run(arm, rate, SEEDS[0])) for rate in LEARNING_RATES]
        scores = [f"{100 * record['validation']:.1f}" if record else "" for record in tried]
        losses = [f"{record['losses'][-1]:.2f}" for record in finished(records, arm)]
        kept = chosen_rate(records, arm)
        lines.append(f"| `{arm}` | {' | '.join(scores)} | {kept or 0:g} | {', '.join(losses)} |")
    for size in SIZES:
        lines += ["", f"## {size} pictures", "", table(records, size)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs what is missing, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=HERE / "references_runs.jsonl")
    parser.add_argument("--page", type=Path, default=HERE / "references.md")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    records = Records(arguments.runs, Run)
    with ProcessPoolExecutor(arguments.workers, multiprocessing.get_context("spawn")) as pool:
        while waiting := list(next_runs(records)):
            for record in pool.map(carry_out, waiting):
                records.add(record)
                print(f"{time.strftime('%H:%M:%S')} {record['run']}: validation {record['validation']}", flush=True)
    arguments.page.write_text(page(records), encoding="utf-8")
    print(arguments.page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
