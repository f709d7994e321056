"""Commands that evaluate: eval run, report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mllm_align.cli.commands import add_command


def add(commands: Any) -> None:
    """Adds `eval run` and `report`."""
    _add_eval(commands)
    report = add_command(commands, "report", _report, "print the results of finished evaluations side by side")
    report.add_argument("runs", nargs="+", help="folders with a results.json")


def _add_eval(commands: Any) -> None:
    evaluation = commands.add_parser("eval", help="evaluate").add_subparsers(required=True, metavar="COMMAND")
    run = add_command(evaluation, "run", _eval_run, "answer a benchmark with a model, and with an adapter on it")
    run.add_argument("model", help="Hub id or folder, or demo-base")
    run.add_argument("--adapter", action="append", default=[], metavar="[NAME=]FOLDER", help="one more arm")
    run.add_argument("--benchmark", default="world", choices=("world", "pope", "mmvp"))
    run.add_argument("--annotations", help="folder or file of the benchmark's annotations (pope, mmvp)")
    run.add_argument("--images", help="folder of the benchmark's images (pope, mmvp)")
    run.add_argument("--limit", type=int, help="questions (world: scenes) per split")
    run.add_argument("--load-in-4bit", action="store_true", help="NF4 with double quantisation")
    run.add_argument("--batch-size", type=int, default=32)
    run.add_argument("--output", required=True, help="folder for results.json, the report and the answers")
    run.add_argument("--overwrite", action="store_true", help="replace results in that folder; answers are reused")


def _eval_run(arguments: argparse.Namespace) -> None:
    from mllm_align.models import ModelArguments
    from mllm_align_eval.report import print_table
    from mllm_align_eval.run import benchmark_items, evaluate

    items = benchmark_items(arguments.benchmark, arguments.annotations, arguments.images, arguments.limit)
    model = ModelArguments(model_name_or_path=arguments.model, load_in_4bit=arguments.load_in_4bit)
    adapters = dict(_named(adapter) for adapter in arguments.adapter)
    results = evaluate(
        model,
        adapters,
        items,
        arguments.output,
        batch_size=arguments.batch_size,
        overwrite=arguments.overwrite,
        title=f"{arguments.benchmark} with {arguments.model}",
    )
    print_table(results)


def _named(adapter: str) -> tuple[str, str]:
    """`name=folder`, or a folder that gives its name."""
    name, separator, folder = adapter.partition("=")
    return (name, folder) if separator else (Path(adapter).name, adapter)


def _report(arguments: argparse.Namespace) -> None:
    import json

    from rich.console import Console

    from mllm_align_eval.report import print_table

    for run in arguments.runs:
        path = Path(run) / "results.json" if Path(run).is_dir() else Path(run)
        if not path.is_file():
            raise FileNotFoundError(f"no results in {run}: run `mllm-align eval run ... --output {run}` first")
        Console().rule(str(path.parent))
        print_table(json.loads(path.read_text(encoding="utf-8")))
