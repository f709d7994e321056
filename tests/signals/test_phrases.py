"""What regions are called: the last state of each text in a plain run without an image, once per distinct text."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from PIL import Image

from batches import prompt_inputs
from mllm_align.contract import Batch, Feature, Needs, View
from mllm_align.data import collator as collating
from mllm_align.data.check import check_dataset
from mllm_align.data.collator import AlignCollator
from mllm_align.data.encode import REGION_PROMPT
from mllm_align.data.errors import DataError
from mllm_align.data.transport import few_storages
from mllm_align.families import family_of
from mllm_align.signals import EngineOptions, Replay, measure
from mllm_align.signals.features import check_features
from mllm_align.trainers.window import count_tokens, zero_signals
from mllm_align.vision import RegionWeights
from tiny import FAMILIES, tiny

TEXTS = Feature("texts", "text", "image", pooling="regions")
NEEDS = Needs(
    views=(View("image", "chosen"),), features=(TEXTS, Feature("regions", "projector", "image", None, "regions"))
)
BOXES = ([0.3, 0.3, 0.55, 0.8], [0.1, 0.2, 0.6, 0.6], [0.4, 0.2, 0.9, 0.7])


def collator_of(model: Any, processor: Any, needs: Needs = NEEDS, **options: Any) -> AlignCollator:
    family = family_of(model)
    weights = RegionWeights(family, processor.image_processor, model.config)
    return AlignCollator(
        processor, lambda _: needs, family.image_keys, family.token_keys, region_weights=weights, **options
    )


def rows(pictures: list[Any]) -> list[dict[str, Any]]:
    """Four texts in two rows, one of them twice and one of a region that lies outside; and a region without any."""
    names = (("a small red disc", "a star", ""), ("a star", "the larger of two blue squares", "two"))
    return [
        {
            "image": pictures[number],
            "prompt": "What is it?",
            "chosen": "A red disc.",
            "objects": [
                {"box": box, "text": name} if name else {"box": box} for box, name in zip(BOXES, own, strict=True)
            ]
            + [{"box": [1.2, 0.2, 1.4, 0.7], "text": "nowhere"}],
        }
        for number, own in enumerate(names)
    ]


def alone(model: Any, processor: Any, batch: Batch, text: str) -> torch.Tensor:
    """The last state over a text, from a plain run of the model over the question and the text."""
    inputs = prompt_inputs(processor, REGION_PROMPT, [])
    number = batch.region_phrases["image"][batch.regions["image"].texts.index(text)]
    phrase = batch.phrases[number]
    assert torch.equal(batch.prefixes[phrase.prefix].input_ids, inputs["input_ids"][0])
    assert processor.tokenizer.decode(phrase.token_ids[:-1]).strip() == text
    ids = phrase.token_ids[None, :-1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    for key in family_of(model).token_keys:
        fill = family_of(model).response_values.get(key, 0)
        inputs[key] = torch.nn.functional.pad(inputs[key], (0, ids.shape[1]), value=fill)
    return model.model(**inputs).last_hidden_state[0, -1]


@pytest.mark.parametrize("name", FAMILIES)
def test_they_are_those_of_plain_runs(name: str, pictures: list[Any]) -> None:
    model, processor = tiny(name)
    batch = collator_of(model, processor)(rows(pictures))["batch"]
    told = batch.regions["image"]
    assert told.texts == ("a small red disc", "a star", "", "a star", "the larger of two blue squares", "two")
    assert len(batch.phrases) == 5
    assert batch.region_phrases["image"][1] == batch.region_phrases["image"][3]
    with torch.no_grad():
        found = {
            packing: measure(model, batch, features=NEEDS.features, options=EngineOptions(packing=packing))[0]
            for packing in ("auto", "off")
        }
        for signals in found.values():
            texts = signals.features["texts"]
            assert texts.row.tolist() == list(told.row) == list(signals.host_feature_rows["texts"])
            assert not texts.values[2].any()
            for number, text in enumerate(told.texts):
                if text:
                    expected = alone(model, processor, batch, text)
                    torch.testing.assert_close(texts.values[number], expected, atol=1e-4, rtol=0)


def test_another_image_changes_nothing(pictures: list[Any]) -> None:
    model, processor = tiny("qwen2_5_vl")
    collate = collator_of(model, processor)
    changed = [row | {"image": Image.new("RGB", row["image"].size, "red")} for row in rows(pictures)]
    with torch.no_grad():
        one, other = (
            measure(model, collate(each)["batch"], features=NEEDS.features)[0].features
            for each in (rows(pictures), changed)
        )
    assert torch.equal(one["texts"].values, other["texts"].values)
    assert not torch.equal(one["regions"].values, other["regions"].values)


@pytest.mark.parametrize("name", ["llava", "paligemma", "qwen3_vl"])
def test_negatives_are_entries_of_their_own(name: str, pictures: list[Any]) -> None:
    model, processor = tiny(name)
    negatives = Feature("negatives", "text", "image", pooling="negatives")
    needs = Needs(features=(*NEEDS.features, negatives))
    given = rows(pictures)
    given[0]["objects"][0]["negatives"] = ["a star", "a large red disc"]
    given[0]["objects"][3]["negatives"] = ["of what lies outside"]
    given[1]["objects"][2]["negatives"] = ["three"]
    batch = collator_of(model, processor, needs)(given)["batch"]
    assert batch.regions["image"].negatives == (("a star", "a large red disc"), (), (), (), (), ("three",))
    assert len(batch.phrases) == 8
    with torch.no_grad():
        signals, _ = measure(model, batch, features=needs.features)
        found = signals.features["negatives"]
        assert found.row.tolist() == list(signals.host_feature_rows["negatives"]) == [0, 0, 1]
        # The first is what other regions are called.
        torch.testing.assert_close(found.values[0], signals.features["texts"].values[1])
        plain = rows(pictures)
        for place, text in enumerate(("a large red disc", "three")):
            plain[place]["objects"][0]["text"] = text
        other = collator_of(model, processor)(plain)["batch"]
        for number, text in ((1, "a large red disc"), (2, "three")):
            torch.testing.assert_close(found.values[number], alone(model, processor, other, text), atol=1e-4, rtol=0)
    zeros = zero_signals(batch, features=needs.features, width=3)
    assert zeros.features["negatives"].row.tolist() == [0, 0, 1]
    last = signals.select([1])
    assert last.regions["image"].negatives == ((), (), ("three",))
    torch.testing.assert_close(last.features["negatives"].values, found.values[2:])
    # Whoever asks for texts alone is not given more to read.
    assert len(collator_of(model, processor)(given)["batch"].phrases) == 5


@pytest.mark.parametrize("name", ["llava", "paligemma", "qwen2_5_vl"])
def test_tokens_of_regions_and_all_states_of_their_texts(name: str, pictures: list[Any]) -> None:
    model, processor = tiny(name)
    seen = Feature("seen", "projector", "image", pooling="region_tokens")
    said = Feature("said", "text", "image", pooling="region_tokens")
    same = Feature("same", "text", "image", pooling="positives")
    needs = Needs(features=(*NEEDS.features, seen, said, same))
    given = rows(pictures)
    given[0]["objects"][1]["positives"] = ["a star", "three"]
    batch = collator_of(model, processor, needs)(given)["batch"]
    told = batch.regions["image"]
    with torch.no_grad():
        signals, _ = measure(model, batch, features=needs.features)
        encoded = family_of(model).encode_images(model, batch.images)
    assert batch.row_images is not None
    start = 0
    for number, weights in enumerate(batch.region_weights["image"]):
        place = batch.row_images["image"][told.row[number]][told.image[number]]
        expected = encoded.tokens[place][: len(weights)][weights > 0].float()
        found = signals.features["seen"].values[start : start + len(expected)]
        torch.testing.assert_close(found, expected)
        assert told.num_tokens[number] == len(expected)
        start += len(expected)
    assert start == len(signals.features["seen"].values)
    # The last state of each text is the one that is read where one is wanted; before it as many as there are tokens.
    ends = torch.tensor(told.num_words).cumsum(0)
    phrases = batch.region_phrases["image"]
    counts = [batch.phrases[phrase].token_ids.numel() - 1 if phrase >= 0 else 0 for phrase in phrases]
    assert list(told.num_words) == counts
    named = [number for number, text in enumerate(told.texts) if text]
    every = signals.features["said"].values
    torch.testing.assert_close(every[ends[named] - 1], signals.features["texts"].values[named])
    # Two texts begin alike, so their first states are the same ones.
    first = [int(ends[n]) - told.num_words[n] for n in (1, 3)]
    one, other = (signals.features["said"].values[place : place + told.num_words[1]] for place in first)
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(signals.features["same"].values[0], signals.features["texts"].values[1])
    assert signals.features["same"].row.tolist() == [0, 0]
    zeros = zero_signals(batch, features=needs.features, width=3)
    for feature in needs.features:
        assert zeros.features[feature.name].row.tolist() == signals.features[feature.name].row.tolist()
    last = signals.select([1])
    assert last.regions["image"].num_tokens == told.num_tokens[3:]
    torch.testing.assert_close(last.features["said"].values, signals.features["said"].values[int(ends[2]) :])


def test_rows_of_a_source_that_asks_for_less(pictures: list[Any]) -> None:
    """Alone in a batch they have no such entries, beside others they have; what is told of regions is as long."""
    model, processor = tiny("llava")
    seen = Feature("seen", "projector", "image", pooling="region_tokens")
    said = Feature("said", "text", "image", pooling="region_tokens")
    less = Needs(features=NEEDS.features[1:])
    family = family_of(model)
    collate = AlignCollator(
        processor,
        lambda source: Needs(features=(seen, said)) if source == "more" else less,
        family.image_keys,
        family.token_keys,
        region_weights=RegionWeights(family, processor.image_processor, model.config),
    )
    features = (*less.features, seen, said)
    one, other = rows(pictures)
    for given, there in (([one], ()), ([one, other | {"source": "more"}], ("seen", "said"))):
        batch = collate(given)["batch"]
        told = batch.regions["image"]
        with torch.no_grad():
            signals, _ = measure(model, batch, features=features)
        zeros = zero_signals(batch, features=features, width=3)
        assert set(signals.features) == set(zeros.features) == {"regions", *there}
        assert len(told.num_tokens) == len(told.num_words) == len(told)
        assert any(told.num_words) == bool(there)
    own = signals.select([1])
    assert len(own.features["seen"].values) == sum(own.regions["image"].num_tokens)
    assert len(own.features["said"].values) == sum(own.regions["image"].num_words)
    # From a worker process each storage is an open file.
    moved = few_storages(batch)
    indices = [*moved.region_tokens["image"], *(phrase.token_ids for phrase in moved.phrases)]
    assert len({index.untyped_storage().data_ptr() for index in indices}) == 1
    for index, expected in zip(moved.region_tokens["image"], batch.region_tokens["image"], strict=True):
        assert torch.equal(index, expected)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


@pytest.mark.parametrize("way", ["plain", "recomputed", "replayed"])
def test_gradients_are_those_of_plain_runs(way: str, pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    batch = collator_of(model, processor)(rows(pictures))["batch"]
    weights = torch.randn(6, model.config.get_text_config().hidden_size, generator=torch.Generator().manual_seed(2))
    naive, own = (copy.deepcopy(model).requires_grad_(True) for _ in range(2))
    texts = batch.regions["image"].texts
    states = [alone(naive, processor, batch, text) @ weights[n] for n, text in enumerate(texts) if text]
    torch.stack(states).square().sum().backward()

    def loss(signals: Any) -> torch.Tensor:
        return (signals.features["texts"].values * weights).sum(1).square().sum()

    if way == "replayed":
        replay = Replay(own, batch, features=NEEDS.features, options=EngineOptions(max_tokens_per_forward=1))
        loss(replay.policy).backward()
        for again in replay.passes():
            again().backward()
    else:
        options = EngineOptions(recompute_without_image=way == "recomputed")
        loss(measure(own, batch, features=NEEDS.features, options=options)[0]).backward()
    expected, found = gradients(naive), gradients(own)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=2e-4, rtol=2e-3, msg=name)


def test_many_phrases_are_spread_over_prefixes(pictures: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny("llava")
    collate = collator_of(model, processor)
    with torch.no_grad():
        whole = measure(model, collate(rows(pictures))["batch"], features=NEEDS.features)[0]
        monkeypatch.setattr(collating, "PHRASES_PER_PREFIX", 2)
        batch = collate(rows(pictures))["batch"]
        spread = measure(model, batch, features=NEEDS.features)[0]
    assert [phrase.prefix for phrase in batch.phrases] == [1, 1, 2, 2, 4]
    torch.testing.assert_close(spread.features["texts"].values, whole.features["texts"].values, atol=1e-4, rtol=0)


def test_counting_before_measuring(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    collate = collator_of(model, processor)
    batch = collate(rows(pictures))["batch"]
    zeros = zero_signals(batch, features=NEEDS.features, width=3)
    assert zeros.features["texts"].row.tolist() == [0, 0, 0, 1, 1, 1]
    assert zeros.regions["image"].texts == batch.regions["image"].texts
    assert count_tokens(batch) - count_tokens(dataclasses.replace(batch, phrases=())) == sum(
        phrase.token_ids.numel() for phrase in batch.phrases
    )


def test_no_region_may_have_a_text(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    bare = [row | {"objects": [{"box": BOXES[0]}]} for row in rows(pictures)]
    batch = collator_of(model, processor)(bare)["batch"]
    with torch.no_grad():
        found = measure(model, batch, features=NEEDS.features)[0].features
    assert found["texts"].values.shape == found["regions"].values.shape
    assert not found["texts"].values.any()
    none = collator_of(model, processor)([row | {"objects": []} for row in bare])["batch"]
    with torch.no_grad():
        assert measure(model, none, features=NEEDS.features)[0].features == {}


def test_what_cannot_be_read_is_said(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    row = rows(pictures)[0]
    with pytest.raises(DataError, match=r"text of an object: the response holds the image token"):
        collator_of(model, processor)([row | {"objects": [{"box": BOXES[0], "text": "an <image>"}]}])
    long = row | {"objects": [{"box": BOXES[0], "text": "a red disc " * 60}]}
    short = Needs(features=NEEDS.features)
    with pytest.raises(DataError, match=r"view objects\|no_image has .* more than max_length=100"):
        check_dataset([long], collator_of(model, processor, short, max_length=100), progress=False)
    (phrase,) = collator_of(model, processor, short, max_length=100, on_overflow="truncate")([long])["batch"].phrases
    assert phrase.token_ids.numel() + prompt_inputs(processor, REGION_PROMPT, [])["input_ids"].shape[1] == 100
    with pytest.raises(ValueError, match="regions are on images, column 'chosen' is none"):
        check_features([Feature("x", "text", "chosen", pooling="regions")])
