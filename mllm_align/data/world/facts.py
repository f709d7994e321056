"""The facts of a scene: what can be asked of it, the true answer, and what the prior alone would answer."""

from __future__ import annotations

from typing import NamedTuple

from mllm_align.data.world.catalogue import NUMBER_WORDS, SIDES, SIGN, SIGN_WORDS, SMALL, World
from mllm_align.data.world.language import RELATIONS, caption
from mllm_align.data.world.scenes import Scene

CLOSED_KINDS = ("existence", "colour", "size", "side", "count", "relation")
YES_NO = ("yes", "no")


class Fact(NamedTuple):
    """One thing that can be asked of a scene.

    `subject` holds what the paraphrase names: a shape, or a shape, a relation and another shape. `choices` is empty
    for open answers. `prior_answer` is what follows from the prior of the world and, for existence, from the partner
    of the shape, without a look at the thing asked about; None where the prior says nothing.
    """

    kind: str
    subject: tuple[str, ...]
    answer: str
    choices: tuple[str, ...]
    prior_answer: str | None


def facts(scene: Scene, kind: str, world: World = SMALL) -> list[Fact]:
    """Every fact of one kind in a scene; raises ValueError for an unknown kind."""
    if kind not in _READERS:
        raise ValueError(f"unknown kind of question {kind!r}; the world has {', '.join(_READERS)}")
    return _READERS[kind](scene, world)


def fact(scene: Scene, kind: str, subject: tuple[str, ...], world: World = SMALL) -> Fact:
    """The fact of one kind about one subject; raises KeyError where the scene does not settle it."""
    found = next((fact for fact in facts(scene, kind, world) if fact.subject == subject), None)
    if found is None:
        raise KeyError(f"the scene does not settle {kind} of {subject}")
    return found


def _existence(scene: Scene, world: World) -> list[Fact]:
    present = set(scene.shapes)
    return [
        Fact("existence", (s,), _yes(s in present), YES_NO, _yes(world.partner(s) in present)) for s in world.shapes
    ]


def _colour(scene: Scene, world: World) -> list[Fact]:
    return [
        Fact("colour", (i.shape,), i.colour, world.colours, world.typical_colour(i.shape))
        for i in scene.items
        if i.shape != SIGN
    ]


def _size(scene: Scene, world: World) -> list[Fact]:
    return [
        Fact("size", (i.shape,), i.size, world.sizes, world.typical_size(i.shape))
        for i in scene.items
        if i.shape != SIGN
    ]


def _side(scene: Scene, world: World) -> list[Fact]:
    return [
        Fact("side", (i.shape,), scene.side(i), SIDES, world.typical_side(i.shape))
        for i in scene.items
        if i.shape != SIGN
    ]


def _count(scene: Scene, world: World) -> list[Fact]:
    choices = tuple(NUMBER_WORDS[count] for count in world.num_objects)
    return [Fact("count", (), NUMBER_WORDS[len(scene.shapes)], choices, None)]


def _relation(scene: Scene, world: World) -> list[Fact]:
    found = []
    items = [item for item in scene.items if item.shape != SIGN]
    for a in items:
        for b in items:
            differences = {"left of": b.column - a.column, "above": b.row - a.row}
            differences |= {"right of": -differences["left of"], "below": -differences["above"]}
            for relation in RELATIONS:
                if differences[relation]:  # in the same row or column the jitter would decide
                    subject = (a.shape, relation, b.shape)
                    answer = _yes(differences[relation] > 0)
                    found.append(Fact("relation", subject, answer, YES_NO, _prior_relation(subject, world)))
    return found


def _prior_relation(subject: tuple[str, ...], world: World) -> str | None:
    first, relation, second = subject
    sides = world.typical_side(first), world.typical_side(second)
    if sides[0] == sides[1] or relation not in ("left of", "right of"):
        return None
    return _yes((sides[0] == "left") == (relation == "left of"))


def _text(scene: Scene, world: World) -> list[Fact]:
    signs = [item for item in scene.items if item.shape == SIGN]
    return [Fact("text", (), signs[0].text, SIGN_WORDS, None)] if len(signs) == 1 else []


def _caption(scene: Scene, world: World) -> list[Fact]:
    return [Fact("caption", (), caption(scene), (), None)]


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


_READERS = {
    "existence": _existence,
    "colour": _colour,
    "size": _size,
    "side": _side,
    "count": _count,
    "relation": _relation,
    "text": _text,
    "caption": _caption,
}
KINDS = tuple(_READERS)
