"""The choice from the catalogue and the prior that belongs to it."""

import pytest

from mllm_align.data.world.catalogue import SMALL, World

LARGE = World(image_size=224, num_shapes=10, num_colours=8, num_sizes=3, num_signs=1)


@pytest.mark.parametrize("world", [SMALL, LARGE])
def test_partners_come_in_pairs(world):
    for shape in world.shapes:
        assert world.partner(shape) != shape
        assert world.partner(shape) in world.shapes
        assert world.partner(world.partner(shape)) == shape


@pytest.mark.parametrize("world", [SMALL, LARGE])
def test_a_fifth_of_the_combinations_is_held_out_and_every_level_is_seen(world):
    held_out = {(s, c) for s in world.shapes for c in world.colours if world.held_out(s, c)}
    assert 0.15 <= len(held_out) / (len(world.shapes) * len(world.colours)) <= 0.25
    assert not any((shape, world.typical_colour(shape)) in held_out for shape in world.shapes)
    for shape in world.shapes:
        assert 1 <= sum(s == shape for s, _ in held_out) <= 2
    for colour in world.colours:
        assert sum(c == colour for _, c in held_out) <= len(world.shapes) // 2


def test_typical_facts_are_spread():
    assert len({SMALL.typical_colour(shape) for shape in SMALL.shapes}) == 6
    assert sum(SMALL.typical_size(shape) == "small" for shape in SMALL.shapes) == 3
    assert sum(SMALL.typical_side(shape) == "left" for shape in SMALL.shapes) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grid": 3}, "grid 3"),
        ({"image_size": 62}, "image_size 62"),
        ({"num_shapes": 5}, "num_shapes 5"),
        ({"num_shapes": 12}, "num_shapes 12"),
        ({"num_colours": 9}, "colours"),
        ({"num_objects": (3, 7)}, "num_objects"),
        ({"num_signs": 3}, "no room"),
    ],
)
def test_impossible_worlds_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        World(**settings)
