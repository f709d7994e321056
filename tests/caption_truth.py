"""Whether a short caption of the world is true of a scene, read from its words and the scene's facts alone."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

from mllm_align.data.world import SMALL, Scene, facts


@lru_cache(maxsize=4096)
def claims_of(text: str) -> Counter[tuple[str, str, str]]:
    """(kind, shape, value) of everything that a text says, by its words alone."""
    found: Counter[tuple[str, str, str]] = Counter()
    objects, _, number = text.partition(". there are ")
    if number:
        found["count", "", number.split()[0]] += 1
    objects = objects.removeprefix("there is ")
    # In "the ring on the left is small and red" the second word of a predicate is no object.
    for part in re.split(r" and (?=an? |the )", objects):
        (shape,) = [word for word in part.split() if word in SMALL.shapes]
        found["existence", shape, "yes"] += 1
        for kind, values in (("colour", SMALL.colours), ("size", SMALL.sizes), ("side", ("left", "right"))):
            for word in part.split():
                if word in values:
                    found[kind, shape, word] += 1
    return found


def is_true(text: str, scene: Scene) -> bool:
    """Whether the scene's facts settle every claim as the text has it."""
    return set(claims_of(text)) <= _known(scene)


@lru_cache(maxsize=4096)
def _known(scene: Scene) -> set[tuple[str, str, str]]:
    return {
        (fact.kind, fact.subject[0] if fact.subject else "", fact.answer)
        for kind in ("existence", "colour", "size", "side", "count")
        for fact in facts(scene, kind)
    }
