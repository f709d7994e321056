"""What each harness makes of a zoo of texts; the tables were made by the harnesses' own code, not by ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import ModuleType

import pytest

from mllm_align_eval import choice_readings, readings
from mllm_align_eval.answers import Parsed, parse
from mllm_align_eval.benchmark import Benchmark
from mllm_align_eval.benchmarks import BENCHMARKS
from mllm_align_eval.choice_readings import (
    cambrian_choice,
    cambrian_first_letter,
    early_vlmevalkit_choice,
    llava_scienceqa,
    lmms_choice,
    lmms_first_letter,
    lmms_letter,
    lmms_mmvp,
    lmms_scienceqa,
    svco_choice,
    vlmevalkit_choice,
)
from mllm_align_eval.items import Item
from mllm_align_eval.readings import (
    capital_yes_no,
    exact_yes_no,
    first_word_yes_no,
    pope_official,
    substring_yes_no,
    word_yes_no,
)

Reading = Callable[[str, Item], Parsed]

YES_NO: dict[str, Reading] = {
    "strict": parse,
    "POPE": pope_official,
    "lmms POPE": exact_yes_no,
    "lmms Hallusion": substring_yes_no,
    "VLMEvalKit": word_yes_no,
    "cambrian": first_word_yes_no,
}
CHOICE: dict[str, Reading] = {
    "strict": parse,
    "S-VCO": svco_choice,
    "cambrian": cambrian_choice,
    "its CV": cambrian_first_letter,
    "lmms MMVP": lmms_mmvp,
    "lmms CV": lmms_first_letter,
    "lmms": lmms_choice,
    "VLMEvalKit": vlmevalkit_choice,
}
# Per text what the rules above make of it, in their order; - is unread, ? an abstention.
YES_NO_ZOO = (
    ("Yes.", "yes yes - yes yes yes"),
    ("No, there is none", "no no - no no no"),
    ("NO", "no yes no no no no"),
    ("There isn't a dog.", "no yes - no - -"),
    ("**Yes**", "yes yes - yes - -"),
    ("no: his eyes closed", "no yes - yes - no"),
    ("yes and no", "- no - yes - yes"),
    ("I cannot tell", "? yes - no - -"),
    ("", "- yes - no - -"),
    ("Yes", "yes yes yes yes yes yes"),
    ("no", "no no no no no no"),
    ("\nNo", "no yes no no no no"),
    ("Yes: it is", "yes yes - yes - yes"),
    ("yes,it is", "yes yes - yes yes -"),
    ("Unknown", "? yes - no - -"),
    ("There is not. Yes", "no no - yes yes -"),
    ("Yes, there is no doubt.", "yes no - yes - yes"),
    ("no, yes", "no no - yes - no"),
    ("1,000 yes,no", "- yes - yes - -"),
    ("not sure", "? no - no - -"),
    ("Yes!", "yes yes - yes yes -"),
    ("'yes'", "yes yes - yes - -"),
    ("yes / no", "- no - yes - yes"),
    ("Nope", "no yes - no - -"),
    ("n/a. Yes", "yes yes - yes yes -"),
    ("The answer is no.", "no no - no no -"),
    ("no.", "no no - no no no"),
)
CHOICE_ZOO = (
    ("(a)", "a a a a a a - -"),
    ("B.", "b - b b b b b b"),
    ("The answer is (B).", "b - b b b - b b"),
    ("closed", "b - b - - - - b"),
    ("Neither A nor B", "- - - - a - b -"),
    ("**B**", "b - - - - - b b"),
    ("(B) closed is what I see, not (A)", "b b - b b b a -"),
    ("I see a dog, it is closed", "b - - - a - - -"),
    ("A", "a a a a a a a a"),
    ("a", "a a a a a a - -"),
    ("b)", "b b b b b b - -"),
    ("(b) Closed", "b b - b b b - b"),
    ("B. Closed", "b - - b b b b b"),
    ("Closed.", "b - b - - - - b"),
    ("Answer: B", "b - b b b a b b"),
    ("option b", "b - - - b - - -"),
    ("The camera shows an open door", "a - - - a - - -"),
    ("The bathtub is full", "- - - - b - - -"),
    ("It is open", "a - - - - - - a"),
    ("I cannot tell", "? - - - - - - -"),
    ("", "- - - - - - - -"),
    ("B, because it is closed", "b - - b b b b -"),
    ("The wings are closed", "b - - - - - - b"),
    ("B: Closed", "b - - b b b b b"),
    ("Both", "- - - b b b b -"),
    ("C", "- - - - - - - -"),
    ("The correct answer is **A**. Here's why: the wings are open and wide apart", "a - - - - - a a"),
    ("\n(A)\n", "a a a a a a a a"),
    ("A or B", "- - - a a a a -"),
    ("not A", "- - - - a - a a"),
    ("Z", "- - - - - - - -"),
    ("Sorry, I can't help with images of people yet.", "- - - - - - - -"),
)


def item(choices: tuple[str, ...], labels: tuple[str, ...] = ()) -> Item:
    return Item("1", "any", "any", "any", "1", "?", (), choices, choices[0], labels=labels)


POLL = item(("yes", "no"))
OPEN_CLOSED = item(("(a)", "(b)"), ("Open", "Closed"))


def cells(rules: Mapping[str, Reading], text: str, asked: Item) -> list[str]:
    said = [rule(text, asked) for rule in rules.values()]
    assert all((one.choice is not None) == (one.state == "answered") for one in said)
    return [(one.choice or {"abstained": "?"}.get(one.state, "-")).strip("()") for one in said]


@pytest.mark.parametrize(("text", "expected"), YES_NO_ZOO)
def test_yes_and_no(text: str, expected: str) -> None:
    assert cells(YES_NO, text, POLL) == expected.split()


@pytest.mark.parametrize(("text", "expected"), CHOICE_ZOO)
def test_choices(text: str, expected: str) -> None:
    assert cells(CHOICE, text, OPEN_CLOSED) == expected.split()


@pytest.mark.parametrize(
    ("module", "rules", "asked"), [(readings, YES_NO, POLL), (choice_readings, CHOICE, OPEN_CLOSED)]
)
def test_the_published_tables(module: ModuleType, rules: Mapping[str, Reading], asked: Item) -> None:
    lines = [line.strip("| ").split("|") for line in (module.__doc__ or "").splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line] for line in lines]
    assert head[1:] == list(rules)
    for text, *expected in rows:
        found = cells(rules, "" if text == "(empty)" else text.strip("`"), asked)
        assert [cell.replace("?", "abstained") for cell in found] == expected, text


def test_only_the_letter_of_amber_counts() -> None:
    found = [capital_yes_no(text, POLL).choice for text in ("Yes", "No", "yes", "No.", " No")]
    assert found == ["yes", "no", None, None, None]


def test_vlmevalkit_removes_32_periods() -> None:
    assert word_yes_no("." * 32 + "yes", POLL).choice == "yes"
    assert word_yes_no("." * 33 + "yes", POLL).choice is None


@pytest.mark.parametrize(
    ("text", "llava", "lmms"),
    [
        ("B", "B", "B"),
        ("b", None, "B"),
        (" B", None, "B"),
        ("B.", None, "B"),
        ("B. an apple", "B", "B"),
        ("B.apple", None, "B"),
        ("The answer is B.", "B", None),
        ("The answer is B", None, None),
        ("The answer is A. The answer is B.", None, None),
        ("D", None, None),
        ("apple", None, None),
        ("", None, None),
    ],
)
def test_scienceqa(text: str, llava: str | None, lmms: str | None) -> None:
    asked = item(("A", "B", "C"), ("pear", "apple", "plum"))
    assert (llava_scienceqa(text, asked).choice, lmms_scienceqa(text, asked).choice) == (llava, lmms)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A, B, C and D are possible. B: two, C: three", "A"),
        ("Of B: two, C: three", "C"),
        ("B is wrong, so (C) it is", "B"),
        ("the answer is B rather than C or D, I think", "D"),
        ("정답은 C 입니다", "C"),
        ("CAB", "B"),
        ("CABs", "B"),
        ("xBx", "B"),
        ('"B".', "B"),
        ("?", ""),
    ],
)
def test_the_generic_extractor(text: str, letter: str) -> None:
    assert lmms_letter(text, ("A", "B", "C", "D")) == letter


def test_where_a_letter_stands_in_vlmevalkit() -> None:
    asked = item(("A", "B"), ("a red car with two open doors", "a blue car with two open doors"))
    assert vlmevalkit_choice("it is B as far as", asked).choice == "B"
    assert vlmevalkit_choice("it is B as far as I can", asked).choice is None
    assert early_vlmevalkit_choice("it is B as far as I can", asked).choice == "B"
    long = "I looked at it from all sides and would say it is a blue car with two open doors, which you asked."
    assert len(long) < 2 * sum(map(len, asked.labels))
    assert vlmevalkit_choice(long, asked).choice == "B"
    assert vlmevalkit_choice(long + long, asked).choice is None
    assert early_vlmevalkit_choice(long + long, asked).choice == "B"


def test_options_worded_alike() -> None:
    alike = Item("1", "any", "any", "any", "1", "?", (), ("(a)", "(b)"), "(b)", labels=("Left", "left"))
    assert cambrian_choice("LEFT", alike).choice == "(b)"
    assert vlmevalkit_choice("LEFT", alike).choice is None


@pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=list(BENCHMARKS))
def test_parsers_of_a_benchmark(benchmark: Benchmark) -> None:
    for parser in benchmark.parsers:
        assert benchmark.reading(parser)
    with pytest.raises(ValueError, match=re.escape(f"use {', '.join(benchmark.parsers)}")):
        benchmark.reading("none")
