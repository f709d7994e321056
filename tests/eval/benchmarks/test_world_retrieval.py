"""The world for encoders: what is asked is true of the scenes, chance, constant and perfect vectors."""

from __future__ import annotations

import numpy as np
import pytest

from eval_encoders import Constant, Drawn, Told
from mllm_align.data.world.statements import NEGATIVE_KINDS
from mllm_align_eval.benchmarks.world_retrieval import WORLD_NEGATIVES, WORLD_RETRIEVAL, negative_items, pool_items
from mllm_align_eval.run import benchmark_items
from mllm_align_eval.runner import is_askable
from mllm_align_eval.scoring import measures_of
from mllm_align_eval.similarity import similarity_rows

POOL, EACH = 64, 12


@pytest.fixture(scope="module")
def pool():
    return pool_items(POOL)


@pytest.fixture(scope="module")
def negatives():
    return negative_items(EACH)


def values(benchmark, items, encoder):
    found = measures_of(benchmark, items, similarity_rows(encoder, items), "strict")
    return {key: measure.metric.value() for key, measure in found.items()}


def test_a_pool_of_pictures_that_are_all_different(pool):
    images, texts = pool[:POOL], pool[POOL:]
    assert len({image.pictures[0].load().tobytes() for image in images}) == POOL
    assert len({text.prompt for text in texts}) == len(texts) == POOL
    assert [text.truth["targets"] for text in texts] == [(n,) for n in range(POOL)]
    assert len({item.id for item in pool}) == 2 * POOL
    assert all(image.pictures[0].load().size == (64, 64) for image in images)


def test_retrieval_of_constant_perfect_and_random_vectors(pool):
    constant = values(WORLD_RETRIEVAL, pool, Constant())
    assert constant["world_retrieval/r_mean"] == 0
    assert constant["world_retrieval/image_to_text/tied"] == constant["world_retrieval/text_to_image/tied"] == 1
    drawn, owner = Drawn(32), {item.prompt: item.cluster for item in pool[POOL:]}
    perfect = Told(lambda p: drawn.vector(p.name.encode()), lambda text: drawn.vector(owner[text].encode()))
    assert values(WORLD_RETRIEVAL, pool, perfect)["world_retrieval/r_mean"] == 1
    random = [values(WORLD_RETRIEVAL, pool, Drawn(32, seed)) for seed in range(8)]
    for way in ("image_to_text", "text_to_image"):
        for cut in (1, 5, 10):
            mean = np.mean([found[f"world_retrieval/{way}/r{cut}"] for found in random])
            assert mean == pytest.approx(cut / POOL, abs=4 * np.sqrt(cut / POOL / (8 * POOL)))


def test_hard_negatives(negatives):
    assert len(negatives) == len({item.id for item in negatives}) == 2 * EACH * len(NEGATIVE_KINDS)
    for one, two in zip(negatives[::2], negatives[1::2], strict=True):
        assert (one.split, one.cluster, one.choices[1]) == (two.split, two.cluster, two.choices[1])
        assert len({*one.choices, *two.choices}) == 3
        assert one.answer == one.choices[0]
    assert all(is_askable(item, "logprob", "right") for item in negatives)


def test_hard_negatives_of_constant_perfect_and_random_vectors(negatives):
    constant = values(WORLD_NEGATIVES, negatives, Constant())
    assert constant["world_negatives/acc_mean8"] == constant["world_negatives/itt_acc_mean8"] == 0
    assert [constant[f"world_negatives/{kind}/tied"] for kind in NEGATIVE_KINDS] == [1] * 8
    given = {item.id: [1.0, 0.0] for item in negatives}
    perfect = measures_of(WORLD_NEGATIVES, negatives, given, "strict")
    assert [perfect[f"world_negatives/{name}_mean8"].metric.value() for name in ("acc", "itt_acc")] == [1, 1]
    random = values(WORLD_NEGATIVES, negatives, Drawn(32))
    assert random["world_negatives/acc_mean8"] == pytest.approx(1 / 2, abs=0.2)
    assert random["world_negatives/itt_acc_mean8"] == pytest.approx(1 / 3, abs=0.2)


def test_means_by_way(negatives):
    found = values(WORLD_NEGATIVES, negatives, Drawn(8, 5))
    kinds = {
        "swap": ("swap_object", "swap_attribute"),
        "replace": ("replace_object", "replace_attribute", "replace_relation", "replace_count"),
        "add": ("add_object", "add_attribute"),
    }
    for measure in ("acc", "itt_acc"):
        for way, parts in kinds.items():
            mean = np.mean([found[f"world_negatives/{kind}/{measure}"] for kind in parts])
            assert found[f"world_negatives/{way}/{measure}"] == pytest.approx(mean)
        mean = np.mean([found[f"world_negatives/{kind}/{measure}"] for kind in NEGATIVE_KINDS])
        assert found[f"world_negatives/{measure}_mean8"] == pytest.approx(mean)


def test_both_are_read_without_files():
    pool, negatives = benchmark_items("world_retrieval"), benchmark_items("world_negatives")
    assert (len(pool), len(negatives)) == (2 * 256, 2 * 128 * 8)
    assert {item.prompt for item in negatives} == {"Describe the picture."}
