"""Masked responses: which segments of an answer name objects, attributes and relations, and the answer with holes.

Re-Align (Xing et al. 2025, https://arxiv.org/abs/2502.13146) masks such segments of the chosen response and has them
filled in on another image. Its prompts are not released with its code, so those here are our own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from mllm_align.data.mine.speaking import Ask, Speaker
from mllm_align.data.mine.words import Kind, kind_of, word_spans

MASK = "[MASK]"
MOST_WORDS = 6  # of a segment that a model marks; more is a clause

ASK_FOR_SEGMENTS = (
    "Below is an answer to a question about a picture. List every word or short phrase of the answer that names an "
    "object, an attribute of one (colour, number, size, material, action) or a relation between objects. Copy them "
    "exactly as they stand in the answer, one a line, and write nothing else.\n\nQuestion: {prompt}\nAnswer: {chosen}"
)
_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+")


class Segment(NamedTuple):
    """Part of a text: from `start` to before `end`, and what it speaks of."""

    start: int
    end: int
    kind: Kind


@dataclass(frozen=True)
class Template:
    """A text with holes: pieces[0], hole, pieces[1], hole, ..., pieces[-1].

    Attributes:
        pieces: What stands fixed, one more than there are holes.
        holes: What stood in each hole.
    """

    pieces: tuple[str, ...]
    holes: tuple[str, ...]

    @property
    def masked(self) -> str:
        """The text with a mask in each hole."""
        return self.filled([MASK] * len(self.holes))

    def filled(self, fills: Sequence[str]) -> str:
        """The text with something else in the first holes; up to the hole behind the last of them.

        With a fill for every hole it is the whole text.
        """
        if len(fills) > len(self.holes):
            raise ValueError(f"{len(fills)} fills for {len(self.holes)} holes")
        return self.pieces[0] + "".join(
            fill + piece for fill, piece in zip(fills, self.pieces[1 : len(fills) + 1], strict=True)
        )


@dataclass(frozen=True)
class Masking:
    """How much of an answer is masked.

    Args:
        share: Of its segments, at least one of them.
        max_segments: Most of one answer.
        seed: Of the draw.
    """

    share: float = 0.5
    max_segments: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"the share of segments to mask must be above 0 and at most 1, not {self.share}")
        if self.max_segments < 1:
            raise ValueError(f"max_segments must be at least 1, not {self.max_segments}")

    def __call__(self, text: str, segments: Sequence[Segment], key: str) -> Template | None:
        """The text with some of its segments masked; None where it has none.

        Args:
            text: An answer.
            segments: In order, none over another.
            key: Names the row; the draw depends on it, on the seed and on nothing else.
        """
        if not segments:
            return None
        wanted = min(max(1, round(self.share * len(segments))), self.max_segments)
        drawn = sorted(Random(f"{self.seed}|{key}").sample(range(len(segments)), wanted))
        pieces, holes, place = [], [], 0
        for number in drawn:
            segment = segments[number]
            pieces.append(text[place : segment.start])
            holes.append(text[segment.start : segment.end])
            place = segment.end
        return Template((*pieces, text[place:]), tuple(holes))


def rule_segments(text: str) -> list[Segment]:
    """Segments without a model: runs of words of one kind, with nothing but white space between them.

    "a small red circle near the star" has "small red", "circle", "near" and "star".
    """
    found: list[Segment] = []
    for start, end in word_spans(text):
        kind = kind_of(text[start:end])
        if kind is None:
            continue
        last = found[-1] if found else None
        if last is not None and last.kind == kind and text[last.end : start].isspace():
            found[-1] = Segment(last.start, end, kind)
        else:
            found.append(Segment(start, end, kind))
    return found


def spoken_segments(
    turns: Sequence[tuple[str, str]], speaker: Speaker, max_new_tokens: int = 256
) -> list[list[Segment] | None]:
    """Segments that a model marks, for each (prompt, answer); None where what it said names none of the answer.

    Lines that are not in the answer, or are longer than six words, are passed over; of two that overlap, the one
    that was named first stays.
    """
    asks = [Ask(ASK_FOR_SEGMENTS.format(prompt=prompt, chosen=chosen)) for prompt, chosen in turns]
    replies = speaker(asks, max_new_tokens) if asks else []
    return [read_segments(chosen, reply) for (_, chosen), reply in zip(turns, replies, strict=True)]


def read_segments(text: str, reply: str) -> list[Segment] | None:
    """The segments of a text that a reply lists, one a line; None where there are none."""
    found: list[Segment] = []
    for line in reply.splitlines():
        phrase = _BULLET.sub("", line).strip().strip("\"'`*").rstrip(".,;:").strip()
        spans = word_spans(phrase)
        kinds: list[Kind] = [kind for start, end in spans if (kind := kind_of(phrase[start:end])) is not None]
        if not kinds or len(spans) > MOST_WORDS:
            continue
        pattern = r"\s+".join(map(re.escape, phrase.split()))
        for match in re.finditer(rf"(?<!\w){pattern}(?!\w)", text, re.IGNORECASE):
            if all(match.end() <= other.start or other.end <= match.start() for other in found):
                # The last word says what a phrase speaks of: "a red car" is an object.
                found.append(Segment(match.start(), match.end(), kinds[-1]))
                break
    return sorted(found) or None
