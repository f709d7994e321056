"""What a short caption says of a scene, as data: whether it is true, in which words, and how it is made false.

The kinds of false captions are those of SugarCrepe (Hsieh et al., 2023), https://arxiv.org/abs/2306.14610, and a
number that is replaced: two objects or their attributes are exchanged, one is replaced, one is added. A shape is in a
scene at most once, so what is said of it is true or false and nothing between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from random import Random

from mllm_align.data.world.catalogue import NUMBER_WORDS, SIDES, SIGN, SMALL, World
from mllm_align.data.world.scenes import Scene

NEGATIVE_KINDS = (
    "swap_object",
    "swap_attribute",
    "replace_object",
    "replace_attribute",
    "replace_relation",
    "replace_count",
    "add_object",
    "add_attribute",
)
# Ways to say the same; the first is that of captions.
FORMS = ("plain", "turned", "there", "predicate")
# What an object may be said without, and what is said of all of them.
OPTIONAL = ("colour", "size")
ATTRIBUTES = (*OPTIONAL, "side")

Allowed = Callable[[str, str], bool]


@dataclass(frozen=True)
class Said:
    """One object as it is said to be; `colour` or `size` may be left open."""

    shape: str
    side: str
    colour: str | None = None
    size: str | None = None

    @property
    def phrase(self) -> str:
        """The object with its attributes before it."""
        return " ".join(["a", *self._open, self.shape, "on the", self.side])

    @property
    def sentence(self) -> str:
        """The same with its attributes behind it."""
        return f"the {self.shape} on the {self.side} is {' and '.join(self._open)}"

    @property
    def _open(self) -> list[str]:
        return [word for word in (self.size, self.colour) if word is not None]


@dataclass(frozen=True)
class Statement:
    """Objects that are there, and how many there are in all where `count` is given."""

    objects: tuple[Said, ...]
    count: int | None = None

    def text(self, form: str = "plain") -> str:
        """In words that the world's language has; forms differ in order and in grammar, not in what they say.

        Raises:
            ValueError: If there is no such form.
        """
        if form not in FORMS:
            raise ValueError(f"unknown form {form!r}; there are {', '.join(FORMS)}")
        said = [each.sentence if form == "predicate" else each.phrase for each in self.objects]
        whole = " and ".join(reversed(said) if form == "turned" else said)
        whole = f"there is {whole}" if form == "there" else whole
        return whole if self.count is None else f"{whole}. there are {NUMBER_WORDS[self.count]} objects."

    def holds(self, scene: Scene) -> bool:
        """Whether all that it says is true of a scene."""
        if self.count is not None and self.count != len(scene.shapes):
            return False
        return all(_fits(each, scene) for each in self.objects)

    def changed(self, place: int, **attributes: str) -> Statement:
        """The same with other attributes of one object."""
        objects = list(self.objects)
        objects[place] = replace(objects[place], **attributes)
        return replace(self, objects=tuple(objects))


def _fits(said: Said, scene: Scene) -> bool:
    item = scene.find(said.shape)
    if item is None or scene.side(item) != said.side:
        return False
    return said.colour in (None, item.colour) and said.size in (None, item.size)


def statements(scene: Scene, num_objects: int) -> list[Statement]:
    """Every true statement about so many objects, fully described, in reading order."""
    items = [item for item in scene.items if item.shape != SIGN]
    said = [Said(item.shape, scene.side(item), item.colour, item.size) for item in items]
    return [Statement(each) for each in combinations(said, num_objects)]


def draw(scene: Scene, num_objects: int, rng: Random, *, count: bool = False, leave_out: bool = False) -> Statement:
    """A true statement about so many objects in any order.

    Args:
        scene: What it is about.
        num_objects: As many as the scene has at the most.
        rng: Draws which objects, their order, and what is left open.
        count: Whether it says how many objects there are in all.
        leave_out: Whether colour or size of one object is left open.
    """
    said = list(rng.choice(statements(scene, num_objects)).objects)
    rng.shuffle(said)
    if leave_out:
        place = rng.randrange(num_objects)
        said[place] = replace(said[place], **{rng.choice(OPTIONAL): None})
    return Statement(tuple(said), len(scene.shapes) if count else None)


def made_false(
    statement: Statement, scene: Scene, kind: str, rng: Random, allowed: Allowed, world: World = SMALL
) -> Statement | None:
    """The statement with one change, after which it is false of the scene; None where no change of the kind is.

    Args:
        statement: True of the scene.
        scene: What it is about.
        kind: One of `NEGATIVE_KINDS`.
        rng: Draws the change.
        allowed: Whether a shape may be said to have a colour: a combination that true captions never name would tell
            a false one by its words alone.
        world: What shapes, colours, sizes and numbers there are.

    Raises:
        ValueError: If there is no such kind.
    """
    if kind not in NEGATIVE_KINDS:
        raise ValueError(f"unknown kind of negative {kind!r}; there are {', '.join(NEGATIVE_KINDS)}")
    groups = []
    for options in _CHANGES[kind](statement, scene, world):
        fitting = [each for each in options if not each.holds(scene) and _is_sayable(each, allowed)]
        groups += [fitting] if fitting else []
    return rng.choice(rng.choice(groups)) if groups else None


def paraphrase(statement: Statement, rng: Random) -> str:
    """The statement in other words."""
    plain = statement.text()
    return rng.choice([text for text in map(statement.text, FORMS[1:]) if text != plain])


def reworded(statement: Statement) -> str:
    """The statement in the words farthest from its plain ones: attributes behind objects, in the opposite order."""
    return replace(statement, objects=statement.objects[::-1]).text("predicate")


def _is_sayable(statement: Statement, allowed: Allowed) -> bool:
    return all(each.colour is None or allowed(each.shape, each.colour) for each in statement.objects)


# Options in groups, so that one with many values (colours) is not drawn more often than one with few (sizes).
_Groups = Iterator[list[Statement]]


def _pairs(statement: Statement) -> Iterator[tuple[int, int]]:
    return combinations(range(len(statement.objects)), 2)


def _swap(statement: Statement, first: int, second: int, name: str) -> list[Statement]:
    values = getattr(statement.objects[first], name), getattr(statement.objects[second], name)
    if None in values or values[0] == values[1]:
        return []
    return [statement.changed(first, **{name: values[1]}).changed(second, **{name: values[0]})]


def _swap_object(statement: Statement, scene: Scene, world: World) -> _Groups:
    for first, second in _pairs(statement):
        yield _swap(statement, first, second, "shape")


def _swap_attribute(statement: Statement, scene: Scene, world: World) -> _Groups:
    for first, second in _pairs(statement):
        for name in ATTRIBUTES:
            yield _swap(statement, first, second, name)


def _replace_object(statement: Statement, scene: Scene, world: World) -> _Groups:
    for place in range(len(statement.objects)):
        yield [statement.changed(place, shape=shape) for shape in _absent(scene, world)]


def _replace_attribute(statement: Statement, scene: Scene, world: World) -> _Groups:
    for place, each in enumerate(statement.objects):
        for name in OPTIONAL:
            if getattr(each, name) is not None:
                yield _with_others(statement, place, name, world)


def _replace_relation(statement: Statement, scene: Scene, world: World) -> _Groups:
    for place in range(len(statement.objects)):
        yield _with_others(statement, place, "side", world)


def _replace_count(statement: Statement, scene: Scene, world: World) -> _Groups:
    if statement.count is not None:
        yield [replace(statement, count=count) for count in world.num_objects if count >= len(statement.objects)]


def _add_object(statement: Statement, scene: Scene, world: World) -> _Groups:
    for shape in _absent(scene, world):
        yield [
            replace(statement, objects=(*statement.objects, Said(shape, side, colour, size)))
            for side in SIDES
            for colour in world.colours
            for size in world.sizes
        ]


def _add_attribute(statement: Statement, scene: Scene, world: World) -> _Groups:
    for place, each in enumerate(statement.objects):
        for name in OPTIONAL:
            if getattr(each, name) is None:
                yield _with_others(statement, place, name, world)


def _with_others(statement: Statement, place: int, name: str, world: World) -> list[Statement]:
    """Every value of one attribute; the true one is told by the scene."""
    values: Sequence[str] = {"colour": world.colours, "size": world.sizes, "side": SIDES}[name]
    return [statement.changed(place, **{name: value}) for value in values]


def _absent(scene: Scene, world: World) -> list[str]:
    return [shape for shape in world.shapes if scene.find(shape) is None]


_CHANGES: dict[str, Callable[[Statement, Scene, World], _Groups]] = {
    "swap_object": _swap_object,
    "swap_attribute": _swap_attribute,
    "replace_object": _replace_object,
    "replace_attribute": _replace_attribute,
    "replace_relation": _replace_relation,
    "replace_count": _replace_count,
    "add_object": _add_object,
    "add_attribute": _add_attribute,
}
