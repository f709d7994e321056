"""Rows of two pictures in which the same things are seen, in other places."""

from __future__ import annotations

from typing import Any

from runs import picture

BOXES = ([0.05, 0.05, 0.45, 0.5], [0.5, 0.4, 0.95, 0.9])


def rows_of_two_pictures() -> list[dict[str, Any]]:
    """Two pictures a row, the same two things in both, in other places."""
    found = []
    for number in range(4):
        objects = [
            {"box": BOXES[(thing + image) % 2], "object_id": f"{thing}", "image": image}
            for image in range(2)
            for thing in range(2)
        ]
        found.append(
            {
                "id": str(number),
                "images": [picture(number), picture(50 + number)],
                "prompt": "What is the same?",
                "chosen": "A disc.",
                "objects": objects if number != 2 else [],
            }
        )
    return found
