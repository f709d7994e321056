"""Rows of several pictures with names: which of them shows what is described?"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from mllm_align.data.references import NAMES, declare_references, reordered
from mllm_align.data.world.catalogue import NUMBER_WORDS, SMALL, World
from mllm_align.data.world.render import render
from mllm_align.data.world.scenes import Item, Scene
from mllm_align.data.world.splits import generator, iter_scenes

QUESTION = "In which picture is the {size} {colour} {shape}?"
# "no" is no name.
PICTURE_NAMES = tuple(f"picture {word}" for word in NUMBER_WORDS[1:])


def reference_rows(
    num_rows: int,
    seed: int = 0,
    split: str = "train",
    distribution: str = "balanced",
    num_images: int = 2,
    declared: bool = True,
    world: World = SMALL,
    salt: str = "",
) -> list[dict[str, Any]]:
    """Rows `{id, images, prompt, chosen}` that ask which picture shows an object; the answer is the picture's name.

    The object is in one picture alone, and another one shows the same shape in another colour or size. Names and
    order of the pictures are drawn apart, so that an answer follows from neither, and every name is as often right as
    the others. The shipped base was never trained to say these names, and adapters alone do not teach it: train its
    output layer, too.

    Args:
        num_rows: How many.
        seed: Which.
        split: Of the world.
        distribution: Of the scenes.
        num_images: Pictures of a row, 2 to 8; no scene is in two rows.
        declared: Whether the pictures are introduced by their names (`declare_references`); if not, rows have the
            names as `image_names`, for `reordered`.
        world: The choice from the catalogue.
        salt: Needed for the private test.

    Raises:
        ValueError: If there are no names for so many pictures, or nothing to tell of one.
    """
    if not 2 <= num_images <= len(PICTURE_NAMES):
        raise ValueError(f"num_images must lie between 2 and {len(PICTURE_NAMES)}, not {num_images}")
    stream = iter_scenes(split, seed, distribution, world, salt)
    rng = generator("references", split, distribution, seed, num_images, salt)
    rows: list[dict[str, Any]] = []
    while len(rows) < num_rows:
        shown = [next(stream) for _ in range(num_images)]
        right = len(rows) % num_images
        options = _options(shown, right)
        if options:
            name = f"reference/{split}/{distribution}/{seed}/{len(rows)}"
            rows.append(_row(name, shown, right, rng.choice(options), rng, declared))
    return rows


def _options(shown: Sequence[Scene], right: int) -> list[Item]:
    """The objects of one picture that no other shows, though another has their shape."""
    others = [scene for place, scene in enumerate(shown) if place != right]
    found = []
    for shape in shown[right].shapes:
        item = shown[right].get(shape)
        there = [other for scene in others if (other := scene.find(shape)) is not None]
        if there and all((other.colour, other.size) != (item.colour, item.size) for other in there):
            found.append(item)
    return found


def _row(name: str, shown: Sequence[Scene], right: int, item: Item, rng: Random, declared: bool) -> dict[str, Any]:
    names = PICTURE_NAMES[: len(shown)]
    row = {
        "id": name,
        "images": [render(scene) for scene in shown],
        NAMES: list(names),
        "prompt": QUESTION.format(size=item.size, colour=item.colour, shape=item.shape),
        "chosen": names[right],
    }
    mixed = reordered(row, rng.sample(range(len(shown)), len(shown)))
    return declare_references(mixed) if declared else mixed
