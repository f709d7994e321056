"""ARO: the published schemas, ties, and the script's argmax and groups written as loops."""

from __future__ import annotations

import json
import random
from collections import defaultdict

import pytest
from PIL import Image

from mllm_align_eval.benchmarks.aro import ARO, IMAGES
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.scoring import measures_of, questions_of

NO_PICTURES = PictureFolder(None, IMAGES)
SPLITS = ("vg_relation", "vg_attribution", "coco_order", "flickr30k_order")
BOX = {"bbox_x": 2, "bbox_y": 3, "bbox_w": 10, "bbox_h": 5}


def vg_row(number, **fields):
    captions = {"true_caption": f"the dog {number} is on the bed", "false_caption": f"the bed {number} is on the dog"}
    return {"image_id": number, "image_path": f"{number // 2}.jpg", **BOX, **captions, **fields}


@pytest.fixture
def folder(tmp_path):
    relations = [vg_row(n, relation_name=("on", "to the left of", "behind")[n % 3]) for n in range(50)]
    attributes = [vg_row(n, attributes=["red", "old"] if n < 30 else ["wet", f"dry{n % 2}"]) for n in range(85)]
    orders = [{"image": f"val2014/{n // 5}.jpg", "caption_options": [f"{k} {n}" for k in "abcde"]} for n in range(40)]
    for name, rows in (
        ("visual_genome_relation", relations),
        ("visual_genome_attribution", attributes),
        ("coco_order", orders),
        ("flickr30k_order", orders),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    return tmp_path


def values(measures):
    return {key: measure.metric.value() for key, measure in measures.items()}


def argmax(scores):
    best = 0
    for index, score in enumerate(scores):
        if score > scores[best]:
            best = index
    return best


@pytest.mark.parametrize("parser", ["strict", "official"])
def test_metrics_are_those_of_loops(folder, parser):
    items = ARO.read(folder, NO_PICTURES)
    rng = random.Random(0)
    scores = {item.id: [rng.randint(0, 2) for _ in item.choices] for item in items}
    found = values(measures_of(ARO, items, scores, parser))
    credits, groups = defaultdict(list), defaultdict(lambda: defaultdict(list))
    for item in items:
        given, right = scores[item.id], 1 if item.split.startswith("vg") else 0
        if parser == "official":
            credit = float(argmax(given) == right)
        else:
            credit = float(all(given[right] > score for place, score in enumerate(given) if place != right))
        credits[item.split].append(credit)
        groups[item.split][item.kind].append(credit)
    for split, got in credits.items():
        assert found[f"aro/{split}/acc"] == pytest.approx(sum(got) / len(got), abs=1e-12)
    relations = {kind: sum(got) / len(got) for kind, got in groups["vg_relation"].items()}
    assert found["aro/vg_relation/macro_acc"] == pytest.approx(sum(relations.values()) / 3, abs=1e-12)
    assert found["aro/vg_relation/to_the_left_of_acc"] == pytest.approx(relations["to the left of"], abs=1e-12)
    often = [sum(got) / len(got) for got in groups["vg_attribution"].values() if len(got) >= 25]
    assert len(often) == 3
    assert found["aro/vg_attribution/macro_acc"] == pytest.approx(sum(often) / len(often), abs=1e-12)


def test_the_rarer_attributes_are_left_out_of_the_mean(folder):
    rows = json.loads((folder / "visual_genome_attribution.json").read_text())
    (folder / "visual_genome_attribution.json").write_text(json.dumps(rows[:54]))
    items = ARO.read(folder, NO_PICTURES)
    scores = {i.id: [0, 1] if i.kind == "red_old" else [1, 0] if i.split[:2] == "vg" else [0] * 5 for i in items}
    found = values(measures_of(ARO, items, scores, "strict"))
    assert found["aro/vg_attribution/macro_acc"] == 1
    assert found["aro/vg_attribution/acc"] == pytest.approx(30 / 54)


def test_a_constant_score(folder):
    items = ARO.read(folder, NO_PICTURES)
    constant = {item.id: [1.0] * len(item.choices) for item in items}
    official, strict = (values(measures_of(ARO, items, constant, parser)) for parser in ("official", "strict"))
    assert (official["aro/vg_relation/acc"], official["aro/coco_order/acc"]) == (0, 1)
    assert [strict[f"aro/{split}/acc"] for split in SPLITS] == [0] * 4
    assert [strict[f"aro/{split}/tied"] for split in SPLITS] == [1] * 4
    assert ARO.default_parser == "strict"


def test_a_tie_among_wrong_captions_is_none(folder):
    items = [item for item in ARO.read(folder, NO_PICTURES) if item.split == "coco_order"]
    scores = {item.id: [2, 1, 1, 1, 1] if n % 2 else [0, 1, 1, 1, 1] for n, item in enumerate(items)}
    found = values(measures_of(ARO, items, scores, "strict"))
    assert (found["aro/coco_order/acc"], found["aro/coco_order/tied"]) == (0.5, 0)


def test_a_part_of_the_image_is_shown(folder):
    Image.new("L", (30, 20)).save(folder / "0.jpg")
    for name in ("visual_genome_attribution", "coco_order", "flickr30k_order"):
        (folder / f"{name}.json").unlink()
    rows = json.loads((folder / "visual_genome_relation.json").read_text())
    (folder / "visual_genome_relation.json").write_text(json.dumps(rows[:2]))
    items = ARO.read(folder, PictureFolder(folder, IMAGES))
    assert items[0].pictures[0].load().size == (10, 5)
    asked = next(questions_of(items))
    assert (asked["image"], asked["crop"]) == ("0.jpg", [2, 3, 10, 5])
    assert asked["choices"] == ["the bed 0 is on the dog", "the dog 0 is on the bed"]


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("visual_genome_relation", {}, "not a list of rows"),
        ("visual_genome_relation", [vg_row(0)], "row 0: not an object with the texts relation_name"),
        ("visual_genome_relation", [vg_row(0, relation_name="on", bbox_x=None)], "row 0: no numbers bbox_x"),
        ("visual_genome_attribution", [vg_row(0, attributes=["red"])], "attributes are not two"),
        ("coco_order", [{"image": "a.jpg", "caption_options": ["a"]}], "caption_options is not a list of captions"),
    ],
)
def test_files_of_another_shape(tmp_path, name, rows, message):
    (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=rf"{name}\.json.*{message}"):
        ARO.read(tmp_path, NO_PICTURES)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"visual_genome_relation\.json: get it from .*bows"):
        ARO.read(tmp_path, NO_PICTURES)
