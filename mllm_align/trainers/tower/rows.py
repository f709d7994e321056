"""Images with captions as a tower is tuned on them: which rows show one picture, and which say one thing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from mllm_align.data.errors import DataError
from mllm_align.data.images import image_key, load_image
from mllm_align.data.loading import undecoded
from mllm_align.data.messages import read_response
from mllm_align.data.schema import missing_column, row_name


class CaptionedImages(Dataset[dict[str, Any]]):
    """Rows of an image and a caption, each caption and each picture known by a number.

    Args:
        rows: A dataset, or a list of mappings, with `image` (or `images` with one entry) and a text column.
        text_column: What holds the caption: text, or one assistant message (as `chosen` may be).

    Attributes:
        texts: The captions, each once.
        text: (N,) int64, which of `texts` a row has.
        picture: (N,) int64, equal for rows that show one picture.
        digest: Of all of them in order, as 32 hexadecimal digits.

    Raises:
        DataError: Naming the row that has no image or no caption; or if there are fewer than two rows.
    """

    def __init__(self, rows: Any, text_column: str = "chosen") -> None:
        if not hasattr(rows, "__len__"):
            raise DataError("a tower is tuned on rows that can be counted: load without streaming")
        self._rows = undecoded(rows)
        numbers: dict[str, int] = {}
        keys: dict[str, int] = {}
        text, picture = [], []
        for index in range(len(self._rows)):
            raw = self._rows[index]
            text.append(numbers.setdefault(_text(raw, index, text_column), len(numbers)))
            picture.append(keys.setdefault(image_key(_image(raw, index), _where(raw, index)), len(keys)))
        if len(numbers) < 2:
            raise DataError(f"{len(text)} rows with {len(numbers)} different captions have no negatives: give more")
        self.texts = list(numbers)
        self.text, self.picture = np.array(text), np.array(picture)
        known = hashlib.blake2b(digest_size=16)
        for part in (*keys, *numbers, self.text.tobytes(), self.picture.tobytes()):
            known.update(part.encode() if isinstance(part, str) else part)
        self.digest = known.hexdigest()

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The picture of a row, and its number."""
        return {"row": index, "image": self.image(index)}

    def image(self, index: int) -> Image.Image:
        """The picture of a row.

        Raises:
            DataError: If it cannot be read.
        """
        raw = self._rows[index]
        return load_image(_image(raw, index), _where(raw, index))


def negatives(columns: Sequence[np.ndarray], clusters: np.ndarray) -> np.ndarray:
    """(B, B) bool: whether two rows are each other's negatives.

    Args:
        columns: Per way in which rows can be alike, such as caption or picture, (B,) what each has: those that share
            anything are no negatives.
        clusters: (B,) the cluster of each: only rows of one cluster are negatives.
    """
    found = clusters[:, None] == clusters[None, :]
    for column in columns:
        found &= column[:, None] != column[None, :]
    return found


def _where(raw: Any, index: int) -> str:
    return f"{row_name(raw, index)}, column 'image'"


def _image(raw: Any, index: int) -> Any:
    image, images = raw.get("image"), raw.get("images")
    if image is None and images is not None:
        if len(images) != 1:
            raise DataError(f"{row_name(raw, index)} has {len(images)} images: a tower is tuned on rows with one each")
        image = images[0]
    if image is None:
        raise missing_column("image", list(raw), row_name(raw, index))
    return image


def _text(raw: Any, index: int, column: str) -> str:
    if raw.get(column) is None:
        raise missing_column(column, list(raw), row_name(raw, index), " with a caption (text_column names another)")
    return read_response(raw[column], column, row_name(raw, index))
