"""What the commands on data have in common."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_rows(parser: argparse.ArgumentParser) -> None:
    """Arguments that say which rows are read and where the new ones go."""
    parser.add_argument("rows", help="a file, a folder, a dataset on the Hub, or world:instructions")
    parser.add_argument("--output", required=True, help=".jsonl or .parquet file; started again, the job goes on")
    add_source(parser)
    parser.add_argument(
        "--first-turn", action="store_true", help="of a conversation the first question and answer (else left out)"
    )
    parser.add_argument("--limit", type=int, help="only the first rows")
    parser.add_argument("--seed", type=int, default=0, help="of all draws (default: %(default)s)")
    parser.add_argument("--strict", action="store_true", help="a row that cannot be used is an error")
    parser.add_argument("--overwrite", action="store_true", help="replace an output file that holds other rows")


def add_source(parser: argparse.ArgumentParser) -> None:
    """Arguments that say how rows are read."""
    parser.add_argument("--format", help="a public row format to convert from")
    parser.add_argument("--image-folder", help="where relative image paths of rows begin")
    parser.add_argument("--split", help="of a dataset with several (default: train)")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Arguments that say which model speaks, and which encoder compares texts."""
    parser.add_argument("--model", required=True, help="the vision-language model: Hub id or folder, or demo-base")
    parser.add_argument("--adapter", help="folder of an adapter on it")
    parser.add_argument("--load-in-4bit", action="store_true", help="NF4 with double quantisation")
    parser.add_argument("--batch-size", type=int, default=16, help="questions at a time (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="of an answer (default: %(default)s)")
    parser.add_argument("--block-size", type=int, default=64, help="rows that a kill can cost (default: %(default)s)")


def add_band(parser: argparse.ArgumentParser) -> None:
    """Arguments that say which pictures are similar, and how those are found."""
    parser.add_argument(
        "--band",
        type=float,
        nargs=2,
        default=(-1.0, 0.99),
        metavar=("LOW", "HIGH"),
        help="cosine similarity of a neighbour; above HIGH is the same picture (default: -1 0.99)",
    )
    parser.add_argument(
        "--index", default="auto", choices=("auto", "exact", "ivf", "hnsw"), help="of FAISS (default: by size)"
    )


def refuse_other_output(arguments: argparse.Namespace, *parts: str) -> None:
    """Before anything is loaded; parts are further outputs of the same job.

    Raises:
        DataError: If the output is no kind of file that is written.
        FileExistsError: If it is there, and not of this job.
    """
    from mllm_align.data.output import RowFile

    file = RowFile(arguments.output, overwrite=arguments.overwrite)
    for each in (file, *map(file.part, parts)):
        each.refuse_other()


def load_rows_of(arguments: argparse.Namespace, path: str | None = None) -> Any:
    """The rows that the arguments name, or another path with the same options; an empty file has none.

    Raises:
        DataError: If they cannot be read.
    """
    from datasets import Dataset

    from mllm_align.data.mine.turns import FirstTurns

    name = path or arguments.rows
    if Path(name).is_file() and not Path(name).stat().st_size:
        return Dataset.from_list([])
    rows = load_named(arguments, name, arguments.limit if path is None else None)
    return FirstTurns(rows) if arguments.first_turn else rows


def load_named(arguments: argparse.Namespace, name: str, limit: int | None = None) -> Any:
    """The rows of a file, a folder or a dataset, read as the arguments say.

    Raises:
        DataError: If they cannot be read.
    """
    from mllm_align.data.schema import DEFAULT_SOURCE
    from mllm_align.recipe.build import load_source
    from mllm_align.recipe.schema import DataSource

    source = DataSource(
        name,
        arguments.split,
        row_format=arguments.format,
        image_folder=arguments.image_folder,
        num_rows=limit,
    )
    return load_source(DEFAULT_SOURCE, source)


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

    if name == "none":
        return None
    try:
        return TextEmbedder(name)
    except ValueError as error:
        raise ValueError(
            f"{error}. It compares responses: name another encoder (folder or Hub id) with --text-model, or go "
            "without, --text-model none: words of content alone are compared then"
        ) from error


def print_summary(report: dict[str, Any], output: str) -> None:
    """How many rows are kept and why the others are not; once, whatever the number of processes."""
    from mllm_align.data.mine.results import summary_lines
    from mllm_align.data.processes import processes

    if processes().is_main_process:
        print("\n".join(summary_lines(report, output)))
