"""The rows of the study of views: one thing on two pictures, and steps that hold a few things in many views each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from random import Random
from typing import Any

from PIL import Image

from mllm_align.data.world.catalogue import SMALL
from mllm_align.data.world.correspondence import Frame, Placed, Thing, boxes, draw
from mllm_align.data.world.correspondence.things import EDGES, SPOTS, TEXTURES, shapes_of
from mllm_align.data.world.language import paraphrases
from mllm_align.data.world.partition import check_part, part_of
from mllm_align.data.world.splits import generator

Row = dict[str, Any]
# A cell is so wide that a thing covers four tokens of the shipped base.
GRID, JITTER = 2, 3
THINGS_PER_STEP, ROWS_PER_THING = 6, 4
# By level, the one view among so many that is hard; things of a step, and rows of each.
LEVELS: Mapping[str, int] = {"quarter": 4, "half": 2, "many": 4}
SIZES: Mapping[str, tuple[int, int]] = {name: (THINGS_PER_STEP, ROWS_PER_THING) for name in LEVELS} | {"many": (4, 6)}
MOST_VIEWS = 2 * max(rows for _, rows in SIZES.values())
# Two of these make a view a hard one.
TROUBLES = ("dark", "small", "hidden", "noisy")
# Few, because a sprite is drawn large, averaged down and kept.
ZOOMS, SMALL_ZOOMS = (0.8, 0.85, 0.9, 0.95, 1.0), (0.55, 0.6, 0.65)


def things_of(split: str) -> list[Thing]:
    """All things of train, validation or test, in a fixed order; no two look the same, in one split or in several.

    They differ in shape, colour, texture and spot. All are large, since the zoom of views differs by more than sizes.
    Combinations of shape and colour that the world holds out of training are in none.
    """
    check_part(split)
    found = [
        Thing(f"{colour} {shape}, {texture}, {spot}", shape, colour, "large", texture, spot)
        for shape in shapes_of(SMALL)
        for colour in SMALL.colours
        if not SMALL.held_out(shape, colour)
        for texture in TEXTURES
        for spot in SPOTS
        if part_of(["views", shape, colour, texture, spot]) == split
    ]
    Random(f"things|{split}").shuffle(found)
    return found


def frames_of(thing: Thing, number: int, seed: int, level: str) -> list[Frame]:
    """So many views of a thing, of which every fourth (or second) is hard: two of dark, small, hidden and noisy.

    Raises:
        ValueError: If there is no such level.
    """
    if level not in LEVELS:
        raise ValueError(f"unknown level {level!r} of views; there are {', '.join(LEVELS)}")
    rng = generator("views", thing.looks, seed, level)
    return [_frame(rng, thing, hard=place % LEVELS[level] == LEVELS[level] - 1) for place in range(number)]


def canonical_frame(thing: Thing) -> Frame:
    """A thing as nothing hides, shrinks or darkens it."""
    return Frame((Placed(thing, 0, 0),), SMALL.image_size, GRID, background=220)


def picture_of(frame: Frame) -> tuple[Image.Image, list[dict[str, Any]]]:
    """A view, and the column of objects that it has.

    The text is the id: contrast between regions knows ids within a row alone, and does not push away what is called
    the same.
    """
    (placed,) = frame.placed
    name = placed.thing.name
    return draw(frame), [{"box": list(boxes(frame)[name]), "object_id": name, "text": name}]


@cache
def view_rows(num_rows: int, seed: int = 0, split: str = "train", level: str = "quarter") -> list[Row]:
    """Rows `{id, image, prompt, chosen, objects, contrast_image, rejected, contrast_objects}`, by thing; made once.

    Both pictures show one thing, which has the same `object_id` on all rows. What is asked is its colour, and so
    `rejected`, the answer about the second picture, is `chosen` once more.

    Args:
        num_rows: About how many; each thing has the same number, and as many as a step has of one at the least.
        seed: Another seed, other views.
        split: train, validation or test, whose things are different ones.
        level: How many views are hard, and how many a step has of a thing, a name of `LEVELS`.
    """
    if level not in LEVELS:
        raise ValueError(f"unknown level {level!r} of views; there are {', '.join(LEVELS)}")
    things = things_of(split)[: num_rows // SIZES[level][1]]
    rows = []
    for thing in things:
        each = num_rows // len(things)
        rng = generator("views asked", thing.looks, seed)
        frames = frames_of(thing, 2 * each, seed, level)
        for number, (one, other) in enumerate(zip(frames[::2], frames[1::2], strict=True)):
            image, objects = picture_of(one)
            contrast_image, contrast_objects = picture_of(other)
            rows.append(
                {
                    "id": f"views/{split}/{level}/{seed}/{thing.name}/{number}",
                    "image": image,
                    "prompt": rng.choice(paraphrases("colour")).format(thing.shape),
                    "chosen": thing.colour,
                    "objects": objects,
                    "contrast_image": contrast_image,
                    "rejected": thing.colour,
                    "contrast_objects": contrast_objects,
                }
            )
    return rows


def steps_of_views(rows: Sequence[Row], seed: int, steps: int, level: str = "quarter") -> list[list[int]]:
    """By step the rows that it has: so many of each of a few things that are drawn, thing by thing.

    Raises:
        ValueError: If the rows have too few things.
    """
    things, per_thing = SIZES[level]
    own: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        own.setdefault(row["objects"][0]["object_id"], []).append(place)
    if len(own) < things:
        needed = things * per_thing
        raise ValueError(f"a step of views has {things} things, and the rows {len(own)}: take {needed} or more")
    rng = Random(f"steps of views|{seed}")
    return [
        [place for thing in rng.sample(list(own), things) for place in rng.sample(own[thing], per_thing)]
        for _ in range(steps)
    ]


def _frame(rng: Random, thing: Thing, hard: bool) -> Frame:
    troubles = rng.sample(TROUBLES, 2) if hard else ()
    hidden = "hidden" in troubles
    placed = Placed(
        thing,
        rng.randrange(GRID),
        rng.randrange(GRID),
        rng.randint(-JITTER, JITTER),
        rng.randint(-JITTER, JITTER),
        rng.choice(EDGES) if hidden else "",
        rng.uniform(0.3, 0.45) if hidden else 0.0,
    )
    return Frame(
        (placed,),
        SMALL.image_size,
        GRID,
        background=rng.randint(190, 252),
        zoom=rng.choice(SMALL_ZOOMS if "small" in troubles else ZOOMS),
        light=rng.uniform(0.3, 0.45) if "dark" in troubles else rng.uniform(0.85, 1),
        noise=rng.uniform(25, 40) if "noisy" in troubles else rng.uniform(0, 6),
        seed=rng.getrandbits(32),
    )
