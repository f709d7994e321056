"""RLHF-V and RLAIF-V (Yu et al., 2023 and 2024), https://arxiv.org/abs/2312.00849.

RLHF-V keeps question and answers as JSON text, RLAIF-V as columns:
{"image": {"bytes", "path"}, "text": "{\\"question\\": ..., \\"chosen\\": ..., \\"rejected\\": ...}", "idx": 1}
{"image": {"bytes", "path"}, "question": ..., "chosen": ..., "rejected": ..., "idx": "1"}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import datasets

from mllm_align.data.errors import DataError, quoted


def columns(given: Mapping[str, Any]) -> dict[str, Any]:
    """Types of the canonical columns, whatever those of the file."""
    return dict.fromkeys(("id", "prompt", "chosen", "rejected"), datasets.Value("string"))


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """A canonical row with `image`, `prompt`, `chosen` and `rejected`."""
    name = quoted(row.get("idx"))
    try:
        answers = json.loads(row["text"]) if row.get("text") else row
    except json.JSONDecodeError as error:
        raise DataError(f"row {name}: column 'text' is not JSON: {error}") from error
    try:
        new = {"image": row["image"], "prompt": answers["question"]}
        new |= {"chosen": answers["chosen"], "rejected": answers["rejected"]}
    except KeyError as error:
        raise DataError(f"row {name}: no {error} in {', '.join(answers)}") from error
    if row.get("idx") is not None:
        new["id"] = f"{row.get('ds_name') or 'RLHF-V'}/{row['idx']}"
    return new
