"""`data check`: whether rows fit an objective, and one of them as the model will see it."""

from __future__ import annotations

import argparse
from typing import Any

from mllm_align.cli.commands import add_command


def add(data: Any) -> None:
    """Adds `data check`."""
    check = add_command(data, "check", _check, "check data against what an objective needs, and show a sample")
    check.add_argument("file", help="a file, a folder, a dataset on the Hub, world:pairs or world:instructions")
    check.add_argument("--objective", default="svco", help="name or import path (default: %(default)s)")
    check.add_argument("--model", default="demo-base", help="whose processor reads the rows (default: %(default)s)")
    check.add_argument("--format", help="a public row format to convert from")
    check.add_argument("--image-folder")
    check.add_argument("--split")
    check.add_argument("--row", type=int, default=0, help="the row to show (default: %(default)s)")


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
