from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from mllm_align.contract import Needs, Outcome, Term
from mllm_align.data.schema import DataError
from mllm_align.objectives.dpo import DPO
from mllm_align.objectives.next_token import NextToken
from mllm_align.objectives.svco import SVCO
from mllm_align.objectives.weighted import Weighted
from mllm_align.trainers import AlignTrainer
from runs import OWN, Headed, config, gradients, make_trainer, pair_rows, trained
from tiny import save_tiny, tiny

SOURCES = {"pairs": pair_rows(3), "instructions": pair_rows(3, images=False)}


def mixture() -> Weighted:
    return Weighted((SVCO(), 1.0, "pairs"), (NextToken(), 0.5, "instructions"))


def logged(trainer: Any, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    assert left.keys() == right.keys()
    assert left
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=tolerance, atol=tolerance, msg=name)


def test_accumulation_is_the_big_batch(tmp_path: Path) -> None:
    """Micro-batches of 2, 2, 2 rows with responses and sources as uneven as they come, against one batch of 6."""
    once: dict[str, Any] = {"max_steps": 1, "train_sampling_strategy": "sequential"}
    big = make_trainer(tmp_path / "big", mixture(), SOURCES, per_device_train_batch_size=6, **once)
    whole = gradients(big)
    small = make_trainer(tmp_path / "small", mixture(), SOURCES, gradient_accumulation_steps=3, **once)
    assert_same(gradients(small), whole, 1e-5)
    for name in ("loss", "loss/svco", "loss/next_token", "svco/margins/attend"):
        # A margin is a small difference of sums of some thirty nats.
        assert logged(small, name) == pytest.approx(logged(big, name), rel=1e-5, abs=1e-5), name


def test_loss_is_the_formula_on_the_whole_window(tmp_path: Path) -> None:
    """The mean over tokens of all rows, from plain calls of the model."""
    rows = pair_rows(4, images=False)
    trainer = make_trainer(
        tmp_path, NextToken(), rows, max_steps=1, gradient_accumulation_steps=2, train_sampling_strategy="sequential"
    )
    total = tokens = 0.0
    with torch.no_grad():
        for row in rows:
            batch = trainer.data_collator([row])["batch"]
            prompt, answer = batch.prefixes[0].input_ids, batch.branches[0].token_ids
            logits = trainer.model(input_ids=torch.cat([prompt, answer])[None]).logits[0].double()
            picked = logits[len(prompt) - 1 : -1].log_softmax(-1).gather(1, answer[:, None])
            total, tokens = total - picked.sum().item(), tokens + len(answer)
    trainer.train()
    assert logged(trainer, "loss") == pytest.approx([total / tokens], rel=1e-5)


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    plain = gradients(make_trainer(tmp_path / "plain", SVCO(), pair_rows(2), max_steps=1))
    saving = make_trainer(tmp_path / "saving", SVCO(), pair_rows(2), max_steps=1, gradient_checkpointing=True)
    assert saving.args.activation_checkpointing_kwargs == {"use_reentrant": False}
    assert_same(gradients(saving), plain, 1e-6)
    assert saving.model.get_base_model().model.language_model.gradient_checkpointing


def test_evaluation_does_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    rows = [{**row, "source": "pairs" if i % 3 else "instructions"} for i, row in enumerate(pair_rows(5))]
    results = []
    for size in (1, 2, 5):
        trainer = make_trainer(
            tmp_path, mixture(), SOURCES, eval_dataset=rows, per_device_eval_batch_size=size, packing="off"
        )
        results.append({k: v for k, v in trainer.evaluate().items() if "second" not in k and "time" not in k})
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=1e-5)
    assert results[0]["eval_loss"] == pytest.approx(
        results[0]["eval_loss/svco"] + 0.5 * results[0]["eval_loss/next_token"]
    )


def test_evaluation_datasets_stay_apart(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, mixture(), SOURCES, eval_dataset=SOURCES)
    metrics = trainer.evaluate()
    assert metrics["eval_pairs_loss"] == pytest.approx(metrics["eval_pairs_loss/svco"])
    assert metrics["eval_instructions_loss"] == pytest.approx(0.5 * metrics["eval_instructions_loss/next_token"])
    assert "eval_pairs_loss/next_token" not in metrics


