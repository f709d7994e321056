"""Batches built straight from a processor, and what the plain model says of them: the engine's reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mllm_align.contract import Batch, Branch, Prefix, View
from mllm_align.families import family_of

QUESTIONS = ("What is the colour of the circle?", "Is the small star left of the square in the picture?", "How many?")


def prompt_inputs(processor: Any, question: str, images: Sequence[Any]) -> dict[str, Tensor]:
    """The processor's tensors for one user turn with its images first."""
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    given = {"images": list(images)} if images else {}
    bos = processor.tokenizer.bos_token
    doubled = bos is not None and text.startswith(bos)
    return dict(processor(text=text, return_tensors="pt", add_special_tokens=not doubled, **given))


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
    inputs["input_ids"] = torch.cat([inputs["input_ids"], branch.token_ids[None]], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    for key in family_of(model).token_keys:
        if key in inputs:
            inputs[key] = torch.nn.functional.pad(inputs[key], (0, branch.token_ids.numel()))
    logits = model(**inputs).logits[0].float()
    count = branch.token_ids.numel()
    return logits[-count - 1 : -1].log_softmax(-1).gather(1, branch.token_ids[:, None]).squeeze(1)
