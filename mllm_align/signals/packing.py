"""Responses after one prompt share its prefix: one sequence, a block mask, positions that restart.

A pack is `prefix + response A + response B + ...`; a response sees the prefix and itself. The last token of a
response is predicted but predicts nothing, so it is left out of the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mllm_align.contract import Batch
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
        batch: The batch, its token ids on the host.
        packs: The packs of the group.
        family: The model's family, asked for prefix positions.
        model: The unwrapped Hugging Face model.
        dtype: Type of the additive mask.
        window: Sliding window of the model's attention in tokens, or None.
    """
    rows = [_layout(batch, pack, family, model) for pack in packs]
    device = model.device

    def pad(pieces: Sequence[np.ndarray], value: int) -> Tensor:
        longest = max(piece.shape[-1] for piece in pieces)
        grid = np.full((len(pieces), *pieces[0].shape[:-1], longest), value, dtype=np.int64)
        for row, piece in zip(grid, pieces, strict=True):
            row[..., : piece.shape[-1]] = piece
        return torch.from_numpy(grid).to(device, non_blocking=True)

    def join(pieces: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(pieces)).to(device, non_blocking=True)

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
        sequence=join([np.full_like(row.predictor, number) for number, row in enumerate(rows)]),
        position=join([row.predictor for row in rows]),
        targets=join([batch.branches[index].token_ids.numpy() for pack in packs for index in pack.branches]),
        branch=join([row.branch for row in rows]),
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
    input_ids: np.ndarray  # (L,)
    segment: np.ndarray  # (L,)
    order: np.ndarray  # (L,)
    positions: np.ndarray  # (k, L)
    extras: dict[str, np.ndarray]  # (L,) each
    predictor: np.ndarray  # (N,)
    branch: np.ndarray  # (N,)


def _layout(batch: Batch, pack: Pack, family: Family, model: Any) -> _Layout:
    """One pack on the host: thousands of tiny index operations would each be a kernel launch on a GPU."""
    prefix = batch.prefixes[pack.prefix]
    size = prefix.input_ids.numel()
    images = [batch.images[image] for image in prefix.images]
    start = family.prefix_positions(model, prefix.input_ids, images, prefix.extras).numpy()
    after = start.max() + 1
    ids, segment, steps_of = [prefix.input_ids.numpy()], [np.zeros(size, dtype=np.int64)], []
    predictor, owner, offset = [], [], size
    for number, index in enumerate(pack.branches, start=1):
        tokens = batch.branches[index].token_ids.numpy()
        steps = np.arange(len(tokens) - 1)
        ids.append(tokens[:-1])
        segment.append(np.full(len(steps), number))
        steps_of.append(steps)
        predictor.append(np.concatenate([[size - 1], offset + steps]))
        owner.append(np.full(len(tokens), index))
        offset += len(steps)
    tail = np.concatenate(steps_of)
    return _Layout(
        input_ids=np.concatenate(ids),
        segment=np.concatenate(segment),
        order=np.concatenate([np.arange(size), size + tail]),
        positions=np.concatenate([start, np.broadcast_to(after + tail, (len(start), len(tail)))], axis=1),
        extras={key: np.pad(value.numpy(), (0, len(tail))) for key, value in prefix.extras.items()},
        predictor=np.concatenate(predictor),
        branch=np.concatenate(owner),
    )