@pytest.mark.parametrize(("quantized", "accumulation"), [(False, 1), (True, 2)])
def test_resuming_is_bit_identical(tmp_path: Path, quantized: bool, accumulation: int) -> None:
    """From the middle and the end of an epoch, with dropout, so that the random state counts, and trained heads."""

    def run(folder: Path, **changes: Any) -> Any:
        objective = Weighted((SVCO(), 1.0), (Headed(), 0.01))
        settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "disable_dropout": False}
        settings |= {"lr_scheduler_type": "linear", "gradient_accumulation_steps": accumulation}
        return make_trainer(
            folder, objective, pair_rows(6), quantized=quantized, adapter={"lora_dropout": 0.2}, **(settings | changes)
        )

    whole = run(tmp_path / "whole")
    whole.train()
    resumed = run(tmp_path / "whole")
    (tmp_path / "whole" / "checkpoint-4" / "trainer_state.json").write_text('{"cut')  # killed while saving
    torch.manual_seed(99)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    assert_same(trained(resumed), trained(whole))
    assert_same(dict(resumed.objective.named_parameters()), dict(whole.objective.named_parameters()))
    assert logged(resumed, "loss") == logged(whole, "loss")
    assert logged(resumed, "num_tokens") == logged(whole, "num_tokens")


def test_a_model_without_adapters_is_resumed(tmp_path: Path) -> None:
    """Weights have other names in a checkpoint than in memory."""

    def run(folder: str, **changes: Any) -> Any:
        settings = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-3, "adapter": None}
        return make_trainer(tmp_path / folder, NextToken(matched=False), pair_rows(6), **(settings | changes))

    whole, first = run("whole", max_steps=4), run("parts", max_steps=2)
    whole.train()
    first.train()
    resumed = run("parts", max_steps=4)
    resumed.train(resume_from_checkpoint=True)
    assert_same(trained(resumed), trained(whole))


