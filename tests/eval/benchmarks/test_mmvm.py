"""MMVM: made-up rows of its shape, and its metrics against a plain loop."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import pytest

from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.mmvm import CUES, FILE, IMAGES, MMVM, mmvm_items
from mllm_align_eval.scoring import measures_of

NO_PICTURES = PictureFolder(None, IMAGES)


def rows() -> list[dict[str, Any]]:
    rng, found = random.Random(0), []
    for number in range(60):
        size = 2 + number % 5
        options = [f"{'ABCDEFG'[n]}. {n + 1}" for n in range(size)]
        options.append(f"{'ABCDEFG'[size]}. None of the above choices are correct")
        cues = rng.choice(["[1]", "[2, 5]", "[1, 5, 8]", "[9]", "unknown", "[]"])
        paths = f"['./match_bench/case_{number}/FRAME00.jpg', './match_bench/case_{number}/FRAME01_CAND.jpg']"
        question = "Which of these objects is the one in the first image?\n" + "\n".join(options)
        found.append(
            {
                **{"index": number, "question": question, "image_path": paths, "match_type": cues},
                **{"answer": "ABCDEFG"[rng.randrange(size)], "image": "x" * 200_000},
            }
        )
    return found


def write(folder: Path, questions: list[dict[str, Any]]) -> Path:
    with (folder / FILE).open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(questions[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(questions)
    return folder


@pytest.fixture
def items(tmp_path):
    return mmvm_items(write(tmp_path, rows()), NO_PICTURES)


def test_what_is_asked(items):
    assert [picture.name for picture in items[0].pictures] == [
        "match_bench/case_0/FRAME00.jpg",
        "match_bench/case_0/FRAME01_CAND.jpg",
    ]
    assert items[0].choices == ("A", "B", "C")
    assert items[0].labels == ("1", "2", "None of the above choices are correct")
    assert items[0].prompt.endswith("\nAnswer with the option's letter from the given choices directly.")
    assert csv.field_size_limit() == 131_072


@pytest.mark.parametrize("parser", ["official", "strict"])
def test_metrics_are_those_of_a_loop(items, parser):
    rng = random.Random(1)
    texts = {item.id: rng.choice([item.answer, "A", "B.", f"It is {item.answer}", "", "I"]) for item in items}
    right, chance, cues = [], [], {cue: [] for cue in CUES}
    for item, row in zip(items, rows(), strict=True):
        letters = [letter for letter in "ABCDEFG" if letter in texts[item.id].replace(".", "").split()]
        if parser == "strict" and texts[item.id].startswith("It"):
            letters = []  # a lone letter within a sentence may be an article
        right.append(letters == [row["answer"]])
        chance.append(1 / len(row["question"].splitlines()[1:]))
        try:
            numbers = [n for n in eval(row["match_type"]) if n <= 8 or parser == "official"]
        except NameError:
            numbers = [1, 5] if parser == "official" else []
        for number in numbers:
            cues[CUES[number - 1] if number <= 8 else "SP"].append(right[-1])
    accuracy, guess = sum(right) / 60, sum(chance) / 60
    found = measures_of(MMVM, items, texts, parser)
    assert found["mmvm/acc"].metric.value() == pytest.approx(accuracy, abs=1e-12)
    corrected = found["mmvm/chance_corrected_acc"].metric.value()
    assert corrected == pytest.approx((accuracy - guess) / (1 - guess), abs=1e-12)
    for cue, hits in cues.items():
        assert (f"mmvm/{cue}/acc" in found) == bool(hits), cue
        if hits:
            assert found[f"mmvm/{cue}/acc"].metric.value() == pytest.approx(sum(hits) / len(hits), abs=1e-12)


def test_perfect_answers_and_none(items):
    perfect = measures_of(MMVM, items, {item.id: item.answer for item in items}, "vlmevalkit")
    assert perfect["mmvm/acc"].metric.value() == perfect["mmvm/chance_corrected_acc"].metric.value() == 1
    nothing = measures_of(MMVM, items, {item.id: "" for item in items}, "official")
    assert nothing["mmvm/chance_corrected_acc"].metric.value() < 0


@pytest.mark.parametrize(
    "change", [{"answer": "Q"}, {"image_path": "['one.jpg']"}, {"image_path": "broken ["}, {"question": "Which?"}]
)
def test_a_row_that_is_no_question(tmp_path, change):
    with pytest.raises(ValueError, match=r"line \d+: not a question with lettered options"):
        mmvm_items(write(tmp_path, [rows()[0], {**rows()[1], **change}]), NO_PICTURES)


def test_missing_and_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"mllm_match_eval_full.tsv: get it from .*MMVMBench"):
        mmvm_items(tmp_path, NO_PICTURES)
    with pytest.raises(FileNotFoundError, match=r"120 of 120 images .*match_bench.zip"):
        mmvm_items(write(tmp_path, rows()), PictureFolder(tmp_path, IMAGES))
    (tmp_path / FILE).write_text("index\tquestion\n1\tWhich?\n")
    with pytest.raises(ValueError, match=r"lacks the columns answer, image_path, match_type"):
        mmvm_items(tmp_path, NO_PICTURES)
