"""The block mask and the plan of packs against slow loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from batches import make_batch
from mllm_align.contract import Batch, Branch, Prefix, View
from mllm_align.families import family_of
from mllm_align.signals.packing import Pack, block_mask, build_inputs, group_packs, plan_packs
from tiny import tiny

SEGMENTS = [0, 0, 0, 1, 1, 2, 2, 2, -1, -1]
ORDER = [0, 1, 2, 3, 4, 3, 4, 5, 0, 0]


@pytest.mark.parametrize("window", [None, 1, 3])
def test_block_mask_is_what_a_loop_says(window: int | None) -> None:
    mask = block_mask(torch.tensor([SEGMENTS]), torch.tensor([ORDER]), torch.float32, window)[0, 0]
    for i, (query, here) in enumerate(zip(SEGMENTS, ORDER, strict=True)):
        for j, (key, there) in enumerate(zip(SEGMENTS, ORDER, strict=True)):
            if query == -1:
                continue  # what padding sees is never read, as long as it sees something
            sees = j <= i and key in (0, query) and (window is None or here - there < window)
            assert (mask[i, j] == 0) == sees, (i, j)
    assert (mask == 0).any(dim=1).all()


def toy_batch(lengths: list[list[int]]) -> Batch:
    """Prefixes of 4, 5, ... tokens, each followed by responses of the given lengths."""
    prefixes = tuple(Prefix(torch.arange(4 + n), (), {}) for n in range(len(lengths)))
    branches = tuple(
        Branch(n, n, View(None, str(k)), torch.arange(length))
        for n, group in enumerate(lengths)
        for k, length in enumerate(group)
    )
    rows = len(lengths)
    return Batch(("s",) * rows, ("i",) * rows, (), prefixes, branches, (False,) * rows)


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=5),
    st.booleans(),
    st.floats(0, 1),
    st.one_of(st.none(), st.integers(1, 60)),
)
def test_every_branch_is_in_exactly_one_pack(
    lengths: list[list[int]], shared: bool, fill: float, budget: int | None
) -> None:
    batch = toy_batch(lengths)
    packs = plan_packs(batch, range(len(batch.branches)), shared)
    assert sorted(b for pack in packs for b in pack.branches) == list(range(len(batch.branches)))
    assert len(packs) == (len(lengths) if shared else len(batch.branches))
    for pack in packs:
        tail = sum(batch.branches[b].token_ids.numel() - 1 for b in pack.branches)
        assert pack.length == batch.prefixes[pack.prefix].input_ids.numel() + tail
    groups = group_packs(packs, fill, budget)
    assert sorted(pack for group in groups for pack in group) == sorted(packs)
    for group in groups:
        longest = max(pack.length for pack in group)
        assert min(pack.length for pack in group) >= fill * longest
        assert budget is None or len(group) == 1 or len(group) * longest <= budget


def test_no_image_views_are_not_padded_to_the_length_of_image_views() -> None:
    groups = group_packs([Pack(0, (0,), 700), Pack(1, (1,), 690), Pack(2, (2,), 120)], 0.8)
    assert [[pack.length for pack in group] for group in groups] == [[700, 690], [120]]


def test_each_target_is_predicted_by_the_token_before_it() -> None:
    model, _ = tiny("llava")
    batch = toy_batch([[3, 1, 2], [4]])
    packs = plan_packs(batch, range(4), shared=True)
    inputs = build_inputs(batch, packs, family_of(model), model, dtype=torch.float32)
    found = list(zip(inputs.sequence.tolist(), inputs.position.tolist(), inputs.targets.tolist(), strict=True))
    assert found == [
        (0, 3, 0), (0, 4, 1), (0, 5, 2),
        (0, 3, 0),
        (0, 3, 0), (0, 6, 1),
        (1, 4, 0), (1, 5, 1), (1, 6, 2), (1, 7, 3),
    ]  # fmt: skip
    assert inputs.input_ids.tolist() == [[0, 1, 2, 3, 0, 1, 0, 0], [0, 1, 2, 3, 4, 0, 1, 2]]
    assert inputs.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 4, 0], [0, 1, 2, 3, 4, 5, 6, 7]]


def test_packs_of_one_branch_keep_the_plain_mask(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    batch = make_batch(model, processor, pictures[:2], [((0,), (3,)), ((1,), (5,))])
    packs = plan_packs(batch, range(2), shared=True)
    inputs = build_inputs(batch, packs, family_of(model), model, dtype=torch.float32)
    assert inputs.attention_mask.dim() == 2
    assert inputs.attention_mask.sum(1).tolist() == [pack.length for pack in packs]
