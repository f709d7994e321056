"""Regions through the trainer: contrast between them trains beside next-token, by every engine, with and without rows
that have any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mllm_align.data.check import check_dataset
from mllm_align.data.schema import DataError
from mllm_align.objectives import NextToken, RegionContrast, Weighted
from runs import gradients, make_trainer
from two_pictures import rows_of_two_pictures


def both() -> Weighted:
    return Weighted((RegionContrast(negatives="pair"), 1.0), (NextToken(matched=False), 1.0))


@pytest.mark.parametrize("cached", [False, True])
def test_contrast_and_next_token_train_together(tmp_path: Path, cached: bool) -> None:
    trainer = make_trainer(
        tmp_path, both(), rows_of_two_pictures(), adapter=None, max_steps=6, learning_rate=1e-3, cache_gradients=cached
    )
    before = trainer.model.get_submodule("model.multi_modal_projector.linear_1").weight.detach().clone()
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss/region_contrast" in entry]
    assert len(log) == 6
    assert all(0 < entry["loss/region_contrast"] < 20 for entry in log)
    assert {"region_contrast/accuracy", "region_contrast/gap", "region_contrast/temperature"} <= set(log[0])
    assert not torch.equal(before, trainer.model.get_submodule("model.multi_modal_projector.linear_1").weight)


def test_accumulated_and_cached_gradients_are_those_of_the_big_batch(tmp_path: Path) -> None:
    once: dict[str, Any] = {"adapter": None, "max_steps": 1, "train_sampling_strategy": "sequential"}
    whole = gradients(
        make_trainer(tmp_path / "big", both(), rows_of_two_pictures(), per_device_train_batch_size=4, **once)
    )
    ways: list[dict[str, Any]] = [
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 4, "cache_gradients": True},
    ]
    for number, way in enumerate(ways):
        # Within a pair the negatives are the row's own, so that no batch size changes them.
        other = gradients(make_trainer(tmp_path / str(number), both(), rows_of_two_pictures(), **way, **once))
        assert other.keys() == whole.keys()
        for name, gradient in whole.items():
            torch.testing.assert_close(other[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_rows_without_objects_are_refused_before_training(tmp_path: Path) -> None:
    bad = rows_of_two_pictures()
    del bad[1]["objects"]
    with pytest.raises(DataError, match=r"row 1.*no column 'objects', whose regions feature"):
        make_trainer(tmp_path, both(), bad, check_data=True)


def test_objects_that_compare_with_nothing_are_counted_before_training(tmp_path: Path) -> None:
    rows = rows_of_two_pictures()
    rows[0]["objects"][0] |= {"box": [1.2, 1.2, 1.5, 1.5]}
    rows[0]["objects"][1] |= {"box": [0.6, 0.6, 0.3, 0.3], "object_id": ""}
    rows[1]["objects"] = rows[1]["objects"][:3]
    collator = make_trainer(tmp_path, RegionContrast(), rows, adapter=None).data_collator
    summary = check_dataset(rows, collator, progress=False)
    assert (summary.objects, summary.outside, summary.without_id, summary.without_partner) == (11, 2, 1, 2)
    told = str(summary)
    assert "11 objects whose regions are compared" in told
    assert "2 have no area within their image" in told
    assert "longest sequence" not in told


def test_a_frozen_projector_is_told(tmp_path: Path) -> None:
    """LoRA on the language model alone: no region's tokens could change."""
    trainer = make_trainer(tmp_path, both(), rows_of_two_pictures())
    with pytest.raises(ValueError, match="region_contrast"):
        trainer.train()
