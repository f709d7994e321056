"""The whole first stage on tiny models: what trains, that it learns, that it goes on, and what can be loaded then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mllm_align.cli import main
from mllm_align.data.world.facts import facts
from mllm_align.data.world.render import render
from mllm_align.data.world.splits import iter_scenes
from mllm_align.families import family_of, inner
from mllm_align.models import load_model
from mllm_align.trainers.x_former import XFormerConfig, train_x_former
from mllm_align.trainers.x_former.frozen import Autoencoder, OwnEncoder
from mllm_align.trainers.x_former.model import LOSSES, detail_share
from mllm_align.vision.attach import attach
from mllm_align.vision.mixed_vision import MixedVision
from mllm_align.vision.mixer_files import attach_saved, load_mixer_weights
from tiny import tiny
from tiny_autoencoder import save_autoencoder

SMALL: dict[str, Any] = {"num_queries": 4, "width": 32, "depth": 2, "heads": 2}
MIXER = {"kind": "x_former", **SMALL, "detail_cells": [4, 4]}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a tiny vision-language model and of an autoencoder."""
    folder = tmp_path_factory.mktemp("x_former")
    model, processor = tiny("llava")
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder / "model", save_autoencoder(folder / "autoencoder")


def captioned(count: int) -> list[dict[str, Any]]:
    """Pictures of the world, each with one of its facts."""
    rows, scenes = [], iter_scenes("train", 0, "balanced")
    while len(rows) < count:
        scene = next(scenes)
        told = next(iter(facts(scene, "colour")))
        rows.append({"image": render(scene), "chosen": f"The {told.subject} is {told.answer}, number {len(rows)}."})
    return rows


def settings(folder: Path, **changes: Any) -> XFormerConfig:
    usual: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        **SMALL,
    }
    return XFormerConfig(**(usual | changes))


@pytest.mark.slow
def test_it_learns_all_four(parts: tuple[Path, Path], tmp_path: Path) -> None:
    model, autoencoder = parts
    args = settings(tmp_path / "run", max_steps=150, width=64, logging_steps=15)
    trainer: Any = train_x_former(model, str(autoencoder), captioned(4), args)
    log = [entry for entry in trainer.state.log_history if "itc" in entry]
    for name in LOSSES:
        assert log[-1][name] < 0.85 * log[0][name], name
    assert all(0 < entry["detail_share"] < 1 for entry in log)


def test_what_was_trained_loads_for_the_second_stage(parts: tuple[Path, Path], tmp_path: Path) -> None:
    model, autoencoder = parts
    fresh = attached(parts)[2].kind.state_dict()
    trainer: Any = train_x_former(model, str(autoencoder), captioned(4), settings(tmp_path / "run"))
    written = json.loads((tmp_path / "run" / "mixer.json").read_text())
    assert written["kind"] == "x_former"
    assert written["options"]["num_queries"] == 4
    assert not any("words" in name for name in load_file(tmp_path / "run" / "mixer.safetensors"))

    loaded, processor = load_model(model, device="cpu")
    mixed = attach_saved(loaded, tmp_path / "run", processor)
    for name, value in trainer.model.mixer.state_dict().items():
        torch.testing.assert_close(mixed.kind.state_dict()[name], value, rtol=0, atol=0)
    assert not torch.equal(mixed.kind.state_dict()["q_former.queries"], fresh["q_former.queries"])
    inputs = processor(text=[f"{processor.image_token} Yes"], images=[captioned(1)[0]["image"]], return_tensors="pt")
    assert (inputs["input_ids"] == loaded.config.image_token_id).sum() == 4
    assert loaded(**inputs).logits.isfinite().all()
    # In the second stage all of it trains, by the language model's loss.
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == loaded.config.image_token_id, -100)
    loaded(**inputs, labels=labels).loss.backward()
    assert all(value.grad is not None for value in mixed.kind.parameters())
    # A tower of the same widths with other weights is told by its features.
    other, fresh = load_model(model, device="cpu")
    with torch.no_grad():
        other.model.vision_tower.get_input_embeddings().weight.mul_(1.5)
    with pytest.raises(ValueError, match="another vision encoder of the model's own"):
        attach_saved(other, tmp_path / "run", fresh)
    with pytest.raises(ValueError, match="another vision encoder of the model's own"):
        load_mixer_weights(other, tmp_path / "run", fresh)


