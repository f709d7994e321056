"""Batches against what the processors themselves make of text and images."""

from __future__ import annotations

import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mllm_align.data.collator as collator_module
from batches import processed
from chat import make_processor
from mllm_align.contract import Batch, Needs, View
from mllm_align.data.collator import AlignCollator
from mllm_align.data.errors import DataError
from mllm_align.families import family_of
from tiny import FAMILIES, tiny

OWN, OTHER, NONE = (View(image, "chosen") for image in ("image", "contrast_image", None))
REJECTED = View("image", "rejected")
SVCO = Needs(
    views=tuple(View(i, r) for r in ("chosen", "rejected") for i in ("image", "contrast_image", None)), reference=True
)


def picture(seed: int, size: tuple[int, int] = (60, 40)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def needs_of(needs: Needs) -> Any:
    return {"default": needs}.__getitem__


def make_collator(needs: Needs = SVCO, template: str = "llava", **kwargs: Any) -> AlignCollator:
    return AlignCollator(make_processor(template), needs_of(needs), ("pixel_values",), **kwargs)


def pair(**changes: Any) -> dict[str, Any]:
    row = {
        "image": picture(0),
        "contrast_image": picture(1),
        "prompt": "What is it?",
        "chosen": "red",
        "rejected": "blue",
    }
    return {**row, **changes}


def branch_of(batch: Batch, view: View, row: int = 0) -> Any:
    return next(branch for branch in batch.branches if branch.view == view and branch.row == row)


@pytest.mark.parametrize("family_name", FAMILIES)
@pytest.mark.parametrize("count", [1, 2])
def test_prefixes_are_what_the_processor_makes(family_name: str, count: int, pictures: list[Image.Image]) -> None:
    model, processor = tiny(family_name)
    family = family_of(model)
    collate = AlignCollator(processor, needs_of(SVCO), family.image_keys, family.token_keys)
    row = pair(image=None, images=pictures[:count], contrast_image=pictures[count], contrast_index=0)
    batch = collate([row])["batch"]
    assert len(batch.images) == count + 1
    assert len(batch.prefixes) == 3
    for branch in batch.branches:
        prefix = batch.prefixes[branch.prefix]
        shown = {"image": pictures[:count], "contrast_image": [pictures[count], *pictures[1:count]], None: []}
        images = shown[branch.view.image]
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": "What is it?"}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        bos = processor.tokenizer.bos_token
        own = processed(
            processor,
            text,
            [images] if images else [],
            add_special_tokens=bos is None or not text.startswith(bos),
        )
        assert prefix.input_ids.tolist() == own["input_ids"][0].tolist()
        assert len(prefix.images) == len(images)
        for key in family.token_keys:
            assert prefix.extras[key].tolist() == own[key][0].tolist()
        for image, place in zip(images, prefix.images, strict=True):
            # LLaVA-OneVision cuts an image into tiles only where it is alone: another one beside it tells.
            tells = "batch_num_images" in family.image_keys and len(images) > 1
            shown_with = [image, pictures[3]] if tells else [image]
            alone = processor(text=[processor.image_token * len(shown_with)], images=[shown_with], return_tensors="pt")
            assert set(batch.images[place]) == set(family.image_keys)
            for key in family.image_keys:
                expected = alone[key][:1] if tells else alone[key]
                torch.testing.assert_close(batch.images[place][key], expected, rtol=0, atol=0)
        response = processor.tokenizer.decode(branch.token_ids)
        assert response.strip().startswith("red" if branch.view.response == "chosen" else "blue")
        assert branch.token_ids[-1] == processor.tokenizer.eos_token_id


def test_an_image_alone_and_one_of_several_are_two_where_the_processor_says_so(pictures: list[Image.Image]) -> None:
    for family_name, distinct in (("llava_next", 2), ("llava_onevision", 3)):
        model, processor = tiny(family_name)
        family = family_of(model)
        collate = AlignCollator(processor, needs_of(Needs(views=(OWN,))), family.image_keys)
        row = {"prompt": "What is it?", "chosen": "red"}
        rows = [row | {"image": pictures[0]}, row | {"images": pictures[:2]}, row | {"images": pictures[1::-1]}]
        batch = collate(rows)["batch"]
        assert len(batch.images) == len(set(batch.image_ids)) == distinct
        alone, both, reversed_ = (prefix.images for prefix in batch.prefixes)
        assert both == reversed_[::-1]
        assert (alone[0] in both) == (distinct == 2)
        tokens = family.encode_images(model, batch.images).tokens
        for prefix in batch.prefixes:
            placeholders = (prefix.input_ids == model.config.image_token_id).sum()
            assert sum(len(tokens[place]) for place in prefix.images) == placeholders


def test_views_share_images_and_prefixes_within_a_row() -> None:
    batch = make_collator()([pair()])["batch"]
    assert batch.views == SVCO.views
    assert [branch_of(batch, view).prefix for view in SVCO.views] == [0, 1, 2, 0, 1, 2]
    assert [prefix.images for prefix in batch.prefixes] == [(0,), (1,), ()]
    assert batch.reference_rows == (True,)
    assert batch.num_tokens(OWN).tolist() == [branch_of(batch, OWN).token_ids.numel()]


def test_rows_share_what_is_equal() -> None:
    rows = [pair(), pair(chosen="green"), pair(prompt="Where?"), pair(image=picture(1), contrast_image=picture(0))]
    batch = make_collator()(rows)["batch"]
    assert len(batch) == 4
    assert len(batch.images) == 2
    # Two pictures and none under each of two prompts.
    assert len(batch.prefixes) == 6
    assert branch_of(batch, OWN, 0).prefix == branch_of(batch, OWN, 1).prefix == branch_of(batch, OTHER, 3).prefix
    assert branch_of(batch, OWN, 0).prefix != branch_of(batch, OWN, 2).prefix


def test_every_distinct_image_is_decoded_and_processed_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    path = tmp_path / "a.png"
    picture(0).save(path)
    collate = make_collator()
    seen: Counter[str] = Counter()
    load, process = collator_module.load_image, collate.images.processor.image_processor.preprocess
    monkeypatch.setattr(collator_module, "load_image", lambda *args: seen.update(["decoded"]) or load(*args))
    monkeypatch.setattr(
        collate.images.processor.image_processor,
        "preprocess",
        lambda *args, **kwargs: seen.update(["processed"]) or process(*args, **kwargs),
        raising=False,
    )
    rows = [pair(image=str(path)), pair(image={"bytes": None, "path": str(path)}), pair(image=path, prompt="Where?")]
    assert len(collate(rows)["batch"].images) == 2
    assert seen == {"decoded": 2, "processed": 2}


def test_text_only_rows_have_no_image_in_any_view() -> None:
    needs = Needs(views=(OWN,), optional=(OTHER,))
    batch = make_collator(needs)([{"prompt": "What?", "chosen": "red"}, pair()])["batch"]
    assert batch.prefixes[branch_of(batch, OWN, 0).prefix].images == ()
    assert batch.num_tokens(OTHER).gt(0).tolist() == [False, True]
    assert batch.reference_rows == (False, False)


def test_no_image_view_has_the_same_text_less_the_placeholder() -> None:
    collate = make_collator()
    batch = collate([pair()])["batch"]
    decode = collate.processor.tokenizer.decode
    own, bare = (decode(batch.prefixes[branch_of(batch, view).prefix].input_ids) for view in (OWN, NONE))
    assert own == "<s>USER: <image><image><image><image>\nWhat is it? ASSISTANT:"
    assert bare == "<s>USER: What is it? ASSISTANT:"
    assert torch.equal(branch_of(batch, OWN).token_ids, branch_of(batch, NONE).token_ids)


def test_bos_comes_once_where_the_template_writes_it() -> None:
    for template in ("llama3", "mistral", "llava", "chatml"):
        collate = make_collator(template=template)
        ids = collate([pair()])["batch"].prefixes[0].input_ids.tolist()
        tokenizer = collate.processor.tokenizer
        begins = {tokenizer.bos_token_id, tokenizer.convert_tokens_to_ids("<|begin_of_text|>")}
        # Llama-3's own BOS is another token than this tokenizer's, which is then put in front of it.
        assert sum(token in begins for token in ids) == (2 if template == "llama3" else 1)


def test_sources_have_their_own_needs() -> None:
    needs = {"pairs": SVCO, "instructions": Needs(views=(OWN,))}
    collate = AlignCollator(make_processor(), needs.__getitem__, ("pixel_values",))
    rows = [pair(source="pairs"), {"source": "instructions", "prompt": "What?", "chosen": "red", "image": picture(0)}]
    batch = collate(rows)["batch"]
    assert batch.sources == ("pairs", "instructions")
    assert batch.reference_rows == (True, False)
    assert Counter(branch.row for branch in batch.branches) == {0: 6, 1: 1}
    with pytest.raises(DataError, match="unknown source 'other'"):
        collate([pair(source="other")])
    with pytest.raises(DataError, match="no part of the objective takes rows of source 'default'"):
        AlignCollator(make_processor(), lambda source: Needs(), ("pixel_values",))([pair()])


def test_missing_columns_are_named_with_the_view_that_needs_them() -> None:
    with pytest.raises(DataError, match=r"no column 'rejected', which view rejected\|image scores"):
        make_collator()([pair(rejected=None)])
    with pytest.raises(
        DataError, match=r"no column 'contrast_image', which view chosen\|contrast_image needs; add it"
    ):
        make_collator()([pair(contrast_image=None)])
    with pytest.raises(DataError, match=r"is it 'retrieved_image'\?"):
        make_collator()([pair(contrast_image=None, retrieved_image="x")])
    with pytest.raises(DataError, match="a view's image is 'image', 'contrast_image' or None"):
        make_collator(Needs(views=(View("crop", "chosen"),)))([pair()])


def test_ids_are_the_rows_own_or_made_of_what_it_holds() -> None:
    collate = make_collator()
    rows = [pair(id="a"), pair(), pair(), pair(image=picture(5)), pair(chosen="green")]
    ids = collate(rows)["batch"].row_ids
    assert ids[0] == "a"
    assert ids[1] == ids[2]
    assert len(set(ids)) == 4
    assert collate(rows[3:])["batch"].row_ids == ids[3:]


def lengths(batch: Batch) -> dict[View, int]:
    return {b.view: batch.prefixes[b.prefix].input_ids.numel() + b.token_ids.numel() for b in batch.branches}


def test_too_long_is_an_error_or_a_dropped_row(caplog: pytest.LogCaptureFixture) -> None:
    long = pair(chosen="red " * 30)
    longest = max(lengths(make_collator()([long])["batch"]).values())
    assert len(make_collator(max_length=longest)([long])["batch"]) == 1
    with pytest.raises(DataError, match=rf"view chosen\|image has \d+ prompt and \d+ .*max_length={longest - 1}"):
        make_collator(max_length=longest - 1)([long])
    dropping = make_collator(max_length=longest - 1, on_overflow="drop")
    batch = dropping([pair(id="kept"), long, pair(id="kept, too", prompt="Where?")])["batch"]
    assert batch.row_ids == ("kept", "kept, too")
    assert {branch.row for branch in batch.branches} == {0, 1}
    assert dropping.num_dropped == 1
    assert "1 dropped" in caplog.text
    empty = dropping([long])["batch"]
    assert (len(empty), empty.images, empty.prefixes, empty.branches) == (0, (), (), ())


def test_images_of_dropped_rows_are_dropped_with_them() -> None:
    collate = make_collator(max_length=40, on_overflow="drop")
    batch = collate([pair(image=picture(7), chosen="red " * 60), pair()])["batch"]
    assert len(batch.images) == 2
    assert max(place for prefix in batch.prefixes for place in prefix.images) == 1


def test_truncation_cuts_responses_alone() -> None:
    long = pair(chosen="red " * 30)
    whole = make_collator()([long])["batch"]
    limit = max(prefix.input_ids.numel() for prefix in whole.prefixes) + 3
    cut = make_collator(max_length=limit, on_overflow="truncate")([long])["batch"]
    for before, after in zip(whole.prefixes, cut.prefixes, strict=True):
        assert torch.equal(before.input_ids, after.input_ids)
    for before, after in zip(whole.branches, cut.branches, strict=True):
        room = limit - cut.prefixes[after.prefix].input_ids.numel()
        assert torch.equal(after.token_ids, before.token_ids[:room])
    assert max(lengths(cut).values()) == limit
    with pytest.raises(DataError, match=r"prompt of view .* alone has .* never cut"):
        make_collator(max_length=limit - 3, on_overflow="truncate")([long])


def test_options_are_checked_at_once() -> None:
    with pytest.raises(ValueError, match="on_overflow must be one of error, drop, truncate"):
        make_collator(on_overflow="cut")
    with pytest.raises(ValueError, match="max_length must be at least 1"):
        make_collator(max_length=0)
    with pytest.raises(ValueError, match="CLIPImageProcessorPil has no such option"):
        make_collator(max_pixels=100)
    with pytest.raises(ValueError, match="makes no mm_token_type_ids"):
        AlignCollator(make_processor(), needs_of(SVCO), ("pixel_values",), ("mm_token_type_ids",))([pair()])


def assert_equal(one: Batch, other: Batch) -> None:
    assert (one.sources, one.row_ids, one.reference_rows) == (other.sources, other.row_ids, other.reference_rows)
    for a, b in zip(one.images, other.images, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a.keys() | b.keys())
    for a, b in zip(one.prefixes, other.prefixes, strict=True):
        assert torch.equal(a.input_ids, b.input_ids)
        assert a.images == b.images
    for a, b in zip(one.branches, other.branches, strict=True):
        assert torch.equal(a.token_ids, b.token_ids)
        assert a[:3] == b[:3]


def test_is_picklable_and_deterministic() -> None:
    collate = make_collator(max_length=60)
    rows = [pair(), pair(prompt="Where?", image=picture(4))]
    first = collate(rows)["batch"]
    assert_equal(collate(rows)["batch"], first)
    assert_equal(pickle.loads(pickle.dumps(collate))(rows)["batch"], first)


@pytest.mark.parametrize("workers", [0, 1])
def test_works_in_a_data_loader(workers: int) -> None:
    rows = [pair(id=str(number), image=picture(number)) for number in range(4)]
    loader = torch.utils.data.DataLoader(
        rows,
        batch_size=2,
        collate_fn=make_collator(),
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
    )
    batches = [batch["batch"] for batch in loader]
    assert [batch.row_ids for batch in batches] == [("0", "1"), ("2", "3")]
    assert_equal(batches[1], make_collator()(rows[2:])["batch"])


@pytest.mark.parametrize("family_name", ["qwen2_vl", "llava_next"])
def test_rows_of_trl_give_the_tokens_that_trl_trains_on(family_name: str, pictures: list[Image.Image]) -> None:
    peer = pytest.importorskip("trl.trainer.dpo_trainer", reason="TRL is not installed")
    model, processor = tiny(family_name)
    family = family_of(model)
    needs = Needs(views=(View("image", "chosen"), View("image", "rejected")))
    collate = AlignCollator(processor, needs_of(needs), family.image_keys, family.token_keys)
    row = {
        "images": pictures[:1],
        "prompt": [{"role": "user", "content": "What is it?"}],
        "chosen": [{"role": "assistant", "content": "A red circle."}],
        "rejected": [{"role": "assistant", "content": "A dog."}],
    }
    batch = collate([row])["batch"]
    theirs = peer.DataCollatorForVisionPreference(processor)([dict(row)])
    for number, branch in enumerate(batch.branches):
        kept = theirs["attention_mask"][number].bool()
        scored = theirs["completion_mask"][number][kept].bool()
        ids = theirs["input_ids"][number][kept]
        prompt = batch.prefixes[branch.prefix].input_ids
        # TRL leaves out a BOS that the template does not write, and scores the line break behind the end of the turn.
        bos = [processor.tokenizer.bos_token_id] if family_name == "llava_next" else []
        assert prompt.tolist() == bos + ids[~scored].tolist()
        tail = processor.tokenizer("\n", add_special_tokens=False)["input_ids"] if family_name == "qwen2_vl" else []
        assert branch.token_ids.tolist() + tail == ids[scored].tolist()
    for key in family.image_keys:
        ours = batch.images[0][key]
        torch.testing.assert_close(ours, theirs[key][: len(ours)], rtol=0, atol=0)
