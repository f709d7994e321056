"""CLIP-blind pairs as canonical rows: what counterfactual objectives, `data counterfactual` and `eval pairs` read.

`chosen` is what the input says of the image, `rejected` what it says of the contrast image: texts that were written
for one question each, so they answer the question of the row only where both images have the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mllm_align.data.errors import DataError
from mllm_align.data.loading import undecoded
from mllm_align.data.mine.best_pairs import Pairs
from mllm_align.data.mine.counterfactual import DIGITS
from mllm_align.data.mine.listing import Listing
from mllm_align.data.mine.pairs import plain
from mllm_align.data.schema import parse_row

MADE_BY = "clip-blind"
PROMPT = "What is in the image?"


def blind_rows(
    images: Any,
    listing: Listing,
    pairs: Pairs,
    report: Mapping[str, Any],
    *,
    prompt: str | None = None,
    texts: str | None = None,
) -> Iterator[dict[str, Any]]:
    """One canonical row per pair, in their order.

    Args:
        images: The folder or the rows that the listing is of.
        listing: Of the images.
        pairs: By row of the listing.
        report: Of the search, for provenance: `encoders` and `bounds`.
        prompt: Of every row; by default that of the input's rows, else `PROMPT`.
        texts: Column with the text of an image; by default `chosen`, where both images have the same prompt.
    """
    rows = undecoded(images) if listing.rows is not None else None
    encoders = {name: report["encoders"][name]["encoder"] for name in ("look_alike", "meaning")}
    for first, second, visual, semantic in zip(*(column.tolist() for column in pairs), strict=True):
        names = [listing.ids[row] if listing.ids[row] is not None else f"row-{row}" for row in (first, second)]
        said = {"prompt": prompt or PROMPT}
        if rows is not None:
            said = _texts(rows[first], rows[second], prompt, texts)
        yield {
            "id": f"{names[0]} | {names[1]}",
            "source": MADE_BY,
            "image": listing.image(first),
            "contrast_image": listing.image(second),
            **said,
            "similarity_visual": round(visual, DIGITS),
            "similarity_semantic": round(semantic, DIGITS),
            "made_by": MADE_BY,
            "made_of": names[0],
            "contrast_made_of": names[1],
            "encoder_visual": encoders["look_alike"],
            "encoder_semantic": encoders["meaning"],
        }


def refuse_unknown_texts(rows: Any, texts: str | None) -> None:
    """Before a long job.

    Raises:
        DataError: If images come without rows, or no row has a text in that column.
    """
    if texts is None:
        return
    if isinstance(rows, str):
        raise DataError(
            f"a folder of images has no column {texts!r}: give rows (.jsonl, .parquet) that name the images"
        )
    if not any(isinstance(row.get(texts), str) for row in rows):
        raise DataError(f"no row has a text in column {texts!r}: name the one that describes the image")


def _texts(
    first: Mapping[str, Any], second: Mapping[str, Any], prompt: str | None, texts: str | None
) -> dict[str, Any]:
    """The prompt, and both responses where there are two different ones to it."""
    if texts is not None:
        found = [row.get(texts) for row in (first, second)]
        return {"prompt": prompt or PROMPT, **_responses(*found)}
    try:
        parsed = [parse_row(row) for row in (first, second)]
    except DataError:  # of rows that hold images alone
        return {"prompt": prompt or PROMPT}
    own = first.get("prompt", PROMPT)
    if prompt is None and parsed[0].messages != parsed[1].messages:
        return {"prompt": own}
    return {"prompt": prompt or own, **_responses(*(row.responses.get("chosen") for row in parsed))}


def _responses(chosen: Any, rejected: Any) -> dict[str, str]:
    texts = [text.strip() if isinstance(text, str) else "" for text in (chosen, rejected)]
    return (
        dict(zip(("chosen", "rejected"), texts, strict=True))
        if all(texts) and plain(texts[0]) != plain(texts[1])
        else {}
    )
