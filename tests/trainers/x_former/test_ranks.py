"""Two processes: contrast has the other's rows as negatives, and both end with the same X-Former."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mllm_align.trainers.x_former import XFormerConfig, train_x_former
from mllm_align.trainers.x_former.losses import contrast_loss, similarities
from mllm_align.trainers.x_former.model import of_all_ranks, sharing
from runs import picture, start_ranks, wait_for_ranks
from tiny import tiny
from tiny_autoencoder import save_autoencoder

PAIRS = [(0, 0), (1, 1), (2, 0), (3, 3)]
SMALL: dict[str, Any] = {"num_queries": 2, "width": 16, "depth": 1, "heads": 2}


def vectors() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [F.normalize(torch.randn(4, *size, generator=generator), dim=-1) for size in ((2, 5), (5,))]
    return made[0], made[1]


def gradients(own: slice) -> list[torch.Tensor]:
    given = [each[own].clone().requires_grad_() for each in vectors()]
    images, texts, pairs = of_all_ranks(given[0], given[1], PAIRS[own])
    contrast_loss(similarities(images, texts, torch.tensor(0.1)), sharing(pairs), 0.1).backward()
    return [each.grad for each in given if each.grad is not None]


@pytest.mark.ddp
def test_two_processes(tmp_path: Path) -> None:
    model, processor = tiny("llava")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    save_autoencoder(tmp_path / "autoencoder")
    wait_for_ranks(start_ranks(__file__, tmp_path))
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for alone, *each in zip(gradients(slice(0, 4)), *(part["gradients"] for part in found), strict=True):
        # What is averaged over processes is each one's, times their number.
        torch.testing.assert_close(torch.cat(each) / 2, alone)
    first, second = (part["trained"] for part in found)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert (tmp_path / "run" / "mixer.safetensors").exists()


def run_rank(folder: Path, rank: int) -> None:
    """What one process does."""
    args = XFormerConfig(
        output_dir=str(folder / "run"),
        max_steps=2,
        per_device_train_batch_size=2,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        **SMALL,
    )
    rows = [{"image": picture(number), "chosen": f"Picture {number}."} for number in range(8)]
    trainer = train_x_former(folder / "model", str(folder / "autoencoder"), rows, args)
    stage: Any = trainer.accelerator.unwrap_model(trainer.model)
    own = slice(2 * rank, 2 * rank + 2)
    torch.save({"gradients": gradients(own), "trained": stage.state_dict()}, folder / f"{rank}.pt")


if __name__ == "__main__":
    run_rank(Path(sys.argv[1]), int(sys.argv[2]))
