"""One stage: the loss of a batch against a plain loop, and two processes against one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers import AutoModel, AutoProcessor

from mllm_align.objectives.pair_losses import sigmoid_pairs, softmax_pairs
from mllm_align.trainers.tower import TowerConfig, TowerTrainer
from mllm_align.trainers.tower.dual import ImageSide, linear_layers, load_dual
from mllm_align.trainers.tower.rows import CaptionedImages
from mllm_align.trainers.tower.trainer import Collator
from runs import start_ranks, wait_for_ranks
from tiny_duals import LENGTH, captioned, save_dual

CLUSTERS = np.array([0, 0, 0, 1, 1, 1, 0, 1, 0, 0, 1, 1])
LOSSES = {"clip": softmax_pairs, "siglip": sigmoid_pairs}


def made(name: str, folder: Path, batch: int = 8, lora: LoraConfig | None = None, **changes: Any) -> TowerTrainer:
    dual = load_dual(save_dual(name, folder / name))
    rows = CaptionedImages(captioned(12))
    texts = dual.text_vectors(rows.texts, 5)
    args = TowerConfig(
        str(folder / "out"),
        use_cpu=True,
        disable_tqdm=True,
        per_device_train_batch_size=batch,
        learning_rate=1e-2,
        **{"max_steps": 1, "save_strategy": "no", **changes},
    )
    side = ImageSide(dual.drop_texts(), lora)
    return TowerTrainer(side, args, LOSSES[name], rows, Collator(dual, rows, texts), CLUSTERS)


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_a_batch_is_that_of_a_loop(name: str, tmp_path: Path) -> None:
    trainer = made(name, tmp_path)
    numbers = [0, 3, 2, 4, 8, 11, 5]
    batch = trainer.data_collator([trainer.rows[number] for number in numbers])
    loss = trainer.compute_loss(trainer.model, batch).item()
    model, processor = AutoModel.from_pretrained(tmp_path / name), AutoProcessor.from_pretrained(tmp_path / name)
    raw = captioned(12)
    images, texts = [], []
    with torch.no_grad():
        for number in numbers:
            row = raw[number]
            read = processor(
                images=row["image"], text=row["chosen"], padding="max_length", max_length=LENGTH, return_tensors="pt"
            )
            output = model(**read)
            images.append(torch.nn.functional.normalize(output.image_embeds[0], dim=0).double())
            texts.append(torch.nn.functional.normalize(output.text_embeds[0], dim=0).double())
        scale = model.logit_scale.double().exp().item()
        bias = model.logit_bias.double().item() if name == "siglip" else 0.0
    total = 0.0
    for i, one in enumerate(numbers):
        others = [j for j, two in enumerate(numbers) if j != i and CLUSTERS[two] == CLUSTERS[one]]
        if name == "siglip":
            total -= torch.nn.functional.logsigmoid(scale * images[i] @ texts[i] + bias).item()
            total -= sum(torch.nn.functional.logsigmoid(-scale * images[i] @ texts[j] - bias).item() for j in others)
            continue
        for first, second in ((images, texts), (texts, images)):
            scores = torch.stack([scale * first[i] @ second[j] for j in [i, *others]])
            total -= 0.5 * scores.log_softmax(0)[0].item()
    assert loss == pytest.approx(total / len(numbers), rel=1e-4)


def test_rows_with_one_caption_or_picture_are_no_negatives(tmp_path: Path) -> None:
    trainer = made("clip", tmp_path)
    alike = CaptionedImages([*captioned(3), captioned(1)[0] | {"chosen": "a large blue square"}])
    trainer.rows, trainer.clusters = alike, np.zeros(4, np.int64)
    dual = load_dual(tmp_path / "clip")
    own = Collator(dual, alike, dual.text_vectors(alike.texts, 4))
    whole = trainer.compute_loss(trainer.model, own([alike[number] for number in range(4)]))
    trainer.rows.picture = np.arange(4)
    assert whole < trainer.compute_loss(trainer.model, own([alike[number] for number in range(4)]))


def test_lora_reaches_the_image_side_alone(tmp_path: Path) -> None:
    trainer = made("siglip", tmp_path, lora=LoraConfig(r=2))
    side: Any = trainer.model
    trains = [name for name, parameter in side.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name or "logit_" in name for name in trains)
    assert sum("logit_" in name for name in trains) == 2
    model = load_dual(tmp_path / "siglip").model
    assert not any("text" in name or ".attention." in name for name in linear_layers(model))
    assert sum("lora_A" in name for name in trains) == len(linear_layers(model)) == 2 * 6 + 2


def test_accumulation_divides_once(tmp_path: Path) -> None:
    trainer = made("clip", tmp_path, batch=6, gradient_accumulation_steps=2, logging_steps=1)
    batches = [trainer.data_collator([trainer.rows[number] for number in part]) for part in trainer_batches(trainer)]
    with torch.no_grad():
        wanted = np.mean([trainer.compute_loss(trainer.model, batch).item() for batch in batches])
    trainer._seen.clear()
    trainer.train()
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert log["loss"] == pytest.approx(wanted, rel=1e-4)
    assert 0 <= log["accuracy"] <= 1
    assert log["negatives"] == pytest.approx(5.0)


def trainer_batches(trainer: TowerTrainer) -> list[list[int]]:
    return list(trainer.get_train_dataloader().batch_sampler)


def one_step(folder: Path, batch: int, lora: LoraConfig | None) -> dict[str, Any]:
    """Weights after a step on the same rows, whichever process has them; and what was logged."""
    trainer = made("clip", folder, batch, lora, logging_steps=1, ddp_backend="gloo" if batch < 6 else None)
    trainer.train()
    side = trainer.accelerator.unwrap_model(trainer.model)
    log = next(entry for entry in trainer.state.log_history if "loss" in entry) if trainer.state.log_history else {}
    return {"weights": {name: value.clone() for name, value in side.state_dict().items()}, "log": log}


@pytest.mark.ddp
def test_two_processes_find_negatives_in_each_other(tmp_path: Path) -> None:
    ranks = start_ranks(__file__, tmp_path)
    alone = one_step(tmp_path / "alone", 6, None)
    wait_for_ranks(ranks)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    for name, value in alone["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        torch.testing.assert_close(first["weights"][name], value, rtol=1e-4, atol=1e-5, msg=name)
    for name in ("loss", "negatives"):
        assert first["log"][name] == pytest.approx(alone["log"][name], rel=1e-4), name
    # Of six rows; a random tower sees them nearly alike, and which of two is nearer may be a matter of rounding.
    assert first["log"]["accuracy"] == pytest.approx(alone["log"]["accuracy"], abs=1 / 6 + 1e-4)


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, rank_here = Path(sys.argv[1]), int(sys.argv[2])
    torch.save(one_step(root / f"rank{rank_here}", 3, None), root / f"{rank_here}.pt")
    torch.distributed.destroy_process_group()
