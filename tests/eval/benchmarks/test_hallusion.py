"""HallusionBench: made-up rows of its shape, its whole file where it is there, and its metrics against plain loops."""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.hallusion import FILE, HALLUSION, IMAGES, hallusion_hub_items, hallusion_items
from mllm_align_eval.scoring import measures_of

NO_PICTURES = PictureFolder(None, IMAGES)


def rows() -> list[dict[str, Any]]:
    """Six sets of three questions: VD on an original and two edited figures, VS on none, one and an edited one."""
    rng, found = random.Random(3), []
    for category, subcategory, number in [(c, s, n) for c, s in (("VD", "ocr"), ("VS", "ocr")) for n in range(3)]:
        for figure in range(3):
            level = figure if category == "VS" else min(figure + 1, 2)
            for question in range(3):
                found.append(
                    {
                        **{"category": category, "subcategory": subcategory, "visual_input": str(level)},
                        **{"set_id": str(number), "figure_id": str(figure), "question_id": str(question)},
                        **{"question": f"Is it {question}?", "gt_answer": rng.choice("01"), "gt_answer_details": ""},
                        "filename": f"./{category}/{subcategory}/{number}_{figure}.png" if level else None,
                    }
                )
    return found


def write(folder: Path, questions: Any) -> Path:
    (folder / FILE).write_text(json.dumps(questions))
    return folder


@pytest.fixture
def items(tmp_path):
    return hallusion_items(write(tmp_path, rows()), NO_PICTURES)


def loop(questions: list[dict[str, Any]], texts: list[str], is_edited: Any = None) -> dict[str, float]:
    """The leaderboard as the authors count it, with the rule of a leading yes or no in the place of their judge."""
    figures, groups, easy, hard = (defaultdict(list) for _ in range(4))
    correct = []
    for row, text in zip(questions, texts, strict=True):
        said = {"yes": "1", "no": "0"}.get(text.lower().strip("."))
        right = said == row["gt_answer"]
        if row["category"] == "VS" and row["figure_id"] == "0":
            right = right or text == "I cannot tell"
        else:
            figures[row["category"] + row["subcategory"] + row["set_id"] + "_" + row["figure_id"]].append(right)
        key = row["category"] + row["subcategory"] + row["set_id"] + "_" + row["question_id"]
        groups[key].append(right)
        (hard if row["visual_input"] == "2" else easy)[key].append(right)
        correct.append((right, row["gt_answer"] == "1"))
    share = {"fAcc": figures, "qAcc": groups, "easy_acc": easy, "hard_acc": hard}
    found = {name: sum(map(all, of.values())) / len(of) for name, of in share.items()}
    wrong = [truth for right, truth in correct if not right]
    return found | {
        "aAcc": sum(right for right, _ in correct) / len(correct),
        "yes_diff": sum(right == truth for right, truth in correct) / len(correct)
        - sum(truth for _, truth in correct) / len(correct),
        "fp_ratio": wrong.count(False) / len(wrong) if wrong else math.nan,
    }


@pytest.mark.parametrize("chance", [0.0, 0.4, 1.0])
def test_metrics_are_those_of_a_loop(items, chance):
    rng = random.Random(0)
    texts = [
        item.answer if rng.random() >= chance else rng.choice(["Yes.", "No", "I cannot tell", "?"]) for item in items
    ]
    found = measures_of(HALLUSION, items, dict(zip([item.id for item in items], texts, strict=True)), "strict")
    for key, value in loop(rows(), texts).items():
        assert found[f"hallusion/{key}"].metric.value() == pytest.approx(value, abs=1e-12, nan_ok=True), key
    shown = [(row, text) for row, text in zip(rows(), texts, strict=True) if row["visual_input"] != "0"]
    expected = loop([row for row, _ in shown], [text for _, text in shown])
    for key in ("aAcc", "fAcc", "qAcc"):
        assert found[f"hallusion/image/{key}"].metric.value() == pytest.approx(expected[key], abs=1e-12), key
    three = [expected[key] for key in ("aAcc", "fAcc", "qAcc")]
    assert found["hallusion/image/mean3"].metric.value() == pytest.approx(sum(three) / 3, abs=1e-12)


def test_not_to_know_is_right_without_a_picture_alone(items):
    found = measures_of(HALLUSION, items, {item.id: "I cannot tell" for item in items}, "strict")
    assert found["hallusion/aAcc"].metric.value() == 9 / 54
    assert found["hallusion/image/aAcc"].metric.value() == 0
    garbage = measures_of(HALLUSION, items, {item.id: "blue" for item in items}, "strict")
    assert garbage["hallusion/aAcc"].metric.value() == 0


def test_lmms_eval_takes_eyes_for_a_yes(items):
    found = measures_of(HALLUSION, items, {item.id: "No, his eyes are closed" for item in items}, "lmms-eval")
    assert found["hallusion/yes_rate"].metric.value() == 1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("No", (57.1, 12.1, 19.3, 57.8, 12.1, 20.0)), ("Yes", (42.9, 7.2, 4.0, 42.2, 7.2, 4.6))],
)
def test_constant_answers_to_the_whole_file(data_dir, answer, expected):
    folder = data_dir / "hallusion"
    if not (folder / FILE).is_file():
        pytest.skip(f"no {FILE} in {folder}")
    items = hallusion_items(folder, NO_PICTURES)
    assert (len(items), len({item.cluster for item in items})) == (1129, 167)
    found = measures_of(HALLUSION, items, {item.id: answer for item in items}, "strict")
    keys = [f"hallusion/{part}{name}" for part in ("", "image/") for name in ("aAcc", "fAcc", "qAcc")]
    assert [round(100 * found[key].metric.value(), 1) for key in keys] == list(expected)
    sizes = {"fAcc": 346, "qAcc": 455, "easy_acc": 455, "hard_acc": 430}
    assert {key: len(found[f"hallusion/{key}"].clusters) for key in sizes} == sizes


def test_questions_without_a_picture(items):
    none = [item for item in items if item.split == "no_image"]
    assert len(none) == 9
    assert all(not item.pictures for item in none)
    assert items[0].pictures[0].name == "VD/ocr/0_0.png"
    assert items[0].prompt == "Is it 0? Please answer yes or no."


def test_the_copy_on_the_hub():
    shown = [{**row, "image": Image.new("L", (6, 5))} for row in rows() if row["visual_input"] != "0"]
    items = hallusion_hub_items(shown)
    assert {item.split for item in items} == {"image"}
    assert items[0].pictures[0].load().size == (6, 5)
    found = measures_of(HALLUSION, items, {item.id: item.answer for item in items}, "vlmevalkit")
    assert found["hallusion/image/mean3"].metric.value() == 1


@pytest.mark.parametrize("change", [{"gt_answer": "2"}, {"gt_answer": None}])
def test_a_row_that_is_no_question(tmp_path, change):
    with pytest.raises(ValueError, match=r"HallusionBench.json, entry 1: not a question with category"):
        hallusion_items(write(tmp_path, [rows()[0], {**rows()[1], **change}]), NO_PICTURES)


def test_another_file(tmp_path):
    with pytest.raises(ValueError, match=r"is not a list of questions"):
        hallusion_items(write(tmp_path, {}), NO_PICTURES)
    with pytest.raises(ValueError, match=r"entry 0: not an object"):
        hallusion_items(write(tmp_path, [3]), NO_PICTURES)
    with pytest.raises(FileNotFoundError, match=r"15 of 15 images .*hallusion_bench.zip"):
        hallusion_items(write(tmp_path, rows()), PictureFolder(tmp_path, IMAGES))
