"""The pass before training: what it counts, and what it refuses."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from chat import make_processor
from mllm_align.contract import Feature, Needs, View
from mllm_align.data.check import check_dataset
from mllm_align.data.collator import AlignCollator
from mllm_align.data.errors import DataError
from mllm_align.data.loading import load_rows
from mllm_align.data.mixing import mix_sources
from mllm_align.families import family_of
from mllm_align.objectives import FILIP, ClocLike, Discriminative, InfoNCE, RegionContrast, RegionText
from mllm_align.vision import RegionWeights
from tiny import FAMILIES, tiny

PAIRS = Needs(views=(View("image", "chosen"), View("contrast_image", "chosen"), View("image", "rejected")))
PLAIN = Needs(views=(View("image", "chosen"),), optional=(View("contrast_image", "rejected"),))


def needs_for(source: str) -> Needs:
    return {"default": PLAIN, "pairs": PAIRS, "plain": PLAIN}[source]


def make_collator(**kwargs: Any) -> AlignCollator:
    return AlignCollator(make_processor(), needs_for, ("pixel_values",), **kwargs)


def check(rows: Any, **kwargs: Any) -> Any:
    return check_dataset(rows, make_collator(**kwargs), progress=False)


@pytest.fixture
def rows(data_dir: Path) -> list[dict[str, Any]]:
    photos = sorted(str(path) for path in (data_dir / "photos").glob("*.jpg"))
    return [
        {"id": f"r{n}", "image": photo, "prompt": "What is it?", "chosen": "red " * (n + 1), "rejected": "blue"}
        for n, photo in enumerate([*photos, photos[0]])
    ]


def test_summary_on_real_photos(rows: list[dict[str, Any]]) -> None:
    rows[1] |= {"contrast_image": rows[0]["image"], "source": "pairs"}
    summary = check(rows)
    assert (summary.rows, summary.images, summary.complete) == (len(rows), len(rows) - 1, True)
    assert summary.views["pairs"] == {"chosen|image": 1, "chosen|contrast_image": 1, "rejected|image": 1}
    assert summary.views["default"] == {"chosen|image": len(rows) - 1}
    batch = make_collator()([rows[-1]])["batch"]
    assert summary.longest == batch.prefixes[0].input_ids.numel() + batch.branches[0].token_ids.numel()
    assert f"row {len(rows) - 1} (id 'r{len(rows) - 1}')" in str(summary)
    assert f"{len(rows)} rows, {len(rows) - 1} images" in str(summary)


@pytest.mark.parametrize("family_name", FAMILIES)
def test_lengths_are_those_of_the_batches(family_name: str, pictures: list[Image.Image]) -> None:
    model, processor = tiny(family_name)
    family = family_of(model)
    collate = AlignCollator(processor, needs_for, family.image_keys, family.token_keys)
    for shown in ([pictures[0]], [pictures[1]], [pictures[2]], pictures[:2], pictures):
        row = {"images": shown, "prompt": "What is it?", "chosen": "red"}
        batch = collate([row])["batch"]
        longest = batch.prefixes[0].input_ids.numel() + batch.branches[0].token_ids.numel()
        assert check_dataset([row], collate, progress=False).longest == longest


def test_streams_are_read_from_the_front(rows: list[dict[str, Any]], caplog: pytest.LogCaptureFixture) -> None:
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    with caplog.at_level(logging.WARNING):
        summary = check_dataset(stream, make_collator(), stream_rows=2, progress=False)
    assert (summary.rows, summary.complete) == (2, False)
    assert "only its first 2 rows are checked" in caplog.text
    assert "2 rows (the first of a stream)" in str(summary)


def test_a_broken_image_in_a_table_names_its_row(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(Path(rows[0]["image"]).read_bytes()[:5000])
    rows[2]["image"] = str(cut)
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    for dataset in (rows, table, mix_sources({"plain": table})):
        with pytest.raises(DataError, match=r"row 2 \(id 'r2'\), column 'image': .*cut\.jpg is truncated"):
            check(dataset)


def test_gone_and_unreadable_images(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    page = tmp_path / "page.jpg"
    page.write_text("<html>")
    for image, message in ((str(page), "not an image that PIL can read"), (str(tmp_path / "no.jpg"), "no image file")):
        with pytest.raises(DataError, match=f"row 1 .*column 'contrast_image'.*{message}"):
            check([rows[0], rows[1] | {"contrast_image": image}])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "pairs"}, "row 1 .*no column 'contrast_image', which view chosen.contrast_image needs"),
        ({"source": "elsewhere"}, "row 1 .*unknown source 'elsewhere'"),
        ({"chosen": None}, "row 1 .*no column 'chosen', which view chosen.image scores"),
        ({"chosen": "  "}, "row 1 .*'chosen' is empty"),
        ({"prompt": "<image><image>?"}, r"row 1 .*2 image placeholder\(s\)"),
        ({"image": 5}, "row 1 .*int 5 is no image"),
        ({"video": "a.mp4"}, "row 1 .*video is out of scope"),
    ],
)
def test_bad_rows_are_found_before_training(rows: list[dict[str, Any]], changes: dict[str, Any], message: str) -> None:
    rows[1] |= changes
    with pytest.raises(DataError, match=message):
        check(rows)


def test_what_is_odd_but_no_error_is_counted(rows: list[dict[str, Any]]) -> None:
    assert "same chosen" not in str(check(rows))
    rows[1]["rejected"] = rows[1]["chosen"] + " "
    rows[2]["id"] = rows[3]["id"] = rows[0]["id"]
    summary = check([*rows, {**rows[0], "id": None}, {**rows[0], "id": None}])
    assert (summary.same_responses, summary.repeated_ids) == (1, 2)
    assert "1 rows have the same chosen and rejected response" in str(summary)
    assert "2 rows have the id of an earlier row" in str(summary)


def test_several_bad_rows_are_listed_together(rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    rows[1]["chosen"], rows[3]["image"] = None, 5
    with pytest.raises(
        DataError, match=rf"^2 of {len(rows)} rows cannot be used:\n- row 1 .*\n- row 3 .*int 5"
    ) as error:
        check(rows)
    assert len(str(error.value).splitlines()) == 3
    monkeypatch.setattr("mllm_align.data.check.MAX_PROBLEMS", 2)
    with pytest.raises(DataError, match=r"^2 of the first 4 rows cannot be used; the check stopped at 2:"):
        check(rows)
    # Where the first row fails they may all: nobody waits for a million rows to be told so.
    rows[0]["chosen"] = None
    with pytest.raises(DataError, match=r"^row 0 .*no column 'chosen'"):
        check(rows)


def test_too_long_rows_are_counted(rows: list[dict[str, Any]]) -> None:
    longest = check(rows).longest
    assert check(rows, max_length=longest).too_long == 0
    with pytest.raises(DataError, match=rf"1 of {len(rows)} rows .*longest is row .* with {longest} tokens"):
        check(rows, max_length=longest - 1)
    with pytest.raises(DataError, match=rf"{len(rows)} of {len(rows)} rows"):
        check(rows, max_length=10)
    dropped = check(rows, max_length=longest - 1, on_overflow="drop")
    assert dropped.too_long == 1
    assert "1 rows are longer than max_length and are dropped" in str(dropped)
    with pytest.raises(DataError, match="every row is longer"):
        check(rows, max_length=10, on_overflow="drop")
    assert check(rows, max_length=longest - 1, on_overflow="truncate").too_long == 1
    with pytest.raises(DataError, match=r"prompt of view .* alone"):
        check(rows, max_length=10, on_overflow="truncate")


def test_a_broken_stream_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl"
    path.write_text('{"prompt": "a", "chosen": "b"}\n{"prompt": \n')
    with pytest.raises(DataError, match="of the stream cannot be read"):
        check(load_rows(path, streaming=True))


def test_images_of_features_are_looked_at(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    needs = Needs(features=(Feature("image", "projector", "image"), Feature("text", "text", "chosen")))
    collator = AlignCollator(make_processor(), lambda source: needs, ("pixel_values",))
    assert check_dataset(rows, collator, progress=False).images > 0
    gone = [{**rows[0], "image": str(tmp_path / "gone.png")}]
    with pytest.raises(DataError, match=r"no image file .*gone\.png"):
        check_dataset(gone, collator, progress=False)


def test_a_feature_that_no_row_has_anything_for(rows: list[dict[str, Any]], caplog: pytest.LogCaptureFixture) -> None:
    def told(objective: Any, table: Iterable[dict[str, Any]]) -> str:
        caplog.clear()
        check_dataset(
            table, AlignCollator(make_processor(), lambda _: objective.needs, ("pixel_values",)), progress=False
        )
        return caplog.text

    short = [{"image": row["image"], "caption": "a red thing"} for row in rows]
    assert not told(Discriminative(), short)
    assert not told(Discriminative(), [{"prompt": "?", "chosen": "text alone"}, *short])
    # An image under another name makes a row of text alone, of which a contrast learns nothing.
    misnamed = [{"img": row["image"], "caption": "a red thing"} for row in rows]
    with pytest.raises(DataError, match=r"all rows: no column 'image'.* is it 'img'\? Then load with"):
        told(Discriminative(), misnamed)
    assert "all rows so far: no column 'image'" in told(Discriminative(), iter(misnamed))
    with pytest.raises(DataError, match=r"all rows: no column 'image', of which feature 'image:image' is taken"):
        told(InfoNCE(), [{"prompt": "?", "chosen": "text alone"}])
    # Rows with a long text may do without a short one, but hardly all of them.
    long = [{**row, "capshun": "a red thing"} for row in rows]
    with pytest.raises(DataError, match="all rows: no column 'caption', of which feature 'text:caption' is taken"):
        told(Discriminative(), long)
    assert "all rows so far: no column 'caption'" in told(Discriminative(), iter(long))
    with pytest.raises(DataError, match="there is 'captions': let them be sorted by length"):
        told(Discriminative(), [{"image": row["image"], "captions": ["a red thing"]} for row in rows])
    empty = [{**row, "negatives": []} for row in short]
    assert "all rows: nothing in column 'negatives'" in told(Discriminative(negatives=True), empty)
    assert not told(Discriminative(negatives=True), [{**short[0], "negatives": ["a blue thing"]}, *empty])


def test_no_rows() -> None:
    with pytest.raises(DataError, match="has no rows"):
        check([])
    with pytest.raises(DataError, match="has no rows"):
        check(iter([]))


def test_images_that_the_processor_refuses(pictures: list[Image.Image]) -> None:
    model, processor = tiny("qwen2_vl")
    family = family_of(model)
    collate = AlignCollator(processor, needs_for, family.image_keys, family.token_keys)
    thin = Image.fromarray(np.zeros((2, 900, 3), np.uint8))
    with pytest.raises(DataError, match=r"row 0.*refuses 900 x 2 pixels"):
        check_dataset([{"image": thin, "prompt": "?", "chosen": "a"}], collate, progress=False)


def test_a_processor_with_ways_of_its_own_is_refused(rows: list[dict[str, Any]]) -> None:
    class Odd(type(make_processor())):
        def get_text_with_replacements(self, text, *args, **kwargs):
            text, offsets = super().get_text_with_replacements(text, *args, **kwargs)
            return [f"{each} odd" for each in text], offsets

    base = make_processor()
    odd = Odd(
        base.image_processor,
        base.tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=base.chat_template,
    )
    with pytest.raises(DataError, match="Odd tokenises a prompt with images in a way of its own"):
        check_dataset(rows, AlignCollator(odd, needs_for, ("pixel_values",)), progress=False)
    bare = [{"image": row["image"], "caption": "a red thing"} for row in rows]
    with pytest.raises(
        DataError, match="row 0, column 'image': Odd tokenises a prompt with images in a way of its own"
    ):
        check_dataset(
            bare, AlignCollator(odd, lambda source: Discriminative().needs, ("pixel_values",)), progress=False
        )


@pytest.mark.parametrize(("name", "cropped"), [("llava", 1), ("llava_next", 0), ("idefics3", 0), ("qwen2_5_vl", 0)])
def test_objects_that_the_model_is_not_shown_are_counted(name: str, cropped: int) -> None:
    """LLaVA-1.5 shows the middle of a wide picture alone; other families show all of it."""
    model, processor = tiny(name)
    family = family_of(model)
    weights = RegionWeights(family, processor.image_processor, model.config)
    keys = family.image_keys, family.token_keys
    needs = RegionContrast(columns=("image", "contrast_image")).needs
    collator = AlignCollator(processor, lambda source: needs, *keys, region_weights=weights)
    boxes = [[0.01, 0.2, 0.06, 0.8], [0.5, 0.5, 0.505, 0.505], [0.3, 0.1, 0.9, 0.9], [1.1, 0.0, 1.2, 1.0]]
    objects = [{"box": box, "object_id": str(number)} for number, box in enumerate(boxes)]
    wide, high = Image.new("RGB", (400, 100), "red"), Image.new("RGB", (100, 110), "red")
    row = {"image": wide, "contrast_image": high, "prompt": "x", "chosen": "y", "objects": objects}
    summary = check_dataset([row | {"contrast_objects": objects}], collator, progress=False)
    assert (summary.objects, summary.outside, summary.cropped) == (8, 2, cropped)
    # By what the collator does with the row itself.
    assert collator([row | {"contrast_objects": objects}])["batch"].num_lost_regions == 2 + cropped
    told = collator([row | {"contrast_objects": objects}])["batch"].regions
    assert summary.small == sum(share < 1 for own in told.values() for share in own.coverage) > 0
    assert ("1 lie where the processor crops their image" in str(summary)) == bool(cropped)
    assert f"{summary.small} cover less than one token" in str(summary)


def test_a_phrase_is_looked_for_on_a_row_with_one_image(rows: list[dict[str, Any]]) -> None:
    """Against what ClocLike says that it needs: the tokens of a row are those of all its images."""
    collator = AlignCollator(make_processor(), lambda source: ClocLike().needs, ("pixel_values",))
    there = {"box": [0.1, 0.1, 0.5, 0.5], "text": "a cup"}
    several = {"id": "two", "images": [rows[0]["image"], rows[1]["image"]], "prompt": "What is it?", "chosen": "red"}
    one = {**rows[0], "objects": [there]}
    nameless = {**several, "id": "nameless", "objects": [{"box": there["box"]}]}
    assert check_dataset([one, nameless], collator, progress=False).rows == 2
    with pytest.raises(DataError, match=r"row 1 \(id 'two'\), column 'image': 2 images.*give each image a row of its"):
        check_dataset([one, {**several, "objects": [there]}], collator, progress=False)
    # Neither all tokens alone nor texts of regions alone ask for one image.
    for objective in (FILIP(), RegionText()):
        collator = AlignCollator(make_processor(), lambda source, o=objective: o.needs, ("pixel_values",))
        assert check_dataset([{**several, "objects": [there]}], collator, progress=False).rows == 1
