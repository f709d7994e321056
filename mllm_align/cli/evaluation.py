"""Commands that evaluate a model: eval run, report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mllm_align.cli import encoders, scoring
from mllm_align.cli.asked import images_by_benchmark, items_of, named
from mllm_align.cli.commands import add_command, print_error
from mllm_align.cli.scoring import (
    DATA_HELP,
    LOST,
    NAMES,
    PARSERS,
    add_judge_options,
    judge_of,
)

SUITES = ("smoke", "quick", "full")  # written out, as NAMES
UNANSWERED = 1  # exit status where a picture or the model failed


def add(commands: Any) -> None:
    """Adds `eval run` and `report`."""
    _add_eval(commands)
    report = add_command(commands, "report", _report, "print the results of finished evaluations side by side")
    report.add_argument("runs", nargs="+", help="folders with a results.json")
    report.add_argument("--markdown", metavar="FILE", help="write the comparison there too")
    report.add_argument("--overwrite", action="store_true", help="replace that file")


def _add_eval(commands: Any) -> None:
    evaluation = commands.add_parser("eval", help="evaluate").add_subparsers(required=True, metavar="COMMAND")
    run = add_command(evaluation, "run", _eval_run, "answer a benchmark with a model, and with an adapter on it")
    run.add_argument("model", help="Hub id or folder, or demo-base")
    run.add_argument("--adapter", action="append", default=[], metavar="[NAME=]FOLDER", help="one more arm")
    run.add_argument(
        "--benchmark", default=["world"], nargs="+", metavar="BENCH", help=f"world (the default), {NAMES}"
    )
    run.add_argument("--data", help=DATA_HELP)
    run.add_argument(
        "--images", default=[], nargs="+", metavar="[BENCH=]FOLDER", help="folder of the images; of each benchmark"
    )
    run.add_argument("--parser", default="strict", choices=PARSERS, help="whose rules read an answer (%(default)s)")
    amount = run.add_mutually_exclusive_group()
    text = "how much: smoke (8 questions per split, does it work), quick (300 per split), full (default: %(default)s)"
    amount.add_argument("--suite", default="full", choices=SUITES, help=text)
    amount.add_argument("--limit", type=int, help="in place of --suite: the first questions (world: scenes) per split")
    run.add_argument("--load-in-4bit", action="store_true", help="NF4 with double quantisation")
    run.add_argument("--batch-size", type=int, default=32)
    run.add_argument("--max-new-tokens", type=int, help="of a written answer (default: the benchmark's own limit)")
    run.add_argument(
        "--letter-checks",
        action="store_true",
        help="ask multiple choice with its options in the opposite order and by their wording, too (three times the "
        "log-probabilities)",
    )
    text = "a further vision encoder of a mixer to switch off, from 1 (as `inspect` numbers them)"
    run.add_argument("--without", type=int, action="append", default=[], metavar="ENCODER", help=text)
    run.add_argument("--encoders", nargs="+", metavar="FOLDER", help="where a mixer's further encoders are, if moved")
    add_judge_options(run, "judge.jsonl in the output")
    run.add_argument("--output", required=True, help="folder for results.json, the report and the answers")
    run.add_argument("--overwrite", action="store_true", help="replace results in that folder; answers are reused")
    scoring.add_fail_on_lost(run)
    scoring.add(evaluation)
    encoders.add(evaluation)


def _eval_run(arguments: argparse.Namespace) -> None:
    from mllm_align.data.processes import processes
    from mllm_align.models import ModelArguments
    from mllm_align_eval.report import print_table
    from mllm_align_eval.report.reading import warnings
    from mllm_align_eval.report.run_card import check_lines
    from mllm_align_eval.run import evaluate
    from mllm_align_eval.runner import AnswerErrors
    from mllm_align_eval.suites import suite_label

    folders = images_by_benchmark(arguments.images)
    items = items_of(arguments.benchmark, arguments.data, folders, arguments.limit, arguments.suite)
    model = ModelArguments(model_name_or_path=arguments.model, load_in_4bit=arguments.load_in_4bit)
    adapters = named(arguments.adapter, "--adapter")
    settings: dict[str, Any] = {
        "batch_size": arguments.batch_size,
        "max_new_tokens": arguments.max_new_tokens,
        "parser": arguments.parser,
        "judge": judge_of(arguments, str(Path(arguments.output) / "judge.jsonl")),
        "overwrite": arguments.overwrite,
        "suite": suite_label(arguments.suite, arguments.limit),
        "check_letters": arguments.letter_checks,
        "without": arguments.without,
        "encoders": arguments.encoders,
        "title": f"{', '.join(dict.fromkeys(arguments.benchmark))} with {arguments.model}",
    }
    try:
        results = evaluate(model, adapters, items, arguments.output, **settings)
    except AnswerErrors as error:
        if arguments.debug:
            raise
        print_error(error)
        raise SystemExit(UNANSWERED) from None
    if processes().is_main_process:
        print_table(results)
        for name, value in check_lines(results):
            print(f"{name}: {value}")
    if arguments.fail_on_lost and warnings(results):
        raise SystemExit(LOST)


def _report(arguments: argparse.Namespace) -> None:
    import json

    from rich.table import Table

    from mllm_align_eval.report import markdown_comparison, print_table
    from mllm_align_eval.report.markdown import comparison_cells, comparison_notes
    from mllm_align_eval.report.results_file import write_new
    from mllm_align_eval.report.terminal import console

    runs: dict[str, Any] = {}
    for run in arguments.runs:
        path = Path(run) / "results.json" if Path(run).is_dir() else Path(run)
        if not path.is_file():
            raise FileNotFoundError(f"no results in {run}: run `mllm-align eval run ... --output {run}` first")
        name = str(path.parent)
        if name in runs:
            raise ValueError(f"{name} is named twice")
        runs[name] = json.loads(path.read_text(encoding="utf-8"))
    if arguments.markdown is not None:
        write_new(Path(arguments.markdown), markdown_comparison(runs) + "\n", arguments.overwrite)
    if len(runs) == 1:
        print_table(*runs.values())
        return
    head, rows = comparison_cells(runs)
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    console().print(table)
    for note in comparison_notes(runs):
        console().print(note, markup=False)
