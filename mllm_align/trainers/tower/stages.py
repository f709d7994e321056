"""Multistage contrastive tuning (MCL) of a dual encoder's image tower, a stage after the other, resumable.

args = TowerConfig("runs/tower", num_stages=3, num_clusters=10, max_steps=2000, per_device_train_batch_size=512)
train_stages("openai/clip-vit-large-patch14-336", load_rows("captions.jsonl"), args, softmax_pairs)
"""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

from mllm_align.data.processes import processes
from mllm_align.models.export import refuse_file
from mllm_align.models.fingerprint import weights_digest
from mllm_align.trainers.tower.clusters import refined
from mllm_align.trainers.tower.config import TowerConfig
from mllm_align.trainers.tower.dual import TEXT_SIDE, Dual, ImageSide, linear_layers, load_dual
from mllm_align.trainers.tower.passes import picture_vectors, save_array, text_vectors
from mllm_align.trainers.tower.rows import CaptionedImages
from mllm_align.trainers.tower.trainer import Collator, PairLoss, TowerTrainer
from mllm_align.vision.staged import StagedDualEncoder

logger = logging.getLogger(__name__)

SETTINGS_FILE = "tower.json"
LOG_FILE = "training_log.json"
INTEGRATED = "staged"
# What decides a stage, beside model, rows, loss and adapter; how many stages there are does not.
DECISIVE = (
    *("num_clusters", "cluster_rows", "train_first", "start_from", "random_negatives"),
    *("global_batch_size", "gradient_accumulation_steps", "learning_rate", "num_train_epochs", "max_steps"),
    *("lr_scheduler_type", "warmup_steps", "weight_decay", "seed", "data_seed", "bf16", "fp16"),
)


def train_stages(
    model: str | os.PathLike[str],
    rows: Any,
    args: TowerConfig,
    loss: PairLoss,
    *,
    peft_config: LoraConfig | None = None,
) -> list[Path]:
    """Tunes the image tower of a dual encoder in stages; its text tower stays as it is. A collective.

    After "Learning the Unlearned" (ECCV 2024), https://arxiv.org/abs/2402.11816: the features of all earlier stages
    are clustered, and a stage finds its negatives only among rows that none of them tells apart, so that it must learn
    what they suppressed. Killed and started again with the same settings, it goes on at its stage (and its last
    checkpoint); with more stages it adds them.

    In `args.output_dir` are then `stage-0`, `stage-1`, ...: dual encoders like the one given (`put_tower` puts the
    image tower of one into a vision-language model), and `staged`, all of them integrated (`StagedDualEncoder`).

    Args:
        model: Dual encoder, such as CLIP or SigLIP: Hub id or folder.
        rows: An image and a caption each (`CaptionedImages`).
        args: Settings; of training they hold for each stage.
        loss: Of image and text vectors; `objectives.pair_losses` has CLIP's and SigLIP's.
        peft_config: LoRA on the image tower in place of its own weights; what is saved is merged.

    Returns:
        The folders of the stages.

    Raises:
        ValueError: If the model is no dual encoder, there are too few rows for the clusters, or the folder holds
            something else.

    Deviations:
        The published code takes the last earlier stage's clusters alone, may show one image on two processes, and
        leaves out clusters smaller than a batch; here the labels are joined, shares are disjoint, and small clusters
        are put with the nearest one of the same parent (`merge_small`).
    """
    data = CaptionedImages(rows, args.text_column)
    _check_rows(data, args)
    dual = load_dual(model, processes().device)
    if peft_config is not None:
        linear_layers(dual.model)  # or the first stage would end before the second is refused
    folder = _claim(Path(args.output_dir or ""), _settings(dual, data, args, loss, peft_config), args)
    if processes().is_main_process and not (folder / "texts.npy").exists():
        dual.warn_of_long(data.texts)
    texts = text_vectors(folder / "texts.npy", dual, data, args.per_device_eval_batch_size)
    processor = dual.processor
    del dual  # each stage loads its own
    found: list[Path] = []
    clusters = np.zeros(len(data), dtype=np.int64)
    for number in range(args.num_stages):
        if number:
            clusters = _clusters(found[-1], data, clusters, args, number)
        found.append(folder / f"stage-{number}")
        missing = not (found[-1] / "config.json").exists()
        processes().wait_for_everyone()  # else a fast process could have saved it before a slow one looks
        if missing:
            start = found[-2] if number and args.start_from == "previous" else model
            _stage(found[-1], start, data, texts, clusters, args, loss, copy.deepcopy(peft_config))
    _integrate(folder / INTEGRATED, found, processor)
    return found


