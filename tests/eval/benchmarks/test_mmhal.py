"""MMHal-Bench: its real file, and ratings by a stub against a loop over the published rule."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from mllm_align.data.mine.speaking import Ask
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.locating import data_folder
from mllm_align_eval.benchmarks.mmhal import IMAGES, MMHAL, mmhal_items, read_rating
from mllm_align_eval.judge import Judge
from mllm_align_eval.scoring import estimates, measures_of

NO_PICTURES = PictureFolder(None, IMAGES)
REPLIES = (
    "No hallucination. Rating: 6",
    "rating: 5, fine",
    "Rating: 2",
    "Either Rating: 1 or Rating: 4",
    "no idea",
    "Rating: 0",
    "RATING: 3\nRating: 3",
)


class Stub:
    """Replies in turn."""

    identity = "stub"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, asks: Sequence[Ask], max_new_tokens: int) -> list[str]:
        start = len(self.asked)
        self.asked += [ask.prompt for ask in asks]
        return [REPLIES[(start + n) ** 2 % len(REPLIES)] for n in range(len(asks))]


@pytest.fixture(scope="module")
def items(data_dir):
    return mmhal_items(data_folder(data_dir, MMHAL), NO_PICTURES)


def test_the_real_file(items):
    assert len(items) == 96
    assert set(Counter(item.kind for item in items).values()) == {12}
    assert items[0].pictures[0].name == "7206072054_c53d53b97d_o.jpg"
    assert len({item.pictures[0].name for item in items}) == 96


def test_a_folder_of_its_own_comes_first(tmp_path, data_dir):
    assert data_folder(data_dir, MMHAL) == data_dir
    (tmp_path / "mmhal").mkdir()
    (tmp_path / "mmhal" / "response_template.json").write_text("[]")
    (tmp_path / "mmhal_answer_template.json").write_text("[]")
    assert data_folder(tmp_path, MMHAL) == tmp_path / "mmhal"


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("Rating: 4", 4),
        ("rating: 0.", 0),
        ("Rating: 7", None),
        ("Rating:4", None),
        ("Rating: 1 Rating: 2", None),
        ("", None),
    ],
)
def test_ratings(reply, rating):
    assert read_rating(reply) == rating


def test_scores_are_those_of_the_script(items):
    texts = {item.id: " ".join(["word"] * (n % 9 + 1)) for n, item in enumerate(items)}
    stub = Stub()
    found = measures_of(MMHAL, items, texts, "official", Judge(stub))
    ratings = []
    for n in range(96):
        reply = REPLIES[n**2 % len(REPLIES)].lower()
        hits = [s for s in range(7) if f"rating: {s}" in reply]
        ratings.append(hits[0] if len(hits) == 1 else 0)
    value = {key: measure.metric.value() for key, measure in found.items()}
    assert value["mmhal/rating"] == pytest.approx(sum(ratings) / 96)
    assert value["mmhal/hallucination_rate"] == pytest.approx(sum(r < 3 for r in ratings) / 96)
    for n, kind in enumerate(item.kind for item in items[:8]):
        assert value[f"mmhal/{kind}/rating"] == pytest.approx(sum(ratings[n::8]) / 12), kind
    lengths = [len(text.split()) for text in texts.values()]
    assert value["mmhal/length_correlation"] == pytest.approx(np.corrcoef(ratings, lengths)[0, 1])
    unread = sum(REPLIES[n**2 % len(REPLIES)] in (REPLIES[3], REPLIES[4]) for n in range(96))
    assert value["mmhal/unparsed"] == pytest.approx(unread / 96)
    assert "mmhal/self_consistency" not in value
    assert "Fire hydrant" in stub.asked[0]
    assert items[0].prompt in stub.asked[0]
    # The strict rule leaves out what has no rating.
    strict = measures_of(MMHAL, items, texts, "strict", Judge(Stub()))
    assert strict["mmhal/rating"].metric.value() == pytest.approx(sum(ratings) / (96 - unread))
    estimates(strict, num_resamples=20)


def test_several_runs_are_averaged(items):
    some = items[:2]
    found = measures_of(MMHAL, some, {item.id: "It is red." for item in some}, "strict", Judge(Stub(), runs=2))
    # Of the first 6 and 5, of the second 5 or ... as REPLIES gives them: 0, 1, 4, 9 mod 7.
    assert found["mmhal/rating"].metric.value() == pytest.approx((5.5 + 2) / 2)
    assert found["mmhal/unparsed"].metric.value() == 0.25
    assert found["mmhal/self_consistency"].metric.value() == 0


def test_nothing_that_can_be_read(items, monkeypatch):
    monkeypatch.setattr(Stub, "__call__", lambda self, asks, limit: ["?"] * len(asks))
    found = measures_of(MMHAL, items[:8], {item.id: "" for item in items[:8]}, "strict", Judge(Stub()))
    scores = estimates(found, num_resamples=20)
    assert scores["mmhal/rating"].value != scores["mmhal/rating"].value
    assert scores["mmhal/unparsed"].value == 1


def test_without_a_judge(items):
    with pytest.raises(ValueError, match="mmhal needs a judge to read the answers: name one with --judge"):
        measures_of(MMHAL, items, {item.id: "x" for item in items}, "official")


def test_a_template_of_the_users_own(tmp_path, items):
    rows = [
        {
            "question_type": "attribute",
            "image_id": "a",
            "image_src": "https://x/y/a.jpg",
            "image_content": ["Cat", "Dog"],
            "question": "What {colour}?",
            "gt_answer": "Red.",
        }
    ]
    (tmp_path / "response_template.json").write_text(json.dumps(rows))
    (tmp_path / "judge_prompt.txt").write_text("{image_content}|{question}|{gt_answer}|{answer}|{}")
    own = mmhal_items(tmp_path, NO_PICTURES)
    stub = Stub()
    judge = Judge(stub)
    measures_of(MMHAL, own, {"mmhal/0": "Blue."}, "official", judge)
    assert stub.asked == ["Cat, Dog|What {colour}?|Red.|Blue.|{}"]
    other = Judge(Stub())
    measures_of(MMHAL, items[:1], {"mmhal/0": "Blue."}, "official", other)
    assert judge.card()["templates"] != other.card()["templates"]


@pytest.mark.parametrize(
    ("content", "message"), [("{}", "no list of questions"), ('[{"question": "a"}]', "entry 0 has not")]
)
def test_files_of_another_shape(tmp_path, content, message):
    with pytest.raises(FileNotFoundError, match=r"mmhal_answer_template.json: get it from https://huggingface.co"):
        mmhal_items(tmp_path, NO_PICTURES)
    (tmp_path / "mmhal_answer_template.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        mmhal_items(tmp_path, NO_PICTURES)
