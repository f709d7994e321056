"""A tuned image tower, put where a vision-language model has the one that it was tuned from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageTextToText

from mllm_align.families import family_of
from mllm_align.models.arguments import ModelArguments
from mllm_align.models.export import refuse_file
from mllm_align.models.loading import load_processor, model_path
from mllm_align.vision.staged import StagedDualEncoder, StagedVisionModel

# What two towers must share beside their shapes: it changes what the same weights compute.
ALIKE = (
    *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("image_size", "patch_size", "num_channels", "hidden_act", "layer_norm_eps"),
)


def put_tower(
    model: str | os.PathLike[str],
    tower: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    dtype: str = "auto",
) -> Path:
    """Writes a vision-language model whose tower has the weights of a tuned one.

    The projector and the language model stay as they are: they were made for the old tower, and the further the new
    one has moved, the more they have to be trained again (train the projector on instructions first). A tower that
    did not move gives the model that was given.

    Args:
        model: The vision-language model: Hub id, folder or "demo-base".
        tower: A stage of `train_stages`, or any dual encoder or vision model of the tower's own kind.
        output_dir: Where to; must be empty or missing.
        dtype: Of what is written; "auto" for as the model is stored.

    Returns:
        `output_dir`, which `load_model` loads.

    Raises:
        ValueError: If the two towers are not of one kind, shape and pixel normalisation, or `output_dir` is a file or
            has something in it.
    """
    target = Path(output_dir)
    refuse_file(target)
    if target.exists() and any(target.iterdir()):
        raise ValueError(f"{str(target)!r} has something in it: name another folder")
    name, given = model_path(model), os.fspath(tower)
    try:
        found: Any = AutoModel.from_pretrained(given, dtype="auto")
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load the tower {given}: {str(error).splitlines()[0]}") from error
    if isinstance(found, StagedDualEncoder | StagedVisionModel):
        raise ValueError(
            f"{given} holds the towers of {found.config.num_stages} stages, which are wider than one: put in a single "
            "stage, or use them as a further encoder of a mixer"
        )
    source: Any = getattr(found, "vision_model", found)
    kind = dtype if dtype == "auto" else getattr(torch, dtype)
    try:
        whole: Any = AutoModelForImageTextToText.from_pretrained(name, dtype=kind)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load the model {name}: {str(error).splitlines()[0]}") from error
    family = family_of(whole.config)
    place: Any = family.module(whole, family.tower)
    processor = load_processor(name, ModelArguments(model_name_or_path=name))
    _check_alike(place, source, name, given)
    _check_pixels(processor.image_processor, name, given)
    _copy(place, source)
    target.mkdir(parents=True, exist_ok=True)
    whole.save_pretrained(target)
    processor.save_pretrained(target)
    return target


def _check_alike(place: Any, source: Any, name: str, given: str) -> None:
    for key in ALIKE:
        own, theirs = getattr(place.config, key, None), getattr(source.config, key, None)
        if own != theirs:
            raise ValueError(
                f"{given} is another kind of tower than that of {name}: its {key} is {theirs!r}, not {own!r}; tune "
                "the dual encoder that the model's tower came from"
            )
    weights = source.state_dict()
    for key, value in place.state_dict().items():
        if key not in weights or weights[key].shape != value.shape:
            shape = tuple(weights[key].shape) if key in weights else "not there"
            raise ValueError(f"{given} does not fit the tower of {name}: {key} is {shape}, not {tuple(value.shape)}")


def _check_pixels(own: Any, name: str, given: str) -> None:
    try:
        theirs: Any = AutoImageProcessor.from_pretrained(given)
    except (OSError, ValueError):
        return  # weights alone: they say nothing of pixels
    for key in ("image_mean", "image_std"):
        if list(getattr(own, key, None) or ()) != list(getattr(theirs, key, None) or ()):
            raise ValueError(
                f"{given} reads pixels with {key} {getattr(theirs, key, None)}, {name} with "
                f"{getattr(own, key, None)}: tune the tower with the model's own normalisation"
            )


@torch.no_grad()
def _copy(place: Any, source: Any) -> None:
    """Every weight of the place; those that only the source has (a pooling head) are not used there."""
    weights = source.state_dict()
    for key, value in place.state_dict().items():
        value.copy_(weights[key])
