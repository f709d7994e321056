"""Responses after one prompt share its prefix: one sequence, a block mask, positions that restart.

A pack is `prefix + response A + response B + ...`; a response sees the prefix and itself. The last token of a
response is predicted but predicts nothing, so it is left out of the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mllm_align.contract import Batch, Branch, Prefix
from mllm_align.families import Family

PADDING = -1


class Pack(NamedTuple):
    """Indices into the batch: one prefix and the branches that follow it in one sequence of `length` inputs."""

    prefix: int
    branches: tuple[int, ...]
    length: int


@dataclass(frozen=True)
class PackedInputs:
    """G packs, padded on the right to T tokens, and where each scored token is predicted.

    Attributes:
        input_ids: (G, T).
        attention_mask: (G, T) where every pack has one branch, else additive (G, 1, T, T).
        position_ids: (G, T), or (k, G, T) for families with several rows of positions.
        extras: Per-token inputs of the family, (G, T).
        images: Indices of the images in the order of their placeholders.
        sequence, position: (N,) where in the (G, T) grid each scored token is predicted.
        targets: (N,) the scored token ids.
        branch: (N,) the batch's branch index of each scored token.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    extras: dict[str, Tensor]
    images: tuple[int, ...]
    sequence: Tensor
    position: Tensor
    targets: Tensor
    branch: Tensor


def plan_packs(batch: Batch, branches: Sequence[int], shared: bool) -> list[Pack]:
    """The packs that score `branches`: one per prefix, or one per branch where prefixes cannot be shared."""
    groups: dict[Any, list[int]] = {}
    for index in branches:
        key = batch.branches[index].prefix if shared else (batch.branches[index].prefix, index)
        groups.setdefault(key, []).append(index)
    packs = []
    for members in groups.values():
        prefix = batch.branches[members[0]].prefix
        tail = sum(batch.branches[index].token_ids.numel() - 1 for index in members)
        packs.append(Pack(prefix, tuple(members), batch.prefixes[prefix].input_ids.numel() + tail))
    return packs


def group_packs(packs: Sequence[Pack], least_fill: float, max_tokens: int | None = None) -> list[list[Pack]]:
    """Packs that are run together: similar lengths, so that little is padding.

    Args:
        packs: The packs of a batch.
        least_fill: A pack joins a group only if it is at least this fraction of the group's longest.
        max_tokens: Padded tokens of one group at the most; None for no limit.
    """
    groups: list[list[Pack]] = []
    for pack in sorted(packs, key=lambda pack: -pack.length):
        last = groups[-1] if groups else None
        longest = last[0].length if last else 0
        fits = last is not None and pack.length >= least_fill * longest
        if fits and max_tokens is not None and last is not None:
            fits = (len(last) + 1) * longest <= max_tokens
        if fits and last is not None:
            last.append(pack)
        else:
            groups.append([pack])
    return groups


def build_inputs(
    batch: Batch, packs: Sequence[Pack], family: Family, model: Any, *, dtype: torch.dtype, window: int | None = None
) -> PackedInputs:
    """The tensors of one group of packs.

    Args:
        batch: The batch, on the device of the model.
        packs: The packs of the group.
        family: The model's family, asked for prefix positions.
        model: The unwrapped Hugging Face model.
        dtype: Type of the additive mask.
        window: Sliding window of the model's attention in tokens, or None.
    """
    rows = [_layout(batch, pack, family, model) for pack in packs]
    longest = max(pack.length for pack in packs)

    def pad(pieces: Sequence[Tensor], value: int) -> Tensor:
        return torch.stack([torch.nn.functional.pad(x, (0, longest - x.shape[-1]), value=value) for x in pieces])

    segment = pad([row.segment for row in rows], PADDING)
    positions = pad([row.positions for row in rows], 0).transpose(0, 1)
    if any(len(pack.branches) > 1 for pack in packs):
        mask = block_mask(segment, pad([row.order for row in rows], 0), dtype, window)
    else:
        mask = (segment != PADDING).long()
    return PackedInputs(
        input_ids=pad([row.input_ids for row in rows], 0),
        attention_mask=mask,
        position_ids=positions[0] if len(positions) == 1 else positions,
        extras={key: pad([row.extras[key] for row in rows], 0) for key in rows[0].extras},
        images=tuple(image for pack in packs for image in batch.prefixes[pack.prefix].images),
        sequence=torch.cat([torch.full_like(row.predictor, number) for number, row in enumerate(rows)]),
        position=torch.cat([row.predictor for row in rows]),
        targets=torch.cat([batch.branches[index].token_ids for pack in packs for index in pack.branches]),
        branch=torch.cat([row.branch for row in rows]),
    )


