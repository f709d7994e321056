"""Filter, duplicates and proportions, each on candidates made by hand."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candidates import candidate, of_categories
from mllm_align.data.mine.selection import balanced, by_category, hard, sampled, without_duplicates


def test_the_rule_is_above_and_below_and_exclusive() -> None:
    cosines = [(0.71, 0.49), (0.7, 0.4), (0.8, 0.5), (0.6, 0.4), (0.8, 0.6), (0.9, -0.2)]
    items = [
        candidate(n, similarity_visual=visual, similarity_semantic=semantic)
        for n, (visual, semantic) in enumerate(cosines)
    ]
    assert [item.row for item in hard(items)] == [0, 5]
    assert [item.row for item in hard(items, 0.55, 0.55)] == [0, 1, 2, 3, 5]


def test_unfiltered_categories_and_flips() -> None:
    items = [candidate(0, category="left_right", similarity_visual=0.99, similarity_semantic=0.99)]
    items.append(candidate(1, similarity_visual=None, similarity_semantic=None))
    assert hard(items) == []
    assert hard(items, unfiltered=("left_right",)) == items[:1]


def test_a_swapped_pair_is_the_same_pair() -> None:
    first = candidate(0)
    swapped = candidate(1, images=first.images[::-1], chosen=first.rejected, rejected=first.chosen)
    assert without_duplicates([first, swapped]) == [first]


@pytest.mark.parametrize(
    "changes",
    [
        {"chosen": "Another text."},
        {"turns": (("user", "What else?"),)},
        {"turns": (("system", "Be short."), ("user", "What is there?"))},
        {"images": ("image 0", "a third")},
        {"chosen": "A dog and 0 mice.", "rejected": "A cat and 0 mice."},  # the same texts on the wrong sides
    ],
)
def test_what_is_no_duplicate(changes: dict) -> None:
    first = candidate(0)
    other = candidate(1, **({"images": first.images, "chosen": first.chosen, "rejected": first.rejected} | changes))
    assert without_duplicates([first, other]) == [first, other]


def test_case_space_and_a_full_stop_make_no_difference() -> None:
    first = candidate(0, chosen="A cat.", turns=(("user", "What  is there?"),))
    other = candidate(1, chosen="a  CAT", rejected=first.rejected, images=first.images)
    assert without_duplicates([first, other]) == [first]


def test_equal_balance_takes_as_many_of_each_as_of_the_rarest() -> None:
    items = of_categories(colour=30, side=7, count=12)
    found = balanced(items, "equal")
    assert by_category(found) == {"colour": 7, "side": 7, "count": 7}
    assert [item.row for item in found] == sorted(item.row for item in found)


def test_original_balance_keeps_the_proportion() -> None:
    items = of_categories(colour=30, side=10, count=1)
    found = balanced(items, "original", {"colour": 300, "side": 200, "count": 5, "gone": 400})
    assert by_category(found) == {"colour": 15, "side": 10, "count": 1}


def test_another_balance_and_an_unknown_category_are_refused() -> None:
    with pytest.raises(ValueError, match="'even'"):
        balanced(of_categories(colour=2), "even")
    with pytest.raises(ValueError, match="'side'"):
        balanced(of_categories(colour=2, side=1), "original", {"colour": 2})
    assert balanced([], "equal") == []


@given(st.permutations(range(30)), st.integers(0, 5))
def test_a_draw_depends_on_content_and_seed_alone(order: list[int], seed: int) -> None:
    items = [candidate(number) for number in range(30)]
    drawn = {item.id for item in sampled(items, {"": 10}, seed)}
    assert {item.id for item in sampled([items[number] for number in order], {"": 10}, seed)} == drawn
    assert len(drawn) == 10


def test_further_rows_only_push_out_some() -> None:
    items = [candidate(number) for number in range(60)]
    few, many = ({item.id for item in sampled(items[:end], {"": 10})} for end in (40, 60))
    assert len(few & many) >= 3
    assert few != {item.id for item in sampled(items[:40], {"": 10}, seed=1)}


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 40), min_size=1), st.data())
def test_original_balance_is_within_one_of_the_proportion(there: dict[str, int], data: st.DataObject) -> None:
    original = {name: data.draw(st.integers(count, 200)) for name, count in there.items()}
    found = by_category(balanced(of_categories(**there), "original", original))
    scale = min(there[name] / original[name] for name in there)
    assert all(abs(found[name] - max(1, scale * original[name])) <= 1 for name in there)
    assert all(found[name] <= there[name] for name in there)
    assert isinstance(found, Counter)
