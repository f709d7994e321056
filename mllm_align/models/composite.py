"""A model with a mixer made one that `transformers` loads by itself: its tower holds the further encoders."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from mllm_align.families import Family, family_of, inner, unwrap
from mllm_align.families.seam import Seam
from mllm_align.vision.attach import detach
from mllm_align.vision.composite import COMPOSITE_KINDS, CompositeVisionConfig, CompositeVisionModel
from mllm_align.vision.mixed_vision import MixedVision, mixed_of
from mllm_align.vision.mixer_files import difference, fingerprint, kind_name

SIDECAR = "export it without composite: the mixer then lies beside the model, and load_model attaches it"


def make_composite(model: Any, processor: Any) -> dict[str, Any]:
    """Puts the further encoders into the model's tower, and what a concatenation has learned into its projector.

    Nothing is left beside the stock model then but the tower's class, whose configuration is `config.vision_config`.

    Args:
        model: With a mixer, without adapters; changed in place.
        processor: Of the model.

    Returns:
        The fingerprint of the outputs before, for `check_composite`.

    Raises:
        ValueError: If mixer, encoders or family do not go into a tower; the model is then as it was.
    """
    hf = unwrap(model)
    mixed = mixed_of(inner(hf))
    if mixed is None:
        raise ValueError("a composite is made of a model with a mixer, and this one has none: leave composite out")
    family = family_of(hf)
    _check_mixed(mixed)
    tower: Any = family.module(hf, family.tower)
    wants = mixed.kind.widths.base, getattr(tower.config, "hidden_size", None)
    if type(family).tower_views is not Seam.tower_views or family.projects_in_tower or wants[0] != wants[1]:
        raise ValueError(
            f"the projector of this {family.name} does not read one layer of one tower, view by view: {SIDECAR}"
        )
    config = CompositeVisionConfig.of(tower, mixed)
    joins = kind_name(mixed.kind) == "concat"
    _check_resolved(hf, family, config, joins)
    before = fingerprint(hf, processor)
    columns: Sequence[Tensor] = [each.weight for each in mixed.kind.columns] if joins else ()  # type: ignore[union-attr]
    detach(hf, processor)
    if joins:
        _widen(_linear(hf, family), columns)
    parent, _, name = family.tower.rpartition(".")
    setattr(family.module(hf, parent), name, CompositeVisionModel.of(tower, mixed))
    hf.config.vision_config = config
    return before


def check_composite(
    folder: str | os.PathLike[str], processor: Any, before: Mapping[str, Any], *, dtype: Any, device: Any
) -> None:
    """Loads a composite as its users will, and compares its outputs.

    Args:
        folder: Where it was written.
        processor: The stock model's.
        before: What `make_composite` gave.
        dtype: Of the model.
        device: Where to load it.

    Raises:
        ValueError: If weights are missing or left over, or the outputs are others.
    """
    read: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    loaded, told = read
    astray = sorted({*told["missing_keys"], *told["unexpected_keys"], *(each[0] for each in told["mismatched_keys"])})
    other = astray[0] if astray else difference(before, fingerprint(loaded.to(device).eval(), processor))
    if other is not None:
        raise ValueError(f"the composite in {os.fspath(folder)!r} is not read back as it was ({other}): {SIDECAR}")


def _check_mixed(mixed: MixedVision) -> None:
    kind = kind_name(mixed.kind)
    if kind not in COMPOSITE_KINDS:
        raise ValueError(f"mixer {kind!r} is no part of a tower, as {' and '.join(COMPOSITE_KINDS)} are: {SIDECAR}")
    for each in mixed.seeing:
        if each.spec.pixels == "own":
            raise ValueError(f"encoder {each.spec.model!r} has pixels of its own, and a tower is given one: {SIDECAR}")
        if each.spec.load_in_4bit:
            raise ValueError(f"encoder {each.spec.model!r} has 4-bit weights in a 16-bit model: {SIDECAR}")


@torch.no_grad()
def _check_resolved(hf: Any, family: Family, config: CompositeVisionConfig, joins: bool) -> None:
    """Builds the model from its configuration alone, and looks whether that makes a composite tower."""
    whole = deepcopy(hf.config)
    try:
        whole.vision_config = config
        with torch.device("meta"):
            built = getattr(type(hf), "stock", type(hf))(type(whole).from_dict(whole.to_dict()))
        tower, width = family.module(built, family.tower), _linear(built, family).in_features if joins else None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"this {family.name} cannot be built with such a tower ({error}): {SIDECAR}") from None
    if not isinstance(tower, CompositeVisionModel):
        raise ValueError(f"{family.name} always has a tower of its own class, whatever is configured: {SIDECAR}")
    if joins and width != config.hidden_size:
        raise ValueError(
            f"the first linear layer of this {family.name}'s projector reads {width} channels where its tower gives "
            f"{config.hidden_size}: {SIDECAR}"
        )


def _linear(hf: Any, family: Family) -> nn.Linear:
    """The layer that gets the columns of a concatenation."""
    found = None if family.first_linear is None else family.module(hf, f"{family.projector}.{family.first_linear}")
    if not isinstance(found, nn.Linear):
        raise ValueError("its projector has no linear layer that reads what the tower gives")
    return found


@torch.no_grad()
def _widen(linear: nn.Linear, columns: Sequence[Tensor]) -> None:
    weight = torch.cat([linear.weight, *(each.to(linear.weight) for each in columns)], dim=1)
    linear.weight = nn.Parameter(weight, requires_grad=linear.weight.requires_grad)
    linear.in_features = weight.shape[1]
