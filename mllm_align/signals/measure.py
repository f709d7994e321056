"""The only place in training that calls the model: a batch in, signals of policy and reference out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mllm_align.contract import Batch, Ragged, Signals
from mllm_align.families import EncodedImages, Family, family_of, inner, unwrap
from mllm_align.signals.limits import attention_window, can_share_prefixes
from mllm_align.signals.logps import sum_by, token_logps
from mllm_align.signals.packing import PackedInputs, build_inputs, group_packs, plan_packs
from mllm_align.signals.reference import Reference
from mllm_align.signals.vision import features_are_shared, frozen_tower_once


@dataclass(frozen=True)
class EngineOptions:
    """How the measuring is done; no setting changes what is measured.

    Attributes:
        packing: "auto" shares prefixes wherever the model allows it, "off" scores every view as its own sequence.
        logits_chunk_size: Response positions whose logits exist at one time.
        least_fill: Packs are run together while the shortest is at least this fraction of the longest.
        max_tokens_per_forward: Padded tokens of one forward pass at the most; None for no limit.
    """

    packing: str = "auto"
    logits_chunk_size: int = 1024
    least_fill: float = 0.8
    max_tokens_per_forward: int | None = None


def measure(
    model: nn.Module,
    batch: Batch,
    *,
    reference: Reference | None = None,
    tokens: bool = False,
    options: EngineOptions = EngineOptions(),
) -> tuple[Signals, Signals | None]:
    """Scores every branch of a batch under the policy and, where wanted, under the reference.

    Args:
        model: The policy, a Hugging Face vision-language model or its PEFT wrapper.
        batch: Its pixels on any device, its token ids on the host.
        reference: How to get the reference; None to measure the policy alone. It scores the rows that
            `batch.reference_rows` names; the other rows have no tokens there.
        tokens: Whether to keep per-token log-probabilities.
        options: Engine settings.

    Returns:
        Signals of the policy (with a graph where gradients are enabled) and of the reference (without), or None.
    """
    hf = unwrap(model)
    family = family_of(hf)
    groups = _plan(family, hf, batch, reference is not None, options)
    if reference is None:
        return _score(family, hf, batch, _encode(family, hf, batch), groups, tokens, options), None
    with frozen_tower_once(family, hf):
        encoded = _encode(family, hf, batch)
        policy = _score(family, hf, batch, encoded, groups, tokens, options)
        share = features_are_shared(family, hf)
        with torch.no_grad(), reference.on(model) as other:
            hf = unwrap(other)
            encoded = encoded if share else _encode(family, hf, batch)
            wanted = [group for group in groups if group.referenced]
            return policy, _score(family, hf, batch, encoded, wanted, tokens, options)


def _encode(family: Family, model: Any, batch: Batch) -> EncodedImages:
    return family.encode_images(model, batch.images) if batch.images else EncodedImages(())


class _Group(NamedTuple):
    """Packs of one forward pass; built once for policy and reference."""

    inputs: PackedInputs
    referenced: bool


def _plan(family: Family, model: Any, batch: Batch, reference: bool, options: EngineOptions) -> list[_Group]:
    """What is run: rows that the reference scores too are kept apart from rows that it does not."""
    shared = options.packing == "auto" and can_share_prefixes(family, model)[0]
    window = attention_window(model)
    groups = []
    for referenced in (True, False):
        branches = [
            index
            for index, branch in enumerate(batch.branches)
            if (reference and batch.reference_rows[branch.row]) == referenced
        ]
        packs = plan_packs(batch, branches, shared)
        for members in group_packs(packs, options.least_fill, options.max_tokens_per_forward):
            inputs = build_inputs(batch, members, family, model, dtype=model.dtype, window=window)
            groups.append(_Group(inputs, referenced))
    return groups


def _score(
    family: Family,
    model: Any,
    batch: Batch,
    encoded: EncodedImages,
    groups: Sequence[_Group],
    tokens: bool,
    options: EngineOptions,
) -> Signals:
    pieces = [_score_group(family, model, encoded, group.inputs, options) for group in groups]
    return _assemble(batch, pieces, tokens, model.device)


def _score_group(
    family: Family, model: Any, encoded: EncodedImages, inputs: PackedInputs, options: EngineOptions
) -> tuple[Tensor, Tensor]:
    """The log-probability (N,) and branch (N,) of every scored token of one forward pass."""
    images = {"mm_encoder_outputs": family.mm_outputs(encoded, inputs.images)} if inputs.images else {}
    output = inner(model)(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        position_ids=inputs.position_ids,
        use_cache=False,
        **inputs.extras,
        **images,
    )
    hidden = output.last_hidden_state[inputs.sequence, inputs.position]
    logps = token_logps(lambda states: family.logits(model, states), hidden, inputs.targets, options.logits_chunk_size)
    return logps, inputs.branch


def _assemble(batch: Batch, pieces: Sequence[tuple[Tensor, Tensor]], tokens: bool, device: Any) -> Signals:
    empty = torch.zeros(0, device=device)
    values = torch.cat([logps for logps, _ in pieces]) if pieces else empty
    owner = torch.cat([branch for _, branch in pieces]) if pieces else empty.long()
    of_branch = sum_by(values, owner, len(batch.branches))
    count_of_branch = sum_by(torch.ones_like(values), owner, len(batch.branches)).long()
    logps, num_tokens, ragged = {}, {}, {}
    for view in batch.views:
        members = [index for index, branch in enumerate(batch.branches) if branch.view == view]
        index = torch.tensor(members, device=device)
        row = torch.tensor([batch.branches[member].row for member in members], device=device)
        logps[view] = sum_by(of_branch[index], row, len(batch))
        num_tokens[view] = torch.zeros(len(batch), dtype=torch.long, device=device).index_add(
            0, row, count_of_branch[index]
        )
        if tokens:
            ragged[view] = _tokens_of(values, owner, members, row)
    return Signals(logps=logps, num_tokens=num_tokens, token_logps=ragged, sources=batch.sources)


def _tokens_of(values: Tensor, owner: Tensor, members: Sequence[int], row: Tensor) -> Ragged:
    """The tokens of some branches, ordered by row; within a branch they are in order already."""
    picked = [(owner == member).nonzero().flatten() for member in members]
    order = torch.argsort(row, stable=True).tolist()
    index = torch.cat([picked[number] for number in order])
    rows = torch.cat([row[number].expand(len(picked[number])) for number in order])
    return Ragged(values[index], rows)
