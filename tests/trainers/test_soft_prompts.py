"""Training with soft prompts: they move with LoRA, are saved and resumed with it, also with cached gradients and over
two processes."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file

from mllm_align.contract import Feature
from mllm_align.encoding import Encoder, load_encoder
from mllm_align.families import family_of
from mllm_align.models import ModelArguments, add_soft_prompts, load_model, merge_and_export, soft_prompts_of
from mllm_align.objectives import InfoNCE, NextToken, Weighted
from mllm_align.recipe import load_recipe, run_recipe
from mllm_align.trainers import AlignTrainer
from mllm_align.trainers.optimizer import BASE, part_of
from runs import config, gradients, lora, picture, start_ranks, trained, wait_for_ranks
from tiny import save_tiny, tiny
from tiny_encoders import save_encoder

PROMPTS = ("Summarize the image above in one word:", "Summarize the sentence above in one word:")
WAYS: dict[str, dict[str, Any]] = {"plain": {}, "cached": {"cache_gradients": True, "max_tokens_per_forward": 120}}
DELTA = "trainable_tokens_delta"


def rows(count: int = 4) -> list[dict[str, Any]]:
    """Pictures with short texts, and a long one that follows the image's prompt."""
    names = ("a red circle", "two stars", "green, not yellow", "a small square")
    return [
        {
            "image": picture(number),
            "prompt": PROMPTS[0],
            "caption": names[number % len(names)],
            "chosen": f"It is {names[number % len(names)]}.",
        }
        for number in range(count)
    ]


def contrast(text_prompt: str = PROMPTS[1]) -> InfoNCE:
    return InfoNCE(text="caption", image_prompt=PROMPTS[0], text_prompt=text_prompt)


def trainer_of(folder: Path, family: str = "llava", objective: Any = None, **changes: Any) -> AlignTrainer:
    model, processor = tiny(family)
    add_soft_prompts(model, processor, PROMPTS)
    torch.manual_seed(0)
    return AlignTrainer(
        model,
        objective or Weighted((contrast(), 1.0), (NextToken(matched=False), 0.5)),
        config(folder, train_sampling_strategy="sequential", **changes),
        processing_class=processor,
        train_dataset=rows(),
        peft_config=lora(model),
    )


@pytest.mark.parametrize("family", ["llava", "idefics3", "gemma3"])
def test_a_run(family: str, tmp_path: Path) -> None:
    """Every vector of both prompts moves; what is saved encodes as what was trained."""
    trainer = trainer_of(tmp_path / "run", family)
    before = trained(trainer)
    trainer.train()
    (name,) = (name for name in before if DELTA in name)
    after = trained(trainer)[name]
    assert (after - before[name]).abs().amax(1).min() > 1e-3
    assert part_of(name, family_of(trainer.model)) == BASE
    trainer.save_model()
    folder = tmp_path / "run"
    tensors = load_file(folder / "adapter_model.safetensors")
    assert [key for key in tensors if "lora_" not in key] == [name.removesuffix(".default")]
    save_tiny(family, tmp_path / "base")
    model, processor = load_model(tmp_path / "base", folder)
    soft = soft_prompts_of(processor)
    assert soft is not None
    assert list(soft.replace) == list(PROMPTS)
    with torch.no_grad():
        ids = torch.tensor([soft.ids])
        assert torch.equal(model(input_ids=ids).logits, trainer.model.eval()(input_ids=ids).logits)


def test_only_what_is_read_moves(tmp_path: Path) -> None:
    """Gradients of the prompt of images alone, where texts are read behind their words."""
    trainer = trainer_of(tmp_path, objective=contrast("Say it in one word:"))
    soft = soft_prompts_of(trainer.model)
    assert soft is not None
    (found,) = (value for name, value in gradients(trainer).items() if DELTA in name)
    size = len(soft.prompts[0].tokens)
    assert found[:size].abs().amax(1).min() > 0
    assert not found[size:].any()


