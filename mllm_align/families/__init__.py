"""What differs between model families, as rows of data where possible.

Nothing else in the package asks for `config.model_type`; everything else asks `family_of(model)`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from mllm_align.families.base import SCOPES, EncodedImages, Family, inner
from mllm_align.families.gemma3 import GEMMA3
from mllm_align.families.idefics3 import IDEFICS3, SMOLVLM
from mllm_align.families.internvl import INTERNVL
from mllm_align.families.llava import LLAVA
from mllm_align.families.llava_next import LLAVA_NEXT
from mllm_align.families.llava_onevision import LLAVA_ONEVISION
from mllm_align.families.paligemma import PALIGEMMA
from mllm_align.families.pixtral import MISTRAL3, PIXTRAL
from mllm_align.families.qwen2_vl import QWEN2_5_VL, QWEN2_VL
from mllm_align.families.qwen3_vl import QWEN3_VL

__all__ = ["FAMILIES", "SCOPES", "EncodedImages", "Family", "check_model", "family_of", "inner", "unwrap"]

FAMILIES: tuple[Family, ...] = (
    LLAVA,
    LLAVA_NEXT,
    LLAVA_ONEVISION,
    QWEN2_VL,
    QWEN2_5_VL,
    QWEN3_VL,
    INTERNVL,
    IDEFICS3,
    SMOLVLM,
    PIXTRAL,
    MISTRAL3,
    PALIGEMMA,
    GEMMA3,
)


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
    vision_type = getattr(getattr(config, "vision_config", None), "model_type", None)
    fitting = [
        family for family in FAMILIES if model_type in family.model_types and family.vision_type in (None, vision_type)
    ]
    if fitting:
        return max(fitting, key=lambda family: family.vision_type is not None)
    known = ", ".join(sorted({model_type for family in FAMILIES for model_type in family.model_types}))
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
    # Gemma3's processor is given another token than the one that it makes of an image.
    if own is not None and image_token not in (own, *(getattr(processor, "image_token_ids", None) or ())):
        raise ValueError(
            f"the processor marks images with token id {own}, the model expects {image_token}: "
            "load both from the same checkpoint"
        )
    return family
