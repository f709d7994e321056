"""Chosen pairs as canonical rows that say where they are from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from PIL import ImageOps

from mllm_align.data.images import load_image
from mllm_align.data.loading import undecoded
from mllm_align.data.mine.pairs import read_pair
from mllm_align.data.mine.selection import FLIP, Candidate


def output_rows(rows: Any, candidates: Sequence[Candidate]) -> Iterator[dict[str, Any]]:
    """Canonical rows with provenance: how alike the images are, what made the pair and its texts, where it is from."""
    rows = undecoded(rows)
    several = any(len([role for role, _ in item.turns if role != "system"]) > 1 for item in candidates)
    system = any(role == "system" for item in candidates for role, _ in item.turns)
    extras = dict.fromkeys(key for item in candidates for key in item.extras)
    for item in candidates:
        pair = read_pair(rows[item.row], item.row)
        flipped = item.made_by == FLIP
        contrast = ImageOps.mirror(load_image(pair.image)) if flipped else pair.contrast
        instructions = next((text for role, text in item.turns if role == "system"), None)
        turns = [{"role": role, "content": text} for role, text in item.turns if role != "system"]
        row = {
            "id": item.id,
            "source": item.source,
            "image": pair.image,
            "contrast_image": contrast,
            **({"system": instructions} if system else {}),
            "prompt": turns if several else turns[0]["content"],
            "chosen": item.chosen,
            "rejected": item.rejected,
            "category": item.category,
            "similarity_visual": item.similarity_visual,
            "similarity_semantic": item.similarity_semantic,
            "made_by": item.made_by,
            "texts_by": item.texts_by,
            "made_of": pair.id,
        }
        # A row that was made like this before has columns of these names: nothing old is taken for new.
        yield row | {key: item.extras.get(key) for key in extras if key not in row}
