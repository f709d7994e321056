"""Several images in a prompt of a model with a mixer: each is mixed with what its own pixels show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mixed import mixed_tiny, shake, tokens_of
from mllm_align.families import family_of, inner
from mllm_align.families.base import EXTRA_PIXELS, image_entries
from tiny_encoders import save_encoder

INSERTED: dict[str, Any] = {"residual": True, "llm_layers": 1, "depth": 1}
SIZES = ((56, 84), (84, 56), (56, 56))


@pytest.mark.parametrize(
    ("family", "kind", "pixels", "options"),
    [
        ("qwen2_5_vl", "concat", "shared", {}),
        ("qwen2_5_vl", "sva", "shared", INSERTED),
        ("gemma3", "interleave", "own", {}),
    ],
)
@torch.no_grad()
def test_each_image_is_mixed_by_itself(family: str, kind: str, pixels: str, options: Any, tmp_path: Path) -> None:
    """Also in a batch with a prompt of another number of images, and read in chunks."""
    spec = {"model": str(save_encoder("dinov2", tmp_path)), "pixels": pixels}
    model, processor, mixed = mixed_tiny(family, kind, spec, **options)
    shake(mixed)
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in SIZES]
    token = processor.image_token
    texts = [f"{token}What is it?{token}And left of it?", f"{token}Is it red?"]

    def prompt(number: int, *own: Image.Image) -> dict[str, Tensor]:
        return dict(processor(text=[texts[number]], images=[list(own)], return_tensors="pt"))

    given = processor(text=texts, images=[pictures[:2], pictures[2:]], padding=True, return_tensors="pt")
    inputs = {key: value for key, value in given.items() if key != "labels"}
    keys = [key for key in (*family_of(model).image_keys, EXTRA_PIXELS) if key in inputs]
    together = list(image_entries(inner(model).get_image_features(**{key: inputs[key] for key in keys})))
    assert len(together) == 3
    for found, picture in zip(together, pictures, strict=True):
        assert torch.equal(found, tokens_of(model, processor, picture))
    assert not torch.allclose(together[0].mean(dim=0), together[1].mean(dim=0), atol=1e-2)

    unwanted = [model.config.image_token_id]
    how: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "suppress_tokens": unwanted}
    answers = model.generate(**inputs, **how)[:, -4:]
    alone = prompt(0, *pictures[:2])
    for number, own in enumerate((alone, prompt(1, pictures[2]))):
        assert torch.equal(model.generate(**own, **how)[:, -4:], answers[number : number + 1])
    swapped = prompt(0, pictures[1], pictures[0])
    assert (model(**alone).logits[:, -1] - model(**swapped).logits[:, -1]).abs().max() > 1e-2
    # Gemma's tokens of an image see one another, which chunks that cut it in two cannot, with or without a mixer.
    where = (alone["input_ids"][0] == model.config.image_token_id).nonzero().flatten().tolist()
    second = next(place for place in where if place - 1 not in where and place != where[0])
    for chunk in (second, *((7,) if family != "gemma3" else ())):
        assert torch.equal(model.generate(**alone, **how, prefill_chunk_size=chunk)[:, -4:], answers[:1])
