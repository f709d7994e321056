"""Floating point operations of a step, counted while it runs.

torch's own counter leaves out attention on the CPU and products with 4-bit weights, and takes causal attention for
full. The formulas here replace its own for every scaled-dot-product kernel: a causal kernel skips the keys behind a
query, so they are not counted; a mask given as a tensor saves a kernel nothing, so every pair counts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

KERNELS = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")


def attention_flops(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *, causal: bool, backward: bool
) -> int:
    """Operations of one call of scaled-dot-product attention; a multiplication with its addition counts as two.

    Args:
        query: Shape (B, heads, S, d).
        key: Shape (B, key heads, T, d).
        value: Shape (B, key heads, T, e).
        causal: Whether query i sees the keys up to i alone.
        backward: Of the backward pass, which computes the scores again.
    """
    batch, heads, size, width = query
    keys, value_width = key[2], value[3]
    seen = min(size, keys)
    pairs = seen * (seen + 1) // 2 + (size - seen) * keys if causal else size * keys
    products = 3 * width + 2 * value_width if backward else width + value_width
    return 2 * batch * heads * pairs * products


def count_flops(step: Callable[[], Any]) -> int:
    """Operations of the matrix products, convolutions and attention of one call of `step`, backward included."""
    counter = FlopCounterMode(display=False, custom_mapping=_formulas())
    counter.mod_tracker = _OneModule()  # type: ignore[assignment]
    with counter:
        step()
    return counter.get_total_flops()


class _OneModule:
    """In place of torch's module tracker, whose hooks refuse a backward pass inside a forward pass."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


def _formulas() -> dict[Any, Callable[..., int]]:
    names = [f"_scaled_dot_product_{kernel}{suffix}" for kernel in KERNELS for suffix in ("", "_backward")]
    packets = [getattr(torch.ops.aten, name) for name in names if hasattr(torch.ops.aten, name)]
    formulas = {packet: _attention(packet) for packet in packets}
    if "bitsandbytes" in sys.modules:
        quantized = torch.ops.bitsandbytes
        formulas |= {quantized.gemm_4bit: _four_bit, quantized.gemv_4bit: _four_bit}
    return formulas


def _attention(packet: Any) -> Callable[..., int]:
    arguments = [argument.name for argument in packet.default._schema.arguments]
    backward = "logsumexp" in arguments

    def formula(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        given = dict(zip(arguments, args, strict=False)) | kwargs
        shapes = (tuple(given[name].shape) for name in ("query", "key", "value"))
        return attention_flops(*shapes, causal=bool(given.get("is_causal", False)), backward=backward)

    formula._get_raw = True  # type: ignore[attr-defined]
    return formula


def _four_bit(states: Any, weight: Any, shape: Sequence[int], *rest: Any, out_val: Any = None, **kwargs: Any) -> int:
    return 2 * states.numel() * shape[0]


_four_bit._get_raw = True  # type: ignore[attr-defined]
