"""`data check`: whether rows fit an objective, one of them as the model will see it, and what text alone tells."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from mllm_align.cli.commands import add_command
from mllm_align.cli.making import add_source, load_named


def add(data: Any) -> None:
    """Adds `data check`."""
    check = add_command(data, "check", _check, "check data against what an objective needs, and show a sample")
    check.add_argument(
        "rows", help="a file, a folder, a dataset on the Hub, or world:pairs, world:correspondence, ..."
    )
    text = "as a recipe has it: name, import path, or {name: discriminative, negatives: true} (default: %(default)s)"
    check.add_argument("--objective", default="svco", help=text)
    check.add_argument(
        "--model", help="whose processor reads the rows (default: demo-base); with --balance, asked without the image"
    )
    add_source(check)
    check.add_argument("--row", type=int, default=0, help="the row to show (default: %(default)s)")
    check.add_argument(
        "--balance", action="store_true", help="how well text alone tells chosen from rejected, by category"
    )
    check.add_argument("--category", help="column with a row's category (default: category, or kind)")
    text = "only draw the regions of the first rows, and how much of each image token they cover, as PNG files there"
    check.add_argument("--draw", metavar="FOLDER", help=text)
    check.add_argument("--draw-rows", type=int, default=8, metavar="N", help="how many rows (default: %(default)s)")
    check.add_argument("--load-in-4bit", action="store_true", help="NF4 for the model that --balance asks")


def _check(arguments: argparse.Namespace) -> None:
    rows = load_named(arguments, arguments.rows)
    if arguments.draw is not None:
        from mllm_align.cli.draw import draw_rows

        paths = draw_rows(rows, arguments.model or "demo-base", arguments.draw, arguments.draw_rows)
        print(f"wrote {len(paths)} pictures to {arguments.draw}")
    elif arguments.balance:
        _balance(rows, arguments)
    else:
        _fit(rows, arguments)


def _spec(text: str) -> Any:
    """What --objective says, as YAML like a recipe's."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--objective {text!r} is neither a name nor YAML: {str(error).splitlines()[0]}") from error


def _fit(rows: Any, arguments: argparse.Namespace) -> None:
    from transformers import AutoConfig

    from mllm_align.data.check import check_dataset
    from mllm_align.data.collator import AlignCollator
    from mllm_align.data.sample import sample_as_model_sees
    from mllm_align.families import family_of
    from mllm_align.models import load_processor, model_path
    from mllm_align.objectives.load import objective_from
    from mllm_align.trainers.setup import NeedsOfSources
    from mllm_align.vision import RegionWeights

    # An objective of the user's own may lie in the working folder, as for a recipe.
    sys.path.append(str(Path.cwd()))
    objective = objective_from(_spec(arguments.objective))
    name = model_path(arguments.model or "demo-base")
    processor = load_processor(name)
    config = AutoConfig.from_pretrained(name)
    family = family_of(config)
    collator = AlignCollator(
        processor,
        NeedsOfSources(objective),
        family.image_keys,
        family.token_keys,
        region_weights=RegionWeights(family, processor.image_processor, config),
        ask_teacher=_silent,
    )
    print(check_dataset(rows, collator))
    if not 0 <= arguments.row < len(rows):
        raise ValueError(f"--row {arguments.row}: there are {len(rows)} rows, counted from 0")
    for view in sample_as_model_sees(rows[arguments.row], collator):
        print(f"\n{view}")


def _silent(feature: Any, images: Any, objects: Any, where: str) -> Any:
    """In place of a teacher, which need not be loaded to see whether rows can be used."""
    import torch

    return torch.zeros(len(objects) if feature.pooling == "regions" else 1, 1)


def _balance(rows: Any, arguments: argparse.Namespace) -> None:
    from mllm_align.data.mine.balance import text_balance

    scores = None
    if arguments.model is not None:
        from mllm_align.cli.blind import scores_without_image
        from mllm_align.models import load_model

        scores = scores_without_image(*load_model(arguments.model, load_in_4bit=arguments.load_in_4bit), rows)
    print(text_balance(rows, category=arguments.category, scores=scores))
