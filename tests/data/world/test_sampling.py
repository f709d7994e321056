"""Scenes follow their distribution and nothing else."""

from collections import Counter
from random import Random

import pytest

from mllm_align.data.world.catalogue import SMALL, World
from mllm_align.data.world.sampling import BALANCED, BROKEN, PRIOR, Distribution, sample_scene


def draw(distribution, count=3000, world=SMALL):
    rng = Random(0)
    return [sample_scene(rng, distribution, world) for _ in range(count)]


def rates(scenes):
    """How often an object is as the prior says: colour, size, side, partner."""
    objects = [(scene, item) for scene in scenes for item in scene.items]
    hits = (
        [item.colour == SMALL.typical_colour(item.shape) for _, item in objects],
        [item.size == SMALL.typical_size(item.shape) for _, item in objects],
        [scene.side(item) == SMALL.typical_side(item.shape) for scene, item in objects],
        [SMALL.partner(item.shape) in scene.shapes for scene, item in objects],
    )
    return [sum(hit) / len(hit) for hit in hits]


def test_prior_scenes_have_the_prior():
    colour, size, side, partner = rates(draw(PRIOR))
    assert colour == pytest.approx(0.88, abs=0.015)
    assert size == pytest.approx(0.85, abs=0.015)
    assert side == pytest.approx(0.88, abs=0.015)
    assert partner > 0.75


def test_broken_scenes_break_it():
    colour, size, side, partner = rates(draw(BROKEN))
    assert colour == 0
    assert size == 0
    assert side == pytest.approx(0.12, abs=0.015)
    assert partner < 0.6


def test_three_objects_need_no_partners():
    rng = Random(0)
    scenes = [sample_scene(rng, BROKEN, num_objects=3) for _ in range(1000)]
    assert rates(scenes)[3] < 0.25


def test_balanced_scenes_are_uniform():
    scenes = draw(Distribution("balanced", held_out=True), 6000)
    items = [item for scene in scenes for item in scene.items]
    for values, levels in (
        ([item.shape for item in items], 6),
        ([item.colour for item in items], 6),
        ([item.size for item in items], 2),
        ([item.column for item in items], 4),
        ([item.row for item in items], 4),
        ([len(scene.items) for scene in scenes], 3),
        ([(item.shape, item.colour) for item in items], 36),
    ):
        counts = Counter(values)
        expected = len(values) / levels
        assert len(counts) == levels
        assert sum((c - expected) ** 2 / expected for c in counts.values()) < 3 * levels + 10  # chi-square


@pytest.mark.parametrize("distribution", [PRIOR, BROKEN, BALANCED])
def test_held_out_combinations_occur_only_where_allowed(distribution):
    def held_out(scenes):
        return sum(SMALL.held_out(item.shape, item.colour) for scene in scenes for item in scene.items)

    assert held_out(draw(distribution, 500)) == 0
    allowed = Distribution(**{**vars(distribution), "held_out": True})
    assert held_out(draw(allowed, 500)) > 0


def test_the_generator_decides_everything():
    assert draw(PRIOR, 20) == draw(PRIOR, 20)


def test_cells_and_shapes_are_never_taken_twice():
    world = World(image_size=96, num_shapes=10, num_colours=8, num_sizes=3, num_signs=2, num_objects=(4,))
    for scene in draw(BALANCED, 200, world):
        cells = [(item.row, item.column + step) for item in scene.items for step in range(item.span)]
        assert len(set(cells)) == len(cells)
        assert all(column < 4 for _, column in cells)
        assert len(set(scene.shapes)) == 4
        assert sum(item.shape == "sign" for item in scene.items) == 2
