"""The architecture of the demo's base: a LLaVA from its real config classes, and the processor that goes with it."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mllm_align.data.world.catalogue import COLOURS, NUMBER_WORDS, SHAPES, SIDES, SIGN_WORDS, SIZES, World
from mllm_align.data.world.language import PARAPHRASES, RELATIONS

PATCH = 16
SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
IMAGE_TOKEN = "<image>"

# LLaVA-1.5's turns, with the images of a message before its text and the assistant's turn marked for masks.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['content'] is string %}{% set parts = [{'type': 'text', 'text': message['content']}] %}"
    "{% else %}{% set parts = message['content'] %}{% endif %}"
    "{% if message['role'] == 'assistant' %}"
    "{% set text = parts | map(attribute='text') | join(' ') %}"
    "{{ 'ASSISTANT: ' }}{% generation %}{{ text + eos_token }}{% endgeneration %}{{ ' ' if not loop.last }}"
    "{% else %}"
    "{{ 'USER: ' if message['role'] == 'user' }}"
    "{% for part in parts %}{{ '<image>\n' if part['type'] == 'image' else part['text'] + ' ' }}{% endfor %}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)


def vocabulary() -> list[str]:
    """Every word and mark that the world's questions, answers and captions use, in a fixed order."""
    texts: Iterable[str] = (
        "USER ASSISTANT : ? . a an the and on does say",
        " ".join((*SHAPES, *COLOURS, *SIZES, *SIDES, *NUMBER_WORDS, *SIGN_WORDS, *RELATIONS, "yes no")),
        *(template for templates in PARAPHRASES.values() for template in templates),
    )
    words = dict.fromkeys(word for text in texts for word in re.findall(r"[a-z]+|[:?.]", text.lower()))
    return list(words)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over `vocabulary`, without case."""
    special = [*SPECIAL_TOKENS.values(), IMAGE_TOKEN]
    ids = {word: index for index, word in enumerate([*special, *vocabulary()])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        **SPECIAL_TOKENS,
    )


def build_processor(world: World) -> LlavaProcessor:
    """Tokenizer, image processor and chat template for pictures of `world`."""
    side = {"height": world.image_size, "width": world.image_size}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": world.image_size}, crop_size=side),
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,  # the class token, which the strategy then leaves out
    )


def build_model(processor: LlavaProcessor, world: World, seed: int) -> LlavaForConditionalGeneration:
    """The untrained model in float32.

    All widths of the language model are multiples of 64, the block of NF4.
    """
    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=world.image_size,
        patch_size=PATCH,
        projection_dim=96,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(world.image_size // PATCH) ** 2,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model
