from __future__ import annotations

import pytest
import torch
from torch import nn

from mllm_align.trainers.redirect import inside_forward, touch


class Wrapper(nn.Module):
    """Stands in for DDP: it counts the calls of its own forward."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.calls = 0

    def forward(self) -> object:
        self.calls += 1
        return self.module()


def test_the_function_runs_inside_the_wrapper_with_the_model_restored() -> None:
    model = nn.Linear(2, 1)
    wrapper = Wrapper(model)
    expected = model(torch.ones(2))
    assert torch.equal(inside_forward(wrapper, lambda: model(torch.ones(2))), expected)
    assert wrapper.calls == 1
    assert "forward" not in model.__dict__


def test_a_replaced_forward_comes_back_even_after_an_error() -> None:
    model = nn.Linear(2, 1)
    model.forward = replaced = lambda: "replaced"

    def fail() -> None:
        assert model() == "replaced"
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        inside_forward(model, fail)
    assert model.forward is replaced


def test_touch_is_zero_and_reaches_every_parameter() -> None:
    parameters = [nn.Parameter(torch.tensor([[float("inf"), 1.0]])), nn.Parameter(torch.tensor(2.0).half())]
    zero = touch(parameters)
    assert zero == 0
    zero.backward()
    for parameter in parameters:
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))
