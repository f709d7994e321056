"""Formats with objects, on small files of our own in their authors' schema."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mllm_align.data.annotations import annotated_object, run_lengths
from mllm_align.data.errors import DataError
from mllm_align.data.loading import load_rows
from mllm_align.data.objects import run_length_mask
from mllm_align.data.schema import parse_row
from mllm_align.data.sources import converter
from runs import picture

# A square of 4 x 4 in a picture of 10 x 8, as polygon, as run lengths in numbers and in COCO's text.
SQUARE = np.zeros((8, 10), dtype=np.float32)
SQUARE[2:6, 3:7] = 1
POLYGON = [[3, 2, 7, 2, 7, 6, 3, 6]]
COUNTS = [26, 4, 4, 4, 4, 4, 4, 4, 26]
IMAGES = [
    {"id": 5, "file_name": "0.png", "width": 10, "height": 8},
    {"id": 6, "file_name": "1.png", "width": 10, "height": 8},
    {"id": 7, "file_name": "2.png", "width": 10, "height": 8},
]
COCO = {
    "images": IMAGES,
    "annotations": [
        {
            "id": 1,
            "image_id": 5,
            "category_id": 3,
            "bbox": [3, 2, 4, 4],
            "area": 16,
            "iscrowd": 0,
            "segmentation": POLYGON,
        },
        {"id": 2, "image_id": 5, "category_id": 4, "bbox": [-2, 0, 7, 4], "caption": "the left dog"},
        {
            "id": 3,
            "image_id": 5,
            "category_id": 4,
            "bbox": [0, 0, 10, 8],
            "iscrowd": 1,
            "segmentation": {"counts": "x"},
        },
        {"id": 4, "image_id": 5, "category_id": 4, "bbox": [9.5, 0, 5, 4]},
        {
            "id": 9,
            "image_id": 7,
            "category_id": 3,
            "instance_id": 44,
            "segmentation": {"size": [8, 10], "counts": COUNTS},
        },
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}],
}
SA1B = {
    "image": {"image_id": 8, "file_name": "0.png", "width": 10, "height": 8},
    "annotations": [
        {
            "id": number,
            "bbox": [3, 2, 4, 4],
            "area": number,
            "segmentation": {"size": [8, 10], "counts": COUNTS},
            "predicted_iou": 0.9,
            "stability_score": 0.98,
            "crop_box": [0, 0, 10, 8],
            "point_coords": [[4.0, 4.0]],
        }
        for number in range(1, 65)
    ],
}
GRIT = {
    "key": "0000012345",
    "caption": "A dog on a red sofa",
    "noun_chunks": [[0, 5, 0.1, 0.2, 0.6, 0.9, 0.87], [9, 19, 0.0, 0.4, 1.0, 1.0, 0.7]],
    "ref_exps": [[0, 19, 0.1, 0.2, 0.6, 0.9, 0.87], [0, 5, 0.1, 0.2, 0.6, 0.9, 0.87]],
    "url": "https://example.org/a.jpg",
    "width": 512,
    "height": 384,
}
RLE = {"size": [8, 10], "counts": COUNTS}
MMVM = {
    "file_names": ["./a/1.jpg", "./a/2.jpg"],
    "pos_annotations": [[RLE], [RLE]],
    # Other boxes, without which there would be one candidate.
    "neg_annotations": [[], [run_lengths(np.roll(SQUARE, shift, axis=1)) for shift in (-2, 2)]],
    "is_disappear": False,
    "description": "It has the same colour.",
    "vprompt_type": "mask",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
    (tmp_path / "instances.json").write_text(json.dumps(COCO))
    (tmp_path / "sa").mkdir()
    for number in range(2):
        (tmp_path / "sa" / f"sa_{number}.json").write_text(
            json.dumps(SA1B | {"image": SA1B["image"] | {"file_name": f"{number}.png"}})  # type: ignore[operator]
        )
    return tmp_path


@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_of_coco_s(folder: Path, streaming: bool) -> None:
    rows = [parse_row(row) for row in load_rows(folder / "instances.json", row_format="coco", streaming=streaming)]
    assert [row.images[0] for row in rows] == [str(folder / f"{number}.png") for number in range(3)]
    assert [row.id for row in rows] == ["5", "6", "7"]
    first, empty, last = (row.objects["image"] for row in rows)
    assert [(each.text, each.kind, each.object_id) for each in first] == [
        ("cat", "cat", "1"),
        ("the left dog", "dog", "2"),
    ]
    assert first[0].mask is not None
    assert (first[0].mask == SQUARE).all()
    # The box begins two pixels beyond the picture.
    assert (first[1].mask, first[1].box) == (None, (0, 0, 0.5, 0.5))
    assert empty == ()
    assert last[0].object_id == "44"
    assert (last[0].mask == SQUARE).all()
    assert not rows[0].responses


def test_a_changed_file_is_read_again(folder: Path) -> None:
    path = folder / "instances.json"
    assert len(load_rows(path, row_format="coco")) == 3
    path.write_text(json.dumps(COCO | {"images": IMAGES[:1], "annotations": []}))
    assert len(load_rows(path, row_format="coco")) == 1


def test_a_folder_of_sa_1b(folder: Path) -> None:
    rows = [parse_row(row) for row in load_rows(folder / "sa", row_format="sa1b", image_folder=folder)]
    assert [row.images[0] for row in rows] == [str(folder / f"{number}.png") for number in range(2)]
    objects = rows[0].objects["image"]
    # Half of 64, from small ones to large ones.
    assert [int(each.object_id) for each in objects] == list(range(2, 65, 2))
    assert all((each.mask == SQUARE).all() for each in objects)
    assert {each.text for each in objects} == {""}
    few = converter("sa1b")(SA1B | {"annotations": SA1B["annotations"][:3]})
    assert [each["object_id"] for each in few["objects"]] == ["1", "2", "3"]


def test_grit() -> None:
    row = parse_row(converter("grit")(GRIT))
    assert row.images == ("00000/0000012345.jpg",)
    assert row.responses == {"chosen": "A dog on a red sofa"}
    dog, sofa, whole = row.objects["image"]
    assert [each.text for each in (dog, sofa, whole)] == ["A dog", "a red sofa", "A dog on a red sofa"]
    assert dog.box == (0.1, 0.2, 0.6, 0.9)
    assert dog.object_id == whole.object_id != sofa.object_id
    assert parse_row(converter("grit")(GRIT | {"image": "x.jpg", "key": None})).images == ("x.jpg",)


def test_mmvm_sft() -> None:
    before = json.dumps(MMVM)
    row = parse_row(converter("mmvm")(MMVM))
    assert json.dumps(MMVM) == before
    assert row.images == ("a/1.jpg", "a/2.jpg")
    objects = row.objects["image"]
    assert [(each.image, each.object_id) for each in objects] == [
        (0, "asked"),
        (1, "asked"),
        (1, "other 0"),
        (1, "other 1"),
    ]
    text = row.messages[0]["content"][-1]["text"]
    assert "in the box [300, 250, 700, 750]" in text
    assert "\n4. none of them\n" in text
    assert row.responses["chosen"] in ("1", "2", "3")
    gone = parse_row(converter("mmvm")(MMVM | {"is_disappear": True, "pos_annotations": [[RLE], []]}))
    assert gone.responses["chosen"] == "3"
    assert [each.object_id for each in gone.objects["image"]] == ["asked", "other 0", "other 1"]


def changed(whole: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of nested data with one entry replaced, or taken out where it is `...`."""
    made = copy.deepcopy(whole)
    place = made
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return made


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("annotations",), ..., "is no file of COCO's: it has no 'annotations'"),
        (("annotations", 0, "image_id"), 99, "annotations of image 99, which is not among its images"),
        (
            ("annotations", 0, "category_id"),
            99,
            r"'0\.png', annotation 0: category_id 99 is not among the 2 categories",
        ),
        (("annotations", 1, "bbox"), [1, 2, 3], r"annotation 1: bbox must be left, top, width and height in pixels"),
        (("annotations", 1, "bbox"), ..., r"annotation 1: no 'bbox' and no 'segmentation'; it has id"),
        (("annotations", 0, "segmentation"), [[1, 2]], r"annotation 0: segmentation must be polygons"),
        (
            ("annotations", 4, "segmentation"),
            {"size": [8, 10], "counts": [3]},
            r"'2\.png', annotation 0: run lengths of 3",
        ),
        (("images", 1, "width"), ..., r"image '1\.png': no 'width'; it has id, file_name, height"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(folder: Path, path: tuple[Any, ...], value: Any, message: str) -> None:
    (folder / "instances.json").write_text(json.dumps(changed(COCO, path, value)))
    with pytest.raises(DataError, match=message):
        load_rows(folder / "instances.json", row_format="coco")


def test_files_that_are_none(folder: Path) -> None:
    (folder / "instances.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        load_rows(folder / "instances.json", row_format="coco")
    (folder / "sa" / "sa_0.json").write_text("{}")
    with pytest.raises(DataError, match=r"sa_0\.json is no file of SA-1B's: it must have 'image' and 'annotations'"):
        load_rows(folder / "sa", row_format="sa1b")
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no \.json files"):
        load_rows(folder / "empty", row_format="sa1b")


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        (
            "grit",
            GRIT | {"noun_chunks": [[0, 50, 0, 0, 1, 1, 0.5]]},
            "letters 0 to 50 are no phrase of a caption of 19",
        ),
        ("grit", GRIT | {"noun_chunks": [[0, 5, 0, 0]]}, "row '0000012345': a phrase is two places in the caption"),
        ("grit", GRIT | {"key": None}, "neither 'image' nor 'key' names its image"),
        ("grit", {"key": "1", "caption": "A dog"}, "format 'grit' has no 'noun_chunks'"),
        ("mmvm", MMVM | {"pos_annotations": [[RLE]]}, "1 lists of pos_annotations for 2 images"),
        ("mmvm", MMVM | {"pos_annotations": [[], [RLE]]}, "nothing is asked for"),
        ("mmvm", MMVM | {"neg_annotations": [[], []], "is_disappear": True}, "two images and a candidate"),
        ("sa1b", {"image": {"file_name": "x.jpg"}, "annotations": []}, r"image 'x\.jpg': no 'width'"),
        ("coco", {"image": {"file_name": "x.jpg"}}, "format 'coco' has no 'annotations'"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(name: str, raw: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        converter(name)(raw)


def test_run_lengths_are_those_of_coco() -> None:
    assert run_lengths(SQUARE) == {"size": [8, 10], "counts": COUNTS}
    generator = np.random.default_rng(0)
    for _ in range(20):
        mask = (generator.random((5, 7)) < 0.5).astype(np.float32)
        assert (run_length_mask(run_lengths(mask), "x") == mask).all()


def test_large_masks_are_shrunk() -> None:
    mask = np.zeros((1000, 2048), dtype=np.float32)
    mask[100:300, 1024:] = 1
    annotation = {"segmentation": run_lengths(mask), "bbox": [1024, 100, 1024, 200], "id": 1}
    image = {"file_name": "x.jpg", "width": 2048, "height": 1000}
    (each,) = converter("coco")({"image": image, "annotations": [annotation]})["objects"]
    assert each["mask"]["size"] == [250, 512]
    small = run_length_mask(each["mask"], "x")
    assert small[25:75, 256:].all()
    assert small.sum() == 50 * 256
    # One that would vanish keeps its box.
    mask[:] = 0
    mask[0, 0] = 1
    annotation = {"segmentation": run_lengths(mask), "bbox": [0, 0, 4, 4]}
    (each,) = converter("coco")({"image": image, "annotations": [annotation]})["objects"]
    assert each["box"] == [0, 0, 4 / 2048, 4 / 1000]


def test_polygons_are_the_pixels_whose_centres_lie_within() -> None:
    """Against counted crossings of a ray from each centre; outlines cross themselves, and go beyond the edge."""
    generator = np.random.default_rng(3)
    for _ in range(10):
        corners = [tuple(corner) for corner in generator.uniform(-3, 15, (7, 2)).tolist()]
        expected = np.zeros((10, 12))
        for row in range(10):
            for column in range(12):
                x, y, crossings = column + 0.5, row + 0.5, 0
                for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1], strict=True):
                    if min(y1, y2) <= y < max(y1, y2) and x1 + (y - y1) / (y2 - y1) * (x2 - x1) > x:
                        crossings += 1
                expected[row, column] = crossings % 2
        annotation = {"segmentation": [[side for corner in corners for side in corner]]}
        found = annotated_object(annotation, 12, 10, "x")
        assert expected.any()
        assert found is not None
        assert (run_length_mask(found["mask"], "x") == expected).all()
