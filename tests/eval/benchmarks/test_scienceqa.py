"""ScienceQA: made-up problems of its shape, and its columns against a plain loop."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.scienceqa import IMAGES, SCIENCEQA, scienceqa_hub_items, scienceqa_items
from mllm_align_eval.scoring import measures_of

NO_PICTURES = PictureFolder(None, IMAGES)
SUBJECTS = ("natural science", "social science", "language science")


def problems() -> dict[str, dict[str, Any]]:
    rng = random.Random(0)
    return {
        str(number): {
            **{"question": f"Which is {number}?", "choices": ["pear", "plum", "fig"][: 2 + number % 2]},
            **{"answer": rng.randrange(2), "hint": rng.choice(["", "Look."]), "subject": rng.choice(SUBJECTS)},
            **{"image": rng.choice([None, "image.png"]), "grade": f"grade{rng.randint(1, 12)}", "split": "test"},
        }
        for number in range(60)
    }


def write(folder: Path, found: dict[str, Any]) -> Path:
    (folder / "problems.json").write_text(json.dumps(found))
    (folder / "pid_splits.json").write_text(json.dumps({"train": [], "test": list(found)}))
    return folder


@pytest.fixture
def items(tmp_path):
    return scienceqa_items(write(tmp_path, problems()), NO_PICTURES)


def test_what_is_asked(items):
    first = next(item for item in items if item.split == "img" and item.truth["has_text"])
    number = first.id.split("/")[1]
    assert first.prompt.startswith(f"Context: Look.\nWhich is {number}?\nA. pear\nB. plum\n")
    assert first.prompt.endswith("\nAnswer with the option's letter from the given choices directly.")
    assert first.pictures[0].name == f"test/{number}/image.png"
    assert all(bool(item.pictures) == (item.split == "img") for item in items)


@pytest.mark.parametrize("parser", ["official", "lmms-eval"])
def test_columns_are_those_of_a_loop(items, parser):
    rng = random.Random(1)
    forms = ("{}", "{}. pear", "The answer is {}.", "{}.", " {}", "no", "")
    texts = {item.id: rng.choice(forms).format(rng.choice(["A", "b", item.answer])) for item in items}
    hits: dict[str, list[bool]] = {}
    for item, problem in zip(items, problems().values(), strict=True):
        text, truth = texts[item.id], "ABCDE"[problem["answer"]]
        if parser == "official":
            if text in list("ABCDE"):
                said = text
            elif len(text) >= 3 and text[0] in "ABCDE" and text[1:3] == ". ":
                said = text[0]
            else:
                stated = re.findall(r"The answer is ([A-Z]).", text)
                said = stated[0] if len(stated) == 1 else "FAILED"
        else:
            text = text.strip()
            said = text[0] if len(text) >= 2 and text[0].isupper() and text[1] == "." else text.upper()
        names = [problem["subject"].split()[0], "low" if int(problem["grade"][5:]) <= 6 else "high", "all"]
        names += ["img"] if problem["image"] else []
        names += ["text"] if problem["hint"] else [] if problem["image"] else ["no"]
        for name in names:
            hits.setdefault(name, []).append(said == truth)
    keys = {"all": "acc", "img": "img/acc", "text": "text/acc", "no": "no_context/acc", "natural": "natural/acc"}
    keys |= {"social": "social/acc", "language": "language/acc", "low": "grade_1_6/acc", "high": "grade_7_12/acc"}
    found = measures_of(SCIENCEQA, items, texts, parser)
    for name, key in keys.items():
        expected = sum(hits[name]) / len(hits[name])
        assert found[f"scienceqa/{key}"].metric.value() == pytest.approx(expected, abs=1e-12), key


def test_the_subset_with_pictures_has_one_number(items):
    shown = [item for item in items if item.split == "img"]
    found = measures_of(SCIENCEQA, shown, {item.id: item.answer for item in shown}, "official")
    assert {key for key in found if key.endswith("acc")} == {"scienceqa/img/acc"}
    assert found["scienceqa/img/acc"].metric.value() == 1


def test_the_copy_on_the_hub():
    rows = [{**row, "image": Image.new("L", (6, 5)) if row["image"] else None} for row in problems().values()]
    items = scienceqa_hub_items(rows)
    assert [item.split for item in items] == ["img" if row["image"] else "no_img" for row in rows]
    shown = next(item for item in items if item.pictures)
    assert shown.pictures[0].load().size == (6, 5)


@pytest.mark.parametrize("change", [{"answer": 3}, {"choices": []}, {"answer": None}])
def test_a_problem_that_is_no_question(tmp_path, change):
    found = problems()
    found["7"] |= change
    with pytest.raises(ValueError, match=r"problems.json, problem 7: not a question with question, choices"):
        scienceqa_items(write(tmp_path, found), NO_PICTURES)


def test_missing_and_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"problems.json: get it from .*lupantech/ScienceQA"):
        scienceqa_items(tmp_path, NO_PICTURES)
    write(tmp_path, {"1": 3})
    with pytest.raises(ValueError, match=r"problem 1: not an object"):
        scienceqa_items(tmp_path, NO_PICTURES)
    (tmp_path / "problems.json").write_text("{}")
    with pytest.raises(ValueError, match=r"do not go together"):
        scienceqa_items(tmp_path, NO_PICTURES)
