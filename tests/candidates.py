"""Candidates without pictures, for the tests of what is done with them."""

from __future__ import annotations

from typing import Any

from mllm_align.data.mine.selection import Candidate


def candidate(number: int, **changes: Any) -> Candidate:
    given: dict[str, Any] = {
        "row": number,
        "id": f"row-{number}",
        "source": "default",
        "turns": (("user", "What is there?"),),
        "chosen": f"A cat and {number} mice.",
        "rejected": f"A dog and {number} mice.",
        "category": "",
        "images": (f"image {number}", f"contrast {number}"),
        "mirror": f"mirror {number}",
        "similarity_visual": 0.8,
        "similarity_semantic": 0.3,
        "extras": {},
    }
    return Candidate(**(given | changes))


def of_categories(**counts: int) -> list[Candidate]:
    names = [name for name, count in counts.items() for _ in range(count)]
    return [candidate(number, category=name) for number, name in enumerate(names)]
