"""Rows of several pictures with names: which of them shows this, does this one, how does it look there?"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from mllm_align.data.references import NAMES, declare_references, reordered
from mllm_align.data.world.catalogue import NUMBER_WORDS, SMALL, World
from mllm_align.data.world.language import caption
from mllm_align.data.world.render import render
from mllm_align.data.world.scenes import Item, Scene
from mllm_align.data.world.splits import generator, iter_scenes

ASKS = ("which", "where", "whether", "look", "describe")
WHICH = "In which picture is the {size} {colour} {shape}?"
WHERE = "In which picture is the {shape}?"
WHETHER = "Is there a {size} {colour} {shape} in {name}?"
LOOKS = {"colour": "What colour is the {shape} in {name}?", "size": "What size is the {shape} in {name}?"}
DESCRIBE = "Describe {name}."
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
    asks: Sequence[str] = ("which",),
) -> list[dict[str, Any]]:
    """Rows `{id, images, prompt, chosen, rejected}` about pictures with names; `rejected` is true of another one.

    "which" asks in which picture an object is, and is answered with the picture's name. The object is in one picture
    alone, and another one shows the same shape in another colour or size; "where" the same of a shape that no other
    picture shows. "whether" asks of one picture by its name
    whether it shows such an object, which half of the time it does and half of the time another one does. "look" asks
    for the object's colour, or size, in one picture by its name, where another one has it in another. "describe" asks
    for a long caption of one picture by its name. Names and order of the pictures are drawn apart, so that an
    answer follows from neither, and every name is meant as often as the others.

    The shipped base was never trained to say these names, and adapters alone do not teach it: train its output layer,
    too. What ties a name to a picture is learned from "look", if most rows have their pictures in the order of their
    names at first (`benchmarks/study/references.md`); from either order alone training may stay at even odds.

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
        asks: What rows ask, by turns: any of "which", "where", "whether", "look", "describe".

    Raises:
        ValueError: If there are no names for so many pictures, nothing to tell of one, or nothing such to ask.
    """
    unknown = next((each for each in asks if each not in ASKS), None if asks else "nothing")
    if isinstance(asks, str) or unknown is not None:
        raise ValueError(f"asks must be a list of any of {', '.join(ASKS)}, not {unknown if asks else asks!r}")
    if not 2 <= num_images <= len(PICTURE_NAMES):
        raise ValueError(f"num_images must lie between 2 and {len(PICTURE_NAMES)}, not {num_images}")
    stream = iter_scenes(split, seed, distribution, world, salt)
    rng = generator("references", split, distribution, seed, num_images, salt)
    rows: list[dict[str, Any]] = []
    while len(rows) < num_rows:
        shown = [next(stream) for _ in range(num_images)]
        turn, ask = divmod(len(rows), len(asks))
        right, asked = turn % num_images, asks[ask]
        options = _options(shown, right, alone=asked == "where")
        if options:
            name = f"reference/{split}/{distribution}/{seed}/{len(rows)}"
            said = _said(asked, shown, right, turn // num_images % 2 == 0, rng.choice(options), rng)
            rows.append(_row(name, shown, said, rng, declared))
    return rows


def _options(shown: Sequence[Scene], right: int, alone: bool) -> list[Item]:
    """The objects of one picture that no other shows, though another has their shape; or, `alone`, has not."""
    others = [scene for place, scene in enumerate(shown) if place != right]
    found = []
    for shape in shown[right].shapes:
        item = shown[right].get(shape)
        there = [other for scene in others if (other := scene.find(shape)) is not None]
        if alone is not bool(there) and all((other.colour, other.size) != (item.colour, item.size) for other in there):
            found.append(item)
    return found


def _said(ask: str, shown: Sequence[Scene], right: int, true: bool, item: Item, rng: Random) -> tuple[str, str, str]:
    """What is asked, the answer and a false one; `item` is in picture `right` alone.

    Args:
        ask: One of `ASKS`.
        shown: The pictures.
        right: The picture that is meant, or, of "whether", that shows the object.
        true: Of "whether", whether that is the one asked about.
        item: The object.
        rng: Draws the other picture, of "look" of those that show the shape.
    """
    words = {"size": item.size, "colour": item.colour, "shape": item.shape}
    if ask == "look":
        unlike = [there for place, scene in enumerate(shown) if place != right and (there := scene.find(item.shape))]
        there = rng.choice(unlike)
        what = "colour" if there.colour != item.colour else "size"
        said = LOOKS[what].format(shape=item.shape, name=PICTURE_NAMES[right])
        return said, getattr(item, what), getattr(there, what)
    other = rng.choice([place for place in range(len(shown)) if place != right])
    if ask in ("which", "where"):
        return {"which": WHICH, "where": WHERE}[ask].format(**words), PICTURE_NAMES[right], PICTURE_NAMES[other]
    if ask == "describe":
        return DESCRIBE.format(name=PICTURE_NAMES[right]), caption(shown[right]), caption(shown[other])
    said = WHETHER.format(name=PICTURE_NAMES[right if true else other], **words)
    return (said, "yes", "no") if true else (said, "no", "yes")


def _row(name: str, shown: Sequence[Scene], said: tuple[str, str, str], rng: Random, declared: bool) -> dict[str, Any]:
    row = {
        "id": name,
        "images": [render(scene) for scene in shown],
        NAMES: list(PICTURE_NAMES[: len(shown)]),
        "prompt": said[0],
        "chosen": said[1],
        "rejected": said[2],
    }
    mixed = reordered(row, rng.sample(range(len(shown)), len(shown)))
    return declare_references(mixed) if declared else mixed
