"""What is run for a batch, settled on the host first: groups of packs, their masks, and where values go."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mllm_align.contract import Batch, Branch, Feature, View
from mllm_align.families import Family
from mllm_align.signals.attention import SHARED_PREFIX, use_shared_prefix_attention
from mllm_align.signals.features import PHRASE_TOKENS, PHRASE_VIEW, PHRASES, Pool, pools_of
from mllm_align.signals.limits import can_share_prefixes, layer_windows
from mllm_align.signals.masks import attention_masks
from mllm_align.signals.options import EngineOptions
from mllm_align.signals.packing import Pack, PackedInputs, build_inputs, group_packs, plan_packs, send


@dataclass(frozen=True)
class Group:
    """Packs of one forward pass; built once for policy and reference, where both score all of them.

    Attributes:
        inputs: Their tensors.
        mask: What is passed as `attention_mask`.
        scored: (M,) which of the predicted tokens are wanted as log-probabilities; None for all. The others are read
            for a feature alone.
        scored_branch: (M,) the batch's branch index of each, on the host.
        pools: Features of their hidden states.
        reference: What the reference scores of it, without what is read for a feature alone; None for nothing.
    """

    inputs: PackedInputs
    mask: Any
    scored: Tensor | None
    scored_branch: np.ndarray
    pools: tuple[Pool, ...] = ()
    reference: Group | None = None


class Where(NamedTuple):
    """Of one view, (N,) each: which of the measured token values are its own, by row and position, and their rows."""

    index: Tensor
    row: Tensor


@dataclass(frozen=True)
class Layout:
    """Where the token values of some groups, put one behind another, belong.

    Attributes:
        views: Per view of the batch its tokens; empty where none of the groups has it.
        num_tokens: Per view (B,), tokens of each row.
        host_num_tokens: The same on the host.
    """

    views: dict[View, Where]
    num_tokens: dict[View, Tensor]
    host_num_tokens: dict[View, tuple[int, ...]]


def plan_groups(
    family: Family,
    model: Any,
    batch: Batch,
    options: EngineOptions,
    *,
    reference: bool,
    features: Sequence[Feature] = (),
    scored: Collection[View] | None = None,
) -> list[Group]:
    """The groups that measure a batch: rows that the reference scores too are kept apart from rows that it does not.

    Args:
        family: Of the model.
        model: The unwrapped Hugging Face model.
        batch: Its token ids on the host.
        options: Engine settings.
        reference: Whether there is a reference.
        features: Those of text are pooled from the views they name, or from the texts of regions.
        scored: Views whose log-probabilities are wanted; None for all.
    """
    without_square = use_shared_prefix_attention(family, model)
    shared = options.packing == "auto" and can_share_prefixes(family, model)[0]
    depth = len(family.decoder_layers(model))

    def planned(batch: Batch, branches: Sequence[int]) -> list[list[Pack]]:
        packs = plan_packs(batch, branches, shared)
        return group_packs(packs, options.least_fill, options.max_tokens_per_forward)

    def group(
        batch: Batch, packs: Sequence[Pack], features: Sequence[Feature], scored: Collection[View] | None
    ) -> Group:
        inputs = build_inputs(batch, packs, family, model)
        pools = pools_of(batch, inputs, features, depth)
        return Group(inputs, _mask(model, inputs, shared, without_square), *_scored(batch, inputs, scored), pools)

    groups = []
    for referenced in (True, False):
        branches = [
            index
            for index, branch in enumerate(batch.branches)
            if (reference and batch.reference_rows[branch.row]) == referenced
        ]
        for packs in planned(batch, branches):
            own, other = group(batch, packs, features, scored), None
            wanted = [pack for pack in packs if _is_scored(batch, pack, scored)]
            if referenced and wanted:
                whole = len(wanted) == len(packs)
                other = replace(own, pools=()) if whole else group(batch, wanted, (), scored)
            groups.append(replace(own, reference=other))
    read = [feature.pooling == "region_tokens" for feature in features if feature.of_phrases]
    if read:
        phrases = phrases_alone(batch)
        pooled = (*([] if all(read) else [PHRASES]), *([PHRASE_TOKENS] if any(read) else []))
        groups += [group(phrases, packs, pooled, ()) for packs in planned(phrases, range(len(phrases.branches)))]
    return groups


def phrases_alone(batch: Batch) -> Batch:
    """What the texts of regions are read as: a batch of its own, whose rows are the phrases."""
    alone = (Branch(p.prefix, row, PHRASE_VIEW, p.token_ids) for row, p in enumerate(batch.phrases))
    return replace(batch, branches=tuple(alone))


def _is_scored(batch: Batch, pack: Pack, views: Collection[View] | None) -> bool:
    return views is None or any(batch.branches[branch].view in views for branch in pack.branches)


def _scored(batch: Batch, inputs: PackedInputs, views: Collection[View] | None) -> tuple[Tensor | None, np.ndarray]:
    wanted = [views is None or branch.view in views for branch in batch.branches]
    keep = np.array(wanted, dtype=bool)[inputs.branch]
    if keep.all():
        return None, inputs.branch
    return send(np.flatnonzero(keep), inputs.targets.device), inputs.branch[keep]


def _mask(model: Any, inputs: PackedInputs, shared: bool, without_square: bool) -> Any:
    windows = layer_windows(model)
    unmasked = without_square and inputs.visible.plain == inputs.input_ids.shape[1]
    unmasked = unmasked and all(window is None for window in windows.values())
    if not shared and not unmasked:
        return (inputs.visible.segment >= 0).long()
    text = model.config.get_text_config()
    backend = "shared_prefix" if text._attn_implementation == SHARED_PREFIX else text._attn_implementation
    return attention_masks(inputs.visible, backend, windows, mask_dtype(model))


def mask_dtype(model: Any) -> torch.dtype:
    """What the attention of a model computes in here, which its additive masks must be in, too."""
    kind = model.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype


def layout_of(batch: Batch, groups: Sequence[Group], device: Any) -> Layout:
    """Where the token values of `groups` belong; all on the host, so that nothing waits for the device."""
    nothing = np.zeros(0, dtype=np.int64)
    owner = np.concatenate([nothing, *(group.scored_branch for group in groups)])
    order = np.argsort(owner, kind="stable")
    counts = np.bincount(owner, minlength=len(batch.branches))
    starts = np.concatenate([[0], np.cumsum(counts)])
    views, num_tokens, host_num_tokens = {}, {}, {}
    for view in batch.views:
        members = [index for index, branch in enumerate(batch.branches) if branch.view == view]
        members.sort(key=lambda index: batch.branches[index].row)
        pieces = [order[starts[member] : starts[member + 1]] for member in members]
        rows = [np.full(len(p), batch.branches[m].row) for m, p in zip(members, pieces, strict=True)]
        row = np.concatenate([nothing, *rows])
        views[view] = Where(send(np.concatenate([nothing, *pieces]), device), send(row, device))
        total = np.bincount(row, minlength=len(batch))
        host_num_tokens[view] = tuple(total.tolist())
        num_tokens[view] = send(total, device)
    return Layout(views, num_tokens, host_num_tokens)
