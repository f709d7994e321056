"""Pictures of one object each, as many of every shape in every colour: what classification is tested on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from random import Random
from typing import Any

from mllm_align.data.world.captions import IMAGE_INSTRUCTION
from mllm_align.data.world.catalogue import SMALL, World
from mllm_align.data.world.render import render
from mllm_align.data.world.scenes import Item, Scene
from mllm_align.data.world.splits import check_split, generator, split_of

# One object in a grid can be shown in few ways, of which one split has too few for every class.
TEST_SPLITS = ("test_in_distribution", "test_adversarial", "pairs")


def class_rows(
    num_each: int = 5,
    seed: int = 0,
    splits: Sequence[str] = TEST_SPLITS,
    world: World = SMALL,
    salt: str = "",
) -> list[dict[str, Any]]:
    """Rows `{id, image, prompt, shape, colour}` of one object in any place and size, every combination as often.

    Combinations that are held out of training are there too. No two pictures show the same shape, colour and size in
    the same place, and none shows what a training picture of one object may.

    Args:
        num_each: Pictures of each shape in each colour.
        seed: Which.
        splits: That they may be of.
        world: The choice from the catalogue; its numbers of objects and signs are left aside.
        salt: Needed for the private test.

    Raises:
        ValueError: If `num_each` is less than 1, a split is unknown, or they have too few pictures of a combination.
    """
    if num_each < 1:
        raise ValueError(f"num_each must be at least 1, not {num_each}")
    for split in splits:
        check_split(split, salt)
    rng = generator("classes", tuple(splits), seed, salt, world)
    drawn = {
        (shape, colour): _scenes(num_each, shape, colour, rng, splits, world)
        for shape in world.shapes
        for colour in world.colours
    }
    return [
        {
            "id": f"class/{shape}/{colour}/{seed}/{number}",
            "image": render(scene),
            "prompt": IMAGE_INSTRUCTION,
            "shape": shape,
            "colour": colour,
        }
        for number, together in enumerate(zip(*drawn.values(), strict=True))
        for (shape, colour), scene in zip(drawn, together, strict=True)
    ]


def _scenes(number: int, shape: str, colour: str, rng: Random, splits: Sequence[str], world: World) -> list[Scene]:
    """Different scenes of one combination."""
    cells = list(product(range(world.grid), range(world.grid), world.sizes))
    rng.shuffle(cells)
    found = []
    for row, column, size in cells:
        item = Item(row, column, shape, colour, size, rng.randint(-1, 1), rng.randint(-1, 1))
        scene = Scene((item,), world.image_size, world.grid, background=rng.randint(228, 252))
        found += [scene] if split_of(scene) in splits else []
    if len(found) < number:
        raise ValueError(
            f"{', '.join(splits)} have {len(found)} pictures of one {colour} {shape}, not {number}: ask for fewer, or "
            "for more splits"
        )
    return found[:number]
