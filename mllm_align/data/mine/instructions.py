"""Plain instruction rows, read one by one: one picture, one question, its answer; what is wrong with the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from mllm_align.data.errors import DataError
from mllm_align.data.loading import IMAGE_COLUMNS
from mllm_align.data.messages import PLACEHOLDER
from mllm_align.data.mine.problems import RowProblem, read_picture
from mllm_align.data.mine.speaking import Ask, Speaker
from mllm_align.data.schema import COLUMNS, DEFAULT_SOURCE, Row, parse_row, row_name


@dataclass(frozen=True)
class Instruction:
    """One row of plain instruction data.

    Attributes:
        number: Its place.
        id: Its own, or None.
        name: How errors speak of it.
        source: Of the row.
        image: As it was given.
        prompt: The question, `<image>` where the picture stands if that is not the beginning.
        system: A system prompt, or "".
        chosen: The answer.
        extras: Further columns that hold a text or a number.
    """

    number: int
    id: str | None
    name: str
    source: str
    image: Any
    prompt: str
    system: str
    chosen: str
    extras: Mapping[str, Any]

    @property
    def key(self) -> str:
        """What draws depend on: the id, else the place."""
        return self.id if self.id is not None else f"row-{self.number}"

    def picture(self) -> Image.Image:
        """Its picture, upright RGB.

        Raises:
            RowProblem: If the file is missing or damaged.
        """
        return read_picture(self.image, f"{self.name}, column 'image'")

    def ask(self, *images: Image.Image) -> Ask:
        """Its question about other pictures, or about none."""
        prompt = self.prompt if images else " ".join(self.prompt.replace(PLACEHOLDER, " ").split())
        return Ask(prompt, images, self.system)

    def as_row(self) -> dict[str, Any]:
        """The canonical row, without what it does not have."""
        row = {"id": self.id, "source": None if self.source == DEFAULT_SOURCE else self.source, "image": self.image}
        row |= {"system": self.system or None, "prompt": self.prompt, "chosen": self.chosen, **self.extras}
        return {name: value for name, value in row.items() if value is not None}


def read_instruction(raw: Mapping[str, Any], number: int) -> Instruction:
    """One row; its picture is not read.

    Raises:
        RowProblem: If it lacks a text or a picture, has several pictures, or earlier turns.
    """
    where = row_name(raw, number)
    try:
        row = parse_row({**raw, "rejected": None, "contrast_image": None, "contrast_index": None}, number)
    except DataError as error:
        blank = any(raw.get(name) is not None and not str(raw[name]).strip() for name in ("prompt", "chosen"))
        raise RowProblem("missing text" if blank else "invalid row", str(error)) from None
    if "chosen" not in row.responses:
        raise RowProblem("missing text", f"{where}: no column 'chosen'")
    if len(row.images) != 1:
        kind = "several images" if row.images else "missing image"
        raise RowProblem(kind, f"{where}: {len(row.images)} images; one is needed")
    roles = [message["role"] for message in row.messages]
    if roles not in (["user"], ["system", "user"]):
        raise RowProblem("several turns", f"{where}: a conversation of {', '.join(roles)}; one question is needed")
    own = {*COLUMNS, *IMAGE_COLUMNS, "messages", "completion"}
    return Instruction(
        number=number,
        id=row.id,
        name=where,
        source=row.source,
        image=row.images[0],
        prompt=_text(row, -1).removeprefix(PLACEHOLDER),
        system=_text(row, 0) if len(roles) > 1 else "",
        chosen=row.responses["chosen"].strip(),
        extras={key: value for key, value in raw.items() if key not in own and isinstance(value, str | int | float)},
    )


def answers_to(asks: Sequence[Ask], speaker: Speaker, max_new_tokens: int) -> Iterator[str | RowProblem]:
    """The answer to each; where a model cannot be asked something (`DataError`), that one is a problem."""
    try:
        yield from speaker(asks, max_new_tokens) if asks else ()
    except DataError as error:
        if len(asks) == 1:
            yield RowProblem("cannot be asked", str(error))
            return
        for ask in asks:
            yield from answers_to([ask], speaker, max_new_tokens)


def _text(row: Row, place: int) -> str:
    parts = row.messages[place]["content"]
    return "".join(PLACEHOLDER if part["type"] == "image" else part["text"] for part in parts)
