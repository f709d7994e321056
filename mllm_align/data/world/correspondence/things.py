"""What two pictures of the same things hold, and how hard the things are to tell apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mllm_align.data.world.catalogue import NUMBER_WORDS, World

TEXTURES = ("plain", "striped", "hollow")
SPOTS = ("none", "dot", "bar")
# Apart by more than the zoom.
TWO_SIZES = ("small", "large")
LEAST_ZOOM = 0.88
_WITHOUT_MIDDLE = ("ring", "moon")
EDGES = ("left", "right", "top", "bottom")
LARGEST_GRID = len(NUMBER_WORDS) - 1


@dataclass(frozen=True)
class Thing:
    """One object, the same in every picture. `name` is its identity within the scene."""

    name: str
    shape: str
    colour: str
    size: str
    texture: str
    spot: str

    @property
    def looks(self) -> tuple[str, ...]:
        """What can be seen of it."""
        return self.shape, self.colour, self.size, self.texture, self.spot


@dataclass(frozen=True)
class Placed:
    """A thing in its cell, shifted by whole pixels; `hidden_share` of it lies under a bar at its `hidden_edge`."""

    thing: Thing
    row: int
    column: int
    dx: int = 0
    dy: int = 0
    hidden_edge: str = ""
    hidden_share: float = 0.0


@dataclass(frozen=True)
class Frame:
    """One picture before it is drawn.

    Attributes:
        placed: What is where.
        image_size: Side in pixels.
        grid: Cells per side.
        background: Grey level.
        zoom: Of all radii.
        light: Factor on all grey levels.
        noise: Standard deviation of the pixels' noise, in grey levels of 255.
        seed: Of the noise.
    """

    placed: tuple[Placed, ...]
    image_size: int
    grid: int
    background: int
    zoom: float = 1.0
    light: float = 1.0
    noise: float = 0.0
    seed: int = 0

    @property
    def content(self) -> list[Any]:
        """What it shows, without jitter, light and noise: parts are disjoint in this."""
        return [self.grid, sorted((each.row, each.column, *each.thing.looks) for each in self.placed)]


@dataclass(frozen=True)
class Difficulty:
    """How hard a thing is to find again.

    Args:
        num_things: In each picture; those of the second are the candidates.
        num_alike: How many of them are look-alikes: one attribute away from the first of them.
        differ_in: The attributes in which look-alikes may differ.
        none_rate: How often one of the two things that are asked for is not in the second picture.
        least_zoom: The second picture is drawn at this scale to 1; 0.88 at the least, or sizes could not be told.
        light: Factors on brightness lie within 1 - light and 1.
        noise: Largest standard deviation of the pixels' noise, in grey levels.
        hidden_rate: How often a thing of the second picture is partly hidden.
        hidden_share: How much of its width or height at the most; its middle stays in sight.
    """

    num_things: int = 4
    num_alike: int = 3
    differ_in: tuple[str, ...] = ("size", "texture", "spot")
    none_rate: float = 0.4
    least_zoom: float = 0.88
    light: float = 0.15
    noise: float = 6.0
    hidden_rate: float = 0.25
    hidden_share: float = 0.2

    def __post_init__(self) -> None:
        if not 2 <= self.num_alike <= self.num_things <= LARGEST_GRID:
            raise ValueError(
                f"Difficulty: 2 <= num_alike <= num_things <= {LARGEST_GRID} must hold, got num_alike "
                f"{self.num_alike} and num_things {self.num_things}"
            )
        unknown = set(self.differ_in) - {"shape", "colour", "size", "texture", "spot"}
        if unknown or not self.differ_in:
            raise ValueError(
                "Difficulty: differ_in must be among shape, colour, size, texture, spot, got "
                f"{', '.join(sorted(unknown)) or 'nothing'}"
            )
        if not LEAST_ZOOM <= self.least_zoom <= 1:
            raise ValueError(
                f"Difficulty: least_zoom must lie in {LEAST_ZOOM} to 1, where sizes can be told, got {self.least_zoom}"
            )
        shares = (self.none_rate, self.light, self.hidden_rate, self.hidden_share / 0.3)
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError("Difficulty: rates and light lie in 0 to 1, hidden_share in 0 to 0.3")


DIFFICULTIES: Mapping[str, Difficulty] = {
    "easy": Difficulty(3, 2, ("shape", "colour"), 0.0, 1.0, 0.0, 0.0, 0.0, 0.0),
    "medium": Difficulty(),
    "hard": Difficulty(6, 5, light=0.3, noise=12.0, hidden_rate=0.5, hidden_share=0.3),
}


def shapes_of(world: World) -> tuple[str, ...]:
    """The world's shapes that have a middle, where a spot can be."""
    return tuple(shape for shape in world.shapes if shape not in _WITHOUT_MIDDLE)


def variants(thing: Thing, attribute: str, world: World) -> list[Thing]:
    """The things that differ from it in one attribute alone."""
    values = {
        "shape": shapes_of(world),
        "colour": world.colours,
        "size": TWO_SIZES,
        "texture": TEXTURES,
        "spot": SPOTS,
    }[attribute]
    fields = vars(thing)
    return [Thing(**{**fields, attribute: value}) for value in values if value != fields[attribute]]
