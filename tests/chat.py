"""LLaVA's real processor class over chat templates of many families and tokenizers of three kinds, trained here."""

from __future__ import annotations

import functools

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

SPECIAL = [
    "<unk>",
    "<s>",
    "</s>",
    "<image>",
    "<pad>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<think>",
    "</think>",
]
TEXTS = [
    "What is the colour of the circle in the picture? It is red. It is not blue.",
    "USER: How many dogs are running? ASSISTANT: Two dogs are running, I think.",
    "user assistant system You are a helpful assistant. Answer with yes or no.",
    "[INST] Describe the image. [/INST] A small white square is left of a star.",
] * 4
TOKENIZERS = ("byte_bpe", "metaspace", "word")

_PARTS = (
    "{% for part in message.content %}{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}"
)
TEMPLATES = {
    "llava": (
        "{% for message in messages %}{{ message.role | upper }}: "
        "{% for part in message.content if part.type == 'image' %}<image>\n{% endfor %}"
        "{% for part in message.content if part.type == 'text' %}{{ part.text }} {% endfor %}"
        "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
    "vicuna": (
        "A chat. {% for message in messages %}"
        "{% if message.role == 'user' %}USER: " + _PARTS + " "
        "{% elif message.role == 'assistant' %}ASSISTANT: " + _PARTS + "</s>"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
    "chatml": (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n" + _PARTS + "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "llama3": (
        "<|begin_of_text|>{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
        "{% for part in message.content %}{% if part.type == 'image' %}<image>{% else %}{{ part.text | trim }}"
        "{% endif %}{% endfor %}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "qwen3": (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{% if message.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
        + _PARTS
        + "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "mistral": (
        "<s>{% for message in messages %}{% if message.role == 'user' %}[INST] " + _PARTS + " [/INST]"
        "{% elif message.role == 'assistant' %} " + _PARTS + "</s>"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
    ),
    "opens_thinking": (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n" + _PARTS + "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    ),
    "strings": (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content + '' }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
}


@functools.cache
def make_tokenizer(kind: str = "byte_bpe", adds_eos: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer that puts `<s>` in front of a text (and `</s>` behind it, if asked)."""
    if kind == "byte_bpe":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet)
    elif kind == "metaspace":
        backend = Tokenizer(models.Unigram())
        backend.normalizer = normalizers.Sequence([])
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        backend.decoder = decoders.Metaspace(prepend_scheme="always")
        trainer = trainers.UnigramTrainer(
            vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", initial_alphabet=list("\n:[]/<>|.?,")
        )
    else:
        backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(special_tokens=SPECIAL)
    trainer.show_progress = False
    backend.train_from_iterator(TEXTS, trainer)
    tail = [("</s>", backend.token_to_id("</s>"))] if adds_eos else []
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if adds_eos else "<s> $A",
        special_tokens=[("<s>", backend.token_to_id("<s>")), *tail],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=[t for t in SPECIAL if t not in ("<s>", "</s>", "<unk>")],
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )


def make_processor(template: str | None = "llava", kind: str = "byte_bpe", adds_eos: bool = False) -> LlavaProcessor:
    """A processor of 28-pixel images (4 tokens each); `template` names one of `TEMPLATES`, or is None."""
    return LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        make_tokenizer(kind, adds_eos),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATES[template] if template else None,
    )
