"""One forward pass: image tokens in, log-probabilities and pooled hidden states out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mllm_align.contract import Batch, Feature, Ragged, Signals
from mllm_align.families import EncodedImages, Family
from mllm_align.signals.encoder_cache import EncoderCache
from mllm_align.signals.feature_cache import FeatureCache
from mllm_align.signals.features import PHRASE_TOKENS, PHRASES, feature_ids, text_feature_rows
from mllm_align.signals.logps import sum_by, token_logps
from mllm_align.signals.options import EngineOptions
from mllm_align.signals.packing import send
from mllm_align.signals.plan import Group, layout_of


class Measured(NamedTuple):
    """What one forward pass gave: (N,) log-probabilities, and per text feature (n, d) pooled states, in pool order."""

    logps: Tensor
    pooled: Mapping[str, Tensor]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor, in a fixed order."""
        return (self.logps, *self.pooled.values())

    def replaced(self, tensors: Sequence[Tensor]) -> Measured:
        """The same names with other tensors, in the order of `tensors`."""
        return Measured(tensors[0], dict(zip(self.pooled, tensors[1:], strict=True)))


def encode(
    family: Family,
    model: Any,
    batch: Batch,
    cache: FeatureCache | None = None,
    encoders: EncoderCache | None = None,
    at_once: int | None = None,
) -> EncodedImages:
    """The LLM-ready tokens of a batch's distinct images, as far as possible from caches, `at_once` at a time."""
    if not batch.images:
        return EncodedImages(())
    if at_once is not None:
        parts = parts_of(len(batch.images), at_once)
        return joined_images([encode(family, model, images_alone(batch, part), cache, encoders) for part in parts])
    if cache is not None:
        return cache.encode(family, model, batch)
    with nullcontext() if encoders is None else encoders.known(family, model, batch):
        return family.encode_images(model, batch.images)


