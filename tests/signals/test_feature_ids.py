"""What entries of features read, as numbers: equal for the same image, the same text, and for nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mllm_align.contract import Batch, Feature, Needs
from mllm_align.data.collator import AlignCollator
from mllm_align.families import family_of
from mllm_align.objectives import InfoNCE
from mllm_align.signals import EngineOptions, Replay, measure
from mllm_align.signals.features import feature_ids
from mllm_align.trainers.window import term_counts, zero_signals
from runs import picture
from tiny import tiny

ASK, READ = "Describe the picture in one word.", "Describe the text in one word."
IMAGE = Feature("image", "embedding", "image", pooling="last", prompt=ASK)
TEXT = Feature("text", "embedding", "caption", pooling="last", prompt=READ)
FALSE = Feature("false", "embedding", "negatives", pooling="last", prompt=READ, several=True)
OTHER = TEXT._replace(name="other", prompt="What is it?")
EVERY = TEXT._replace(name="every", pooling="tokens")
PLAIN = Feature("plain", "projector", "image")
TOKENS = PLAIN._replace(name="tokens", pooling="tokens")
SAID = Feature("said", "text", "chosen", pooling="last")
FEATURES = (IMAGE, TEXT, FALSE, OTHER, EVERY, PLAIN, TOKENS, SAID)


def row(image: Any, caption: str, negatives: list[str], prompt: str = "What is it?") -> dict[str, Any]:
    return {"image": image, "caption": caption, "negatives": negatives, "prompt": prompt, "chosen": "A star."}


def rows() -> list[dict[str, Any]]:
    """Rows 0 and 1 have one image, 1 and 2 one caption; what row 3 lists is the caption of row 0."""
    return [
        row(picture(0), "a red disc", ["a star", "a blue disc"]),
        row(picture(0), "two stars", []),
        row(picture(1), "two stars", [], prompt="How many are there?"),
        row(picture(2), "nothing", ["a red disc"]),
    ]


def collated(model: Any, processor: Any, given: list[dict[str, Any]], features: Any = FEATURES) -> Batch:
    family = family_of(model)
    make = AlignCollator(processor, lambda _: Needs(features=features), family.image_keys, family.token_keys)
    return make(given)["batch"]


def partition(numbers: Any) -> list[int]:
    """Which entries are equal, as the first of them."""
    return [list(numbers).index(number) for number in numbers]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_they_are_equal_where_the_same_was_read(family: str) -> None:
    model, processor = tiny(family)
    batch = collated(model, processor, rows())
    with torch.no_grad():
        measured, _ = measure(model, batch, features=FEATURES, scored=(), options=EngineOptions())
    ids = measured.host_feature_ids
    assert partition(ids["image"]) == partition(ids["plain"]) == [0, 0, 2, 3]
    assert partition(ids["text"]) == partition(ids["other"]) == [0, 1, 1, 3]
    assert not set(ids["text"]) & set(ids["other"])
    assert ids["false"][2] == ids["text"][0]
    assert len({*ids["false"], *ids["text"]}) == 5
    # The same answer to another question is another reading.
    assert partition(ids["said"]) == [0, 0, 2, 0]
    assert set(ids["every"]) == set(ids["text"])
    assert set(ids["tokens"]) == set(ids["plain"])
    for name, own in ids.items():
        assert len(own) == len(measured.host_feature_rows[name])
        assert all(-(2**63) <= number < 2**63 and number for number in own)
    by_row = dict(zip(measured.host_feature_rows["text"], ids["text"], strict=True))
    assert [by_row[place] for place in measured.host_feature_rows["every"]] == list(ids["every"])


def test_zeros_and_a_replay_have_those_of_what_is_measured() -> None:
    model, processor = tiny("llava")
    batch = collated(model, processor, rows())
    with torch.no_grad():
        measured, _ = measure(model, batch, features=FEATURES, scored=())
    again = Replay(model, batch, features=FEATURES, scored=()).policy
    zeros = zero_signals(batch, features=FEATURES, scored=())
    assert measured.host_feature_ids.keys() == {feature.name for feature in FEATURES}
    assert dict(measured.host_feature_ids) == dict(again.host_feature_ids) == dict(zeros.host_feature_ids)
    picked = measured.select([3, 0])
    assert list(picked.host_feature_ids["false"]) == [measured.host_feature_ids["false"][place] for place in (2, 0, 1)]


def test_of_images_without_ids_nothing_is_known() -> None:
    model, processor = tiny("llava")
    batch = replace(collated(model, processor, rows()), image_ids=())
    assert feature_ids(batch, IMAGE) == feature_ids(batch, PLAIN) == [0] * 4
    assert partition(feature_ids(batch, TEXT)) == [0, 1, 1, 3]
    regions = Feature("regions", "projector", "image", pooling="regions")
    assert feature_ids(batch, regions) is None


def gradients(given: list[dict[str, Any]], **options: Any) -> tuple[float, float]:
    """The loss of a contrast through the model, and the largest gradient of any weight."""
    model, processor = tiny("llava")
    model.requires_grad_(True).zero_grad()
    objective = InfoNCE(text="caption", image_prompt=ASK, text_prompt=READ, negatives=True, **options)
    features = objective.needs.features
    batch = collated(model, processor, given, features)
    signals, _ = measure(model, batch, features=features, scored=())
    outcome = objective(signals, None)
    assert term_counts(objective, batch)["info_nce"] == outcome.terms[0].count == len(given)
    outcome.loss.backward()
    found = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    model.zero_grad()
    return outcome.loss.item(), found


@pytest.mark.parametrize("tile", [None, 1])
def test_such_pairs_send_no_gradient(tile: int | None) -> None:
    """Two rows with nothing else to be told from: of either kind and of both, a listed text among them."""
    one, other = picture(0), picture(1)
    for pair in (
        [row(one, "a red disc", []), row(other, "a red disc", [])],
        [row(one, "a red disc", []), row(one, "two stars", [])],
        [row(one, "a red disc", ["two stars"]), row(one, "two stars", ["a red disc"])],
        [row(one, "a red disc", ["a red disc"]), row(other, "a red disc", [])],
    ):
        assert gradients(pair, tile=tile) == (0.0, 0.0)
    for pair in (
        [row(one, "a red disc", []), row(other, "two stars", [])],
        [row(one, "a red disc", ["a star"]), row(one, "two stars", [])],
        [row(one, "a red disc", ["two stars"]), row(other, "two stars", [])],
    ):
        loss, largest = gradients(pair, tile=tile)
        assert loss > 0.01
        assert largest > 1e-6
