"""Kept features of further encoders in whole runs: nothing is looked at twice, nothing changes, and no other's are
taken."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from mixed import mixed_tiny
from mllm_align.data.corrupt import Crop, corrupted
from mllm_align.data.corrupt.dataset import draws_by_source
from mllm_align.objectives import DPO, MDPO, SVCO, NextToken
from mllm_align.trainers.caches import encoder_cache
from runs import config, make_trainer, pair_rows, trained
from tiny import tiny
from tiny_encoders import save_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_encoder("dinov2", tmp_path_factory.mktemp("encoder")))


def trainer_of(folder: Path, encoder: Any, rows: Any, objective: Any = None, *, cached: bool, **changes: Any) -> Any:
    spec = encoder if isinstance(encoder, dict) else Path(encoder)
    torch.manual_seed(0)
    model, processor, _ = mixed_tiny("llava", "gated", spec)
    given = {"model": model, "processing_class": processor, "max_steps": 4} | changes
    switches = {"cache_encoder_features": True, "cache_dir": str(folder.parent / "cache")} if cached else {}
    return make_trainer(folder, objective or DPO(), rows, **given, **switches)


def looks(trainer: Any) -> list[int]:
    """Grows by the number of views that the policy's encoder is run on."""
    calls: list[int] = []
    encoder = trainer.model.get_submodule("base_model.model.model.vision_mixer.encoders.0.model")
    encoder.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    return calls


def log_of(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("changes", [{}, {"cache_gradients": True}, {"precompute_ref_log_probs": True}])
def test_epochs_and_later_runs_look_at_nothing_again(changes: dict[str, Any], encoder: str, tmp_path: Path) -> None:
    rows = pair_rows(4)
    settings = {"adapter": {"train_projector": True}} | changes
    apart = {"cache_dir": str(tmp_path / "other")} if "precompute_ref_log_probs" in changes else {}
    plain = trainer_of(tmp_path / "plain", encoder, rows, SVCO(), cached=False, **settings, **apart)
    plain.train()
    trainer = trainer_of(tmp_path / "run", encoder, rows, SVCO(), cached=True, **settings)
    calls = looks(trainer)
    trainer.train()
    assert trainer.state.epoch == 2
    assert sum(calls) == 8  # an own and a contrast image of each row
    assert log_of(trainer) == pytest.approx(log_of(plain), abs=1e-5)
    assert trained(trainer).keys() == trained(plain).keys()
    for name, value in trained(plain).items():
        torch.testing.assert_close(trained(trainer)[name], value, atol=1e-5, rtol=1e-4)
    later = trainer_of(tmp_path / "later", encoder, rows, SVCO(), cached=True, **settings)
    calls = looks(later)
    later.train()
    assert sum(calls) == 0
    assert log_of(later) == pytest.approx(log_of(plain), abs=1e-5)
    (about,) = (tmp_path / "cache" / "encoders").rglob("cache.json")
    found = json.loads(about.read_text())
    assert "Safe to delete" in found["what"]
    assert found["model"] == encoder


def test_another_encoder_layer_dtype_or_tower_dtype_has_its_own(encoder: str, tmp_path: Path) -> None:
    rows = pair_rows(2)
    other = str(save_encoder("dinov2", tmp_path / "other", seed=1))
    logs = {}
    specs: dict[str, Any] = {
        "first": encoder,
        "weights": other,
        "layer": {"model": encoder, "layer": 1},
    }
    for cached in (False, True):
        for name, spec in specs.items():
            model, processor, _ = mixed_tiny("llava", "interleave", spec if isinstance(spec, dict) else Path(spec))
            given = {"model": model, "processing_class": processor, "max_steps": 1}
            trainer = trainer_of(tmp_path / f"{name}{cached}", encoder, rows, cached=cached, **given)
            trainer.train()
            logs[name, cached] = log_of(trainer)
    for name in specs:
        assert logs[name, True] == pytest.approx(logs[name, False], abs=1e-5)
    assert len({tuple(logs[name, True]) for name in specs}) == len(specs)
    assert len(list((tmp_path / "cache" / "encoders").iterdir())) == len(specs)
    settings = config(tmp_path / "run", cache_encoder_features=True, cache_dir=str(tmp_path / "cache"))
    folders = set()
    for tower, own in ((torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float32, torch.half)):
        model, _, mixed = mixed_tiny("llava", "gated", Path(encoder))
        model.model.vision_tower.to(tower)
        mixed.seeing[0].to(own)
        cache = encoder_cache(settings, model)
        assert cache is not None
        folders.add(cache.stores[0].folder)
    assert len(folders) == 3


def test_what_would_change_or_is_not_there_is_refused(encoder: str, tmp_path: Path) -> None:
    model, processor = tiny("llava")
    settings = {"cache_encoder_features": True, "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(ValueError, match=r"cache_encoder_features .* no mixer: leave it out"):
        make_trainer(tmp_path / "a", NextToken(), pair_rows(2), model=model, processing_class=processor, **settings)
    for train in ("lora", "full"):
        with pytest.raises(ValueError, match="every further encoder trains: leave it out"):
            trainer_of(tmp_path / train, {"model": encoder, "train": train}, pair_rows(2), cached=True)
    assert encoder_cache(config(tmp_path / "b"), model) is None


def test_a_copy_as_reference_with_another_encoder_sees_for_itself(encoder: str, tmp_path: Path) -> None:
    other = save_encoder("dinov2", tmp_path / "other", seed=1)
    logs = []
    for cached in (False, True):
        ref_model, _, _ = mixed_tiny("llava", "interleave", other)
        model, processor, _ = mixed_tiny("llava", "interleave", Path(encoder))
        given = {"model": model, "processing_class": processor, "ref_model": ref_model, "max_steps": 2}
        trainer = trainer_of(tmp_path / f"{cached}", encoder, pair_rows(2), cached=cached, **given)
        trainer.train()
        logs.append(log_of(trainer))
    assert logs[1] == pytest.approx(logs[0], abs=1e-5)


def test_made_images_are_drawn_once(encoder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{key: value for key, value in row.items() if key != "contrast_image"} for row in pair_rows(2)]
    with caplog.at_level(logging.WARNING):
        trainer = trainer_of(tmp_path / "run", encoder, corrupted(rows, Crop()), MDPO(), cached=True)
    assert "cache_encoder_features would keep all of them" in caplog.text
    assert not any(draws.by_epoch for draws in draws_by_source(trainer.train_dataset).values())
