"""Words put together: on pages with columns, headings and tables, in whatever order the words come."""

from __future__ import annotations

import random

import pytest

from mllm_align.data.ocr.layout import blocks_of, covered, lines_of, page_objects, page_text
from mllm_align.data.ocr.words import Word

HEIGHT, GAP = 0.02, 0.01
# About A4.
ASPECT = 0.7


def line(text: str, left: float, top: float, height: float = HEIGHT) -> list[Word]:
    """Words side by side, each letter half as wide as it is high, with a space of a third of the height."""
    found, at = [], left
    for word in text.split():
        width = 0.5 * height * len(word) / ASPECT
        found.append(Word(word, (at, top, at + width, top + height)))
        at += width + height / 3 / ASPECT
    return found


def paragraph(name: str, left: float, top: float, lines: int = 3) -> list[Word]:
    return [
        word
        for number in range(lines)
        for word in line(f"{name}{number} has five words here", left, top + number * (HEIGHT + GAP))
    ]


def columns() -> list[Word]:
    """A heading over two columns of two paragraphs each, which break at the same height."""
    page = line("A heading across the whole page", 0.1, 0.05, 0.05)
    for left, name in ((0.05, "l"), (0.55, "r")):
        page += paragraph(f"{name}a", left, 0.2) + paragraph(f"{name}b", left, 0.5)
    return page


@pytest.mark.parametrize("seed", range(4))
def test_columns_are_read_one_after_the_other_whatever_the_order_of_words(seed: int) -> None:
    words = columns()
    given = words.copy()
    if seed == 1:
        given = words[7:] + words[:7]
    elif seed:
        random.Random(seed).shuffle(given)
    lines = lines_of(given, ASPECT)
    assert sorted(" ".join(word.text for word in own) for own in lines) == sorted(
        ["A heading across the whole page"]
        + [f"{name}{n} has five words here" for name in ("la", "lb", "ra", "rb") for n in range(3)]
    )
    blocks = [[" ".join(word.text for word in own)[:3] for own in block] for block in blocks_of(lines, ASPECT)]
    assert blocks == [
        ["A h"],
        ["la0", "la1", "la2"],
        ["lb0", "lb1", "lb2"],
        ["ra0", "ra1", "ra2"],
        ["rb0", "rb1", "rb2"],
    ]
    assert page_text(given, ASPECT) == page_text(words, ASPECT)
    assert page_text(words, ASPECT).startswith("A heading across the whole page\n\nla0 has five words here\nla1 has")


def test_a_price_far_from_its_item_is_a_line_of_its_own() -> None:
    words = line("Two coffees", 0.1, 0.2) + line("7.00", 0.8, 0.2) + line("Cake", 0.1, 0.23) + line("3.50", 0.8, 0.23)
    found = [" ".join(word.text for word in own) for own in lines_of(words, ASPECT)]
    assert sorted(found) == ["3.50", "7.00", "Cake", "Two coffees"]
    assert page_text(words, ASPECT) == "Two coffees\nCake\n\n7.00\n3.50"


def test_a_tilted_line_is_one() -> None:
    words = [
        Word(word.text, (word.box[0], word.box[1] + 0.004 * n, word.box[2], word.box[3] + 0.004 * n))
        for n, word in enumerate(line("this line goes slowly down hill", 0.1, 0.3))
    ]
    assert len(lines_of(words, ASPECT)) == 1


@pytest.mark.parametrize(("level", "count"), [("word", 66), ("line", 13), ("block", 5)])
def test_levels(level: str, count: int) -> None:
    words = columns()
    found = page_objects(words, (24, 24), ASPECT, level)
    assert len(found) == count
    assert sorted(" ".join(each.text for each in found).split()) == sorted(word.text for word in words)


@pytest.mark.parametrize(
    ("tokens", "first", "last", "count"),
    [
        ((60, 60), "A", "here", 66),  # every word covers a token
        ((24, 24), "A", "rb2 has five words here", 6 + 12),  # those of the heading do, and lines of text
        ((6, 6), "A heading across the whole page", " ".join(f"rb{n} has five words here" for n in range(3)), 5),
    ],
)
def test_auto_is_the_finest_that_covers_a_token(tokens: tuple[int, int], first: str, last: str, count: int) -> None:
    words = columns()
    found = page_objects(words, tokens, ASPECT)
    assert len(found) == count
    assert (found[0].text, found[-1].text) == (first, last)
    assert sorted(" ".join(each.text for each in found).split()) == sorted(word.text for word in words)
    # A block that is too small as a whole stays one all the same.
    assert all(covered(each.box, tokens) >= 1 for each in found) == (tokens != (6, 6))


def test_lines_too_small_are_taken_with_others_of_their_block() -> None:
    """A line is a third of a token: three make one with the gaps between them; what is left over goes with them."""
    tokens = (20, 20)
    for count, wanted in ((4, ["ab0 ab1 ab2 ab3"]), (6, ["ab0 ab1 ab2", "ab3 ab4 ab5"]), (1, ["ab0"])):
        words = [word for n in range(count) for word in line(f"ab{n}", 0.1, 0.1 + n * 0.025)]
        assert 0.3 < covered(words[0].box, tokens) < 0.35
        found = page_objects(words, tokens, ASPECT)
        assert [each.text for each in found] == wanted
        lines = len(wanted[0].split())
        right = words[0].box[2]
        assert found[0].box == pytest.approx((0.1, 0.1, right, 0.1 + 0.025 * (lines - 1) + HEIGHT))


def test_an_empty_page_and_an_unknown_level() -> None:
    assert page_objects([], (24, 24)) == []
    assert page_text([]) == ""
    with pytest.raises(ValueError, match="level must be one of auto, word, line, block, not 'page'"):
        page_objects([], (24, 24), level="page")
