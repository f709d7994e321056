"""A hit costs neither decoding nor processing, and whatever decides the pixels is in the key."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import mllm_align.data.collator as collator_module
from mllm_align.contract import Batch, Needs, View
from mllm_align.data.collator import AlignCollator
from mllm_align.families import family_of
from tiny import FAMILIES, tiny

VIEWS = tuple(View(image, "chosen") for image in ("image", "contrast_image"))


class NeedsOf:
    def __call__(self, source: str) -> Needs:
        return Needs(views=VIEWS)


def make_collator(family: str, folder: Path | None, **changes: Any) -> AlignCollator:
    model, processor = tiny(family)
    keys = family_of(model)
    return AlignCollator(processor, NeedsOf(), keys.image_keys, keys.token_keys, pixel_cache=folder, **changes)


def rows_on_disk(folder: Path, pictures: list[Image.Image]) -> list[dict[str, Any]]:
    paths = []
    for number, picture in enumerate(pictures):
        paths.append(str(folder / f"{number}.png"))
        picture.save(paths[-1])
    row = {"prompt": "What is it?", "chosen": "red"}
    return [
        {**row, "image": paths[0], "contrast_image": paths[1]},
        {**row, "image": paths[2], "contrast_image": paths[0]},
    ]


def assert_same(left: Batch, right: Batch) -> None:
    assert left.image_ids == right.image_ids
    for ours, theirs in zip(left.images, right.images, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert ours[key].dtype == theirs[key].dtype
            assert torch.equal(ours[key], theirs[key])
    for ours, theirs in zip(left.prefixes, right.prefixes, strict=True):
        assert torch.equal(ours.input_ids, theirs.input_ids)
        assert ours.images == theirs.images


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("an image was decoded or processed")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_hit_is_the_same_batch_without_decoding(
    family: str, tmp_path: Path, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_on_disk(tmp_path, pictures)
    plain = make_collator(family, None)(rows)["batch"]
    first = make_collator(family, tmp_path / "cache")(rows)["batch"]
    later = pickle.loads(pickle.dumps(make_collator(family, tmp_path / "cache")))
    monkeypatch.setattr(collator_module, "load_image", refuse)
    monkeypatch.setattr(later.images.processor.image_processor, "preprocess", refuse)
    second = later(rows)["batch"]
    assert len(plain.images) == 3
    assert_same(first, plain)
    assert_same(second, plain)


def test_a_damaged_entry_is_made_again(
    tmp_path: Path, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_on_disk(tmp_path, pictures)
    plain = make_collator("llava", tmp_path / "cache")(rows)["batch"]
    files = sorted((tmp_path / "cache").rglob("*.safetensors"))
    files[0].write_bytes(files[0].read_bytes()[: files[0].stat().st_size // 2])
    files[1].write_bytes(b"")
    assert_same(make_collator("llava", tmp_path / "cache")(rows)["batch"], plain)
    monkeypatch.setattr(collator_module, "load_image", refuse)
    assert_same(make_collator("llava", tmp_path / "cache")(rows)["batch"], plain)


def test_loader_workers_share_the_cache(tmp_path: Path, pictures: list[Image.Image]) -> None:
    rows = rows_on_disk(tmp_path, pictures) * 4
    plain = make_collator("llava", None)
    loader = DataLoader(rows, batch_size=2, num_workers=2, collate_fn=make_collator("llava", tmp_path / "cache"))
    batches = [found["batch"] for found in loader]
    assert len(batches) == 4
    for number, batch in enumerate(batches):
        assert_same(batch, plain(rows[2 * number : 2 * number + 2])["batch"])
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 3


def test_ids_tell_apart_whatever_changes_the_pixels(tmp_path: Path, pictures: list[Image.Image]) -> None:
    rows = rows_on_disk(tmp_path, pictures)[:1]
    base = make_collator("qwen2_vl", None)
    ids = base(rows)["batch"].image_ids
    assert len(set(ids)) == 2
    assert make_collator("qwen2_vl", None)(rows)["batch"].image_ids == ids
    bounded = make_collator("qwen2_vl", None, max_pixels=28 * 28 * 4)
    other = copy.deepcopy(base)
    other.images.processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    processor = other.images.processor
    remade = AlignCollator(processor, NeedsOf(), base.images.image_keys, base.token_keys)
    found = [
        collate(rows)["batch"].image_ids for collate in (base, bounded, remade, make_collator("qwen2_5_vl", None))
    ]
    # Both Qwen families use the same image processor, but a processor class of their own.
    assert len({image_id for ids in found for image_id in ids}) == 8
    pictures[3].save(rows[0]["image"])
    changed = base(rows)["batch"].image_ids
    assert changed[0] != ids[0]
    assert changed[1] == ids[1]


def test_a_changed_file_is_read_again(tmp_path: Path, pictures: list[Image.Image]) -> None:
    rows = rows_on_disk(tmp_path, pictures)[:1]
    collate = make_collator("llava", tmp_path / "cache")
    before = collate(rows)["batch"].images[0]["pixel_values"]
    pictures[3].save(rows[0]["image"])
    after = collate(rows)["batch"].images[0]["pixel_values"]
    assert torch.equal(after, make_collator("llava", None)(rows)["batch"].images[0]["pixel_values"])
    assert not torch.equal(after, before)
