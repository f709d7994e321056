"""Embedding features through collator and engine against the processor and the model called by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor

from batches import processed
from mllm_align.contract import Batch, Feature, Needs, View
from mllm_align.data.collator import AlignCollator
from mllm_align.data.errors import DataError
from mllm_align.families import family_of
from mllm_align.signals import AdaptersOff, EngineOptions, Replay, measure
from mllm_align.signals.plan import plan_groups
from runs import lora
from tiny import FAMILIES, tiny

ASK_IMAGE, ASK_TEXT = "Describe the picture in one word.", "Describe the text in one word."
OWN = View("image", "chosen")
IMAGE = Feature("image", "embedding", "image", pooling="last", prompt=ASK_IMAGE)
TEXT = Feature("text", "embedding", "caption", pooling="last", prompt=ASK_TEXT)
FALSE = Feature("false", "embedding", "negatives", pooling="mean", prompt=ASK_TEXT, several=True)
WHOLE = Feature("whole", "embedding", "prompt", pooling="last")
LOWER = TEXT._replace(name="lower", layer=0.5)
FEATURES = (IMAGE, TEXT, FALSE, WHOLE, LOWER, TEXT._replace(name="first", layer=0))


def collated(model: Any, processor: Any, rows: list[dict[str, Any]], needs: Needs, **options: Any) -> Batch:
    family = family_of(model)
    make = AlignCollator(processor, lambda _: needs, family.image_keys, family.token_keys, **options)
    return make(rows)["batch"]


def rows_of(pictures: list[Any]) -> list[dict[str, Any]]:
    return [
        {
            "image": pictures[0],
            "prompt": ASK_IMAGE,
            "caption": "a small red circle",
            "negatives": ["a large blue square above it", "a star"],
            "chosen": "There is a small red circle left of the large square.",
        },
        {"image": pictures[1], "prompt": "What is it?", "caption": "two stars", "negatives": []},
        {"image": pictures[1], "prompt": "What is it?", "chosen": "It is a star.", "negatives": ["a black circle"]},
    ]


def states(model: Any, processor: Any, parts: list[dict[str, Any]], images: list[Any]) -> tuple[Tensor, ...]:
    """(P, d) hidden states of each depth over a user's turn with the generation prompt."""
    chat = [{"role": "user", "content": parts}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    with torch.no_grad():
        bos = processor.tokenizer.bos_token
        inputs = processed(processor, text, images, add_special_tokens=bos is None or not text.startswith(bos))
        output = model(**inputs, output_hidden_states=True)
    return tuple(each[0] for each in output.hidden_states)


def said(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


@pytest.mark.parametrize("packing", ["auto", "off"])
@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_states_of_plain_calls(family: str, packing: str, pictures: list[Any]) -> None:
    model, processor = tiny(family)
    rows = rows_of(pictures)
    batch = collated(model, processor, rows, Needs(optional=(OWN,), features=FEATURES))
    with torch.no_grad():
        options = EngineOptions(packing=packing)
        signals, _ = measure(model, batch, features=FEATURES, scored=(OWN,), options=options)
    found = signals.features
    assert found["image"].row.tolist() == found["whole"].row.tolist() == [0, 1, 2]
    assert found["text"].row.tolist() == [0, 1]
    assert found["false"].row.tolist() == [0, 0, 2]
    assert signals.num_tokens[OWN].tolist()[1] == 0
    assert all(count.sum() == 0 for view, count in signals.num_tokens.items() if view != OWN)
    for place, row in enumerate(rows):
        shown = [{"type": "image"}]
        near(found["image"].values[place], states(model, processor, [*shown, said(ASK_IMAGE)], [row["image"]])[-1][-1])
        near(
            found["whole"].values[place],
            states(model, processor, [*shown, said(row["prompt"])], [row["image"]])[-1][-1],
        )
    for place in range(2):
        every = states(model, processor, [said(f"{rows[place]['caption']}\n{ASK_TEXT}")], [])
        near(found["text"].values[place], every[-1][-1])
        near(found["lower"].values[place], every[round(0.5 * (len(every) - 1))][-1])
        near(found["first"].values[place], every[0][-1])
    texts = ["a large blue square above it", "a star", "a black circle"]
    for place, text in enumerate(texts):
        near(found["false"].values[place], states(model, processor, [said(f"{text}\n{ASK_TEXT}")], [])[-1].mean(0))


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_summary_and_caption_behind_it_are_one_sequence(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    batch = collated(model, processor, rows_of(pictures)[:1], Needs(optional=(OWN,), features=(IMAGE, TEXT)))
    assert len(batch.prefixes) == 2
    summary, caption = (next(b for b in batch.branches if b.view == view) for view in (IMAGE.view, OWN))
    assert summary.prefix == caption.prefix
    assert len(batch.images) == 1


def test_a_text_is_bit_equal_whatever_the_image(pictures: list[Any]) -> None:
    model, processor = tiny("qwen2_5_vl")
    found = []
    for picture in (pictures[0], pictures[0].transpose(0)):
        rows = [{"image": picture, "caption": "a small red circle"}, {"image": picture, "caption": "two stars"}]
        batch = collated(model, processor, rows, Needs(features=(IMAGE, TEXT)))
        with torch.no_grad():
            found.append(measure(model, batch, features=(IMAGE, TEXT), scored=())[0].features)
    assert torch.equal(found[0]["text"].values, found[1]["text"].values)
    assert not torch.equal(found[0]["image"].values, found[1]["image"].values)


@pytest.mark.parametrize("family", ["llava", "gemma3", "idefics3"])
def test_tokens_are_all_of_the_prompt(family: str, pictures: list[Any]) -> None:
    model, processor = tiny(family)
    wanted = tuple(each._replace(pooling="tokens") for each in (IMAGE, TEXT))
    rows = rows_of(pictures)[:2]
    batch = collated(model, processor, rows, Needs(features=wanted))
    with torch.no_grad():
        found = measure(model, batch, features=wanted, scored=())[0].features
    every = [states(model, processor, [{"type": "image"}, said(ASK_IMAGE)], [row["image"]])[-1] for row in rows]
    near(found["image"].values, torch.cat(every))
    assert found["image"].row.tolist() == [row for row, own in enumerate(every) for _ in own]


def test_gradients_are_the_same_cached(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    batch = collated(model, processor, rows_of(pictures), Needs(optional=(OWN,), features=FEATURES))
    torch.manual_seed(0)
    weights = {feature.name: torch.randn(1, 64) for feature in FEATURES}

    def loss(signals: Any) -> Tensor:
        parts = [(signals.features[name].values[:, :64] * weight).sum() for name, weight in weights.items()]
        return torch.stack(parts).sum() + signals.logps[OWN].sum()

    parameters = [p for p in model.parameters() if p.requires_grad]
    signals, _ = measure(model, batch, features=FEATURES, scored=(OWN,))
    plain = torch.autograd.grad(loss(signals), parameters, allow_unused=True)
    small = EngineOptions(max_tokens_per_forward=40, max_images_per_forward=1)
    replay = Replay(model, batch, features=FEATURES, scored=(OWN,), options=small)
    assert len(replay.groups) > 1
    loss(replay.policy).backward()
    for again in replay.passes():
        again().backward()
    for parameter, expected in zip(parameters, plain, strict=True):
        own, parameter.grad = parameter.grad, None
        if expected is not None:
            torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-3)


def test_a_layer_below_which_nothing_trains_needs_no_gradient(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    lower = TEXT._replace(name="lower", layer=1)
    batch = collated(model, processor, rows_of(pictures)[:2], Needs(features=(TEXT, lower)))
    layers = family_of(model).decoder_layers(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".layers.1." in name and "language_model" in name)
    signals, _ = measure(model, batch, features=(TEXT, lower), scored=())
    assert [signals.features[name].values.requires_grad for name in ("text", "lower")] == [True, False]
    # A cut graph, as re-entrant checkpointing leaves one within a layer.
    next(layers[0].parameters()).requires_grad_(True)
    handle = layers[0].register_forward_hook(lambda module, given, output: output.detach())
    with pytest.raises(ValueError, match="of layer 1, through which re-entrant checkpointing sends no gradient"):
        measure(model, batch, features=(TEXT, lower), scored=())
    handle.remove()


def test_the_reference_does_not_read_what_is_for_a_feature_alone(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    rows = rows_of(pictures)[:2]
    needs = Needs(optional=(OWN,), features=(IMAGE, TEXT, WHOLE), reference=True)
    batch = collated(model, processor, rows, needs)
    options = EngineOptions(least_fill=0.0)
    (group,) = plan_groups(
        family_of(model), model, batch, options, reference=True, features=needs.features, scored=(OWN,)
    )
    assert group.reference is not None
    (pack,) = group.reference.inputs.packs
    # Image and instruction, behind which the long text of the first row is.
    assert OWN in {batch.branches[branch].view for branch in pack.branches}
    assert len(group.inputs.packs) == 5
    peft = get_peft_model(model, lora(model))
    signals, reference = measure(peft, batch, reference=AdaptersOff(), features=needs.features, scored=(OWN,))
    with torch.no_grad(), peft.disable_adapter():
        plain, _ = measure(peft, batch, scored=(OWN,))
    assert reference is not None
    torch.testing.assert_close(reference.logps[OWN], plain.logps[OWN])
    assert torch.equal(reference.num_tokens[OWN], signals.num_tokens[OWN])
    none = plan_groups(family_of(model), model, batch, options, reference=True, features=(IMAGE,), scored=())
    assert [each.reference for each in none] == [None]


def test_what_a_row_lacks_is_named(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    row = {"image": pictures[0], "short_caption": "a star"}
    with pytest.raises(DataError, match="no column 'caption', of which feature 'text' is taken"):
        collated(model, processor, [row], Needs(features=(IMAGE, TEXT)))
    with pytest.raises(DataError, match="text 1 of column 'negatives' is empty"):
        collated(model, processor, [{"image": pictures[0], "negatives": ["a", " "]}], Needs(features=(IMAGE, FALSE)))
    with pytest.raises(DataError, match="no column 'caption'"):
        collated(model, processor, [{**row, "prompt": "?"}], Needs(optional=(OWN,), features=(IMAGE, TEXT)))
    with pytest.raises(DataError, match=r"no column 'negatives'.*taken \(an empty list where there is none\)"):
        collated(model, processor, [{**row, "negatives": None}], Needs(features=(IMAGE, FALSE)))
    with pytest.raises(
        DataError, match="column 'caption', of which feature 'text' is taken, holds neither a text nor"
    ):
        collated(model, processor, [{**row, "prompt": "?", "caption": 3}], Needs(features=(IMAGE, TEXT)))
    long = {**row, "prompt": "?", "chosen": "It is a star.", "caption": ["a star", None]}
    with pytest.raises(DataError, match="holds neither a text nor a list of texts"):
        collated(model, processor, [long], Needs(optional=(OWN,), features=(IMAGE, TEXT)))
    wanted = TEXT._replace(pooling="tokens")
    with pytest.raises(DataError, match="column 'caption' holds 2 texts, of which feature 'text' takes one: give"):
        collated(model, processor, [{"caption": ["a star", "two"]}], Needs(features=(wanted,)))


def test_soft_prompts_take_the_place_of_what_they_were_made_of(pictures: list[Any]) -> None:
    model, processor = tiny("llava")
    needs = Needs(optional=(OWN,), features=(IMAGE, TEXT))
    plain = collated(model, processor, rows_of(pictures)[:1], needs)
    other = collated(model, processor, rows_of(pictures)[:1], needs, replace={ASK_IMAGE: "red circle"})
    assert len(other.prefixes) == 2
    ids = [[prefix.input_ids.tolist() for prefix in batch.prefixes] for batch in (plain, other)]
    assert ids[0][0] != ids[1][0]
    assert ids[0][1] == ids[1][1]
