"""Commands that evaluate: eval run, eval questions, eval score, report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mllm_align.cli.commands import add_command

# Written out, because to import the benchmarks takes seconds; a test compares.
NAMES = (
    "amber, aro, chair, coco_retrieval, cvbench, docvqa, flickr30k, hallusion, infovqa, mmhal, mmvm, mmvp, "
    "mmvp_vlm, objhal, pope, popev2, realworldqa, scienceqa, sugarcrepe, sugarcrepe_captions, sugarcrepe_pp, "
    "textvqa, winoground"
)
PARSERS = ("strict", "official", "lmms-eval", "vlmevalkit", "cambrian", "s-vco")
DATA_HELP = "folder that holds the annotations in a folder by the benchmark's name (default: $MLLM_ALIGN_DATA), or hub"


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
    run.add_argument("--limit", type=int, help="questions (world: scenes) per split")
    run.add_argument("--load-in-4bit", action="store_true", help="NF4 with double quantisation")
    run.add_argument("--batch-size", type=int, default=32)
    run.add_argument("--output", required=True, help="folder for results.json, the report and the answers")
    run.add_argument("--overwrite", action="store_true", help="replace results in that folder; answers are reused")

    text = "print a benchmark's questions as JSON lines, for any model: id, split, image, prompt"
    questions = add_command(evaluation, "questions", _questions, text)
    score = add_command(evaluation, "score", _score, "score answers that any model gave; none is loaded")
    for command in (questions, score):
        command.add_argument("benchmark", metavar="BENCH", help=NAMES)
        command.add_argument("--data", help=DATA_HELP)
    text = (
        "JSON lines with the id of a question and the text it got, or scores of its choices; for retrieval also .npy"
    )
    score.add_argument("--answers", required=True, help=text)
    score.add_argument("--format", choices=("lmms-eval", "vlmevalkit"), help="the answers are a file of that harness")
    score.add_argument("--json", metavar="OUT", help="file for the scores: {key: {value, low, high, n}}")
    score.add_argument("--overwrite", action="store_true", help="replace that file")
    score.add_argument("--parser", choices=PARSERS, help="whose rules hold (default: official, where there is one)")
    score.add_argument("--judge", metavar="URL|MODEL", help="a chat endpoint's address, or a chat model, that judges")
    score.add_argument("--judge-model", metavar="NAME", help="what the endpoint calls the judge")
    score.add_argument("--judge-runs", type=int, default=1, metavar="N", help="times each is judged (default: 1)")
    score.add_argument("--judge-cache", metavar="FILE", help="its replies (default: the answers' name + .judge.jsonl)")
    score.add_argument("--key-env", metavar="NAME", help="environment variable with the endpoint's key")

    text = "make POPE's polling questions from your own annotations"
    poll = add_command(evaluation, "poll", _poll, text)
    poll.add_argument("annotations", help="COCO instances (.json), or JSON lines of image and objects (.jsonl)")
    poll.add_argument("--output", required=True, help="folder; the questions go to pope/ in it")
    poll.add_argument("--num-images", type=int, default=500, help="how many are drawn (default: %(default)s)")
    poll.add_argument("--per-image", type=int, default=3, help="objects asked about with yes, and with no")
    poll.add_argument("--seed", type=int, default=0)
    text = "make MMVP-style questions from pairs that `data counterfactual` made"
    pairs = add_command(evaluation, "pairs", _pairs, text)
    pairs.add_argument("rows", help="a file, a folder, a dataset on the Hub, or world:pairs")
    pairs.add_argument("--output", required=True, help="folder; questions and pictures go to mmvp/ in it")
    pairs.add_argument("--split")
    pairs.add_argument("--seed", type=int, default=0)


def _poll(arguments: argparse.Namespace) -> None:
    from mllm_align_eval.polling import read_objects, write_polls

    images = read_objects(Path(arguments.annotations))
    settings = {"num_images": arguments.num_images, "per_image": arguments.per_image, "seed": arguments.seed}
    for path in write_polls(images, Path(arguments.output) / "pope", **settings):
        print(f"wrote {path}")


def _pairs(arguments: argparse.Namespace) -> None:
    from mllm_align.data.loading import load_rows
    from mllm_align_eval.mined_pairs import write_mined_pairs

    folder = Path(arguments.output) / "mmvp"
    count = write_mined_pairs(load_rows(arguments.rows, arguments.split), folder, seed=arguments.seed)
    print(f"wrote {count} pairs to {folder}; evaluate them with --data {folder.parent} --images {folder / 'images'}")


def _questions(arguments: argparse.Namespace) -> None:
    import json

    from mllm_align_eval.run import benchmark_items
    from mllm_align_eval.scoring import questions_of

    for question in questions_of(benchmark_items(_known(arguments.benchmark), arguments.data)):
        print(json.dumps(question, ensure_ascii=False))


def _score(arguments: argparse.Namespace) -> None:
    from mllm_align_eval.benchmarks import BENCHMARKS
    from mllm_align_eval.importing import import_texts
    from mllm_align_eval.report.scores import print_scores, write_scores
    from mllm_align_eval.run import benchmark_items
    from mllm_align_eval.scoring import estimates, measures_of, read_answers

    benchmark = BENCHMARKS[_known(arguments.benchmark)]
    parser = arguments.parser or ("official" if "official" in benchmark.parsers else "strict")
    benchmark.reading(parser)
    if arguments.json is not None and Path(arguments.json).exists() and not arguments.overwrite:
        raise FileExistsError(f"{arguments.json} exists: name another file, or --overwrite")
    items = benchmark_items(benchmark.name, arguments.data)
    if arguments.format is not None:
        given: Any = import_texts(Path(arguments.answers), arguments.format, benchmark.name, items)
    else:
        given = read_answers(arguments.answers, items)
    judge = _judge(arguments)
    scores = estimates(measures_of(benchmark, items, given, parser, judge))
    if arguments.json is not None:
        write_scores(scores, Path(arguments.json), judge.card() if judge is not None else None)
    print_scores(scores, f"{benchmark.title}, {parser} rules" + (f", {judge.caption()}" if judge is not None else ""))


def _judge(arguments: argparse.Namespace) -> Any:
    from mllm_align_eval.judge import load_judge

    if arguments.judge is None:
        return None
    cache = arguments.judge_cache or f"{arguments.answers}.judge.jsonl"
    return load_judge(arguments.judge, arguments.judge_model, arguments.key_env, cache, arguments.judge_runs)


def _known(name: str, *further: str) -> str:
    """The name of a benchmark.

    Raises:
        ValueError: If there is no such one.
    """
    from mllm_align_eval.benchmarks import BENCHMARKS

    if name not in (*BENCHMARKS, *further):
        raise ValueError(f"no benchmark is called {name!r}; there are {', '.join((*further, *BENCHMARKS))}")
    return name


def _eval_run(arguments: argparse.Namespace) -> None:
    from accelerate import PartialState

    from mllm_align.models import ModelArguments
    from mllm_align_eval.report import print_table
    from mllm_align_eval.run import benchmark_items, evaluate

    folders = dict(_images(given) for given in arguments.images)
    items: list[Any] = []
    for name in dict.fromkeys(arguments.benchmark):
        images = folders.get(name, folders.get(""))
        if _known(name, "world") != "world" and images is None and arguments.data != "hub":
            raise ValueError(f"--images is missing: {name} needs the folder with its pictures")
        items += benchmark_items(name, arguments.data, images, arguments.limit)
    model = ModelArguments(model_name_or_path=arguments.model, load_in_4bit=arguments.load_in_4bit)
    adapters = dict(_named(adapter) for adapter in arguments.adapter)
    results = evaluate(
        model,
        adapters,
        items,
        arguments.output,
        batch_size=arguments.batch_size,
        parser=arguments.parser,
        overwrite=arguments.overwrite,
        title=f"{', '.join(dict.fromkeys(arguments.benchmark))} with {arguments.model}",
    )
    if PartialState().is_main_process:
        print_table(results)


def _images(given: str) -> tuple[str, str]:
    """`bench=folder`, or a folder of every benchmark that has none of its own."""
    name, separator, folder = given.partition("=")
    return (_known(name), folder) if separator else ("", given)


def _named(adapter: str) -> tuple[str, str]:
    """`name=folder`, or a folder that gives its name."""
    name, separator, folder = adapter.partition("=")
    return (name, folder) if separator else (Path(adapter).name, adapter)


def _report(arguments: argparse.Namespace) -> None:
    import json

    from rich.table import Table

    from mllm_align_eval.report import markdown_comparison, print_table
    from mllm_align_eval.report.markdown import comparison_cells
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
