"""Answers are true, read off the drawn masks rather than off the scene graph where that can be."""

from random import Random

import numpy as np
import pytest

from mllm_align.data.world.catalogue import COLOURS, SMALL, World
from mllm_align.data.world.facts import KINDS, fact, facts
from mllm_align.data.world.render import masks, render
from mllm_align.data.world.sampling import BALANCED, sample_scene
from mllm_align.data.world.scenes import Item, Scene

SCENE = Scene(
    (
        Item(0, 0, "square", "red", "small"),
        Item(0, 2, "star", "yellow", "large"),
        Item(3, 2, "ring", "blue", "small"),
    )
)


def sampled(count=60):
    rng = Random(4)
    return [sample_scene(rng, BALANCED) for _ in range(count)]


def test_colour_and_side_are_those_of_the_pixels():
    for scene in sampled():
        picture = np.asarray(render(scene)).astype(int)
        for item, mask in zip(scene.items, masks(scene), strict=True):
            mean = picture[mask].mean(0)
            nearest = min(COLOURS, key=lambda name: np.abs(mean - COLOURS[name]).sum())
            columns = np.flatnonzero(mask.any(0))
            side = "left" if columns.mean() < 31.5 else "right"
            asked = [fact(scene, kind, (item.shape,)).answer for kind in ("colour", "side")]
            assert asked == [nearest, side]


def test_a_large_object_has_more_pixels_than_a_small_one_of_its_shape():
    areas = {}
    for scene in sampled():
        for item, mask in zip(scene.items, masks(scene), strict=True):
            areas.setdefault((item.shape, fact(scene, "size", (item.shape,)).answer), []).append(mask.sum())
    for shape in SMALL.shapes:
        assert max(areas[shape, "small"]) < 0.8 * min(areas[shape, "large"])


def test_relations_follow_the_centres_of_the_masks():
    asked = 0
    for scene in sampled(20):
        centres = {item.shape: np.argwhere(mask).mean(0) for item, mask in zip(scene.items, masks(scene), strict=True)}
        for found in facts(scene, "relation"):
            first, relation, second = found.subject
            down, right = centres[first] - centres[second]
            truth = {"left of": right < 0, "right of": right > 0, "above": down < 0, "below": down > 0}[relation]
            assert found.answer == ("yes" if truth else "no")
            asked += 1
    assert asked > 200


def test_relations_within_one_row_or_column_are_not_asked():
    subjects = {found.subject for found in facts(SCENE, "relation")}
    assert ("square", "above", "star") not in subjects
    assert ("star", "left of", "ring") not in subjects
    assert ("square", "left of", "ring") in subjects


def test_existence_and_count():
    answers = {found.subject[0]: found.answer for found in facts(SCENE, "existence")}
    assert answers == {"square": "yes", "star": "yes", "ring": "yes", "circle": "no", "triangle": "no", "cross": "no"}
    assert fact(SCENE, "count", ()).answer == "three"


def test_prior_answers_follow_the_prior_and_the_partner():
    # circle-square, triangle-star and cross-ring are partners: each of the present ones has its partner absent.
    for found in facts(SCENE, "existence"):
        assert found.prior_answer == ("no" if found.answer == "yes" else "yes")
    assert fact(SCENE, "colour", ("square",)).prior_answer == SMALL.typical_colour("square") == "green"
    assert fact(SCENE, "size", ("square",)).prior_answer == SMALL.typical_size("square")
    assert fact(SCENE, "side", ("star",)).prior_answer == SMALL.typical_side("star")
    assert fact(SCENE, "count", ()).prior_answer is None


def test_the_prior_of_a_relation_comes_from_the_typical_sides():
    left, right = (
        next(s for s in ("square", "star", "ring") if SMALL.typical_side(s) == side) for side in ("left", "right")
    )
    scene = Scene((Item(0, 0, left, "red", "small"), Item(1, 3, right, "red", "small")))
    assert fact(scene, "relation", (left, "left of", right)).prior_answer == "yes"
    assert fact(scene, "relation", (right, "left of", left)).prior_answer == "no"
    assert fact(scene, "relation", (left, "above", right)).prior_answer is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_is_among_the_choices(kind):
    world = World(num_objects=(3, 4), num_signs=1)
    for scene in [sample_scene(Random(seed), BALANCED, world) for seed in range(10)]:
        for found in facts(scene, kind, world):
            assert found.answer in found.choices or not found.choices
            assert found.prior_answer is None or found.prior_answer in found.choices


def test_a_sign_is_read_and_not_counted():
    scene = Scene((*SCENE.items, Item(2, 0, "sign", "black", "large", text="exit")))
    assert fact(scene, "text", ()).answer == "exit"
    assert fact(scene, "count", ()).answer == "three"
    assert "a sign that does say exit on the left" in fact(scene, "caption", ()).answer
    assert facts(SCENE, "text") == []


def test_what_a_scene_does_not_settle_is_refused():
    with pytest.raises(KeyError, match="colour"):
        fact(SCENE, "colour", ("circle",))
    with pytest.raises(ValueError, match="unknown kind of question 'shape'"):
        facts(SCENE, "shape")
