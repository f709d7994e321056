"""What of the vision side trains whole, on two processes, one of which has no image: the steps of one process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mixed import mixed_tiny, shake
from mllm_align.objectives.next_token import NextToken
from mllm_align.objectives.svco import SVCO
from mllm_align.objectives.weighted import Weighted
from runs import gradients, make_trainer, pair_rows, start_ranks, trained, wait_for_ranks
from tiny import tiny
from tiny_encoders import save_encoder

CACHED = {"cache_gradients": True, "max_tokens_per_forward": 40}
# What is trained, of what, how; and what of that no image token depends on, by its name.
WAYS: dict[str, tuple[str, str | None, dict[str, Any], tuple[str, ...]]] = {
    "llava": ("llava", None, {}, (".layers.1.", "post_layernorm")),
    "llava cached": ("llava", None, CACHED, (".layers.1.", "post_layernorm")),
    "qwen": ("qwen2_vl", None, {}, ()),
    "qwen cached": ("qwen2_vl", None, CACHED, ()),
    "encoder": ("llava", "gated", {}, ("mask_token",)),
    "encoder cached": ("llava", "gated", CACHED, ("mask_token",)),
}
# A softmax does not see it: its gradient is rounding.
KEY_BIAS = ("k_proj.bias", "key.bias")


def rows() -> list[dict[str, Any]]:
    """Of each four, those of the first process have pictures, those of the second have none."""
    pairs = [{**row, "source": "pairs"} for row in pair_rows(4)]
    texts = [{**row, "source": "instructions"} for row in pair_rows(4, images=False)]
    return [*pairs[:2], *texts[:2], *pairs[2:], *texts[2:]]


def measure_run(
    root: Path, name: str, processes: int, family: str, kind: str | None, changes: dict[str, Any]
) -> dict[str, Any]:
    """Two steps: the gradients of the second (what moved in the first is in them), and which weights moved."""
    model, processor = tiny(family)
    if kind is not None:
        model, processor, mixed = mixed_tiny(family, kind, {"model": str(root / "encoder"), "train": "full"})
        shake(mixed)
    trainer = make_trainer(
        root / f"{processes} {name}",
        Weighted((SVCO(), 1.0, "pairs"), (NextToken(), 1.0, "instructions")),
        rows(),
        model=model,
        processing_class=processor,
        adapter={"train_vision": kind is None},
        per_device_train_batch_size=4 // processes,
        train_sampling_strategy="sequential",
        learning_rate=5e-2,
        weight_decay=0.5,
        optim="sgd",
        max_steps=2,
        ddp_backend="gloo" if processes > 1 else None,
        **changes,
    )
    assert trainer.args.world_size == processes
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trains = set(trained(trainer))
    found = gradients(trainer)
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    return {"gradients": found, "names": set(before), "moved": moved, "trains": trains}


def all_runs(root: Path, processes: int) -> dict[str, dict[str, Any]]:
    return {name: measure_run(root, name, processes, *way[:3]) for name, way in WAYS.items()}


@pytest.mark.ddp
def test_two_processes_are_one_and_what_is_not_read_stays(tmp_path: Path) -> None:
    save_encoder("dinov2", tmp_path / "encoder")
    ranks = start_ranks(__file__, tmp_path)
    alone = all_runs(tmp_path, 1)
    wait_for_ranks(ranks)
    saved = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    for way, expected in alone.items():
        copies = {name for name in expected["names"] if ".modules_to_save." in name}
        unread = {name for name in copies if any(mark in name for mark in WAYS[way][3])}
        assert copies
        assert bool(unread) == bool(WAYS[way][3])
        assert expected["trains"] & copies == copies - unread
        for found in (expected, saved[0][way], saved[1][way]):
            assert found["trains"] == found["gradients"].keys() == expected["trains"], way
            assert {name for name in found["moved"] ^ found["trains"] if not name.endswith(KEY_BIAS)} == set(), way
            for name, gradient in expected["gradients"].items():
                other = found["gradients"][name]
                difference = torch.linalg.norm(other - gradient)
                assert difference <= 1e-4 * torch.linalg.norm(gradient) + 1e-6, f"{way} {name}: {difference}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, rank_here = Path(sys.argv[1]), int(sys.argv[2])
    torch.save(all_runs(root, 2), root / f"{rank_here}.pt")
    torch.distributed.destroy_process_group()
