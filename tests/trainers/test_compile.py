from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

from batches import make_batch
from mixed import mixed_tiny, prompts, shake
from mllm_align.objectives.dpo import DPO
from mllm_align.objectives.svco import SVCO
from mllm_align.signals import AdaptersOff, measure
from mllm_align.trainers.compile import compile_layers
from runs import gradients, lora, make_trainer, pair_rows
from tiny import tiny
from tiny_encoders import save_encoder


@pytest.fixture(autouse=True)
def _fresh_dynamo(monkeypatch: pytest.MonkeyPatch) -> Any:
    # Where anybody listens, the compiler writes down everything it does.
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "handlers", [])
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# Batches of unlike lengths; the second with two sequences that have images, whose number has code of its own.
GROWING = ([((0,), [5, 3]), ((), [4])], [((1,), [2, 7]), ((0,), [3]), ((), [6])])
# To lower code takes longer than to capture it: here one sequence of each kind, whose code serves both batches.
ALIKE = (GROWING[0], [((1,), [2, 7]), ((), [6])])


def measured(
    family: str, pictures: Any, layouts: Any, *, backend: str | None, quantized: bool = False, saving: bool = False
) -> Any:
    """Log-probabilities of policy and reference and the gradients of their difference, over all batches."""
    model, processor = tiny(family, quantized=quantized)
    torch.manual_seed(0)
    adapter = lora(model, lora_dropout=0.0)
    # One in attention and one behind it: all others are compiled alike.
    adapter.target_modules = {name for name in adapter.target_modules if name.endswith(("q_proj", "down_proj"))}
    policy: Any = get_peft_model(model, adapter)
    if saving:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
        policy.train()
    if backend is not None:
        compile_layers(policy, backend)
    logps = []
    for layout in layouts:
        batch = make_batch(model, processor, pictures[:2], layout)
        own, other = measure(policy, batch, reference=AdaptersOff())
        assert other is not None
        sum((own.logps[view] - other.logps[view]).square().sum() for view in batch.views).backward()
        logps += [own.logps[view].detach() for view in batch.views] + [other.logps[view] for view in batch.views]
    found = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    return torch.cat(logps), found, list(policy.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "quantized", "saving", "backend"),
    [
        ("llava", False, False, "eager"),
        ("qwen2_5_vl", False, False, "aot_eager"),
        ("llava", False, True, "aot_eager"),
        ("llava", True, False, "aot_eager"),
        ("qwen2_5_vl", True, True, "eager"),
    ],
)
def test_compiled_layers_measure_the_same(
    family: str, quantized: bool, saving: bool, backend: str, pictures: Any
) -> None:
    layouts = GROWING if backend == "eager" else ALIKE
    plain = measured(family, pictures, layouts, backend=None, quantized=quantized, saving=saving)
    compiled = measured(family, pictures, layouts, backend=backend, quantized=quantized, saving=saving)
    torch.testing.assert_close(compiled[0], plain[0], rtol=1e-5, atol=1e-5)
    assert compiled[1].keys() == plain[1].keys()
    assert plain[1]
    for name, gradient in plain[1].items():
        torch.testing.assert_close(compiled[1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    assert compiled[2] == plain[2]


def test_layers_share_what_is_compiled(pictures: Any) -> None:
    """Every layer runs compiled code, and neither their number nor new lengths compile it again."""
    compiled: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    model, processor = tiny("llava")
    layers = model.model.language_model.layers
    for layer in layers:
        layer.compile(backend=backend, dynamic=True)
    counts = []
    for lengths in ([5, 3], [4, 9], [8, 2], [3, 11]):
        batch = make_batch(model, processor, pictures[:1], [((0,), lengths)])
        with torch.no_grad():
            measure(model, batch)
        counts.append(len(compiled))
    assert counts[0] > 0
    assert counts[-1] == counts[1]


def test_a_compiled_run_is_the_plain_run(tmp_path: Path) -> None:
    objective = SVCO()
    plain = gradients(make_trainer(tmp_path / "plain", objective, pair_rows(3), max_steps=1))
    trainer = make_trainer(
        tmp_path / "compiled",
        objective,
        pair_rows(3),
        max_steps=1,
        torch_compile=True,
        torch_compile_backend="eager",
    )
    calls = [layer._compiled_call_impl for layer in trainer.model.get_base_model().model.language_model.layers]
    assert all(call is not None for call in calls)
    assert trainer.accelerator.state.dynamo_plugin.backend == "NO"
    found = gradients(trainer)
    assert found.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    trainer.save_model()
    assert (tmp_path / "compiled" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_a_frozen_copy_is_compiled_too(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, DPO(), pair_rows(2), adapter=None, max_steps=1, torch_compile_backend="eager")
    copy = trainer.reference.model
    assert all(layer._compiled_call_impl is not None for layer in copy.model.language_model.layers)
    trainer.train()


def test_inductor_on_a_cpu_is_refused() -> None:
    model, _ = tiny("llava")
    with pytest.raises(ValueError, match="fails in the backward pass of attention on a CPU"):
        compile_layers(model, "inductor")


def test_an_unknown_backend_is_refused() -> None:
    model, _ = tiny("llava")
    with pytest.raises(ValueError, match="torch_compile_backend 'fast' is none of"):
        compile_layers(model, "fast")


@torch.no_grad()
def test_layers_behind_which_a_mixer_has_its_own_stay_as_they_are(tmp_path: Any, pictures: Any) -> None:
    """What is put behind a layer for one call alone, compiled code does not see."""
    options = {"llm_layers": 1, "residual": True}
    model, processor, mixed = mixed_tiny("llava", "sva", save_encoder("dinov2", tmp_path), **options)
    shake(mixed)
    inputs = prompts(processor, pictures)
    before = model(**inputs).logits
    assert compile_layers(model, "eager") == 1
    torch.testing.assert_close(model(**inputs).logits, before, atol=1e-4, rtol=0)
