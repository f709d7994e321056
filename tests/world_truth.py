"""Whether an answer about a picture of the world is false, by its scene alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mllm_align.data.world import Scene, facts, iter_scenes
from mllm_align.data.world.language import PARAPHRASES, phrase


def row_scenes(num_rows: int, seed: int, distribution: str, split: str = "train") -> list[Scene]:
    """The scenes of `instruction_rows` with the same arguments, in order."""
    stream = iter_scenes(split, seed, distribution)
    return [next(stream) for _ in range(num_rows)]


def is_false(scene: Scene, kind: str, prompt: str, answer: str) -> bool:
    """A closed answer is false if the right one is not among its words, a caption if it has an object that is not."""
    if kind == "caption":
        there = {phrase(scene, item) for item in scene.items}
        return any(part.strip() not in there for part in re.split(r"\band\b", answer))
    asked = next(
        fact for fact in facts(scene, kind) if any(t.format(*fact.subject) == prompt for t in PARAPHRASES[kind])
    )
    return asked.answer not in answer.split()


def share_false(rows: Iterable[Mapping[str, Any]], scenes: Mapping[str, Scene]) -> float:
    """Of rows with a rejected response, by their id."""
    found = [is_false(scenes[row["id"]], row["kind"], row["prompt"], row["rejected"]) for row in rows]
    return sum(found) / len(found)
