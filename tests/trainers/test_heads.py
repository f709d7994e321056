from __future__ import annotations

import pytest
import torch

from mllm_align.contract import Feature, Needs, Outcome, Signals
from mllm_align.objectives.next_token import NextToken
from mllm_align.objectives.weighted import Weighted
from mllm_align.trainers.heads import as_module, make_ready, mode, share, trained_parameters
from runs import Headed
from tiny import tiny


def test_plain_maths_has_no_parameters() -> None:
    assert as_module(NextToken()) is None
    assert trained_parameters(NextToken()) == []
    share(NextToken())
    with mode(NextToken(), training=True):
        pass


def test_frozen_parameters_do_not_count() -> None:
    objective = Headed()
    objective.mix.requires_grad_(False)
    assert [id(p) for p in trained_parameters(objective)] == [id(objective.scale)]


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_the_mode_comes_back_even_after_an_error(before: bool, inside: bool) -> None:
    objective = Headed().train(before)

    def stop() -> None:
        with mode(objective, training=inside):
            assert objective.training is inside
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert objective.training is before


class Wide(torch.nn.Module):
    """Told how wide its features are."""

    needs = Needs(features=(Feature("own", "projector", "image"), Feature("other", "teacher", "image")))

    def __init__(self, inner: torch.nn.Module | None = None) -> None:
        super().__init__()
        self.told: list[dict[str, int]] = []
        self.inner = inner

    def set_widths(self, widths: dict[str, int]) -> None:
        self.told.append(widths)

    def forward(self, policy: Signals, reference: Signals | None) -> Outcome:
        return Outcome(())


def test_parts_are_told_how_wide_their_features_are() -> None:
    inner = Wide()
    alone, outer = Wide(), Wide(inner)
    model, _ = tiny("llava")
    make_ready(Weighted((NextToken(), 1.0), (alone, 1.0), (Weighted((outer, 1.0)), 0.5)), model, {"other": 7}, "cpu")
    assert alone.told == outer.told == [{"own": 64, "other": 7}]
    assert inner.told == [], "what an objective is made of is its own affair"
    make_ready(NextToken(), model, {}, "cpu")
