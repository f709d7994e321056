"""Attention of packed sequences without a square mask.

The tokens before a point that all packs of a group share are plain causal: they need no mask, so the kernel skips the
upper triangle. Only the tokens behind it (the responses) get a mask, over all keys. It is registered with transformers
under a name of its own and is its scaled-dot-product attention for every other call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mllm_align.families import Family

SHARED_PREFIX = "mllm_align_shared_prefix"


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Scaled-dot-product attention whose mask may be given for the last queries alone.

    Args:
        module: The attention layer.
        query: (G, heads, T, d).
        key: (G, key heads, T, d).
        value: (G, key heads, T, d).
        attention_mask: None or (G, 1, T, T) as usual; or (G, 1, S, T) with S < T: for the last S queries (there may be
            none), while those before are causal among themselves.
        dropout: Of the attention weights.
        scaling: Of the scores.
        **kwargs: Handed on.

    Returns:
        (G, T, heads, d), and None in place of the weights.
    """
    size = query.shape[2]
    masked = size if attention_mask is None else attention_mask.shape[-2]
    if masked >= size or key.shape[2] != size:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    head = size - masked
    kwargs.pop("is_causal", None)
    first_query, last_query = query.split([head, masked], dim=2)
    (key, first_key), (value, first_value) = (_WithHead.apply(tensor, head) for tensor in (key, value))
    first, _ = sdpa_attention_forward(
        module, first_query, first_key, first_value, None, dropout, scaling, is_causal=True, **kwargs
    )
    if not masked:
        return first, None
    last, _ = sdpa_attention_forward(
        module, last_query, key, value, attention_mask, dropout, scaling, is_causal=False, **kwargs
    )
    return torch.cat([first, last], dim=1), None


class _WithHead(torch.autograd.Function):
    """(G, heads, T, d) and its first entries along T. Two slices of one tensor would each give a gradient of the whole
    size, filled up with zeros, to be added; here the small one is added where it belongs."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, head: int) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.head, ctx.shape = head, tensor.shape
        return tensor.view_as(tensor), tensor[:, :, :head]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        whole, head = grads
        if head is None:
            return whole, None
        if whole is None:
            rest = head.new_zeros(*ctx.shape[:2], ctx.shape[2] - ctx.head, ctx.shape[3])
            return torch.cat([head, rest], dim=2), None
        return torch.cat([whole[:, :, : ctx.head] + head, whole[:, :, ctx.head :]], dim=2), None


def use_shared_prefix_attention(family: Family, model: nn.Module) -> bool:
    """Gives the language model of a loaded model this attention where it has sdpa; whether it has it now."""
    config = _text_config(family, model)
    if config._attn_implementation == "sdpa" and family.packs:
        config._attn_implementation = SHARED_PREFIX
    return bool(config._attn_implementation == SHARED_PREFIX)


def match_attention(family: Family, policy: Any, other: Any) -> Any:
    """The reference model with the policy's attention, whose masks it is given.

    Raises:
        ValueError: If it was loaded with another back end.
    """
    if use_shared_prefix_attention(family, policy):
        use_shared_prefix_attention(family, other)
    backends = [_text_config(family, model)._attn_implementation for model in (policy, other)]
    if backends[0] != backends[1]:
        raise ValueError(
            f"the model's attention is {backends[0]!r}, the reference's {backends[1]!r}: load both with the same "
            "attn_implementation"
        )
    return other


def _text_config(family: Family, model: nn.Module) -> Any:
    return family.module(model, family.language_model).config


AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)
AttentionMaskInterface.register(SHARED_PREFIX, sdpa_mask)
