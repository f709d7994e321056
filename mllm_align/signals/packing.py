"""Responses after one prompt share its prefix: one sequence, positions that restart.

A pack is `prefix + response A + response B + ...`; a response sees the prefix and itself. The last token of a
response is predicted but predicts nothing, so it is left out of the input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mllm_align.contract import Batch
from mllm_align.families import Family
from mllm_align.families.base import to_device
from mllm_align.signals.masks import ONE_WAY, PADDING, Visibility


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
        visible: Who sees whom.
        causal: Whether every pack has one branch, so that no token must be hidden from a later one of its pack.
        position_ids: (G, T), or (k, G, T) for families with several rows of positions.
        extras: Per-token inputs of the family, (G, T).
        images: Indices of the images in the order of their placeholders.
        sequence: (N,) the pack in which each scored token is predicted.
        position: (N,) where in the pack.
        targets: (N,) the scored token ids.
        branch: (N,) the batch's branch index of each scored token, on the host.
        host_sequence: (N,) `sequence` on the host.
        host_position: (N,) `position` on the host.
        packs: The packs.
    """

    input_ids: Tensor
    visible: Visibility
    causal: bool
    position_ids: Tensor
    extras: dict[str, Tensor]
    images: tuple[int, ...]
    sequence: Tensor
    position: Tensor
    targets: Tensor
    branch: np.ndarray
    host_sequence: np.ndarray
    host_position: np.ndarray
    packs: tuple[Pack, ...]


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
    ordered = sorted(packs, key=lambda pack: -pack.length)
    starts = group_starts([pack.length for pack in ordered], least_fill, max_tokens)
    return [ordered[start:end] for start, end in pairwise([*starts, len(ordered)])]


def group_starts(lengths: Sequence[int], least_fill: float, max_tokens: int | None = None) -> list[int]:
    """Where the groups of `group_packs` begin in the lengths of packs, longest first."""
    starts: list[int] = []
    start = longest = 0
    for place, length in enumerate(lengths):
        full = max_tokens is not None and (place - start + 1) * longest > max_tokens
        if not starts or length < least_fill * longest or full:
            starts.append(place)
            start, longest = place, length
    return starts


def send(array: np.ndarray, device: Any) -> Tensor:
    """An array as a tensor on a device, without waiting for it."""
    return to_device(torch.from_numpy(np.ascontiguousarray(array)), device)


def build_inputs(batch: Batch, packs: Sequence[Pack], family: Family, model: Any) -> PackedInputs:
    """The tensors of one group of packs.

    Args:
        batch: The batch, its token ids on the host.
        packs: The packs of the group.
        family: The model's family, asked for positions and blocks of the prefix.
        model: The unwrapped Hugging Face model.
    """
    rows = [_layout(batch, pack, family, model) for pack in packs]
    device = model.device
    size = max(len(row.input_ids) for row in rows)

    def move(array: np.ndarray) -> Tensor:
        return send(array, device)

    def pad(pieces: Sequence[np.ndarray], value: int) -> Tensor:
        grid = np.full((len(pieces), *pieces[0].shape[:-1], size), value, dtype=np.int64)
        for row, piece in zip(grid, pieces, strict=True):
            row[..., : piece.shape[-1]] = piece
        return move(grid)

    sequence = np.concatenate([np.full_like(row.predictor, number) for number, row in enumerate(rows)])
    position = np.concatenate([row.predictor for row in rows])
    positions = pad([row.positions for row in rows], 0).transpose(0, 1)
    has_blocks = any(row.block is not None for row in rows)
    return PackedInputs(
        input_ids=pad([row.input_ids for row in rows], 0),
        visible=Visibility(
            segment=pad([row.segment for row in rows], PADDING),
            order=pad([row.order for row in rows], 0),
            block=pad([_blocks(row) for row in rows], ONE_WAY) if has_blocks else None,
            plain=min(size if row.plain is None else row.plain for row in rows),
            window_ends_blocks=family.window_ends_blocks,
        ),
        causal=all(len(pack.branches) == 1 for pack in packs),
        position_ids=positions[0] if len(positions) == 1 else positions,
        extras={
            key: pad([row.extras[key] for row in rows], family.response_values.get(key, 0)) for key in rows[0].extras
        },
        images=tuple(image for pack in packs for image in batch.prefixes[pack.prefix].images),
        sequence=move(sequence),
        position=move(position),
        targets=move(
            np.concatenate([batch.branches[index].token_ids.numpy() for pack in packs for index in pack.branches])
        ),
        branch=np.concatenate([row.branch for row in rows]),
        host_sequence=sequence,
        host_position=position,
        packs=tuple(packs),
    )


class _Layout(NamedTuple):
    input_ids: np.ndarray  # (L,)
    segment: np.ndarray  # (L,)
    order: np.ndarray  # (L,)
    block: np.ndarray | None  # (P,)
    plain: int | None  # first tokens that see just what lies before them; None where all of the pack do
    positions: np.ndarray  # (k, L)
    extras: Mapping[str, np.ndarray]  # (L,) each
    predictor: np.ndarray  # (N,)
    branch: np.ndarray  # (N,)


def _blocks(row: _Layout) -> np.ndarray:
    block = np.full(len(row.input_ids), ONE_WAY)
    if row.block is not None:
        block[: len(row.block)] = row.block
    return block


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
    blocks = family.two_way_blocks(prefix.input_ids, prefix.extras)
    two_way = None if blocks is None or bool((blocks == ONE_WAY).all()) else blocks.numpy()
    plain = None if len(pack.branches) == 1 else size
    if two_way is not None:
        plain = int(np.argmax(two_way != ONE_WAY))
    return _Layout(
        input_ids=np.concatenate(ids),
        segment=np.concatenate(segment),
        order=np.concatenate([np.arange(size), size + tail]),
        block=two_way,
        plain=plain,
        positions=np.concatenate([start, np.broadcast_to(after + tail, (len(start), len(tail)))], axis=1),
        extras={
            key: np.pad(value.numpy(), (0, len(tail)), constant_values=family.response_values.get(key, 0))
            for key, value in prefix.extras.items()
        },
        predictor=np.concatenate(predictor),
        branch=np.concatenate(owner),
    )
