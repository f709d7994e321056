"""Small training runs on tiny models: rows with pictures, settings that end in seconds, a trainer."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from launch import Script
from mllm_align.contract import Needs, Outcome, Signals, Term, View
from mllm_align.models import ModelArguments, lora_config
from mllm_align.trainers import AlignConfig, AlignTrainer
from tiny import tiny

ANSWERS = ("red", "The small blue star.", "green, not yellow", "No.", "Two large white circles are left of it.")
OWN = View("image", "chosen")
PATIENCE = 420  # seconds for two processes: 2 on two idle cores; a hang never ends, a busy machine is slow


def picture(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (56, 56, 3), dtype=np.uint8))


def pair_rows(count: int, *, images: bool = True) -> list[dict[str, Any]]:
    """Rows with responses of unequal length, and with an own and a contrast image or none."""
    rows = []
    for number in range(count):
        row: dict[str, Any] = {
            "id": str(number),
            "prompt": f"What is the colour of object {number}?",
            "chosen": ANSWERS[number % len(ANSWERS)],
            "rejected": ANSWERS[(number + 2) % len(ANSWERS)],
        }
        if images:
            row |= {"image": picture(number), "contrast_image": picture(100 + number)}
        rows.append(row)
    return rows


def config(folder: str | Path, **changes: Any) -> AlignConfig:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "check_data": False,
    }
    return AlignConfig(**(settings | changes))


def lora(model: Any, **changes: Any) -> Any:
    """LoRA on the language model, its update not at zero, so that policy and reference differ from the start."""
    arguments = ModelArguments(**({"lora_r": 4, "lora_alpha": 8} | changes))
    found = lora_config(model, arguments)
    found.init_lora_weights = False
    return found


def make_trainer(folder: str | Path, objective: Any, rows: Any, *, quantized: bool = False, **changes: Any) -> Any:
    """An `AlignTrainer` on tiny LLaVA; keyword arguments that it does not take go to the settings."""
    own = ("eval_dataset", "ref_model", "callbacks", "recipe", "model", "processing_class", "optimizers")
    given = {key: changes.pop(key) for key in own if key in changes}
    adapter = changes.pop("adapter", {})
    if "model" not in given:
        given["model"], given["processing_class"] = tiny("llava", quantized=quantized)
    torch.manual_seed(0)
    if adapter is not None:
        given["peft_config"] = lora(given["model"], **adapter)
    model = given.pop("model")
    return AlignTrainer(model, objective, config(folder, **changes), train_dataset=rows, **given)


def trained(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def gradients(trainer: Any) -> dict[str, torch.Tensor]:
    """Gradients of the first optimiser step, before clipping, from a run of one step."""
    kept: dict[str, torch.Tensor] = {}
    clip = trainer._clip_grad_norm

    def keep(model: Any) -> Any:
        named = [*trainer.model.named_parameters(), *_named(trainer.objective)]
        kept.update({name: p.grad.clone() for name, p in named if p.grad is not None})
        return clip(model)

    trainer._clip_grad_norm = keep
    trainer.train()
    return kept


def _named(objective: Any) -> Any:
    return objective.named_parameters() if isinstance(objective, torch.nn.Module) else ()


class Headed(torch.nn.Module):
    """A toy objective with parameters: a learned scale and shift on the log-probability of a row."""

    needs = Needs(views=(OWN,))

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.5))
        self.mix = torch.nn.Parameter(torch.full((2, 2), 0.1))

    def forward(self, policy: Signals, reference: Signals | None) -> Outcome:
        logps = policy.logps[OWN]
        loss = (self.scale * logps + self.mix.sum()).square()
        return Outcome((Term("headed", 1.0, loss.sum(), policy.has(OWN).sum()),), {"value": loss.detach()})


def start_ranks(script: str, folder: Path, *, count: int = 2) -> list[Script]:
    """Processes of one gloo group, each running `script FOLDER RANK`; `wait_for_ranks` ends them."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    ranks = []
    for rank in range(count):
        place = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": count,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        environment = {name: str(value) for name, value in place.items()}
        ranks.append(Script([script, str(folder), str(rank)], environment))
    return ranks


def wait_for_ranks(ranks: Sequence[Script]) -> None:
    """Fails with what a process said, where one did not end well or did not end."""
    for rank in ranks:
        code = rank.wait(PATIENCE)
        if code is None:
            for other in ranks:
                other.kill()
            pytest.fail(f"a process was not done after {PATIENCE} s: they may wait for each other")
        assert code == 0, rank.said[-3000:]


def kill_amid(argv: Sequence[str], begun: Callable[[], object], seconds: float) -> None:
    """Starts `python ARGV...`, and kills it so many seconds after it has begun (or ended)."""
    script = Script(argv)
    while script.running and not begun():
        time.sleep(0.01)
    time.sleep(seconds)
    script.kill()


def assert_survives_a_kill(script: str, job: Callable[[Path], object], work: str, folder: Path) -> None:
    """A job that is killed amid its blocks and started again ends as one that was left alone.

    Args:
        script: Source that runs the job slowly in the folder of its first argument.
        job: The same job in a folder, where it writes `out.jsonl`.
        work: The folder of its ten blocks, below `out.jsonl.work`.
        folder: For all of it.
    """
    path = folder / "slow.py"
    path.write_text(script)
    killed, whole = folder / "killed", folder / "whole"
    blocks = killed / "out.jsonl.work" / work
    kill_amid([str(path), str(killed)], lambda: any(blocks.glob("block*")), 0.2)
    assert 0 < len(list(blocks.glob("block*"))) < 10
    assert not (killed / "out.jsonl").exists()
    for each in (killed, whole):
        job(each)
    assert_same_results(killed, whole)


def assert_same_results(one: Path, other: Path) -> None:
    """Two folders hold the same rows and the same report, byte for byte."""
    for file in ("out.jsonl", "out.jsonl.report.json"):
        assert (one / file).read_bytes() == (other / file).read_bytes()
