"""The scene graph: what a picture shows, as data with a canonical form and a content hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

from mllm_align.data.world.catalogue import SIGN


@dataclass(frozen=True, order=True)
class Item:
    """One object in its cell.

    `row` and `column` count cells from the top left, `dx` and `dy` shift it by whole pixels within the cell. A text
    sign has the shape `sign`, its word in `text`, and covers its cell and the one to the right.
    """

    row: int
    column: int
    shape: str
    colour: str
    size: str
    dx: int = 0
    dy: int = 0
    text: str = ""

    @property
    def span(self) -> int:
        """Cells that it covers, from its own to the right."""
        return 2 if self.shape == SIGN else 1


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn. `items` stand in reading order; `background` is a grey level."""

    items: tuple[Item, ...]
    image_size: int = 64
    grid: int = 4
    background: int = 240

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", tuple(sorted(self.items)))

    def find(self, shape: str) -> Item | None:
        """The object of that shape, or None: a shape occurs at most once."""
        return next((item for item in self.items if item.shape == shape), None)

    def get(self, shape: str) -> Item:
        """The object of that shape; raises KeyError where there is none."""
        item = self.find(shape)
        if item is None:
            raise KeyError(f"no {shape} in the scene")
        return item

    @cached_property
    def shapes(self) -> tuple[str, ...]:
        """The shapes of the objects in reading order, signs left out."""
        return tuple(item.shape for item in self.items if item.shape != SIGN)

    def side(self, item: Item) -> str:
        """`left` or `right` half of the picture."""
        return "left" if item.column < self.grid // 2 else "right"

    def free_cells(self) -> list[tuple[int, int]]:
        """The (row, column) of every empty cell in reading order."""
        taken = {(item.row, item.column + step) for item in self.items for step in range(item.span)}
        cells = ((row, column) for row in range(self.grid) for column in range(self.grid))
        return [cell for cell in cells if cell not in taken]

    def changed(self, old: Item, new: Item | None) -> Scene:
        """The scene with `old` replaced by `new`, or taken away where `new` is None."""
        items = [item for item in self.items if item != old]
        return replace(self, items=tuple(items if new is None else [*items, new]))

    def to_json(self) -> str:
        """The canonical form: sorted keys, reading order, no white space."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Scene:
        """The scene of a canonical form."""
        fields = json.loads(text)
        return cls(**{**fields, "items": tuple(Item(**item) for item in fields["items"])})

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the canonical form."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of what the scene shows, without jitter and background.

        Splits are disjoint in this hash, so two pictures that differ only in jitter never lie in two splits.
        """
        facts = [(i.row, i.column, i.shape, i.colour, i.size, i.text) for i in self.items]
        return hashlib.sha256(json.dumps([self.grid, facts], separators=(",", ":")).encode()).hexdigest()


def manifest_hash(scenes: Sequence[Scene]) -> str:
    """The identity of a benchmark: SHA-256 over the hashes of its scenes in their order."""
    return hashlib.sha256("\n".join(scene.hash for scene in scenes).encode()).hexdigest()
