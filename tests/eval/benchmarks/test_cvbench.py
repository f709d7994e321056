"""CV-Bench: a part of its real file, whole made-up ones, and its metrics against a plain loop."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mllm_align_eval.benchmarks.cvbench import CVBENCH, ORIGIN, cvbench_hub_items, cvbench_items
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.scoring import measures_of

NO_PICTURES = PictureFolder(None, ORIGIN)
KINDS = (
    *(("2D", "Count", "ADE20K"), ("2D", "Relation", "ADE20K"), ("2D", "Count", "COCO"), ("2D", "Relation", "COCO")),
    *(("3D", "Depth", "Omni3D"), ("3D", "Distance", "Omni3D")),
)


def rows() -> list[dict[str, Any]]:
    found = []
    for index in range(90):
        kind, task, source = KINDS[(index + index // 7 * 5) % 7 % 6]
        choices = ["4", "5", "8"] if task == "Count" else ["left", "right"]
        found.append(
            {
                **{"idx": index, "type": kind, "task": task, "source": source, "image": f"{kind}/{index}.png"},
                **{"question": "How many?", "choices": choices, "answer": f"({'ABC'[index % len(choices)]})"},
                "prompt": "How many? Select from the following choices.\n(A) 4\n(B) 5\n(C) 8",
            }
        )
    return found


def write(folder: Path, questions: list[dict[str, Any]], name: str = "test.jsonl") -> Path:
    (folder / name).write_text("\n".join(map(json.dumps, questions)))
    return folder


@pytest.fixture
def items(tmp_path):
    return cvbench_items(write(tmp_path, rows()), NO_PICTURES)


def test_the_real_file(data_dir):
    items = cvbench_items(data_dir / "cvbench", NO_PICTURES)
    assert Counter((item.split, item.kind, item.truth["source"]) for item in items) == {
        ("2d", "count", "ade20k"): 342,
        ("2d", "relation", "ade20k"): 58,
    }
    assert items[0].prompt.startswith("How many organs are in the image? Select from the following choices.\n(A) 3\n")
    assert (items[0].id, items[0].answer, items[0].labels) == ("cvbench/2d/0", "(C)", ("3", "2", "1", "0"))
    assert items[0].pictures[0].name == "2D/count/ade20k_10.png"
    # Without COCO and Omni3D nothing that needs them is given.
    found = measures_of(CVBENCH, items, {item.id: item.answer for item in items}, "official")
    assert {key for key in found if not key.endswith(("invalid", "abstained"))} == {
        "cvbench/ade20k/acc",
        "cvbench/ade20k/count/acc",
        "cvbench/ade20k/relation/acc",
    }


@pytest.mark.parametrize("parser", ["official", "lmms-eval", "s-vco"])
def test_metrics_are_those_of_the_scripts(items, parser):
    rng = random.Random(0)
    forms = ("({})", "{}", "The answer is ({}).", "{}. left", "answer: {}", "it is {}", "", "closed")
    texts = {item.id: rng.choice(forms).format(rng.choice(["A", item.answer[1]])) for item in items}
    hits = defaultdict(list)
    for item, row in zip(items, rows(), strict=True):
        text, letter = texts[item.id], row["answer"][1]
        if parser == "official":
            text = text.lower().strip()
            for words in ("answer is", "answer is:", "answer:"):
                text = text.split(words)[-1] if words in text else text
            right = text.strip().rstrip(".:,").lstrip("(").rstrip(")")[:1] == letter.lower()
        elif parser == "lmms-eval":
            right = text.strip().lstrip("( ")[:1].upper() == letter
        else:
            right = "".join(c for c in text.strip().lower()[:4] if c not in "() ") == letter.lower()
        for key in (row["source"], row["task"], row["type"], "all"):
            hits[key].append(right)
    share = {key: sum(right) / len(right) for key, right in hits.items()}
    flat = 1 / 2 * (share["ADE20K"] + share["COCO"])
    expected = {"2d": flat, "3d": share["Omni3D"], "official": 1 / 2 * (flat + share["Omni3D"]), "acc": share["all"]}
    expected |= {"2d/acc": share["2D"], "3d/acc": share["3D"], "coco/acc": share["COCO"]}
    expected |= {f"{task.lower()}/acc": share[task] for task in ("Count", "Relation", "Depth", "Distance")}
    found = measures_of(CVBENCH, items, texts, parser)
    for key, value in expected.items():
        assert found[f"cvbench/{key}"].metric.value() == pytest.approx(value, abs=1e-12), key


def test_perfect_and_empty_answers(items):
    perfect = measures_of(CVBENCH, items, {item.id: item.answer for item in items}, "vlmevalkit")
    assert perfect["cvbench/official"].metric.value() == 1
    nothing = measures_of(CVBENCH, items, {item.id: "" for item in items}, "official")
    assert nothing["cvbench/official"].metric.value() == 0
    assert nothing["cvbench/3d/invalid"].metric.value() == 1


def test_without_coco(items):
    left = [item for item in items if item.truth["source"] != "coco"]
    found = measures_of(CVBENCH, left, {item.id: item.answer for item in left}, "official")
    assert {"cvbench/3d", "cvbench/depth/acc", "cvbench/ade20k/count/acc"} <= found.keys()
    assert not {"cvbench/2d", "cvbench/official", "cvbench/acc", "cvbench/2d/acc", "cvbench/count/acc"} & found.keys()


def test_the_copy_on_the_hub():
    items = cvbench_hub_items([{**row, "image": Image.new("L", (7, 5))} for row in rows()])
    assert (items[3].id, items[3].pictures[0].load().size) == ("cvbench/" + items[3].split + "/3", (7, 5))


@pytest.mark.parametrize(
    "change", [{"answer": "(D)"}, {"answer": "A"}, {"source": "Omni3D"}, {"type": "4D"}, {"choices": []}]
)
def test_a_row_that_is_no_question(tmp_path, change):
    question = {**rows()[0], **change}
    with pytest.raises(ValueError, match=r"line 2: no question of CV-Bench"):
        cvbench_items(write(tmp_path, [rows()[1], question]), NO_PICTURES)


def test_a_question_twice(tmp_path):
    write(tmp_path, rows()[:3], "a.jsonl")
    with pytest.raises(ValueError, match=r"b.jsonl, line 1: question 0 of 2d is there a second time"):
        cvbench_items(write(tmp_path, rows()[:3], "b.jsonl"), NO_PICTURES)


def test_missing_images(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"90 of 90 images .*CV-Bench"):
        cvbench_items(write(tmp_path, rows()), PictureFolder(tmp_path, ORIGIN))
