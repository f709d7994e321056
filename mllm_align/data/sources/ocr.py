"""Pages with the words that were read on them, as OCR engines and form data sets write them.

{"image": "page.png", "width": 1240, "height": 1754, "words": [{"text": "Total", "box": [80, 90, 160, 112]}]}

Boxes are left, top, right and bottom, or corners [[x, y], ...]; in pixels, of a page of `width` and `height`, or as
shares from 0 to 1. A row with a `prompt` keeps it and its response; others ask for the text. Each word becomes an
object as it is: `mllm-align data ocr` puts words together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mllm_align.data.errors import DataError, quoted
from mllm_align.data.ocr.layout import page_text
from mllm_align.data.ocr.words import PROMPT, read_words


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """A canonical row with `image`, `objects`, `prompt` and `chosen`."""
    where = f"page {quoted(row.get('id') or row.get('image'))}"
    size = (row.get("width"), row.get("height"))
    if any(side is not None for side in size) and not all(type(side) is int and side > 0 for side in size):
        raise DataError(f"{where}: width and height must be numbers of pixels, got {size[0]!r} and {size[1]!r}")
    known = size if size[0] is not None else None
    words = read_words(row["words"], known, where)  # type: ignore[arg-type]
    new = {"image": row["image"], "objects": [{"box": list(word.box), "text": word.text} for word in words]}
    if row.get("prompt") is not None:
        kept = {name: row[name] for name in ("prompt", "chosen", "rejected") if row.get(name) is not None}
        return {**new, **kept}
    aspect = known[0] / known[1] if known else 1.0  # type: ignore[operator]
    return {**new, "prompt": PROMPT, "chosen": page_text(words, aspect)}
