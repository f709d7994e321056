"""What goes to a GPU goes out of page-locked memory, so that nobody waits; elsewhere it is handed on."""

from __future__ import annotations

import pytest
import torch

from mllm_align.objectives.host import sent


def test_on_the_host_it_is_handed_on() -> None:
    numbers = torch.arange(3)
    assert torch.equal(sent(numbers, "cpu"), numbers)


def test_to_a_gpu_it_goes_out_of_page_locked_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: calls.append("pinned") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *place, **how: calls.append((place, how)) or self)
    sent(torch.ones(2), "cuda:0")
    assert calls == ["pinned", (("cuda:0",), {"non_blocking": True})]
