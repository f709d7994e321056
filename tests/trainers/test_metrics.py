from __future__ import annotations

import pytest
import torch

from mllm_align.contract import Batch, Outcome, Regions, Signals, Term, View
from mllm_align.trainers.metrics import Averages, means, weighted_loss, with_lost_objects
from runs import OWN


def outcome(values: list[float], scale: float) -> Outcome:
    rows = torch.tensor(values)
    term = Term("term", 2.0, rows.sum(), torch.tensor(len(values)))
    return Outcome((term,), {"row": rows, "batch": torch.tensor(scale), "matrix": rows[:, None].expand(-1, 3)})


def test_every_row_weighs_the_same() -> None:
    averages = Averages()
    averages.add_outcome(outcome([1.0, 2.0, 6.0], 10.0), 3)
    averages.add_outcome(outcome([7.0], 2.0), 1)
    totals = averages.totals()
    assert totals["loss/term"] == (16.0, 4.0)
    assert means(totals) == pytest.approx({"loss/term": 4.0, "row": 4.0, "batch": 8.0, "matrix": 4.0})
    assert weighted_loss(totals, {"term": 2.0, "absent": 1.0}) == 8.0
    averages.reset()
    assert averages.totals() == {}


def test_names_without_entries_are_left_out() -> None:
    averages = Averages()
    averages.add_outcome(outcome([], 1.0), 0)
    assert means(averages.totals()) == {}


def test_log_probabilities_are_told_once() -> None:
    other = View(None, "chosen")
    logps = {OWN: torch.tensor([-1.0, -3.0]), other: torch.tensor([-4.0, 0.0])}
    signals = Signals(logps, {OWN: torch.tensor([2, 2]), other: torch.tensor([3, 0])})
    averages = Averages()
    averages.add_logps(signals, Outcome((), {f"part/logps/{OWN}": torch.zeros(1)}))
    assert means(averages.totals()) == {f"logps/{other}": -4.0}


def test_objects_that_are_lost_are_told() -> None:
    """As a share of the objects of all batches, however these are spread; nothing where no objects are looked at."""
    averages = Averages()
    for kept, lost in ((2, 2), (1, 0), (0, 3), (0, 0)):
        regions = {"image": Regions(row=(0,) * kept)} if kept else {}
        batch = Batch(("a",), ("0",), (), (), (), (True,), regions=regions, num_lost_regions=lost)
        found = with_lost_objects(outcome([1.0], 2.0), batch)
        assert ("objects/lost" in found.metrics) == bool(kept + lost)
        averages.add_outcome(found, 1)
    totals = averages.totals()
    assert totals["objects/lost"] == (5.0, 8.0)
    assert totals["row"] == (4.0, 4.0)


def test_values_are_detached() -> None:
    averages = Averages()
    value = torch.ones(2, requires_grad=True)
    averages.add("value", value.sum(), 2)
    assert not averages._sums["value"].requires_grad
