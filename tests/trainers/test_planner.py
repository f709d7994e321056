import logging
from dataclasses import replace

import pytest
import torch
from datasets import Dataset

from mllm_align.contract import Feature, Needs
from mllm_align.data.corrupt import corrupted
from mllm_align.objectives import DPO, SVCO, NextToken, Weighted
from mllm_align.signals import CachedReference, FrozenCopy
from mllm_align.trainers.memory import GIB, Switches, run_of
from mllm_align.trainers.planner import LADDER, Allowed, allowed_for, plan_switches
from runs import config, gradients, make_trainer, pair_rows
from tiny import tiny
from wide import wide_llava

ALL = Allowed()


def run_and_switches(folder, objective=None, **changes):
    trainer = make_trainer(folder, objective or DPO(), pair_rows(8), **changes)
    run = run_of(
        trainer.args,
        trainer.model,
        trainer.objective,
        trainer.reference,
        trainer.data_collator,
        trainer.train_dataset,
    )
    return run, Switches.of(trainer.args)


def totals_by_budget(run, switches, allowed=ALL):
    """What is decided at a hundred budgets from the least that is possible to what needs nothing."""
    most = run.estimate(switches).total
    found = {}
    for share in range(1, 101):
        try:
            found[share] = plan_switches(run, switches, most * share // 100, allowed)
        except ValueError:
            continue
    return most, found


def test_nothing_is_changed_where_the_run_fits(tmp_path):
    run, switches = run_and_switches(tmp_path, per_device_train_batch_size=8)
    assert plan_switches(run, switches, run.estimate(switches).total, ALL) == ([], switches)


@pytest.mark.parametrize(
    "changes", [{}, {"adapter": None}, {"max_tokens_per_batch": 300, "check_data": True}], ids=str
)
def test_every_budget_is_kept_and_dearer_switches_come_later(changes, tmp_path):
    run, switches = run_and_switches(tmp_path, SVCO(), per_device_train_batch_size=8, **changes)
    most, found = totals_by_budget(run, switches)
    order = [name for step in LADDER for name in step.settings]
    names = {}
    for share, (decisions, chosen) in found.items():
        assert run.estimate(chosen).total <= most * share // 100
        names[share] = {name for decision in decisions for name in decision.switch.split(", ")}
        ranks = [order.index(decision.switch.split(", ")[0]) for decision in decisions]
        assert ranks == sorted(ranks)
    dearest = [max((order.index(name) for name in names[share]), default=-1) for share in sorted(names, reverse=True)]
    assert dearest == sorted(dearest)
    assert dearest[-1] == order.index("max_tokens_per_forward")
    assert len({frozenset(each) for each in names.values()}) >= 3


def test_as_many_rows_are_in_a_step_as_before(tmp_path):
    run, switches = run_and_switches(tmp_path, per_device_train_batch_size=6, gradient_accumulation_steps=2)
    _, found = totals_by_budget(run, switches)
    sizes = set()
    for _, chosen in found.values():
        sizes.add(chosen.per_device_train_batch_size)
        assert chosen.per_device_train_batch_size * chosen.gradient_accumulation_steps == 12
    assert sizes <= {6, 3, 2, 1}
    assert len(sizes) > 2


def test_a_cheap_switch_that_is_not_needed_beside_a_dear_one_is_undone(tmp_path):
    model, processor = wide_llava(layers=16)
    changes = {"model": model, "processing_class": processor, "per_device_train_batch_size": 4}
    run, switches = run_and_switches(tmp_path, **changes)
    alone = run.estimate(replaced(switches, activation_checkpointing=True)).total
    single = replaced(switches, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    assert alone < run.estimate(single).total
    decisions, chosen = plan_switches(run, switches, alone, ALL)
    assert [decision.switch for decision in decisions] == ["activation_checkpointing"]
    assert chosen == replaced(switches, activation_checkpointing=True)


def replaced(switches, **changes):
    return type(switches)(**(switches.__dict__ | changes))


def test_what_is_not_allowed_is_left_alone(tmp_path):
    run, switches = run_and_switches(tmp_path, adapter=None, per_device_train_batch_size=8)
    _, found = totals_by_budget(run, switches, Allowed(smaller_batches=False, checkpointing=False, precompute=False))
    names = {decision.switch for decisions, _ in found.values() for decision in decisions}
    assert names
    assert not names & {"per_device_train_batch_size, gradient_accumulation_steps", "activation_checkpointing"}
    assert "precompute_ref_log_probs" not in names


def test_norms_of_single_terms_count_and_keep_the_graph(tmp_path):
    """Two terms: a set of gradients at a time, and one for each where micro-batches are summed up."""
    objective = Weighted((DPO(), 1.0), (NextToken(), 1.0))
    run, switches = run_and_switches(tmp_path, objective, adapter=None, log_term_gradients_every=2)
    parts = [run.estimate(replace(switches, gradient_accumulation_steps=steps)).parts for steps in (1, 4)]
    assert [each["gradients of single terms"] for each in parts] == [run.gradients, 3 * run.gradients]
    _, found = totals_by_budget(run, switches, Allowed(caching=False))
    assert found
    assert not any(chosen.cache_gradients for _, chosen in found.values())
    settings = {"memory_budget": 1e-6, "log_term_gradients_every": 2, "check_data": True}
    with pytest.raises(
        ValueError, match=r"too small.*; or leave log_term_gradients_every out, which does not go with"
    ):
        make_trainer(tmp_path, objective, pair_rows(8), **settings)


def test_a_decision_tells_what_it_did_in_a_sentence(tmp_path):
    run, switches = run_and_switches(tmp_path, per_device_train_batch_size=8)
    before = run.estimate(switches).total
    (decision,), chosen = plan_switches(run, switches, before - 1, Allowed(smaller_batches=False))
    assert decision.before == str(getattr(switches, decision.switch))
    assert decision.after == str(getattr(chosen, decision.switch))
    assert (decision.bytes_before, decision.bytes_after) == (before, run.estimate(chosen).total)
    for told in (decision.switch, decision.after, decision.reason, decision.cost):
        assert told in str(decision)


def test_a_budget_that_cannot_be_kept_names_the_least_and_the_mend(tmp_path):
    run, switches = run_and_switches(tmp_path)
    with pytest.raises(ValueError, match=r"even with .*activation_checkpointing=True.* about .* weights: .*4 bits"):
        plan_switches(run, switches, 1000, ALL)
    run, switches = run_and_switches(tmp_path, adapter=None)
    with pytest.raises(ValueError, match=r"optimiser: .*adapters.*8bit"):
        plan_switches(run, switches, 1000, ALL)


def test_nobody_is_told_to_load_in_few_bits_what_is_loaded_so(tmp_path):
    trainer = make_trainer(tmp_path, DPO(), pair_rows(2), quantized=True)
    assert not allowed_for(trainer.model, DPO(), pair_rows(2)).quantize
    with pytest.raises(ValueError, match=r"too small: .*") as told:
        make_trainer(tmp_path, DPO(), pair_rows(2), quantized=True, memory_budget=1e-5)
    assert "weights: " in str(told.value)
    assert str(told.value).endswith("Use a smaller model, or a device with more memory")


class Features:
    needs = Needs(features=(Feature("a", "projector", "image"),))


def test_batches_that_are_compared_within_stay_whole_and_streams_are_not_precomputed():
    model, rows = tiny("llava")[0], pair_rows(2)
    assert allowed_for(model, DPO(), rows) == ALL
    assert not allowed_for(model, Features(), rows).smaller_batches
    assert not allowed_for(model, DPO(), iter(rows)).precompute
    dataset = Dataset.from_list([{"a": 1}])
    assert allowed_for(model, DPO(), dataset).precompute
    assert not allowed_for(model, DPO(), dataset.with_transform(lambda row: row)).precompute
    assert not allowed_for(model, DPO(), corrupted(rows, "crop")).precompute
    assert allowed_for(model, DPO(), corrupted(rows, "crop", redraw=False)).precompute
    model.supports_gradient_checkpointing = False
    assert not allowed_for(model, DPO(), rows).checkpointing


def budget_of(folder, share, **changes):
    run, switches = run_and_switches(folder, **changes)
    return run.estimate(switches).total * share / GIB


def test_a_trainer_fits_itself_into_the_budget(tmp_path, caplog):
    settings = {"per_device_train_batch_size": 8}
    budget = budget_of(tmp_path / "a", 0.45, **settings)
    with caplog.at_level(logging.WARNING, "mllm_align.trainers.planner"):
        trainer = make_trainer(tmp_path / "b", DPO(), pair_rows(8), memory_budget=budget, **settings)
    assert trainer.decisions
    assert [record.getMessage().split(": ", 1)[1] for record in caplog.records] == list(map(str, trainer.decisions))
    changed = {name for decision in trainer.decisions for name in decision.switch.split(", ")}
    values = [value for decision in trainer.decisions for value in decision.after.split(", ")]
    names = [name for decision in trainer.decisions for name in decision.switch.split(", ")]
    assert [str(getattr(trainer.args, name)) for name in names] == values
    assert "per_device_train_batch_size" in changed
    assert trainer.get_train_dataloader().total_batch_size == trainer.args.per_device_train_batch_size
    trainer.train()
    trainer.create_model_card()
    card = (tmp_path / "b" / "README.md").read_text()
    assert all(str(decision) in card for decision in trainer.decisions)


def test_no_budget_no_decisions(tmp_path):
    trainer = make_trainer(tmp_path, DPO(), pair_rows(2))
    assert trainer.decisions == ()
    trainer.create_model_card()
    assert "Changed to fit" not in (tmp_path / "README.md").read_text()


def test_gradients_are_those_of_the_whole_batch(tmp_path):
    settings = {"per_device_train_batch_size": 8, "max_steps": 1, "train_sampling_strategy": "sequential"}
    whole = gradients(make_trainer(tmp_path / "a", SVCO(), pair_rows(8), **settings))
    budget = budget_of(tmp_path / "b", 0.3, objective=SVCO(), **settings)
    trainer = make_trainer(tmp_path / "c", SVCO(), pair_rows(8), memory_budget=budget, **settings)
    assert trainer.decisions
    found = gradients(trainer)
    for name, gradient in whole.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-3)


def test_a_copy_leaves_the_device_where_the_budget_asks_for_it(tmp_path):
    settings = {"adapter": None, "per_device_train_batch_size": 1, "cache_dir": str(tmp_path / "cache")}
    budget = budget_of(tmp_path / "a", 0.85, **settings)
    trainer = make_trainer(tmp_path / "b", DPO(), pair_rows(8), memory_budget=budget, **settings)
    assert [decision.switch for decision in trainer.decisions] == ["precompute_ref_log_probs"]
    assert isinstance(trainer.reference, FrozenCopy)
    trainer.train()
    assert isinstance(trainer.reference, CachedReference)


@pytest.mark.parametrize("budget", [0, -1, float("nan"), "24", True])
def test_a_budget_is_a_number_above_zero(budget, tmp_path):
    with pytest.raises(ValueError, match="memory_budget"):
        config(tmp_path, memory_budget=budget)


def test_a_budget_that_is_too_small_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"memory_budget of 0\.0 MB is too small"):
        make_trainer(tmp_path, DPO(), pair_rows(2), memory_budget=1e-5)
