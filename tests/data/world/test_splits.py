"""Splits are disjoint in content, deterministic, and leave held-out combinations out of training."""

import pytest

from mllm_align.data.world.catalogue import SMALL
from mllm_align.data.world.splits import SPLITS, iter_scenes, scenes, split_of


def drawn(split, count=150, **settings):
    salt = "mine" if split == "private" else ""
    return scenes(split, count, salt=salt, **settings)


def test_splits_share_no_content_whatever_seed_and_distribution():
    found = {}
    for split in SPLITS:
        for seed, distribution in ((0, None), (1, "prior"), (2, "balanced")):
            for scene in drawn(split, 100, seed=seed, distribution=distribution):
                assert found.setdefault(scene.content_hash, split) == split
                assert split_of(scene) == split
    assert len(found) > 1500


def test_a_split_has_no_scene_twice():
    assert len({scene.content_hash for scene in drawn("train", 500)}) == 500


def test_scenes_depend_on_seed_and_salt_alone():
    assert drawn("train") == drawn("train")
    assert drawn("train", seed=1) != drawn("train")
    assert scenes("private", 5, salt="a") != scenes("private", 5, salt="b")
    stream = iter_scenes("train")
    assert [next(stream) for _ in range(3)] == scenes("train", 3)


@pytest.mark.parametrize(
    ("split", "expected"), [("train", False), ("test_in_distribution", False), ("test_adversarial", True)]
)
def test_held_out_combinations(split, expected):
    found = any(SMALL.held_out(item.shape, item.colour) for scene in drawn(split) for item in scene.items)
    assert found == expected


def test_no_distribution_brings_held_out_combinations_into_training():
    for name in ("prior", "broken", "balanced"):
        for scene in drawn("train", distribution=name):
            assert not any(SMALL.held_out(item.shape, item.colour) for item in scene.items)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "unknown split 'test'"),
        ({"split": "private"}, "salt"),
        ({"split": "train", "distribution": "uniform"}, "unknown distribution 'uniform'"),
    ],
)
def test_wrong_names_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        next(iter_scenes(**arguments))
