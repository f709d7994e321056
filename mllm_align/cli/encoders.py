"""The command that compares encoders of images and texts: eval encoders."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from mllm_align.cli.asked import images_by_benchmark, items_of, named
from mllm_align.cli.commands import add_command
from mllm_align.cli.scoring import DATA_HELP, known

# Those of `scoring.NAMES` that are answered by similarities.
NAMES = (
    "aro, coco_retrieval, flickr30k, mmvp_vlm, sugarcrepe_captions, sugarcrepe_pp, winoground, world_negatives, "
    "world_retrieval, world_sugarcrepe_pp, world_winoground, world_zero_shot, zero_shot"
)
DEFAULT = ["world_retrieval", "world_negatives"]


def add(evaluation: Any) -> None:
    """Adds `eval encoders`."""
    text = "score encoders of images and texts on benchmarks of similarities, and compare each with the first"
    command = add_command(evaluation, "encoders", _encoders, text)
    text = (
        "a folder with embedding.json (an LVLM trained to embed), a CLIP- or SigLIP-like model, or an LVLM as it is, "
        "read behind the instructions of the first trained one"
    )
    command.add_argument("encoders", nargs="+", metavar="[NAME=]MODEL", help=text)
    command.add_argument(
        "--benchmark", nargs="+", default=DEFAULT, metavar="BENCH", help=f"default: {' '.join(DEFAULT)}; {NAMES}"
    )
    command.add_argument("--data", help=DATA_HELP)
    command.add_argument(
        "--images", default=[], nargs="+", metavar="[BENCH=]FOLDER", help="folder of the images; of each benchmark"
    )
    command.add_argument("--dimensions", type=int, metavar="N", help="leading numbers of each vector that are kept")
    command.add_argument("--load-in-4bit", action="store_true", help="NF4 with double quantisation, of LVLMs")
    command.add_argument("--batch-size", type=int, default=32)
    command.add_argument("--output", required=True, help="folder for results.json and the report")
    command.add_argument("--overwrite", action="store_true", help="replace results in that folder")


def _encoders(arguments: argparse.Namespace) -> None:
    from mllm_align.encoding import has_embedding
    from mllm_align_eval.encoder_run import compare_encoders
    from mllm_align_eval.report import print_table
    from mllm_align_eval.report.ties import ties_texts

    for name in arguments.benchmark:
        if known(name) not in NAMES.split(", "):
            raise ValueError(f"{name} is not answered by similarities, which is all that encoders have: name {NAMES}")
    models = named(arguments.encoders, "MODEL")
    items: list[Any] = items_of(arguments.benchmark, arguments.data, images_by_benchmark(arguments.images))
    like = next((model for model in models.values() if has_embedding(model)), None)
    settings = {"like": like, "batch_size": arguments.batch_size, "load_in_4bit": arguments.load_in_4bit}
    makers = {arm: partial(_make, model, arguments.dimensions, settings) for arm, model in models.items()}
    card = {"encoders": models} | ({"dimensions": arguments.dimensions} if arguments.dimensions else {})
    title = f"{', '.join(dict.fromkeys(arguments.benchmark))} with {', '.join(models)}"
    results = compare_encoders(makers, items, arguments.output, overwrite=arguments.overwrite, title=title, model=card)
    print_table(results)
    for text in ties_texts(results):
        print(text)


def _make(model: str, dimensions: int | None, settings: dict[str, Any]) -> Any:
    from mllm_align_eval.encoders import Leading, encoder_of

    encoder = encoder_of(model, **settings)
    return encoder if dimensions is None else Leading(encoder, dimensions)
