"""Which of the measured pairs become training data: hard ones, each once, in the categories' right proportions.

Pure functions on lists of candidates. Where some are drawn, the draw depends on a seed and on what a pair holds, not
on its place: another order of the rows, or further rows, leave the others' ranks as they are.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mllm_align.data.messages import PLACEHOLDER
from mllm_align.data.mine.pairs import ContrastPair, Turn, plain

PAIR, FLIP = "pair", "flip"
GIVEN = "given"
ORIGINAL, EQUAL = "original", "equal"


@dataclass(frozen=True)
class Candidate:
    """A usable pair without its images.

    Attributes:
        row: Number of the input row that it was made of.
        id: Unique.
        source: Of the row.
        turns: The prompt as (role, text).
        chosen: What `images[0]` shows.
        rejected: What `images[1]` shows.
        category: "" where the row names none.
        images: Digests of the pixels of image and contrast image.
        mirror: Digest of the pixels of the image's mirror image.
        looks: Of image and contrast image (`looks.look_of`); none where no picture was read.
        similarity_visual: Cosine for the encoder to which pairs must look alike; None for flips, which nobody asked.
        similarity_semantic: Cosine for the one to which they must differ.
        made_by: "pair" for a pair of the input, "flip" for an image and its mirror image.
        texts_by: How the texts were made: "given", a rule, or the model that wrote them.
        extras: Further columns of the row.
    """

    row: int
    id: str
    source: str
    turns: tuple[Turn, ...]
    chosen: str
    rejected: str
    category: str
    images: tuple[str, str]
    mirror: str
    similarity_visual: float | None
    similarity_semantic: float | None
    extras: Mapping[str, Any]
    looks: tuple[bytes, ...] = ()
    made_by: str = PAIR
    texts_by: str = GIVEN

    @classmethod
    def of(cls, pair: ContrastPair, record: Mapping[str, Any]) -> Candidate:
        """A pair with what was measured of it."""
        return cls(
            row=record["row"],
            id=pair.id,
            source=pair.source,
            turns=pair.turns,
            chosen=pair.chosen,
            rejected=pair.rejected,
            category=pair.category,
            images=(record["image"], record["contrast"]),
            mirror=record["mirror"],
            looks=(record["look"], record["contrast_look"]),
            similarity_visual=record["similarity_visual"],
            similarity_semantic=record["similarity_semantic"],
            extras=pair.extras,
        )

    @property
    def prompt(self) -> str:
        """The last user turn without a placeholder."""
        return self.turns[-1][1].replace(PLACEHOLDER, " ").strip()

    @cached_property
    def content(self) -> tuple[Any, ...]:
        """Equal for pairs that teach the same: same prompt, same two images, each with the same text."""
        turns = tuple((role, plain(text)) for role, text in self.turns)
        sides = sorted(zip(self.images, (plain(self.chosen), plain(self.rejected)), strict=True))
        return turns, tuple(sides)


def hard(
    candidates: Iterable[Candidate],
    visual_above: float = 0.7,
    semantic_below: float = 0.5,
    unfiltered: Collection[str] = (),
) -> list[Candidate]:
    """MVC's rule: look alike to one encoder (cosine above), differ for the other (cosine below).

    Args:
        candidates: Measured pairs.
        visual_above: Least cosine of the look-alike encoder, exclusive.
        semantic_below: Greatest cosine of the other one, exclusive.
        unfiltered: Categories whose pairs all stay, as left-right flips do in MVC.
    """
    return [
        candidate
        for candidate in candidates
        if candidate.category in unfiltered
        or (
            candidate.similarity_visual is not None
            and candidate.similarity_semantic is not None
            and candidate.similarity_visual > visual_above
            and candidate.similarity_semantic < semantic_below
        )
    ]


def without_duplicates(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The first of all that teach the same; a pair with image and contrast image exchanged is the same pair."""
    first: dict[tuple[Any, ...], Candidate] = {}
    for candidate in candidates:
        first.setdefault(candidate.content, candidate)
    return list(first.values())


def by_category(candidates: Iterable[Candidate]) -> Counter[str]:
    """How many there are of each category."""
    return Counter(candidate.category for candidate in candidates)


def sampled(candidates: Sequence[Candidate], targets: Mapping[str, int], seed: int = 0) -> list[Candidate]:
    """At most as many of each category as `targets` says, drawn by the seed, in their order.

    A category that is not in `targets` stays whole.
    """
    ranked = sorted(candidates, key=lambda candidate: _rank(candidate, seed))
    taken: Counter[str] = Counter()
    kept: set[int] = set()
    for candidate in ranked:
        if taken[candidate.category] < targets.get(candidate.category, len(ranked)):
            taken[candidate.category] += 1
            kept.add(id(candidate))
    return [candidate for candidate in candidates if id(candidate) in kept]


def balanced(
    candidates: Sequence[Candidate], to: str, original: Mapping[str, int] | None = None, seed: int = 0
) -> list[Candidate]:
    """As many as possible, with the categories in the asked proportion.

    Args:
        candidates: What there is.
        to: "equal": as many of each as of the rarest. "original": in the proportion of `original`, as near as whole
            numbers allow, at least one of each.
        original: How many the input had of each category.
        seed: Of the draw.

    Raises:
        ValueError: If `to` is neither, or a category is not in `original`.
    """
    there = by_category(candidates)
    if to == EQUAL:
        shares = dict.fromkeys(there, 1)
    elif to == ORIGINAL:
        shares = {category: (original or {}).get(category, 0) for category in there}
        unknown = sorted(category for category, share in shares.items() if share < 1)
        if unknown:
            raise ValueError(f"the original distribution has nothing of category {unknown[0]!r}")
    else:
        raise ValueError(f"categories are balanced to {ORIGINAL!r} or {EQUAL!r}, not {to!r}")
    scale = min((there[category] / shares[category] for category in there), default=0.0)
    targets = {category: max(1, min(there[category], round(scale * shares[category]))) for category in there}
    return sampled(candidates, targets, seed)


def rank(seed: int, *parts: Any) -> bytes:
    """A place in a random order that depends on the seed and the parts alone."""
    return hashlib.blake2b(repr((seed, *parts)).encode(), digest_size=16).digest()


def _rank(candidate: Candidate, seed: int) -> tuple[bytes, str]:
    return rank(seed, candidate.content), candidate.id
