"""`x-former`: the first stage of an X-Former, before it goes into a vision-language model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mllm_align.cli.commands import add_command
from mllm_align.cli.making import add_source, load_named


def add(commands: Any) -> None:
    """Adds `x-former`."""
    text = "train an X-Former's queries on images with captions, both encoders frozen; runs under `accelerate launch`"
    train = add_command(commands, "x-former", _train, text)
    train.add_argument("rows", help="images with captions: a file, a folder, a dataset on the Hub, world:pairs")
    train.add_argument("--model", required=True, help="the vision-language model: Hub id or folder, or demo-base")
    train.add_argument("--autoencoder", required=True, help="a masked autoencoder, such as facebook/vit-mae-huge")
    train.add_argument("--output", required=True, help="folder for the mixer")
    words = train.add_mutually_exclusive_group()
    words.add_argument("--bert", help="begin as this BERT, with its tokenizer, as BLIP-2: bert-base-uncased")
    words.add_argument("--tokenizer", help="of the captions: Hub id or folder (default: the model's)")
    train.add_argument("--text-column", default="chosen", help="with the captions (default: %(default)s)")
    add_source(train)
    train.add_argument("--limit", type=int, help="only the first rows")
    train.add_argument("--queries", type=int, default=32, help="tokens per image (default: %(default)s)")
    train.add_argument("--width", type=int, default=768, help="of the queries (default: %(default)s)")
    train.add_argument("--depth", type=int, default=12, help="layers of the Q-Former (default: %(default)s)")
    train.add_argument("--heads", type=int, default=12, help="of each attention (default: %(default)s)")
    train.add_argument("--mask-ratio", type=float, default=0.5, help="patches the autoencoder does not see")
    train.add_argument("--reconstruction-weight", type=float, default=1.0, help="of that loss; 0 to do without")
    train.add_argument("--max-text-length", type=int, default=32, help="tokens of a caption; longer ones are cut")
    length = train.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=-1)
    length.add_argument("--epochs", type=float, default=9.0, help="default: 9, as the paper")
    train.add_argument("--batch-size", type=int, default=64, help="rows of a process's batch (default: %(default)s)")
    train.add_argument("--learning-rate", type=float, default=1e-4)
    train.add_argument("--dtype", default="auto", help="of the frozen encoders (default: as they are stored)")
    train.add_argument("--bf16", action="store_true", help="bfloat16 autocast for what trains")
    train.add_argument("--logging-steps", type=int, default=10)
    train.add_argument("--save-steps", type=int, default=500, help="between checkpoints (default: %(default)s)")
    train.add_argument("--workers", type=int, default=0, help="processes that read images (default: %(default)s)")
    train.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint of the output folder")


def _train(arguments: argparse.Namespace) -> None:
    from mllm_align.trainers.x_former import XFormerConfig, train_x_former
    from mllm_align.trainers.x_former.run import load_tokenizer

    args = XFormerConfig(
        output_dir=arguments.output,
        num_queries=arguments.queries,
        width=arguments.width,
        depth=arguments.depth,
        heads=arguments.heads,
        mask_ratio=arguments.mask_ratio,
        reconstruction_weight=arguments.reconstruction_weight,
        max_text_length=arguments.max_text_length,
        text_column=arguments.text_column,
        max_steps=arguments.steps,
        num_train_epochs=arguments.epochs,
        per_device_train_batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        bf16=arguments.bf16,
        logging_steps=arguments.logging_steps,
        save_steps=arguments.save_steps,
        dataloader_num_workers=arguments.workers,
        use_cpu=arguments.cpu,
        seed=arguments.seed,
    )
    trainer = train_x_former(
        arguments.model,
        arguments.autoencoder,
        load_named(arguments, arguments.rows, arguments.limit),
        args,
        tokenizer=load_tokenizer(arguments.tokenizer) if arguments.tokenizer else None,
        bert=arguments.bert,
        resume=arguments.resume,
        dtype=arguments.dtype,
    )
    if trainer.is_world_process_zero():
        print(f"saved in {arguments.output}; for the second stage a recipe has, below `model`:")
        print("mixer: " + json.dumps(_mixer(arguments, trainer.own.model)))


def _mixer(arguments: argparse.Namespace, model: Any) -> dict[str, Any]:
    """The mixer as a recipe says it, in YAML's form for one line."""
    options = {name: value for name, value in model.base_model.vision_mixer.kind.options.items() if value}
    return {
        "kind": "x_former",
        "encoders": [arguments.autoencoder],
        "weights": str(Path(arguments.output).absolute()),
        **options,
    }
