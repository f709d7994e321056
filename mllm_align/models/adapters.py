"""LoRA with explicit module names, and loading an adapter onto the base it was trained on."""

from __future__ import annotations

import os
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn

from mllm_align.families import family_of, inner, unwrap
from mllm_align.models.arguments import ModelArguments
from mllm_align.models.identity import check_base
from mllm_align.models.mixing import encoder_targets, find_mixer, trained_with_adapter
from mllm_align.models.soft_prompts import soft_prompts_of
from mllm_align.models.soft_tokens import check_adapter, part_from_head, train_soft_prompts
from mllm_align.vision.mixed_vision import mixed_of


def lora_config(model: nn.Module, arguments: ModelArguments) -> LoraConfig:
    """The LoRA configuration for a model: every linear layer of the parts in `lora_scope`, by its full name.

    A mixer and encoders that train go along, and so do the model's soft prompts.

    Raises:
        ValueError: If a part has no linear layer, or nothing trains.
    """
    hf = unwrap(model)
    family = family_of(hf)
    for scope in arguments.lora_scope:
        if not family.lora_targets(hf, [scope]):
            whole = f"; train_{scope} trains it whole" if scope in ("projector", "vision") else ""
            raise ValueError(f"lora_scope {scope!r} names no linear layer of {family.name}{whole}")
    targets = [*family.lora_targets(hf, arguments.lora_scope), *encoder_targets(hf)]
    mixed = mixed_of(inner(hf))
    if arguments.train_projector and mixed is not None and mixed.kind.replaces:
        raise ValueError(
            f"train_projector: {type(mixed.kind).__name__} makes the tokens itself and nothing reads the projector "
            "any more: leave train_projector off"
        )
    whole = [
        *(family.projectors(hf) if arguments.train_projector else []),
        *(family.towers(hf) if arguments.train_vision else []),
        *trained_with_adapter(hf),
    ]
    if not targets and not whole and soft_prompts_of(hf) is None:
        raise ValueError(
            "lora_scope is empty and nothing else trains: name at least one of language, projector, vision, or set "
            "train_projector, train_vision or soft_prompts"
        )
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        # Stage 1 trains modules whole and no layer by LoRA, which PEFT calls so.
        target_modules=targets or DUMMY_TARGET_MODULES,
        modules_to_save=whole or None,
    )
    train_soft_prompts(hf, config)
    return config


def attach_lora(model: nn.Module, arguments: ModelArguments) -> PeftModel:
    """A new adapter on `model`; its update starts at zero."""
    wrapped: Any = get_peft_model(model, lora_config(model, arguments))
    part_from_head(wrapped)
    return wrapped.eval()


def load_adapter(
    model: nn.Module, adapter: str | os.PathLike[str], *, trainable: bool = False, name: str = "default"
) -> PeftModel:
    """Puts a saved adapter on the base model it was trained on.

    Args:
        model: The base, or a PEFT model that gets one more adapter.
        adapter: Folder or Hub id.
        trainable: Whether its parameters train.
        name: Name of the adapter on the model.

    Returns:
        The PEFT model, in evaluation mode.

    Raises:
        ValueError: If there is no adapter there, it was trained on another base model, or with a mixer or soft prompts
            that the model does not have.
    """
    folder = os.fspath(adapter)
    try:
        config = PeftConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"no adapter in {folder!r}: adapter_config.json could not be read") from error
    check_base(model, folder, config.base_model_name_or_path)
    # PEFT says nothing of weights for which the model has no place.
    if mixed_of(inner(unwrap(model))) is None and find_mixer(folder) is not None:
        raise ValueError(
            f"the adapter in {folder!r} was trained with a mixer, which this model does not have: "
            "load_model(base, adapter) attaches it first"
        )
    check_adapter(model, folder)
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(folder, name, is_trainable=trainable)
            loaded: Any = model
        else:
            loaded = PeftModel.from_pretrained(model, folder, adapter_name=name, is_trainable=trainable)
    except (KeyError, RuntimeError, ValueError) as error:
        detail = "; ".join(line.strip() for line in str(error).splitlines()[:2])
        raise ValueError(
            f"the adapter in {folder!r} was trained on {config.base_model_name_or_path!r} and does not fit this "
            f"model: {detail}"
        ) from error
    part_from_head(loaded)
    return loaded.eval()


def is_quantized(model: nn.Module) -> bool:
    """Whether the base has 4- or 8-bit weights."""
    return bool(getattr(unwrap(model), "is_quantized", False))


def adapter_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters that belong to adapters of a PEFT model (LoRA layers, trained copies)."""
    if not isinstance(model, PeftModel):
        return set()
    prefix = getattr(model.base_model, "prefix", "lora_")
    marks = (prefix, "modules_to_save.", "trainable_tokens_")
    return {name for name, _ in model.named_parameters() if any(mark in name for mark in marks)}


def disable_dropout(model: nn.Module) -> None:
    """Sets every dropout rate to zero: policy and reference then differ by the adapter alone."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