def test_the_best_model_without_adapters_comes_back(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    settings |= {"load_best_model_at_end": True, "greater_is_better": True, "max_steps": 3, "learning_rate": 1e-2}
    trainer = make_trainer(
        tmp_path, NextToken(matched=False), pair_rows(6), adapter=None, eval_dataset=pair_rows(2), **settings
    )
    trainer.train()
    assert not trainer.state.best_model_checkpoint.endswith("checkpoint-3")
    best = type(trainer.model).from_pretrained(trainer.state.best_model_checkpoint)
    assert_same(dict(trainer.model.named_parameters()), dict(best.named_parameters()))


def test_an_objective_with_parameters_is_trained_and_saved(tmp_path: Path) -> None:
    objective = Headed()
    before = {name: p.detach().clone() for name, p in objective.named_parameters()}
    trainer = make_trainer(tmp_path, objective, pair_rows(4), head_learning_rate=0.1)
    trainer.train()
    trainer.save_model()
    saved = load_file(tmp_path / "objective.safetensors")
    for name, parameter in objective.named_parameters():
        assert not torch.equal(parameter, before[name])
        assert torch.equal(parameter, saved[name])
    assert logged(trainer, "learning_rate/head") == [0.1, 0.1]


def test_training_goes_on_exactly_after_an_evaluation_on_nf4(tmp_path: Path) -> None:
    def run(folder: Path, **changes: Any) -> Any:
        trainer = make_trainer(folder, SVCO(), pair_rows(4), quantized=True, max_steps=3, **changes)
        trainer.train()
        return trainer

    plain = run(tmp_path / "plain")
    evaluated = run(tmp_path / "evaluated", eval_dataset=pair_rows(3), eval_strategy="steps", eval_steps=1)
    assert len(logged(evaluated, "eval_loss")) == 3
    assert_same(trained(evaluated), trained(plain))
    assert logged(evaluated, "loss") == logged(plain, "loss")


def test_policy_equals_reference_at_the_start(tmp_path: Path) -> None:
    """A fresh LoRA adapter and a trained copy of the projector are both switched off in the reference."""
    model, processor = tiny("llava")
    names = {"modules_to_save": ["model.multi_modal_projector"]}
    trainer = AlignTrainer(
        model,
        SVCO(),
        config(tmp_path, max_steps=1),
        processing_class=processor,
        train_dataset=pair_rows(2),
        peft_config=LoraConfig(r=4, **names),
    )
    trainable = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    for name in ("svco/margins/attend", "margins/attend"):
        assert logged(trainer, name) in ([], [0.0])
    assert logged(trainer, "margins/attend") == [0.0]
    assert {name for name, p in trainer.model.named_parameters() if p.requires_grad} == trainable
    assert any("multi_modal_projector" in name for name in trainable)
    assert not any("vision_tower" in name for name in trainable)


def test_full_fine_tuning_compares_with_a_frozen_copy(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, DPO(), pair_rows(4), adapter=None, max_steps=2)
    copy = trainer.reference.model
    before = {name: p.clone() for name, p in copy.named_parameters()}
    trainer.train()
    assert logged(trainer, "rewards/margins")[0] == 0.0
    assert logged(trainer, "rewards/margins")[1] != 0.0
    assert_same(dict(copy.named_parameters()), before)
    assert not any(p.requires_grad for p in copy.parameters())


def test_a_batch_of_dropped_rows_is_a_step_without_change(tmp_path: Path) -> None:
    rows = pair_rows(1) + [{**pair_rows(2)[1], "chosen": "red " * 200} for _ in range(3)]
    trainer = make_trainer(
        tmp_path,
        NextToken(),
        rows,
        max_length=150,
        on_overflow="drop",
        train_sampling_strategy="sequential",
        optim="sgd",
    )
    trainer.train()
    losses = logged(trainer, "loss")
    assert losses[0] > 0
    assert losses[1] == 0


def test_a_model_is_loaded_by_name(tmp_path: Path) -> None:
    folder = str(save_tiny("llava", tmp_path / "base"))
    settings = {"model_init_kwargs": {"use_peft": True, "lora_r": 4}, "max_steps": 1, "check_data": True}
    trainer = make_trainer(
        tmp_path / "run", NextToken(), pair_rows(2), model=folder, processing_class=None, adapter=None, **settings
    )
    trainer.train()
    trainer.save_model()
    assert trainer.base_name == folder
    assert f"Base model: `{folder}`" in (tmp_path / "run" / "README.md").read_text()


class Detached:
    """An objective whose second term moves nothing."""

    needs = Needs(views=(OWN,))

    def __call__(self, policy: Any, reference: Any) -> Outcome:
        count = policy.has(OWN).sum()
        logps = policy.logps[OWN]
        return Outcome((Term("moves", 1.0, -logps.sum(), count), Term("idle", 1.0, -logps.detach().sum(), count)))


def test_a_term_that_moves_nothing_is_refused_before_the_first_step(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, Detached(), pair_rows(2))
    with pytest.raises(ValueError, match=r"term 'idle' reaches no parameter.*detached"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_folder_with_something_in_it_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-9").mkdir()
    trainer = make_trainer(tmp_path, NextToken(), pair_rows(2))
    with pytest.raises(ValueError, match=r"has something in it.*overwrite_output_dir"):
        trainer.train()
    with pytest.raises(ValueError, match="no complete checkpoint"):
        trainer.train(resume_from_checkpoint=True)
    make_trainer(tmp_path, NextToken(), pair_rows(2), overwrite_output_dir=True, max_steps=1).train()
    assert not (tmp_path / "checkpoint-9").exists()


def test_bad_rows_are_refused_before_training(tmp_path: Path) -> None:
    rows = pair_rows(3)
    rows[1]["chosen"] = ""
    with pytest.raises(DataError, match=r"train_dataset: row 1"):
        make_trainer(tmp_path, NextToken(), rows, check_data=True)
    with pytest.raises(DataError, match=r"contrast_image"):
        make_trainer(tmp_path, SVCO(), pair_rows(2, images=False), check_data=True)
    with pytest.raises(ValueError, match=r"part for source 'instructions'.*only 'pairs'"):
        make_trainer(tmp_path, mixture(), {"pairs": pair_rows(2)})
    with pytest.raises(ValueError, match=r"no part of the objective takes rows of source 'other'"):
        make_trainer(tmp_path, mixture(), SOURCES | {"other": pair_rows(1)})


def test_the_run_tells_what_it_was(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, mixture(), SOURCES, recipe="seed: 1\n", eval_dataset=SOURCES, max_steps=1, quantized=True
    )
    trainer.train()
    trainer.save_model()
    card = (tmp_path / "README.md").read_text()
    for told in (
        "SVCO(beta_attend=0.1, beta_reject=0.1, ",
        "symmetric=True), weight 1, on pairs",
        "NextToken(matched=True), weight 0.5, on instructions",
        "`pairs`: 3 rows",
        "4 bits (nf4, double quantisation)",
        "seed: 1",
        "| loss/svco |",
        "library_name: peft",
    ):
        assert told in card, told
    assert (tmp_path / "recipe.yaml").read_text() == "seed: 1\n"
    assert {"adapter_config.json", "processor_config.json", "base_model.json"} <= {p.name for p in tmp_path.iterdir()}
