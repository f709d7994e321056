"""What can be in a picture: shapes, colours, sizes, and the prior that training scenes follow.

A `World` is a choice from the catalogue. `SMALL` is the one the shipped base model knows; a larger one draws on more
shapes and colours, a finer grid, or text signs.
"""

from __future__ import annotations

from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "hexagon", "moon", "heart")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (45, 85, 230),
    "yellow": (238, 212, 40),
    "purple": (150, 60, 190),
    "orange": (245, 135, 25),
    "cyan": (40, 195, 205),
    "brown": (120, 75, 40),
}
# The radius of a shape as a part of its cell. The gaps are wider than the jitter, so no size is ambiguous.
SIZES: dict[str, float] = {"small": 0.34, "large": 0.44, "medium": 0.39}
SIDES = ("left", "right")
NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
SIGN = "sign"
SIGN_WORDS = ("stop", "open", "exit", "taxi", "cafe", "sale")


@dataclass(frozen=True)
class World:
    """A choice from the catalogue.

    Args:
        image_size: Side of the square picture in pixels; a multiple of `grid`.
        grid: Cells per side; even, so that every cell lies left or right of the middle.
        num_shapes: How many of `SHAPES` occur; even, because shapes come in partners. Each is in a scene at most once.
        num_colours: How many of `COLOURS` occur.
        num_sizes: How many of `SIZES` occur.
        num_objects: The possible numbers of objects in a scene.
        num_signs: Text signs in a scene, each two cells wide. The shipped base model has not seen any.
    """

    image_size: int = 64
    grid: int = 4
    num_shapes: int = 6
    num_colours: int = 6
    num_sizes: int = 2
    num_objects: tuple[int, ...] = (3, 4, 5)
    num_signs: int = 0

    def __post_init__(self) -> None:
        if self.grid % 2 or self.image_size % self.grid:
            raise ValueError(f"World: grid {self.grid} must be even and divide image_size {self.image_size}")
        if self.num_shapes % 2 or not 2 <= self.num_shapes <= len(SHAPES):
            raise ValueError(f"World: num_shapes {self.num_shapes} must be even and at most {len(SHAPES)}")
        if not (3 <= self.num_colours <= len(COLOURS) and 2 <= self.num_sizes <= len(SIZES)):
            raise ValueError(f"World: 3 to {len(COLOURS)} colours and 2 to {len(SIZES)} sizes exist")
        if not 1 <= min(self.num_objects) <= max(self.num_objects) <= self.num_shapes:
            raise ValueError(f"World: num_objects {self.num_objects} must lie between 1 and num_shapes")
        if max(self.num_objects) > self.grid**2 // 2 - 2 * self.num_signs:
            raise ValueError(
                f"World: a grid of {self.grid} has no room for {max(self.num_objects)} objects on one side"
            )

    @property
    def shapes(self) -> tuple[str, ...]:
        """The shapes of this world."""
        return SHAPES[: self.num_shapes]

    @property
    def colours(self) -> tuple[str, ...]:
        """The colours of this world."""
        return tuple(COLOURS)[: self.num_colours]

    @property
    def sizes(self) -> tuple[str, ...]:
        """The sizes of this world."""
        return tuple(SIZES)[: self.num_sizes]

    def typical_colour(self, shape: str) -> str:
        """The colour that the prior gives to `shape`."""
        return self.colours[SHAPES.index(shape) % self.num_colours]

    def typical_size(self, shape: str) -> str:
        """The size that the prior gives to `shape`."""
        return self.sizes[SHAPES.index(shape) % self.num_sizes]

    def typical_side(self, shape: str) -> str:
        """The half of the picture in which the prior puts `shape`."""
        index = SHAPES.index(shape)
        return SIDES[(index // 2 + index) % 2]

    def partner(self, shape: str) -> str:
        """The shape that the prior puts beside `shape`; symmetric."""
        return SHAPES[SHAPES.index(shape) ^ 1]

    def held_out(self, shape: str, colour: str) -> bool:
        """Whether the combination never occurs in training: a fifth of all, spread over every shape and colour.

        A diagonal of a Latin square of order five, so that each shape and each colour keeps seen combinations; the
        typical combination of a shape is never held out.
        """
        return (tuple(COLOURS).index(colour) - SHAPES.index(shape) % self.num_colours) % 5 == 2


SMALL = World()
