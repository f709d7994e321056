"""Re-Align (Xing et al., 2025), https://arxiv.org/abs/2502.13146: answers with an image and a retrieved one.

{"image": "1.jpg", "retrieved_image": "2.jpg", "chosen": [{"role": "user", "content": "<image>\\nWhat?"},
 {"role": "assistant", "content": "A cup."}], "rejected": [...]}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def columns(given: Mapping[str, Any]) -> dict[str, Any]:
    """Types of the canonical columns, from those of the file."""
    return {"contrast_image": given["retrieved_image"], "prompt": given["chosen"]}


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """A canonical row; the retrieved image becomes `contrast_image`, the shared turns are read from `chosen`."""
    return {
        "image": row["image"],
        "contrast_image": row["retrieved_image"],
        "prompt": row["chosen"][:-1],
        "chosen": row["chosen"][-1:],
        "rejected": row["rejected"][-1:],
    }
