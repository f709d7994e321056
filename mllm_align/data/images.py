"""Reading images: paths, bytes, PIL images, `datasets.Image` dicts and numpy arrays, always as upright RGB.

An image may also be one that is still to be made of another: a `MadeImage`.
"""

from __future__ import annotations

import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mllm_align.data.errors import DataError, quoted

_SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")


class MadeImage(ABC):
    """An image that is made of another one when it is read; picklable, the same whenever it is made."""

    @abstractmethod
    def load(self, where: str) -> Image.Image:
        """Makes it: upright RGB.

        Raises:
            DataError: As `load_image`, for the image that it is made of.
        """

    @abstractmethod
    def key(self, where: str) -> str:
        """As `image_key`: equal for what is made of equal images in the same way."""

    @property
    @abstractmethod
    def sized_as(self) -> Any:
        """An image of the same size that costs less to read; itself where there is none."""


def load_image(value: Any, where: str = "image") -> Image.Image:
    """Decode one image completely.

    The EXIF orientation is applied. Transparency is laid over white, as viewers show it; 16-bit grey is scaled to 8.

    Args:
        value: A PIL image, a path, encoded bytes, a `datasets.Image` dict `{"bytes", "path"}`, a numpy array
            (H, W, 3) or (H, W) of uint8, or a `MadeImage`.
        where: How errors speak of it, such as "row 3, column 'image'".

    Returns:
        An RGB image that shares no memory with `value`.

    Raises:
        DataError: If the file is missing, unreadable or truncated, or the value is no image.
    """
    if isinstance(value, MadeImage):
        return value.load(where)
    source = _source(value, where)
    try:
        if isinstance(source, Image.Image):
            return _upright_rgb(source)
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
            return _upright_rgb(image)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    except UnidentifiedImageError:
        raise DataError(f"{where}: {_name(value)} is not an image that PIL can read; replace or drop it") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # PIL raises SyntaxError and ValueError, too, for files that are broken inside.
        raise DataError(
            f"{where}: {_name(value)} is truncated or damaged ({error}); fetch it again or drop the row"
        ) from None


def image_key(value: Any, where: str = "image") -> str:
    """A key that is equal for equal images: of the content, or for a path of the file, its size and time of change.

    Raises:
        DataError: As `load_image`, for what must be read to make the key.
    """
    if isinstance(value, MadeImage):
        return value.key(where)
    source = _source(value, where)
    if isinstance(source, Path):
        state = source.stat()
        return f"file:{os.path.abspath(source)}:{state.st_size}:{state.st_mtime_ns}"
    if isinstance(source, bytes):
        return f"bytes:{_digest(source)}"
    image = load_image(source, where)
    return f"pixels:{image.width}x{image.height}:{_digest(image.tobytes())}"


def _source(value: Any, where: str) -> Path | bytes | Image.Image:
    """What holds the image: an existing file, encoded bytes, or a PIL image."""
    if isinstance(value, Mapping):
        if value.get("bytes") is None and value.get("path") is None:
            raise DataError(f"{where}: an image dict needs 'bytes' or 'path', got keys {', '.join(map(str, value))}")
        value = value["bytes"] if value.get("bytes") is not None else value["path"]
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, np.ndarray):
        return _from_array(value, where)
    if isinstance(value, str | os.PathLike):
        return _existing(os.fspath(value), where)
    raise DataError(
        f"{where}: {type(value).__name__} {quoted(value)} is no image; give a path, bytes, a PIL image, a "
        "datasets.Image or a uint8 array of shape (height, width, 3)"
    )


def _existing(name: str | bytes, where: str) -> Path:
    text = os.fsdecode(name)
    if text.startswith(("http://", "https://")):
        raise DataError(f"{where}: {text} is an address; images are not fetched while training, download it first")
    path = Path(text).expanduser()
    if not path.is_file():
        mend = "" if path.is_absolute() else " below the working directory; load_rows takes image_folder=..."
        raise DataError(f"{where}: there is no image file {text}{mend}")
    return path


def _from_array(array: np.ndarray, where: str) -> Image.Image:
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise DataError(
            f"{where}: an array image must be uint8 of shape (height, width, 3), got {array.dtype} of {array.shape}"
        )
    return Image.fromarray(array)


def _upright_rgb(image: Image.Image) -> Image.Image:
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode in _SIXTEEN_BIT:
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray((grey // 257).astype(np.uint8) if grey.max(initial=0) > 255 else grey.astype(np.uint8))
    if image.mode == "F":
        raise DataError("a floating-point image has no known range; save it with 8 bits per channel")
    if "A" in image.getbands() or "transparency" in image.info:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return image.convert("RGB")


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _name(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value["path"]) if value.get("path") else f"{len(value['bytes'])} bytes"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} bytes"
    if isinstance(value, Image.Image):
        return str(getattr(value, "filename", "") or "the PIL image")
    return str(value)
