"""What regions have in common, against loops over pairs."""

from __future__ import annotations

import torch

from mllm_align.contract import Regions
from mllm_align.objectives.region_masks import contained, table_of

OWN = Regions(
    row=(0, 0, 0, 1),
    image=(0, 0, 1, 0),
    boxes=((0.0, 0.0, 0.4, 0.4), (0.1, 0.1, 0.3, 0.3), (0.0, 0.0, 0.4, 0.4), (0.1, 0.1, 0.3, 0.3)),
    object_ids=("a", "", "a", "a"),
    texts=("A cup", "", "dog", "a Cup"),
    kinds=("", "hat", "dog", "hat"),
)
OTHER = Regions((0,), (0,), ((0.0, 0.0, 0.4, 0.4),), ("b",), ("",), ("",))


def test_numbers_are_equal_where_things_are() -> None:
    table = table_of({"image": OWN, "contrast_image": OTHER}, "cpu")
    assert table.row[0] == table.row[1] == table.row[2] == table.row[4] != table.row[3]
    assert len(set(table.picture.tolist())) == 4
    assert table.picture[0] == table.picture[1]
    assert table.thing[1] == 0
    assert table.thing[0] == table.thing[2] == table.thing[3] != table.thing[4]
    assert table.text[0] == table.text[3] != table.text[2]
    assert table.text[1] == table.text[4] == 0
    assert table.kind[1] == table.kind[3] != table.kind[2]
    assert table.pick(torch.tensor([4, 2])).boxes.tolist() == [table.boxes[4].tolist(), table.boxes[2].tolist()]


def test_alike() -> None:
    table = table_of({"image": OWN, "contrast_image": OTHER}, "cpu")
    own = {(n, n) for n in range(5)}
    one_thing, one_text, nested, one_class = {(0, 2)}, {(0, 3)}, {(0, 1)}, {(1, 3)}

    def both(pairs: set[tuple[int, int]]) -> list[list[int]]:
        return sorted([list(pair) for pair in pairs | {(m, n) for n, m in pairs}])

    found = table.alike(0.5).nonzero().tolist()
    assert found == both(own | one_thing | one_text | nested)
    assert table.alike(1.0).nonzero().tolist() == both(own | one_thing | one_text)
    assert table.alike(1.0, same_class=False).nonzero().tolist() == both(own | one_thing | one_text | one_class)


def test_the_share_of_the_smaller_box() -> None:
    boxes = torch.tensor([[0.0, 0.0, 0.4, 0.4], [0.3, 0.3, 0.5, 0.5], [0.6, 0.6, 0.6, 0.9], [0.5, 0.0, 0.9, 0.4]])
    expected = torch.tensor([[1.0, 0.25, 0, 0], [0.25, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1.0]])
    torch.testing.assert_close(contained(boxes), expected)


def test_no_regions() -> None:
    table = table_of({}, "cpu")
    assert table.alike(0.5).shape == (0, 0)
