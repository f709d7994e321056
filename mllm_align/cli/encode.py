"""`encode`: a trained encoder, or any vision-language model, over a folder of images and a file of texts."""

from __future__ import annotations

import argparse
from typing import Any

from mllm_align.cli.commands import add_command, device


def add(commands: Any) -> None:
    """Adds `encode`."""
    encode = add_command(commands, "encode", _encode, "turn images and texts into vectors with a trained encoder")
    encode.add_argument(
        "model", help="folder or Hub id of a trained encoder; with --zero-shot any model, or demo-base"
    )
    encode.add_argument("--images", metavar="FOLDER", help="its images, and those of the folders below it")
    encode.add_argument("--texts", metavar="FILE", help="one text a line")
    encode.add_argument("--output", required=True, help=".npz file to write; nothing is ever written over")
    encode.add_argument("--base", help="the base of an adapter, if not the one that it names")
    encode.add_argument("--zero-shot", action="store_true", help="a model that was not trained for it, behind prompts")
    encode.add_argument("--image-prompt", help="with --zero-shot: instruction behind an image")
    encode.add_argument("--text-prompt", help="with --zero-shot: instruction behind a text")
    encode.add_argument("--dimensions", type=int, help="leading dimensions that are kept (default: all)")
    encode.add_argument("--batch-size", type=int, default=32)
    encode.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float16", "float32"))
    encode.add_argument("--load-in-4bit", action="store_true", help="NF4 with double quantisation")
    encode.add_argument("--device", type=device, help="default: a GPU where there is one")


def _encode(arguments: argparse.Namespace) -> None:
    from mllm_align.encoding import load_encoder
    from mllm_align.encoding.output import free_file, images_in, save_vectors, texts_in

    if arguments.images is None and arguments.texts is None:
        raise ValueError("nothing to encode: give --images, --texts, or both")
    target = free_file(arguments.output)
    paths = None if arguments.images is None else images_in(arguments.images)
    texts = None if arguments.texts is None else texts_in(arguments.texts)
    options = {name: getattr(arguments, name) for name in ("dtype", "load_in_4bit", "device")}
    if arguments.zero_shot:
        encoder = _zero_shot(arguments, options)
    elif arguments.image_prompt is not None or arguments.text_prompt is not None:
        raise ValueError("a trained encoder has its own prompts: leave --image-prompt and --text-prompt out")
    else:
        encoder = load_encoder(arguments.model, arguments.base, **options)
    shared: dict[str, Any] = {"batch_size": arguments.batch_size, "dimensions": arguments.dimensions, "progress": True}
    # In one call: what cannot be read of either is refused before anything is.
    found: Any = encoder.encode(paths, texts, **shared)
    images = read = None
    if paths is not None:
        names = [path.relative_to(str(arguments.images)).as_posix() for path in paths]
        images = names, found if texts is None else found.images
    if texts is not None:
        read = texts, found if paths is None else found.texts
    save_vectors(target, images=images, texts=read)
    told = [f"{len(made[0])} {what}" for made, what in ((images, "images"), (read, "texts")) if made is not None]
    width = next(made[1].shape[1] for made in (images, read) if made is not None)
    print(f"{' and '.join(told)}, {width} dimensions, in {target}")


def _zero_shot(arguments: argparse.Namespace, options: dict[str, Any]) -> Any:
    from mllm_align.encoding import Encoder
    from mllm_align.models import load_model

    if arguments.base is not None:
        raise ValueError("--zero-shot takes a whole model: leave --base out")
    prompts = {name: getattr(arguments, name) for name in ("image_prompt", "text_prompt")}
    given = {name: text for name, text in prompts.items() if text is not None}
    return Encoder.zero_shot(*load_model(arguments.model, **options), **given)
