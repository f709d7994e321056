"""Tiny models of families whose images keep their size: Qwen3-VL, Mistral3 and LLaVA with Pixtral's tower."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import (
    LlavaConfig,
    Mistral3Config,
    PixtralImageProcessorPil,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLMoeConfig,
)

from mllm_align.families.image_only import PixtralProcessor, Qwen3VLProcessor
from templates import CHATML_TEMPLATE, PIXTRAL_TEMPLATE
from tiny_parts import TEXT, WIDTH, Recipe, vocabulary

PIXTRAL = {
    "model_type": "pixtral",
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 96,
    "patch_size": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}


def _qwen3_config(config_class: type, **text: Any) -> Callable[[PreTrainedTokenizerFast], Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3], "mrope_interleaved": True}

    def build(tokenizer: PreTrainedTokenizerFast) -> Any:
        ids = tokenizer.convert_tokens_to_ids
        # A layer behind those that deepstack adds to, without which its last features would be read by nothing.
        layers = {"num_hidden_layers": 3, "head_dim": 16, "rope_parameters": rope}
        return config_class(
            vision_config={
                "depth": 3,
                "hidden_size": WIDTH,
                "intermediate_size": 2 * WIDTH,
                "num_heads": 4,
                "out_hidden_size": WIDTH,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0, 1],
            },
            text_config={**TEXT, **layers, **text, **vocabulary(tokenizer)},
            image_token_id=ids("<|image_pad|>"),
            video_token_id=ids("<|video_pad|>"),
            vision_start_token_id=ids("<|vision_start|>"),
            vision_end_token_id=ids("<|vision_end|>"),
        )

    return build


def _qwen3_processor(tokenizer: PreTrainedTokenizerFast, template: str) -> Any:
    image_processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 32 * 32 * 2, "longest_edge": 32 * 32 * 16},
        patch_size=16,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return Qwen3VLProcessor(image_processor, tokenizer, chat_template=template)


def _pixtral_config(config_class: type, **kwargs: Any) -> Callable[[PreTrainedTokenizerFast], Any]:
    def build(tokenizer: PreTrainedTokenizerFast) -> Any:
        return config_class(
            vision_config=dict(PIXTRAL),
            text_config={"model_type": "mistral", "sliding_window": None, **TEXT, **vocabulary(tokenizer)},
            image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
            vision_feature_layer=-1,
            tie_word_embeddings=False,
            **kwargs,
        )

    return build


def _pixtral_processor(merge: int) -> Callable[[PreTrainedTokenizerFast, str], Any]:
    def build(tokenizer: PreTrainedTokenizerFast, template: str) -> Any:
        image_processor = PixtralImageProcessorPil(size={"longest_edge": 96})
        return PixtralProcessor(
            image_processor, tokenizer, patch_size=16, spatial_merge_size=merge, chat_template=template
        )

    return build


TEKKEN = {
    "template": PIXTRAL_TEMPLATE,
    "special": ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "<pad>"),
    "bos": "<s>",
    "eos": "</s>",
    "pad": "<pad>",
    "adds_bos": True,
    "not_quantized": ("lm_head", "model.vision_tower", "model.multi_modal_projector"),
}
QWEN3 = {
    "processor": _qwen3_processor,
    "template": CHATML_TEMPLATE,
    "special": (
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ),
    "bos": None,
    "eos": "<|im_end|>",
    "pad": "<|endoftext|>",
    "adds_bos": False,
    "not_quantized": ("lm_head", "model.visual"),
}
RECIPES: dict[str, Recipe] = {
    "qwen3_vl": Recipe(model_class="Qwen3VLForConditionalGeneration", config=_qwen3_config(Qwen3VLConfig), **QWEN3),
    "qwen3_vl_moe": Recipe(
        model_class="Qwen3VLMoeForConditionalGeneration",
        config=_qwen3_config(Qwen3VLMoeConfig, moe_intermediate_size=WIDTH, num_experts=4, num_experts_per_tok=2),
        **QWEN3,
    ),
    "pixtral": Recipe(
        model_class="LlavaForConditionalGeneration",
        config=_pixtral_config(LlavaConfig, vision_feature_select_strategy="full"),
        processor=_pixtral_processor(1),
        **TEKKEN,
    ),
    "mistral3": Recipe(
        model_class="Mistral3ForConditionalGeneration",
        config=_pixtral_config(Mistral3Config),
        processor=_pixtral_processor(2),
        **TEKKEN,
    ),
}
