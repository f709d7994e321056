"""The objective sees the rows of all processes: its gradients are those of one process with all of them."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mllm_align.contract import Ragged, Signals
from mllm_align.objectives import InfoNCE, NextToken, RegionContrast, Weighted
from mllm_align.trainers import gather
from mllm_align.trainers.gather import gather_on_host, over_ranks
from runs import gradients, make_trainer, picture, start_ranks, wait_for_ranks
from tiny import tiny

BOXES = ([0.05, 0.05, 0.45, 0.5], [0.5, 0.4, 0.95, 0.9], [0.1, 0.6, 0.4, 0.95])
# How many things are seen on both pictures of a row: unequal numbers, and none at all.
THINGS = (3, 1, 2, 0, 1, 2)
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cached": {"cache_gradients": True, "max_tokens_per_forward": 40},
    "other loss scaling": {"family": "qwen2_5_vl"},
}


def sources() -> dict[str, list[dict[str, Any]]]:
    """Six rows with pictures; two without any, which are the last process's where there are four."""
    seen = []
    for number, count in enumerate(THINGS):
        objects = [
            {"box": BOXES[(thing + image) % 3], "object_id": str(thing), "image": image}
            for image in range(2)
            for thing in range(count)
        ]
        seen.append(
            {
                # The last has the first one's, in another process: they are not each other's negatives.
                "images": [picture(number % 5), picture(50 + number % 5)],
                "prompt": f"What is the same in picture {number}?",
                "chosen": ("A disc.", "Two large stars.", "red")[number % 3],
                "objects": objects,
            }
        )
    text = [{"prompt": "How many are two and two?", "chosen": answer} for answer in ("Four.", "It is four.")]
    return {"seen": seen, "text": text}


def measure_run(folder: Path, processes: int, family: str = "llava", **changes: Any) -> dict[str, Any]:
    """Gradients of the first step over the same eight rows, and its log."""
    objective = Weighted(
        (InfoNCE(), 1.0, "seen"), (RegionContrast(negatives="batch"), 0.5, "seen"), (NextToken(matched=False), 1.0)
    )
    model, processor = tiny(family)
    trainer = make_trainer(
        folder,
        objective,
        sources(),
        model=model,
        processing_class=processor,
        adapter={"train_projector": True},
        per_device_train_batch_size=8 // processes,
        train_sampling_strategy="sequential",
        max_steps=1,
        ddp_backend="gloo" if processes > 1 else None,
        **changes,
    )
    assert trainer.args.world_size == processes
    assert trainer.together == (processes > 1)
    found = gradients(trainer)
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    told = ("loss", "loss/info_nce", "loss/region_contrast", "loss/next_token", "region_contrast/negatives")
    return {"gradients": found, "log": {name: log[name] for name in told}}


@pytest.mark.ddp
@pytest.mark.parametrize("count", [2, 4])
def test_gradients_are_those_of_one_process(count: int, tmp_path: Path) -> None:
    ranks = start_ranks(__file__, tmp_path, count=count)
    alone = {name: measure_run(tmp_path / f"alone {name}", 1, **way) for name, way in WAYS.items()}
    wait_for_ranks(ranks)
    for rank in range(count):
        saved = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        for name, expected in alone.items():
            assert saved[name]["gradients"].keys() == expected["gradients"].keys()
            assert sum("log_scale" in key for key in expected["gradients"]) == 2
            for key, gradient in expected["gradients"].items():
                difference = torch.linalg.norm(saved[name]["gradients"][key] - gradient)
                assert difference <= 1e-5 * torch.linalg.norm(gradient) + 1e-8, f"{name} {key}: {difference}"
            assert saved[name]["log"] == pytest.approx(expected["log"], rel=1e-4)


def test_what_entries_read_is_told_rank_after_rank() -> None:
    """A rank that does not know says 0 for each of its entries; one without entries says nothing."""
    ragged = Ragged(torch.zeros(2, 3), torch.tensor([0, 1]))
    known = Signals({}, {}, features={"f": ragged}, sources=("a", "a"), host_feature_rows={"f": (0, 1)})
    told = replace(known, host_feature_ids={"f": (7, -8), "gone": (1,)})
    ranks = [gather.Shape.of(own) for own in (told, known, Signals({}, {}), told)]
    assert gather._keys(ranks, "feature_ids") == ["f"]
    assert gather._joined_ids(ranks, "f") == (7, -8, 0, 0, 7, -8)


def test_alone_nothing_is_sent() -> None:
    signals = Signals({}, {}, sources=("a",))
    assert over_ranks(signals, "cpu") is signals


def test_switched_off_each_process_keeps_to_itself(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, InfoNCE(), sources()["seen"], adapter={"train_projector": True})
    assert trainer.args.gather_negatives is None
    assert not trainer.together


def test_what_ranks_tell_each_other_stays_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL would send it through the GPU, so a group over gloo is made, once."""
    assert gather_on_host({"rows": 3}) == [{"rows": 3}]
    made: list[str] = []
    monkeypatch.setattr(gather.dist, "get_backend_config", lambda world: world)
    monkeypatch.setattr(gather.dist, "new_group", lambda backend: made.append(backend) or "hosts")
    gather._host_group.cache_clear()
    assert gather._host_group("cpu:gloo,cuda:nccl") == "cpu:gloo,cuda:nccl"
    assert [gather._host_group("cuda:nccl") for _ in range(2)] == ["hosts", "hosts"]
    assert made == ["gloo"]
    gather._host_group.cache_clear()


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, rank_here = Path(sys.argv[1]), int(sys.argv[2])
    size = int(os.environ["WORLD_SIZE"])
    torch.save(
        {name: measure_run(root / f"together {name}", size, **way) for name, way in WAYS.items()},
        root / f"{rank_here}.pt",
    )
    torch.distributed.destroy_process_group()
