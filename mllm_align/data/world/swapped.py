"""Two pictures and two captions of the same words: what Winoground asks, on scenes that are made for it.

In one picture two objects stand as the first caption says, in the other with shapes, or one attribute, exchanged, as
the second says (Thrush et al., 2022, https://arxiv.org/abs/2204.03162). All else is the same in both pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from mllm_align.data.world.captions import allowed_in
from mllm_align.data.world.catalogue import SMALL, World
from mllm_align.data.world.scenes import Scene
from mllm_align.data.world.splits import generator, iter_scenes, split_of
from mllm_align.data.world.statements import Statement, draw, made_false

SWAP_KINDS = ("swap_object", "swap_attribute")
PLACE = ("row", "column", "dx", "dy")


class SwappedPair(NamedTuple):
    """Two scenes, and of each what is true of it and false of the other, in the same words."""

    kind: str
    scenes: tuple[Scene, Scene]
    statements: tuple[Statement, Statement]


def iter_swapped(
    kinds: Sequence[str] = SWAP_KINDS,
    seed: int = 0,
    split: str = "test_in_distribution",
    num_objects: int = 2,
    world: World = SMALL,
    salt: str = "",
) -> Iterator[SwappedPair]:
    """Endless pairs of balanced scenes of a split, the kinds in turn; no scene is in two of them.

    Args:
        kinds: Any of `SWAP_KINDS`.
        seed: Which.
        split: Of the world; both scenes belong to it.
        num_objects: How many objects a caption names.
        world: The choice from the catalogue.
        salt: Needed for the private test.

    Raises:
        ValueError: If there is no such kind.
    """
    unknown = sorted({*kinds} - {*SWAP_KINDS})
    if unknown or not kinds:
        raise ValueError(f"unknown kind of exchange {unknown[:1]}; there are {', '.join(SWAP_KINDS)}")
    allowed = allowed_in(split, "balanced", world)
    rng, seen, number = generator("swapped", split, seed, salt, tuple(kinds)), set[str](), 0
    for scene in iter_scenes(split, seed, "balanced", world, salt):
        kind, said = kinds[number % len(kinds)], draw(scene, num_objects, rng)
        false = made_false(said, scene, kind, rng, allowed, world)
        if false is None:
            continue
        other = exchanged(scene, said, false)
        hashes = {scene.content_hash, other.content_hash}
        if split_of(other) == split and not hashes & seen:
            seen |= hashes
            number += 1
            yield SwappedPair(kind, (scene, other), (said, false))


def exchanged(scene: Scene, said: Statement, false: Statement) -> Scene:
    """The scene in which `false` is true: what differs between it and `said` is exchanged between two objects.

    Args:
        scene: Of which `said` is true.
        said: Fully described objects.
        false: The same with shapes, or one attribute, of two of them exchanged.
    """
    places = [place for place, (old, new) in enumerate(zip(said.objects, false.objects, strict=True)) if old != new]
    olds = [scene.get(said.objects[place].shape) for place in places]
    news = []
    for place, item, other in zip(places, olds, reversed(olds), strict=True):
        new = false.objects[place]
        item = replace(item, shape=new.shape, colour=new.colour or item.colour, size=new.size or item.size)
        moved = new.side != said.objects[place].side
        news.append(replace(item, **{name: getattr(other, name) for name in PLACE}) if moved else item)
    return replace(scene, items=tuple([item for item in scene.items if item not in olds] + news))
