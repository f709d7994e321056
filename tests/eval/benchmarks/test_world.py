from collections import Counter

import numpy as np
import pytest

from mllm_align_eval.baselines import baselines
from mllm_align_eval.benchmarks.world import validation_items, world_items
from mllm_align_eval.items import check_items
from mllm_align_eval.mismatch import other_images


@pytest.fixture(scope="module")
def items():
    return world_items(num_scenes=120, num_pairs=60, num_polls=80)


def test_splits_and_ids(items):
    check_items(items)
    sizes = Counter(item.split for item in items)
    assert set(sizes) == {"in_distribution", "adversarial", "pope_random", "pope_popular", "pope_adversarial", "pairs"}
    assert sizes["pairs"] == 120
    assert sizes["adversarial"] > 200
    assert {item.benchmark for item in items} == {"world"}


def test_at_most_two_questions_a_scene(items):
    counts = Counter((item.split, item.cluster) for item in items)
    assert max(counts.values()) == 2


def test_what_can_be_had_without_looking(items):
    found = baselines(items)
    for split in ("pope_random", "pope_popular", "pope_adversarial"):
        assert found["always yes"][f"world/{split}/acc"] == 0.5
        assert found["text only"][f"world/{split}/acc"] < 0.6
    assert found["prior"]["world/pope_adversarial/acc"] == 0.0
    assert found["prior"]["world/in_distribution/acc"] > found["prior"]["world/adversarial/acc"] + 0.2
    assert found["text only"]["world/pair_acc"] == 0.0, "the questions of a pair are alike and their answers differ"


def test_pictures_of_a_pair_differ_and_are_drawn_alike_each_time(items):
    first, second = [item for item in items if item.split == "pairs"][:2]
    assert first.prompt == second.prompt
    assert first.answer != second.answer
    assert first.cluster == second.cluster
    assert np.abs(np.asarray(first.pictures[0].load(), int) - np.asarray(second.pictures[0].load(), int)).max() > 0
    assert first.pictures[0].load().tobytes() == first.pictures[0].load().tobytes()


def test_another_picture_exists_for_every_question(items):
    chosen = other_images(items)
    assert all(items[i].cluster != items[o].cluster for i, o in enumerate(chosen))


def test_validation_meets_no_test_scene(items):
    tuned = {item.cluster for item in validation_items(60)}
    assert not tuned & {item.cluster for item in items}
    check_items(validation_items(60))


def test_private_questions_depend_on_the_salt():
    def private(salt):
        return [i.id + i.cluster for i in world_items(10, 2, 4, salt=salt) if i.split == "private"]

    assert private("a")
    assert private("a") != private("b")
    assert not private("")
