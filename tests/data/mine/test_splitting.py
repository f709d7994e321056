"""No image on both sides of a split, and as many rows as the components allow."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from candidates import candidate
from mllm_align.data.mine.selection import Candidate
from mllm_align.data.mine.splitting import UnionFind, components, split_by_image

PAIRS = st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)), max_size=24)


def of_pairs(pairs: list[tuple[int, int]]) -> list[Candidate]:
    return [candidate(number, images=(f"i{a}", f"i{b}")) for number, (a, b) in enumerate(pairs)]


def achievable(sizes: list[int]) -> set[int]:
    """Every sum of components by trying all of them."""
    return {
        sum(size for size, taken in zip(sizes, choice, strict=True) if taken)
        for choice in product((False, True), repeat=len(sizes))
    }


def component_sizes(pairs: list[tuple[int, int]]) -> list[int]:
    """By painting neighbours, not by union and find."""
    left, sizes = set(range(len(pairs))), []
    while left:
        border, found = {left.pop()}, set()
        while border:
            number = border.pop()
            found.add(number)
            near = {other for other in left if set(pairs[other]) & set(pairs[number])}
            left -= near
            border |= near
        sizes.append(len(found))
    return sizes


@given(PAIRS, st.integers(0, 30), st.integers(0, 3))
def test_no_image_is_shared_and_the_size_is_the_nearest(pairs: list[tuple[int, int]], wanted: int, seed: int) -> None:
    items = of_pairs(pairs)
    training, validation = split_by_image(items, wanted, seed)
    images = [{image for item in part for image in item.images} for part in (training, validation)]
    assert not images[0] & images[1]
    assert sorted(item.row for item in (*training, *validation)) == list(range(len(items)))
    possible = achievable(component_sizes(pairs)) - ({len(items)} if items else set())
    assert abs(len(validation) - wanted) == min(abs(size - wanted) for size in possible)
    assert not items or training


@given(PAIRS)
def test_components_are_those_of_the_painted_graph(pairs: list[tuple[int, int]]) -> None:
    numbers = components(pairs)
    assert sorted(map(numbers.count, set(numbers))) == sorted(component_sizes(pairs))
    assert sorted(set(numbers)) == list(range(len(set(numbers))))


def test_rows_without_images_are_alone() -> None:
    assert components([(), (), ("a",), ("b", "a"), ()]) == [0, 1, 2, 2, 3]


def test_a_long_chain_is_one_component() -> None:
    assert set(components([(number, number + 1) for number in range(20_000)])) == {0}


def test_joined_sets_have_one_name() -> None:
    sets = UnionFind()
    sets.join("a", "b")
    sets.join("c", "d")
    assert sets.find("a") == sets.find("b") != sets.find("c")
    sets.join("b", "d")
    assert len({sets.find(item) for item in "abcd"}) == 1


def test_the_draw_is_the_seeds_and_not_the_orders() -> None:
    items = [candidate(number) for number in range(50)]
    drawn = [{item.id for item in split_by_image(items, 10, seed)[1]} for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert {item.id for item in split_by_image(items[::-1], 10)[1]} == drawn[0]
    assert len(drawn[0]) == 10


def test_a_chain_that_cannot_be_cut_leaves_validation_empty() -> None:
    items = of_pairs([(number, number + 1) for number in range(9)])
    training, validation = split_by_image(items, 4)
    assert (len(training), len(validation)) == (9, 0)


def test_pictures_that_are_alike_are_on_one_side() -> None:
    grey, nearly, other = (bytes([value]) * 192 for value in (100, 102, 200))
    sided = bytes(range(24)) * 8
    mirrored = b"".join(
        sided[start : start + 24][part : part + 3] for start in range(0, 192, 24) for part in range(21, -1, -3)
    )
    looks = [(grey, other), (nearly, bytes(192)), (sided, bytes([9]) * 192), (mirrored, bytes([30]) * 192)]
    items = [candidate(number, looks=pair) for number, pair in enumerate(looks)]
    for seed in range(8):
        parts = split_by_image(items, 2, seed)
        assert sorted([item.row for item in part] for part in parts) == [[0, 1], [2, 3]]
