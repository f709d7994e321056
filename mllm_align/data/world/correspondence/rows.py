"""Training rows: a picture with a marked thing, another with numbered ones, and which of them it is."""

from __future__ import annotations

from typing import Any

from mllm_align.data.world.catalogue import SMALL, World
from mllm_align.data.world.correspondence.drawing import boxes, draw
from mllm_align.data.world.correspondence.matching import Matching, iter_matchings
from mllm_align.data.world.correspondence.things import Difficulty


def correspondence_rows(
    num_rows: int,
    seed: int = 0,
    split: str = "train",
    difficulty: str | Difficulty = "medium",
    world: World = SMALL,
) -> list[dict[str, Any]]:
    """Rows `{id, images, prompt, chosen, contrast_image, contrast_index, rejected, objects, contrast_objects, kind}`.

    `images` are two pictures of the same things, the first with one of them marked by a contour, the second with all
    of them numbered. `chosen` is the number of the marked one, or "no" where it is not there. In `contrast_image`, in
    place of the first picture, a look-alike is marked, whose answer is `rejected`. `objects` are the boxes of all
    things on both pictures, with the same `object_id` where they are the same thing, and with the shape as class; they
    have no text, since look-alikes would have the same. `kind` is what the two look-alikes differ in.
    """
    stream = iter_matchings(split, seed, difficulty, "seen", world)
    rows = []
    for _ in range(num_rows):
        matching = next(stream)
        first, second = matching.frames
        chosen, rejected = matching.answers
        objects = objects_of(matching)
        rows.append(
            {
                "id": f"correspondence/{matching.id}",
                "images": [draw(first, matching.asked[0]), draw(second, numbers=matching.numbers)],
                "prompt": matching.text,
                "chosen": chosen,
                "contrast_image": draw(first, matching.asked[1]),
                "contrast_index": 0,
                "rejected": rejected,
                "objects": objects,
                "contrast_objects": objects,
                "kind": matching.differs_in,
            }
        )
    return rows


def objects_of(matching: Matching) -> list[dict[str, Any]]:
    """The column `objects` of a matching."""
    return [
        {"box": list(found[each.thing.name]), "object_id": each.thing.name, "class": each.thing.shape, "image": number}
        for number, frame in enumerate(matching.frames)
        for found in [boxes(frame)]
        for each in frame.placed
    ]