def test_gradients_reach_all_that_trains_and_nothing_frozen(parts: tuple[Path, Path], tmp_path: Path) -> None:
    model, autoencoder = parts
    trainer: Any = train_x_former(model, str(autoencoder), captioned(4), settings(tmp_path / "run", max_steps=1))
    trainer.model.zero_grad()
    batch = trainer.data_collator([trainer.train_dataset[number] for number in range(4)])
    trainer.compute_loss(trainer.model, batch).backward()
    without = {name for name, value in trainer.model.named_parameters() if value.grad is None}
    assert without == {"mixer.to_language.weight", "mixer.to_language.bias"}
    # A key's bias moves all scores of a query alike.
    silent = {n for n, v in trainer.model.named_parameters() if v.grad is not None and not v.grad.abs().any()}
    assert all(name.endswith("key.bias") for name in silent)
    frozen = [*trainer.own.model.parameters(), *trainer.autoencoder.whole.parameters()]
    trained = {id(value) for value in trainer.model.parameters()}
    assert all(value.grad is None and not value.requires_grad for value in frozen if id(value) not in trained)
    assert all(name.startswith(("mixer.", "words.")) for name in trainer.model.state_dict())


def test_each_loss_has_its_weight(parts: tuple[Path, Path], tmp_path: Path) -> None:
    model, autoencoder = parts
    changes = {"max_steps": 1, "reconstruction_weight": 0.5, "itm_weight": 0.0}
    trainer: Any = train_x_former(model, str(autoencoder), captioned(4), settings(tmp_path / "run", **changes))
    entry = trainer.state.log_history[0]
    assert entry["loss"] == pytest.approx(entry["itc"] + entry["itg"] + 0.5 * entry["reconstruction"], abs=1e-3)


def test_a_resumed_run_ends_as_one_in_one_go(parts: tuple[Path, Path], tmp_path: Path) -> None:
    model, autoencoder = parts
    rows, whole = captioned(8), tmp_path / "whole"
    changes = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None}
    train_x_former(model, str(autoencoder), rows, settings(whole, **changes))
    half = tmp_path / "half"
    half.mkdir()
    for name in ("stage-one.json", "checkpoint-2"):
        (whole / name).rename(half / name)
    with pytest.raises(ValueError, match="holds a run: resume it"):
        train_x_former(model, str(autoencoder), rows, settings(half, **changes))
    with pytest.raises(ValueError, match="another learning_rate"):
        train_x_former(model, str(autoencoder), rows, settings(half, learning_rate=1.0), resume=True)
    train_x_former(model, str(autoencoder), rows, settings(half, **changes), resume=True)
    for file in ("mixer.safetensors", "words.safetensors"):
        one, other = load_file(whole / file), load_file(half / file)
        assert one.keys() == other.keys()
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=0)
    with pytest.raises(ValueError, match="it is finished"):
        train_x_former(model, str(autoencoder), rows, settings(half, **changes), resume=True)


def attached(parts: tuple[Path, Path]) -> tuple[Any, Any, MixedVision]:
    model, processor = load_model(parts[0], device="cpu")
    return model, processor, attach(model, MIXER, [str(parts[1])], processor)


def test_the_frozen_encoders_see_what_an_attached_mixer_is_given(parts: tuple[Path, Path]) -> None:
    model, processor, mixed = attached(parts)
    images = [row["image"].resize((70, 56)) for row in captioned(2)]
    made = [dict(processor.image_processor(images=[image], return_tensors="pt")) for image in images]
    given: dict[str, Any] = {}
    mixed.kind.register_forward_pre_hook(lambda module, args: given.update(sight=args[1]))
    family_of(model).encode_images(model, made)
    own, seen = OwnEncoder(model, mixed), Autoencoder(mixed.encoders[0])  # type: ignore[arg-type]
    features, pixels = own(made)
    torch.testing.assert_close(features, given["sight"].base.values, rtol=0, atol=0)
    seen.mask_ratio = 0.0
    latent = seen(pixels, torch.arange(16.0).expand(2, -1)).latent[:, 1:]
    torch.testing.assert_close(latent, given["sight"].extra[0].values, rtol=1e-5, atol=1e-5)
    assert inner(model).vision_mixer is mixed


