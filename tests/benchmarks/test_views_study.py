"""The study of views: its rows and steps, its arms, retrieval against a plain loop, and one run from end to end."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import evaluation
import region_evaluation
import region_run
import view_evaluation
from mllm_align.contract import Ragged, Regions, Signals
from mllm_align.data.world.correspondence import draw
from mllm_align.families import family_of
from mllm_align.models import load_model
from mllm_align.objectives import RegionContrast, ViewCentroid
from mllm_align.objectives.load import objective_from
from mllm_align.vision import box_weights
from records import Records
from region_arms import (
    CONTROL,
    LEARNING_RATES,
    NAMED_PULLED,
    NAMED_WORST,
    OUTLIERS,
    PULLED,
    SEEDS,
    TASKS,
    VIEWS,
    WORST,
    Run,
    objective_of,
)
from region_page import table
from view_evaluation import colour_items, own_and_found, parts_of, retrieval_parts
from view_rows import (
    LEVELS,
    MOST_VIEWS,
    ROWS_PER_THING,
    THINGS_PER_STEP,
    canonical_frame,
    frames_of,
    picture_of,
    steps_of_views,
    things_of,
    view_rows,
)

FEW = THINGS_PER_STEP * ROWS_PER_THING
VIEWS_PER_THING = 2 * ROWS_PER_THING


def ids_of(row: dict[str, Any]) -> set[str]:
    return {each["object_id"] for name in ("objects", "contrast_objects") for each in row[name]}


def test_no_two_things_look_the_same_and_no_thing_of_training_is_in_a_test() -> None:
    found = {split: [thing.looks for thing in things_of(split)] for split in ("train", "validation", "test")}
    everything = [looks for own in found.values() for looks in own]
    assert len(set(everything)) == len(everything)
    assert len(found["test"]) >= 60
    assert len({thing.name for split in found for thing in things_of(split)}) == len(everything)
    trained = {thing for row in view_rows(2 * FEW) for thing in ids_of(row)}
    assert trained == {thing.name for thing in things_of("train")[: 2 * THINGS_PER_STEP]}
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        things_of("dev")


def test_a_row_shows_one_thing_twice_and_its_boxes_hold_it() -> None:
    for row in view_rows(2 * FEW):
        (thing,) = ids_of(row)
        assert thing.startswith(row["chosen"])
        assert row["rejected"] == row["chosen"]
        for picture, objects in (("image", "objects"), ("contrast_image", "contrast_objects")):
            (told,) = row[objects]
            assert told["text"] == told["object_id"]
            assert row[picture].size == (64, 64)


def test_a_box_is_where_the_picture_of_nothing_differs() -> None:
    for thing in things_of("validation")[:6]:
        for frame in frames_of(thing, 8, 0, "quarter"):
            picture, (told,) = picture_of(frame)
            pixels, ground = (
                np.asarray(each, dtype=np.float64) for each in (picture, draw(replace(frame, placed=())))
            )
            differs = np.abs(pixels - ground).max(axis=2) > 0
            left, top, right, bottom = (round(64 * side) for side in told["box"])
            assert differs[top:bottom, left:right].mean() > 0.25
            if not frame.placed[0].hidden_edge:  # else the bar differs, too
                # Tips thinner than half a pixel are in no box.
                differs[max(0, top - 3) : bottom + 3, max(0, left - 3) : right + 3] = False
                assert not differs.any()


def test_every_fourth_view_is_hard_and_seeds_and_splits_have_views_of_their_own() -> None:
    thing = things_of("test")[0]
    assert [canonical_frame(thing).zoom, canonical_frame(thing).light, canonical_frame(thing).noise] == [1, 1, 0]
    for level, every in LEVELS.items():
        frames = frames_of(thing, 24, 0, level)
        troubles = [
            (frame.light < 0.5) + (frame.zoom < 0.7) + bool(frame.placed[0].hidden_edge) + (frame.noise > 20)
            for frame in frames
        ]
        assert troubles == [2 * (place % every == every - 1) for place in range(24)]
        assert len({frame.seed for frame in frames}) == 24
    assert frames_of(thing, 3, 0, "quarter") == frames_of(thing, 4, 0, "quarter")[:3]
    assert frames_of(thing, 3, 0, "quarter") != frames_of(thing, 3, 1, "quarter")
    with pytest.raises(ValueError, match="unknown level 'third' of views; there are quarter, half, many"):
        frames_of(thing, 1, 0, "third")


def test_every_step_has_eight_views_of_each_of_its_things() -> None:
    rows = view_rows(2 * FEW)
    steps = steps_of_views(rows, 0, 5)
    assert steps == steps_of_views(rows, 0, 7)[:5]
    assert steps != steps_of_views(rows, 1, 5)
    for step in steps:
        assert len(set(step)) == len(step) == THINGS_PER_STEP * ROWS_PER_THING
        shown = Counter(each["object_id"] for place in step for each in rows[place]["objects"])
        shown.update(each["object_id"] for place in step for each in rows[place]["contrast_objects"])
        assert list(shown.values()) == [VIEWS_PER_THING] * THINGS_PER_STEP
    with pytest.raises(ValueError, match=f"has {THINGS_PER_STEP} things, and the rows 2: take {FEW} or more"):
        steps_of_views(view_rows(8), 0, 1)
    rows = view_rows(2 * FEW, level="many")
    for step in steps_of_views(rows, 0, 5, "many"):
        shown = Counter(rows[place]["objects"][0]["object_id"] for place in step)
        assert list(shown.values()) == [MOST_VIEWS // 2] * (len(step) // (MOST_VIEWS // 2))
        assert len(shown) == 4


def test_the_rows_of_a_run_are_its_steps_whatever_the_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(region_run, "NUM_REPLAY", 24)
    runs = [Run("views", "quarter", arm, rate, 0, 2, 2 * FEW) for arm, rate in ((CONTROL, 1e-3), (WORST, 4e-3))]
    (one, per_step), (other, _) = (region_run.training_data(run) for run in runs)
    assert one["id"] == other["id"]
    assert len(one) == 2 * per_step
    own = THINGS_PER_STEP * ROWS_PER_THING
    rows = view_rows(2 * FEW)
    for number, step in enumerate(steps_of_views(rows, 0, 2)):
        start = number * per_step
        assert one["id"][start : start + own] == [rows[place]["id"] for place in step]
        assert one["source"][start : start + per_step] == ["pairs"] * own + ["replay"] * (per_step - own)


def signals_of(rows: list[dict[str, Any]], features: torch.Tensor) -> Signals:
    """(2 B, d) features of the pictures of B rows, all first pictures before all second ones."""
    values, told = {}, {}
    for place, (column, name) in enumerate((("image", "objects"), ("contrast_image", "contrast_objects"))):
        objects = [row[name][0] for row in rows]
        own = tuple(range(len(rows)))
        told[column] = Regions(
            own,
            (0,) * len(rows),
            tuple(tuple(each["box"]) for each in objects),
            tuple(each["object_id"] for each in objects),
            tuple(each["text"] for each in objects),
            ("",) * len(rows),
        )
        part = features[place * len(rows) : (place + 1) * len(rows)]
        values[f"regions:{column}"] = Ragged(part, torch.tensor(own))
    return Signals({}, {}, features=values, sources=("pairs",) * len(rows), regions=told)


def test_arms_contrast_the_views_of_a_row_and_pull_those_of_all_rows() -> None:
    rows = view_rows(2 * FEW)
    step = [rows[place] for place in steps_of_views(rows, 0, 1)[0]]
    names = [row["objects"][0]["object_id"] for row in step]
    features = torch.randn(2 * len(step), 6, generator=torch.Generator().manual_seed(0))
    signals = signals_of(step, features)
    parts = {arm: [part.objective for part in built(arm)] for arm in TASKS["views"].arms}
    assert [len(found) for found in parts.values()] == [2, 3, 4, 4, 3, 4, 4]

    contrast = next(each for each in parts[VIEWS] if isinstance(each, RegionContrast))
    positive, negative = contrast.pairs(signals.regions, "cpu")
    for one in range(len(positive)):
        for other in range(len(positive)):
            same_row, same_thing = (
                one % len(step) == other % len(step),
                names[one % len(step)] == names[other % len(step)],
            )
            assert bool(positive[one, other]) == (same_row and one != other)
            assert bool(negative[one, other]) == (not same_thing)

    pulled = dict.fromkeys((PULLED, NAMED_PULLED), VIEWS_PER_THING) | dict.fromkeys((WORST, NAMED_WORST), OUTLIERS)
    for arm, most in pulled.items():
        pull = next(each for each in parts[arm] if isinstance(each, ViewCentroid))
        (term,) = pull(signals, None).terms
        assert int(term.count) == most * THINGS_PER_STEP
        assert 0 < OUTLIERS < VIEWS_PER_THING
    assert {part.weight for arm in TASKS["views"].arms for part in built(arm)} == {1.0}


def built(arm: str) -> Any:
    objective: Any = objective_from(objective_of("views", arm))
    return objective.parts


def test_worst_views_are_those_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    canonical = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    views = canonical[:, None] + 0.9 * torch.randn(5, 6, 4, generator=generator, dtype=torch.float64)
    parts = parts_of(*own_and_found(views, canonical), [f"thing {number}" for number in range(5)])
    mean, third, worst = [], [], []
    unit = [np.array(each) / np.linalg.norm(each) for each in canonical.tolist()]
    for thing, own in enumerate(views.tolist()):
        cosines = [[float(np.dot(view, other) / np.linalg.norm(view)) for other in unit] for view in own]
        right = [float(np.argmax(each) == thing) for each in cosines]
        order = sorted(range(6), key=lambda number: cosines[number][thing])
        mean += right
        third += [right[number] for number in order[:2]]
        worst.append(float(all(right)))
    assert parts["mean_view"].values == mean
    assert parts["worst_third"].values == third
    assert parts["worst_view"].values == worst
    assert 0 < sum(third) / len(third) < sum(mean) / len(mean) < 1
    assert parts["worst_third"].clusters == [f"thing {number}" for number in range(5) for _ in range(2)]
    # Where all is the same nothing is found.
    assert not own_and_found(torch.ones(3, 2, 4), torch.ones(3, 4))[1].any()


def test_a_view_is_the_mean_of_the_tokens_that_its_box_covers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_evaluation, "NUM_THINGS", 4)
    monkeypatch.setattr(view_evaluation, "NUM_VIEWS", 3)
    model, processor = load_model("demo-base", device="cpu")

    def vector(frame: Any) -> Any:
        picture, (told,) = picture_of(frame)
        pixels = processor.image_processor(picture, return_tensors="pt")["pixel_values"]
        grids = family_of(model).token_grids(
            {"pixel_values": pixels}, picture.size, processor.image_processor, model.config
        )
        tokens = model.get_image_features(pixel_values=pixels).pooler_output[0].detach().double()
        weights = box_weights(torch.tensor([told["box"]], dtype=torch.float64), grids, len(tokens))[0].double()
        return weights @ tokens / weights.sum()

    things = things_of("validation")[:4]
    canonical = torch.stack([vector(canonical_frame(thing)) for thing in things])
    views = torch.stack(
        [torch.stack([vector(frame) for frame in frames_of(thing, 3, 0, "quarter")]) for thing in things]
    )
    wanted = parts_of(*own_and_found(views, canonical), [thing.name for thing in things])
    assert retrieval_parts(model, processor, "validation", "quarter") == wanted


def test_what_is_asked_of_a_view_has_one_right_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_evaluation, "NUM_THINGS", 2)
    items = colour_items("test", "quarter")
    assert [item.answer for item in items[::12]] == [thing.colour for thing in things_of("test")[:2]]
    assert len({item.id for item in items}) == 24
    assert len({item.cluster for item in items}) == 2


@pytest.mark.slow
def test_from_training_to_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(region_run, "NUM_REPLAY", 24)
    monkeypatch.setattr(view_evaluation, "NUM_THINGS", 4)
    for name in ("NUM_SCENES", "NUM_PAIRS", "NUM_POLLS"):
        monkeypatch.setattr(evaluation, name, 4)
    evaluation.test_items.cache_clear()
    run = Run("views", "quarter", WORST, LEARNING_RATES[0], 0, 2, FEW)
    found = region_run.carry_out(run, tmp_path / "cache", "cpu")
    evaluation.test_items.cache_clear()
    assert 0 <= found["validation"] <= 1
    sizes = {name: len(part["values"]) for name, part in found["test"].items() if "world/" not in name}
    assert sizes == {"mean_view": 48, "worst_third": 16, "worst_view": 4, "colour": 48}
    assert "retrieval" not in found["test"]
    records = Records(tmp_path / "runs.jsonl", Run)
    for arm in TASKS["views"].arms:
        for seed in SEEDS:
            records.add({**found, "run": run._replace(arm=arm, seed=seed)._asdict()})
    names = [line.split("|")[1].strip() for line in table(records, "views", "quarter", 2, FEW).splitlines()[2:]]
    task = TASKS["views"]
    to_control = [f"{arm} - {CONTROL}" for arm in task.arms if arm != CONTROL]
    assert names == [*task.arms, *to_control, *(f"{one} - {other}" for one, other in task.compared)]
    assert region_evaluation.KEPT[0] in "".join(found["test"])
