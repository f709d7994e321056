"""Tiny models of families that cut images into tiles: LLaVA-OneVision and InternVL."""

from __future__ import annotations

from typing import Any

from transformers import (
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessorPil,
    PreTrainedTokenizerFast,
)

from mllm_align.families.image_only import InternVLProcessor, LlavaOnevisionProcessor
from templates import INTERNVL_TEMPLATE, ONEVISION_TEMPLATE
from tiny_parts import SIGLIP, TEXT, WIDTH, Recipe, vocabulary

PINPOINTS = [[64, 64], [64, 128], [128, 64], [128, 128]]
# Of the patches of two tiles and more no more than about one tile's worth is kept.
ANYRES = "anyres_max_1"
QWEN2 = {"model_type": "qwen2", **TEXT, "layer_types": ["full_attention"] * 2}


def _onevision_config(tokenizer: PreTrainedTokenizerFast) -> Any:
    return LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **SIGLIP},
        text_config={**QWEN2, **vocabulary(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio=ANYRES,
    )


def _onevision_processor(tokenizer: PreTrainedTokenizerFast, template: str) -> Any:
    image_processor = LlavaOnevisionImageProcessorPil(
        size={"height": 64, "width": 64}, image_grid_pinpoints=PINPOINTS, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaOnevisionProcessor(
        image_processor,
        tokenizer,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=template,
        vision_aspect_ratio=ANYRES,
    )


def _internvl_config(tokenizer: PreTrainedTokenizerFast) -> Any:
    return InternVLConfig(
        vision_config={
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": [56, 56],
            "patch_size": [14, 14],
        },
        text_config={**QWEN2, **vocabulary(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )


def _internvl_processor(tokenizer: PreTrainedTokenizerFast, template: str) -> Any:
    image_processor = GotOcr2ImageProcessorPil(size={"height": 56, "width": 56}, max_patches=4)
    return InternVLProcessor(image_processor, tokenizer, image_seq_length=4, chat_template=template)


CHATML = {"bos": None, "eos": "<|im_end|>", "pad": "<|endoftext|>", "adds_bos": False}
CHATML_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
RECIPES: dict[str, Recipe] = {
    "llava_onevision": Recipe(
        model_class="LlavaOnevisionForConditionalGeneration",
        config=_onevision_config,
        processor=_onevision_processor,
        template=ONEVISION_TEMPLATE,
        special=(*CHATML_SPECIAL, "<image>", "<video>"),
        not_quantized=("lm_head", "model.vision_tower", "model.multi_modal_projector"),
        **CHATML,
    ),
    "internvl": Recipe(
        model_class="InternVLForConditionalGeneration",
        config=_internvl_config,
        processor=_internvl_processor,
        template=INTERNVL_TEMPLATE,
        special=(*CHATML_SPECIAL, "<IMG_CONTEXT>", "<img>", "</img>", "<video>"),
        named={
            "context_image_token": "<IMG_CONTEXT>",
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "video_token": "<video>",
        },
        not_quantized=("lm_head", "model.vision_tower", "model.multi_modal_projector"),
        **CHATML,
    ),
}
