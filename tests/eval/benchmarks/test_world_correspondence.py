"""Correspondence in the rendered world: what is asked, and its metrics against a plain loop."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from mllm_align_eval.benchmarks import BENCHMARKS
from mllm_align_eval.benchmarks.world_correspondence import WORLD_CORRESPONDENCE, correspondence_items
from mllm_align_eval.items import check_items
from mllm_align_eval.run import benchmark_items
from mllm_align_eval.scoring import measures_of


@pytest.fixture(scope="module")
def items():
    return correspondence_items(40)


def test_two_questions_a_pair_of_pictures_with_two_answers(items):
    check_items(items)
    assert Counter(item.split for item in items) == {"easy": 80, "medium": 80, "hard": 80, "large": 80}
    for one, other in zip(items[::2], items[1::2], strict=True):
        assert one.pair == other.pair == one.cluster
        assert one.prompt == other.prompt
        assert one.answer != other.answer
        assert one.pictures[1].name == other.pictures[1].name
        first, second = (np.asarray(item.pictures[0].load(), int) for item in (one, other))
        assert np.abs(first - second).max() > 0
        assert one.choices[-1] == "no"


def test_metrics_are_those_of_a_loop(items):
    rng = random.Random(0)
    texts = {item.id: rng.choice([item.answer, "one", "no", f"{item.answer}.", ""]) for item in items}
    right = [texts[item.id].strip(".") == item.answer for item in items]
    chance = sum(1 / len(item.choices) for item in items) / len(items)
    found = measures_of(WORLD_CORRESPONDENCE, items, texts, "strict")
    accuracy = sum(right) / len(items)
    assert found["world_correspondence/acc"].metric.value() == pytest.approx(accuracy)
    corrected = found["world_correspondence/chance_corrected_acc"].metric.value()
    assert corrected == pytest.approx((accuracy - chance) / (1 - chance))
    assert len(set(found["world_correspondence/acc"].clusters)) == len(items) // 2


def test_it_needs_no_files():
    assert BENCHMARKS["world_correspondence"] is WORLD_CORRESPONDENCE
    assert WORLD_CORRESPONDENCE.is_rendered
    assert not BENCHMARKS["mmvm"].is_rendered
    asked = benchmark_items("world_correspondence", None, None, 3)
    assert Counter(item.split for item in asked) == {"easy": 6, "medium": 6, "hard": 6, "large": 6}
    assert asked[0].id == "world_correspondence/easy/test/easy/0/0/0"
    assert asked[-1].pictures[0].load().size == (448, 448)
    assert "numbered objects" in asked[-1].prompt
