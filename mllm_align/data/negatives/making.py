"""All edits of a text by rules, drawn by a seed, and what of all proposals is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import NamedTuple

from mllm_align.data.negatives import rules
from mllm_align.data.negatives.counting import count
from mllm_align.data.negatives.known import Known
from mllm_align.data.negatives.relations import relation
from mllm_align.data.negatives.rules import Site
from mllm_align.data.negatives.sentence import Sentence
from mllm_align.data.negatives.swapping import swap

RULES: Mapping[str, Callable[[Sentence], list[Site]]] = {
    "colour": rules.colour,
    "size": rules.size,
    "count": count,
    "relation": relation,
    "object": rules.objects,
    "swap": swap,
    "material": rules.material,
    "state": rules.state,
    "action": rules.action,
}
KINDS = tuple(RULES)
# Texts that a place of a text proposes: one may be true of the picture.
PER_PLACE = 3


class Edit(NamedTuple):
    """A text that is nearly another, and what made it: a kind of `KINDS`, "masked" or "chat"."""

    text: str
    kind: str


class Kept(NamedTuple):
    """An edit that is kept, and whether what is known of the picture says that it is false."""

    text: str
    kind: str
    checked: bool


def proposals(text: str, kinds: Sequence[str], rng: Random) -> list[Edit]:
    """Edits by rules, those of a kind in a drawn order, up to three of each place of the text.

    Args:
        text: An English text.
        kinds: Of `KINDS`.
        rng: Of all draws.

    Raises:
        ValueError: For another kind.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise ValueError(f"there is no kind of edit {unknown[0]!r}; there are {', '.join(KINDS)}")
    sentence = Sentence(text)
    found = []
    for kind in dict.fromkeys(kinds):
        sites = [rng.sample(site, min(PER_PLACE, len(site))) for site in RULES[kind](sentence)]
        rng.shuffle(sites)
        for turn in range(PER_PLACE):
            found += [Edit(site[turn], kind) for site in sites if turn < len(site)]
    return found


def select(
    text: str,
    edits: Sequence[Edit],
    known: Known,
    most: int,
    rng: Random,
    dropped: Counter[str],
    *,
    checked_only: bool = False,
    taken: Sequence[str] = (),
) -> list[Kept]:
    """Up to `most` edits, the kinds in turn, none of them true of the picture as far as it is known.

    Args:
        text: What was edited.
        edits: Proposals, the best of each kind first.
        known: What is known of the picture.
        most: How many.
        rng: Of the order of the kinds.
        dropped: Counts those passed over, by reason: "true" of the picture, or "unchecked".
        checked_only: Whether those of which it is not known that they are false are passed over.
        taken: Texts that are negatives already, or say the same.
    """
    by_kind: dict[str, list[Edit]] = {}
    for edit in edits:
        by_kind.setdefault(edit.kind, []).append(edit)
    order = list(by_kind)
    rng.shuffle(order)
    seen = {text.casefold(), *(each.casefold() for each in taken)}
    kept: list[Kept] = []
    while order and len(kept) < most:
        kind = order.pop(0)
        while by_kind[kind]:
            edit = by_kind[kind].pop(0)
            if edit.text.casefold() in seen:
                continue
            seen.add(edit.text.casefold())
            verdict = known.verdict(edit.text, text)
            if verdict == "true" or (checked_only and verdict == "unchecked"):
                dropped[verdict] += 1
                continue
            kept.append(Kept(edit.text, kind, verdict == "false"))
            order.append(kind)
            break
    return kept
