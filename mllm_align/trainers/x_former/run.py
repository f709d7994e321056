"""X-Former's first stage from a vision-language model, a masked autoencoder and rows to a folder with a mixer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import AutoTokenizer, set_seed
from transformers.trainer_utils import get_last_checkpoint

from mllm_align.data.pixels import ImageEncoder
from mllm_align.data.processes import processes
from mllm_align.families import family_of
from mllm_align.models import load_model
from mllm_align.models.export import refuse_file
from mllm_align.trainers.tower.rows import CaptionedImages
from mllm_align.trainers.x_former.bert import start_from_bert
from mllm_align.trainers.x_former.config import XFormerConfig
from mllm_align.trainers.x_former.frozen import Autoencoder, OwnEncoder, autoencoder_cells
from mllm_align.trainers.x_former.model import StageOne
from mllm_align.trainers.x_former.trainer import Collator, XFormerTrainer
from mllm_align.trainers.x_former.words import Words
from mllm_align.vision.attach import attach
from mllm_align.vision.encoder_spec import Encoder, encoder_from
from mllm_align.vision.mixer_files import SETTINGS_FILE, own_probe, save_mixer
from mllm_align.vision.teacher_parts import first_line

STAGE_FILE, WORDS_FILE, LOG_FILE = "stage-one.json", "words.safetensors", "log.json"
# What must be the same when a run goes on.
KEPT = (
    *("num_queries", "width", "depth", "heads", "cross_every", "mask_ratio", "smoothing", "max_text_length"),
    *("learning_rate", "weight_decay", "num_train_epochs", "max_steps", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "seed", "text_column"),
)


def train_x_former(
    model: str | os.PathLike[str],
    autoencoder: Any,
    rows: Any,
    args: XFormerConfig,
    *,
    tokenizer: Any = None,
    bert: str | None = None,
    resume: bool = False,
    **loading: Any,
) -> XFormerTrainer:
    """Trains an X-Former with both encoders frozen, and writes it to `args.output_dir`.

    There are then `mixer.safetensors` and `mixer.json`, which `attach_saved`, or a recipe's `model.mixer.weights`,
    puts into the same model for the second stage; `words.safetensors`, the words' side, which nothing needs any more;
    and `log.json`. The last linear layer of the mixer is as it began: the second stage trains it.

    Args:
        model: The vision-language model, whose own encoder the queries read: Hub id or folder.
        autoencoder: A masked autoencoder with its decoder (`ViTMAEForPreTraining`): name, folder, or the attributes of
            `vision.encoder_spec.Encoder`.
        rows: An image and a caption each (`CaptionedImages`).
        args: Settings.
        tokenizer: Of the texts; by default the vision-language model's, whose vocabulary the words' side is then as
            large as.
        bert: A BERT (Hub id or folder) that the Q-Former begins as, as BLIP-2's does, with its tokenizer; None begins
            anew.
        resume: Go on from the last checkpoint of the folder.
        **loading: Fields of `ModelArguments`.

    Returns:
        The trainer, after training.

    Raises:
        ValueError: If the folder holds something (or, to resume, something else), the autoencoder is none or has no
            decoder, the model cuts images into tiles or cannot have another number of image tokens.
        DataError: Naming the first row that cannot be used.
    """
    spec = encoder_from(autoencoder, "x_former")
    if spec != Encoder(spec.model, load_in_4bit=spec.load_in_4bit, revision=spec.revision):
        raise ValueError(
            "the autoencoder of x_former is frozen and read at its end: leave train, layer, size, pixels, normalise"
        )
    cells = autoencoder_cells(spec.model, spec.revision)
    data = CaptionedImages(rows, args.text_column)
    needed = args.per_device_train_batch_size * args.world_size
    if len(data) < needed:
        raise ValueError(f"{len(data)} rows do not fill one batch of {needed}: lower per_device_train_batch_size")
    folder = Path(args.output_dir or "")
    facts: dict[str, Any] = {"model": os.fspath(model), "autoencoder": str(spec), "rows": data.digest}
    facts |= {"bert": bert, "losses": args.loss_weights, **{name: getattr(args, name) for name in KEPT}}
    _refuse_other(folder, facts, resume)
    loaded, processor = load_model(model, device=args.device, **loading)
    set_seed(args.seed)
    mixed = attach(loaded, {"kind": "x_former", **args.mixer_options, "detail_cells": list(cells)}, [spec], processor)
    mixer: Any = mixed.kind.float()
    if bert is not None:
        tokenizer = load_tokenizer(bert)
    tokenizer = tokenizer or processor.tokenizer
    words = Words(len(tokenizer), args.width, args.depth, args.max_text_length)
    if bert is not None:
        start_from_bert(mixer.q_former, words, bert)
    probe = own_probe(loaded, processor)
    own = OwnEncoder(loaded, mixed)  # before what trains: it freezes all of the model
    seen = Autoencoder(mixed.encoders[0], args.mask_ratio)  # type: ignore[arg-type]
    stage = StageOne(
        mixer,
        words,
        seen.decode,
        normalise=seen.normalise,
        weights=args.loss_weights,
        smoothing=args.smoothing,
    )
    encode = ImageEncoder(processor, family_of(loaded).image_keys)
    own([encode(data.image(0)).tensors])  # what cannot be read is refused before anything is written
    checkpoint = _claim(folder, facts, resume)
    trainer = XFormerTrainer(stage, args, data, Collator(encode, tokenizer, words, data), own, seen)
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.is_world_process_zero():
        save_mixer(loaded, folder, probe=probe)
        tensors = {name: value.detach().cpu().contiguous() for name, value in words.state_dict().items()}
        save_file(tensors, folder / WORDS_FILE)
        text = json.dumps(trainer.state.log_history, indent=1) + "\n"
        (folder / LOG_FILE).write_text(text, encoding="utf-8")
    processes().wait_for_everyone()
    return trainer


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a name.

    Raises:
        ValueError: If it cannot be loaded.
    """
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"no tokenizer could be loaded from {name!r}: {first_line(error)}") from None


def _refuse_other(folder: Path, settings: dict[str, Any], resume: bool) -> None:
    """Before anything is loaded.

    Raises:
        ValueError: If the folder is a file, or holds something and `resume` is off, or it holds a run with other
            settings.
    """
    refuse_file(folder)
    file = folder / STAGE_FILE
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not file.exists():
        raise ValueError(f"output_dir {str(folder)!r} has something in it that is no such run: name another")
    if not resume or (folder / SETTINGS_FILE).exists():
        mend = "it is finished" if (folder / SETTINGS_FILE).exists() else "resume it"
        raise ValueError(f"output_dir {str(folder)!r} holds a run: {mend}, or name another folder")
    before = json.loads(file.read_text(encoding="utf-8"))
    for name, value in settings.items():
        if before.get(name) != value:
            raise ValueError(
                f"output_dir {str(folder)!r} holds a run with another {name} ({before.get(name)}, not {value}): "
                "give the same settings, or name another folder"
            )


def _claim(folder: Path, settings: dict[str, Any], resume: bool) -> str | None:
    """Makes the folder this run's; the checkpoint to go on from, if there is one."""
    processes().wait_for_everyone()  # else a fast process could have written before a slow one looks
    if processes().is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / STAGE_FILE).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    processes().wait_for_everyone()
    return get_last_checkpoint(str(folder)) if resume else None
