"""Mixers on a GPU: the numbers of the CPU, and a bfloat16 NF4 run that comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mixed import OPTIONS, mixed_tiny, shake, tokens_of
from mllm_align import load_model
from mllm_align.models.arguments import ModelArguments
from mllm_align.objectives import SVCO, NextToken, Weighted
from mllm_align.trainers import AlignConfig, AlignTrainer
from mllm_align.vision.mixer_files import check_fingerprint
from runs import pair_rows
from tiny import save_tiny
from tiny_encoders import save_encoder

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder("dinov2", tmp_path_factory.mktemp("encoder"))


@pytest.mark.parametrize("kind", OPTIONS)
def test_tokens_are_those_of_the_cpu(
    kind: str, encoder: Path, pictures: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model, processor, mixed = mixed_tiny("llava", kind, encoder)
    shake(mixed)
    expected = tokens_of(model, processor, pictures[0])
    found = tokens_of(model.cuda(), processor, pictures[0]).cpu()
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "idefics3"])
@pytest.mark.parametrize("kind", ["gated", "concat"])
def test_it_trains_under_qlora_and_comes_back(family: str, kind: str, encoder: Path, tmp_path: Path) -> None:
    base = save_tiny(family, tmp_path / "base")
    mixer = {"kind": kind, "encoders": [str(encoder)]}
    model, processor = load_model(ModelArguments(str(base), load_in_4bit=True, use_peft=True, mixer=mixer))
    settings = {"per_device_train_batch_size": 2, "max_steps": 3, "learning_rate": 1e-2, "report_to": []}
    trainer = AlignTrainer(
        model,
        Weighted((SVCO(), 1.0), (NextToken(), 1.0)),
        AlignConfig(str(tmp_path / "run"), save_strategy="no", disable_tqdm=True, **settings),  # type: ignore[arg-type]
        processing_class=processor,
        train_dataset=pair_rows(4),
    )
    named = {name: parameter for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in named.items() if ".vision_mixer." in name}
    assert before
    trainer.train()
    assert all(not torch.equal(named[name], value) for name, value in before.items())
    trainer.save_model()
    loaded, fresh = load_model(ModelArguments(str(base), load_in_4bit=True), tmp_path / "run")
    check_fingerprint(loaded, fresh, tmp_path / "run")
