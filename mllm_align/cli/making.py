"""What the commands that make data of rows with a model have in common."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_rows(parser: argparse.ArgumentParser) -> None:
    """Arguments that say which rows are read and where the new ones go."""
    parser.add_argument("rows", help="a file, a folder, a dataset on the Hub, or world:instructions")
    parser.add_argument("--output", required=True, help=".jsonl or .parquet file; started again, the job goes on")
    parser.add_argument("--format", help="a public row format to convert from")
    parser.add_argument("--image-folder", help="where relative image paths begin")
    parser.add_argument("--split")
    parser.add_argument(
        "--first-turn", action="store_true", help="of a conversation the first question and answer (else left out)"
    )
    parser.add_argument("--limit", type=int, help="only the first rows")
    parser.add_argument("--seed", type=int, default=0, help="of all draws (default: %(default)s)")
    parser.add_argument("--strict", action="store_true", help="a row that cannot be used is an error")
    parser.add_argument("--overwrite", action="store_true", help="replace an output file with other rows")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Arguments that say which model speaks, and which encoder compares texts."""
    parser.add_argument("--model", required=True, help="the vision-language model: Hub id or folder, or demo-base")
    parser.add_argument("--adapter", help="folder of an adapter on it")
    parser.add_argument("--load-in-4bit", action="store_true", help="NF4 with double quantisation")
    parser.add_argument("--batch-size", type=int, default=16, help="questions at a time (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="of an answer (default: %(default)s)")
    parser.add_argument("--block-size", type=int, default=64, help="rows that a kill can cost (default: %(default)s)")


def refuse_other_output(arguments: argparse.Namespace) -> None:
    """Before anything is loaded.

    Raises:
        DataError: If the output is no kind of file that is written.
        FileExistsError: If it is there, and not of this job.
    """
    from mllm_align.data.output import RowFile

    RowFile(arguments.output, overwrite=arguments.overwrite).refuse_other()


def load_rows_of(arguments: argparse.Namespace, path: str | None = None) -> Any:
    """The rows that the arguments name, or another path with the same options; an empty file has none.

    Raises:
        DataError: If they cannot be read.
    """
    from datasets import Dataset

    from mllm_align.data.mine.turns import FirstTurns
    from mllm_align.data.schema import DEFAULT_SOURCE
    from mllm_align.recipe.build import load_source
    from mllm_align.recipe.schema import DataSource

    name = path or arguments.rows
    if Path(name).is_file() and not Path(name).stat().st_size:
        return Dataset.from_list([])
    source = DataSource(
        name,
        arguments.split,
        row_format=arguments.format,
        image_folder=arguments.image_folder,
        num_rows=arguments.limit if path is None else None,
    )
    rows = load_source(DEFAULT_SOURCE, source)
    return FirstTurns(rows) if arguments.first_turn else rows


def load_speaker(arguments: argparse.Namespace) -> Any:
    """The model that the arguments name, as a `Speaker`.

    Raises:
        ValueError: If it cannot be loaded.
    """
    from mllm_align.cli.speaker import ModelSpeaker
    from mllm_align.models import load_model

    model, processor = load_model(arguments.model, arguments.adapter, load_in_4bit=arguments.load_in_4bit)
    return ModelSpeaker(model, processor, batch_size=arguments.batch_size)


def load_text_encoder(name: str) -> Any:
    """The text encoder of a name, or None for "none".

    Raises:
        ValueError: If there is none of that name.
    """
    from mllm_align.data.mine.text_embed import TextEmbedder

    return None if name == "none" else TextEmbedder(name)


def print_summary(report: dict[str, Any], output: str) -> None:
    """How many rows are kept and why the others are not; once, whatever the number of processes."""
    from accelerate import PartialState

    from mllm_align.data.mine.results import summary_lines

    if PartialState().is_main_process:
        print("\n".join(summary_lines(report, output)))
