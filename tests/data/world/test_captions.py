"""Caption rows, the pool in which every caption has one picture, and hard negatives."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from caption_truth import is_true
from mllm_align.data.world import (
    SMALL,
    Scene,
    caption,
    caption_rows,
    hard_negative_items,
    iter_scenes,
    render,
    retrieval_pool,
    scenes,
    split_of,
)
from mllm_align.data.world.captions import IMAGE_INSTRUCTION, TEXT_INSTRUCTION
from mllm_align.data.world.statements import NEGATIVE_KINDS
from mllm_align.models import load_processor

Row = dict[str, Any]


def scenes_by_picture(split: str, count: int, seed: int = 0) -> dict[bytes, Scene]:
    """Scenes of a split by the pixels that they give."""
    return {render(scene).tobytes(): scene for scene in scenes(split, count, seed, "balanced")}


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return caption_rows(1000)


@pytest.fixture(scope="module")
def items() -> list[Row]:
    return hard_negative_items(100)


def test_rows_have_the_canonical_columns(rows: list[Row]) -> None:
    assert list(rows[0]) == ["id", "image", "prompt", "caption", "chosen", "positives", "negatives"]
    assert len({row["id"] for row in rows}) == len({row["image"].tobytes() for row in rows}) == len(rows)
    assert {row["prompt"] for row in rows} == {IMAGE_INSTRUCTION}
    assert [row["negatives"] for row in rows[:20]] == [row["negatives"] for row in caption_rows(20)]
    assert [row["caption"] for row in rows[:20]] != [row["caption"] for row in caption_rows(20, seed=1)]


def test_what_is_said_of_a_picture_is_true_and_negatives_are_false(rows: list[Row]) -> None:
    stream = iter_scenes("train", 0, "balanced")
    for row in rows:
        scene = next(stream)
        assert row["image"].tobytes() == render(scene).tobytes()
        assert row["chosen"] == caption(scene)
        assert all(is_true(text, scene) for text in (row["caption"], *row["positives"]))
        assert not any(is_true(text, scene) for text in row["negatives"])
        assert len(set(row["negatives"])) == 3
        assert row["caption"] not in row["positives"]


def test_short_captions_stay_short_and_are_as_long_as_negatives(rows: list[Row]) -> None:
    lengths = Counter(len(row["caption"].replace(".", " .").split()) for row in rows)
    assert max(lengths) < 30
    # Texts of two and three objects are as often true, and none has more: length does not tell a false one.
    short = sum("." not in row["caption"] and row["caption"].count(" on the ") == 2 for row in rows)
    assert 0.3 < short / len(rows) < 0.5
    assert max(text.count(" on the ") for row in rows for text in row["negatives"]) == 3


def test_captions_are_seldom_true_of_another_picture(rows: list[Row]) -> None:
    found = scenes("train", 300, 0, "balanced")
    true = sum(is_true(row["caption"], scene) for row in rows[:300] for scene in found)
    # Of its own, and of about one of 1,400 others.
    assert 300 <= true < 300 + 300 * 299 / 500


def test_combinations_held_out_of_training_are_in_no_text(rows: list[Row]) -> None:
    held_out = {
        f"{colour} {shape}" for shape in SMALL.shapes for colour in SMALL.colours if SMALL.held_out(shape, colour)
    }
    texts = [text for row in rows for text in (row["caption"], row["chosen"], *row["negatives"])]
    assert held_out
    assert not any(words in text for text in texts for words in held_out)
    tested = [text for row in caption_rows(200, split="pairs") for text in (row["caption"], *row["negatives"])]
    assert any(words in text for text in tested for words in held_out)


def pairs_of_words(text: str) -> Counter[tuple[str, str]]:
    return Counter(pairwise(text.split()))


def test_words_alone_do_not_tell_a_negative(items: list[Row]) -> None:
    """Of the kinds that add nothing: what neighbouring words are commoner in captions does not find them again."""
    pairs = [(row["caption"], row["negatives"][0]) for row in items if not row["kind"].startswith("add")]
    learnt, asked = pairs[::2], pairs[1::2]
    true, false = (sum((pairs_of_words(pair[side]) for pair in learnt), Counter()) for side in (0, 1))
    scores = [
        [sum(math.log((true[two] + 1) / (false[two] + 1)) for two in pairs_of_words(text)) for text in pair]
        for pair in asked
    ]
    right = sum(1.0 if first > second else 0.5 * (first == second) for first, second in scores)
    assert len(asked) == 300
    assert right / len(asked) == pytest.approx(0.5, abs=0.1)


def test_every_kind_has_its_items(items: list[Row]) -> None:
    assert Counter(row["kind"] for row in items) == dict.fromkeys(NEGATIVE_KINDS, 100)
    known = scenes_by_picture("test_in_distribution", 1500)
    assert len({row["image"].tobytes() for row in items}) == len(items)
    for row in items:
        scene = known[row["image"].tobytes()]
        (false,), (positive,) = row["negatives"], row["positives"]
        assert is_true(row["caption"], scene)
        assert is_true(positive, scene)
        assert not is_true(false, scene)
    with pytest.raises(ValueError, match="unknown kind of negative 'order'"):
        hard_negative_items(1, kinds=("order",))


def test_each_caption_of_a_pool_is_true_of_its_own_picture_alone() -> None:
    pool = retrieval_pool(256, seed=1)
    known = scenes_by_picture("test_in_distribution", 600, seed=1)
    shown = [known[row["image"].tobytes()] for row in pool]
    assert len({row["caption"] for row in pool}) == 256
    for place, row in enumerate(pool):
        for text in (row["caption"], *row["positives"], row["chosen"]):
            assert [other for other, scene in enumerate(shown) if is_true(text, scene)] == [place]


def test_a_pool_that_cannot_be_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"400 pictures cannot each have a caption of 1 objects of its own; \d+ could"
    ):
        retrieval_pool(400, num_objects=1)


def test_training_and_test_never_share_a_scene(rows: list[Row], items: list[Row]) -> None:
    tested = [*items, *retrieval_pool(50)]
    assert not {row["image"].tobytes() for row in rows} & {row["image"].tobytes() for row in tested}
    assert {split_of(scene) for scene in scenes("train", 1000, 0, "balanced")} == {"train"}
    assert {split_of(scene) for scene in scenes_by_picture("test_in_distribution", 50).values()} == {
        "test_in_distribution"
    }


def test_the_base_model_knows_every_word(rows: list[Row], items: list[Row]) -> None:
    tokenizer = load_processor("demo-base").tokenizer
    texts = {IMAGE_INSTRUCTION, TEXT_INSTRUCTION}
    texts |= {text for row in (*rows, *items) for text in (row["caption"], *row["positives"], *row["negatives"])}
    ids = tokenizer(sorted(texts), add_special_tokens=False)["input_ids"]
    assert not any(tokenizer.unk_token_id in each for each in ids)
    assert (
        max(len(own) for own in tokenizer([row["caption"] for row in rows], add_special_tokens=False)["input_ids"])
        < 30
    )
