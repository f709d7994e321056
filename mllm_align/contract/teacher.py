"""A frozen external encoder whose features are targets: which one, as data."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

KINDS = ("auto", "vision", "document")


class Teacher(NamedTuple):
    """A model of `transformers` and what is taken of it.

    Attributes:
        model: Name on the Hub, or folder.
        kind: "vision" is shown the image alone (DINOv2, SigLIP, CLIP, RADIO, ...), "document" the words of the objects
            and where they stand too (LayoutLMv3); "auto" goes by the model.
        size: Side in pixels of the square that an image is shown as; the model's own where None.
        layer: Which hidden state, as `transformers` counts them (0 the embeddings, -1 the last); its output where
            None.
        revision: Of the Hub: branch, tag or commit.
    """

    model: str
    kind: str = "auto"
    size: int | None = None
    layer: int | None = None
    revision: str | None = None

    def __str__(self) -> str:
        given = (
            f"{name} {value}" for name, value in zip(self._fields[2:], self[2:], strict=True) if value is not None
        )
        return " ".join((self.model, *given))


def attributes_of(kind: Any, given: Any, what: str, owner: str) -> dict[str, Any]:
    """The attributes of a model that is described: none unknown, values as they are given.

    Args:
        kind: A `NamedTuple` with an attribute `model`.
        given: One of them, the `model` alone, or a mapping of attributes.
        what: What such a model is called in errors.
        owner: Whose option it is, for errors.

    Raises:
        ValueError: If it is none of these, or an attribute is unknown.
    """
    if isinstance(given, kind):
        given = given._asdict()
    if isinstance(given, str):
        given = {"model": given}
    if not isinstance(given, Mapping) or not isinstance(given.get("model"), str) or not given["model"]:
        raise ValueError(f"{owner}: {what} must be a model's name, or a mapping with `model`, got {given!r}")
    for key in given:
        if key not in kind._fields:
            near = get_close_matches(str(key), kind._fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{owner}: {what} has no {key!r}{hint} ({', '.join(kind._fields)})")
    return dict(given)


def teacher_from(given: Any, owner: str) -> Teacher:
    """The teacher that an objective's option says.

    Args:
        given: A `Teacher`, its `model`, or a mapping of its attributes.
        owner: The objective, for errors.

    Raises:
        ValueError: If it is none of these, or an attribute is unknown or makes no sense.

    Example:
        >>> teacher_from({"model": "facebook/dinov2-base", "size": 448}, "DocoLike").size
        448
    """
    made = Teacher(**attributes_of(Teacher, given, "teacher", owner))
    if made.kind not in KINDS:
        raise ValueError(f"{owner}: a teacher's kind must be one of {', '.join(KINDS)}, got {made.kind!r}")
    if made.size is not None and (type(made.size) is not int or made.size < 1):
        raise ValueError(f"{owner}: a teacher's size must be a number of pixels above 0, got {made.size!r}")
    if made.layer is not None and type(made.layer) is not int:
        raise ValueError(f"{owner}: a teacher's layer must be a whole number, got {made.layer!r}")
    if made.revision is not None and not isinstance(made.revision, str):
        raise ValueError(f"{owner}: a teacher's revision must be text, got {made.revision!r}")
    return made
