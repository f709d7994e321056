"""SugarCrepe++ on the world: truth by the scenes, both tasks as loops, constant, perfect and random vectors."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from caption_truth import claims_of, is_true
from eval_encoders import Constant, Drawn, Told
from mllm_align.data.world import SMALL, render, scenes, split_of
from mllm_align.demo.base_model import vocabulary
from mllm_align_eval.baselines import baselines
from mllm_align_eval.benchmarks.world_sugarcrepe_pp import KINDS, WORLD_SUGARCREPE_PP, world_plus_items
from mllm_align_eval.run import benchmark_items
from mllm_align_eval.runner import is_askable
from mllm_align_eval.scoring import measures_of
from mllm_align_eval.similarity import loaded, similarity_rows

EACH = 24
NAME = "world_sugarcrepe_pp"


@pytest.fixture(scope="module")
def items():
    return world_plus_items(EACH)


@pytest.fixture(scope="module")
def known():
    return {render(scene).tobytes(): scene for scene in scenes("test_in_distribution", 600, 0, "balanced")}


def triplets(items):
    """Kind, picture, both true captions and the false one."""
    seen = [item for item in items if item.pictures]
    for one, two in zip(seen[::2], seen[1::2], strict=True):
        yield one.split, one.pictures[0], one.choices[0], two.choices[0], one.choices[1]


def values(items, encoder):
    found = measures_of(WORLD_SUGARCREPE_PP, items, similarity_rows(encoder, items), "strict")
    return {key: measure.metric.value() for key, measure in found.items()}


def test_the_scene_tells_what_is_true(items, known):
    assert Counter(kind for kind, *_ in triplets(items)) == dict.fromkeys(KINDS, EACH)
    for _, picture, first, second, false in triplets(items):
        scene = known[picture.load().tobytes()]
        assert split_of(scene) == "test_in_distribution"
        assert is_true(first, scene)
        assert is_true(second, scene)
        assert not is_true(false, scene)
        assert claims_of(first) == claims_of(second)


def test_false_captions_are_of_their_kind_and_nearer_in_words(items):
    for kind, _, first, second, false in triplets(items):
        changed = Counter(first.split()) - Counter(false.split())
        if kind.startswith("swap"):
            assert not changed
            assert first != false
        else:
            (word,) = changed
            fits = {"attribute": (*SMALL.colours, *SMALL.sizes), "object": SMALL.shapes, "relation": ("left", "right")}
            assert word in fits[kind.removeprefix("replace_")]
        assert len(first.split()) == len(false.split())
        order = [[word for word in text.split() if word in SMALL.shapes] for text in (first, second)]
        assert order[0] == order[1][::-1]
        in_place = [sum(a == b for a, b in zip(first.split(), text.split(), strict=False)) for text in (second, false)]
        assert in_place[0] < in_place[1]


def test_either_form_is_as_often_that_of_the_false_caption(items):
    plain = Counter((kind, false.startswith("a ")) for kind, _, _, _, false in triplets(items))
    assert plain == dict.fromkeys([(kind, form) for kind in KINDS for form in (True, False)], EACH // 2)
    for _, _, first, second, false in triplets(items):
        assert first.startswith("a ") == false.startswith("a ") != second.startswith("a ")


def test_rows_are_those_of_the_published_benchmark(items):
    assert len(items) == len({item.id for item in items}) == 4 * EACH * len(KINDS)
    first = [item for item in items if item.id.startswith(f"{NAME}/swap_object/3/")]
    assert [item.kind for item in first] == ["caption", "caption2", "text", "text2"]
    one, two, text, text2 = first
    assert (text.prompt, text.choices) == (one.choices[0], two.choices)
    assert (text2.prompt, text2.choices) == (two.choices[0], one.choices)
    assert {item.cluster for item in first} == {one.pictures[0].name}
    assert [is_askable(item, "logprob", "right") for item in first] == [True, True, False, False]


def test_constant_perfect_and_random_vectors(items, known):
    constant = values(items, Constant())
    assert {value for key, value in constant.items() if not key.endswith("/tied")} == {0}
    assert {value for key, value in constant.items() if key.endswith("/tied")} == {1}
    said = {claim for item in items for text in item.choices for claim in claims_of(text)}
    places = {claim: place for place, claim in enumerate(sorted(said))}

    def told(claims):
        return np.isin(np.arange(len(places)), [places[claim] for claim in claims])

    perfect = Told(
        lambda picture: told([c for c in places if is_true_claim(c, known[loaded(picture).tobytes()])]),
        lambda text: told(claims_of(text)),
    )
    found = values(items, perfect)
    assert {value for key, value in found.items() if not key.endswith("/tied")} == {1}
    random = [values(items, Drawn(32, seed)) for seed in range(4)]
    chance = baselines(items, {NAME: WORLD_SUGARCREPE_PP})["chance"]
    for key in (f"{NAME}/itt_acc_mean5", f"{NAME}/tot_acc_mean5"):
        assert chance[key] == pytest.approx(1 / 3)
        assert np.mean([each[key] for each in random]) == pytest.approx(1 / 3, abs=4 * np.sqrt(2 / 9 / (4 * 5 * EACH)))
    assert chance.keys() >= {key for key in random[0] if not key.endswith("/tied")}


def is_true_claim(claim, scene):
    kind, shape, value = claim
    item = scene.find(shape)
    if item is None:
        return False
    return kind == "existence" or value == (scene.side(item) if kind == "side" else getattr(item, kind))


def test_a_bag_of_words_finds_no_exchange_in_texts(items):
    """The false caption has the words of the first true one, and the second true one has others."""
    words = sorted({word for item in items for text in item.choices for word in text.split()})
    bag = Told(lambda picture: np.ones(len(words)), lambda text: [text.split().count(word) for word in words])
    found = values(items, bag)
    assert [found[f"{NAME}/{kind}/tot_acc"] for kind in ("swap_attribute", "swap_object")] == [0, 0]


def test_the_base_model_knows_every_word(items):
    words = {word for item in items for text in (item.prompt, *item.choices) for word in text.lower().split()}
    assert {word.rstrip(".") for word in words} <= set(vocabulary())


def test_it_is_read_without_files():
    items = benchmark_items(NAME)
    assert len(items) == 4 * 128 * 5
    assert {item.prompt for item in items if item.pictures} == {"Describe the picture."}
