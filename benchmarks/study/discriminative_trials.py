"""What was tried for the hard negatives, as a part of the discriminative page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parent / "discriminative_trials.json"
KINDS = {"replace_attribute": "colour or size", "replace_object": "shape", "replace_count": "number"}


def trials() -> list[dict[str, Any]]:
    """Single runs with seed 0, scored on validation: what was `tried`, `steps`, `recall`, `negatives`, `kinds`."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def tried() -> str:
    """Markdown of the trials, in per cent."""
    head = ("tried", "steps", "R@1", "hard negatives", *(f"{what} replaced" for what in KINDS.values()))
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for each in trials():
        shares = (f"{100 * each[name]:.1f}" for name in ("recall", "negatives"))
        kinds = (str(each["kinds"][kind]) for kind in KINDS)
        lines.append(f"| {' | '.join((each['tried'], str(each['steps']), *shares, *kinds))} |")
    return "\n".join(lines)
