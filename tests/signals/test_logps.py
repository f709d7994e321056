"""Chunked log-probabilities against a float64 loop, with their gradients, and the head's largest call."""

from __future__ import annotations

import math

import pytest
import torch

from mllm_align.signals.logps import sum_by, token_logps


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_values_and_gradients_do_not_depend_on_the_chunk(chunk: int, trains: bool) -> None:
    hidden = torch.randn(10, 6, requires_grad=True)
    head = torch.nn.Linear(6, 17).requires_grad_(trains)
    targets = torch.randint(17, (10,))
    rows_seen: list[int] = []
    head.register_forward_pre_hook(lambda module, args: rows_seen.append(len(args[0])))
    found = token_logps(head, hidden, targets, chunk, head_trains=trains)
    (found * torch.arange(10)).sum().backward()
    assert max(rows_seen) <= chunk
    weight, bias = head.weight.double().tolist(), head.bias.double().tolist()
    for row in range(10):
        state = hidden[row].double().tolist()
        logits = [sum(w * x for w, x in zip(weight[v], state, strict=True)) + bias[v] for v in range(17)]
        expected = logits[targets[row]] - math.log(sum(math.exp(z) for z in logits))
        assert found[row].item() == pytest.approx(expected, abs=1e-5)
    gradient, of_weight = hidden.grad.clone(), None if head.weight.grad is None else head.weight.grad.clone()
    hidden.grad = head.weight.grad = None
    (torch.log_softmax(head(hidden), -1)[torch.arange(10), targets] * torch.arange(10)).sum().backward()
    torch.testing.assert_close(gradient, hidden.grad, atol=1e-5, rtol=0)
    assert (of_weight is not None) == trains
    if trains:
        torch.testing.assert_close(of_weight, head.weight.grad, atol=1e-5, rtol=0)


def test_a_frozen_head_keeps_no_logits_for_the_backward_pass() -> None:
    hidden = torch.randn(50, 8, requires_grad=True)
    head = torch.nn.Linear(8, 1000).requires_grad_(False)
    found = token_logps(head, hidden, torch.randint(1000, (50,)), 16, head_trains=False)
    kept = found.grad_fn.saved_tensors
    assert [tuple(tensor.shape) for tensor in kept] == [(50, 8)]


def test_half_precision_logits_are_normalised_in_float32() -> None:
    hidden = torch.randn(4, 8).bfloat16()
    head = torch.nn.Linear(8, 50).bfloat16()
    found = token_logps(head, hidden, torch.tensor([0, 1, 2, 3]), 2)
    assert found.dtype == torch.float32
    expected = head(hidden).double().log_softmax(-1)[torch.arange(4), torch.arange(4)]
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)


def test_sum_by_group_has_the_gradient_of_a_loop() -> None:
    values = torch.randn(5, dtype=torch.float64, requires_grad=True)
    group = torch.tensor([2, 0, 2, 2, 0])
    assert torch.autograd.gradcheck(lambda x: sum_by(x, group, 4), (values,))
    sums = sum_by(values, group, 4).tolist()
    for g in range(4):
        assert sums[g] == pytest.approx(sum(v for v, k in zip(values.tolist(), group.tolist(), strict=True) if k == g))


@pytest.mark.parametrize("trains", [False, True])
def test_a_token_has_its_own_probability_whatever_is_likelier(trains: bool) -> None:
    """Published code takes the likeliest token's in its place (POVID), or that of noisy logits (Re-Align)."""
    logits = torch.tensor([[0.9, 0.08, 0.02]]).log().repeat(2, 1).requires_grad_()
    found = token_logps(torch.nn.Identity(), logits, torch.tensor([0, 2]), head_trains=trains)
    torch.testing.assert_close(found, torch.tensor([-0.105361, -3.912023]), atol=1e-6, rtol=0)
