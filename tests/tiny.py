"""One tiny model and processor per family, built offline from the family's real config and processor classes.

Weights are random with a fixed seed and scaled by fan-in, so that a change of one pixel or one token moves the logits
by far more than any tolerance. Widths are multiples of 64, which NF4 needs.
"""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    CLIPImageProcessorPil,
    GenerationConfig,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    SmolVLMImageProcessorPil,
)

import tiny_any_size
import tiny_gemma
import tiny_tiled
from mllm_align.families.image_only import Qwen2_5_VLProcessor, Qwen2VLProcessor, SmolVLMProcessor, load_processor
from templates import CHATML_TEMPLATE, IDEFICS_TEMPLATE, LLAVA_TEMPLATE, MISTRAL_TEMPLATE
from tiny_parts import CLIP, SIGLIP, TEXT, WIDTH, Recipe, vocabulary

QWEN_TEXT = TEXT | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}
PINPOINTS = [[56, 112], [112, 56], [112, 112]]
ROWS_AND_COLUMNS = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
CORPUS = [
    f"What {what} is the {size} {colour} {shape} {relation} the {other}? The {shape} is {colour}, not {other}. {tail}"
    for what in ("colour", "shape", "size")
    for size in ("small", "large")
    for colour, other in (("red", "blue"), ("green", "yellow"), ("white", "black"))
    for shape in ("circle", "square", "triangle", "star")
    for relation in ("left of", "right of", "above", "below")
    for tail in ("Yes.", "No.", "How many objects are in the picture?", "Describe the image in one sentence.")
]


def _clip_config(config_class: str, **kwargs: Any) -> Callable[[PreTrainedTokenizerFast], Any]:
    def build(tokenizer: PreTrainedTokenizerFast) -> Any:
        return getattr(transformers, config_class)(
            vision_config=dict(CLIP),
            text_config={"model_type": "llama", **TEXT, **vocabulary(tokenizer)},
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            image_seq_length=16,
            **kwargs,
        )

    return build


def _qwen_config(config_class: str, vision: dict[str, Any]) -> Callable[[PreTrainedTokenizerFast], Any]:
    def build(tokenizer: PreTrainedTokenizerFast) -> Any:
        ids = tokenizer.convert_tokens_to_ids
        return getattr(transformers, config_class)(
            vision_config=dict(vision),
            text_config={**QWEN_TEXT, **vocabulary(tokenizer)},
            image_token_id=ids("<|image_pad|>"),
            video_token_id=ids("<|video_pad|>"),
            vision_start_token_id=ids("<|vision_start|>"),
            vision_end_token_id=ids("<|vision_end|>"),
        )

    return build


def _idefics_config(config_class: str) -> Callable[[PreTrainedTokenizerFast], Any]:
    def build(tokenizer: PreTrainedTokenizerFast) -> Any:
        return getattr(transformers, config_class)(
            vision_config=dict(SIGLIP),
            text_config={"model_type": "llama", **TEXT, **vocabulary(tokenizer)},
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            scale_factor=2,
        )

    return build


