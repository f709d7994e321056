"""`tower train` and `tower put`: from rows in a file to scores, and to a model with the tower in its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from mllm_align.cli import main
from mllm_align.models import load_model
from tiny import save_tiny
from tiny_duals import captioned, save_dual


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    lines = []
    for number, row in enumerate(captioned(24)):
        row["image"].save(folder / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "caption": row["chosen"]}))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return folder / "rows.jsonl"


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_train_and_put(name: str, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dual = save_dual(name, tmp_path / "dual")
    command = ["tower", "train", str(rows), "--model", str(dual), "--output", str(tmp_path / "out"), "--cpu"]
    command += ["--text-column", "caption", "--stages", "2", "--clusters", "2", "--batch-size", "8", "--steps", "2"]
    assert main([*command, "--lora-r", "2", "--min-cluster-rows", "4"]) == 0
    assert "2 stages saved in" in capsys.readouterr().out
    kind = json.loads((tmp_path / "out" / "tower.json").read_text())["loss"]
    assert kind == {"clip": "softmax_pairs", "siglip": "sigmoid_pairs"}[name]
    assert main([*command, "--lora-r", "4", "--min-cluster-rows", "4"]) == 2
    assert "stages of another lora" in capsys.readouterr().err
    if name == "clip":
        model = save_tiny("llava", tmp_path / "model")
        stage = tmp_path / "out" / "stage-1"
        assert main(["tower", "put", str(model), str(stage), str(tmp_path / "put")]) == 0
        found, _ = load_model(tmp_path / "put", device="cpu")
        wanted = AutoModel.from_pretrained(stage).vision_model.state_dict()
        assert all(torch.equal(value, wanted[key]) for key, value in found.model.vision_tower.state_dict().items())


def test_errors_are_one_line(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["tower", "train", str(rows), "--output", str(tmp_path / "out"), "--cpu"]
    assert main([*command, "--model", str(tmp_path / "nothing")]) == 2
    assert "error: cannot load" in capsys.readouterr().err
    dual = str(save_dual("clip", tmp_path / "dual"))
    assert main([*command, "--model", dual]) == 2
    assert "no column 'chosen' with a caption" in capsys.readouterr().err
    assert main([*command, "--model", dual, "--stages", "1"]) == 2
    assert "num_stages 1 trains nothing" in capsys.readouterr().err
    assert main(["tower", "put", "demo-base", dual, str(tmp_path / "put")]) == 2
    assert "is another kind of tower than that of" in capsys.readouterr().err
