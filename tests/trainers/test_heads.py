from __future__ import annotations

import pytest

from mllm_align.objectives.next_token import NextToken
from mllm_align.trainers.heads import as_module, mode, share, trained_parameters
from runs import Headed


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
