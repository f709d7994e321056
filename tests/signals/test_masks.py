"""Who sees whom against a slow loop, in every form a back end takes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mllm_align.signals.masks import Visibility, attention_masks, dense_mask, flex_mask

SEGMENT = [[0, 0, 0, 0, 1, 1, 2, 2, 2, -1, -1], [0, 0, 0, 0, 0, 1, 2, 2, -1, -1, -1]]
ORDER = [[0, 1, 2, 3, 4, 5, 4, 5, 6, 0, 0], [0, 1, 2, 3, 4, 5, 5, 6, 0, 0, 0]]
BLOCK = [[-1, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1], [-1, 0, 0, 1, 1, -1, -1, -1, -1, -1, -1]]


def slow(
    segment: list[int], order: list[int], block: list[int] | None, window: int | None, ends: bool = True
) -> list[list[bool]]:
    """One pack, entry by entry."""
    seen = []
    for i, (query, here) in enumerate(zip(segment, order, strict=True)):
        row = []
        for j, (key, there) in enumerate(zip(segment, order, strict=True)):
            together = block is not None and block[i] >= 0 and block[i] == block[j]
            sees = (j <= i or together) and key in (0, query) and query != -1
            if window is not None and here - there >= window and (ends or not together):
                sees = False
            row.append(sees or i == j)
        seen.append(row)
    return seen


def visibility(blocks: bool, ends: bool = True) -> Visibility:
    return Visibility(
        torch.tensor(SEGMENT),
        torch.tensor(ORDER),
        torch.tensor(BLOCK) if blocks else None,
        plain=1 if blocks else 4,
        window_ends_blocks=ends,
    )


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("window", [None, 1, 3, 5])
def test_masks_are_what_a_loop_says(window: int | None, blocks: bool, ends: bool) -> None:
    visible = visibility(blocks, ends)
    wanted = torch.tensor([slow(SEGMENT[g], ORDER[g], BLOCK[g] if blocks else None, window, ends) for g in range(2)])
    mask = dense_mask(visible, torch.float32, window)
    assert mask.shape == (2, 1, 11, 11)
    assert torch.equal(mask[:, 0] == 0, wanted)
    assert torch.equal(dense_mask(visible, torch.float32, window, first=4)[:, 0] == 0, wanted[:, 4:])
    size = 11
    index = torch.arange(size)
    tiles = flex_mask(visible, window)
    found = torch.stack(
        [tiles.mask_mod(torch.tensor(g), torch.tensor(0), index[:, None], index[None, :]) for g in range(2)]
    )
    assert torch.equal(found, wanted)
    assert tiles.shape == (2, 1, size, size)


def test_only_the_responses_are_masked_where_the_prefix_is_plain() -> None:
    plain, blocked = visibility(False), visibility(True)
    both = {"full_attention": None, "sliding_attention": 3}
    masks: Any = attention_masks(plain, "shared_prefix", both, torch.float32)
    assert masks["full_attention"].shape[2] == 7
    assert masks["sliding_attention"].shape[2] == 11
    assert attention_masks(plain, "shared_prefix", {"sliding_attention": 4}, torch.float32).shape[2] == 7
    assert attention_masks(blocked, "shared_prefix", {"full_attention": None}, torch.float32).shape[2] == 10
    assert attention_masks(plain, "sdpa", {"full_attention": None}, torch.float32).shape[2] == 11


@given(
    st.lists(
        st.tuples(st.integers(1, 7), st.lists(st.integers(0, 4), min_size=1, max_size=3)), min_size=1, max_size=3
    ),
    st.one_of(st.none(), st.integers(1, 6)),
)
def test_random_packs(packs: list[tuple[int, list[int]]], window: int | None) -> None:
    segments = [[0] * prefix + [n for n, tail in enumerate(tails, 1) for _ in range(tail)] for prefix, tails in packs]
    orders = [[*range(prefix), *(prefix + k for tail in tails for k in range(tail))] for prefix, tails in packs]
    size = max(map(len, segments))
    segments = [row + [-1] * (size - len(row)) for row in segments]
    orders = [row + [0] * (size - len(row)) for row in orders]
    visible = Visibility(torch.tensor(segments), torch.tensor(orders), None, min(prefix for prefix, _ in packs))
    wanted = torch.tensor([slow(s, o, None, window) for s, o in zip(segments, orders, strict=True)])
    assert torch.equal(dense_mask(visible, torch.float32, window)[:, 0] == 0, wanted)
