"""Caches in whole runs: nothing is computed twice, nothing changes, and what cannot work is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

import mllm_align.data.collator as collator_module
from mllm_align.families import family_of, unwrap
from mllm_align.objectives.dpo import DPO
from mllm_align.objectives.next_token import NextToken
from mllm_align.trainers.caches import cache_root
from runs import config, make_trainer, pair_rows, trained
from tiny import tiny


def log_of(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def rows_on_disk(folder: Path, count: int) -> list[dict[str, Any]]:
    rows = pair_rows(count)
    for row in rows:
        for column in ("image", "contrast_image"):
            path = folder / f"{row['id']}-{column}.png"
            row[column].save(path)
            row[column] = str(path)
    return rows


def test_the_root_is_an_argument_a_variable_or_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLLM_ALIGN_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root(config(tmp_path / "run")) == tmp_path / ".cache" / "mllm_align"
    monkeypatch.setenv("MLLM_ALIGN_CACHE", "~/elsewhere")
    assert cache_root(config(tmp_path / "run")) == tmp_path / "elsewhere"
    assert cache_root(config(tmp_path / "run", cache_dir=str(tmp_path / "own"))) == tmp_path / "own"


@pytest.mark.parametrize("switch", ["cache_pixels", "cache_image_features"])
def test_the_second_epoch_costs_nothing_and_changes_nothing(
    switch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_on_disk(tmp_path, 4)
    plain = make_trainer(tmp_path / "plain", DPO(), rows, max_steps=4)
    plain.train()
    trainer = make_trainer(
        tmp_path / "run", DPO(), rows, max_steps=4, cache_dir=str(tmp_path / "cache"), **{switch: True}
    )
    work: list[int] = []
    if switch == "cache_pixels":
        load = collator_module.load_image
        monkeypatch.setattr(collator_module, "load_image", lambda *args: work.append(1) or load(*args))
    else:
        family = family_of(trainer.model)
        family.module(unwrap(trainer.model), family.tower).register_forward_hook(
            lambda module, args, output: work.append(len(output.last_hidden_state))
        )
    trainer.train()
    assert trainer.state.epoch == 2
    assert sum(work) == 4
    assert log_of(trainer) == pytest.approx(log_of(plain), abs=1e-5)
    for name, value in trained(plain).items():
        torch.testing.assert_close(trained(trainer)[name], value, atol=1e-5, rtol=1e-4)
    later = make_trainer(
        tmp_path / "later", DPO(), rows, max_steps=4, cache_dir=str(tmp_path / "cache"), **{switch: True}
    )
    later.train()
    assert log_of(later) == pytest.approx(log_of(plain), abs=1e-5)
    about = [json.loads(path.read_text()) for path in (tmp_path / "cache").rglob("cache.json")]
    assert len(about) == 1
    assert "Safe to delete" in about[0]["what"]


def test_models_with_other_towers_share_no_features(tmp_path: Path) -> None:
    rows = rows_on_disk(tmp_path, 2)
    logs = {}
    for name, cached in (("plain", False), ("cached", True)):
        for seed in (0, 1):
            model, processor = tiny("llava", seed=seed)
            switches = {"cache_image_features": True, "cache_dir": str(tmp_path / "cache")} if cached else {}
            given = {"model": model, "processing_class": processor, "max_steps": 1, **switches}
            trainer = make_trainer(tmp_path / f"{name}{seed}", DPO(), rows, **given)
            trainer.train()
            logs[name, seed] = log_of(trainer)
    for seed in (0, 1):
        assert logs["cached", seed] == pytest.approx(logs["plain", seed], abs=1e-5)
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 2


def test_features_of_a_vision_side_that_trains_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cache_image_features .* freeze both"):
        make_trainer(
            tmp_path,
            NextToken(),
            pair_rows(2),
            adapter={"train_projector": True},
            cache_image_features=True,
            cache_dir=str(tmp_path / "cache"),
        )


def test_streams_and_bad_sizes_cannot_be_precomputed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = {"precompute_ref_log_probs": True, "cache_dir": str(tmp_path / "cache")}
    stream = Dataset.from_list(pair_rows(2, images=False)).to_iterable_dataset()
    with pytest.raises(ValueError, match=r"train_dataset is a stream.*load it without streaming"):
        make_trainer(tmp_path, DPO(), stream, **settings)
    rows = pair_rows(2, images=False)
    with pytest.raises(ValueError, match=r"eval_dataset\['b'\] is a stream"):
        make_trainer(tmp_path, DPO(), rows, eval_dataset={"a": rows, "b": stream}, **settings)
    with pytest.raises(ValueError, match="precompute_ref_batch_size must be at least 1"):
        make_trainer(tmp_path, DPO(), rows, precompute_ref_batch_size=0, **settings)
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(tmp_path, NextToken(), rows, max_steps=1, **settings)
    assert "precompute_ref_log_probs has no effect" in caplog.text
    trainer.train()
    assert not (tmp_path / "cache").exists()
