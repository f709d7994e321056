"""Two processes against one: the second process's rows have no image while the projector trains."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mllm_align.objectives.next_token import NextToken
from mllm_align.objectives.svco import SVCO
from mllm_align.objectives.weighted import Weighted
from runs import Headed, gradients, make_trainer, pair_rows, start_ranks, wait_for_ranks

SOURCES = {"pairs": pair_rows(2), "instructions": pair_rows(2, images=False)}


def measure_run(folder: Path, processes: int, rank: int, **changes: Any) -> dict[str, Any]:
    """Gradients of the first step over the same four rows, the log, and an evaluation of three rows."""
    objective = Weighted((SVCO(), 1.0, "pairs"), (NextToken(), 1.0, "instructions"), (Headed(), 0.01))
    if rank:
        with torch.no_grad():
            objective.parts[2].objective.scale.fill_(7.0)  # the first process's value must be the one that counts
    trainer = make_trainer(
        folder,
        objective,
        SOURCES,
        adapter={"train_projector": True},
        eval_dataset=[{**row, "source": "pairs"} for row in pair_rows(3)],
        per_device_train_batch_size=4 // processes,
        per_device_eval_batch_size=1,
        train_sampling_strategy="sequential",
        max_steps=1,
        ddp_backend="gloo" if processes > 1 else None,
        gradient_checkpointing=True,
        log_term_gradients_every=None if changes else 1,
        **changes,
    )
    assert trainer.args.world_size == processes
    found = gradients(trainer)
    evaluation = trainer.evaluate()
    trainer.save_model()
    log = {
        name: value
        for entry in (*trainer.state.log_history, evaluation)
        for name, value in entry.items()
        if not any(mark in name for mark in ("time", "second", "flos", "num_tokens"))
    }
    return {"gradients": found, "log": log}


@pytest.mark.ddp
def test_two_processes_are_one_big_batch(tmp_path: Path) -> None:
    ranks = start_ranks(__file__, tmp_path)
    alone = measure_run(tmp_path / "alone", 1, 0)
    wait_for_ranks(ranks)
    saved = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    assert any("multi_modal_projector" in name for name in alone["gradients"])
    assert {"modules_of_parts.0.scale", "modules_of_parts.0.mix"} <= alone["gradients"].keys()
    assert {f"grad_norm/{part}/svco" for part in ("projector", "language", "head")} <= alone["log"].keys()
    for way in ("plain", "cached"):
        first, second = (each[way] for each in saved)
        expected = {name: value for name, value in alone["log"].items() if way == "plain" or "grad_norm/" not in name}
        for name, gradient in alone["gradients"].items():
            torch.testing.assert_close(first["gradients"][name], gradient, rtol=1e-4, atol=1e-6, msg=f"{way} {name}")
            assert torch.equal(first["gradients"][name], second["gradients"][name]), f"{way} {name}"
        assert first["log"] == pytest.approx(expected, rel=1e-4, abs=2e-4)
    assert (tmp_path / "together" / "objective.safetensors").is_file()


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, rank_here = Path(sys.argv[1]), int(sys.argv[2])
    plain = measure_run(root / "together", 2, rank_here)
    passes = measure_run(root / "passes", 2, rank_here, cache_gradients=True, max_tokens_per_forward=40)
    torch.save({"plain": plain, "cached": passes}, root / f"{rank_here}.pt")
    torch.distributed.destroy_process_group()
