"""The pictures among which similar ones are looked for: those of the rows, and further ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mllm_align.data.loading import undecoded


class Gallery(Sequence[Mapping[str, Any]]):
    """`{"image", "id"}` by number: first the picture of each row, then the others; read when asked for.

    A row without exactly one picture has None here, which is a problem wherever pictures are read.

    Args:
        rows: Canonical rows.
        others: Further rows, or what stands for one picture each as `{"image", "id"}`.
    """

    def __init__(self, rows: Any, others: Any = ()) -> None:
        self.rows, self.others = undecoded(rows), undecoded(others)

    def __len__(self) -> int:
        return len(self.rows) + len(self.others)

    def __getitem__(self, number: Any) -> Any:
        """The picture of one number."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        row = self.rows[number] if number < len(self.rows) else self.others[number - len(self.rows)]
        images = [row["image"]] if row.get("image") is not None else list(row.get("images") or ())
        return {"image": images[0] if len(images) == 1 else None, "id": row.get("id")}

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return (self[number] for number in range(len(self)))
