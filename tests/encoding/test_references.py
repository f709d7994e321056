"""Vectors of rows with several named pictures: each name is read beside its picture, in whatever order they come."""

from __future__ import annotations

import re
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from batches import processed
from mllm_align.data.references import declare_references, reordered
from mllm_align.data.world import reference_rows
from mllm_align.encoding import Encoder
from mllm_align.models import load_model
from tiny import tiny

Row = dict[str, Any]
FAMILIES = ("demo-base", "qwen2_5_vl", "idefics3")


def loaded(family: str) -> tuple[Any, Any]:
    return load_model(family, device="cpu", dtype="float32") if family == "demo-base" else tiny(family)


def rendered(processor: Any, row: Row) -> str:
    return processor.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)


def by_hand(order: tuple[int, ...], row: Row) -> list[dict[str, Any]]:
    """The conversation that a row is to become, written part by part."""
    parts: list[dict[str, str]] = []
    for place in order:
        start = "\n" if parts else ""
        parts += [{"type": "text", "text": f"{start}{row['image_names'][place]} is "}, {"type": "image"}]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "\n" + row["prompt"]}]}]


@pytest.mark.parametrize("num_images", [2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_vector_is_the_models_state_behind_names_and_pictures(family: str, num_images: int) -> None:
    """In each order: what the plain model has behind the prompt that is written by hand."""
    model, processor = loaded(family)
    encoder = Encoder.zero_shot(model, processor)
    (row,) = reference_rows(1, seed=3, num_images=num_images, declared=False)
    orders = list(permutations(range(num_images)))
    found = encoder.encode(rows=[declare_references(reordered(row, order)) for order in orders])
    bos = processor.tokenizer.bos_token
    for order, vector in zip(orders, found, strict=True):
        chat = by_hand(order, row)
        text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        images = [row["images"][place] for place in order]
        inputs = processed(processor, text, images, add_special_tokens=not (bos and text.startswith(bos)))
        with torch.no_grad():
            states = model(**inputs, output_hidden_states=True).hidden_states[-1]
        np.testing.assert_allclose(vector, F.normalize(states[0, -1].float(), dim=0).numpy(), atol=5e-6)
    # The model reads from left to right, so that another order is another vector, and the way back the same one.
    assert all(abs(found[0] - other).max() > 1e-4 for other in found[1:])
    back = reordered(reordered(row, orders[-1]), [orders[-1].index(place) for place in range(num_images)])
    assert np.array_equal(
        encoder.encode(rows=[declare_references(back)]), encoder.encode(rows=[declare_references(row)])
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_names_follow_their_pictures_in_the_rendered_prompt(family: str) -> None:
    processor = loaded(family)[1]
    for row in reference_rows(4, num_images=3, declared=False):
        own = dict(zip(row["image_names"], (each.tobytes() for each in row["images"]), strict=True))
        for order in permutations(range(3)):
            asked = declare_references(reordered(row, order))
            text = rendered(processor, asked)
            assert text.count(processor.image_token) == 3
            # Before each picture its name is the last thing said.
            said = text.split(processor.image_token)[:3]
            names = [re.findall(r"picture \w+ is", part)[-1].removesuffix(" is") for part in said]
            assert {name: each.tobytes() for name, each in zip(names, asked["images"], strict=True)} == own
            assert names == [row["image_names"][place] for place in order]
            assert row["prompt"] in text.split(processor.image_token)[-1]


def test_a_name_beside_another_picture_is_another_vector() -> None:
    """The same pictures in the same order: names are read, not pictures alone."""
    encoder = Encoder.zero_shot(*loaded("demo-base"))
    (row,) = reference_rows(1, num_images=2, declared=False)
    other = row | {"image_names": row["image_names"][::-1]}
    first, second = encoder.encode(rows=[declare_references(row), declare_references(other)])
    assert abs(first - second).max() > 1e-4


def test_rows_of_different_numbers_of_pictures_go_together() -> None:
    encoder = Encoder.zero_shot(*loaded("demo-base"))
    two, three = reference_rows(2, num_images=2), reference_rows(2, num_images=3)
    single = declare_references({"image": Image.new("RGB", (64, 64), "white"), "prompt": "What is in [[image 0]]?"})
    rows = [two[0], three[0], single, three[1], two[1]]
    together = encoder.encode(rows=rows, batch_size=3)
    assert together.shape == (5, 128)
    np.testing.assert_allclose(together, np.concatenate([encoder.encode(rows=[row]) for row in rows]), atol=5e-6)
    assert len({vector.tobytes() for vector in together}) == 5