def test_a_prompt_that_nothing_reads_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        trainer_of(tmp_path / "one")
        assert "soft prompt" not in caplog.text
        trainer_of(tmp_path / "two", objective=contrast("Say it in one word:"))
    assert "soft prompt 'Summarize the sentence above in one word:' is the prompt of no feature" in caplog.text


def test_adapters_made_elsewhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With PEFT's own call: it ties the head to the vectors, which are not to be said; or they do not train at all."""
    for indices in (None, "soft"):
        model, processor = tiny("gemma3")
        soft = add_soft_prompts(model, processor, PROMPTS)
        adapter = LoraConfig(
            r=4, target_modules=["q_proj"], trainable_token_indices=list(soft.ids) if indices else None
        )
        given: Any = get_peft_model(model, adapter)
        with caplog.at_level(logging.WARNING):
            trainer = AlignTrainer(
                given, contrast(), config(tmp_path / str(indices)), processing_class=processor, train_dataset=rows()
            )
        assert ("the model's soft prompts do not train" in caplog.text) == (indices is None)
        caplog.clear()
        assert any(DELTA in name for name in trained(trainer)) == (indices is not None)
        with torch.no_grad():
            logits = trainer.model(input_ids=torch.arange(40, 60)[None]).logits
        assert logits[..., list(soft.ids)].max() == torch.finfo(torch.float32).min


def test_cached_gradients_are_the_same(tmp_path: Path) -> None:
    found = {name: gradients(trainer_of(tmp_path / name, **way)) for name, way in WAYS.items()}
    assert found["plain"].keys() == found["cached"].keys()
    for key, gradient in found["plain"].items():
        difference = torch.linalg.norm(found["cached"][key] - gradient)
        assert difference <= 1e-4 * torch.linalg.norm(gradient) + 1e-7, f"{key}: {difference}"


def test_a_run_that_is_resumed(tmp_path: Path) -> None:
    whole = trainer_of(tmp_path / "whole", max_steps=3)
    whole.train()
    trainer_of(tmp_path / "cut", max_steps=2, save_strategy="steps", save_steps=2).train()
    again = trainer_of(tmp_path / "cut", max_steps=3)
    again.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    expected, found = trained(whole), trained(again)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_model_that_trains_whole(tmp_path: Path) -> None:
    """Its own embeddings are what is learned, and they come back as they are."""
    model, processor = tiny("idefics3")
    soft = add_soft_prompts(model, processor, PROMPTS)
    before = model.get_input_embeddings().weight[list(soft.ids)].clone()
    trainer = AlignTrainer(
        model, contrast(), config(tmp_path), processing_class=processor, train_dataset=rows(), peft_config=None
    )
    trainer.train()
    trainer.save_model()
    loaded, other = load_model(tmp_path)
    vectors = loaded.get_input_embeddings().weight[list(soft.ids)]
    assert torch.equal(vectors, trainer.model.get_input_embeddings().weight[list(soft.ids)])
    assert (vectors - before).abs().amax(1).min() > 1e-3
    again = soft_prompts_of(other)
    assert again is not None
    assert again.replace == soft.replace


def test_beside_a_mixer(tmp_path: Path) -> None:
    base, encoder = save_tiny("llava", tmp_path / "base"), save_encoder("dinov2", tmp_path / "encoder")
    mixer = {"kind": "gated", "encoders": [str(encoder)]}
    arguments = ModelArguments(str(base), use_peft=True, lora_r=4, mixer=mixer, soft_prompts=list(PROMPTS))
    model, processor = load_model(arguments)
    trainer = AlignTrainer(
        model, contrast(), config(tmp_path / "run"), processing_class=processor, train_dataset=rows()
    )
    trainer.train()
    trainer.save_model()
    whole = merge_and_export(tmp_path / "run", tmp_path / "whole", dtype="float32")
    images = [row["image"] for row in rows()]
    one, other = (load_encoder(folder).encode(images) for folder in (tmp_path / "run", whole))
    assert np.abs(one - other).max() < 1e-5
    assert np.abs(one - Encoder.zero_shot(*load_model(base)).encode(images)).max() > 1e-3


