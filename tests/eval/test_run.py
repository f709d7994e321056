"""An evaluation by names and folders: what it writes, and what it refuses before it asks anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model

from mllm_align.data.world import PAIR_KINDS
from mllm_align.demo import base_path
from mllm_align.models import ModelArguments, load_model
from mllm_align_eval.benchmarks.world import world_items
from mllm_align_eval.run import evaluate


def test_base_and_adapter_are_asked_the_same_and_a_second_run_needs_overwrite(tmp_path: Path) -> None:
    model, _ = load_model(str(base_path()))
    lora = LoraConfig(r=2, target_modules=["model.language_model.layers.0.self_attn.q_proj"], init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(tmp_path / "adapter")
    items = world_items(8, 2 * len(PAIR_KINDS), 8, regimes=["adversarial"])
    arguments = ModelArguments(str(base_path()))
    results = evaluate(arguments, {"mine": str(tmp_path / "adapter")}, items, tmp_path / "out")
    assert set(results["arms"]) == {"base", "mine"}
    assert set(results["differences"]) == {"mine-base"}
    assert json.loads((tmp_path / "out" / "results.json").read_text())["arms"].keys() == results["arms"].keys()
    assert (tmp_path / "out" / "report.html").is_file()
    with pytest.raises(FileExistsError, match="overwrite"):
        evaluate(arguments, {}, items, tmp_path / "out")
    again = evaluate(arguments, {"mine": str(tmp_path / "adapter")}, items, tmp_path / "out", overwrite=True)
    assert again["arms"] == results["arms"]


def test_what_cannot_be_asked_is_said_first(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be called 'base'"):
        evaluate(ModelArguments("nowhere"), {"base": "x"}, world_items(4, 4, 4), tmp_path)
