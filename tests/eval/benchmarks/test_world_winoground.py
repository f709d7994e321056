"""Winoground on the world: truth by the scenes, scores as loops; constant, perfect and random vectors."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from caption_truth import claims_of, is_true
from eval_encoders import Constant, Drawn, Told
from mllm_align.data.world import SMALL, render, split_of
from mllm_align.data.world.swapped import SWAP_KINDS, iter_swapped
from mllm_align.demo.base_model import vocabulary
from mllm_align_eval.baselines import baselines
from mllm_align_eval.benchmarks.world_winoground import WORLD_WINOGROUND, world_pair_items
from mllm_align_eval.run import benchmark_items
from mllm_align_eval.scoring import measures_of
from mllm_align_eval.similarity import loaded, similarity_rows

EACH = 40
NAME = "world_winoground"


@pytest.fixture(scope="module")
def pairs():
    return list(islice(iter_swapped(), EACH * len(SWAP_KINDS)))


@pytest.fixture(scope="module")
def items():
    return world_pair_items(EACH)


def values(items, encoder):
    found = measures_of(WORLD_WINOGROUND, items, similarity_rows(encoder, items), "strict")
    return {key: measure.metric.value() for key, measure in found.items()}


def test_each_caption_is_true_of_its_own_picture_alone(pairs):
    assert Counter(pair.kind for pair in pairs) == dict.fromkeys(SWAP_KINDS, EACH)
    for _, (first, second), said in pairs:
        one, two = (statement.text() for statement in said)
        assert split_of(first) == split_of(second) == "test_in_distribution"
        assert is_true(one, first)
        assert is_true(two, second)
        assert not is_true(one, second)
        assert not is_true(two, first)
        assert sorted(one.split()) == sorted(two.split())
    assert len({scene.content_hash for pair in pairs for scene in pair.scenes}) == 2 * len(pairs)


def test_pictures_differ_in_what_is_exchanged_alone(pairs):
    changes = Counter()
    for kind, (first, second), said in pairs:
        assert len(first.items) == len(second.items)
        assert (first.background, first.grid) == (second.background, second.grid)
        named = {each.shape for each in said[0].objects}
        others = [[item for item in scene.items if item.shape not in named] for scene in (first, second)]
        assert others[0] == others[1]
        cells = [sorted((item.row, item.column) for item in scene.items) for scene in (first, second)]
        assert cells[0] == cells[1]
        if kind == "swap_object":
            looks = [
                sorted((item.row, item.column, item.colour, item.size) for item in each.items)
                for each in (first, second)
            ]
            assert looks[0] == looks[1]
            continue
        own = [(first.get(shape), second.get(shape)) for shape in named]
        names = {name for name in ("colour", "size") for old, new in own if getattr(old, name) != getattr(new, name)}
        names |= {"side" for old, new in own if first.side(old) != second.side(new)}
        assert len(names) == 1
        changes[names.pop()] += 1
    assert set(changes) == {"colour", "size", "side"}


def test_scenes_of_other_splits_and_what_is_no_exchange():
    held = next(iter_swapped(split="validation"))
    assert {split_of(scene) for scene in held.scenes} == {"validation"}
    first, again, other = (next(iter_swapped(seed=seed)) for seed in (0, 0, 1))
    assert first == again != other
    for kinds in (["swap_object", "add_object"], []):
        with pytest.raises(ValueError, match=r"unknown kind of exchange .*; there are swap_object, swap_attribute"):
            next(iter_swapped(kinds))


def test_scores_are_those_of_a_loop(items):
    rows = similarity_rows(Drawn(16, 3), items)
    found = values(items, Drawn(16, 3))
    text = image = group = 0
    for one, two in zip(items[::2], items[1::2], strict=True):
        (a, b), (c, d) = rows[one.id], rows[two.id]
        text += a > b and d > c
        image += a > c and d > b
        group += a > b and d > c and a > c and d > b
    assert found[f"{NAME}/text"] == text / len(items) * 2
    assert found[f"{NAME}/image"] == image / len(items) * 2
    assert found[f"{NAME}/group"] == group / len(items) * 2
    assert 0 < text < EACH * 2


def test_constant_perfect_and_random_vectors(items, pairs):
    known = {render(scene).tobytes(): scene for pair in pairs for scene in pair.scenes}
    constant = values(items, Constant())
    assert {value for key, value in constant.items() if not key.endswith("/tied")} == {0}
    assert constant[f"{NAME}/pairs/tied"] == 1
    said = sorted({claim for item in items for text in item.choices for claim in claims_of(text)})

    def shown(picture):
        scene = known[loaded(picture).tobytes()]
        return [float(any(claim in claims_of(text) for text in true_of[scene.content_hash])) for claim in said]

    true_of = {
        scene.content_hash: [each.text()]
        for pair in pairs
        for scene, each in zip(pair.scenes, pair.statements, strict=True)
    }
    perfect = Told(shown, lambda text: [float(claim in claims_of(text)) for claim in said])
    assert {value for key, value in values(items, perfect).items() if not key.endswith("/tied")} == {1}
    random = [values(items, Drawn(32, seed)) for seed in range(8)]
    chance = baselines(items, {NAME: WORLD_WINOGROUND})["chance"]
    for key, share in (("text", 1 / 4), ("image", 1 / 4), ("group", 1 / 6)):
        assert chance[f"{NAME}/{key}"] == chance[f"{NAME}/swap_object/{key}"] == pytest.approx(share)
        spread = 4 * np.sqrt(share * (1 - share) / (8 * 2 * EACH))
        assert np.mean([each[f"{NAME}/{key}"] for each in random]) == pytest.approx(share, abs=spread)
    assert chance.keys() >= {key for key in random[0] if not key.endswith("/tied")}


def test_a_bag_of_words_gets_nothing(items):
    words = sorted({word for item in items for text in item.choices for word in text.split()})
    bag = Told(lambda picture: np.ones(len(words)), lambda text: [text.split().count(word) for word in words])
    found = values(items, bag)
    assert (found[f"{NAME}/text"], found[f"{NAME}/image"], found[f"{NAME}/pairs/tied"]) == (0, 0, 1)


def test_the_base_model_knows_every_word_and_it_is_read_without_files(items):
    words = {word for item in items for text in (item.prompt, *item.choices) for word in text.lower().split()}
    assert {word.rstrip(".") for word in words} <= set(vocabulary())
    assert {*SMALL.sizes} <= words
    read = benchmark_items(NAME)
    assert len(read) == len({item.id for item in read}) == 2 * 128 * 2
    assert {item.prompt for item in read} == {"Describe the picture."}
