"""Draw scenes: with the prior, with the prior broken, or with every fact uniform."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from mllm_align.data.world.catalogue import SIDES, SIGN, SIGN_WORDS, SMALL, World
from mllm_align.data.world.scenes import Item, Scene


@dataclass(frozen=True)
class Distribution:
    """How far scenes follow the prior of their world; None makes a fact uniform.

    Args:
        name: Its name in manifests and reports.
        colour: Probability of a shape's typical colour.
        size: Probability of its typical size.
        partner: Probability that its partner is put into the scene too, where there is room. Numbers of objects
            close to the number of shapes force partners together, so the rate found in scenes is between the two.
        side: Probability of its typical half of the picture.
        held_out: Whether combinations of colour and shape that are held out of training may occur.
    """

    name: str
    colour: float | None = None
    size: float | None = None
    partner: float | None = None
    side: float | None = None
    held_out: bool = False


PRIOR = Distribution("prior", colour=0.88, size=0.85, partner=0.85, side=0.88)
BROKEN = Distribution("broken", colour=0.0, size=0.0, partner=0.15, side=0.12)
BALANCED = Distribution("balanced")
DISTRIBUTIONS = {d.name: d for d in (PRIOR, BROKEN, BALANCED)}


def sample_scene(
    rng: Random, distribution: Distribution = PRIOR, world: World = SMALL, num_objects: int | None = None
) -> Scene:
    """One scene. Deterministic in the state of `rng`; `num_objects` overrides the world's choice."""
    count = rng.choice(world.num_objects) if num_objects is None else num_objects
    free = [(row, column) for row in range(world.grid) for column in range(world.grid)]
    items = [_sign(rng, free, world) for _ in range(world.num_signs)]
    for shape in _draw_shapes(rng, count, distribution.partner, world):
        colour = _draw(
            rng,
            [c for c in world.colours if distribution.held_out or not world.held_out(shape, c)],
            world.typical_colour(shape),
            distribution.colour,
        )
        size = _draw(rng, world.sizes, world.typical_size(shape), distribution.size)
        side = _draw(rng, SIDES, world.typical_side(shape), distribution.side)
        row, column = _take_cell(rng, free, lambda cell, side=side: (cell[1] < world.grid // 2) == (side == "left"))
        items.append(Item(row, column, shape, colour, size, rng.randint(-1, 1), rng.randint(-1, 1)))
    return Scene(tuple(items), world.image_size, world.grid, background=rng.randint(228, 252))


def _draw(rng: Random, values: Sequence[str], typical: str, probability: float | None) -> str:
    if probability is None:
        return rng.choice(values)
    if rng.random() < probability:
        return typical
    return rng.choice([value for value in values if value != typical])


def _draw_shapes(rng: Random, count: int, partner: float | None, world: World) -> list[str]:
    if partner is None:
        return rng.sample(world.shapes, count)
    chosen: list[str] = []
    refused: list[str] = []  # partners that the draw left out: they come in only when nothing else is left
    while len(chosen) < count:
        fresh = [shape for shape in world.shapes if shape not in chosen and shape not in refused]
        anchor = rng.choice(fresh or [shape for shape in world.shapes if shape not in chosen])
        chosen.append(anchor)
        other = world.partner(anchor)
        if other not in chosen and len(chosen) < count and rng.random() < partner:
            chosen.append(other)
        elif other not in chosen:
            refused.append(other)
    return chosen


def _take_cell(
    rng: Random, free: list[tuple[int, int]], allowed: Callable[[tuple[int, int]], bool]
) -> tuple[int, int]:
    cell = rng.choice([cell for cell in free if allowed(cell)])
    free.remove(cell)
    return cell


def _sign(rng: Random, free: list[tuple[int, int]], world: World) -> Item:
    # A sign starts at an even column, so that it never crosses the middle of the picture.
    row, column = _take_cell(rng, free, lambda cell: cell[1] % 2 == 0 and (cell[0], cell[1] + 1) in free)
    free.remove((row, column + 1))
    return Item(row, column, SIGN, "black", "large", text=rng.choice(SIGN_WORDS))
