"""Scene graphs: canonical form, hashes, queries and edits."""

from dataclasses import replace
from random import Random

import pytest

from mllm_align.data.world.sampling import BALANCED, sample_scene
from mllm_align.data.world.scenes import Item, Scene, manifest_hash

CIRCLE = Item(0, 1, "circle", "red", "small")
STAR = Item(2, 3, "star", "blue", "large", dx=1)


def test_a_scene_does_not_depend_on_the_order_in_which_its_items_are_given():
    assert Scene((STAR, CIRCLE)) == Scene((CIRCLE, STAR))
    assert Scene((STAR, CIRCLE)).hash == Scene((CIRCLE, STAR)).hash


def test_the_hash_is_the_sha256_of_the_canonical_form_and_is_pinned():
    scene = Scene((CIRCLE,))
    expected = (
        '{"background":240,"grid":4,"image_size":64,"items":[{"colour":"red","column":1,"dx":0,"dy":0,"row":0,'
        '"shape":"circle","size":"small","text":""}]}'
    )
    assert scene.to_json() == expected
    assert scene.hash == "4d001d2b6aaa0a852557d0a8f1c8727bcd3aa310b9d8c1cfa38583d3b8dcbd92"


def test_json_brings_the_same_scene_back():
    scene = sample_scene(Random(3), BALANCED)
    assert Scene.from_json(scene.to_json()) == scene


def test_content_ignores_jitter_and_background_alone():
    scene = Scene((CIRCLE, STAR))
    nuisance = Scene((replace(CIRCLE, dx=-1, dy=1), STAR), background=230)
    assert nuisance.hash != scene.hash
    assert nuisance.content_hash == scene.content_hash
    changes = ({"row": 1}, {"column": 0}, {"shape": "ring"}, {"colour": "green"}, {"size": "large"}, {"text": "stop"})
    others = {Scene((replace(CIRCLE, **change), STAR)).content_hash for change in changes}
    assert len(others | {scene.content_hash}) == 7


def test_queries():
    scene = Scene((STAR, CIRCLE))
    assert scene.shapes == ("circle", "star")
    assert scene.find("ring") is None
    assert scene.get("star") == STAR
    with pytest.raises(KeyError, match="no ring"):
        scene.get("ring")
    assert (scene.side(CIRCLE), scene.side(STAR)) == ("left", "right")
    assert len(scene.free_cells()) == 14
    assert (0, 1) not in scene.free_cells()


def test_changed_replaces_and_takes_away():
    scene = Scene((STAR, CIRCLE))
    assert scene.changed(STAR, None).shapes == ("circle",)
    assert scene.changed(STAR, replace(STAR, row=0, column=0)).shapes == ("star", "circle")


def test_the_manifest_depends_on_every_scene_and_on_their_order():
    one, two = Scene((CIRCLE,)), Scene((STAR,))
    assert len({manifest_hash(scenes) for scenes in ([one, two], [two, one], [one], [])}) == 4
