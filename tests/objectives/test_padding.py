"""Values in groups of unequal size as one tensor."""

from __future__ import annotations

import torch

from mllm_align.contract import Ragged, Signals
from mllm_align.objectives.padding import padded, places_by_row, rows_of_entries


def test_groups_are_padded_with_zeros() -> None:
    values = torch.arange(1.0, 9).reshape(4, 2)
    found, there = padded(values, [[2], [0, 3], []])
    assert found.tolist() == [[[5, 6], [0, 0]], [[1, 2], [7, 8]], [[0, 0], [0, 0]]]
    assert there.tolist() == [[True, False], [True, True], [False, False]]


def test_places_by_row() -> None:
    assert places_by_row([0, 0, 2, 1, 2], [2, 0]) == [[2, 4], [0, 1]]


def test_the_host_is_asked_first() -> None:
    ragged = Ragged(torch.zeros(2, 1), torch.tensor([0, 1]))
    assert rows_of_entries(Signals({}, {}, features={"x": ragged}), "x") == [0, 1]
    assert rows_of_entries(Signals({}, {}, features={"x": ragged}, host_feature_rows={"x": (3, 4)}), "x") == [3, 4]
    assert rows_of_entries(Signals({}, {}), "x") == []
