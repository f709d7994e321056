"""Pictures go through the tower once for all questions about them and all arms, unless an arm sees otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from mllm_align.families import unwrap
from mllm_align.signals import EngineOptions
from mllm_align_eval.engine import ModelEngine, Request
from mllm_align_eval.recent import RecentTensors
from tiny import tiny


def test_the_keys_used_last_are_kept() -> None:
    store, one = RecentTensors(limit=2), {"0": torch.ones(1)}
    for key in ("a", "b"):
        store.offer(key, one)
    assert store.get("a") is not None
    store.put("c", one)
    assert list(store.keys()) == ["a", "c"]
    assert store.get("b") is None


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return []


def count_tower(model: Any, engine: ModelEngine, calls: list[int]) -> None:
    tower = engine.family.module(unwrap(model), engine.family.tower)
    tower.register_forward_hook(lambda *_: calls.append(1))


def asked(pictures: list[Any]) -> list[Request]:
    return [Request((picture,), f"Is it {word}?", ("yes", "no")) for picture in pictures[:2] for word in "ab"]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_questions_methods_and_arms_share_a_pass(family: str, pictures: list[Any], seen: list[int]) -> None:
    model, processor = tiny(family)
    engine = ModelEngine(model, processor)
    count_tower(model, engine, seen)
    requests = asked(pictures)
    first = engine.choice_logps(requests[::2])
    assert len(seen) == 1
    again = engine.choice_logps(requests)
    texts = engine.generate(requests, 4)
    assert len(seen) == 1
    plain = ModelEngine(model, processor, EngineOptions(packing="off"))
    plain.options = EngineOptions(packing="off")
    torch.testing.assert_close(torch.tensor(plain.choice_logps(requests)), torch.tensor(again), atol=1e-4, rtol=1e-4)
    assert again[0] == pytest.approx(first[0], abs=1e-5)
    assert again[2] == pytest.approx(first[1], abs=1e-5)
    assert plain.generate(requests, 4) == texts


def test_an_adapter_in_the_tower_sees_for_itself(pictures: list[Any], seen: list[int]) -> None:
    model, processor = tiny("llava")
    lora = LoraConfig(r=2, target_modules=r".*vision_tower.*q_proj", init_lora_weights=False)
    adapted = get_peft_model(model, lora)
    engine = ModelEngine(adapted, processor)
    count_tower(adapted, engine, seen)
    with_adapter = engine.choice_logps(asked(pictures))
    with adapted.disable_adapter():
        without = engine.choice_logps(asked(pictures)[::-1])[::-1]
    assert len(seen) == 2
    assert with_adapter != without
