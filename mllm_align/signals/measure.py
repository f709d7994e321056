"""The only place in training that calls the model: a batch in, signals of policy and reference out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import nn

from mllm_align.contract import Batch, Feature, Signals, View
from mllm_align.families import EncodedImages, family_of, unwrap
from mllm_align.signals.attention import match_attention
from mllm_align.signals.cached_reference import CachedReference
from mllm_align.signals.features import image_features
from mllm_align.signals.masks import in_dtype
from mllm_align.signals.options import DEFAULTS, EngineOptions
from mllm_align.signals.phrases import phrase_features
from mllm_align.signals.plan import Group, mask_dtype, plan_groups
from mllm_align.signals.reference import FrozenCopy, Reference
from mllm_align.signals.scoring import assemble, encode, score_group, score_kept
from mllm_align.signals.vision import frozen_tower_once, reads_the_same_tokens


def measure(
    model: nn.Module,
    batch: Batch,
    *,
    reference: Reference | CachedReference | None = None,
    tokens: bool = False,
    features: Sequence[Feature] = (),
    scored: Collection[View] | None = None,
    options: EngineOptions = DEFAULTS,
) -> tuple[Signals, Signals | None]:
    """Scores every branch of a batch under the policy and, where wanted, under the reference.

    A language model with transformers' "sdpa" attention is given `signals.attention.shared_prefix_attention`, which is
    the same for every call but packed ones.

    Args:
        model: The policy, a Hugging Face vision-language model or its PEFT wrapper.
        batch: Its pixels on any device, its token ids on the host.
        reference: How to get the reference; None to measure the policy alone. It scores the rows that
            `batch.reference_rows` names; the other rows have no tokens there. It has no features.
        tokens: Whether to keep per-token log-probabilities and the tokens' ids.
        features: What to measure of the policy beside log-probabilities.
        scored: Views whose log-probabilities are wanted; None for all that the batch has.
        options: Engine settings.

    Returns:
        Signals of the policy (with a graph where gradients are enabled) and of the reference (without), or None.
    """
    hf = unwrap(model)
    live = None if isinstance(reference, CachedReference) else reference
    family = family_of(hf)
    groups = plan_groups(family, hf, batch, options, reference=live is not None, features=features, scored=scored)
    other = None
    with frozen_tower_once(family, hf, encoders=options.encoder_cache is None) as again:
        encoded = encode(family, hf, batch, options.feature_cache, options.encoder_cache)
        if live is not None:
            # The reference first: what it needs for a moment does not come on top of what the policy keeps.
            again()
            other = measure_reference(model, batch, live, encoded, groups, tokens, options)
    if options.recompute_without_image:
        # What comes first goes back last, when the activations of all that is kept are gone.
        groups = sorted(groups, key=lambda group: bool(group.inputs.images))
    # Here, where nothing holds the tower's outputs any longer.
    measured = [score_kept(family, hf, encoded, group, options) for group in groups]
    found = image_features(batch, encoded, features) | phrase_features(hf, batch, groups, measured, features)
    policy = assemble(batch, groups, measured, tokens, hf.device, found, features)
    if isinstance(reference, CachedReference):
        other = reference.signals(batch, tokens=tokens, device=hf.device, scored=scored)
    return policy, other


def measure_reference(
    model: nn.Module,
    batch: Batch,
    reference: Reference,
    encoded: EncodedImages,
    groups: Sequence[Group],
    tokens: bool,
    options: EngineOptions,
    at_once: int | None = None,
) -> Signals:
    """Signals of the reference; `encoded` is used where nothing that trains lies in it.

    `at_once` images are encoded at a time, as they were for the policy: a frozen tower's outputs are handed out again.
    """
    hf = unwrap(model)
    family = family_of(hf)
    share = reads_the_same_tokens(family, hf, reference)
    wanted = [group.reference for group in groups if group.reference is not None]
    with torch.no_grad(), reference.on(model) as other:
        hf = match_attention(family, hf, unwrap(other))
        # A copy may have other encoders than the policy, whose features are kept.
        known = None if isinstance(reference, FrozenCopy) else options.encoder_cache
        encoded = encoded if share else encode(family, hf, batch, encoders=known, at_once=at_once)
        # A copy may be in another precision than the policy, in whose own the masks were made.
        dtype = mask_dtype(hf)
        measured = [
            score_group(family, hf, encoded, replace(g, mask=in_dtype(g.mask, dtype)), options.logits_chunk_size)
            for g in wanted
        ]
        return assemble(batch, wanted, measured, tokens, hf.device)
