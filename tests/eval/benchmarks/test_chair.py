"""CHAIR on made-up COCO annotations with the real synonyms: against a loop with its singulars written out."""

from __future__ import annotations

import json
import math
import random
import shutil

import pytest

from coco_files import CAPTIONS, CATEGORIES, INSTANCES, write_coco
from mllm_align_eval.benchmarks.chair import CHAIR, PROMPT, chair_items
from mllm_align_eval.benchmarks.coco import IMAGES
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.objects import cut_to, matched_lengths, read_vocabulary
from mllm_align_eval.scoring import measures_of

NO_PICTURES = PictureFolder(None, IMAGES)
ANSWERS = (
    "",
    "A man sits on a chair with his dogs; the dog's bowl and two cell phones lie on the dining table.",
    "Three women, a baby bird and an adult elephant. Hot dogs! Teddy bears, buses and a bus-stop.",
    "The toilet seat is up. A seat, a toilet and a sink (white).",
    "A passenger train on the train tracks at home plate, seated people; knives, wine glasses and a wine glass.",
    "A bow tie, ties, a cheesecake and an iPhone. Tennis rackets and a sports ball near the traffic lights.",
    "Nothing here.",
)
SINGULARS = {
    "dogs": "dog",
    "phones": "phone",
    "women": "woman",
    "bears": "bear",
    "buses": "bus",
    "tracks": "track",
    "knives": "knife",
    "glasses": "glass",
    "ties": "tie",
    "rackets": "racket",
    "lights": "light",
    "cars": "car",
    "birds": "bird",
    "horses": "horse",
}
PAIRS = [
    *("traffic light", "hot dog", "cell phone", "teddy bear", "wine glass", "tennis racket", "sports ball"),
    *("home plate", "train track", "dining room"),
]
RENAMED = {"baby bird": "bird", "adult elephant": "elephant", "passenger train": "train", "toilet seat": "toilet"}


@pytest.fixture
def folder(tmp_path, data_dir):
    shutil.copy(data_dir / "chair" / "synonyms.txt", write_coco(tmp_path / "chair", train=True))
    return tmp_path / "chair"


def read_by_loop(text: str, classes: dict[str, str]) -> list[str]:
    """The classes of the mentions, in order."""
    marked = text.lower().replace("'s", " ")
    for mark in ".,;!()":
        marked = marked.replace(mark, " ")
    words = [SINGULARS.get(word, word) for word in marked.split()]
    merged, i = [], 0
    while i < len(words):
        two = " ".join(words[i : i + 2])
        if two in PAIRS or two in RENAMED or two == "bow tie":
            merged.append("tie" if two == "bow tie" else RENAMED.get(two, two))
            i += 2
        else:
            merged.append(words[i])
            i += 1
    if "toilet" in merged and "seat" in merged:
        merged = [word for word in merged if word != "seat"]
    return [classes[word] for word in merged if word in classes]


def chair_by_loop(folder, texts: dict[int, str]) -> dict[str, float]:
    classes: dict[str, str] = {}
    for line in (folder / "synonyms.txt").read_text().splitlines():
        names = line.strip().split(", ")
        for name in names:
            classes[name] = names[0]
    hallucinated = mentioned = captions = bad = right = there = words = 0
    for image, text in texts.items():
        truth = {classes[CATEGORIES[category]] for category in INSTANCES.get(image, [])}
        for caption in CAPTIONS[image]:
            truth |= set(read_by_loop(caption, classes))
        said = read_by_loop(text, classes)
        wrong = [name for name in said if name not in truth]
        hallucinated, mentioned = hallucinated + len(wrong), mentioned + len(said)
        captions, bad = captions + 1, bad + (len(wrong) > 0)
        right, there = right + len(truth & set(said)), there + len(truth)
        words += len(text.split())
    return {
        "chair_i": hallucinated / mentioned if mentioned else math.nan,
        "chair_s": bad / captions,
        "recall": right / there,
        "words": words / captions,
        "mentions": mentioned / captions,
    }


