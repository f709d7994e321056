"""The models and rows that benchmarks run on: LLaVA in several sizes with random weights, made on the spot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from mllm_align.families import family_of
from mllm_align.vision.four_bit import settle_4bit_on_cpu

TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}USER "
    "{% for part in message.content if part.type == 'image' %}<image> {% endfor %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text }} {% endfor %}"
    "{% else %}ASSISTANT {{ message.content[0].text }} </s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT {% endif %}"
)
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "USER", "ASSISTANT")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model's size, how it is held, and the lengths that are measured on it.

    Attributes:
        vision: Settings of the CLIP tower.
        text: Settings of the Llama.
        image_token: Id of the image token.
        lora_rank: Of the adapter on the language model; its alpha is twice that.
        lengths: Response tokens, the end of turn counted.
        prompt_tokens: Tokens of a prompt, those of its images not counted.
        batch: Rows of a preference batch.
        device: "cpu" or "cuda".
        dtype: Of weights and computation.
        quantized: NF4 for the language model's linear layers.
        checkpointing: Activation checkpointing, on every side alike.
    """

    vision: Mapping[str, int]
    text: Mapping[str, Any]
    image_token: int
    lora_rank: int
    lengths: tuple[int, ...]
    prompt_tokens: int = 40
    batch: int = 2
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    quantized: bool = False
    checkpointing: bool = False

    @property
    def image_tokens(self) -> int:
        """Tokens of one image."""
        return (self.vision["image_size"] // self.vision["patch_size"]) ** 2

    @property
    def tolerance(self) -> float:
        """How far losses of two sides may be apart: sums over tokens that were rounded in another order."""
        return 1e-3 if self.dtype == torch.float32 else 0.2

    def autocast(self) -> torch.autocast:
        """The context that a step runs in."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == torch.bfloat16)


TINY = Shape(
    vision={
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 56,
        "patch_size": 14,
    },
    text={
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 320,
    },
    image_token=319,
    lora_rank=4,
    lengths=(4, 9),
    prompt_tokens=8,
)
PRESETS: dict[str, Shape] = {
    "tiny": TINY,
    # What a GPU preset does, on a CPU: quantised weights, bfloat16, activation checkpointing.
    "tiny-nf4": Shape(
        **{**vars(TINY), "dtype": torch.bfloat16, "quantized": True, "checkpointing": True},
    ),
    "small": Shape(
        vision={
            "hidden_size": 192,
            "intermediate_size": 768,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "image_size": 336,
            "patch_size": 14,
        },
        text={
            "hidden_size": 384,
            "intermediate_size": 1536,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
            "vocab_size": 8000,
            "max_position_embeddings": 4096,
        },
        image_token=7999,
        lora_rank=8,
        lengths=(40, 80, 150),
    ),
    "llava-1.5-7b": Shape(
        vision={
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
            "projection_dim": 768,
        },
        text={
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 32064,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
        },
        image_token=32000,
        lora_rank=64,
        lengths=(40, 80, 150),
        device="cuda",
        dtype=torch.bfloat16,
        quantized=True,
        checkpointing=True,
    ),
}


# -- models --------------------------------------------------------------------------------------------------------


def build_base(shape: Shape) -> Any:
    """The model without adapters, the same weights at every call."""
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**shape.vision),
        text_config=LlamaConfig(**shape.text, pad_token_id=0, bos_token_id=1, eos_token_id=2),
        image_token_index=shape.image_token,
        image_seq_length=shape.image_tokens,
    )
    with torch.device(shape.device):
        model: Any = LlavaForConditionalGeneration._from_config(config, dtype=shape.dtype, attn_implementation="sdpa")
    if shape.quantized:
        quantize(model.model.language_model, shape.dtype)
        settle_4bit_on_cpu(model)
        # What a quantised checkpoint says of itself once loaded; PEFT and TRL ask for it.
        model.is_loaded_in_4bit = True
    return model.requires_grad_(False)


def quantize(model: nn.Module, dtype: torch.dtype) -> None:
    """Replaces every linear layer by its NF4 version with double quantisation, one after the other, in place."""
    import bitsandbytes

    for name, layer in list(model.named_modules()):
        if not isinstance(layer, nn.Linear):
            continue
        small = bitsandbytes.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta"
        )
        weight: Any = bitsandbytes.nn.Params4bit(
            layer.weight.data, requires_grad=False, quant_type="nf4", module=small
        )
        small.weight = weight.to(layer.weight.device)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, small)


def lora(shape: Shape, base: nn.Module) -> LoraConfig:
    """LoRA on every linear layer of the language model."""
    targets = family_of(base).lora_targets(base, ["language"])
    return LoraConfig(task_type="CAUSAL_LM", r=shape.lora_rank, lora_alpha=2 * shape.lora_rank, target_modules=targets)


def fill_adapters(model: nn.Module) -> None:
    """The same random adapter for every side, away from zero: policy and reference then differ, and so may losses."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            scale = 0.1 if "lora_B" in name else parameter.shape[-1] ** -0.5
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def build_model(shape: Shape) -> Any:
    """The model with its adapter, in training mode."""
    base = build_base(shape)
    model = get_peft_model(base, lora(shape, base))
    fill_adapters(model)
    if shape.checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


# -- rows ----------------------------------------------------------------------------------------------------------


def build_processor(shape: Shape) -> LlavaProcessor:
    """A processor whose tokens are words, so that a text has exactly as many tokens as it has words."""
    vocabulary = {word: number for number, word in enumerate(SPECIAL)}
    names = (f"w{number}" for number in range(len(SPECIAL), shape.image_token))
    vocabulary |= {name: number for number, name in enumerate(names, start=len(SPECIAL))}
    vocabulary["<image>"] = shape.image_token
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        clean_up_tokenization_spaces=False,
    )
    side = shape.vision["image_size"]
    return LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        tokenizer,
        patch_size=shape.vision["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def preference_rows(shape: Shape, length: int) -> list[dict[str, Any]]:
    """A batch of rows with a picture each: prompts and responses of random words, of exactly the wanted lengths."""
    rng = np.random.default_rng(length)

    def turn(role: str, count: int) -> list[dict[str, str]]:
        words = " ".join(f"w{number}" for number in rng.integers(len(SPECIAL), shape.image_token, count))
        return [{"role": role, "content": words}]

    side = shape.vision["image_size"]
    return [
        {
            "images": [Image.fromarray(rng.integers(0, 256, (side * 3 // 4, side, 3), dtype=np.uint8))],
            # USER and ASSISTANT are of the prompt, the end of turn is of the response.
            "prompt": turn("user", shape.prompt_tokens - 2),
            "chosen": turn("assistant", length - 1),
            "rejected": turn("assistant", length - 1),
        }
        for _ in range(shape.batch)
    ]


def random_ids(shape: Shape, count: int, generator: torch.Generator) -> Tensor:
    """(count,) token ids, none of them special."""
    return torch.randint(len(SPECIAL), shape.image_token, (count,), generator=generator)


def random_pixels(shape: Shape, generator: torch.Generator) -> Tensor:
    """(1, 3, S, S) pixels of one image, as a processor would make them."""
    side = shape.vision["image_size"]
    return torch.randn(1, 3, side, side, generator=generator)


def with_images(shape: Shape, prompt: Tensor, images: int) -> Tensor:
    """A prompt with the tokens of some images behind its first token."""
    tokens = torch.full((images * shape.image_tokens,), shape.image_token)
    return torch.cat([prompt[:1], tokens, prompt[1:]])
