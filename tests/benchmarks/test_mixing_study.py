"""The mixing study: what it runs next, its arms, the towers' losses, mining against a loop, its table and its page."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

import mixing_evaluation
import mixing_folders
import mixing_probes
import mixing_queries
import mixing_run
import mixing_towers
from mixing import chosen_rate, next_runs
from mixing_arms import (
    ARMS,
    BASE,
    CONTROL,
    LEARNING_RATES,
    LONG_ARMS,
    LONG_STEPS,
    MIXERS,
    SEEDS,
    STAGE_1,
    STAGED,
    TUNED,
    Run,
    mixer_of,
    twin,
)
from mixing_arms import STEPS as FULL_STEPS
from mixing_mining import KINDS, draw_gallery, judged, only_colours
from mixing_page import METRICS, differences, finished, in_short, longer, page, table
from mixing_probes import probe
from mixing_towers import cells, pictures, recoloured, told_apart
from mllm_align.data.world import SMALL, iter_scenes
from mllm_align.demo.base_model import build_processor
from mllm_align.vision.attach import mixer_from
from mllm_align.vision.mixers import MIXERS as KNOWN
from records import Records

SOME = [CONTROL, "gated", "gated_blind"]
STEPS = 4


def record(arm: str, rate: float, seed: int, validation: float = 0.5, values: Any = (1, 0, 1)) -> dict[str, Any]:
    part = {"values": list(values), "clusters": [0, 0, 1]}
    cost = {} if arm == "base" else {"seconds": 3.0, "image_tokens": 16, "trained_parameters": 1200}
    return {
        "run": Run(arm, rate, seed, 0 if arm == "base" else STEPS)._asdict(),
        **cost,
        "validation": validation,
        "test": {metric: part for metric in METRICS},
    }


def of_steps(given: dict[str, Any], steps: int) -> dict[str, Any]:
    return {**given, "run": {**given["run"], "steps": steps}}


def long(given: dict[str, Any], value: int) -> dict[str, Any]:
    part = {"values": [value] * 20, "clusters": list(range(20))}
    return {**given, "test": {metric: part for metric in METRICS}}


def test_base_then_rates_then_seeds_and_nothing_twice(tmp_path: Path) -> None:
    records = Records(tmp_path / "runs.jsonl", Run)
    assert list(next_runs(records, SOME, STEPS)) == [
        BASE,
        *(Run(TUNED, rate, SEEDS[0], STEPS) for rate in LEARNING_RATES),
    ]
    records.add(record("base", 0.0, 0))
    for place, rate in enumerate(LEARNING_RATES):
        records.add(record(TUNED, rate, SEEDS[0], validation=0.3 + 0.1 * place))
    again = Records(tmp_path / "runs.jsonl", Run)
    assert chosen_rate(again, "concat", STEPS) == LEARNING_RATES[1]
    all_seeds = [Run(arm, LEARNING_RATES[1], seed, STEPS) for arm in SOME for seed in SEEDS]
    assert list(next_runs(again, SOME, STEPS)) == [run for run in all_seeds if again.get(run) is None]
    assert len(list(next_runs(again, SOME, STEPS))) == len(all_seeds) - 1
    assert chosen_rate(again, "concat", STEPS + 1) is None


def test_in_longer_runs_every_arm_chooses_its_own_rate_and_the_page_has_them_apart(tmp_path: Path) -> None:
    records = Records(tmp_path / "runs.jsonl", Run)
    records.add(record("base", 0.0, 0))
    first = [Run(arm, rate, SEEDS[0], LONG_STEPS) for arm in LONG_ARMS for rate in LEARNING_RATES]
    assert list(next_runs(records, LONG_ARMS, LONG_STEPS)) == first
    for place, arm in enumerate(LONG_ARMS):
        for rate in LEARNING_RATES:
            best = LEARNING_RATES[place % 2]
            records.add(of_steps(record(arm, rate, SEEDS[0], validation=0.4 + 0.1 * (rate == best)), LONG_STEPS))
    rates = [LEARNING_RATES[place % 2] for place in range(len(LONG_ARMS))]
    assert [chosen_rate(records, arm, LONG_STEPS) for arm in LONG_ARMS] == rates
    wanted = [
        Run(arm, rate, seed, LONG_STEPS) for arm, rate in zip(LONG_ARMS, rates, strict=True) for seed in SEEDS[1:]
    ]
    assert list(next_runs(records, LONG_ARMS, LONG_STEPS)) == wanted
    mining = {"images": 4, "pairs of images": 6, "planted of each kind": 1, "bounds": {"found": 2, "precision": 0.5}}
    probes = {"blind, linear": {"colour": 0.17, "shape": 1.0}}
    assert "## Longer" not in page(records, probes, mining, STEPS)
    for run in wanted:
        records.add(of_steps(record(run.arm, run.learning_rate, run.seed), LONG_STEPS))
    before, _, after = page(records, probes, mining, STEPS).partition("## Longer")
    assert differences(records, LONG_STEPS) in after
    assert differences(records, LONG_STEPS) not in before
    assert "| base |" in before
    assert "| base |" not in after


def test_arms_are_mixers_that_exist_and_differ_from_their_twins_in_the_tower_alone() -> None:
    towers = {"seeing": "S", "blind": "B", "masked": "M", "queries": "Q"}
    assert {arm.kind for arm in ARMS.values()} - {None} == set(MIXERS) == set(KNOWN)
    assert mixer_of(CONTROL, towers) is None
    for name, arm in ARMS.items():
        if arm.kind is None:
            continue
        mixer = mixer_of(name, towers)
        assert mixer_from(mixer).encoders[0].model == towers[arm.tower]
        assert mixer.get("weights") == ("Q" if arm.staged else None)  # type: ignore[union-attr]
        other = twin(name)
        if other is not None:
            assert {**mixer_of(other, towers), "encoders": []} == {**mixer, "encoders": []}  # type: ignore[dict-item]
    assert mixer_of("sva", towers, LONG_STEPS) == mixer_of("sva", towers) | {"depth": 3}  # type: ignore[operator]
    assert mixer_of("interleave", towers, LONG_STEPS) == mixer_of("interleave", towers)
    assert twin("gated") == "gated_blind"
    assert twin("gated_blind") is twin(CONTROL) is None


def test_mixers_that_change_the_model_have_two_stages_within_the_steps() -> None:
    class Kind:
        starts_as_identity = False

    assert mixing_run.stages(None, 100) == [(100, True)]
    assert mixing_run.stages(Kind(), 100) == [(100 * STAGE_1, False), (100 - 100 * STAGE_1, True)]
    Kind.starts_as_identity = True
    assert mixing_run.stages(Kind(), 100) == [(100, True)]


def test_the_tables_have_costs_and_differences_to_both_controls(tmp_path: Path) -> None:
    records = Records(tmp_path / "runs.jsonl", Run)
    records.add(record("base", 0.0, 0, values=(0, 0, 1)))
    for seed in SEEDS:
        records.add(record(CONTROL, LEARNING_RATES[0], seed, values=(1, 0, 0)))
        records.add(record("gated", LEARNING_RATES[0], seed, values=(1, 1, 1)))
        records.add(record("gated_blind", LEARNING_RATES[0], seed, values=(0, 1, 1)))
    records.add(record("concat", LEARNING_RATES[0], SEEDS[0]))
    assert list(finished(records, STEPS)) == ["base", *SOME]
    lines = table(records, STEPS).splitlines()
    assert lines[2].startswith("| base |  | 33.3 (")
    assert lines[4].endswith("| 16 | 1,200 | 3 |")
    rows = {line.split("|")[1].strip(): line for line in differences(records, STEPS).splitlines()[2:]}
    assert list(rows) == [f"gated - {CONTROL}", "gated - gated_blind", f"gated_blind - {CONTROL}"]
    assert "+66.7 (" in rows[f"gated - {CONTROL}"]
    assert "+33.3 (" in rows["gated - gated_blind"]
    probes = {"blind, linear": {"colour": 0.17, "shape": 1.0}}
    mining = {"images": 4, "pairs of images": 6, "planted of each kind": 1, "bounds": {"found": 2, "precision": 0.5}}
    text = page(records, probes, mining, STEPS)
    assert "| blind, linear | 17.0 | 100.0 |" in text
    assert "| bounds | 2 | 0.50 |" in text
    assert table(records, STEPS) in text
    assert f"- colour, against `{CONTROL}`: ahead `gated` +66.7." in text  # that of the twin may be nothing
    assert "- Not all seeds have run of: concat, " in text
    records = Records(tmp_path / "more.jsonl", Run)
    for seed in SEEDS:  # as many scenes as leave no doubt
        records.add(long(record(CONTROL, LEARNING_RATES[0], seed), 0))
        records.add(long(record("gated", LEARNING_RATES[0], seed), 1))
    assert f"- others, against `{CONTROL}`: ahead `gated` +100.0" in page(records, probes, mining, STEPS)


def test_colourings_differ_in_colour_alone() -> None:
    scene = next(iter_scenes("train", 0, "balanced"))
    other = recoloured(scene, Random(0))
    assert [(i.row, i.column, i.shape, i.size) for i in other.items] == [
        (i.row, i.column, i.shape, i.size) for i in scene.items
    ]
    assert [i.colour for i in other.items] != [i.colour for i in scene.items]


def test_what_tells_colourings_apart_is_that_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(40, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    both = torch.cat([first, second])
    mean = sum(both) / len(both)
    covariance = sum(torch.outer(row - mean, row - mean) for row in both) / len(both)
    inverse = torch.linalg.inv(covariance + 1e-4 * covariance.diagonal().mean() * torch.eye(5))
    wanted = sum((a - b) @ inverse @ (a - b) for a, b in zip(first, second, strict=True)) / first.numel()
    torch.testing.assert_close(told_apart(first, second), wanted)
    # A direction that holds nothing else counts as much as one that is large in itself.
    stretched = torch.diag(torch.tensor([1e-1, 1.0, 1.0, 1.0, 10.0], dtype=torch.float64))
    torch.testing.assert_close(told_apart(first @ stretched, second @ stretched), wanted, rtol=0.2, atol=0)


def test_towers_learn_and_probes_find_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixing_towers, "BATCH", 16)
    processor, shown = build_processor(SMALL), pictures(70, 2, 0)
    for train in (mixing_towers.train_blind, mixing_towers.train_seeing, mixing_queries.train_masked):
        losses = [loss for _, loss in train(processor, shown, 8, 0)]
        assert losses[-1] < losses[0]

    def colours(given: Any) -> torch.Tensor:
        tokens = torch.zeros(len(given.scenes), SMALL.grid**2, len(SMALL.colours))
        for row, scene in enumerate(given.scenes):
            for item, cell in zip(scene.items, cells(scene), strict=True):
                tokens[row, cell, SMALL.colours.index(item.colour)] = 1
        return tokens

    found = probe(colours, shown, pictures(30, 1, 1, "pairs"))
    assert found["colour"] == 1
    assert found["shape"] < 0.6


def test_mining_is_judged_by_what_was_planted(tmp_path: Path) -> None:
    shown = draw_gallery(tmp_path / "gallery", 2, 0)
    assert len(shown) == 2 * 2 * len(KINDS) == len(list((tmp_path / "gallery").iterdir()))
    assert only_colours(shown["colour_0_a"], shown["colour_0_b"])
    assert not only_colours(shown["size_1_a"], shown["size_1_b"])
    found = [("colour_0_a", "colour_0_b"), ("size_1_a", "size_1_b"), ("colour_0_a", "colour_4_a")]
    score = judged(found, shown, 2)
    assert (score["to be found"], score["found"], score["recall"], score["planted found"]) == (2, 3, 0.5, 0.5)
    assert score["planted pairs of size found"] == 1
    assert score["precision"] == pytest.approx(1 / 3)
    assert judged([], shown, 2)["precision"] == 0


def test_from_the_towers_to_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NUM_SCENES": 70, "CLIP_STEPS": 1, "SSL_STEPS": 1, "NUM_PROBED": (8, 4)}.items():
        monkeypatch.setattr(mixing_folders, name, value)
    monkeypatch.setattr(mixing_probes, "STEPS", 2)
    monkeypatch.setattr(mixing_towers, "BATCH", 16)
    found = mixing_folders.prepared(tmp_path, language_steps=1)
    before = found.probes.stat().st_mtime_ns
    assert mixing_folders.prepared(tmp_path).probes.stat().st_mtime_ns == before
    monkeypatch.setattr(mixing_folders, "MASKED_STEPS", 1)
    for name, value in {"NUM_CAPTIONS": 6, "CAPTION_BATCH": 4, "CAPTION_STEPS": 2}.items():
        monkeypatch.setattr(mixing_queries, name, value)
    mixing_folders.prepare_queries(found)
    read = json.loads(found.probes.read_text(encoding="utf-8"))
    assert {name.partition(",")[0] for name in read} == {"blind", "seeing", "masked"}
    for name in ("NUM_COLOUR", "NUM_OTHER", "NUM_PAIRS", "VALIDATION_COLOUR", "VALIDATION_OTHER"):
        monkeypatch.setattr(mixing_evaluation, name, 3)
    for kept in (mixing_evaluation.test_items, mixing_run.training_rows):
        kept.cache_clear()
    twice = mixing_run.carry_out(Run("interleave", 1e-3, 0, 3), tmp_path, "cpu")
    control = mixing_run.carry_out(Run(CONTROL, 1e-3, 0, 2), tmp_path, "cpu")
    staged = mixing_run.carry_out(Run(STAGED, 1e-3, 0, 2), tmp_path, "cpu")
    for kept in (mixing_evaluation.test_items, mixing_run.training_rows):
        kept.cache_clear()
    assert [each["image_tokens"] for each in (twice, control, staged)] == [32, 16, 16]
    assert twice["trained_parameters"] > control["trained_parameters"]
    assert set(twice["test"]) == set(METRICS)
    assert len(twice["test"]["colour_pairs"]["values"]) == 3


def test_the_page_has_the_tables_of_the_records() -> None:
    folder = Path(mixing_run.__file__).parent
    records = Records(folder / "mixing_runs.jsonl", Run)
    written = (folder / "mixing.md").read_text(encoding="utf-8")
    for part in (table, differences, in_short):
        assert part(records, FULL_STEPS) in written
    assert written.endswith(longer(records, LONG_STEPS))
    assert {"base", CONTROL, TUNED} <= set(finished(records, FULL_STEPS))
