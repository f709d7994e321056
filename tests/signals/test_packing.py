"""The plan of packs and their tensors against slow loops."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from batches import make_batch
from mllm_align.contract import Batch, Branch, Prefix, View
from mllm_align.families import family_of
from mllm_align.signals.packing import Pack, build_inputs, group_packs, plan_packs
from tiny import tiny


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
    inputs = build_inputs(batch, packs, family_of(model), model)
    found = list(zip(inputs.sequence.tolist(), inputs.position.tolist(), inputs.targets.tolist(), strict=True))
    assert found == [
        (0, 3, 0), (0, 4, 1), (0, 5, 2),
        (0, 3, 0),
        (0, 3, 0), (0, 6, 1),
        (1, 4, 0), (1, 5, 1), (1, 6, 2), (1, 7, 3),
    ]  # fmt: skip
    assert inputs.input_ids.tolist() == [[0, 1, 2, 3, 0, 1, 0, 0], [0, 1, 2, 3, 4, 0, 1, 2]]
    assert inputs.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 4, 0], [0, 1, 2, 3, 4, 5, 6, 7]]


def test_packs_of_one_branch_need_no_mask(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    batch = make_batch(model, processor, pictures[:2], [((0,), (3,)), ((1,), (5,))])
    inputs = build_inputs(batch, plan_packs(batch, range(2), shared=True), family_of(model), model)
    assert inputs.visible.plain == inputs.input_ids.shape[1]
    batch = make_batch(model, processor, pictures[:2], [((0,), (3,)), ((1,), (5, 2))])
    packs = plan_packs(batch, range(3), shared=True)
    inputs = build_inputs(batch, packs, family_of(model), model)
    assert inputs.visible.plain == batch.prefixes[1].input_ids.numel()
