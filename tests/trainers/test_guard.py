from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mllm_align.contract import Outcome, Term
from mllm_align.trainers.guard import check_gradients, check_trainable, reaches


def outcome(value: torch.Tensor, *, weight: float = 1.0, count: float = 1.0) -> Outcome:
    return Outcome((Term("term", weight, value, torch.tensor(count)),))


@pytest.fixture
def model() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    return model


@pytest.mark.parametrize("reentrant", [False, True])
def test_reaches_through_checkpointing(model: nn.Module, reentrant: bool) -> None:
    value = torch.ones(1, 2, requires_grad=True)
    hidden = checkpoint(model, value, use_reentrant=reentrant)
    assert reaches(hidden.sum(), [id(model[2].weight)])


def test_a_frozen_part_is_not_reached(model: nn.Module) -> None:
    loss = model(torch.ones(1, 2)).sum()
    assert reaches(loss, [id(model[2].bias)])
    assert not reaches(loss, [id(model[0].weight)])


def test_refusals_tell_why(model: nn.Module) -> None:
    head = nn.Linear(1, 1)
    for value, reason in (
        (model(torch.ones(1, 2)).detach().sum(), "has no gradient"),
        (head(torch.ones(1, 1)).sum(), "objective's own parameters or in parts that are frozen"),
    ):
        with pytest.raises(ValueError, match=f"'term' reaches no parameter.*{reason}"):
            check_gradients(outcome(value), model.parameters(), set())


def test_terms_are_looked_at_when_they_first_have_rows(model: nn.Module) -> None:
    checked: set[str] = set()
    idle = torch.zeros(())
    check_gradients(outcome(idle, count=0.0), model.parameters(), checked)
    check_gradients(outcome(idle, weight=0.0), model.parameters(), checked)
    assert checked == set()
    check_gradients(outcome(head := model(torch.ones(1, 2)).sum()), model.parameters(), checked)
    assert checked == {"term"}
    check_gradients(outcome(head.detach()), model.parameters(), checked)


def test_a_model_of_which_nothing_trains(model: nn.Module) -> None:
    check_trainable(model)
    with pytest.raises(ValueError, match=r"no parameter of the model trains: pass peft_config"):
        check_trainable(model.requires_grad_(False))
