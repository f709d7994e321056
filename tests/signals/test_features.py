"""Features against plain calls of the real model."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from batches import QUESTIONS, make_batch, prompt_inputs
from mllm_align.contract import Feature, View
from mllm_align.families import family_of
from mllm_align.signals import EngineOptions, measure
from mllm_align.signals.features import check_features
from tiny import FAMILIES, tiny

FEATURES = (
    Feature("picture", "projector", "image"),
    Feature("mean", "text", "0", pooling="mean"),
    Feature("last", "text", "1", pooling="last"),
)


@pytest.mark.parametrize("packing", ["auto", "off"])
@pytest.mark.parametrize("family", FAMILIES)
def test_features_equal_those_of_plain_calls(family: str, packing: str, pictures: list[Any]) -> None:
    model, processor = tiny(family)
    batch = make_batch(model, processor, pictures[:3], [((), (3, 5)), ((0, 1), (2,)), ((), (6, 4))], rows=3)
    branches = tuple(
        b._replace(view=View(None, b.view.response)) if not batch.prefixes[b.prefix].images else b
        for b in batch.branches
    )
    batch = dataclasses.replace(batch, branches=branches, row_images={"image": ((0,), (2, 0), ())})
    scored = [view for view in batch.views if view.image is not None]
    with torch.no_grad():
        signals, _ = measure(model, batch, features=FEATURES, scored=scored, options=EngineOptions(packing=packing))
        for branch in branches:
            if batch.prefixes[branch.prefix].images:
                continue
            inputs = prompt_inputs(processor, QUESTIONS[branch.prefix % 3], [])
            count = branch.token_ids.numel()
            inputs["input_ids"] = torch.cat([inputs["input_ids"], branch.token_ids[None]], dim=1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            for key in family_of(model).token_keys:
                fill = family_of(model).response_values.get(key, 0)
                inputs[key] = torch.nn.functional.pad(inputs[key], (0, count), value=fill)
            states = model.model(**inputs).last_hidden_state[0, -count - 1 : -1]
            name, expected = ("mean", states.mean(0)) if branch.view.response == "0" else ("last", states[-1])
            found = signals.features[name]
            mine = found.row.tolist().index(branch.row)
            torch.testing.assert_close(found.values[mine], expected, atol=1e-4, rtol=0)
        encoded = family_of(model).encode_images(model, batch.images)
    picture = signals.features["picture"]
    assert picture.row.tolist() == [0, 1]
    torch.testing.assert_close(picture.values[0], encoded.tokens[0].mean(0), atol=1e-5, rtol=0)
    both = torch.cat([encoded.tokens[2], encoded.tokens[0]]).mean(0)
    torch.testing.assert_close(picture.values[1], both, atol=1e-5, rtol=0)
    assert all(signals.num_tokens[view].sum() == 0 for view in batch.views if view.image is None)
    assert all(signals.num_tokens[view].sum() > 0 for view in scored)


@pytest.mark.parametrize(
    "feature",
    [
        Feature("x", "tower", "image"),
        Feature("x", "projector", "image", layer=3),
        Feature("x", "projector", "image", pooling="max"),
    ],
)
def test_what_is_not_measured_is_refused_by_name(feature: Feature) -> None:
    with pytest.raises(ValueError, match=r"feature 'x'.*is not measured"):
        check_features([feature])


def test_a_batch_that_does_not_tell_whose_its_images_are(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    batch = make_batch(model, processor, pictures[:1], [((0,), (3,))], rows=1)
    with pytest.raises(ValueError, match="'image'"):
        measure(model, batch, features=FEATURES[:1])


def test_no_row_of_a_batch_may_have_the_feature(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    batch = make_batch(model, processor, pictures[:1], [((0,), (3,))], rows=1)
    with torch.no_grad():
        signals, _ = measure(model, dataclasses.replace(batch, row_images={}), features=FEATURES)
    assert signals.features == {}


def test_the_host_knows_the_rows_of_features(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    batch = make_batch(model, processor, pictures[:2], [((), (3, 5)), ((0, 1), (2,)), ((), (6, 4))], rows=3)
    branches = tuple(
        b._replace(view=View(None, b.view.response)) if not batch.prefixes[b.prefix].images else b
        for b in batch.branches
    )
    batch = dataclasses.replace(batch, branches=branches, row_images={"image": ((), (1,), (0,))})
    with torch.no_grad():
        signals, _ = measure(model, batch, features=FEATURES, options=EngineOptions(max_tokens_per_forward=1))
    assert list(signals.host_feature_rows) == list(signals.features)
    for name, rows in signals.host_feature_rows.items():
        assert list(rows) == signals.features[name].row.tolist() == sorted(rows)
    assert signals.host_feature_rows["picture"] == (1, 2)
