"""POVID (Zhou et al., 2024), https://arxiv.org/abs/2402.11411: `conversations` and `rejected_conversations`.

{"id": "x1", "image": "coco/x1.jpg", "conversations": [{"from": "human", ...}, {"from": "gpt", ...}],
 "rejected_conversations": [...]}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mllm_align.data.sources import llava


def columns(given: Mapping[str, Any]) -> dict[str, Any]:
    """Types of the canonical columns, from those of the file."""
    return {**llava.columns(given), "rejected": llava.text_of(given["rejected_conversations"])}


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """A canonical row with `prompt`, `chosen` and `rejected`."""
    rejected = llava.read_turns(row.get("rejected_conversations"), row)
    return {**llava.convert(row), "rejected": rejected[-1]["content"]}
