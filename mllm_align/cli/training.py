"""Commands that train or write models: demo, train, recipes, export, world train-base."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mllm_align.cli.commands import add_command


def add(commands: Any) -> None:
    """Adds `demo`, `train`, `recipes`, `export` and `world train-base`."""
    demo = add_command(commands, "demo", _demo, "align the shipped base model and report what changed")
    demo.add_argument("--output", default="runs/demo", help="folder for report and runs (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--overwrite", action="store_true", help="replace an earlier demo in that folder")
    _add_train(commands)
    recipes = add_command(commands, "recipes", _recipes, "list the recipes that come with the package, or print one")
    recipes.add_argument("name", nargs="?", help="print this recipe")
    _add_export(commands)
    world = commands.add_parser("world", help="the rendered world").add_subparsers(required=True, metavar="COMMAND")
    base = add_command(world, "train-base", _train_base, "train the demo's base model again (about five minutes)")
    base.add_argument("output", help="folder for the model")
    base.add_argument("--seed", type=int, default=0)


def _add_train(commands: Any) -> None:
    train = add_command(commands, "train", _train, "train a recipe")
    train.add_argument("recipe", help="a YAML file, or the name of a packaged recipe")
    train.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="such as train.max_steps=10"
    )
    train.add_argument("--dry-run", action="store_true", help="build everything, print the plan, train nothing")
    train.add_argument("--overwrite", action="store_true", help="allow an output folder with something in it")
    train.add_argument("--resume", action="store_true", help="continue from the last checkpoint of the output folder")


def _add_export(commands: Any) -> None:
    export = add_command(commands, "export", _export, "write an adapter, or one merged 16-bit model, for serving")
    export.add_argument("adapter", help="folder of a trained adapter")
    export.add_argument("output", help="folder to write")
    export.add_argument("--merge", action="store_true", help="merge the adapter into a 16-bit base")
    export.add_argument("--base", help="the base model, if not the one that the adapter names")
    export.add_argument(
        "--composite",
        action="store_true",
        help="with --merge: put a mixer's encoders into the tower, for AutoModel after importing vision.composite",
    )
    export.add_argument("--encoders", nargs="+", metavar="FOLDER", help="where further encoders are, if moved")
    export.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    export.add_argument(
        "--sentence-transformers", action="store_true", help="an encoder, merged, as SentenceTransformer loads it"
    )
    export.add_argument("--dimensions", type=int, help="with --sentence-transformers: leading dimensions to keep")
    export.add_argument("--overwrite", action="store_true")


def _demo(arguments: argparse.Namespace) -> None:
    from mllm_align.demo.run import run_demo

    run_demo(arguments.output, seed=arguments.seed, overwrite=arguments.overwrite)


def _train(arguments: argparse.Namespace) -> None:
    from mllm_align.recipe import build_trainer, load_recipe, plan_of, run_recipe

    recipe = load_recipe(arguments.recipe, arguments.set)
    if arguments.dry_run:
        with _leaving_no_folder(Path(recipe.train.get("output_dir") or ".")):
            print(plan_of(build_trainer(recipe)))
        return
    trainer = run_recipe(recipe, overwrite=arguments.overwrite, resume=arguments.resume)
    if trainer.is_world_process_zero():
        print(f"saved in {trainer.args.output_dir}")


@contextmanager
def _leaving_no_folder(folder: Path) -> Iterator[None]:
    """Takes away a folder, and those above it, that were made meanwhile (as any trainer does) and are empty."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        yield
    finally:
        for each in made:
            if each.is_dir() and not any(each.iterdir()):
                each.rmdir()


def _recipes(arguments: argparse.Namespace) -> None:
    from mllm_align.recipe.load import description, known_recipes, packaged_recipes
    from mllm_align.recipe.schema import RecipeError

    known = packaged_recipes()
    if arguments.name is None:
        for name, text in sorted(known.items()):
            first = " ".join(description(text).split()).split(". ")[0].rstrip(".")
            print(f"{name}\n{textwrap.indent(textwrap.fill(f'{first}.', 100), '    ')}")
    elif arguments.name in known:
        print(known[arguments.name], end="")
    else:
        raise RecipeError(f"there is no recipe {arguments.name!r}; {known_recipes(arguments.name)}")


def _export(arguments: argparse.Namespace) -> None:
    from mllm_align.models import merge_and_export

    options = {"base": arguments.base, "dtype": arguments.dtype, "overwrite": arguments.overwrite}
    if arguments.sentence_transformers:
        from mllm_align.encoding import export_sentence_transformers

        if arguments.merge or arguments.composite or arguments.encoders is not None:
            raise ValueError(
                "--sentence-transformers always merges, and takes no mixer: leave --merge, --composite and --encoders "
                "out"
            )
        print(
            export_sentence_transformers(
                arguments.adapter, arguments.output, dimensions=arguments.dimensions, **options
            )
        )
        return
    if arguments.dimensions is not None:
        raise ValueError("--dimensions belongs to --sentence-transformers: add it, or leave --dimensions out")
    options |= {"merge": arguments.merge, "encoders": arguments.encoders, "composite": arguments.composite}
    print(merge_and_export(arguments.adapter, arguments.output, **options))


def _train_base(arguments: argparse.Namespace) -> None:
    from mllm_align.demo.train_base import train_base

    train_base(arguments.output, seed=arguments.seed)
