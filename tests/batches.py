"""Batches built straight from a processor, and what the plain model says of them: the engine's reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mllm_align.contract import Batch, Branch, Prefix, View
from mllm_align.families import family_of

QUESTIONS = ("What is the colour of the circle?", "Is the small star left of the square in the picture?", "How many?")


def prompt_inputs(
    processor: Any, question: str, images: Sequence[Any], *, together: bool = False
) -> dict[str, Tensor]:
    """The processor's tensors for one user turn with its images first.

    `together` tells the processor that they are one prompt's, which LLaVA-OneVision's does not know of a flat list.
    """
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    bos = processor.tokenizer.bos_token
    doubled = bos is not None and text.startswith(bos)
    given = [list(images)] if together and images else images
    return processed(processor, text, given, add_special_tokens=not doubled)


def processed(processor: Any, text: str, images: Sequence[Any], **kwargs: Any) -> dict[str, Tensor]:
    """The processor's tensors of a rendered prompt and its images.

    PaliGemma's refuses a prompt without an image: it gets one, whose tokens are then taken out.
    """
    needs_one = not images and "PaliGemma" in type(processor).__name__
    shown = [Image.new("RGB", (8, 8))] if needs_one else list(images)
    given = {"images": shown} if shown else {}
    whole = processor(text=[processor.image_token * needs_one + text], return_tensors="pt", **given, **kwargs)
    whole.pop("labels", None)
    if not needs_one:
        return dict(whole)
    kept = whole["input_ids"][0] != processor.image_token_id
    return {key: value[:, kept] for key, value in whole.items() if key != "pixel_values"}


def image_tensors(model: Any, processor: Any, image: Any) -> dict[str, Tensor]:
    """The per-image tensors of one picture."""
    inputs = prompt_inputs(processor, "?", [image])
    return {key: inputs[key] for key in family_of(model).image_keys if key in inputs}


def make_batch(
    model: Any,
    processor: Any,
    pictures: Sequence[Any],
    layouts: Sequence[tuple[tuple[int, ...], Sequence[int]]],
    *,
    rows: int = 2,
    reference_rows: Sequence[bool] | None = None,
) -> Batch:
    """One prefix per layout `(images, response lengths)`; every response is a view of its own name.

    Prefix number p belongs to row p modulo `rows`, asks question p, and its k-th response has View(str(p), str(k)).
    """
    family = family_of(model)
    generator = torch.Generator().manual_seed(7)
    prefixes, branches = [], []
    for number, (images, lengths) in enumerate(layouts):
        inputs = prompt_inputs(processor, QUESTIONS[number % len(QUESTIONS)], [pictures[i] for i in images])
        extras = {key: inputs[key][0] for key in family.token_keys if key in inputs}
        prefixes.append(Prefix(inputs["input_ids"][0], images, extras))
        for response, length in enumerate(lengths):
            ids = torch.randint(len(QUESTIONS) + 40, 300, (length,), generator=generator)
            branches.append(Branch(number, number % rows, View(str(number), str(response)), ids))
    return Batch(
        sources=("default",) * rows,
        row_ids=tuple(map(str, range(rows))),
        images=tuple(image_tensors(model, processor, picture) for picture in pictures),
        prefixes=tuple(prefixes),
        branches=tuple(branches),
        reference_rows=tuple(reference_rows or (True,) * rows),
    )


def plain_logps(
    model: Any, processor: Any, pictures: Sequence[Any], batch: Batch, branch: Branch, question: str
) -> Tensor:
    """(R,) log-probabilities of a branch by one plain call `model(**processor output)` with the pixels in it."""
    prefix = batch.prefixes[branch.prefix]
    inputs = prompt_inputs(processor, question, [pictures[i] for i in prefix.images])
    return plain_call(model, inputs, branch.token_ids)[0]


def plain_call(model: Any, prompt: dict[str, Tensor], token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """(R,) log-probabilities of a response behind a prompt, and the (R, d) last hidden states that predict it."""
    count = token_ids.numel()
    family = family_of(model)
    inputs = dict(prompt)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], token_ids[None]], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    for key in family.token_keys:
        if key in inputs:
            value = family.response_values.get(key, 0)
            inputs[key] = torch.nn.functional.pad(inputs[key], (0, count), value=value)
    output = model(**inputs, output_hidden_states=True)
    logps = output.logits[0, -count - 1 : -1].float().log_softmax(-1)
    return logps.gather(1, token_ids[:, None]).squeeze(1), output.hidden_states[-1][0, -count - 1 : -1]
