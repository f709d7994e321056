"""`inspect`: what it measures, prints and writes of a run with a mixer; what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from mixed import mixed_tiny, shake
from mllm_align.cli import main
from mllm_align.cli.ablation import Ablation, batches, changed
from mllm_align.data.world import pair_rows
from mllm_align.models import ModelArguments, load_model
from mllm_align.vision.mixer_files import save_mixer
from tiny import save_tiny
from tiny_encoders import save_encoder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A base, and two encoders."""
    folder = tmp_path_factory.mktemp("models")
    names = [str(save_encoder(name, folder / name)) for name in ("dinov2", "siglip")]
    return save_tiny("llava", folder / "base"), names


@pytest.fixture(scope="module")
def rows() -> Any:
    return Dataset.from_list(pair_rows(5, 0, "train", distribution="balanced"))


def test_an_encoder_costs_what_the_loss_says_without_it(folders: tuple[Path, list[str]], rows: Any) -> None:
    model, processor, mixed = mixed_tiny("llava", "gated", {"model": folders[1][0]})
    ablation = Ablation(model)
    for batch in batches(model, processor, rows, 2):
        ablation.add(batch)
    changes = ablation.changes()
    assert set(changes) == {"nothing", "encoder 1", "mixer"}
    assert all(each.change == each.error == each.rows_worse == 0 for each in changes.values())
    shake(mixed)
    ablation = Ablation(model)
    for batch in batches(model, processor, rows, 2):
        ablation.add(batch)
    after = ablation.changes()
    # Without it the model is what it was.
    assert after["encoder 1"].loss == after["mixer"].loss == changes["nothing"].loss
    assert after["encoder 1"].change == pytest.approx(after["encoder 1"].loss - after["nothing"].loss)
    assert abs(after["encoder 1"].change) > 1e-3
    assert after["nothing"].change == 0


def test_the_loss_is_that_of_the_model_itself(folders: tuple[Path, list[str]], rows: Any) -> None:
    """One row, by the labels of transformers' own loss."""
    model, processor, mixed = mixed_tiny("llava", "gated", {"model": folders[1][0]})
    shake(mixed)
    ablation = Ablation(model)
    (batch,) = batches(model, processor, rows.select([0]), 1)
    ablation.add(batch)
    prefix, branch = batch.prefixes[0], batch.branches[0]
    ids = torch.cat([prefix.input_ids, branch.token_ids])[None]
    labels = torch.cat([torch.full_like(prefix.input_ids, -100), branch.token_ids])[None]
    with torch.no_grad():
        own = model(input_ids=ids, pixel_values=batch.images[0]["pixel_values"], labels=labels).loss
    assert ablation.changes()["nothing"].loss == pytest.approx(own.item(), rel=1e-5)


def test_changes_by_hand() -> None:
    before, after = torch.tensor([2.0, 6.0, 1.0]).double(), torch.tensor([3.0, 6.0, 4.0]).double()
    counts = torch.tensor([2.0, 3.0, 5.0]).double()
    found = changed(after, before, counts)
    assert found.loss == pytest.approx(1.3)
    assert found.change == pytest.approx(0.4)
    rest = [1 - 0.4 * 2, 0 - 0.4 * 3, 3 - 0.4 * 5]
    assert found.error == pytest.approx(math.sqrt(sum(each**2 for each in rest) * 3 / 2) / 10)
    assert found.rows_worse == pytest.approx(2 / 3)
    assert math.isnan(changed(after[:1], before[:1], counts[:1]).error)


def test_the_error_is_that_of_drawing_rows_again() -> None:
    """Of many draws of rows from one population, the spread of the change is the standard error that one draw says."""
    generator = torch.Generator().manual_seed(0)
    changes, errors = [], []
    for _ in range(400):
        counts = torch.randint(1, 20, (150,), generator=generator).double()
        before = counts * 2
        after = before + counts * 0.1 + torch.randn(150, generator=generator).double() * counts.sqrt()
        found = changed(after, before, counts)
        changes.append(found.change)
        errors.append(found.error)
    assert sum(errors) / 400 == pytest.approx(torch.tensor(changes).std().item(), rel=0.1)


def test_a_run_with_two_encoders(
    folders: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, encoders = folders
    arguments = ModelArguments(
        model_name_or_path=str(base),
        use_peft=True,
        lora_scope=["language"],
        mixer={"kind": "sva", "encoders": encoders, "width": 32, "heads": 4, "depth": 1, "residual": True},
    )
    model, processor = load_model(arguments, device="cpu", trainable=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "vision_mixer" in name and "modules_to_save.default" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    model.save_pretrained(tmp_path / "run")
    save_mixer(model, tmp_path / "run", processor)
    out = tmp_path / "made" / "out.json"
    command = ["inspect", str(base), "--adapter", str(tmp_path / "run"), "--data", "world:pairs", "--num-rows", "5"]
    assert main([*command, "--batch-size", "3", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert "SpatialVisionAggregator, 5 views" in printed
    assert all(word in printed for word in ("attention", "without the mixer", "Linear CKA", "gate: ", "added: "))
    assert sum(found["watched"][f"attention/{number}"] for number in range(3)) == pytest.approx(1)
    assert found["watched"]["gate"] > 0
    assert set(found["switched_off"]) == {"nothing", "encoder 1", "encoder 2", "mixer"}
    assert all(found["switched_off"][name]["change"] != 0 for name in ("encoder 1", "encoder 2", "mixer"))
    assert found["names"] == ["own", "encoder 1", "encoder 2", "mixed"]
    assert [found["cka"][at][at] for at in range(4)] == pytest.approx([1] * 4)
    assert set(found["lengths"]) == {"mixed", "plain", "text"}
    assert found["num_rows"] == 5
    assert main([*command, "--json", str(out)]) == 2
    assert "exists: name another file, or --overwrite" in capsys.readouterr().err


def test_errors_are_one_line(
    folders: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, _ = folders
    command = ["inspect", str(base), "--data", "world:pairs"]
    assert main([*command, "--num-rows", "2"]) == 2
    assert "there is no mixer in" in capsys.readouterr().err
    assert main([*command, "--num-rows", "0"]) == 2
    assert "--num-rows must be at least 1, not 0" in capsys.readouterr().err
    assert main(["inspect", str(base), "--data", str(tmp_path / "none.jsonl")]) == 2
    assert "there is no file or folder" in capsys.readouterr().err
