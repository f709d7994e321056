"""Pixels, boxes and masks agree."""

import time
from random import Random

import numpy as np
import pytest

from mllm_align.data.world.catalogue import COLOURS, SHAPES, SIGN_WORDS, World
from mllm_align.data.world.render import boxes, masks, render
from mllm_align.data.world.sampling import BALANCED, sample_scene
from mllm_align.data.world.scenes import Item, Scene

LARGE = World(image_size=224, num_shapes=10, num_colours=8, num_sizes=3, num_objects=(4,), num_signs=1)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_object_has_its_colour_inside_its_mask_and_the_background_outside(shape):
    scene = Scene((Item(1, 2, shape, "blue", "large", dx=1),))
    picture, mask = np.asarray(render(scene)).astype(int), masks(scene)[0]
    distance = np.abs(picture - COLOURS["blue"]).sum(-1)
    background = np.abs(picture - 240).sum(-1)
    assert ((distance < background) == mask).mean() > 0.99
    assert mask.sum() > 20
    assert (picture[:16] == 240).all()


def test_shapes_and_sizes_can_be_told_apart():
    drawn = {
        (shape, size): masks(Scene((Item(0, 0, shape, "red", size),)))[0]
        for shape in SHAPES
        for size in ("small", "large")
    }
    keys = list(drawn)
    for number, one in enumerate(keys):
        for other in keys[number + 1 :]:
            union = (drawn[one] | drawn[other]).sum()
            assert (drawn[one] ^ drawn[other]).sum() / union > 0.06, (one, other)


def test_boxes_are_tight_normalised_and_in_the_cell():
    scene = Scene((Item(1, 2, "square", "red", "large"), Item(3, 0, "circle", "green", "small")))
    first, second = boxes(scene) * 64
    assert first == pytest.approx([33.5, 17.5, 46.5, 30.5], abs=1.01)
    assert second == pytest.approx([2.5, 50.5, 13.5, 61.5], abs=1.01)
    assert boxes(Scene(())).shape == (0, 4)


@pytest.mark.parametrize("world", [World(), LARGE])
def test_objects_never_cover_each_other(world):
    rng = Random(1)
    for _ in range(50):
        scene = sample_scene(rng, BALANCED, world)
        assert masks(scene).sum(0).max() == 1
        assert (boxes(scene) >= 0).all()
        assert (boxes(scene) <= 1).all()


def test_rendering_is_deterministic_and_follows_jitter():
    scene = sample_scene(Random(2), BALANCED)
    assert render(scene).tobytes() == render(scene).tobytes()
    item = scene.items[0]
    moved = scene.changed(item, Item(**{**vars(item), "dx": -item.dx or 1}))
    assert render(moved).tobytes() != render(scene).tobytes()


def test_signs_show_their_word():
    pictures = {
        word: render(Scene((Item(0, 0, "sign", "black", "large", text=word),), image_size=224)).tobytes()
        for word in SIGN_WORDS
    }
    assert len(set(pictures.values())) == len(SIGN_WORDS)


def test_a_scene_is_drawn_in_a_millisecond():
    rng = Random(0)
    scenes = [sample_scene(rng) for _ in range(200)]
    render(scenes[0])
    started = time.process_time()
    for scene in scenes:
        render(scene)
    assert (time.process_time() - started) / 200 < 2e-3
