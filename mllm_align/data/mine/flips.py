"""Left-right flips: an image against its own mirror image, the sides in its text exchanged by rule.

MVC makes its left-right pairs so, and asks no encoder about them (Wu et al. 2025; CounterCurate's `left_right`). The
rule is careful: "left" and "right" have other meanings, and a prompt that names one side asks for what the answer
cannot tell of the other. What it is not sure of it leaves alone.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from mllm_align.data.mine.selection import FLIP, Candidate, by_category, sampled

MIRROR_RULE = "left and right exchanged"

_OTHER = {"left": "right", "right": "left"}
_WORD = re.compile(r"\b(left|right)(?=(?:most|wards?|ward)?\b)", re.IGNORECASE)
# What stands before and behind the word where it is a side: "on the right in front", "top left", "facing left.",
# "the left half"; not "all right", "the right person", "he left the room", "what is left of it".
_PLACE = re.compile(
    r"\b(?:on|to|at|from|in|towards?)\s+(?:the|its|his|her|their|your|my|our)\s+"
    r"(?:(?:far|top|bottom|upper|lower|back|front)[\s-]+)?$|\b(?:far|top|bottom|upper|lower)[\s-]+$",
    re.IGNORECASE,
)
_MOVING = re.compile(
    r"\b(?:fac(?:e|es|ing)|turn(?:s|ed|ing)?|look(?:s|ed|ing)?|point(?:s|ed|ing)?|mov(?:e|es|ed|ing)|go(?:es|ing)?|"
    r"lean(?:s|ed|ing)?|bend(?:s|ing)?)\s+$",
    re.IGNORECASE,
)
_SENTENCE_GOES_ON = re.compile(
    r"^(?:\s*$|\s*[.,;:!?)\"']|\s+(?:and|or|but|while|in|at|on|by|near|with|from|than|as|is|are|was|were|has|have|"
    r"behind|above|below|under|next|who|which|that|there|wearing|holding|standing|sitting)\b)",
    re.IGNORECASE,
)
_PART = re.compile(
    r"^[\s-]+(?:of|sides?|hand|half|corners?|edge|end|part|third|wall|lane|arm|leg|foot|eye|ear|wing|shoulder|wrist|"
    r"knee)\b(?!\s+up\b)",
    re.IGNORECASE,
)
_SUBJECT = re.compile(
    r"\b(?:i|he|she|we|they|who|has|have|had|what\s+(?:is|was)|what's|nothing|little|none|some)\s+$", re.IGNORECASE
)


def exchange_sides(text: str) -> str | None:
    """The text with left and right exchanged; None where it names no side, or one that may mean something else."""
    found = list(_WORD.finditer(text))
    if not found or not all(_is_side(text, match) for match in found):
        return None
    return _WORD.sub(_exchanged, text)


def names_sides_evenly(text: str) -> bool:
    """Whether a prompt is true of the mirror image too: it names no side, or both as often."""
    count = Counter(match.group(1).lower() for match in _WORD.finditer(text))
    return count["left"] == count["right"]


# Why a pair gives no flip.
OTHER_CATEGORY, NO_SIDE = "of another category", "text names no side"
UNCLEAR_SIDE = "left or right may mean something else"
ASYMMETRIC_PROMPT, SYMMETRIC_PICTURE = "prompt names one side", "picture is its own mirror image"


def flips_of(
    candidates: Iterable[Candidate], categories: Collection[str] = ()
) -> tuple[list[Candidate], Counter[str]]:
    """An image and its mirror image for every pair whose chosen text names sides; the filter is not asked.

    Args:
        candidates: Pairs of the input, also those that a filter dropped.
        categories: Only pairs of these; all where there are none.

    Returns:
        The flips, one for each (image, prompt, text); and how many pairs give none, by the reason.
    """
    found: list[Candidate] = []
    impossible: Counter[str] = Counter()
    for candidate in candidates:
        exchanged = exchange_sides(candidate.chosen)
        if categories and candidate.category not in categories:
            impossible[OTHER_CATEGORY] += 1
            continue
        if exchanged is None:
            impossible[UNCLEAR_SIDE if _WORD.search(candidate.chosen) else NO_SIDE] += 1
            continue
        if not all(names_sides_evenly(text) for _, text in candidate.turns):
            impossible[ASYMMETRIC_PROMPT] += 1
            continue
        if candidate.images[0] == candidate.mirror:
            impossible[SYMMETRIC_PICTURE] += 1
            continue
        found.append(
            replace(
                candidate,
                id=f"{candidate.id}/flip",
                rejected=exchanged,
                images=(candidate.images[0], candidate.mirror),
                looks=candidate.looks[:1],  # the mirror image is alike
                similarity_visual=None,
                similarity_semantic=None,
                made_by=FLIP,
                texts_by=MIRROR_RULE,
            )
        )
    return found, impossible


def flips_in_proportion(
    flips: Sequence[Candidate], kept: Sequence[Candidate], original: Mapping[str, int], seed: int = 0
) -> list[Candidate]:
    """As many flips as give their categories, beside what is kept of the others, the share that the input has.

    Where flips are of every category there is nothing to be in proportion to, and all stay.

    Args:
        flips: All that can be made.
        kept: The pairs they join.
        original: How many the input had of each category.
        seed: Of the draw.
    """
    flipped = by_category(flips)
    total = sum(original.values())
    share = sum(original.get(category, 0) for category in flipped) / total if total else 1.0
    if share >= 1:
        return list(flips)
    have = by_category(kept)
    others = sum(count for category, count in have.items() if category not in flipped)
    whole = others / (1 - share)
    wanted = {category: math.floor(original.get(category, 0) / total * whole + 0.5) for category in flipped}
    return sampled(flips, {category: max(0, count - have[category]) for category, count in wanted.items()}, seed)


def _is_side(text: str, match: re.Match[str]) -> bool:
    before, after = text[: match.start()], text[match.end() :]
    if after[:1].isalpha() or not (before + after).strip(" ."):  # "leftmost", or the whole answer
        return True
    if _PART.match(after):
        return _SUBJECT.search(before) is None
    return bool(_PLACE.search(before) or _MOVING.search(before)) and bool(_SENTENCE_GOES_ON.match(after))


def _exchanged(match: re.Match[str]) -> str:
    word = match.group(1)
    other = _OTHER[word.lower()]
    if word.isupper():
        return other.upper()
    return other.capitalize() if word[0].isupper() else other
