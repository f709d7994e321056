"""The descriptions of Object HalBench, scored by words and by a judge's lists, on made-up rows and annotations."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from coco_files import write_coco
from mllm_align.data.mine.speaking import Ask
from mllm_align_eval.benchmarks.coco import IMAGES
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.objhal import OBJHAL, listed_mentions, objhal_items, read_list
from mllm_align_eval.judge import Judge
from mllm_align_eval.scoring import estimates, measures_of

NO_PICTURES = PictureFolder(None, IMAGES)
SYNONYMS = """person, man, woman, people
bicycle, bike
car, taxi
bird, owl
dog, puppy
wine glass
chair, seat
dining table, table, coffee table
toilet
cell phone, phone
horse
"""
ROWS = [
    {"image_id": 101, "question": "Describe this image in detail."},
    {"image_id": "102", "prompt": "What do you see?"},
    {"image_id": 101, "question": "What is there?"},
    {"image_id": 105, "question": "Describe."},
]
TEXTS = {
    "objhal/1": "A man with two dogs and a police car.",
    "objhal/2": "A taxi. A horse and a horse.",
    "objhal/3": "A nice picture indeed.",
    "objhal/4": "Birds.",
}
LISTS = {
    TEXTS["objhal/1"]: '["man", "dogs", "dog", "police car"]',
    TEXTS["objhal/2"]: 'Here it is:\n["taxi", "horse", "horses", "bike"]',
    TEXTS["objhal/3"]: "[]",
}


class Stub:
    """Lists what was prepared for the answer that it is asked about."""

    identity = "stub"

    def __init__(self, lists: dict[str, str]) -> None:
        self.lists, self.asked = lists, 0

    def __call__(self, asks: Sequence[Ask], max_new_tokens: int) -> list[str]:
        self.asked += len(asks)
        return [next((reply for text, reply in self.lists.items() if text in ask.prompt), "?") for ask in asks]


@pytest.fixture
def items(tmp_path):
    write_coco(tmp_path / "chair")
    (tmp_path / "objhal").mkdir()
    (tmp_path / "objhal" / "synonyms_refine.txt").write_text(SYNONYMS)
    (tmp_path / "objhal" / "obj_halbench_300_with_image.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return objhal_items(tmp_path / "objhal", NO_PICTURES)


def values(found) -> dict[str, float]:
    estimates(found, num_resamples=10)
    return {key: measure.metric.value() for key, measure in found.items()}


def test_questions(items):
    assert [item.cluster for item in items] == ["101", "102", "101", "105"]
    assert [item.prompt for item in items][1] == "What do you see?"
    assert items[0].truth["objects"] == {"person", "dog", "car"}
    assert items[3].truth["objects"] == {"bird", "wine glass", "dining table"}


def test_without_a_judge_it_is_chair_under_another_name(items):
    found = values(measures_of(OBJHAL, items, TEXTS, "strict"))
    assert not any(key.startswith("objhal/response") for key in found)
    assert found["objhal/chair_style/chair_i"] == pytest.approx(2 / 7)
    assert found["objhal/chair_style/chair_s"] == pytest.approx(1 / 4)
    assert found["objhal/chair_style/recall"] == pytest.approx((3 + 1 + 0 + 1) / (3 + 1 + 3 + 3))


def test_with_a_judge(items):
    stub = Stub(LISTS)
    found = values(measures_of(OBJHAL, items, TEXTS, "strict", Judge(stub)))
    assert stub.asked == 3
    # man, dog, car; taxi, horse, bike, of which the last two are not there. Two descriptions mention something.
    assert found["objhal/mention_hall"] == pytest.approx(2 / 6)
    assert found["objhal/response_hall"] == pytest.approx(1 / 2)
    assert found["objhal/recall"] == pytest.approx((3 + 1) / 10)
    assert found["objhal/unparsed"] == 0
    less = values(measures_of(OBJHAL, items, TEXTS, "strict", Judge(Stub({TEXTS["objhal/1"]: "[]"}))))
    assert less["objhal/unparsed"] == pytest.approx(2 / 3)
    nothing = values(measures_of(OBJHAL, items, dict.fromkeys(TEXTS, "one two three four"), "strict", Judge(Stub({}))))
    assert "objhal/response_hall" not in nothing
    short = values(measures_of(OBJHAL, items, dict.fromkeys(TEXTS, "A dog."), "strict", Judge(Stub({}))))
    assert short["objhal/response_hall"] != short["objhal/response_hall"]


@pytest.mark.parametrize(
    ("reply", "names"),
    [
        ('["a", "b"]', ("a", "b")),
        ("[]", ()),
        ('I see:\n["a"]\n', ("a",)),
        ("()", None),
        ('{"a": 1}', None),
        ("[1, 2]", None),
        ("", None),
    ],
)
def test_lists(reply, names):
    assert read_list(reply) == names


def test_listed_objects(items):
    vocabulary = items[0].truth["vocabulary"]
    listed = ["Coffee tables", "wine glasses", "baby birds", "tall man", "train track", "", "men", "toilet", "seat"]
    words = [mention.word for mention in listed_mentions(listed, vocabulary)]
    assert words == ["coffee table", "wine glass", "bird", "man", "toilet"]


def test_files_of_another_shape(tmp_path, items):
    path = tmp_path / "objhal" / "obj_halbench_300_with_image.jsonl"
    path.write_text('{"image_id": 101}')
    with pytest.raises(ValueError, match="line 1: not a question about an image of COCO"):
        objhal_items(path.parent, NO_PICTURES)
    path.write_text(json.dumps({"image_id": 999, "question": "?"}))
    with pytest.raises(FileNotFoundError, match=r"captions_train2014\.json"):
        objhal_items(path.parent, NO_PICTURES)
