"""The demo from end to end, with few steps and few questions; its control; what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from mllm_align.demo.arms import control_recipe
from mllm_align.demo.run import claim, run_demo
from mllm_align.recipe import load_recipe

REQUIRED = (
    "world/pair_acc",
    "world/adversarial/acc",
    "world/pope_adversarial/acc",
    "world/in_distribution/acc",
    "world/visual_gap",
)


@pytest.mark.slow
def test_the_demo_leaves_report_and_results_of_all_arms(tmp_path: Path) -> None:
    overrides = ["train.max_steps=3", "data.pairs.num_rows=40", "data.instructions.num_rows=40"]
    size = {"num_scenes": 12, "num_pairs": 10, "num_polls": 12}
    run_demo(tmp_path / "demo", size=size, overrides=overrides)
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert set(results["arms"]) == {"base", "control", "aligned", "base_16bit"}
    for arm in ("base", "control", "aligned"):
        for metric in REQUIRED:
            found = results["arms"][arm][metric]
            assert found["low"] <= found["value"] <= found["high"], (arm, metric)
            assert found["n"] >= 10
    assert results["seconds"] > 0
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "next-token control" in page
    for arm in ("aligned", "control"):
        assert (tmp_path / "demo" / arm / "adapter_model.safetensors").is_file()
    saved = yaml.safe_load((tmp_path / "demo" / "control" / "recipe.yaml").read_text())
    assert {part["name"] for part in saved["objective"]} == {"next_token"}
    with pytest.raises(FileExistsError, match="overwrite"):
        run_demo(tmp_path / "demo")


def test_the_control_differs_from_the_recipe_in_its_objective_alone() -> None:
    recipe = load_recipe("demo_svco")
    control = control_recipe(recipe)
    assert [(part["name"], part["sources"]) for part in control.objective] == [
        ("next_token", "pairs"),
        ("next_token", "instructions"),
    ]
    assert (control.model, control.data, control.train) == (recipe.model, recipe.data, recipe.train)
    theirs, ours = yaml.safe_load(control.text), yaml.safe_load(recipe.text)
    assert {key for key in ours if ours[key] != theirs[key]} == {"objective"}


def test_a_folder_that_is_no_demo_is_kept_even_with_overwrite(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("five years")
    with pytest.raises(FileExistsError, match="kept"):
        claim(tmp_path, overwrite=True)
    with pytest.raises(ValueError, match="is a file and is kept"):
        claim(tmp_path / "thesis.tex", overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "five years"