def parts_of(count: int, size: int) -> list[range]:
    """Neighbouring indices below `count`, `size` at a time."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def joined_images(parts: Sequence[EncodedImages]) -> EncodedImages:
    """The images of all parts, one part after another."""
    return EncodedImages(
        tuple(tokens for part in parts for tokens in part.tokens),
        tuple(layers for part in parts for layers in part.deepstack),
    )


def images_alone(batch: Batch, indices: Collection[int]) -> Batch:
    """Some images of a batch, without anything that reads them."""
    return replace(
        batch,
        images=tuple(batch.images[index] for index in indices),
        image_ids=tuple(batch.image_ids[index] for index in indices) if batch.image_ids else (),
        prefixes=(),
        branches=(),
        row_images={},
    )


def score_group(family: Family, model: Any, encoded: EncodedImages, group: Group, chunk_size: int) -> Measured:
    """The forward pass of one group; vocabulary logits exist for `chunk_size` tokens at a time."""
    inputs = group.inputs
    images = {"mm_encoder_outputs": family.mm_outputs(encoded, inputs.images)} if inputs.images else {}
    with family.layer_states(model, {pool.layer for pool in group.pools if pool.layer is not None}) as below:
        states = family.hidden_states(
            model,
            input_ids=inputs.input_ids,
            attention_mask=group.mask,
            position_ids=inputs.position_ids,
            **inputs.extras,
            **images,
        )
    for layer, own in below.items():
        if layer and states.requires_grad and not own.requires_grad:
            shown = inputs.images and any(tensor.requires_grad for tensor in encoded.tensors)
            _refuse_lost_gradient(family, model, layer, bool(shown))
    pooled = {pool.name: pool(states if pool.layer is None else below[pool.layer]) for pool in group.pools}
    hidden = states[inputs.sequence, inputs.position]
    targets = inputs.targets
    if group.scored is not None:
        hidden, targets = hidden[group.scored], targets[group.scored]
    logps = token_logps(
        lambda states: family.logits(model, states),
        hidden,
        targets,
        chunk_size,
        head_trains=_trains(model.get_output_embeddings()),
    )
    return Measured(logps, pooled)


def _refuse_lost_gradient(family: Family, model: Any, layer: int, shown: bool) -> None:
    """Of states without a graph; where nothing below them trains (nor the images that are shown), they need none.

    Raises:
        ValueError: If they do.
    """
    if shown or any(map(_trains, (model.get_input_embeddings(), *family.decoder_layers(model)[:layer]))):
        raise ValueError(
            f"a feature is of layer {layer}, through which re-entrant checkpointing sends no gradient: leave "
            "use_reentrant off"
        )


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def score_kept(family: Family, model: Any, encoded: EncodedImages, group: Group, options: EngineOptions) -> Measured:
    """The forward pass of one group of the policy, its activations kept for the backward pass as the options say."""
    if not (options.recompute_without_image and torch.is_grad_enabled()) or group.inputs.images:
        return score_group(family, model, encoded, group, options.logits_chunk_size)

    def tensors(anchor: Tensor) -> tuple[Tensor, ...]:
        measured = score_group(family, model, encoded, group, options.logits_chunk_size)
        return tuple(tensor + 0 * anchor for tensor in measured.tensors)

    names = {pool.name: torch.empty(0) for pool in group.pools}
    anchor = torch.zeros((), device=model.device, requires_grad=True)
    found = checkpoint(tensors, anchor, use_reentrant=False)
    return Measured(torch.empty(0), names).replaced(found)


def assemble(
    batch: Batch,
    groups: Sequence[Group],
    measured: Sequence[Measured],
    tokens: bool,
    device: Any,
    images: Mapping[str, tuple[Ragged, Sequence[int]]] | None = None,
    declared: Sequence[Feature] = (),
) -> Signals:
    """Signals of a batch from what its groups gave, and its image features; a view that no group has is zero.

    `declared` are the features that it was measured for, of whose entries it is told which read the same.
    """
    layout = layout_of(batch, groups, device)
    joined = torch.cat([each.logps for each in measured]) if measured else torch.zeros(0, device=device)
    logps, ragged = {}, {}
    for view, where in layout.views.items():
        own = joined[where.index]
        logps[view] = sum_by(own, where.row, len(batch))
        if tokens:
            ragged[view] = Ragged(own, where.row)
    features = {**(images or {}), **_text_features(groups, measured)}
    ids = {each.name: _ids_by_row(batch, each) for each in declared if each.name in features}
    return Signals(
        logps=logps,
        num_tokens=layout.num_tokens,
        token_logps=ragged,
        features={name: ragged for name, (ragged, _) in features.items()},
        sources=batch.sources,
        row_ids=batch.row_ids,
        regions=batch.regions,
        host_num_tokens=layout.host_num_tokens,
        host_feature_rows={name: tuple(rows) for name, (_, rows) in features.items()},
        host_feature_ids={name: own for name, own in ids.items() if own},
        host_token_ids=batch.token_ids(layout.host_num_tokens) if tokens else {},
    )


def _ids_by_row(batch: Batch, feature: Feature) -> tuple[int, ...]:
    """As `_text_features` orders entries: by row, and in a row as branches are."""
    numbers = feature_ids(batch, feature)
    if numbers is None or feature.view is None:
        return tuple(numbers or ())
    rows = text_feature_rows(batch, feature, feature.view)
    return tuple(number for _, number in sorted(zip(rows, numbers, strict=True), key=lambda pair: pair[0]))


def _text_features(groups: Sequence[Group], measured: Sequence[Measured]) -> dict[str, tuple[Ragged, list[int]]]:
    """Of each text feature its entries, in order of row, and their rows once more on the host."""
    values: dict[str, list[Tensor]] = {}
    rows: dict[str, list[int]] = {}
    branches: dict[str, list[int]] = {}
    for group, each in zip(groups, measured, strict=True):
        for pool in group.pools:
            if pool.name in (PHRASES.name, PHRASE_TOKENS.name):
                continue
            values.setdefault(pool.name, []).append(each.pooled[pool.name])
            rows.setdefault(pool.name, []).extend(pool.rows)
            branches.setdefault(pool.name, []).extend(pool.branches)
    found = {}
    for name, own in rows.items():
        joined = torch.cat(values[name])
        order = np.lexsort((branches[name], own))
        row = np.array(own)[order]
        index = send(order, joined.device)
        found[name] = Ragged(joined[index], send(row, joined.device)), row.tolist()
    return found
