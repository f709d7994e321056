"""`data embed` and `data neighbours`: images to vectors, and for every image those that are like it."""

from __future__ import annotations

import argparse
from typing import Any

from mllm_align.cli.commands import add_command, device
from mllm_align.cli.making import add_band, add_source, load_named


def add(data: Any) -> None:
    """Adds `data embed` and `data neighbours`."""
    _add_embed(data)
    _add_neighbours(data)


def _add_embed(data: Any) -> None:
    embed = add_command(data, "embed", _embed, "turn images into vectors; runs under `accelerate launch`, resumes")
    embed.add_argument(
        "images", help="a folder of images, or rows: a file, a folder, a dataset on the Hub, world:pairs"
    )
    embed.add_argument("--model", required=True, help="CLIP, SigLIP, DINOv2, any vision model or LVLM, or demo-base")
    embed.add_argument("--output", required=True, help="folder for the vectors; started again, the job goes on")
    embed.add_argument("--column", default="image", help="column of the rows with the image (default: %(default)s)")
    embed.add_argument("--group", help="column; images of rows with the same value are no neighbours of one another")
    add_source(embed)
    embed.add_argument("--pooling", default="auto", choices=("auto", "cls", "mean"), help="default: the model's own")
    embed.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    embed.add_argument("--device", type=device, help="default: a GPU where there is one")
    embed.add_argument("--batch-size", type=int, default=32)
    embed.add_argument("--block-size", type=int, default=1024, help="rows of one file (default: %(default)s)")
    embed.add_argument("--workers", type=int, default=4, help="threads that read images (default: %(default)s)")
    embed.add_argument("--half", action="store_true", help="store float16")
    embed.add_argument("--strict", action="store_true", help="an image that cannot be read is an error")


def _add_neighbours(data: Any) -> None:
    found = add_command(
        data, "neighbours", _neighbours, "find for every embedded image the similar but different ones"
    )
    found.add_argument("embeddings", help="folder that `data embed` wrote")
    found.add_argument("--output", required=True, help="folder for the neighbours; started again, the job goes on")
    found.add_argument("--k", type=int, default=10, help="neighbours of an image (default: %(default)s)")
    add_band(found)


def _embed(arguments: argparse.Namespace) -> None:
    from mllm_align.data.mine.embed import embed_images
    from mllm_align.data.mine.encoder import ImageEmbedder
    from mllm_align.data.mine.listing import is_image_folder
    from mllm_align.data.processes import processes
    from mllm_align.models import model_path

    images: Any = arguments.images
    if not is_image_folder(images):
        images = load_named(arguments, images)
    model = model_path(arguments.model)
    embedder = ImageEmbedder(model, arguments.device, arguments.dtype, arguments.batch_size, arguments.pooling)
    found = embed_images(
        images,
        embedder,
        arguments.output,
        column=arguments.column,
        group=arguments.group,
        precision="float16" if arguments.half else "float32",
        block_size=arguments.block_size,
        workers=arguments.workers,
        strict=arguments.strict,
        made_of=arguments.images,
    )
    if processes().is_main_process and not found.problems:  # else a warning has said it
        print(found.summary())


def _neighbours(arguments: argparse.Namespace) -> None:
    from mllm_align.data.mine.embeddings import Embeddings
    from mllm_align.data.mine.neighbours import similar_images
    from mllm_align.data.processes import processes

    found = similar_images(
        Embeddings(arguments.embeddings),
        arguments.output,
        k=arguments.k,
        low=arguments.band[0],
        high=arguments.band[1],
        index=arguments.index,
    )
    if processes().is_main_process:
        print(found.summary())
