"""Regions, their texts, negatives and all tokens over two processes: the gradients are those of one with all rows."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mllm_align.objectives import FILIP, SVLC, ClocLike, NextToken, Weighted
from runs import gradients, make_trainer, picture, start_ranks, wait_for_ranks

BOXES = ([0.05, 0.05, 0.45, 0.5], [0.5, 0.4, 0.95, 0.9], [0.1, 0.6, 0.4, 0.9])
# Of each row what its objects are called; the second process has none, or one without a text.
NAMES = (("a disc", "a star"), ("a disc", "", "two cups"), ("",), ())
LISTED = {
    "a disc": {"negatives": ["no disc"], "positives": ["a round thing"]},
    "two cups": {"positives": ["a pair of cups", "cups"]},
}
WAYS: dict[str, dict[str, Any]] = {"plain": {}, "cached": {"cache_gradients": True, "max_tokens_per_forward": 64}}


def rows() -> list[dict[str, Any]]:
    return [
        {
            "image": picture(number),
            "prompt": f"What is in picture {number}?",
            "chosen": ("A disc.", "Two large stars.", "red", "No.")[number],
            "objects": [
                {"box": box, "text": name, **LISTED.get(name, {})} for box, name in zip(BOXES, names, strict=False)
            ],
        }
        for number, names in enumerate(NAMES)
    ]


def measure_run(folder: Path, processes: int, **changes: Any) -> dict[str, Any]:
    """Gradients of the first step over the same four rows, and its log."""
    objective = Weighted(
        (SVLC(dim=8, paraphrase_weight=1.0), 1.0),
        (FILIP(dim=8), 0.5),
        (FILIP(dim=8, regions=True), 0.5),
        (ClocLike(dim=8, text_similarity=0.9), 0.5),
        (ClocLike(dim=8, prompted=True), 0.5),
        (NextToken(matched=False), 1.0),
    )
    trainer = make_trainer(
        folder,
        objective,
        rows(),
        adapter={"train_projector": True},
        per_device_train_batch_size=4 // processes,
        train_sampling_strategy="sequential",
        max_steps=1,
        ddp_backend="gloo" if processes > 1 else None,
        **changes,
    )
    found = gradients(trainer)
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    parts = ("svlc/region_text", "svlc/own_negatives", "svlc/paraphrases", "filip", "filip_2", "cloc_like/box_l1")
    told = ("loss", *(f"loss/{part}" for part in (*parts, "cloc_like_2/region_text")))
    assert all(log[name] > 0 for name in told)
    return {"gradients": found, "log": {name: log[name] for name in told}}


@pytest.mark.ddp
def test_gradients_are_those_of_one_process(tmp_path: Path) -> None:
    ranks = start_ranks(__file__, tmp_path)
    alone = {name: measure_run(tmp_path / f"alone {name}", 1, **way) for name, way in WAYS.items()}
    wait_for_ranks(ranks)
    for rank in range(2):
        saved = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        for name, expected in alone.items():
            assert saved[name]["log"] == pytest.approx(expected["log"], rel=1e-4)
            assert saved[name]["gradients"].keys() == expected["gradients"].keys()
            for key, gradient in expected["gradients"].items():
                difference = torch.linalg.norm(saved[name]["gradients"][key] - gradient)
                assert difference <= 1e-5 * torch.linalg.norm(gradient) + 1e-8, f"{name} {key}: {difference}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, rank_here = Path(sys.argv[1]), int(sys.argv[2])
    size = int(os.environ["WORLD_SIZE"])
    torch.save(
        {name: measure_run(root / f"together {name}", size, **way) for name, way in WAYS.items()},
        root / f"{rank_here}.pt",
    )
    torch.distributed.destroy_process_group()