def _stage(
    target: Path,
    start: str | os.PathLike[str],
    data: CaptionedImages,
    texts: np.ndarray,
    clusters: np.ndarray,
    args: TowerConfig,
    loss: PairLoss,
    peft_config: LoraConfig | None,
) -> None:
    """Trains a stage, unless it is the first and that stays as given, and saves it."""
    log: list[dict[str, float]] = []
    dual = load_dual(start, processes().device)
    learned = None
    if args.train_first or target.name != "stage-0":
        set_seed(args.seed)  # of the adapter's weights
        side = ImageSide(dual.drop_texts(), peft_config)
        own = copy.copy(args)
        own.output_dir = str(target.parent / "training" / target.name)
        alone = np.zeros_like(clusters) if args.random_negatives else clusters
        trainer = TowerTrainer(side, own, loss, data, Collator(dual, data, texts), alone)
        trainer.train(resume_from_checkpoint=_last_checkpoint(own.output_dir))
        log = trainer.state.log_history
        learned = {name: value.cpu() for name, value in side.merged().state_dict().items()}
    if processes().is_main_process:
        draft = target.with_name(f".{target.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        whole = load_dual(start)
        if learned is not None:
            put_in(whole.model, learned)
        whole.model.to(whole.dtype).save_pretrained(draft)
        whole.processor.save_pretrained(draft)
        (draft / LOG_FILE).write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
        os.replace(draft, target)
    processes().wait_for_everyone()


def put_in(model: torch.nn.Module, learned: Mapping[str, torch.Tensor]) -> None:
    """Loads the weights of an image side into a dual encoder, all of them.

    Raises:
        RuntimeError: If one has no place, or the image side lacks one.
    """
    found = model.load_state_dict(learned, strict=False)
    lacking = [name for name in found.missing_keys if name.split(".")[0] not in TEXT_SIDE]
    if lacking or found.unexpected_keys:
        raise RuntimeError(f"what was learned does not fit the image side: {[*lacking, *found.unexpected_keys][0]}")


def _clusters(stage: Path, data: CaptionedImages, parents: np.ndarray, args: TowerConfig, number: int) -> np.ndarray:
    """(N,) the clusters of all stages up to one, made on the main process alone and kept in its folder."""
    file = stage / "clusters.npy"
    if not file.exists():
        dual = load_dual(stage, processes().device)
        dual.drop_texts()
        size, workers = args.per_device_eval_batch_size, args.dataloader_num_workers
        features = picture_vectors(stage / "features.npy", dual, data, size, workers)
        if processes().is_main_process:
            save_array(file, refined(parents, features, args.num_clusters, args.cluster_rows, args.seed + number))
        processes().wait_for_everyone()
    found = np.load(file)
    sizes = np.bincount(found)
    if len(sizes) == 1 and not args.random_negatives:
        raise ValueError(
            f"the features of {stage.name} make one cluster of all {len(data)} rows, none of less than "
            f"{args.cluster_rows} being kept: give more rows, more clusters, a smaller batch or a smaller "
            "min_cluster_rows"
        )
    if len(sizes) == len(np.unique(parents)) and not args.random_negatives:
        logger.warning(
            "the features of %s divide no cluster of the stages before: stage-%d has the same negatives as %s",
            *(stage.name, number, stage.name),
        )
    logger.info("stage-%d: %d clusters of %d to %d rows", number, len(sizes), sizes.min(), sizes.max())
    return found


def _integrate(target: Path, stages: list[Path], processor: Any) -> None:
    """All stages as one dual encoder; made again where stages were added."""
    if processes().is_main_process:
        known = json.loads((target / "config.json").read_text())["num_stages"] if target.exists() else 0
        if known != len(stages):
            draft = target.with_name(f".{target.name}.draft")
            shutil.rmtree(draft, ignore_errors=True)
            StagedDualEncoder.from_stages(stages).save_pretrained(draft)
            processor.save_pretrained(draft)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(draft, target)
    processes().wait_for_everyone()


def _check_rows(data: CaptionedImages, args: TowerConfig) -> None:
    if args.num_stages > 1 and not args.random_negatives and len(data) < 2 * args.cluster_rows:
        raise ValueError(
            f"{len(data)} rows make no two clusters of {args.cluster_rows} rows (a batch of all processes, or "
            "min_cluster_rows): give more rows, a smaller batch or a smaller min_cluster_rows"
        )


def _settings(
    dual: Dual, data: CaptionedImages, args: TowerConfig, loss: PairLoss, peft_config: LoraConfig | None
) -> dict[str, Any]:
    return {
        "model": weights_digest(dual.model.state_dict().items()),
        "rows": data.digest,
        "loss": getattr(loss, "__name__", type(loss).__name__),
        "lora": _plain(peft_config.to_dict()) if peft_config is not None else None,
        **{name: _plain(getattr(args, name)) for name in DECISIVE},
    }


def _claim(folder: Path, settings: dict[str, Any], args: TowerConfig) -> Path:
    """The folder, empty or of the same settings.

    Raises:
        ValueError: If it is a file, or holds something else, or stages of other settings.
    """
    refuse_file(folder)
    file = folder / SETTINGS_FILE
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    others = [key for key in settings if before is not None and before.get(key) != settings[key]]
    filled = folder.exists() and any(folder.iterdir())
    if filled and before is None:
        raise ValueError(f"output_dir {str(folder)!r} has something in it that is no stage: name another folder")
    if others and not args.overwrite_output_dir:
        raise ValueError(
            f"output_dir {str(folder)!r} holds stages of another {others[0].replace('_', ' ')} "
            f"({before[others[0]]}, not {settings[others[0]]}): name another folder, or pass overwrite_output_dir"  # type: ignore[index]
        )
    processes().wait_for_everyone()  # else a fast process could have written before a slow one looks
    if processes().is_main_process:
        if others:
            for path in (*folder.glob("stage-*"), folder / "training", folder / INTEGRATED):
                shutil.rmtree(path, ignore_errors=True)
            (folder / "texts.npy").unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    processes().wait_for_everyone()
    return folder


def _last_checkpoint(folder: str) -> str | None:
    return get_last_checkpoint(folder) if os.path.isdir(folder) else None


def _plain(value: Any) -> Any:
    """The same in JSON, whatever its order was."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, torch.dtype):
        return str(value)
    return value if isinstance(value, str | int | float | bool | list | type(None)) else str(value)