@pytest.mark.parametrize("seed", range(8))
def test_metrics_are_those_of_the_loop(folder, seed):
    items = chair_items(folder, NO_PICTURES)
    rng = random.Random(seed)
    texts = {item.id: " ".join(rng.sample(ANSWERS, 2)) for item in items}
    if seed == 0:
        texts = dict.fromkeys(texts, "")
    if seed == 1:
        texts = {item.id: " ".join(CAPTIONS[int(item.cluster)]) for item in items}
    found = measures_of(CHAIR, items, texts, "strict")
    expected = chair_by_loop(folder, {int(item.cluster): texts[item.id] for item in items})
    for name, value in expected.items():
        assert found[f"chair/{name}"].metric.value() == pytest.approx(value, abs=1e-12, nan_ok=True), name
    if seed == 1:
        assert found["chair/chair_i"].metric.value() == found["chair/chair_s"].metric.value() == 0


def test_questions(folder):
    items = chair_items(folder, NO_PICTURES)
    assert {item.cluster for item in items} == {"101", "102", "103", "104", "105"}
    assert all(item.prompt == PROMPT for item in items)
    first = next(item for item in items if item.cluster == "101")
    assert first.pictures[0].name == "COCO_val2014_000000000101.jpg"
    assert first.truth["objects"] == {"person", "dog", "car"}
    assert next(item for item in items if item.cluster == "103").truth["objects"] == {"toilet"}
    drawn = [item.id for item in chair_items(folder, NO_PICTURES, num_images=2)]
    assert drawn == [item.id for item in items][:2]
    assert [item.id for item in chair_items(folder, NO_PICTURES, seed=1)] != [item.id for item in items]


def test_a_list_of_images(folder):
    (folder / "image_ids.txt").write_text("201\n103\n")
    items = chair_items(folder, NO_PICTURES)
    assert [item.id for item in items] == ["chair/201", "chair/103"]
    assert items[0].truth["objects"] == {"dog", "horse"}
    (folder / "image_ids.txt").write_text("103\n999\n")
    with pytest.raises(ValueError, match=r"1 of 2 images are not in COCO 2014 \(first: 999\)"):
        chair_items(folder, NO_PICTURES)
    (folder / "image_ids.txt").write_text("103\nx\n")
    with pytest.raises(ValueError, match="line 2: 'x' is no id"):
        chair_items(folder, NO_PICTURES)
    (folder / "image_ids.txt").write_text("103\n103\n")
    with pytest.raises(ValueError, match="names an image twice"):
        chair_items(folder, NO_PICTURES)


def test_missing_files_and_files_of_another_shape(folder):
    with pytest.raises(FileNotFoundError, match="5 of 5 images are not in"):
        chair_items(folder, PictureFolder(folder, IMAGES))
    (folder / "captions_val2014.json").write_text('{"annotations": []}')
    with pytest.raises(ValueError, match="no list 'images'"):
        chair_items(folder, NO_PICTURES)
    (folder / "captions_val2014.json").write_text(json.dumps({"images": [{"id": 1}], "annotations": []}))
    with pytest.raises(ValueError, match="entry 0 of images has not file_name, id"):
        chair_items(folder, NO_PICTURES)
    (folder / "captions_val2014.json").write_text(json.dumps({"images": [], "annotations": []}))
    with pytest.raises(ValueError, match="no image is asked about"):
        chair_items(folder, NO_PICTURES)
    (folder / "captions_val2014.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"captions_val2014.json: get it from http://images.cocodataset.org"):
        chair_items(folder, NO_PICTURES)
    (folder / "synonyms.txt").write_text("\n")
    with pytest.raises(ValueError, match="no names of objects"):
        chair_items(folder, NO_PICTURES)


def test_names_that_the_published_list_never_finds(data_dir):
    vocabulary = read_vocabulary(data_dir / "chair" / "synonyms.txt", "")
    assert [
        mention.word for mention in vocabulary.mentions("cheesecake, iPhone, motor bike, stove top oven, seated")
    ] == [
        "stove",
        "oven",
    ]


def test_equal_lengths():
    first, second = {"a": "one two three", "b": "one"}, {"a": "four five", "b": "six  seven\n"}
    assert matched_lengths(first, second) == ({"a": "one two", "b": "one"}, {"a": "four five", "b": "six"})
    assert cut_to("six  seven\n", 2) == "six  seven\n"
    with pytest.raises(ValueError, match="1 ids are in one set alone"):
        matched_lengths(first, {"a": ""})
