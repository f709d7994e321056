"""Which token sees which, against the rule of each task spelt out token by token."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mllm_align.trainers.x_former import masks

QUERIES, LENGTHS, LONGEST = 3, (4, 1, 2), 4


def contrast_rule(from_query: bool, to_query: bool, before: bool) -> bool:
    return from_query == to_query


def matching_rule(from_query: bool, to_query: bool, before: bool) -> bool:
    return True


def generation_rule(from_query: bool, to_query: bool, before: bool) -> bool:
    if from_query:
        return to_query
    return to_query or before


@pytest.mark.parametrize(
    ("mask", "rule"),
    [(masks.unimodal, contrast_rule), (masks.bidirectional, matching_rule), (masks.causal, generation_rule)],
)
def test_each_token_sees_what_its_task_lets_it_see(
    mask: Callable[..., torch.Tensor], rule: Callable[[bool, bool, bool], bool]
) -> None:
    present = torch.tensor([[place < length for place in range(LONGEST)] for length in LENGTHS])
    found = mask(QUERIES, present)
    for row, length in enumerate(LENGTHS):
        for one in range(QUERIES + LONGEST):
            for other in range(QUERIES + LONGEST):
                padding = other >= QUERIES + length
                expected = not padding and rule(one < QUERIES, other < QUERIES, other <= one)
                assert bool(found[row, one, other]) == expected, (row, one, other)


def test_no_token_is_blind() -> None:
    present = torch.tensor([[True, False, False]])
    for mask in (masks.unimodal, masks.bidirectional, masks.causal):
        assert mask(2, present).any(dim=-1).all()
