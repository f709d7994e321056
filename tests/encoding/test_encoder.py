"""Vectors of an encoder against those of training, and against the plain model."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from batches import processed
from mllm_align.contract import Embedding, EmbeddingHead, Feature, Needs
from mllm_align.contract.embedding import IMAGE_PROMPT, TEXT_PROMPT
from mllm_align.data.collator import AlignCollator
from mllm_align.encoding import Encoded, Encoder
from mllm_align.families import family_of
from mllm_align.objectives.pairs import Compared, Pairs
from mllm_align.signals import measure
from tiny import tiny

FAMILIES = ("llava", "qwen2_5_vl", "idefics3", "gemma3")
TEXTS = ["a small red circle", "two stars", "a large white square, left of\nthe green star"]
PROMPTS = {"image_prompt": IMAGE_PROMPT, "text_prompt": TEXT_PROMPT}


def pairs_of(model: Any, **options: Any) -> Pairs:
    torch.manual_seed(3)
    pairs = Pairs("Test", **({"text": "caption", **PROMPTS} | options))
    pairs.set_widths({feature.name: model.config.get_text_config().hidden_size for feature in pairs.features})
    return pairs.eval()


def trained_vectors(
    model: Any, processor: Any, pairs: Pairs, rows: list[dict[str, Any]], *, apart: bool = True
) -> Compared:
    """What training compares of a batch; its sides measured apart, or in passes that may hold both."""
    family, needs = family_of(model), Needs(features=pairs.features)
    batch = AlignCollator(processor, lambda _: needs, family.image_keys, family.token_keys)(rows)["batch"]
    parts = [(feature,) for feature in pairs.features] if apart else [pairs.features]
    with torch.no_grad():
        found = []
        for features in parts:
            views = {feature.view for feature in features}
            kept = tuple(branch for branch in batch.branches if branch.view in views)
            found.append(measure(model, replace(batch, branches=kept), features=features, scored=())[0])
        told = {name: row for each in found for name, row in each.host_feature_rows.items()}
        features = {name: ragged for each in found for name, ragged in each.features.items()}
        compared = pairs(replace(found[0], features=features, host_feature_rows=told))
    assert compared is not None
    return compared


def rows_of(pictures: list[Any]) -> list[dict[str, Any]]:
    return [
        {"image": picture, "caption": text, "prompt": IMAGE_PROMPT}
        for picture, text in zip(pictures, TEXTS, strict=False)
    ]


@pytest.mark.parametrize("options", [{}, {"pooling": "mean", "dim": 24}, {"pooling": "query"}, {"layer": 1}])
@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_are_those_of_training(family: str, options: dict[str, Any], pictures: list[Any]) -> None:
    model, processor = tiny(family)
    pairs = pairs_of(model, **options)
    compared = trained_vectors(model, processor, pairs, rows_of(pictures))
    encoder = Encoder(model, processor, pairs.embedding)
    found = encoder.encode(pictures[:3], TEXTS, convert_to_numpy=False)
    assert isinstance(found, Encoded)
    assert torch.equal(found.images, compared.at().images)
    assert torch.equal(found.texts, compared.at().texts)
    together = trained_vectors(model, processor, pairs, rows_of(pictures), apart=False).at()
    torch.testing.assert_close(found.images, together.images, rtol=0, atol=2e-6)
    torch.testing.assert_close(found.texts, together.texts, rtol=0, atol=2e-6)
    raw = encoder.encode(texts=TEXTS, normalize=False)
    assert raw.dtype == np.float32
    assert np.array_equal(raw, compared.texts.numpy())
    whole = encoder.encode(rows=rows_of(pictures), side="text", convert_to_numpy=False)
    assert torch.equal(whole, found.texts)


@pytest.mark.parametrize("family", FAMILIES)
def test_zero_shot_is_the_plain_model_behind_the_prompts(family: str, pictures: list[Any]) -> None:
    model, processor = tiny(family)
    encoder = Encoder.zero_shot(model, processor, image_prompt="Name it.", text_prompt="Say it.")
    found = encoder.encode([pictures[0]], [TEXTS[0]])
    parts = {
        "images": ([{"type": "image"}, {"type": "text", "text": "Name it."}], [pictures[0]]),
        "texts": ([{"type": "text", "text": TEXTS[0] + "\nSay it."}], []),
    }
    for side, (content, images) in parts.items():
        chat = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        bos = processor.tokenizer.bos_token
        inputs = processed(processor, text, images, add_special_tokens=not (bos and text.startswith(bos)))
        with torch.no_grad():
            states = model(**inputs, output_hidden_states=True).hidden_states[-1]
        expected = F.normalize(states[:, -1].float(), dim=1).numpy()
        np.testing.assert_allclose(getattr(found, side), expected, atol=2e-6)


def test_batches_change_nothing_but_the_last_bits(pictures: list[Any]) -> None:
    encoder = Encoder.zero_shot(*tiny("qwen2_5_vl"))
    whole = encoder.encode(pictures, TEXTS)
    single = encoder.encode(pictures, TEXTS, batch_size=1)
    np.testing.assert_allclose(whole.images, single.images, atol=2e-6)
    np.testing.assert_allclose(whole.texts, single.texts, atol=2e-6)
    assert np.array_equal(whole.images, encoder.encode(pictures, batch_size=4))


def test_text_vectors_do_not_see_an_image(pictures: list[Any]) -> None:
    encoder = Encoder.zero_shot(*tiny("llava"))
    alone = encoder.encode(texts=TEXTS)
    for shown in ([pictures[0]], pictures[1:], [[pictures[0], pictures[3]]]):
        assert np.array_equal(encoder.encode(shown, TEXTS).texts, alone)
    rows = [{"image": each, "prompt": "?", "caption": text} for each, text in zip(pictures, TEXTS, strict=False)]
    assert np.array_equal(encoder.encode(rows=rows, side="text"), alone)


def test_images_as_they_may_be_given(pictures: list[Any], tmp_path: Path) -> None:
    encoder = Encoder.zero_shot(*tiny("llava"))
    pictures[0].save(tmp_path / "a.png")
    buffer = io.BytesIO()
    pictures[0].save(buffer, "PNG")
    given = [pictures[0], tmp_path / "a.png", str(tmp_path / "a.png"), buffer.getvalue(), np.array(pictures[0])]
    found = encoder.encode(given, batch_size=1)
    assert all(np.array_equal(each, found[0]) for each in found)
    two = encoder.encode([[pictures[0], pictures[1]], [pictures[1], pictures[0]], [pictures[0]]])
    np.testing.assert_allclose(two[2], found[0], atol=1e-6)
    assert abs(two[0] - two[1]).max() > 1e-3


def test_rows_of_a_data_set(pictures: list[Any], tmp_path: Path) -> None:
    for number, picture in enumerate(pictures[:3]):
        picture.save(tmp_path / f"{number}.png")
    rows = [row | {"image": str(tmp_path / f"{number}.png")} for number, row in enumerate(rows_of(pictures))]
    data, encoder = datasets.Dataset.from_list(rows), Encoder.zero_shot(*tiny("llava"))
    expected = encoder.encode(pictures[:3], TEXTS)
    assert np.array_equal(encoder.encode(rows=data, side="image"), expected.images)
    assert np.array_equal(encoder.encode(data["image"], data["caption"]).texts, expected.texts)


def test_whole_rows_are_read_as_they_are(pictures: list[Any]) -> None:
    encoder = Encoder.zero_shot(*tiny("qwen2_5_vl"))
    asked = [{"image": picture, "prompt": IMAGE_PROMPT} for picture in pictures]
    np.testing.assert_allclose(encoder.encode(rows=asked), encoder.encode(pictures), atol=2e-6)
    parts = [{"type": "text", "text": "First"}, {"type": "image"}, {"type": "text", "text": "then"}, {"type": "image"}]
    row = {"images": pictures[:2], "prompt": [{"role": "user", "content": parts}]}
    swapped = row | {"images": pictures[1::-1]}
    found = encoder.encode(rows=[row, swapped, {"prompt": "No image at all."}])
    assert found.shape == (3, 64)
    assert abs(found[0] - found[1]).max() > 1e-3


def test_an_embedding_of_rows_own_prompts(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    pairs = pairs_of(model, image="prompt", image_prompt=None, dim=16)
    rows = rows_of(pictures)
    compared = trained_vectors(model, processor, pairs, rows)
    encoder = Encoder(model, processor, pairs.embedding)
    assert torch.equal(encoder.encode(rows=rows, convert_to_numpy=False), compared.at().images)
    with pytest.raises(ValueError, match="images with prompts of their own"):
        encoder.encode(pictures)


def test_tokens_of_the_projector_and_responses(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    pairs = pairs_of(model, image_prompt=None, text_prompt=None, text="chosen")
    rows = [{**row, "chosen": row["caption"]} for row in rows_of(pictures)]
    compared = trained_vectors(model, processor, pairs, rows)
    encoder = Encoder(model, processor, pairs.embedding)
    assert torch.equal(encoder.encode(pictures[:3], convert_to_numpy=False), compared.at().images)
    assert torch.equal(encoder.encode(rows=rows, side="text", convert_to_numpy=False), compared.at().texts)
    with pytest.raises(ValueError, match=r"the response to a prompt, not alone.* rows with 'prompt' and 'chosen'"):
        encoder.encode(texts=TEXTS)
    with pytest.raises(ValueError, match="say side='image' or side='text'"):
        encoder.encode(rows=rows)


def test_leading_dimensions_are_of_unit_length() -> None:
    encoder = Encoder.zero_shot(*tiny("llava"))
    whole, short = encoder.encode(texts=TEXTS), encoder.encode(texts=TEXTS, dimensions=16)
    expected = whole[:, :16] / np.linalg.norm(whole[:, :16], axis=1, keepdims=True)
    np.testing.assert_allclose(short, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-6)
    for wrong in (0, 65, True, 1.5):
        with pytest.raises(ValueError, match="dimensions must be a whole number from 1 to 64"):
            encoder.encode(texts=TEXTS, dimensions=wrong)  # type: ignore[arg-type]


def test_similarity_is_the_cosine(pictures: list[Any]) -> None:
    encoder = Encoder.zero_shot(*tiny("llava"))
    found = encoder.encode(pictures, TEXTS)
    expected = [[float(np.dot(image, text)) for text in found.texts] for image in found.images]
    np.testing.assert_allclose(encoder.similarity(pictures, TEXTS), expected, atol=1e-6)


def test_nothing_to_encode_is_an_empty_table() -> None:
    model, processor = tiny("llava")
    assert Encoder.zero_shot(model, processor).encode(texts=[]).shape == (0, 64)
    assert Encoder(model, processor, pairs_of(model, dim=8).embedding).encode([]).shape == (0, 8)


def test_the_model_is_left_as_it_was(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    encoder = Encoder.zero_shot(model, processor)
    expected = encoder.encode(pictures)
    model.train()
    model.model.vision_tower.eval()
    assert np.array_equal(encoder.encode(pictures, progress=True), expected)
    assert model.training
    assert not model.model.vision_tower.training
    inputs = processed(processor, "USER: <image>\nWhat? ASSISTANT:", [pictures[0]])
    assert encoder.model.eval().generate(**inputs, max_new_tokens=3).shape[1] > inputs["input_ids"].shape[1]


def test_pixels_are_bounded_as_in_training(pictures: list[Any]) -> None:
    model, processor = tiny("qwen2_5_vl")
    embedding = Encoder.zero_shot(model, processor).embedding
    low = Encoder(model, processor, embedding, min_pixels=28 * 28, max_pixels=28 * 28 * 2)
    assert abs(low.encode(pictures) - Encoder(model, processor, embedding).encode(pictures)).max() > 1e-3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give images, texts, or both; or rows"),
        ({"texts": ["a"], "rows": [{"prompt": "a"}]}, "give images, texts, or both; or rows"),
        ({"texts": "a text"}, "texts must be a list, got str: put a single one in a list"),
        ({"images": "a.png"}, "images must be a list, got str"),
        ({"texts": ["a", " "]}, r"texts\[1\] is empty"),
        ({"texts": ["a", 3]}, r"texts\[1\] must be a text, not int"),
        ({"images": [[]]}, r"images\[0\] lists no image"),
        (
            {"images": [[Image.new("RGB", (8, 8)), "/nowhere/a.png"]]},
            r"^images\[0\]: there is no image file '/nowhere/a.png': correct the path, or leave it out$",
        ),
        ({"images": [Path("no.png")]}, r"images\[0\]: there is no image file 'no.png' below the working directory '/"),
        ({"images": [b"no image"]}, "row 0.*not an image"),
        ({"rows": ["a"]}, r"rows\[0\] is a str, not a row"),
        ({"rows": [{"prompt": "a"}], "side": "left"}, "side must be 'image', 'text' or nothing"),
        ({"texts": ["a"], "side": "text"}, "side belongs to rows"),
        ({"rows": [{"prompt": "a"}], "side": "text"}, "no column 'caption'"),
        ({"rows": [{"prompt": "a"}], "side": "image"}, "row 0 has nothing in column 'image'"),
        ({"rows": [{"prompt": "a", "caption": ["a", "b"]}], "side": "text"}, "holds 2 texts, of which"),
        ({"texts": ["a"], "batch_size": 0}, "batch_size must be a whole number above 0"),
    ],
)
def test_what_cannot_be_encoded(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Encoder.zero_shot(*tiny("llava")).encode(**given)


def test_what_cannot_be_an_encoder() -> None:
    model, processor = tiny("llava")
    with pytest.raises(ValueError, match="pooling must be 'last' or 'mean'"):
        Encoder.zero_shot(model, processor, pooling="query")
    with pytest.raises(
        ValueError, match="feature 'image': layer must be a whole number of decoder layers, or a share"
    ):
        Encoder.zero_shot(model, processor, layer="half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="similarity is of images and texts: give both"):
        Encoder.zero_shot(model, processor).similarity(None, TEXTS)
    image = Feature("i", "embedding", "image", None, "tokens", prompt="?")
    embedding = Embedding({"image": image, "text": image._replace(column="caption")}, {})
    with pytest.raises(ValueError, match="no head to pool them"):
        Encoder(model, processor, embedding).encode(texts=["a"])
    headed = Embedding(embedding.features, {"text": EmbeddingHead(64, query=True)})
    assert Encoder(model, processor, headed).encode(texts=["a"]).shape == (1, 64)
