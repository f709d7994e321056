from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mllm_align.models import load_model, merge_and_export
from mllm_align.objectives.next_token import NextToken
from runs import make_trainer, pair_rows, picture
from tiny import save_tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and a run with a trained adapter on its NF4 form."""
    base = save_tiny("llava", tmp_path_factory.mktemp("base"))
    folder = tmp_path_factory.mktemp("run")
    settings: dict[str, Any] = {"model": str(base), "processing_class": None, "adapter": None, "max_steps": 2}
    settings["model_init_kwargs"] = {"load_in_4bit": True, "use_peft": True, "lora_r": 4, "train_projector": True}
    trainer = make_trainer(folder, NextToken(), pair_rows(2), save_strategy="steps", save_steps=2, **settings)
    trainer.train()
    trainer.save_model()
    return base, folder


def logits(model: Any, processor: Any) -> torch.Tensor:
    content = [{"type": "image"}, {"type": "text", "text": "What colour?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=text, images=[picture(0)], return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        return model(**inputs.to(model.dtype)).logits


def test_the_merged_model_is_the_base_with_its_adapter(run: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = run
    exported = merge_and_export(adapter, tmp_path / "merged", dtype="float32")
    merged, processor = load_model(exported)
    expected = logits(*load_model(base, adapter))
    torch.testing.assert_close(logits(merged, processor), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(*load_model(base)), expected, atol=1e-2)
    assert not (exported / "adapter_config.json").exists()


def test_sixteen_bits_by_default(run: tuple[Path, Path], tmp_path: Path) -> None:
    merged, _ = load_model(merge_and_export(run[1], tmp_path / "merged"), dtype="bfloat16")
    assert merged.dtype is torch.bfloat16
    assert sum(p.numel() for p in merged.parameters()) == sum(p.numel() for p in load_model(run[0])[0].parameters())


def test_the_adapter_alone(run: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = run
    exported = merge_and_export(adapter / "checkpoint-2", tmp_path / "adapter", merge=False)
    names = {file.name for file in exported.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "processor_config.json", "README.md"} <= names
    assert not names & {"optimizer.pt", "scheduler.pt", "training_args.bin", "trainer_state.json", "rng_state.pth"}
    assert torch.equal(logits(*load_model(base, exported)), logits(*load_model(base, adapter)))


def test_what_is_refused(run: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = run
    with pytest.raises(ValueError, match="no adapter in"):
        merge_and_export(base, tmp_path / "x")
    with pytest.raises(ValueError, match="adapter's own folder"):
        merge_and_export(adapter, adapter)
    target = tmp_path / "full"
    target.mkdir()
    (target / "letters.txt").write_text("dear")
    with pytest.raises(ValueError, match="has something in it"):
        merge_and_export(adapter, target)
    with pytest.raises(ValueError, match="holds something else than a model"):
        merge_and_export(adapter, target, overwrite=True, merge=False)
    assert (target / "letters.txt").exists()
    for place in (target / "letters.txt", target / "letters.txt" / "below"):
        with pytest.raises(ValueError, match=r"letters\.txt' is a file and is kept: name a folder"):
            merge_and_export(adapter, place, overwrite=True)
    assert (target / "letters.txt").read_text() == "dear"
    other = save_tiny("llava", tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="another base"):
        merge_and_export(adapter, tmp_path / "y", base=str(other))


def test_an_earlier_export_is_replaced(run: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "out"
    merge_and_export(run[1], target, merge=False)
    merge_and_export(run[1], target, merge=True, overwrite=True)
    assert not (target / "adapter_config.json").exists()
    assert (target / "config.json").exists()