def test_a_recipe_makes_them(tmp_path: Path) -> None:
    save_tiny("llava", tmp_path / "base")
    for number, row in enumerate(rows()):
        row.pop("image").save(tmp_path / f"{number}.png")
    lines = [json.dumps(row | {"image": f"{number}.png"}) for number, row in enumerate(rows()) if row.pop("image")]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    prompts = [f"    - {json.dumps(prompt)}" for prompt in PROMPTS]
    (tmp_path / "recipe.yaml").write_text(
        "\n".join(
            [
                "model:",
                f"  model_name_or_path: {tmp_path / 'base'}",
                "  use_peft: true",
                "  soft_prompts:",
                *prompts,
                "data: {pairs: {path: " + str(tmp_path / "rows.jsonl") + "}}",
                "objective:",
                f"  - {{name: info_nce, text: caption, image_prompt: {json.dumps(PROMPTS[0])}, "
                f"text_prompt: {json.dumps(PROMPTS[1])}}}",
                f"train: {{output_dir: {tmp_path / 'run'}, use_cpu: true, max_steps: 2, learning_rate: 0.01, "
                "per_device_train_batch_size: 2, disable_tqdm: true, report_to: none}",
            ]
        )
    )
    trainer = run_recipe(load_recipe(tmp_path / "recipe.yaml"))
    soft = soft_prompts_of(trainer.model)
    assert soft is not None
    assert list(soft.replace) == list(PROMPTS)
    encoder = load_encoder(tmp_path / "run")
    feature = encoder.embedding.features["text"]
    assert isinstance(feature, Feature)
    assert feature.prompt == PROMPTS[1]
    batch = encoder.collator(feature)(rows())["batch"]
    assert set(soft.ids) & set(batch.prefixes[0].input_ids.tolist())
    assert encoder.encode(texts=["a red circle"]).shape == (1, 64)


def test_what_is_refused(tmp_path: Path) -> None:
    model, processor = tiny("llava")
    _, bare = tiny("llava")
    add_soft_prompts(model, processor, PROMPTS)
    with pytest.raises(ValueError, match="model and processor have other soft prompts"):
        AlignTrainer(model, NextToken(), config(tmp_path), processing_class=bare, train_dataset=rows())
    with pytest.raises(ValueError, match="cannot train with a IA3Config"):
        AlignTrainer(
            model,
            NextToken(),
            config(tmp_path),
            processing_class=processor,
            train_dataset=rows(),
            peft_config=IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
        )


def measure_run(folder: Path, processes: int, way: dict[str, Any]) -> dict[str, torch.Tensor]:
    backend = "gloo" if processes > 1 else None
    return gradients(
        trainer_of(folder, per_device_train_batch_size=4 // processes, max_steps=1, ddp_backend=backend, **way)
    )


@pytest.mark.ddp
def test_gradients_are_those_of_one_process(tmp_path: Path) -> None:
    ranks = start_ranks(__file__, tmp_path)
    alone = {name: measure_run(tmp_path / f"alone {name}", 1, way) for name, way in WAYS.items()}
    wait_for_ranks(ranks)
    for rank in range(2):
        saved = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        for name, expected in alone.items():
            assert saved[name].keys() == expected.keys()
            for key, gradient in expected.items():
                difference = torch.linalg.norm(saved[name][key] - gradient)
                assert difference <= 1e-4 * torch.linalg.norm(gradient) + 1e-7, f"{name} {key}: {difference}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, rank_here = Path(sys.argv[1]), int(sys.argv[2])
    size = int(os.environ["WORLD_SIZE"])
    torch.save(
        {name: measure_run(root / f"together {name}", size, way) for name, way in WAYS.items()},
        root / f"{rank_here}.pt",
    )
    torch.distributed.destroy_process_group()
