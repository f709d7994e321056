"""Pictures with captions for contrast and retrieval: a short one, a long one, paraphrases, and false ones.

Scenes are balanced, so that no fact follows from another and a caption is told from a false one by the picture alone,
with one exception that SugarCrepe has too: where an object or an attribute is added, the longer text is the false one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

from mllm_align.data.world.catalogue import SMALL, World
from mllm_align.data.world.language import caption
from mllm_align.data.world.render import render
from mllm_align.data.world.scenes import Scene
from mllm_align.data.world.splits import distribution_of, generator, iter_scenes
from mllm_align.data.world.statements import (
    NEGATIVE_KINDS,
    Allowed,
    Statement,
    draw,
    made_false,
    paraphrase,
    reworded,
    statements,
)

# Instructions of words that the world's language has. The model is trained to caption a picture behind the first.
IMAGE_INSTRUCTION = "Describe the picture."
TEXT_INSTRUCTION = "What does the text say?"
# Of the captions of training, how many say how many objects there are, and how many leave something open.
COUNTED, OPEN = 0.25, 0.125
POOL_ATTEMPTS = 200
Row = dict[str, Any]


def caption_rows(
    num_rows: int,
    seed: int = 0,
    split: str = "train",
    distribution: str = "balanced",
    num_negatives: int = 3,
    num_objects: Sequence[int] = (2, 3),
    kinds: Sequence[str] = NEGATIVE_KINDS,
    world: World = SMALL,
    salt: str = "",
) -> list[Row]:
    """Rows `{id, image, prompt, caption, chosen, negatives, positives}`, images as PIL.

    `caption` says of two or three objects where they are and how they look (15 to 28 words), `chosen` of all objects
    (`language.caption`); `prompt` is `IMAGE_INSTRUCTION`. `negatives` are the caption with one change, false of the
    picture; `positives` the caption in other words. A caption may by chance be true of another row's picture: of two
    rows in about 1,500.

    Args:
        num_rows: How many; no scene comes twice.
        seed: Which.
        split: Of the world; training and test scenes are disjoint.
        distribution: Of the scenes. Others than "balanced" let some false captions be told by the prior.
        num_negatives: False captions of a row, of kinds that are different as far as its caption allows.
        num_objects: How many objects a caption may name. An object is added only to a caption that is then not longer
            than others are, or length alone would tell.
        kinds: Of negatives.
        world: The choice from the catalogue.
        salt: Needed for the private test.
    """
    stream = iter_scenes(split, seed, distribution, world, salt)
    rng = generator("captions", split, distribution, seed, salt)
    allowed = allowed_in(split, distribution, world)
    rows = []
    for number in range(num_rows):
        scene = next(stream)
        size = rng.choice(num_objects)
        said = draw(scene, size, rng, count=rng.random() < COUNTED, leave_out=rng.random() < OPEN)
        order = [kind for kind in kinds if kind != "add_object" or size + 1 in num_objects]
        rng.shuffle(order)
        false = _negatives(said, scene, order, num_negatives, rng, allowed, world)
        name = f"caption/{split}/{distribution}/{seed}/{number}"
        rows.append(_row(name, scene, said, rng) | {"negatives": [each.text() for each in false]})
    return rows


def retrieval_pool(
    num_rows: int,
    seed: int = 0,
    split: str = "test_in_distribution",
    num_objects: int = 2,
    world: World = SMALL,
    salt: str = "",
) -> list[Row]:
    """Rows `{id, image, prompt, caption, chosen, positives}` whose captions are true of their own picture alone.

    Raises:
        ValueError: If so many pictures cannot be told apart by such captions.
    """
    kept: list[tuple[Scene, Statement]] = []
    rng = generator("pool", split, seed, salt)
    stream = iter_scenes(split, seed, "balanced", world, salt)
    refused = 0
    while len(kept) < num_rows:
        scene = next(stream)
        unlike = not any(said.holds(scene) for _, said in kept)
        free = [said for said in statements(scene, num_objects) if not any(said.holds(other) for other, _ in kept)]
        refused = 0 if unlike and free else refused + 1
        if refused > POOL_ATTEMPTS:
            raise ValueError(
                f"{num_rows} pictures cannot each have a caption of {num_objects} objects of its own; "
                f"{len(kept)} could: ask for fewer, or for captions of more objects"
            )
        if unlike and free:
            kept.append((scene, rng.choice(free)))
    return [_row(f"pool/{split}/{seed}/{n}", scene, said, rng) for n, (scene, said) in enumerate(kept)]


def hard_negative_items(
    num_items: int,
    seed: int = 0,
    kinds: Sequence[str] = NEGATIVE_KINDS,
    split: str = "test_in_distribution",
    num_objects: int = 2,
    world: World = SMALL,
    salt: str = "",
    far: bool = False,
) -> list[Row]:
    """So many rows of each kind: `caption_rows` with a column `kind`, one negative of that kind, one paraphrase.

    No scene is in two items.

    Args:
        num_items: Of each kind.
        seed: Which.
        kinds: Of negatives.
        split: Of the world.
        num_objects: How many objects a caption names.
        world: The choice from the catalogue.
        salt: Needed for the private test.
        far: Whether caption and paraphrase share neither grammar nor order, so that in words the false caption is the
            nearest: one is plain, the other `statements.reworded`, the false one as the caption is. By turns, or a
            liking for one form would decide. By default the caption is plain, the paraphrase of any other form.

    Raises:
        ValueError: If there is no such kind.
    """
    stream = iter_scenes(split, seed, "balanced", world, salt)
    allowed = allowed_in(split, "balanced", world)
    rng = generator("hard negatives", split, seed, salt, tuple(kinds))
    rows = []
    for kind in kinds:
        for number in range(num_items):
            scene, said, false = next(_items(stream, kind, num_objects, rng, allowed, world))
            row = _row(f"negative/{split}/{kind}/{seed}/{number}", scene, said, rng)
            texts = said.text(), reworded(said), false.text()
            if far and number % 2:
                texts = reworded(said), said.text(), reworded(false)
            row |= {"caption": texts[0], "positives": [texts[1]]} if far else {}
            rows.append(row | {"kind": kind, "negatives": [texts[2]]})
    return rows


def _items(
    stream: Iterator[Scene], kind: str, num_objects: int, rng: Random, allowed: Allowed, world: World
) -> Iterator[tuple[Scene, Statement, Statement]]:
    """Scenes with a true statement that can be made false in this way."""
    for scene in stream:
        said = draw(scene, num_objects, rng, count=kind == "replace_count", leave_out=kind == "add_attribute")
        false = made_false(said, scene, kind, rng, allowed, world)
        if false is not None:
            yield scene, said, false


def _negatives(
    said: Statement, scene: Scene, kinds: Sequence[str], number: int, rng: Random, allowed: Allowed, world: World
) -> list[Statement]:
    """Different false statements, one of each kind before two of any."""
    found: dict[Statement, None] = {}
    for kind in (*kinds, *kinds):
        false = made_false(said, scene, kind, rng, allowed, world) if len(found) < number else None
        # A kind with few options may give the same one again, which counts once.
        found |= {} if false is None else {false: None}
    return list(found)


def _row(name: str, scene: Scene, said: Statement, rng: Random) -> Row:
    return {
        "id": name,
        "image": render(scene),
        "prompt": IMAGE_INSTRUCTION,
        "caption": said.text(),
        "chosen": caption(scene),
        "positives": [paraphrase(said, rng)],
    }


def allowed_in(split: str, distribution: str, world: World) -> Allowed:
    """Whether scenes of a split may have a shape in a colour."""
    held_out = distribution_of(split, distribution).held_out
    return lambda shape, colour: held_out or not world.held_out(shape, colour)
