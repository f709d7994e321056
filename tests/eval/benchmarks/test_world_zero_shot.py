"""Classes of the world: constant, perfect and random vectors, means of templates as a loop, words, chance."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from eval_encoders import Constant, Drawn, Told
from mllm_align.data.world import SMALL
from mllm_align.demo.base_model import vocabulary
from mllm_align_eval.baselines import baselines
from mllm_align_eval.benchmarks.world_zero_shot import TASKS, WORLD_ZERO_SHOT, class_items
from mllm_align_eval.run import benchmark_items
from mllm_align_eval.scoring import estimates, measures_of
from mllm_align_eval.similarity import loaded, similarity_rows
from world_pixels import only_object

WORDS = (*SMALL.shapes, *SMALL.colours)
CHANCE = {"shape": 1 / 6, "colour": 1 / 6, "shape_and_colour": 1 / 36}


@pytest.fixture(scope="module")
def items():
    return class_items()


def seen(picture):
    """One where a word is true of the picture, read from its pixels."""
    return np.isin(WORDS, only_object(loaded(picture))[:2])


def named(text):
    """One where a text has a word."""
    return np.isin(WORDS, text.split())


def values(items, encoder):
    found = measures_of(WORLD_ZERO_SHOT, items, similarity_rows(encoder, items), "strict")
    return {key: measure.metric.value() for key, measure in found.items()}


def test_every_answer_is_what_the_picture_shows(items):
    assert len(items) == len({item.id for item in items}) == 3 * 180
    for item in items:
        shape, colour, *_ = only_object(item.pictures[0].load())
        assert item.answer == {"shape": shape, "colour": colour, "shape_and_colour": f"{colour} {shape}"}[item.split]


def test_classes_are_balanced_and_pictures_are_clusters(items):
    for task, each in (("shape", 30), ("colour", 30), ("shape_and_colour", 5)):
        members = [item for item in items if item.split == task]
        assert Counter(item.answer for item in members) == dict.fromkeys(members[0].choices, each)
        assert len({item.cluster for item in members}) == len(members) == 180


def test_constant_perfect_and_blind_vectors(items):
    constant = values(items, Constant())
    assert {value for key, value in constant.items() if not key.endswith("/tied")} == {0}
    assert [constant[f"world_zero_shot/{task}/tied"] for task in TASKS] == [1, 1, 1]
    perfect = values(items, Told(seen, named))
    assert {value for key, value in perfect.items() if not key.endswith("/tied")} == {1}
    assert [perfect[f"world_zero_shot/{task}/tied"] for task in TASKS] == [0, 0, 0]
    # One that sees no colour tells shapes alone, and all colours are level to it.
    colour_blind = values(items, Told(lambda picture: seen(picture) * (np.arange(12) < 6), named))
    assert colour_blind["world_zero_shot/shape/top1_acc"] == 1
    assert colour_blind["world_zero_shot/shape_and_colour/top1_acc"] == 0
    assert colour_blind["world_zero_shot/shape_and_colour/tied"] == 1


def test_random_vectors_come_to_the_chance_that_is_printed(items):
    found = [values(items, Drawn(32, seed)) for seed in range(8)]
    chance = baselines(items, {WORLD_ZERO_SHOT.name: WORLD_ZERO_SHOT})["chance"]
    for task, one in CHANCE.items():
        for name, expected in (("top1_acc", one), ("macro_acc", one), ("top5_acc", 5 * one)):
            key = f"world_zero_shot/{task}/{name}"
            assert chance[key] == pytest.approx(expected)
            spread = np.sqrt(expected * (1 - expected) / (8 * 36))  # pictures of a class are not independent
            assert np.mean([each[key] for each in found]) == pytest.approx(expected, abs=4 * spread)
    assert chance["world_zero_shot/top1_acc_mean3"] == pytest.approx(sum(CHANCE.values()) / 3)
    assert chance.keys() >= {key for key in found[0] if not key.endswith("/tied")}


def test_metrics_are_those_of_a_loop(items):
    encoder, right, means = Drawn(8, seed=4), {}, {}
    for item in items:
        for name in item.choices:
            if (item.split, name) not in means:
                written = [text.replace("{}", name) for text in item.truth["templates"]]
                mean = np.mean([encoder.texts([text])[0] for text in written], axis=0)
                means[item.split, name] = mean / np.linalg.norm(mean)
        image = encoder.images([item.pictures[0]])[0].astype(float)
        scores = [image @ means[item.split, name] for name in item.choices]
        rank = sum(score >= scores[item.choices.index(item.answer)] for score in scores)
        right.setdefault(item.split, []).append((rank == 1, rank <= 5))
    found = values(items, encoder)
    for task in TASKS:
        one, five = np.mean(right[task], axis=0)
        assert found[f"world_zero_shot/{task}/top1_acc"] == pytest.approx(one)
        assert found[f"world_zero_shot/{task}/macro_acc"] == pytest.approx(one)
        assert found[f"world_zero_shot/{task}/top5_acc"] == pytest.approx(five)
    mean = np.mean([found[f"world_zero_shot/{task}/top1_acc"] for task in TASKS])
    assert found["world_zero_shot/top1_acc_mean3"] == pytest.approx(mean)


def test_intervals_are_of_pictures(items):
    found = estimates(measures_of(WORLD_ZERO_SHOT, items, similarity_rows(Drawn(8), items), "strict"))
    for key in ("world_zero_shot/top1_acc_mean3", "world_zero_shot/colour/macro_acc"):
        assert found[key].clusters == 180
        assert found[key].low < found[key].value < found[key].high


def test_the_base_model_knows_every_word(items):
    texts = {text.replace("{}", name) for item in items for name in item.choices for text in item.truth["templates"]}
    assert {word for text in texts for word in text.split()} <= set(vocabulary())
    # What a template adds is of the classes of another task, or of none, and every one of them is there.
    templates = {item.split: item.truth["templates"] for item in items}
    assert not any(set(text.split()) & set(WORDS) for text in templates["shape"])
    assert {word for text in templates["colour"] for word in text.split() if word in WORDS} == set(SMALL.shapes)


def test_it_is_read_without_files():
    assert len(benchmark_items("world_zero_shot")) == 540
