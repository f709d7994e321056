"""Train the base model of the world: first the tower to see, then the whole model on scenes with a prior.

The shipped folder `mllm_align/demo/base` is what `train_base` writes with its defaults. Weights are kept in float16;
the figures of the model card are measured after that rounding.
"""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from mllm_align.data.world.catalogue import SMALL
from mllm_align.data.world.rows import ANNOTATION_NOISE
from mllm_align.demo.base_card import write_card
from mllm_align.demo.base_model import build_model, build_processor
from mllm_align.demo.base_scores import score_base
from mllm_align.demo.stage_language import train_language
from mllm_align.demo.stage_vision import train_vision
from mllm_align.models.export import refuse_file

VISION_STEPS = 150
LANGUAGE_STEPS = 1000


def train_base(
    output_dir: str | Path,
    seed: int = 0,
    vision_steps: int = VISION_STEPS,
    language_steps: int = LANGUAGE_STEPS,
    device: str = "cpu",
    score_scenes: int = 500,
    threads: int = 1,
    overwrite: bool = False,
) -> dict[str, float]:
    """Train, save and score a base model.

    Args:
        output_dir: Where weights, tokenizer, processor and model card go.
        seed: Of weights, scenes, questions and annotation noise. Another seed is another base model.
        vision_steps: Steps of stage V.
        language_steps: Steps of stage LM. More of them raise accuracy in distribution and deepen the prior.
        device: Where to train.
        score_scenes: Test scenes per split for the model card.
        threads: CPU threads of torch while it trains. Bit-equal weights need the same device, kind of processor, torch
            version and number of threads; scenes, questions and noise come from the seed alone.
        overwrite: Whether a folder with something in it may be written to.

    Returns:
        The figures of the model card (`base_scores.score_base`), with the last `vision_loss` and `language_loss`, the
        tower's last `patch_accuracy`, and `seconds` of training.

    Raises:
        ValueError: If `output_dir` is a file, or has something in it and `overwrite` is not set, or if a number of
            steps is not positive.
    """
    folder = Path(output_dir)
    refuse_file(folder)
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise ValueError(f"{folder} is not empty: choose another folder, or set overwrite")
    if min(vision_steps, language_steps) < 1:
        raise ValueError(f"vision_steps {vision_steps} and language_steps {language_steps} must be at least 1")
    processor = build_processor(SMALL)
    model: Any = build_model(processor, SMALL, seed)
    model.to(device).train()
    started = time.perf_counter()
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        scores = _train(model, processor, seed, vision_steps, language_steps)
    finally:
        torch.set_num_threads(threads_before)
    scores["seconds"] = time.perf_counter() - started
    model.to("cpu").half()
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # written for its owner alone, but it travels in a package
    processor.save_pretrained(folder)
    scores |= score_base(model.float(), processor, score_scenes)
    settings = {
        "seed": seed,
        "vision_steps": vision_steps,
        "language_steps": language_steps,
        "device": device,
        "threads": threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
        "score_scenes": score_scenes,
    }
    write_card(folder, settings, scores, model.num_parameters(), ANNOTATION_NOISE)
    return scores


def _train(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    seed: int,
    vision_steps: int,
    language_steps: int,
) -> dict[str, float]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    loss = accuracy = 0.0
    with Progress(*columns) as progress:
        bar = progress.add_task("tower", total=vision_steps)
        for loss, accuracy in train_vision(model, processor, SMALL, vision_steps, seed):
            progress.update(bar, advance=1, description=f"tower: loss {loss:.3f}, patches right {accuracy:.2f}")
        scores = {"vision_loss": loss, "patch_accuracy": accuracy}
        bar = progress.add_task("language model", total=language_steps)
        for loss in train_language(model, processor, SMALL, language_steps, seed):
            progress.update(bar, advance=1, description=f"language model: loss {loss:.3f}")
        scores["language_loss"] = loss
    return scores
