"""Minimal pairs: two scenes that differ in one fact, one question, two different answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from mllm_align.data.world.catalogue import SMALL, World
from mllm_align.data.world.facts import fact
from mllm_align.data.world.language import word
from mllm_align.data.world.questions import Question, make_question
from mllm_align.data.world.scenes import Scene
from mllm_align.data.world.splits import distribution_of, generator, iter_scenes, split_of

PAIR_KINDS = ("existence", "colour", "size", "side")
MORE_PAIR_KINDS = ("count", "relation", "caption")


@dataclass(frozen=True)
class MinimalPair:
    """Two scenes that differ in one fact and the question of which that fact is the answer.

    `changed` names the fact: the shape, colour, size or place of one object, or the presence of one. What `kind` asks
    may follow from it, as a relation does from a place.
    """

    id: str
    kind: str
    changed: str
    subject: tuple[str, ...]
    text: str
    scenes: tuple[Scene, Scene]
    answers: tuple[str, str]
    split: str


def iter_pairs(
    split: str = "train",
    seed: int = 0,
    distribution: str = "balanced",
    kinds: Sequence[str] = PAIR_KINDS,
    paraphrases: str = "seen",
    world: World = SMALL,
    salt: str = "",
) -> Iterator[MinimalPair]:
    """Endless minimal pairs of a split, the kinds in turn, no scene in two pairs.

    The first scene is drawn from `distribution` and the second made from it by one change; which of the two comes
    first is then drawn, so neither place tells anything. Existence is changed by giving one object another shape, not
    by taking it away: the number of objects would give the answer.
    """
    unknown = set(kinds) - set(_EDITS)
    if unknown or not kinds:
        raise ValueError(f"pairs differ in {', '.join(_EDITS)}, not in {', '.join(sorted(unknown)) or 'nothing'}")
    stream = iter_scenes(split, seed, distribution, world, salt)
    allowed = distribution_of(split, distribution).held_out
    rng = generator("pairs", split, distribution, seed, salt, tuple(kinds))
    seen: set[str] = set()
    number = 0
    while True:
        kind = kinds[number % len(kinds)]
        first = next(stream)
        options = [(changed, other, subject) for changed, other, subject in _EDITS[kind](first, rng, world)]
        rng.shuffle(options)
        for changed, second, subject in options:
            fits = split_of(second) == split and (allowed or not _has_held_out(second, world))
            if not fits or {first.content_hash, second.content_hash} & seen:
                continue
            seen |= {first.content_hash, second.content_hash}
            both = (first, second) if rng.random() < 0.5 else (second, first)
            answers = tuple(fact(scene, kind, subject, world).answer for scene in both)
            text = word(kind, subject, rng, paraphrases)
            name = f"{split}/{distribution}/{seed}/{number}"
            yield MinimalPair(name, kind, changed, subject, text, both, (answers[0], answers[1]), split)
            number += 1
            break


def pair_questions(
    num_pairs: int,
    seed: int = 0,
    split: str = "pairs",
    distribution: str = "balanced",
    kinds: Sequence[str] = PAIR_KINDS,
    paraphrases: str = "seen",
    world: World = SMALL,
    salt: str = "",
) -> list[Question]:
    """Two questions a pair, with the same text and `pair_id`, different scenes and different answers."""
    found = []
    stream = iter_pairs(split, seed, distribution, kinds, paraphrases, world, salt)
    for _ in range(num_pairs):
        pair = next(stream)
        for place, scene in enumerate(pair.scenes):
            asked = fact(scene, pair.kind, pair.subject, world)
            cluster = pair.scenes[0].content_hash
            name = f"pair/{pair.id}/{place}"
            found.append(make_question(name, scene, asked, pair.text, split, world, cluster, pair_id=pair.id))
    return found


_Option = tuple[str, Scene, tuple[str, ...]]


def _colour(scene: Scene, rng: Random, world: World) -> list[_Option]:
    item = scene.get(rng.choice(scene.shapes))
    others = [colour for colour in world.colours if colour != item.colour]
    return [("colour", scene.changed(item, replace(item, colour=other)), (item.shape,)) for other in others]


def _size(scene: Scene, rng: Random, world: World) -> list[_Option]:
    found: list[_Option] = []
    for shape in scene.shapes:
        item = scene.get(shape)
        sizes = [size for size in world.sizes if size != item.size]
        found += [("size", scene.changed(item, replace(item, size=size)), (shape,)) for size in sizes]
    return found


def _moves(scene: Scene, shape: str, same_row: bool) -> list[Scene]:
    item = scene.get(shape)
    cells = [cell for cell in scene.free_cells() if not same_row or cell[0] == item.row]
    return [scene.changed(item, replace(item, row=row, column=column)) for row, column in cells]


def _side(scene: Scene, rng: Random, world: World) -> list[_Option]:
    found: list[_Option] = []
    for shape in scene.shapes:
        here = scene.side(scene.get(shape))
        moved = _moves(scene, shape, same_row=True)
        found += [("side", other, (shape,)) for other in moved if other.side(other.get(shape)) != here]
    return found


def _existence(scene: Scene, rng: Random, world: World) -> list[_Option]:
    found: list[_Option] = []
    for shape in scene.shapes:
        item = scene.get(shape)
        for absent in world.shapes:
            if absent not in scene.shapes:
                other = scene.changed(item, replace(item, shape=absent))
                found.append(("shape", other, (rng.choice((shape, absent)),)))
    return found


def _count(scene: Scene, rng: Random, world: World) -> list[_Option]:
    if len(scene.shapes) - 1 not in world.num_objects:
        return []
    return [("presence", scene.changed(scene.get(shape), None), ()) for shape in scene.shapes]


def _relation(scene: Scene, rng: Random, world: World) -> list[_Option]:
    first, second = rng.sample(scene.shapes, 2)
    subject = (first, rng.choice(("left of", "right of")), second)
    here = scene.get(first).column - scene.get(second).column
    moved = _moves(scene, first, same_row=True)
    there = [(other, other.get(first).column - other.get(second).column) for other in moved]
    return [("place", other, subject) for other, distance in there if distance * here < 0]


def _caption(scene: Scene, rng: Random, world: World) -> list[_Option]:
    edit = rng.choice((_colour, _size, _side, _existence))
    return [(changed, other, ()) for changed, other, _ in edit(scene, rng, world)]


def _has_held_out(scene: Scene, world: World) -> bool:
    return any(world.held_out(item.shape, item.colour) for item in scene.items if item.shape in world.shapes)


_EDITS = {
    "existence": _existence,
    "colour": _colour,
    "size": _size,
    "side": _side,
    "count": _count,
    "relation": _relation,
    "caption": _caption,
}
