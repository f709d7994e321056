"""Features of teachers in a batch: where they come from, where they go, what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mllm_align.contract import Batch, Feature, Needs, Teacher
from mllm_align.data.collator import AlignCollator
from mllm_align.data.transport import few_storages
from mllm_align.families import family_of
from mllm_align.signals import Replay, measure
from mllm_align.signals.features import check_features
from mllm_align.trainers.window import zero_signals
from mllm_align.vision import RegionWeights
from tiny import tiny

TEACHER = Teacher("some/model")
REGIONS = Feature("regions", "projector", "image", pooling="regions")
TAUGHT = Feature("taught", "teacher", "image", pooling="regions", teacher=TEACHER)
WHOLE = Feature("whole", "teacher", "image", teacher=TEACHER)
NEEDS = Needs(features=(REGIONS, TAUGHT, WHOLE))


def ask(feature: Feature, images: Any, objects: Any, where: str) -> torch.Tensor:
    """Of each object its text as a number; of a row how many images it has."""
    if feature.pooling == "mean":
        return torch.full((1, 3), float(len(images)))
    return torch.tensor([[float(each.text)] * 2 for each in objects]).reshape(-1, 2)


def collated(model: Any, processor: Any, pictures: list[Any], **options: Any) -> Batch:
    family = family_of(model)
    weights = RegionWeights(family, processor.image_processor, model.config)
    collate = AlignCollator(
        processor, lambda _: NEEDS, family.image_keys, family.token_keys, region_weights=weights, **options
    )
    box, outside = [0.2, 0.3, 0.6, 0.9], [1.2, 0.1, 1.4, 0.9]
    rows = [
        {"prompt": "?", "image": pictures[0], "objects": [{"box": outside, "text": "1"}, {"box": box, "text": "2"}]},
        {"prompt": "?", "image": pictures[1], "objects": []},
        {
            "prompt": "?",
            "images": [pictures[2], pictures[3]],
            "objects": [{"box": box, "text": "3", "image": 1}, {"box": box, "text": "4"}],
        },
    ]
    return collate(rows)["batch"]


def test_they_belong_to_the_regions_that_are_kept(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    batch = few_storages(collated(model, processor, pictures, ask_teacher=ask))
    assert batch.regions["image"].texts == ("2", "3", "4")
    with torch.no_grad():
        signals, _ = measure(model, batch, features=NEEDS.features)
        replayed = Replay(model, batch, features=NEEDS.features).policy
    zeros = zero_signals(batch, features=NEEDS.features, width=5)
    for found in (signals, replayed):
        assert found.features["taught"].values.tolist() == [[2, 2], [3, 3], [4, 4]]
        assert found.features["whole"].values.tolist() == [[1] * 3, [1] * 3, [2] * 3]
        for name, ragged in found.features.items():
            assert ragged.row.tolist() == zeros.features[name].row.tolist()
            assert found.host_feature_rows[name] == zeros.host_feature_rows[name]
    assert {name: own.values.shape[1] for name, own in zeros.features.items()} == {
        "regions": 5,
        "taught": 2,
        "whole": 3,
    }
    assert not any(own.values.any() for own in zeros.features.values())
    assert signals.select([2]).features["taught"].values.tolist() == [[3, 3], [4, 4]]
    assert [round(share, 4) for share in signals.regions["image"].coverage] == [
        round(float(own.sum()), 4) for own in batch.region_weights["image"]
    ]
    assert replace(batch, teacher_features={}).to("cpu").teacher_features == {}


def test_a_collator_without_teachers(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    with pytest.raises(ValueError, match="feature 'taught' is a teacher's: give the collator ask_teacher"):
        collated(model, processor, pictures)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ((Feature("x", "teacher", "image"),), "feature 'x': a teacher belongs to source 'teacher'"),
        ((Feature("x", "projector", "image", teacher=TEACHER),), "feature 'x': a teacher belongs to source 'teacher'"),
        ((TAUGHT._replace(column="chosen"),), "are on images, column 'chosen' is none"),
        ((WHOLE._replace(column="chosen"),), "feature 'whole': teachers' features are on images, column 'chosen'"),
        ((TAUGHT._replace(pooling="tokens"),), "is not measured"),
        ((TAUGHT, TAUGHT._replace(teacher=Teacher("another"))), "two features are called 'taught'"),
    ],
)
def test_what_no_teacher_can_say(features: tuple[Feature, ...], message: str) -> None:
    with pytest.raises(ValueError, match="feature") as error:
        check_features(features)
    assert message in str(error.value)
