"""MVC, the pairs of S-VCO (Wu et al., 2025), https://arxiv.org/abs/2502.13928.

{"system_prompt": "", "instruction_prompt": "What is the dog doing?", "chosen_images": ["a/1.jpg"],
 "rejected_images": ["a/2.jpg"], "chosen_response": "It is running.", "rejected_response": "It is lying down."}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def columns(given: Mapping[str, Any]) -> dict[str, Any]:
    """Types of the canonical columns, from those of the file."""
    return {
        "images": given["chosen_images"],
        "contrast_image": given["rejected_images"],
        "system": given["system_prompt"],
        "prompt": given["instruction_prompt"],
        "chosen": given["chosen_response"],
        "rejected": given["rejected_response"],
    }


def convert(row: Mapping[str, Any]) -> dict[str, Any]:
    """A canonical row with `images`, `contrast_image` (as many), `prompt`, `chosen` and `rejected`."""
    new = {
        "images": row["chosen_images"],
        "contrast_image": row["rejected_images"],
        "prompt": row["instruction_prompt"],
        "chosen": row["chosen_response"],
        "rejected": row["rejected_response"],
    }
    return {**new, "system": row["system_prompt"]} if row.get("system_prompt") else new
