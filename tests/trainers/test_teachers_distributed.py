"""Two processes share the work of a teacher, and their heads learn as those of one process do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mllm_align.objectives import DocoLike, NextToken, Weighted
from runs import gradients, make_trainer, picture, start_ranks, wait_for_ranks
from tiny_teachers import save_teacher

SCOPE = {"lora_scope": ["vision", "projector", "language"]}


def pages() -> list[dict[str, Any]]:
    """Three objects on each page but the last two, which have none: all that one process sees."""
    boxes = ([0.1, 0.1, 0.5, 0.4], [0.4, 0.5, 0.9, 0.8], [0.2, 0.3, 0.8, 0.6])
    return [
        {
            "id": str(number),
            "prompt": "Read.",
            "chosen": "Total",
            "image": picture(number),
            "objects": [{"box": box, "text": f"{n} of {number}"} for n, box in enumerate(boxes)] if number < 2 else [],
        }
        for number in range(4)
    ]


def first_step(root: Path, processes: int, folder: str, **changes: Any) -> dict[str, torch.Tensor]:
    objective = Weighted((DocoLike(str(root / "reader"), dim=8), 1.0), (NextToken(matched=False), 1.0))
    trainer = make_trainer(
        root / folder,
        objective,
        pages(),
        adapter=SCOPE,
        cache_dir=str(root / f"cache_{folder}"),
        per_device_train_batch_size=4 // processes,
        per_device_eval_batch_size=1,
        train_sampling_strategy="sequential",
        max_steps=1,
        ddp_backend="gloo" if processes > 1 else None,
        **changes,
    )
    assert trainer.args.world_size == processes
    return gradients(trainer)


@pytest.mark.ddp
def test_two_processes_are_one_big_batch(tmp_path: Path) -> None:
    save_teacher("layoutlmv3", tmp_path / "reader")
    ranks = start_ranks(__file__, tmp_path)
    alone = first_step(tmp_path, 1, "alone")
    wait_for_ranks(ranks)
    heads = [name for name in alone if ".heads." in name or "log_scale" in name]
    assert len(heads) == 3
    assert all(alone[name].any() for name in heads)
    for rank in range(2):
        for way, found in torch.load(tmp_path / f"{rank}.pt").items():
            assert found.keys() == alone.keys()
            for name, gradient in alone.items():
                torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=f"{rank} {way} {name}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, rank_here = Path(sys.argv[1]), int(sys.argv[2])
    ways = {"plain": first_step(place, 2, "together")}
    ways["cached"] = first_step(place, 2, "passes", cache_gradients=True, max_tokens_per_forward=40)
    torch.save(ways, place / f"{rank_here}.pt")
    torch.distributed.destroy_process_group()
