"""Tiny models on Gemma: PaliGemma (Gemma), PaliGemma 2 (Gemma2) and Gemma3. Windows are shorter than one image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import (
    Gemma3Config,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    PaliGemmaConfig,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
)
from transformers.models.paligemma.processing_paligemma import EXTRA_TOKENS

from templates import GEMMA3_TEMPLATE, PALIGEMMA_TEMPLATE
from tiny_parts import SIGLIP, TEXT, WIDTH, Recipe, vocabulary

WINDOW = 11
TOWER = {"model_type": "siglip_vision_model", "vision_use_head": False, **SIGLIP}
GEMMA = TEXT | {"head_dim": 16, "tie_word_embeddings": True}
LAYERS = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
GEMMA2 = {"query_pre_attn_scalar": 16, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 2.0, **LAYERS}


def _paligemma_config(model_type: str, **text: Any) -> Callable[[PreTrainedTokenizerFast], Any]:
    def build(tokenizer: PreTrainedTokenizerFast) -> Any:
        # The processor adds these before it is first used.
        tokenizer.add_tokens(EXTRA_TOKENS)
        return PaliGemmaConfig(
            vision_config=dict(TOWER),
            text_config={"model_type": model_type, **GEMMA, **text, **vocabulary(tokenizer)},
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            projection_dim=WIDTH,
            hidden_size=WIDTH,
        )

    return build


def _paligemma_processor(tokenizer: PreTrainedTokenizerFast, template: str) -> Any:
    image_processor = SiglipImageProcessorPil(size={"height": 64, "width": 64})
    image_processor.image_seq_length = 16
    return PaliGemmaProcessor(image_processor, tokenizer, chat_template=template)


def _gemma3_config(tokenizer: PreTrainedTokenizerFast) -> Any:
    ids = tokenizer.convert_tokens_to_ids
    return Gemma3Config(
        vision_config=TOWER | {"patch_size": 8},
        text_config={**GEMMA, "query_pre_attn_scalar": 16, **LAYERS, **vocabulary(tokenizer)},
        mm_tokens_per_image=16,
        boi_token_index=ids("<start_of_image>"),
        eoi_token_index=ids("<end_of_image>"),
        image_token_index=ids("<image_soft_token>"),
    )


def _gemma3_processor(tokenizer: PreTrainedTokenizerFast, template: str) -> Any:
    image_processor = Gemma3ImageProcessorPil(size={"height": 64, "width": 64})
    return Gemma3Processor(image_processor, tokenizer, chat_template=template, image_seq_length=16)


PALIGEMMA = {
    "model_class": "PaliGemmaForConditionalGeneration",
    "processor": _paligemma_processor,
    "template": PALIGEMMA_TEMPLATE,
    "special": ("<pad>", "<eos>", "<bos>", "<unk>", "<image>"),
    "bos": "<bos>",
    "eos": "<eos>",
    "pad": "<pad>",
    "adds_bos": True,
    "not_quantized": ("lm_head", "model.vision_tower", "model.multi_modal_projector"),
}
RECIPES: dict[str, Recipe] = {
    "paligemma": Recipe(config=_paligemma_config("gemma"), **PALIGEMMA),
    # Gemma2 has no sdpa: it caps attention scores.
    "paligemma2": Recipe(
        config=_paligemma_config("gemma2", **GEMMA2),
        attention={"vision_config": "sdpa", "text_config": "eager"},
        **PALIGEMMA,
    ),
    "gemma3": Recipe(
        model_class="Gemma3ForConditionalGeneration",
        config=_gemma3_config,
        processor=_gemma3_processor,
        template=GEMMA3_TEMPLATE,
        special=(
            "<pad>",
            "<eos>",
            "<bos>",
            "<unk>",
            "<start_of_turn>",
            "<end_of_turn>",
            "<start_of_image>",
            "<end_of_image>",
            "<image_soft_token>",
        ),
        bos="<bos>",
        eos="<end_of_turn>",
        pad="<pad>",
        adds_bos=True,
        not_quantized=("lm_head", "model.vision_tower", "model.multi_modal_projector"),
        named={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
    ),
}
