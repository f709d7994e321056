"""What is known of a picture by the objects of its row, and whether a claim holds there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mllm_align.data.negatives.claims import Claim, Related, Thing, claims, things
from mllm_align.data.negatives.lexicon import canonical, compatible, is_a, related
from mllm_align.data.negatives.sentence import Sentence
from mllm_align.data.objects import ImageObject

Verdict = Literal["false", "true", "unchecked"]
# Shares of a side within which left and right, or above and below, are a matter of taste.
MARGIN = 0.03


@dataclass(frozen=True)
class _Named:
    """An object by what its text and class say: canonical nouns, attributes by kind, and its middle."""

    nouns: frozenset[str]
    attributes: dict[str, frozenset[str]]
    x: float
    y: float


class Known:
    """The objects of one picture.

    Args:
        objects: Of that picture; those without a text and a class say nothing.
        classes: Names of classes, canonical, of which the row lists every object there is: one that it does not list
            is not there. Empty where rows are not known to be complete.
    """

    def __init__(self, objects: Iterable[ImageObject], classes: Iterable[str] = ()) -> None:
        self.objects = [_named(each) for each in objects if each.text or each.kind]
        self.classes = frozenset(classes)

    def holds(self, claim: Claim) -> bool | None:
        """Whether a claim is true of the picture; None where the objects do not tell."""
        return self._relation(claim) if isinstance(claim, Related) else self._thing(claim)

    def verdict(self, negative: str, original: str) -> Verdict:
        """Whether an edit of a text that is true of the picture is false of it.

        It is false where something new in it is, and true where all that is new is, or nothing is. A number is
        false where another one, which the original gives, is right.
        """
        before, after = claims(original), claims(negative)
        if after < before:  # less is said: "a red cup and a red cup" of one that is blue
            return "true"
        new = after - before
        held = [self._new(claim, before) for claim in new]
        if any(each is False for each in held):
            return "false"
        return "true" if held and all(held) else "unchecked"

    def _new(self, claim: Claim, before: Iterable[Claim]) -> bool | None:
        held = self.holds(claim)
        if held is not None or not isinstance(claim, Thing) or claim.number is None:
            return held
        twin = [each for each in before if isinstance(each, Thing) and each._replace(number=claim.number) == claim]
        right = any(each.number != claim.number and self._counted(each) == each.number for each in twin)
        return False if right else None

    def _thing(self, claim: Thing) -> bool | None:
        found = [self._matches(claim, each) for each in self.objects]
        if claim.number is not None:
            count = self._counted(claim)
            if count is None:
                return None
            return True if count == claim.number else (False if claim.noun in self.classes else None)
        if any(found):
            return True
        named = any(claim.noun in each.nouns for each in self.objects)
        if None in found:
            return None
        return False if named or claim.noun in self.classes else None

    def _counted(self, claim: Thing) -> int | None:
        """How many there are of a thing, whatever its number is said to be; None where some may be or not."""
        found = [self._matches(claim, each) for each in self.objects]
        return None if None in found else sum(map(bool, found))

    def _relation(self, claim: Related) -> bool | None:
        axis = {"left of": "x", "above": "y"}.get(claim.relation)
        if axis is None:
            return None
        firsts, seconds = (
            [each for each in self.objects if self._matches(thing._replace(number=None), each)]
            for thing in (claim.first, claim.second)
        )
        gaps = [getattr(b, axis) - getattr(a, axis) for a in firsts for b in seconds if a is not b]
        if any(gap > MARGIN for gap in gaps):
            return True
        return False if gaps and all(gap < -MARGIN for gap in gaps) else None

    def _matches(self, claim: Thing, each: _Named) -> bool | None:
        if not any(is_a(noun, claim.noun) for noun in each.nouns):
            # Of a person it may be true that it is a man.
            return None if any(related(noun, claim.noun) for noun in each.nouns) else False
        held: list[bool | None] = []
        for kind, word in claim.attributes:
            own = [compatible(word, other, kind) for other in each.attributes.get(kind, ())]
            held.append(True if True in own else None if None in own or not own else False)
        if claim.side:
            distance = (each.x - 0.5) * (1 if claim.side == "right" else -1)
            held.append(None if abs(distance) <= MARGIN else distance > 0)
        return False if False in held else None if None in held else True


def _named(each: ImageObject) -> _Named:
    placed = list(things(Sentence(each.text)).values())
    told = placed[:1]  # "a cup on a table" is a cup
    nouns = {thing.noun for thing in told}
    if not told and each.text:
        nouns.add(canonical(Sentence(each.text).words[-1]) if Sentence(each.text).words else each.text)
    if each.kind:
        nouns |= {class_name(each.kind), canonical(each.kind.casefold())}
    attributes: dict[str, set[str]] = {}
    for thing in told:
        for kind, word in thing.attributes:
            attributes.setdefault(kind, set()).add(word)
    left, top, right, bottom = each.box
    return _Named(
        frozenset(nouns),
        {kind: frozenset(words) for kind, words in attributes.items()},
        (left + right) / 2,
        (top + bottom) / 2,
    )


def class_name(kind: str) -> str:
    """The noun that the name of a class ends with, canonical: of "traffic light" "light"."""
    words = Sentence(kind).words
    return canonical(words[-1]) if words else kind.casefold()


def classes_of(objects: Sequence[ImageObject]) -> set[str]:
    """The classes of some objects, as `class_name` has them."""
    return {class_name(each.kind) for each in objects if each.kind}
