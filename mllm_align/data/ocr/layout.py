"""Words to lines to blocks, and the finest of them that a model's tokens can tell apart.

A word of ten pixels is a tenth of a token of many vision models: all words of a paragraph would be the same token, and
no contrast could part them. So what is too small is taken together with its line, and a line with the next one of its
block, until each piece covers a token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mllm_align.data.ocr.words import Word, joined

LEVELS = ("auto", "word", "line", "block")
# In heights of the smaller of two words: how far apart words of a line may be.
WORD_GAP = 1.2
# In heights of the smaller of two lines: how far apart lines of a block may be.
LINE_GAP = 1.0
# How alike in height lines of a block are, and which share of the narrower one lies above the other.
LINE_HEIGHTS, LINE_OVERLAP = 2.0, 0.3
# Which share of the height of the smaller of two words of a line lies beside the other.
WORD_OVERLAP = 0.5

Line = list[Word]


def page_objects(
    words: Sequence[Word], tokens: tuple[int, int], aspect: float = 1.0, level: str = "auto"
) -> list[Word]:
    """What stands on a page, in reading order.

    Args:
        words: In any order.
        tokens: Rows and columns of the model's tokens on a page.
        aspect: Width of the page over its height.
        level: "word", "line" or "block"; or "auto", per line its words where each of them covers a token, else the
            line, and lines that cover less than one together with others of their block.

    Raises:
        ValueError: If the level is unknown.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}, not {level!r}")
    found: list[Word] = []
    for block in blocks_of(lines_of(words, aspect), aspect):
        if level == "block":
            found.append(joined([word for line in block for word in line]))
        elif level != "auto":
            found += [piece for line in block for piece in (line if level == "word" else [joined(line)])]
        else:
            found += _told_apart(block, tokens)
    return found


def page_text(words: Sequence[Word], aspect: float = 1.0) -> str:
    """The text of a page: a line for each, an empty one between blocks."""
    blocks = blocks_of(lines_of(words, aspect), aspect)
    return "\n\n".join("\n".join(joined(line).text for line in block) for block in blocks)


def covered(box: Sequence[float], tokens: tuple[int, int]) -> float:
    """How many tokens' areas a box covers."""
    return (box[2] - box[0]) * tokens[1] * (box[3] - box[1]) * tokens[0]


def lines_of(words: Sequence[Word], aspect: float = 1.0) -> list[Line]:
    """Words that stand beside each other, from left to right: each is followed by the nearest one, if that is near."""
    boxes = _boxes(words, aspect)
    order = np.lexsort((boxes[:, 0], boxes[:, 1]))
    sorted_words, boxes = [words[place] for place in order], boxes[order]
    heights = boxes[:, 3] - boxes[:, 1]
    smaller = np.minimum(heights[:, None], heights)
    beside = _overlaps(boxes, 1) >= WORD_OVERLAP * smaller
    gap = boxes[None, :, 0] - boxes[:, None, 2]
    after = boxes[None, :, 0] + boxes[None, :, 2] > boxes[:, None, 0] + boxes[:, None, 2]
    # A box may reach into the next one, by as much as it is high.
    near = beside & after & (gap <= WORD_GAP * smaller) & (gap >= -smaller)
    return [[sorted_words[place] for place in chain] for chain in _chains(np.where(near, gap, np.inf))]


def blocks_of(lines: Sequence[Line], aspect: float = 1.0) -> list[list[Line]]:
    """Lines that stand below each other, in reading order: columns from left to right, and in each downwards."""
    boxes = _boxes([joined(line) for line in lines], aspect)
    heights = boxes[:, 3] - boxes[:, 1]
    widths = boxes[:, 2] - boxes[:, 0]
    gap = boxes[None, :, 1] - boxes[:, None, 3]
    smaller, larger = np.minimum(heights[:, None], heights), np.maximum(heights[:, None], heights)
    below = boxes[None, :, 1] + boxes[None, :, 3] > boxes[:, None, 1] + boxes[:, None, 3]
    near = below & (gap <= LINE_GAP * smaller) & (gap >= -smaller / 2) & (larger <= LINE_HEIGHTS * smaller)
    near &= _overlaps(boxes, 0) >= LINE_OVERLAP * np.minimum(widths[:, None], widths)
    found = [[lines[place] for place in chain] for chain in _chains(np.where(near, gap, np.inf))]
    whole = _boxes([joined([word for line in block for word in line]) for block in found], aspect)
    return [found[place] for place in _reading_order(whole, list(range(len(found))))]


def _told_apart(block: Sequence[Line], tokens: tuple[int, int]) -> list[Word]:
    found: list[Word] = []
    small: list[Word] = []
    of_lines = False
    for line in block:
        if not small and all(covered(word.box, tokens) >= 1 for word in line):
            found += line
            of_lines = False
            continue
        small.append(joined(line))
        if covered(joined(small).box, tokens) >= 1:
            found.append(joined(small))
            small, of_lines = [], True
    if small and of_lines:
        small.insert(0, found.pop())
    return [*found, joined(small)] if small else found


def _boxes(words: Sequence[Word], aspect: float) -> np.ndarray:
    """(N, 4) in heights of the page."""
    return np.array([word.box for word in words], dtype=np.float64).reshape(-1, 4) * [aspect, 1, aspect, 1]


def _overlaps(boxes: np.ndarray, axis: int) -> np.ndarray:
    """(N, N) how far two boxes lie beside each other along an axis; below 0 where they do not."""
    low = np.maximum(boxes[:, None, axis], boxes[None, :, axis])
    return np.minimum(boxes[:, None, axis + 2], boxes[None, :, axis + 2]) - low


def _chains(gap: np.ndarray) -> list[list[int]]:
    """Places linked to chains, nearest pairs first; each has one before and one after it at the most.

    Args:
        gap: (N, N) how far the second is behind the first, infinite where it does not follow.
    """
    first, second = np.nonzero(np.isfinite(gap))
    order = np.argsort(gap[first, second], kind="stable")
    after: dict[int, int] = {}
    before: dict[int, int] = {}
    for one, two in zip(first[order].tolist(), second[order].tolist(), strict=True):
        if one not in after and two not in before:
            after[one], before[two] = two, one
    chains = []
    for start in range(len(gap)):
        if start not in before:
            chain = [start]
            while chain[-1] in after:
                chain.append(after[chain[-1]])
            chains.append(chain)
    return chains


def _reading_order(boxes: np.ndarray, places: list[int]) -> list[int]:
    """Places as they are read: cut into columns where nothing lies across, else what is on top, then the rest."""
    if len(places) < 2:
        return places
    for axis in (0, 1):
        parts = _cut(boxes, places, axis)
        if len(parts) > 1:
            # Downwards one part at a time: what is below may stand in columns that a line above spans.
            rest = parts[1:] if axis == 0 else [[place for part in parts[1:] for place in part]]
            return [place for part in (parts[0], *rest) for place in _reading_order(boxes, part)]
    return sorted(places, key=lambda place: (boxes[place, 1], boxes[place, 0]))


def _cut(boxes: np.ndarray, places: Sequence[int], axis: int) -> list[list[int]]:
    """Groups of places with a gap between them along an axis."""
    parts: list[list[int]] = []
    end = -np.inf
    for place in sorted(places, key=lambda place: boxes[place, axis]):
        if boxes[place, axis] >= end or not parts:
            parts.append([])
        parts[-1].append(place)
        end = max(end, boxes[place, axis + 2])
    return parts
