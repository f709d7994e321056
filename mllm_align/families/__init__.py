"""What differs between model families, as rows of data where possible.

Nothing else in the package asks for `config.model_type`; everything else asks `family_of(model)`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from mllm_align.families.base import SCOPES, EncodedImages, Family, inner
from mllm_align.families.idefics3 import IDEFICS3, SMOLVLM
from mllm_align.families.llava import LLAVA
from mllm_align.families.llava_next import LLAVA_NEXT
from mllm_align.families.qwen2_vl import QWEN2_5_VL, QWEN2_VL

__all__ = ["FAMILIES", "SCOPES", "EncodedImages", "Family", "check_model", "family_of", "inner", "unwrap"]

FAMILIES: tuple[Family, ...] = (LLAVA, LLAVA_NEXT, QWEN2_VL, QWEN2_5_VL, IDEFICS3, SMOLVLM)


def unwrap(model: Any) -> Any:
    """The Hugging Face model inside DDP, FSDP, `torch.compile` or PEFT wrappers."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(getattr(model, "module", None), nn.Module):
            model = model.module
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()
        else:
            return model


def family_of(model_or_config: Any) -> Family:
    """The family of a model (wrapped or not) or of a config.

    Raises:
        ValueError: If the model type is in no row of the table.
    """
    config = getattr(unwrap(model_or_config), "config", model_or_config)
    model_type = getattr(config, "model_type", None)
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(sorted(model_type for family in FAMILIES for model_type in family.model_types))
    raise ValueError(
        f"model type {model_type!r} is not a vision-language family that mllm_align knows ({known}). "
        "Use one of these, or add a row in mllm_align/families/."
    )


def check_model(model: Any, processor: Any) -> Family:
    """The family of a model that can read images with this processor.

    Raises:
        ValueError: If the family is unknown, the processor has no image side, or model and processor disagree on the
            image token.
    """
    family = family_of(model)
    config = unwrap(model).config
    image_token = getattr(config, "image_token_id", None)
    if image_token is None:
        raise ValueError(f"{type(config).__name__} has no image_token_id: this model has no image tokens to look at")
    if getattr(processor, "image_processor", None) is None:
        raise ValueError(
            f"processing_class is {type(processor).__name__}, which cannot read images; "
            "pass the model's processor: AutoProcessor.from_pretrained(...)"
        )
    token = getattr(processor, "image_token", None)
    own = getattr(processor, "image_token_id", None)
    if own is None and token is not None:
        own = processor.tokenizer.convert_tokens_to_ids(token)
    if own is not None and own != image_token:
        raise ValueError(
            f"the processor marks images with token id {own}, the model expects {image_token}: "
            "load both from the same checkpoint"
        )
    return family
