"""`tower train` and `tower put`: the image tower of CLIP or SigLIP tuned in stages, and put into an LVLM."""

from __future__ import annotations

import argparse
from typing import Any

from mllm_align.cli.commands import add_command
from mllm_align.cli.making import add_source, load_named

LOSSES = ("softmax", "sigmoid")


def add(commands: Any) -> None:
    """Adds `tower train` and `tower put`."""
    tower = commands.add_parser("tower", help="tune the vision tower by itself").add_subparsers(
        required=True, metavar="COMMAND"
    )
    _add_train(tower)
    put = add_command(tower, "put", _put, "write a vision-language model with a tuned tower in its place")
    put.add_argument("model", help="the vision-language model: Hub id or folder, or demo-base")
    put.add_argument("tower", help="a stage that `tower train` wrote")
    put.add_argument("output", help="folder to write")
    put.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float16", "float32"))


def _add_train(tower: Any) -> None:
    text = "tune the image tower of a dual encoder in stages (MCL); runs under `accelerate launch`, resumes"
    train = add_command(tower, "train", _train, text)
    train.add_argument("rows", help="images with captions: a file, a folder, a dataset on the Hub, world:pairs")
    train.add_argument("--model", required=True, help="CLIP, SigLIP or alike, with its text tower: Hub id or folder")
    train.add_argument("--output", required=True, help="folder for the stages; started again, the job goes on")
    train.add_argument("--text-column", default="chosen", help="with the captions (default: %(default)s)")
    add_source(train)
    train.add_argument("--limit", type=int, help="only the first rows")
    train.add_argument("--stages", type=int, default=3, help="towers in the end, the given one counted (default: 3)")
    train.add_argument("--clusters", type=int, default=10, help="of each stage's features (default: %(default)s)")
    train.add_argument("--min-cluster-rows", type=int, help="smaller clusters are put together (default: a batch)")
    train.add_argument("--train-first", action="store_true", help="train the first stage, too, with all negatives")
    train.add_argument("--start-from", default="original", choices=("original", "previous"), help="of each stage")
    train.add_argument("--random-negatives", action="store_true", help="the control: stages without clusters")
    train.add_argument("--loss", choices=LOSSES, help="default: softmax (CLIP), or sigmoid where the model has a bias")
    length = train.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=-1, help="of each stage")
    length.add_argument("--epochs", type=float, default=1.0, help="of each stage (default: 1)")
    train.add_argument("--batch-size", type=int, default=64, help="rows of a process's batch (default: %(default)s)")
    train.add_argument("--learning-rate", type=float, default=1e-5)
    train.add_argument("--lora-r", type=int, help="rank of LoRA on the image tower (default: train it whole)")
    train.add_argument("--lora-alpha", type=int, help="default: twice the rank")
    train.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    train.add_argument("--gradient-checkpointing", action="store_true")
    train.add_argument("--save-steps", type=int, default=500, help="between checkpoints (default: %(default)s)")
    train.add_argument("--workers", type=int, default=0, help="processes that read images (default: %(default)s)")
    train.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--overwrite", action="store_true", help="replace stages of other settings in that folder")


def _train(arguments: argparse.Namespace) -> None:
    from peft import LoraConfig

    from mllm_align.data.processes import processes
    from mllm_align.objectives.pair_losses import sigmoid_pairs, softmax_pairs
    from mllm_align.trainers.tower import TowerConfig, train_stages

    args = TowerConfig(
        output_dir=arguments.output,
        num_stages=arguments.stages,
        num_clusters=arguments.clusters,
        min_cluster_rows=arguments.min_cluster_rows,
        train_first=arguments.train_first,
        start_from=arguments.start_from,
        random_negatives=arguments.random_negatives,
        text_column=arguments.text_column,
        overwrite_output_dir=arguments.overwrite,
        max_steps=arguments.steps,
        num_train_epochs=arguments.epochs,
        per_device_train_batch_size=arguments.batch_size,
        per_device_eval_batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        bf16=arguments.bf16,
        gradient_checkpointing=arguments.gradient_checkpointing,
        save_steps=arguments.save_steps,
        dataloader_num_workers=arguments.workers,
        use_cpu=arguments.cpu,
        seed=arguments.seed,
    )
    rank = arguments.lora_r
    lora = LoraConfig(r=rank, lora_alpha=arguments.lora_alpha or 2 * rank) if rank else None
    kind = arguments.loss or ("sigmoid" if _has_bias(arguments.model) else "softmax")
    loss = sigmoid_pairs if kind == "sigmoid" else softmax_pairs
    rows = load_named(arguments, arguments.rows, arguments.limit)
    stages = train_stages(arguments.model, rows, args, loss, peft_config=lora)
    if processes().is_main_process:
        print(f"{len(stages)} stages saved in {arguments.output}: {', '.join(stage.name for stage in stages)}")
        print(f"all of them as one: {stages[0].parent / 'staged'} (eval score --dual-encoder, or a mixer's encoder)")


def _has_bias(model: str) -> bool:
    """Whether a model was trained with SigLIP's loss."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model).model_type.startswith("siglip")
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load {model}: {str(error).splitlines()[0]}") from error


def _put(arguments: argparse.Namespace) -> None:
    from mllm_align.models import put_tower

    print(put_tower(arguments.model, arguments.tower, arguments.output, dtype=arguments.dtype))
