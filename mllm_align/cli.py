"""The command line, `mllm-align`: demo, train, eval run, report, recipes, export, data check, world train-base."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Heavy imports are inside the commands, so that --help answers at once.

DEBUG_HELP = "show the traceback of an error"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, or 2 after an error that the user can mend."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # It warns of an optional kernel at every start on some CPUs.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        arguments.command(arguments)
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        if arguments.debug:
            raise
        from rich.console import Console

        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False)
        return 2
    except KeyboardInterrupt:
        print("stopped; what was saved is kept, and --resume continues a training run", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mllm-align", description="Make a vision-language model look at the image.")
    parser.add_argument("--debug", action="store_true", help=DEBUG_HELP)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = _command(commands, "demo", _demo, "align the shipped base model and report what changed")
    demo.add_argument("--output", default="runs/demo", help="folder for report and runs (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--overwrite", action="store_true", help="replace an earlier demo in that folder")
    _add_train(commands)
    _add_eval(commands)
    report = _command(commands, "report", _report, "print the results of finished evaluations side by side")
    report.add_argument("runs", nargs="+", help="folders with a results.json")
    recipes = _command(commands, "recipes", _recipes, "list the recipes that come with the package, or print one")
    recipes.add_argument("name", nargs="?", help="print this recipe")
    _add_export(commands)
    data = commands.add_parser("data", help="look at data").add_subparsers(required=True, metavar="COMMAND")
    _add_check(data)
    world = commands.add_parser("world", help="the rendered world").add_subparsers(required=True, metavar="COMMAND")
    base = _command(world, "train-base", _train_base, "train the demo's base model again (about five minutes)")
    base.add_argument("output", help="folder for the model")
    base.add_argument("--seed", type=int, default=0)
    return parser


def _command(commands: Any, name: str, run: Callable[[Any], None], text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[:1].upper() + text[1:] + ".")
    # Left out unless given, so that it does not undo the same flag before the command.
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=DEBUG_HELP)
    parser.set_defaults(command=run)
    return parser


def _add_train(commands: Any) -> None:
    train = _command(commands, "train", _train, "train a recipe")
    train.add_argument("recipe", help="a YAML file, or the name of a packaged recipe")
    train.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="such as train.max_steps=10"
    )
    train.add_argument("--dry-run", action="store_true", help="build everything, print the plan, train nothing")
    train.add_argument("--overwrite", action="store_true", help="allow an output folder with something in it")
    train.add_argument("--resume", action="store_true", help="continue from the last checkpoint of the output folder")


def _add_eval(commands: Any) -> None:
    evaluation = commands.add_parser("eval", help="evaluate").add_subparsers(required=True, metavar="COMMAND")
    run = _command(evaluation, "run", _eval_run, "answer a benchmark with a model, and with an adapter on it")
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


def _add_export(commands: Any) -> None:
    export = _command(commands, "export", _export, "write an adapter, or one merged 16-bit model, for serving")
    export.add_argument("adapter", help="folder of a trained adapter")
    export.add_argument("output", help="folder to write")
    export.add_argument("--merge", action="store_true", help="merge the adapter into a 16-bit base")
    export.add_argument("--base", help="the base model, if not the one that the adapter names")
    export.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    export.add_argument("--overwrite", action="store_true")


def _add_check(commands: Any) -> None:
    check = _command(commands, "check", _check, "check data against what an objective needs, and show a sample")
    check.add_argument("file", help="a file, a folder, a dataset on the Hub, world:pairs or world:instructions")
    check.add_argument("--objective", default="svco", help="name or import path (default: %(default)s)")
    check.add_argument("--model", default="demo-base", help="whose processor reads the rows (default: %(default)s)")
    check.add_argument("--format", help="a public row format to convert from")
    check.add_argument("--image-folder")
    check.add_argument("--split")
    check.add_argument("--row", type=int, default=0, help="the row to show (default: %(default)s)")


def _demo(arguments: argparse.Namespace) -> None:
    from mllm_align.demo.run import run_demo

    run_demo(arguments.output, seed=arguments.seed, overwrite=arguments.overwrite)


def _train(arguments: argparse.Namespace) -> None:
    from mllm_align.recipe import build_trainer, load_recipe, plan_of, run_recipe

    recipe = load_recipe(arguments.recipe, arguments.set)
    if arguments.dry_run:
        print(plan_of(build_trainer(recipe)))
        return
    trainer = run_recipe(recipe, overwrite=arguments.overwrite, resume=arguments.resume)
    if trainer.is_world_process_zero():
        print(f"saved in {trainer.args.output_dir}")


def _eval_run(arguments: argparse.Namespace) -> None:
    from mllm_align.models import ModelArguments
    from mllm_align.recipe.build import resolve_model_name
    from mllm_align_eval.report import print_table
    from mllm_align_eval.run import benchmark_items, evaluate

    items = benchmark_items(arguments.benchmark, arguments.annotations, arguments.images, arguments.limit)
    model = ModelArguments(model_name_or_path=arguments.model, load_in_4bit=arguments.load_in_4bit)
    adapters = dict(_named(adapter) for adapter in arguments.adapter)
    results = evaluate(
        resolve_model_name(model),
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


def _recipes(arguments: argparse.Namespace) -> None:
    from mllm_align.recipe.load import description, packaged_recipes
    from mllm_align.recipe.schema import RecipeError

    known = packaged_recipes()
    if arguments.name is None:
        for name, text in sorted(known.items()):
            print(f"{name}\n    {description(text).splitlines()[0]}")
    elif arguments.name in known:
        print(known[arguments.name], end="")
    else:
        raise RecipeError(f"there is no recipe {arguments.name!r}; known: {', '.join(sorted(known))}")


def _export(arguments: argparse.Namespace) -> None:
    from mllm_align.models import merge_and_export

    options = {"base": arguments.base, "dtype": arguments.dtype, "overwrite": arguments.overwrite}
    print(merge_and_export(arguments.adapter, arguments.output, merge=arguments.merge, **options))


def _check(arguments: argparse.Namespace) -> None:
    from transformers import AutoConfig

    from mllm_align.data.check import check_dataset
    from mllm_align.data.collator import AlignCollator
    from mllm_align.data.sample import sample_as_model_sees
    from mllm_align.data.schema import DEFAULT_SOURCE
    from mllm_align.families import family_of
    from mllm_align.models import ModelArguments, load_processor
    from mllm_align.objectives.load import objective_from
    from mllm_align.recipe.build import load_source, resolve_model_name
    from mllm_align.recipe.schema import DataSource
    from mllm_align.trainers.setup import NeedsOfSources

    objective = objective_from(arguments.objective)
    name = resolve_model_name(ModelArguments(model_name_or_path=arguments.model)).model_name_or_path or ""
    family = family_of(AutoConfig.from_pretrained(name))
    collator = AlignCollator(load_processor(name), NeedsOfSources(objective), family.image_keys, family.token_keys)
    source = DataSource(
        arguments.file, arguments.split, row_format=arguments.format, image_folder=arguments.image_folder
    )
    rows = load_source(DEFAULT_SOURCE, source)
    print(check_dataset(rows, collator))
    for view in sample_as_model_sees(rows[arguments.row], collator):
        print(f"\n{view}")


def _train_base(arguments: argparse.Namespace) -> None:
    from mllm_align.demo.train_base import train_base

    train_base(arguments.output, seed=arguments.seed)


if __name__ == "__main__":
    sys.exit(main())
