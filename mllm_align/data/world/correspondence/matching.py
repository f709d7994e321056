"""Draw two pictures of the same things, and two look-alikes of the first to be found in the second."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from random import Random

from mllm_align.data.world.catalogue import NUMBER_WORDS, SMALL, World
from mllm_align.data.world.correspondence.things import (
    DIFFICULTIES,
    EDGES,
    SPOTS,
    TEXTURES,
    TWO_SIZES,
    Difficulty,
    Frame,
    Placed,
    Thing,
    shapes_of,
    variants,
)
from mllm_align.data.world.partition import check_part, part_of
from mllm_align.data.world.splits import generator

NONE = NUMBER_WORDS[0]
# In the words of the shipped base. "On the left" is the first picture.
PARAPHRASES = {
    "seen": (
        "Which of the objects on the right is the one on the left : {0}?",
        "Tell me which of the objects on the right is the one on the left : {0}.",
        "Which one is it : {0}?",
    ),
    "held_out": ("Which is the one on the left : {0}?",),
    # For models that know more words.
    "full": (
        "The first picture marks one object with a contour. Which of the numbered objects in the second picture is "
        "it? If it is not there, the answer is no. Answer with one word: {0}.",
    ),
}


@dataclass(frozen=True)
class Matching:
    """Two pictures, and two things of the first of which one or both are in the second.

    Attributes:
        id: Split, difficulty, seed and number.
        frames: The two pictures.
        asked: Names of two look-alikes in the first picture; which of them comes first was drawn.
        numbers: Of each thing in the second picture, from 1, drawn too.
        differs_in: The attribute in which the two differ.
        split: train, validation or test.
        text: The question.
    """

    id: str
    frames: tuple[Frame, Frame]
    asked: tuple[str, str]
    numbers: Mapping[str, int]
    differs_in: str
    split: str
    text: str

    @property
    def answers(self) -> tuple[str, str]:
        """For each of the two the word of its number, or "no"."""
        first, second = (NUMBER_WORDS[self.numbers.get(name, 0)] for name in self.asked)
        return first, second

    @property
    def choices(self) -> tuple[str, ...]:
        """The words of all numbers, and "no"."""
        return choices_of(len(self.numbers))


def choices_of(count: int) -> tuple[str, ...]:
    """The possible answers with so many candidates."""
    return (*NUMBER_WORDS[1 : count + 1], NONE)


def iter_matchings(
    split: str = "train",
    seed: int = 0,
    difficulty: str | Difficulty = "medium",
    paraphrases: str = "seen",
    world: World = SMALL,
) -> Iterator[Matching]:
    """Endless matchings of a split, none twice; neither of the two pictures is, in content, in another split.

    Numbers are drawn, so that neither place nor text tells anything, and what is asked first is as often there as what
    is asked second.

    Args:
        split: train, validation or test.
        seed: Another seed, another sequence.
        difficulty: A name of `DIFFICULTIES`, or one of your own.
        paraphrases: `seen` in training, `held_out`, or `full`, in words that the shipped base does not have.
        world: Shapes, colours, picture size and grid. Combinations that are held out of training are in none.

    Raises:
        ValueError: If a name is unknown, or the world has no room.
    """
    check_part(split)
    if isinstance(difficulty, str) and difficulty not in DIFFICULTIES:
        raise ValueError(f"unknown difficulty {difficulty!r}; there are {', '.join(DIFFICULTIES)}")
    if paraphrases not in PARAPHRASES:
        raise ValueError(f"unknown set of paraphrases {paraphrases!r}; there are {', '.join(PARAPHRASES)}")
    how = DIFFICULTIES[difficulty] if isinstance(difficulty, str) else difficulty
    if how.num_things > world.grid**2:
        raise ValueError(f"a grid of {world.grid} has no room for {how.num_things} things")
    rng = generator("correspondence", split, how, seed, world)
    name = difficulty if isinstance(difficulty, str) else "own"
    options = " or ".join(choices_of(how.num_things))
    seen: set[str] = set()
    number = 0
    while True:
        found, differs_in = _things(rng, how, world)
        there = _there(rng, found, how, world)
        frames = _first_frame(rng, found, world), _second_frame(rng, there, how, world)
        key = repr([frame.content for frame in frames])
        if key in seen or any(part_of(frame.content) != split for frame in frames):
            continue
        seen.add(key)
        asked = [found[0].name, found[1].name]
        rng.shuffle(asked)
        order = [thing.name for thing in there]
        rng.shuffle(order)
        yield Matching(
            id=f"{split}/{name}/{seed}/{number}",
            frames=frames,
            asked=(asked[0], asked[1]),
            numbers={thing: place for place, thing in enumerate(order, start=1)},
            differs_in=differs_in,
            split=split,
            text=rng.choice(PARAPHRASES[paraphrases]).format(options),
        )
        number += 1


def _things(rng: Random, how: Difficulty, world: World) -> tuple[list[Thing], str]:
    """The things of the first picture, the two that are asked for first, and what these two differ in."""
    first = _any_thing(rng, world)
    differs_in = rng.choice(how.differ_in)
    found = [first, rng.choice([thing for thing in variants(first, differs_in, world) if _allowed(thing, world)])]
    while len(found) < how.num_alike:
        found.append(_alike(rng, first, found, how, world))
    while len(found) < how.num_things:
        other = _any_thing(rng, world)
        if other.shape not in {thing.shape for thing in found[: how.num_alike]}:
            found.append(other)
    return [replace(thing, name=f"thing {place}") for place, thing in enumerate(found)], differs_in


def _there(rng: Random, things: list[Thing], how: Difficulty, world: World) -> list[Thing]:
    """The things of the second picture: the same, or one of the two with a look-alike in its place."""
    if rng.random() >= how.none_rate:
        return things
    gone = rng.randrange(2)
    new = replace(_alike(rng, things[gone], things, how, world), name="another")
    return [new if place == gone else thing for place, thing in enumerate(things)]


def _any_thing(rng: Random, world: World) -> Thing:
    while True:
        looks = (rng.choice(values) for values in (shapes_of(world), world.colours, TWO_SIZES, TEXTURES, SPOTS))
        thing = Thing("", *looks)
        if _allowed(thing, world):
            return thing


def _alike(rng: Random, thing: Thing, others: list[Thing], how: Difficulty, world: World) -> Thing:
    taken = {other.looks for other in others}
    options = [
        other
        for attribute in how.differ_in
        for other in variants(thing, attribute, world)
        if other.looks not in taken and _allowed(other, world)
    ]
    if not options:
        raise ValueError(f"look-alikes that differ in {', '.join(how.differ_in)} alone are fewer than are wanted")
    return rng.choice(options)


def _allowed(thing: Thing, world: World) -> bool:
    return not world.held_out(thing.shape, thing.colour)


def _first_frame(rng: Random, things: list[Thing], world: World) -> Frame:
    return Frame(_placed(rng, things, world), world.image_size, world.grid, background=rng.randint(228, 252))


def _second_frame(rng: Random, things: list[Thing], how: Difficulty, world: World) -> Frame:
    placed = tuple(
        replace(each, hidden_edge=rng.choice(EDGES), hidden_share=rng.uniform(how.hidden_share / 2, how.hidden_share))
        if rng.random() < how.hidden_rate
        else each
        for each in _placed(rng, things, world)
    )
    return Frame(
        placed,
        world.image_size,
        world.grid,
        background=rng.randint(190, 252),
        zoom=rng.randint(round(100 * how.least_zoom), 100) / 100,
        light=rng.uniform(1 - how.light, 1),
        noise=rng.uniform(0, how.noise),
        seed=rng.getrandbits(32),
    )


def _placed(rng: Random, things: list[Thing], world: World) -> tuple[Placed, ...]:
    cells = rng.sample([(row, column) for row in range(world.grid) for column in range(world.grid)], len(things))
    jitter = max(1, world.image_size // world.grid // 16)
    return tuple(
        Placed(thing, row, column, rng.randint(-jitter, jitter), rng.randint(-jitter, jitter))
        for thing, (row, column) in zip(things, cells, strict=True)
    )
