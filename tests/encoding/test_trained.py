"""A run, what it saves, and the encoder that is read back from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mllm_align import Encoder, load_encoder
from mllm_align.contract.embedding import IMAGE_PROMPT, TEXT_PROMPT
from mllm_align.encoding import load_embedding
from mllm_align.models import merge_and_export
from mllm_align.objectives.info_nce import InfoNCE
from mllm_align.objectives.weighted import Weighted
from runs import make_trainer, picture
from tiny import save_tiny

TEXTS = ["a red circle", "two small stars", "a square left of the star", "nothing"]
ROWS = [{"image": picture(place), "caption": text, "prompt": IMAGE_PROMPT} for place, text in enumerate(TEXTS)]
IMAGES = [row["image"] for row in ROWS]


def objective(**options: Any) -> InfoNCE:
    return InfoNCE(text="caption", image_prompt=IMAGE_PROMPT, text_prompt=TEXT_PROMPT, **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    base = save_tiny("llava", tmp_path_factory.mktemp("base"))
    folder = tmp_path_factory.mktemp("run")
    settings: dict[str, Any] = {"model": str(base), "processing_class": None, "adapter": None, "max_steps": 2}
    settings["model_init_kwargs"] = {"use_peft": True, "lora_r": 4}
    settings |= {"save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 4}
    trainer = make_trainer(folder, objective(dim=16, dimensions=(8,)), ROWS, **settings)
    trainer.train()
    trainer.save_model()
    return base, folder, trainer


def of_trainer(trainer: Any) -> Encoder:
    return Encoder(trainer.model, trainer.processing_class, trainer.objective.embedding)


def test_the_encoder_of_a_run_is_what_was_trained(run: tuple[Path, Path, Any]) -> None:
    base, folder, trainer = run
    expected = of_trainer(trainer).encode(IMAGES, TEXTS)
    for given in (folder, folder / "checkpoint-2"):
        encoder = load_encoder(given)
        found = encoder.encode(IMAGES, TEXTS)
        assert np.array_equal(found.images, expected.images)
        assert np.array_equal(found.texts, expected.texts)
        assert encoder.embedding.dimensions == (8,)
    earlier = load_encoder(folder / "checkpoint-1", base=base).encode(IMAGES, TEXTS)
    assert abs(earlier.images - expected.images).max() > 1e-3
    assert expected.images.shape == (4, 16)


def test_an_export_keeps_the_encoder(run: tuple[Path, Path, Any], tmp_path: Path) -> None:
    _, folder, trainer = run
    expected = of_trainer(trainer).encode(IMAGES, TEXTS)
    merged = load_encoder(merge_and_export(folder, tmp_path / "merged", dtype="float32"))
    alone = load_encoder(merge_and_export(folder, tmp_path / "adapter", merge=False))
    for encoder in (merged, alone):
        found = encoder.encode(IMAGES, TEXTS)
        np.testing.assert_allclose(found.images, expected.images, atol=1e-5)
        np.testing.assert_allclose(found.texts, expected.texts, atol=1e-5)


def test_what_is_not_there(run: tuple[Path, Path, Any], tmp_path: Path) -> None:
    base, folder, _ = run
    with pytest.raises(ValueError, match="no embedding in"):
        load_encoder(base)
    merged = merge_and_export(folder, tmp_path / "merged")
    with pytest.raises(ValueError, match="a whole model, which has no base: leave base out"):
        load_encoder(merged, base=base)
    with pytest.raises(ValueError, match="was trained on another base"):
        load_encoder(folder, base=save_tiny("llava", tmp_path / "other", seed=5))


def test_soft_prompts_come_along(tmp_path: Path) -> None:
    base = save_tiny("llava", tmp_path / "base")
    settings: dict[str, Any] = {"model": str(base), "processing_class": None, "adapter": None, "max_steps": 2}
    settings["model_init_kwargs"] = {"use_peft": True, "lora_r": 4, "soft_prompts": [IMAGE_PROMPT, TEXT_PROMPT]}
    trainer = make_trainer(tmp_path / "run", objective(), ROWS, **settings)
    trainer.train()
    trainer.save_model()
    expected = of_trainer(trainer).encode(IMAGES, TEXTS)
    found = load_encoder(tmp_path / "run").encode(IMAGES, TEXTS)
    assert np.array_equal(found.images, expected.images)
    assert np.array_equal(found.texts, expected.texts)
    merged = load_encoder(merge_and_export(tmp_path / "run", tmp_path / "merged", dtype="float32"))
    np.testing.assert_allclose(merged.encode(texts=TEXTS), expected.texts, atol=1e-5)
    (prefix,) = merged.collator(merged.embedding.features["image"])([ROWS[0]])["batch"].prefixes
    soft = merged.processor.tokenizer.convert_tokens_to_ids("<|soft:0:0|>")
    assert soft in prefix.input_ids.tolist()


def test_two_embeddings_are_refused_before_training(tmp_path: Path) -> None:
    both = Weighted((objective(), 1.0), (objective(dimensions=(8,)), 1.0))
    with pytest.raises(ValueError, match="two embeddings that are not the same"):
        make_trainer(tmp_path, both, ROWS)


def test_overrides_reach_the_model(run: tuple[Path, Path, Any]) -> None:
    assert load_encoder(run[1], dtype="bfloat16").model.dtype is torch.bfloat16


def test_pixels_of_training_are_kept(tmp_path: Path) -> None:
    base = save_tiny("qwen2_5_vl", tmp_path / "base")
    settings: dict[str, Any] = {"model": str(base), "processing_class": None, "adapter": None, "max_steps": 1}
    settings["model_init_kwargs"] = {"use_peft": True, "lora_r": 4}
    trainer = make_trainer(tmp_path / "run", objective(), ROWS, min_pixels=784, max_pixels=1568, **settings)
    trainer.train()
    trainer.save_model()
    assert load_embedding(tmp_path / "run")[1:] == (784, 1568)
    own = Encoder(
        trainer.model, trainer.processing_class, trainer.objective.embedding, min_pixels=784, max_pixels=1568
    )
    assert np.array_equal(load_encoder(tmp_path / "run").encode(IMAGES), own.encode(IMAGES))
