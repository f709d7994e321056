"""Which of the things in one picture is that of another: questions made of annotations that tell things apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mllm_align.data.errors import DataError
from mllm_align.data.objects import ImageObject, read_objects
from mllm_align.data.schema import row_name

# As many as CoLVA's training rows have at the most, beside "none".
MOST_OPTIONS = 25
NONE = "none of them"
QUESTION = (
    "The first picture shows something in the box {query}. Which of these boxes of the second picture shows the same "
    "one?\n{options}\n{last}. {none}\nAnswer with its number alone."
)


def matching_row(
    name: str,
    images: Sequence[Any],
    objects: Sequence[Mapping[str, Any]],
    query: int,
    candidates: Sequence[int],
    answer: int | None,
    seed: int = 0,
) -> dict[str, Any]:
    """A canonical row with a question in words: which candidate is the thing asked for, or that none is.

    Boxes are written as left, top, right and bottom in thousandths. Candidates are numbered in an order that the row's
    name and the seed draw; of more than 25, the right one and others drawn from the rest are kept. Of those that read
    alike one is kept, the right one if it is among them.

    Args:
        name: Of the row.
        images: Two of them.
        objects: As in the column `objects`.
        query: Which of `objects`, on the first image, is asked for.
        candidates: Which, on the second image, there are to choose from; one at the least.
        answer: The right one of `candidates`; None for none.
        seed: Of the order.

    Raises:
        DataError: If what is named is not there, or not on its image.
    """
    where = f"row {name!r}"
    read = read_objects(list(objects), len(images), where)
    if len(images) != 2 or not candidates:
        raise DataError(f"{where}: a matching has two images and a candidate, not {len(images)} and {len(candidates)}")
    if read[query].image != 0 or any(read[each].image != 1 for each in candidates):
        raise DataError(f"{where}: what is asked for lies on the first image, candidates on the second")
    if answer is not None and answer not in candidates:
        raise DataError(f"{where}: the answer, object {answer}, is none of the candidates")
    digest = hashlib.blake2b(repr((name, seed)).encode(), digest_size=8).digest()
    generator = np.random.default_rng(int.from_bytes(digest, "little"))
    order = [candidates[place] for place in generator.permutation(len(candidates))]
    first: dict[str, int] = {}
    for each in (*([] if answer is None else [answer]), *order):
        first.setdefault(box_in_words(read[each]), each)
    order = [each for each in order if first[box_in_words(read[each])] == each]
    if len(order) > MOST_OPTIONS:
        others = [each for each in order if each != answer]
        kept = {*others[: MOST_OPTIONS - (answer is not None)], answer}
        order = [each for each in order if each in kept]
    options = "\n".join(f"{number}. {box_in_words(read[each])}" for number, each in enumerate(order, start=1))
    last = len(order) + 1
    return {
        "id": name,
        "images": list(images),
        "prompt": QUESTION.format(query=box_in_words(read[query]), options=options, last=last, none=NONE),
        "chosen": str(last if answer is None else order.index(answer) + 1),
        "objects": [dict(each) for each in objects],
    }


def matching_rows(
    rows: Iterable[Mapping[str, Any]], seed: int = 0, share_without: float = 0.1
) -> Iterator[dict[str, Any]]:
    """One matching of each row of two images whose objects have ids.

    Something on the first image is drawn; what has its id on the second is right. In a share of the rows that one is
    taken out of the candidates, and so "none of them" is.

    Args:
        rows: Canonical rows with `images` and `objects`; those that have nothing to choose among are left out.
        seed: Of all draws.
        share_without: Of rows where none is right, beside those whose thing is not on the second image.

    Raises:
        DataError: If a row has not two images, or an id stands twice on one of them.
    """
    for index, row in enumerate(rows):
        where = row_name(row, index)
        images = row.get("images") or ()
        if len(images) != 2:
            raise DataError(f"{where}: a matching is between two images, the row has {len(images)} in 'images'")
        objects = row.get("objects") or []
        read = read_objects(objects, 2, where)
        places: list[dict[str, int]] = [{}, {}]
        for place, each in enumerate(read):
            if each.object_id and each.object_id in places[each.image]:
                raise DataError(f"{where}: object_id {each.object_id!r} is there twice on image {each.image}")
            if each.object_id:
                places[each.image][each.object_id] = place
        name = str(row["id"]) if row.get("id") is not None else f"matching {index}"
        digest = hashlib.blake2b(repr((name, seed, "asked")).encode(), digest_size=8).digest()
        generator = np.random.default_rng(int.from_bytes(digest, "little"))
        asked = sorted(places[0])
        candidates = list(places[1].values())
        if not asked or not candidates:
            continue
        thing = asked[generator.integers(len(asked))]
        answer = places[1].get(thing)
        if answer is not None and generator.random() < share_without:
            right = box_in_words(read[answer])
            candidates, answer = [each for each in candidates if box_in_words(read[each]) != right], None
        if candidates:
            yield matching_row(name, images, objects, places[0][thing], candidates, answer, seed)


def box_in_words(each: ImageObject) -> str:
    """Left, top, right and bottom in thousandths, as questions write them."""
    return "[" + ", ".join(str(min(max(round(1000 * side), 0), 1000)) for side in each.box) + "]"