def test_half_of_the_patches_are_not_seen_and_the_mask_is_its_own(parts: tuple[Path, Path]) -> None:
    mixed = attached(parts)[2]
    seen = Autoencoder(mixed.encoders[0])  # type: ignore[arg-type]
    pixels = torch.rand(2, 3, 56, 56)
    found = seen(pixels)
    assert found.latent.shape == (2, 1 + 8, 32)
    assert found.masked.sum(dim=1).tolist() == [8, 8]
    assert seen.encoder.model.config.mask_ratio == 0
    # What is not seen changes nothing: the other half of the pixels in noise.
    noise = torch.arange(16.0).expand(2, -1)  # the upper half is seen
    pixels, changed = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    changed[:, :, :16] = pixels[:, :, :16]
    torch.testing.assert_close(seen(pixels, noise).latent, seen(changed, noise).latent)


def test_the_share_of_detail_is_zero_where_it_is_not_read(parts: tuple[Path, Path]) -> None:
    mixer: Any = attached(parts)[2].kind
    torch.manual_seed(0)
    base, detail = torch.randn(3, 16, 64), torch.randn(3, 16, 32)
    assert 0 < detail_share(mixer, base, detail) < 1
    torch.nn.init.zeros_(mixer.dual.to_queries.attention.output.weight)
    assert detail_share(mixer, base, detail) == 0


def test_the_command(parts: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, autoencoder = parts
    rows = tmp_path / "rows.jsonl"
    for number, row in enumerate(made := captioned(4)):
        row["image"].save(tmp_path / f"{number}.png")
    rows.write_text(
        "".join(json.dumps({"image": f"{n}.png", "chosen": row["chosen"]}) + "\n" for n, row in enumerate(made))
    )
    small = ["--queries", "4", "--width", "32", "--depth", "2", "--heads", "2", "--batch-size", "2", "--steps", "1"]
    shared = ["x-former", str(rows), "--model", str(model), *small, "--cpu", "--output", str(tmp_path / "run")]
    assert main([*shared, "--autoencoder", str(autoencoder)]) == 0
    # What it says of the second stage loads what it wrote.
    said = capsys.readouterr().out.splitlines()[-1].removeprefix("mixer: ")
    loaded, _ = load_model(model, device="cpu", mixer=yaml.safe_load(said))
    written = load_file(tmp_path / "run" / "mixer.safetensors")["mixer.q_former.queries"]
    torch.testing.assert_close(loaded.base_model.vision_mixer.kind.q_former.queries.data, written, rtol=0, atol=0)
    assert loaded.base_model.vision_mixer.kind.detail_cells == (4, 4)
    assert main([*shared, "--autoencoder", str(autoencoder)]) == 2
    assert "it is finished" in capsys.readouterr().err
    assert main([*shared[:-1], str(tmp_path / "other"), "--autoencoder", str(model)]) == 2
    assert "not a masked autoencoder" in capsys.readouterr().err


def test_what_cannot_work_is_refused(parts: tuple[Path, Path], tmp_path: Path) -> None:
    model, autoencoder = parts
    with pytest.raises(ValueError, match="do not fill one batch"):
        train_x_former(model, str(autoencoder), captioned(3), settings(tmp_path / "run"))
    tiled, processor = tiny("idefics3")
    tiled.save_pretrained(tmp_path / "tiled")
    processor.save_pretrained(tmp_path / "tiled")
    with pytest.raises(ValueError, match="cuts no tiles"):
        train_x_former(tmp_path / "tiled", str(autoencoder), captioned(4), settings(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="name another"):
        train_x_former(model, str(autoencoder), captioned(4), settings(tmp_path))
    file = tmp_path / "tiled" / "config.json"
    with pytest.raises(ValueError, match="is a file and is kept: name a folder"):
        train_x_former(model, str(autoencoder), captioned(4), settings(file))
    for changes in ({"mask_ratio": 1.0}, {"per_device_train_batch_size": 1}, {"itc_weight": -1.0}):
        with pytest.raises(ValueError, match=next(iter(changes)).split("_")[0]):
            settings(tmp_path, **changes)
