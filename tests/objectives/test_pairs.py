"""The two sides of a contrast of whole images: what is measured, heads, and vectors in order of row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mllm_align.contract import Feature, Ragged, Signals
from mllm_align.objectives.pairs import Pairs

WIDTH = 4
ASKED: dict[str, Any] = {"image_prompt": "See:", "text_prompt": "Read:"}


def signals(pairs: Pairs, values: list[torch.Tensor], rows: list[list[int]], size: int, slow: bool = False) -> Signals:
    names = [f"slow {feature.name}" if slow else feature.name for feature in pairs.features]
    features = {name: Ragged(own, torch.tensor(of)) for name, own, of in zip(names, values, rows, strict=True)}
    return Signals({}, {}, features=features, sources=("a",) * size)


def test_what_is_measured() -> None:
    assert Pairs("Own").features == (
        Feature("image:image", "projector", "image"),
        Feature("text:chosen", "text", "chosen", pooling="last"),
    )
    options: dict[str, Any] = {"text": "caption", "pooling": "mean", "layer": 0.5, "negatives": True}
    assert Pairs("Own", **ASKED, **options).features == (
        Feature("image:image mean layer 0.5 'See:'", "embedding", "image", 0.5, "mean", prompt="See:"),
        Feature("text:caption mean layer 0.5 'Read:'", "embedding", "caption", 0.5, "mean", prompt="Read:"),
        Feature(
            "text:negatives mean layer 0.5 'Read:'",
            "embedding",
            "negatives",
            0.5,
            "mean",
            prompt="Read:",
            several=True,
        ),
    )
    whole = Pairs("Own", image="prompt", text="rejected", pooling="query").features
    asked = Pairs("Own", image="contrast_image", text="prompt", image_prompt="See:").features
    assert [(each.source, each.column, each.prompt) for each in asked] == [
        ("embedding", "contrast_image", "See:"),
        ("embedding", "prompt", None),
    ]
    assert [(each.source, each.column, each.prompt, each.pooling) for each in whole] == [
        ("embedding", "prompt", None, "tokens"),
        ("text", "rejected", None, "tokens"),
    ]


def test_vectors_are_in_order_of_row() -> None:
    pairs = Pairs("Own", **ASKED, negatives=True)
    images, texts, false = torch.randn(3, WIDTH), torch.randn(2, WIDTH), torch.randn(3, WIDTH)
    found = pairs(signals(pairs, [images, texts, false], [[3, 0, 1], [1, 2], [0, 1, 1]], 4))
    assert found is not None
    torch.testing.assert_close(found.images, torch.stack([images[1], images[2], torch.zeros(WIDTH), images[0]]))
    torch.testing.assert_close(found.texts[1:3], texts)
    assert not found.texts[[0, 3]].any()
    assert (found.present.tolist(), found.anchors.tolist()) == ([False, True, False, False], [1])
    torch.testing.assert_close(found.negatives, false)
    assert found.owner.tolist() == [0, 1, 1]
    for dimension in (None, 2):
        unit = found.at(dimension)
        for got, given in ((unit.images, found.images), (unit.texts, found.texts), (unit.negatives, found.negatives)):
            kept = given[:, :dimension]
            torch.testing.assert_close(got, kept / kept.norm(dim=1, keepdim=True).clamp(min=1e-12))


def test_one_of_several_texts_is_not_taken_in_silence() -> None:
    pairs = Pairs("Own", **ASKED, text="caption")
    given = signals(pairs, [torch.randn(2, WIDTH), torch.randn(3, WIDTH)], [[0, 1], [0, 1, 1]], 2)
    with pytest.raises(ValueError, match="Own: row 1 of the batch has 2 texts in column 'caption', and one of each"):
        pairs(given)
    with pytest.raises(ValueError, match=r"row 1 of the batch \('b'\) has 2 texts"):
        pairs(replace(given, row_ids=("a", "b")))


def test_heads_bring_both_sides_to_one_width() -> None:
    pairs = Pairs("Own", **ASKED, dim=2, negatives=True)
    widths = dict(zip([feature.name for feature in pairs.features], (3, WIDTH, WIDTH), strict=True))
    values = [torch.randn(2, width, dtype=torch.bfloat16) for width in widths.values()]
    given = signals(pairs, values, [[0, 1]] * 3, 2)
    with pytest.raises(ValueError, match="Own: its heads are not made: call set_widths"):
        pairs(given)
    pairs.set_widths(widths)
    heads = dict(pairs.heads)
    pairs.set_widths(widths)
    assert dict(pairs.heads) == heads
    found = pairs(given)
    assert found is not None
    sides = ((found.images, "image"), (found.texts, "text"), (found.negatives, "text"))
    for (got, side), value in zip(sides, values, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, value.float() @ heads[side].projection.weight.T)
    assert pairs.embedding.heads == heads
    assert pairs.embedding.features == pairs.sides


@pytest.mark.parametrize("dim", [None, 2])
def test_a_query_pools_the_tokens_of_each_row(dim: int | None) -> None:
    torch.manual_seed(0)
    pairs = Pairs("Own", pooling="query", dim=dim)
    pairs.set_widths({feature.name: WIDTH for feature in pairs.features})
    assert set(pairs.heads) == ({"image", "text"} if dim else {"text"})
    images, tokens = torch.randn(2, WIDTH), torch.randn(5, WIDTH)
    found = pairs(signals(pairs, [images, tokens], [[0, 1], [1, 0, 1, 1, 0]], 2))
    assert found is not None
    for row, own in enumerate(([1, 4], [0, 2, 3])):
        torch.testing.assert_close(found.texts[row], pairs.heads["text"](tokens[own][None])[0])
    assert found.negatives.shape == (0, dim or WIDTH)


def test_batches_without_a_side_have_nothing_to_compare() -> None:
    for pooling in ("last", "query"):
        pairs = Pairs("Own", pooling=pooling)
        pairs.set_widths({feature.name: WIDTH for feature in pairs.features})
        values = torch.randn(2, WIDTH)
        assert pairs(Signals({}, {}, sources=("a",))) is None
        assert pairs(signals(pairs, [values, values[:0]], [[0, 1], []], 2)) is None
        assert pairs(signals(pairs, [values[:0], values], [[], [0, 1]], 2)) is None
    with pytest.raises(ValueError, match="Own: the signals do not tell how many rows there are: give sources"):
        pairs(signals(pairs, [values, values], [[0, 1]] * 2, 0))


def test_a_slower_models_features_are_read_by_their_own_names() -> None:
    pairs = Pairs("Own", **ASKED)
    values = torch.randn(2, WIDTH)
    given = signals(pairs, [values, values], [[0, 1], [1, 0]], 2, slow=True)
    assert pairs(given) is None
    found = pairs(given, slow=True)
    assert found is not None
    torch.testing.assert_close(found.texts, values.flip(0))


def test_dimensions_that_are_not_there() -> None:
    pairs = Pairs("Own", dimensions=(2, 8))
    assert pairs.embedding.dimensions == (2, 8)
    with pytest.raises(ValueError, match="Own: dimensions go up to 8, the vectors to 4"):
        pairs.set_widths({feature.name: WIDTH for feature in pairs.features})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "chosen"}, "Own: image must be 'image' or 'contrast_image' or 'prompt', got 'chosen'"),
        ({"text": "image"}, "Own: text must be a column of texts, got 'image'"),
        (
            {"text": "caption"},
            "Own: column 'caption' is no response, it is read before an instruction: set text_prompt",
        ),
        ({"pooling": "first"}, "Own: pooling must be one of last, mean, query, got 'first'"),
        ({"image": "prompt", "image_prompt": "See:"}, "leave image_prompt out"),
        ({"text": "prompt", "text_prompt": "Read:"}, "leave text_prompt out"),
        (
            {"text": "prompt"},
            "Own: the row's own prompt shows its images, so as a text it is compared with 'contrast_",
        ),
        ({"image": "prompt", "text": "prompt"}, r"set image to that, or text to another column \(image is 'prompt'\)"),
        ({"negatives": True}, "Own: negatives are read before an instruction: give text_prompt"),
        ({**ASKED, "negatives": True, "pooling": "query"}, "Own: pooling 'query' takes one text a row"),
        ({"dim": True}, "Own: dim must be a whole number above 0, or nothing for no heads, got True"),
        ({"dimensions": (4, 2)}, "Own: dimensions must be whole numbers above 0 that rise, got"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pairs("Own", **options)
