from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import LoraConfig, get_peft_model

from mixed import mixed_tiny
from mllm_align.objectives import InfoNCE, SigLIP
from mllm_align.objectives.cacr_like import CacrLike
from mllm_align.objectives.discriminative import Discriminative
from mllm_align.objectives.dpo import DPO
from mllm_align.objectives.next_token import NextToken
from mllm_align.objectives.pairs import TEXT_PROMPT
from mllm_align.objectives.weighted import Weighted
from mllm_align.trainers.card import CardFacts, describe_objective, model_card
from mllm_align.trainers.save import write_card
from runs import Headed, config, make_trainer, pair_rows
from tiny import tiny
from tiny_encoders import save_encoder


def facts(folder: Path, **changes: Any) -> CardFacts:
    values: dict[str, Any] = {
        "base_model": "org/model",
        "objective": DPO(beta=0.3),
        "sources": {"pairs": 7, "web": None},
        "settings": config(folder, learning_rate=3e-4),
        "batch_size": 8,
    }
    return CardFacts(**(values | changes))


def header(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_objectives_tell_their_numbers() -> None:
    inner = Weighted((NextToken(matched=False), 2.0))
    lines = describe_objective(Weighted((DPO(beta=0.3), 1.0, ("a", "b")), (inner, 0.5), (Headed(), 1.0)))
    assert lines[0].startswith("DPO(beta=0.3, loss_type='sigmoid', label_smoothing=0.0, ")
    assert lines[0].endswith("), weight 1, on a, b")
    assert lines[1].endswith("weight 0.5, on every source")
    assert "NextToken(matched=False), weight 2" in lines[1]
    assert lines[-1] == "Headed(), weight 1, on every source"


@pytest.mark.parametrize(
    ("objective", "told"),
    [
        (
            Discriminative(0.5, temperature=0.1, image_prompt="See:", negatives=True),
            "Discriminative(contrast_weight=0.5, next_token_weight=1.0, image='image', text='caption', "
            "temperature=0.1, learn_temperature=True, memory=0, soft_targets=0.0, image_prompt='See:', "
            f"text_prompt={TEXT_PROMPT!r}, pooling='last', negatives=True, ",
        ),
        (
            InfoNCE.dcl(memory=8),
            "InfoNCE(image='image', text='chosen', temperature=0.1, ",
        ),
        (
            SigLIP("contrast_image", bias=-3.0),
            "SigLIP(image='contrast_image', text='chosen', temperature=0.1, bias=-3",
        ),
        (CacrLike(t_minus=0.9), "CacrLike(t_plus=1.0, t_minus=0.9, attract_weight=1.0, repel_weight=1.0, "),
    ],
    ids=lambda value: type(value).__name__,
)
def test_contrasts_tell_their_options(objective: Any, told: str) -> None:
    (line,) = describe_objective(Weighted((copy.deepcopy(objective), 2.0)))
    assert line.startswith(told)
    assert line.endswith("), weight 2, on every source")


def test_the_header_is_what_the_hub_reads(tmp_path: Path) -> None:
    assert header(model_card(facts(tmp_path))) == {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["mllm-align"],
        "base_model": "org/model",
    }
    adapted = header(model_card(facts(tmp_path, base_model=str(tmp_path), adapter=LoraConfig(target_modules=["x"]))))
    assert adapted["library_name"] == "peft"
    assert "base_model" not in adapted


def test_the_text(tmp_path: Path) -> None:
    log = [{"loss": 2.0, "step": 1, "train_runtime": 3.0}, {"loss": 0.5, "logps/chosen|image": -1.0, "note": "x"}]
    adapter = LoraConfig(r=4, target_modules=["a.b", "a.c"], modules_to_save=["a.d"])
    card = model_card(facts(tmp_path, log=log, adapter=adapter, recipe="seed: 3\n", steps=2))
    for told in (
        "Base model: `org/model`",
        "LORA, rank 4, alpha 8, dropout 0.0, 2 layers, trained in full: a.d",
        "- DPO(beta=0.3, ",
        "- `pairs`: 7 rows",
        "- `web`: a stream",
        "| learning_rate | 0.0003 |",
        "| rows per step | 8 |",
        "| steps done | 2 |",
        "| loss | 0.5 |",
        "| logps/chosen\\|image | -1 |",
        "| transformers | ",
        "```yaml\nseed: 3\n```",
    ):
        assert told in card, told
    for hidden in ("runtime", "note", "num_train_epochs"):
        assert hidden not in card, hidden


def test_batches_by_tokens_have_no_number_of_rows(tmp_path: Path) -> None:
    card = model_card(facts(tmp_path, settings=config(tmp_path, max_tokens_per_batch=4096)))
    assert "| max_tokens_per_batch | 4096 |" in card
    assert "rows per step" not in card
    assert "| rows per step | 8 |" in model_card(facts(tmp_path))


@pytest.mark.parametrize(
    ("adapter", "told"),
    [
        ({"train_vision": True}, "the vision tower"),
        ({"train_vision": True, "train_projector": True}, "the projector, the vision tower"),
        ({"train_projector": True}, "the projector"),
    ],
)
def test_a_part_in_many_copies_is_told_once(adapter: dict[str, Any], told: str, tmp_path: Path) -> None:
    model, processor = tiny("qwen3_vl")
    trainer = make_trainer(
        tmp_path, NextToken(), pair_rows(1), model=model, processing_class=processor, adapter=adapter
    )
    assert len(trainer.model.active_peft_config.modules_to_save) > 1
    write_card(trainer, str(tmp_path))
    (line,) = [line for line in (tmp_path / "README.md").read_text().splitlines() if line.startswith("Adapter:")]
    assert line.endswith(f" layers, trained in full: {told}")


def test_a_part_that_is_copied_in_part_is_told_by_its_modules(tmp_path: Path) -> None:
    model, processor = tiny("qwen3_vl")
    adapter = LoraConfig(r=2, target_modules=["down_proj"], modules_to_save=["model.visual.blocks.0"])
    trainer = make_trainer(
        tmp_path,
        NextToken(),
        pair_rows(1),
        model=get_peft_model(model, adapter),
        processing_class=processor,
        adapter=None,
    )
    write_card(trainer, str(tmp_path))
    assert "trained in full: model.visual.blocks.0\n" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("gated", "as many image tokens as without it"),
        ("interleave", "32 image tokens per view, not 16"),
        ("sva", "as many image tokens as without it, and layers of its own behind layer 0 of the language model"),
    ],
)
def test_a_mixer_is_told_with_encoders_and_tokens(kind: str, told: str, tmp_path: Path) -> None:
    encoder = {"model": str(save_encoder("dinov2", tmp_path / "encoder")), "train": "full"}
    model, processor, mixed = mixed_tiny("llava", kind, encoder, **({"llm_layers": 1} if kind == "sva" else {}))
    # As a model of the Hub has it.
    mixed.seeing[0].model.config._commit_hash = "0123abcd"
    trainer = make_trainer(tmp_path / "run", NextToken(), pair_rows(2), model=model, processing_class=processor)
    write_card(trainer, str(tmp_path))
    (line,) = [line for line in (tmp_path / "README.md").read_text().splitlines() if line.startswith("Mixer:")]
    named = f"`{encoder['model']} train full revision 0123abcd`"
    assert line == f"Mixer: {kind} of the model's own vision tower and {named}; {told}"
    card = (tmp_path / "README.md").read_text()
    assert f" layers, trained in full: mixer {kind}, encoder 1 ({encoder['model']})\n" in card
    assert "Mixer:" not in model_card(facts(tmp_path))
