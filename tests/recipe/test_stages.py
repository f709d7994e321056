"""Stage 1 and stage 2 of the packaged recipes with mixers, made small: what a stage hands on, and what comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from mixed import tokens_of
from mllm_align.families import inner, unwrap
from mllm_align.models import ModelArguments, load_model
from mllm_align.recipe import build_trainer, load_recipe, run_recipe
from mllm_align.vision.mixed_vision import mixed_of
from mllm_align.vision.mixer_files import carried_by
from tiny import save_tiny
from tiny_encoders import save_encoder

RUNS = {"mof_llava15": ("llava", "captions"), "sva_qwen25vl": ("qwen2_5_vl", "captions")}
SMALL_SVA = {"width": 32, "heads": 4, "depth": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models by family, and tiny encoders."""
    folder = tmp_path_factory.mktemp("stages")
    for family, _ in RUNS.values():
        save_tiny(family, folder / family)
    for encoder in ("dinov2", "siglip"):
        save_encoder(encoder, folder / encoder)
    return folder


def small(name: str, folder: Path, output: Path, *, stage: int) -> list[str]:
    """Two steps on a few rows of the rendered world, at a learning rate that shows; all else as the recipe has it."""
    family, source = RUNS[name]
    source = source if stage == 1 else "instructions"
    found = {
        "model.model_name_or_path": str(folder / family),
        f"data.{source}": "{path: 'world:instructions', num_rows: 8}",
        "train.output_dir": str(output),
        "train.max_steps": "2",
        "train.per_device_train_batch_size": "2",
        "train.gradient_accumulation_steps": "1",
        "train.warmup_steps": "0",
        "train.learning_rate": "5.0e-2",
        "train.use_cpu": "true",
        "train.disable_tqdm": "true",
        "train.report_to": "none",
    }
    if stage == 2:
        found |= {"model.start_from": str(output.parent / "stage1"), "train.mixer_learning_rate": "5.0e-2"}
        found |= {"train.projector_learning_rate": "5.0e-2"} if name == "mof_llava15" else {}
    elif name == "mof_llava15":
        found["model.mixer.encoders"] = f"[{{model: {folder}/dinov2, layer: -1}}]"
    else:
        found["model.mixer.encoders"] = f"[{folder}/siglip, {folder}/dinov2]"
        found |= {f"model.mixer.{key}": str(value) for key, value in SMALL_SVA.items()}
    return [f"{key}={value}" for key, value in found.items()]


def inputs(processor: Any, picture: Image.Image) -> Any:
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What colour is it?"}]}
    text = processor.apply_chat_template([turn], add_generation_prompt=True)
    return processor(text=text, images=[picture], return_tensors="pt", add_special_tokens=False)


@torch.no_grad()
def seen(model: Any, processor: Any, picture: Image.Image) -> tuple[Tensor, Tensor, list[int]]:
    """Image tokens, logits and a greedy answer."""
    model.eval()
    made, hf = inputs(processor, picture), unwrap(model)
    answer = model.generate(**made, max_new_tokens=5, do_sample=False)
    return tokens_of(hf, processor, picture), model(**made).logits, answer[0].tolist()


def same(first: Any, second: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first[:2], second[:2], strict=True)) and first[2] == second[2]


@pytest.mark.parametrize("name", RUNS)
def test_a_stage_begins_with_what_the_one_before_left(
    name: str, folder: Path, tmp_path: Path, pictures: list[Image.Image]
) -> None:
    base = ModelArguments(str(folder / RUNS[name][0]), load_in_4bit=True)
    stage1, stage2 = tmp_path / "stage1", tmp_path / "stage2"
    first = run_recipe(load_recipe(f"{name}_stage1", small(name, folder, stage1, stage=1)))
    after_first = seen(first.model, first.processing_class, pictures[0])
    assert same(seen(*load_model(base, stage1, device="cpu"), pictures[0]), after_first)
    assert not torch.equal(seen(*load_model(base, device="cpu"), pictures[0])[1][:, -1], after_first[1][:, -1])

    recipe = load_recipe(f"{name}_stage2", small(name, folder, stage2, stage=2))
    second = build_trainer(recipe)
    assert same(seen(second.model, second.processing_class, pictures[0]), after_first)
    with second.model.disable_adapter():  # what a preference objective would compare with
        assert same(seen(second.model, second.processing_class, pictures[0]), after_first)
    moved = {n: p.detach().clone() for n, p in second.model.named_parameters() if p.requires_grad}
    second.train()
    stayed = [n for n, p in second.model.named_parameters() if n in moved and torch.equal(p, moved[n])]
    assert not stayed
    assert any(".vision_mixer.mixer." in n for n in moved)
    assert any("lora_" in n for n in moved)
    second.save_model()
    after_second = seen(second.model, second.processing_class, pictures[0])
    assert not same(after_second, after_first)
    loaded, processor = load_model(base, stage2, device="cpu")
    assert same(seen(loaded, processor, pictures[0]), after_second)
    # The run is whole without the first stage, and says which weights of the base are not the stock model's.
    assert bool(carried_by(stage2)) == (name == "mof_llava15")
    assert mixed_of(inner(unwrap(loaded))) is not None
    (stage1 / "mixer.json").rename(stage1 / "gone.json")
    (stage1 / "adapter_config.json").unlink()
    assert same(seen(*load_model(base, stage2, device="cpu"), pictures[0]), after_second)


def test_what_a_second_stage_refuses(folder: Path, tmp_path: Path) -> None:
    settings = small("mof_llava15", folder, tmp_path / "stage2", stage=2)
    with pytest.raises(ValueError, match=r"start_from: no run in .*stage1'"):
        build_trainer(load_recipe("mof_llava15_stage2", settings))
    run_recipe(load_recipe("mof_llava15_stage1", small("mof_llava15", folder, tmp_path / "stage1", stage=1)))
    other = [*settings, f"model.mixer={{kind: gated, encoders: [{folder}/dinov2]}}"]
    with pytest.raises(ValueError, match=r"is interleave of .*, model\.mixer says gated of .*: leave mixer out"):
        build_trainer(load_recipe("mof_llava15_stage2", other))
