"""On a GPU: the engine's numbers are those of the CPU, QLoRA trains with what users get by default, nothing waits."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import mllm_align
from batches import make_batch
from mllm_align import load_model
from mllm_align.cli import main
from mllm_align.families import family_of
from mllm_align.objectives import DPO, MDPO, RDPO, SVCO, InfoNCE, NextToken, Weighted
from mllm_align.signals import AdaptersOff, EngineOptions, Replay, measure
from mllm_align.trainers import AlignConfig, AlignTrainer
from runs import pair_rows
from tiny import FAMILIES, save_tiny, tiny

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")]

LAYOUTS = [((0,), (3, 6, 1)), ((1,), (5, 2)), ((2, 0), (4, 4)), ((), (7, 3))]
PACKAGE = str(Path(mllm_align.__file__).parent)


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def with_lora(model: Any) -> Any:
    """LoRA on language model, projector and tower, its update not at zero."""
    targets = family_of(model).lora_targets(model, ["language", "projector", "vision"])
    config = LoraConfig(r=4, target_modules=targets)
    config.init_lora_weights = False
    torch.manual_seed(5)
    return get_peft_model(model, config)


@pytest.mark.parametrize("packing", ["auto", "off"])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_are_those_of_the_cpu(family: str, packing: str, pictures: list[Any]) -> None:
    model, processor = tiny(family)
    batch = make_batch(model, processor, pictures[:3], LAYOUTS)
    peft = with_lora(model)
    found = []
    for device in ("cpu", "cuda"):
        peft.to(device).zero_grad()
        policy, reference = measure(peft, batch, reference=AdaptersOff(), options=EngineOptions(packing=packing))
        total = torch.stack([(policy.logps[v] - 0.5 * reference.logps[v]).div(10).tanh().sum() for v in policy.logps])
        total.sum().backward()
        own = {name: p.grad.cpu().double() for name, p in peft.named_parameters() if p.grad is not None}
        found.append((total.detach().cpu(), own))
    (of_cpu, gradients), (of_gpu, others) = found
    torch.testing.assert_close(of_gpu, of_cpu, atol=2e-4, rtol=1e-3)
    assert gradients.keys() == others.keys()
    flat, other = (torch.cat([each[name].flatten() for name in gradients]) for each in (gradients, others))
    assert torch.linalg.norm(flat - other) < 2e-3 * torch.linalg.norm(flat)


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
def test_back_ends_score_alike(attention: str, pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    batch = make_batch(model, processor, pictures[:3], LAYOUTS)
    model.set_attn_implementation(attention)
    with torch.no_grad():
        expected, _ = measure(tiny("llava")[0], batch)
        found, _ = measure(model.cuda(), batch)
    for view, value in expected.logps.items():
        torch.testing.assert_close(found.logps[view].cpu(), value, atol=1e-3, rtol=1e-3)


def trainer_of(folder: Path, objective: Any, **changes: Any) -> AlignTrainer:
    """As a user has it: NF4 from a checkpoint, LoRA on every part, bfloat16, workers, page-locked memory."""
    model, processor = load_model(save_tiny("llava", folder / "base"), load_in_4bit=True)
    targets = family_of(model).lora_targets(model, ["language", "projector", "vision"])
    settings: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    torch.manual_seed(0)  # of the adapter
    return AlignTrainer(
        model,
        objective,
        AlignConfig(**(settings | changes)),
        processing_class=processor,
        train_dataset=pair_rows(8),
        peft_config=LoraConfig(r=4, target_modules=targets),
    )


OBJECTIVES = {
    "svco": SVCO,
    "rdpo": RDPO,
    "mdpo": MDPO,
    "dpo": DPO,
    "mixture": lambda: Weighted((SVCO(), 1.0), (NextToken(), 0.5), (InfoNCE(), 0.1)),
}


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_qlora_trains(name: str, cached: bool, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, OBJECTIVES[name](), cache_gradients=cached)
    assert trainer.args.bf16
    assert trainer.args.dataloader_num_workers > 0
    assert trainer.model.device.type == "cuda"
    before = {key: p.detach().clone() for key, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 4
    assert all(math.isfinite(float(loss)) for loss in losses)
    moved = [key for key, p in trainer.model.named_parameters() if key in before and not torch.equal(p, before[key])]
    assert len(moved) > len(before) / 2


def test_cached_gradients_are_those_of_one_graph(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    batch = make_batch(model, processor, pictures[:3], LAYOUTS)
    peft, found = with_lora(model).cuda(), []
    for cached in (False, True):
        peft.zero_grad()
        replay = Replay(peft, batch, options=EngineOptions(max_tokens_per_forward=40)) if cached else None
        policy = replay.policy if replay is not None else measure(peft, batch)[0]
        torch.stack([policy.logps[view].div(10).tanh().sum() for view in policy.logps]).sum().backward()
        for again in replay.passes() if replay is not None else ():
            again().backward()
        found.append(torch.cat([p.grad.flatten() for _, p in peft.named_parameters() if p.grad is not None]))
    assert torch.linalg.norm(found[0] - found[1]) < 1e-4 * torch.linalg.norm(found[0])


def test_a_resumed_run_ends_where_the_whole_one_does(tmp_path: Path) -> None:
    whole = trainer_of(tmp_path / "a", SVCO())
    whole.train()
    first = trainer_of(tmp_path / "b", SVCO(), max_steps=2, save_strategy="steps", save_steps=2)
    first.train()
    second = trainer_of(tmp_path / "b", SVCO(), save_strategy="steps", save_steps=2)
    second.train(resume_from_checkpoint=True)
    for (name, one), (_, other) in zip(whole.model.named_parameters(), second.model.named_parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(other, one, atol=2e-3, rtol=0.02, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", ["svco", "dpo", "mixture"])
def test_nothing_of_ours_waits_for_the_device(name: str, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, OBJECTIVES[name](), gradient_accumulation_steps=2)
    found: list[str] = []
    original = trainer.training_step

    def watched(*args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step < 2:
            return original(*args, **kwargs)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                return original(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            found.extend(f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message))

    trainer.training_step = watched
    trainer.train()
    assert [line for line in found if line.startswith(PACKAGE)] == []


def test_a_recipe_trains_and_its_adapter_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["train", "demo_svco", "--set", "train.max_steps=6", f"train.output_dir={run}"]) in (0, None)
    out = tmp_path / "eval"
    command = ["eval", "run", "demo-base", "--adapter", str(run), "--load-in-4bit", "--limit", "4"]
    assert main([*command, "--output", str(out)]) in (0, None)
    assert "next-token control" in capsys.readouterr().out
    assert any(out.iterdir())
