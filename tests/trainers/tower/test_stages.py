"""All stages: what trains and what stays, resuming, the clusters they see, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers import AutoModel, CLIPVisionModel

from mllm_align.objectives.pair_losses import sigmoid_pairs, softmax_pairs
from mllm_align.trainers.tower import TowerConfig, train_stages
from mllm_align.trainers.tower import stages as module
from mllm_align.trainers.tower.clusters import refined
from mllm_align.trainers.tower.trainer import TowerTrainer
from runs import start_ranks, wait_for_ranks
from tiny_duals import captioned, save_dual

LOSSES = {"clip": softmax_pairs, "siglip": sigmoid_pairs}
ROWS = captioned(32)


def config(folder: Path, **changes: Any) -> TowerConfig:
    settings = {"num_stages": 2, "num_clusters": 3, "min_cluster_rows": 4, "max_steps": 3, "learning_rate": 1e-3}
    settings |= {"per_device_train_batch_size": 8, "use_cpu": True, "disable_tqdm": True, "logging_steps": 1}
    return TowerConfig(str(folder), **{**settings, **changes})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save_dual(name, tmp_path_factory.mktemp(name)) for name in LOSSES}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModel.from_pretrained(folder, dtype="auto").state_dict()


@pytest.mark.parametrize("lora", [None, LoraConfig(r=2, lora_alpha=8)], ids=["whole", "lora"])
@pytest.mark.parametrize("name", LOSSES)
def test_the_image_side_trains_and_the_text_tower_stays(
    name: str, lora: LoraConfig | None, models: dict[str, Path], tmp_path: Path
) -> None:
    found = train_stages(models[name], ROWS, config(tmp_path / "out"), LOSSES[name], peft_config=lora)
    given, first, second = (weights(folder) for folder in (models[name], *found))
    assert given.keys() == first.keys() == second.keys()  # adapters are merged
    assert all(torch.equal(first[key], value) for key, value in given.items())
    moved = {key for key, value in given.items() if not torch.equal(second[key], value)}
    assert not any(key.startswith("text_") for key in moved)
    assert sum(key.startswith("vision_model.encoder") and "proj.weight" in key for key in moved) == 2 * 4
    assert "logit_scale" in moved
    if lora is None:
        assert {"vision_model.embeddings.patch_embedding.weight", "vision_model.post_layernorm.weight"} <= moved
    else:
        assert not any("norm" in key or "embedding" in key for key in moved)
    log = json.loads((found[1] / "training_log.json").read_text())
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3]
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"stage-0", "stage-1", "staged", "tower.json"}


@pytest.mark.parametrize("name", LOSSES)
def test_what_was_learned_goes_in_whole_or_not_at_all(name: str, models: dict[str, Path]) -> None:
    side = dict(module.load_dual(models[name]).drop_texts().state_dict())
    whole = module.load_dual(models[name]).model
    module.put_in(whole, {key: value + 1 for key, value in side.items()})
    assert all(torch.equal(whole.state_dict()[key], value + 1) for key, value in side.items())
    key = next(key for key in side if key.startswith("vision_model."))
    with pytest.raises(RuntimeError, match=key):
        module.put_in(whole, {other: value for other, value in side.items() if other != key})
    with pytest.raises(RuntimeError, match=f"base_model.{key}"):
        module.put_in(whole, {**side, f"base_model.{key}": side[key]})


def test_a_stage_sees_the_joined_clusters_of_all_before(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    before = TowerTrainer.__init__

    def noted(self: TowerTrainer, *args: Any, **kwargs: Any) -> None:
        before(self, *args, **kwargs)
        seen.append(self.clusters)

    monkeypatch.setattr(TowerTrainer, "__init__", noted)
    args = config(
        tmp_path / "out", num_stages=3, train_first=True, learning_rate=1e-2, num_clusters=6, min_cluster_rows=2
    )
    found = train_stages(models["clip"], ROWS, args, softmax_pairs)
    wanted = [np.zeros(32, np.int64)]
    for number, stage in enumerate(found[:2], 1):
        model = AutoModel.from_pretrained(stage)
        processor = module.load_dual(stage).processor.image_processor
        with torch.no_grad():
            pixels = processor([row["image"] for row in ROWS], return_tensors="pt")["pixel_values"]
            features = model.get_image_features(pixel_values=pixels).pooler_output
        features = torch.nn.functional.normalize(features, dim=1).numpy()
        np.testing.assert_allclose(np.load(stage / "features.npy"), features, atol=1e-5)
        wanted.append(refined(wanted[-1], np.load(stage / "features.npy"), 6, 2, args.seed + number))
    assert all(np.array_equal(one, other) for one, other in zip(seen, wanted, strict=True))
    first, second, third = (len(set(each.tolist())) for each in seen)
    assert first == 1 < second < third


def test_stages_start_at_the_original_or_the_one_before(models: dict[str, Path], tmp_path: Path) -> None:
    still = {"num_stages": 3, "learning_rate": 0.0}
    moving = config(tmp_path / "previous", start_from="previous", num_stages=2)
    first = train_stages(models["clip"], ROWS, moving, softmax_pairs)
    key = "vision_model.post_layernorm.weight"
    origin = weights(models["clip"])[key]
    assert not torch.equal(weights(first[1])[key], origin)
    found = train_stages(models["clip"], ROWS, config(tmp_path / "original", **still), softmax_pairs)
    assert all(torch.equal(weights(stage)[key], origin) for stage in found)
    file = tmp_path / "previous" / "tower.json"
    settings = json.loads(file.read_text()) | {"learning_rate": 0.0}
    file.write_text(json.dumps(settings))  # as if the first had been trained at a rate of 0
    added = train_stages(
        models["clip"], ROWS, config(tmp_path / "previous", start_from="previous", **still), softmax_pairs
    )
    assert torch.equal(weights(added[2])[key], weights(first[1])[key])


def test_a_killed_run_ends_as_one_that_was_left_alone(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"num_stages": 3, "save_strategy": "steps", "save_steps": 2, "max_steps": 5}
    whole = train_stages(models["clip"], ROWS, config(tmp_path / "whole", **settings), softmax_pairs)
    steps = []
    before = TowerTrainer.compute_loss

    def killed(self: TowerTrainer, *args: Any, **kwargs: Any) -> Any:
        steps.append(self.state.global_step)
        if len(steps) == 9:  # the fourth step of the second stage that trains
            raise KeyboardInterrupt
        return before(self, *args, **kwargs)

    monkeypatch.setattr(TowerTrainer, "compute_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        train_stages(models["clip"], ROWS, config(tmp_path / "killed", **settings), softmax_pairs)
    assert not (tmp_path / "killed" / "stage-2").exists()
    assert not (tmp_path / "killed" / "staged").exists()
    found = train_stages(models["clip"], ROWS, config(tmp_path / "killed", **settings), softmax_pairs)
    assert steps[9:] == [2, 3, 4]  # from the last checkpoint of that stage
    for one, other in zip(whole, found, strict=True):
        ended = weights(other)
        for key, value in weights(one).items():
            assert torch.equal(ended[key], value), f"{one.name} {key}"
    again = len(steps)
    train_stages(models["clip"], ROWS, config(tmp_path / "killed", **settings), softmax_pairs)
    assert len(steps) == again


def test_stages_can_be_added(models: dict[str, Path], tmp_path: Path) -> None:
    train_stages(models["clip"], ROWS, config(tmp_path / "out"), softmax_pairs)
    before = weights(tmp_path / "out" / "stage-1")
    train_stages(models["clip"], ROWS, config(tmp_path / "out", num_stages=3), softmax_pairs)
    assert AutoModel.from_pretrained(tmp_path / "out" / "staged").config.num_stages == 3
    assert all(torch.equal(value, before[key]) for key, value in weights(tmp_path / "out" / "stage-1").items())


def test_the_control_has_no_clusters(models: dict[str, Path], tmp_path: Path) -> None:
    args = config(tmp_path / "out", random_negatives=True, logging_steps=3)
    found = train_stages(models["clip"], ROWS, args, softmax_pairs)
    log = json.loads((found[1] / "training_log.json").read_text())
    clustered = train_stages(models["clip"], ROWS, config(tmp_path / "other", logging_steps=3), softmax_pairs)
    other = json.loads((clustered[1] / "training_log.json").read_text())
    assert log[0]["negatives"] > other[0]["negatives"]


def test_what_is_stored_in_half_precision_stays_so(models: dict[str, Path], tmp_path: Path) -> None:
    half = AutoModel.from_pretrained(models["clip"], dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    module.load_dual(models["clip"]).processor.save_pretrained(tmp_path / "half")
    found = train_stages(tmp_path / "half", ROWS, config(tmp_path / "out"), softmax_pairs)
    given, second = weights(tmp_path / "half"), weights(found[1])
    assert {value.dtype for value in second.values()} == {torch.bfloat16}
    assert all(torch.equal(second[key], value) for key, value in given.items() if key.startswith("text_"))


def test_what_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    clip = models["clip"]
    with pytest.raises(ValueError, match="32 rows make no two clusters of 20 rows"):
        train_stages(clip, ROWS, config(tmp_path / "a", min_cluster_rows=20), softmax_pairs)
    with pytest.raises(ValueError, match="make one cluster of all 36 rows"):
        train_stages(clip, captioned(36), config(tmp_path / "b", num_clusters=2, min_cluster_rows=18), softmax_pairs)
    CLIPVisionModel(AutoModel.from_pretrained(clip).config.vision_config).save_pretrained(tmp_path / "image")
    with pytest.raises(ValueError, match="is a CLIPVisionModel without get_image_features: a tower is tuned beside a"):
        train_stages(tmp_path / "image", ROWS, config(tmp_path / "c"), softmax_pairs)
    with pytest.raises(ValueError, match="cannot load"):
        train_stages(tmp_path / "nothing", ROWS, config(tmp_path / "c"), softmax_pairs)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="has something in it that is no stage"):
        train_stages(clip, ROWS, config(tmp_path / "d"), softmax_pairs)
    with pytest.raises(ValueError, match="is a file and is kept: name a folder"):
        train_stages(clip, ROWS, config(tmp_path / "d" / "mine.txt"), softmax_pairs)
    for wrong, message in (
        ({"num_stages": 1}, "num_stages 1 trains nothing"),
        ({"num_clusters": 1}, "num_clusters must be at least 2"),
        ({"min_cluster_rows": 1}, "min_cluster_rows must be at least 2"),
        ({"start_from": "here"}, "start_from 'here' is none of original, previous"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last must be off"),
    ):
        with pytest.raises(ValueError, match=message):
            config(tmp_path / "e", **wrong)


def test_other_settings_do_not_go_on(models: dict[str, Path], tmp_path: Path) -> None:
    train_stages(models["clip"], ROWS, config(tmp_path / "out"), softmax_pairs)
    with pytest.raises(ValueError, match=r"holds stages of another num clusters \(3, not 2\)"):
        train_stages(models["clip"], ROWS, config(tmp_path / "out", num_clusters=2), softmax_pairs)
    with pytest.raises(ValueError, match="stages of another rows"):
        train_stages(models["clip"], ROWS[:30], config(tmp_path / "out"), softmax_pairs)
    changed = config(tmp_path / "out", num_clusters=2, overwrite_output_dir=True)
    train_stages(models["clip"], ROWS, changed, softmax_pairs)
    assert len(np.unique(np.load(tmp_path / "out" / "stage-0" / "clusters.npy"))) == 2


def test_long_captions_are_counted(models: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [*ROWS, ROWS[0] | {"chosen": "a small " * 9}]
    train_stages(models["clip"], rows, config(tmp_path / "out"), softmax_pairs)
    assert "1 of 17 captions are longer than the 8 tokens" in caplog.text


@pytest.mark.ddp
def test_two_processes_make_the_same_stages(tmp_path: Path) -> None:
    save_dual("clip", tmp_path / "together" / "model")
    ranks = start_ranks(__file__, tmp_path)
    alone = train_stages(
        tmp_path / "together" / "model", ROWS, config(tmp_path / "alone" / "out", train_first=True), softmax_pairs
    )
    wait_for_ranks(ranks)
    for stage in alone:
        other = tmp_path / "together" / "out" / stage.name
        ended = weights(other)
        for key, value in weights(stage).items():
            torch.testing.assert_close(ended[key], value, rtol=1e-3, atol=1e-4, msg=f"{stage.name} {key}")
    first = "stage-0/clusters.npy"
    clusters = [np.load(tmp_path / name / "out" / first) for name in ("alone", "together")]
    assert np.array_equal(*clusters)
    assert AutoModel.from_pretrained(tmp_path / "together" / "out" / "staged").config.num_stages == 2


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, rank_here = Path(sys.argv[1]) / "together", int(sys.argv[2])
    shared = config(root / "out", per_device_train_batch_size=4, train_first=True, ddp_backend="gloo")
    train_stages(root / "model", ROWS, shared, softmax_pairs)
    torch.distributed.destroy_process_group()
