"""Operations are those of a formula worked out by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from flops import attention_flops, count_flops
from shapes import PRESETS, build_base, quantize


def test_causal_attention_counts_the_pairs_that_are_seen() -> None:
    pairs = sum(1 for query in range(5) for key in range(5) if key <= query)
    shape = (2, 3, 5, 7)
    assert attention_flops(shape, shape, shape, causal=True, backward=False) == 2 * 2 * 3 * pairs * (7 + 7)
    wide = sum(1 for query in range(5) for key in range(3) if key <= query)
    assert attention_flops(shape, (2, 3, 3, 7), (2, 3, 3, 4), causal=True, backward=True) == 12 * wide * (21 + 8)


@pytest.mark.parametrize("kind", ["full", "causal", "mask"])
def test_attention_on_the_cpu_is_counted_forward_and_backward(kind: str) -> None:
    queries, keys, width = 6, 6 if kind == "causal" else 10, 8
    query, key, value = (torch.randn(2, 3, n, width, requires_grad=True) for n in (queries, keys, keys))
    mask = torch.zeros(1, 1, queries, keys) if kind == "mask" else None

    def forward() -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=kind == "causal")

    pairs = queries * (queries + 1) // 2 if kind == "causal" else queries * keys
    product = 2 * 2 * 3 * pairs * width
    assert count_flops(forward) == 2 * product
    # The backward pass: scores again, then the gradients of weights, values, queries and keys.
    assert count_flops(lambda: forward().sum().backward()) == (2 + 5) * product


def test_attention_in_two_calls_is_what_it_computes() -> None:
    """A causal beginning without a mask, and the rest with one over all keys."""
    size, first, width = 12, 8, 4
    query, key, value = (torch.randn(1, 2, size, width) for _ in range(3))
    mask = torch.zeros(1, 1, size - first, size)

    def forward() -> None:
        F.scaled_dot_product_attention(query[:, :, :first], key[:, :, :first], value[:, :, :first], is_causal=True)
        F.scaled_dot_product_attention(query[:, :, first:], key, value, attn_mask=mask)

    pairs = first * (first + 1) // 2 + (size - first) * size
    assert count_flops(forward) == 2 * 2 * 2 * pairs * width


def test_a_backward_pass_inside_a_forward_pass_is_counted() -> None:
    weight = torch.randn(4, 5)

    class Inner(torch.autograd.Function):
        @staticmethod
        def forward(ctx, states):  # type: ignore[no-untyped-def]
            with torch.enable_grad():
                leaf = states.detach().requires_grad_()
                (slope,) = torch.autograd.grad((leaf @ weight).sum(), leaf)
            ctx.save_for_backward(slope)
            return slope.sum()

        @staticmethod
        def backward(ctx, grad):  # type: ignore[no-untyped-def]
            return grad * ctx.saved_tensors[0]

    states = torch.randn(3, 4, requires_grad=True)
    assert count_flops(lambda: Inner.apply(states).backward()) == 2 * (2 * 3 * 4 * 5)


def test_a_model_counts_as_worked_out_by_hand() -> None:
    """A text-only forward pass: four projections, three of the MLP and attention per layer, and the head."""
    text = PRESETS["tiny"].text
    width, inner, layers, size = text["hidden_size"], text["intermediate_size"], text["num_hidden_layers"], 11
    model = build_base(PRESETS["tiny"])
    ids = torch.arange(10, 10 + size)[None]
    linear = 2 * size * (4 * width * width + 3 * width * inner)
    attention = 2 * (size * (size + 1) // 2) * 2 * width
    head = 2 * size * width * text["vocab_size"]
    assert count_flops(lambda: model(input_ids=ids)) == layers * (linear + attention) + head


def test_four_bit_products_count_like_others() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(64, 32, bias=False))
    quantize(layer, torch.float32)
    layer[0].support_avx512bf16_for_cpu = False
    states = torch.randn(5, 64)
    with torch.no_grad():
        assert count_flops(lambda: layer(states)) == 2 * 5 * 64 * 32
    states.requires_grad_()
    assert count_flops(lambda: layer(states).sum().backward()) == 2 * (2 * 5 * 64 * 32)