def block_mask(segment: Tensor, order: Tensor, dtype: torch.dtype, window: int | None = None) -> Tensor:
    """(G, 1, T, T) additive mask: a token sees the prefix and its own branch up to itself.

    Args:
        segment: (G, T) 0 for the prefix, 1.. for branches, -1 for padding.
        order: (G, T) distance in tokens from the start of prefix + own branch; a window counts in it, because the
            index in the pack counts other branches too.
        dtype: Floating type of the mask.
        window: How many tokens back a token sees, or None.
    """
    index = torch.arange(segment.shape[1], device=segment.device)
    query, key = segment.unsqueeze(2), segment.unsqueeze(1)
    sees = (index.unsqueeze(0) <= index.unsqueeze(1)) & ((key == 0) | (key == query))
    if window is not None:
        sees = sees & (order.unsqueeze(2) - order.unsqueeze(1) < window)
    # Softmax over a row without a single allowed entry is undefined, so every token, padding too, sees itself.
    sees = sees | torch.eye(len(index), dtype=torch.bool, device=segment.device)
    mask = torch.zeros(sees.shape, dtype=dtype, device=segment.device)
    return mask.masked_fill(~sees, torch.finfo(dtype).min).unsqueeze(1)


class _Layout(NamedTuple):
    input_ids: Tensor  # (L,)
    segment: Tensor  # (L,)
    order: Tensor  # (L,)
    positions: Tensor  # (k, L)
    extras: dict[str, Tensor]  # (L,) each
    predictor: Tensor  # (N,)
    branch: Tensor  # (N,)


def _layout(batch: Batch, pack: Pack, family: Family, model: Any) -> _Layout:
    prefix: Prefix = batch.prefixes[pack.prefix]
    branches: list[Branch] = [batch.branches[index] for index in pack.branches]
    device, size = prefix.input_ids.device, prefix.input_ids.numel()
    images = [batch.images[image] for image in prefix.images]
    start = family.prefix_positions(model, prefix.input_ids, images, prefix.extras)
    after = start.max() + 1
    ids, segment, order, positions = [prefix.input_ids], [torch.zeros(size, dtype=torch.long)], [torch.arange(size)], [start]
    predictor, owner, offset = [], [], size
    for number, (index, branch) in enumerate(zip(pack.branches, branches, strict=True), start=1):
        tail = branch.token_ids.numel() - 1
        steps = torch.arange(tail)
        ids.append(branch.token_ids[:tail])
        segment.append(torch.full((tail,), number, dtype=torch.long))
        order.append(size + steps)
        positions.append((after + steps.to(device)).expand(start.shape[0], -1))
        predictor.append(torch.cat([torch.tensor([size - 1]), offset + steps]))
        owner.append(torch.full((tail + 1,), index, dtype=torch.long))
        offset += tail
    tail_total = offset - size
    return _Layout(
        input_ids=torch.cat(ids),
        segment=torch.cat(segment).to(device, non_blocking=True),
        order=torch.cat(order).to(device, non_blocking=True),
        positions=torch.cat(positions, dim=1),
        extras={key: torch.nn.functional.pad(value, (0, tail_total)) for key, value in prefix.extras.items()},
        predictor=torch.cat(predictor).to(device, non_blocking=True),
        branch=torch.cat(owner).to(device, non_blocking=True),
    )
