"""A chat template that asks by itself what an embedding is read behind, and a check that it reads the same tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image

from mllm_align.contract import Embedding, Feature, Needs
from mllm_align.data.collator import AlignCollator
from mllm_align.data.masks import ChatRenderer
from mllm_align.data.schema import parse_row
from mllm_align.encoding.reading import images_to_read, texts_to_read
from mllm_align.families import Family

# What a template gets in front of it: a message that is images alone, or texts alone, is asked about as the collator
# asks; any other conversation stays as it is. {image} and {text} are the instructions.
ASKING = """{{%- set asked = namespace(images=[], texts=[]) -%}}
{{%- if messages | length == 1 and messages[0].role == 'user' and messages[0].content is not string -%}}
{{%- for part in messages[0].content -%}}
{{%- if part.type == 'image' -%}}{{%- set asked.images = asked.images + [part] -%}}
{{%- elif part.type == 'text' -%}}{{%- set asked.texts = asked.texts + [part.text] -%}}{{%- endif -%}}
{{%- endfor -%}}
{{%- endif -%}}
{{%- set image_question, text_question = {image}, {text} -%}}
{{%- if image_question and asked.images and not asked.texts -%}}
{{%- set content = asked.images + [{{'type': 'text', 'text': image_question}}] -%}}
{{%- elif text_question and asked.texts and not asked.images -%}}
{{%- set content = [{{'type': 'text', 'text': asked.texts | join + '\\n' + text_question}}] -%}}
{{%- else -%}}{{%- set content = none -%}}{{%- endif -%}}
{{%- if content is not none -%}}{{%- set messages = [{{'role': 'user', 'content': content}}] -%}}{{%- endif -%}}
{flattened}{{%- set add_generation_prompt = true -%}}
"""
# For templates whose messages are texts: the parts become one, as the collator joins them.
FLATTENED = """{{%- set asked.images = [] -%}}
{{%- for message in messages -%}}
{{%- if message.content is string -%}}{{%- set asked.images = asked.images + [message] -%}}{{%- else -%}}
{{%- set asked.texts = [] -%}}
{{%- for part in message.content -%}}
{{%- set asked.texts = asked.texts + [{token} if part.type == 'image' else part.text] -%}}
{{%- endfor -%}}
{{%- set asked.images = asked.images + [{{'role': message.role, 'content': asked.texts | join}}] -%}}
{{%- endif -%}}
{{%- endfor -%}}
{{%- set messages = asked.images -%}}
"""


def asking_template(processor: Any, embedding: Embedding, replace: Mapping[str, str]) -> str:
    """The processor's chat template with the embedding's instructions inside.

    Args:
        processor: Of the model.
        embedding: Its instructions; a side without one is read as it is given.
        replace: What stands in the place of instructions, such as the tokens of a soft prompt.

    Raises:
        ValueError: If the processor has no chat template.
    """
    renderer = ChatRenderer(processor)
    if renderer.template is None:
        raise ValueError(
            f"{type(processor).__name__} has no chat template, in which the embedding's instructions could stand: "
            "use mllm_align.encoding.Encoder"
        )
    prompts = {side: embedding.features[side].prompt for side in ("image", "text")}
    told = {side: "none" if text is None else _literal(replace.get(text, text)) for side, text in prompts.items()}
    flattened = "" if renderer.takes_parts else FLATTENED.format(token=_literal(renderer.image_token))
    return ASKING.format(**told, flattened=flattened) + renderer.template


def check_tokens(
    processor: Any, asking: Any, family: Family, embedding: Embedding, replace: Mapping[str, str]
) -> None:
    """Refuses where the asking processor makes other tokens of an image or a text than training reads.

    Args:
        processor: The model's own.
        asking: The same with the asking template.
        family: Of the model.
        embedding: What is read.
        replace: As `asking_template`.

    Raises:
        ValueError: Naming the side.
    """
    picture = Image.linear_gradient("L").resize((70, 50)).convert("RGB")
    examples: dict[str, list[dict[str, Any]]] = {
        "image": [{"type": "image", "image": picture}],
        "text": [{"type": "text", "text": "Two dogs, on a beach\nat night."}],
    }
    for side, parts in examples.items():
        if embedding.features[side].column == "prompt":
            continue
        given = [picture] if side == "image" else [parts[0]["text"]]
        reading = (images_to_read if side == "image" else texts_to_read)(embedding, given)
        ours = _read(processor, family, reading.rows[0], reading.feature, replace)
        chat = [{"role": "user", "content": parts}]
        try:
            theirs = asking.apply_chat_template([chat], tokenize=True, return_dict=True, return_tensors="pt")
        except ValueError as error:
            raise ValueError(
                f"{type(processor).__name__} does not take the {side} side alone ({error}): use "
                "mllm_align.encoding.Encoder"
            ) from None
        if not torch.equal(ours, theirs["input_ids"][0]):
            raise ValueError(
                f"{type(processor).__name__} makes other tokens of the {side} side than training reads, which stock "
                "modules cannot mend: use mllm_align.encoding.Encoder"
            )


def _read(
    processor: Any, family: Family, row: Mapping[str, Any], feature: Feature, replace: Mapping[str, str]
) -> torch.Tensor:
    needs = Needs(features=(feature,))
    make = AlignCollator(processor, lambda source: needs, family.image_keys, family.token_keys, replace=replace)
    return make.collate([parse_row(row)]).prefixes[0].input_ids


def _literal(text: str) -> str:
    """A text as a template writes it."""
    escaped = text.encode("unicode_escape").decode("ascii").replace("'", "\\'")
    return f"'{escaped}'"