def _llava_processor(tokenizer: PreTrainedTokenizerFast, template: str) -> Any:
    square = {"height": 56, "width": 56}
    return LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=square),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def _llava_next_processor(tokenizer: PreTrainedTokenizerFast, template: str) -> Any:
    square = {"height": 56, "width": 56}
    return LlavaNextProcessor(
        LlavaNextImageProcessorPil(size={"shortest_edge": 56}, crop_size=square, image_grid_pinpoints=PINPOINTS),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def _qwen_processor(processor_class: type) -> Callable[[PreTrainedTokenizerFast, str], Any]:
    def build(tokenizer: PreTrainedTokenizerFast, template: str) -> Any:
        size = {"shortest_edge": 28 * 28 * 2, "longest_edge": 28 * 28 * 16}
        return processor_class(Qwen2VLImageProcessorPil(size=size), tokenizer, chat_template=template)

    return build


def _idefics_processor(
    processor_class: type, image_processor_class: type
) -> Callable[[PreTrainedTokenizerFast, str], Any]:
    def build(tokenizer: PreTrainedTokenizerFast, template: str) -> Any:
        image_processor = image_processor_class(size={"longest_edge": 128}, max_image_size={"longest_edge": 64})
        return processor_class(image_processor, tokenizer, image_seq_len=4, chat_template=template)

    return build


QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
QWEN = {"template": CHATML_TEMPLATE, "special": QWEN_SPECIAL, "bos": None, "eos": "<|im_end|>", "pad": "<|endoftext|>"}
IDEFICS_SPECIAL = ("<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>", *ROWS_AND_COLUMNS)

RECIPES: dict[str, Recipe] = {
    "llava": Recipe(
        model_class="LlavaForConditionalGeneration",
        config=_clip_config("LlavaConfig"),
        processor=_llava_processor,
        template=LLAVA_TEMPLATE,
        special=("<unk>", "<s>", "</s>", "<image>", "<pad>"),
        bos="<s>",
        eos="</s>",
        pad="<pad>",
        adds_bos=True,
        not_quantized=("lm_head", "model.vision_tower", "model.multi_modal_projector"),
    ),
    "llava_next": Recipe(
        model_class="LlavaNextForConditionalGeneration",
        config=_clip_config("LlavaNextConfig", image_grid_pinpoints=PINPOINTS),
        processor=_llava_next_processor,
        template=MISTRAL_TEMPLATE,
        special=("<unk>", "<s>", "</s>", "<image>", "<pad>"),
        bos="<s>",
        eos="</s>",
        pad="<pad>",
        adds_bos=True,
        not_quantized=("lm_head", "model.vision_tower", "model.multi_modal_projector"),
    ),
    "qwen2_vl": Recipe(
        model_class="Qwen2VLForConditionalGeneration",
        config=_qwen_config(
            "Qwen2VLConfig",
            {"depth": 2, "embed_dim": WIDTH, "hidden_size": WIDTH, "mlp_ratio": 2, "num_heads": 4},
        ),
        processor=_qwen_processor(Qwen2VLProcessor),
        adds_bos=False,
        not_quantized=("lm_head", "model.visual"),
        **QWEN,
    ),
    "qwen2_5_vl": Recipe(
        model_class="Qwen2_5_VLForConditionalGeneration",
        config=_qwen_config(
            "Qwen2_5_VLConfig",
            {
                "depth": 2,
                "hidden_size": WIDTH,
                "intermediate_size": 2 * WIDTH,
                "num_heads": 4,
                "out_hidden_size": WIDTH,
                "window_size": 56,
                "fullatt_block_indexes": [1],
            },
        ),
        processor=_qwen_processor(Qwen2_5_VLProcessor),
        adds_bos=False,
        not_quantized=("lm_head", "model.visual"),
        **QWEN,
    ),
    "idefics3": Recipe(
        model_class="Idefics3ForConditionalGeneration",
        config=_idefics_config("Idefics3Config"),
        processor=_idefics_processor(Idefics3Processor, Idefics3ImageProcessorPil),
        template=IDEFICS_TEMPLATE.replace("BEGIN", "<|begin_of_text|>"),
        special=("<|begin_of_text|>", "<|end_of_text|>", "<|pad|>", *IDEFICS_SPECIAL),
        bos="<|begin_of_text|>",
        eos="<end_of_utterance>",
        pad="<|pad|>",
        adds_bos=True,
        not_quantized=("lm_head", "model.vision_model", "model.connector"),
    ),
    "smolvlm": Recipe(
        model_class="SmolVLMForConditionalGeneration",
        config=_idefics_config("SmolVLMConfig"),
        processor=_idefics_processor(SmolVLMProcessor, SmolVLMImageProcessorPil),
        template=IDEFICS_TEMPLATE.replace("BEGIN", "<|im_start|>"),
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>", *IDEFICS_SPECIAL),
        bos="<|im_start|>",
        eos="<end_of_utterance>",
        pad="<|im_end|>",
        adds_bos=False,
        not_quantized=("lm_head", "model.vision_model", "model.connector"),
    ),
}
RECIPES |= tiny_tiled.RECIPES | tiny_any_size.RECIPES | tiny_gemma.RECIPES
FAMILIES = tuple(RECIPES)


def _tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(recipe.special), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    if recipe.adds_bos and recipe.bos is not None:
        bos = (recipe.bos, backend.token_to_id(recipe.bos))
        backend.post_processor = processors.TemplateProcessing(
            single=f"{recipe.bos} $A", pair=f"{recipe.bos} $A {recipe.bos} $B", special_tokens=[bos]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=recipe.bos,
        eos_token=recipe.eos,
        pad_token=recipe.pad,
        additional_special_tokens=[t for t in recipe.special if t not in (recipe.bos, recipe.eos, recipe.pad)],
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
        model_specific_special_tokens=dict(recipe.named),
    )


def _scale_weights(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() < 2:
                is_scale = name.endswith("weight")
                parameter.copy_(noise * 0.1 + (1.0 if is_scale else 0.0))
            elif "embed" in name and "patch_embed" not in name:
                parameter.copy_(noise)
            else:
                parameter.copy_(noise * 1.5 / parameter[0].numel() ** 0.5)
        for module in model.modules():
            # Gemma's embeddings, which are its head, too, are scaled up where they are read.
            if hasattr(module, "scalar_embed_scale"):
                module.weight.div_(module.scalar_embed_scale)


@functools.cache
def _build(family: str, seed: int) -> tuple[Any, Any]:
    recipe = RECIPES[family]
    tokenizer = _tokenizer(recipe)
    model = getattr(transformers, recipe.model_class)._from_config(
        recipe.config(tokenizer), dtype=torch.float32, attn_implementation=recipe.attention
    )
    _scale_weights(model, seed)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    return model.eval(), recipe.processor(tokenizer, recipe.template)


def tiny(family: str, *, quantized: bool = False, seed: int = 0) -> tuple[Any, Any]:
    """A fresh copy of the tiny model (float32, eval mode) and processor of one of `FAMILIES`.

    Args:
        family: One of `FAMILIES`.
        quantized: NF4 language model; head, projector and tower stay float32.
        seed: Of the weights.
    """
    if quantized:
        with tempfile.TemporaryDirectory() as folder:
            return tiny_nf4(family, folder, seed=seed)
    model, processor = _build(family, seed)
    return copy.deepcopy(model), copy.deepcopy(processor)


def save_tiny(family: str, folder: str | Path, *, seed: int = 0) -> Path:
    """A folder that `AutoModelForImageTextToText` and the project's `load_processor` load."""
    model, processor = tiny(family, seed=seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


def nf4_config(family: str) -> BitsAndBytesConfig:
    """NF4 with double quantisation and float32 compute; head, projector and tower stay as they are."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=list(RECIPES[family].not_quantized),
    )


def tiny_nf4(family: str, folder: str | Path, *, seed: int = 0) -> tuple[Any, Any]:
    """The tiny model saved in `folder` and loaded from there with an NF4 language model, on the CPU."""
    save_tiny(family, folder, seed=seed)
    model = AutoModelForImageTextToText.from_pretrained(
        folder, quantization_config=nf4_config(family), dtype=torch.float32, device_map={"": "cpu"}
    )
    for module in model.modules():
        # Repacking for AVX512-BF16 at the first evaluation would change every later forward.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model.eval(), load_processor(str(folder))
