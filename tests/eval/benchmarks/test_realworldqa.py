"""RealWorldQA: made-up questions of its three kinds, and its accuracy against plain loops of each grader."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from PIL import Image

from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.realworldqa import (
    ORIGIN,
    REALWORLDQA,
    choices_of,
    realworldqa_hub_items,
    realworldqa_items,
)
from mllm_align_eval.scoring import measures_of

NO_PICTURES = PictureFolder(None, ORIGIN)
LETTER = "\nPlease answer directly with only the letter of the correct option and nothing else."
CHOICE = f"Which is nearer?\n\nA. The red car.\nB. The blue car.\nC. Both.{LETTER}"
QUESTIONS = [
    {"image": f"{number}.webp", "question": question, "answer": answer}
    for number, (question, answer) in enumerate(
        [
            (CHOICE, "B"),
            ("How many cars? Please answer directly with a single word or number.", "2"),
            ("Is it red? Please answer yes or no.", "Yes"),
            ("Where does it point?", "Downhill"),
            (CHOICE, "A"),
        ]
        * 20
    )
]


@pytest.fixture
def items(tmp_path):
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    return realworldqa_items(tmp_path, NO_PICTURES)


def test_kinds_of_questions(items):
    assert [item.kind for item in items[:5]] == ["choice", "short", "yes_no", "short", "choice"]
    assert items[0].choices == ("A", "B", "C")
    assert items[0].labels == ("The red car.", "The blue car.", "Both.")
    assert (items[0].prompt, items[0].answer, items[2].answer, items[1].choices) == (CHOICE, "B", "yes", ())


def test_options_that_are_not_in_the_question() -> None:
    assert choices_of("Which way? Left, right, or straight", "C") == (("A", "B", "C", "D"), ())


def lmms(text: str, row: dict[str, Any]) -> bool:
    """Of the texts below, those with a letter name one alone."""
    if row["answer"] in ("A", "B"):
        return re.findall(r"[A-D]", text)[-1:] == [row["answer"]]
    return text.lower().strip().rstrip(".") == row["answer"].lower()


def cambrian(text: str, row: dict[str, Any]) -> bool:
    text = text.lower().strip()
    for words in ("answer is", "answer is:", "answer:"):
        if words in text:
            text = text.split(words)[-1]
    words = text.strip().rstrip(".").split()
    return bool(words) and words[0] == row["answer"].lower()


def svco(text: str, row: dict[str, Any]) -> bool:
    text = text.strip().lower()
    if LETTER.strip().lower()[7:-1] in row["question"].lower():
        text = text[:4]
    return re.sub(r"[().\s]", "", text) == re.sub(r"[().\s]", "", row["answer"].lower())


@pytest.mark.parametrize(("parser", "rule"), [("lmms-eval", lmms), ("cambrian", cambrian), ("s-vco", svco)])
def test_accuracy_is_that_of_the_graders(items, parser, rule):
    rng = random.Random(0)
    forms = ("{}", "{}.", "({})", "the answer is {}", "{} of them", " {} ", "two", "yes", "")
    texts = {item.id: rng.choice(forms).format(item.truth["answer"]) for item in items}
    found = measures_of(REALWORLDQA, items, texts, parser)
    right = [rule(texts[item.id], row) for item, row in zip(items, QUESTIONS, strict=True)]
    assert found["realworldqa/acc"].metric.value() == pytest.approx(sum(right) / len(right), abs=1e-12)
    for kind in ("choice", "yes_no", "short"):
        hits = [hit for hit, item in zip(right, items, strict=True) if item.kind == kind]
        assert found[f"realworldqa/{kind}/acc"].metric.value() == pytest.approx(sum(hits) / len(hits), abs=1e-12)


def test_the_strict_rule(items):
    said = ("The blue car.", "Two.", "Yes, it is", "downhill", "(A)")
    texts = {item.id: said[index % 5] for index, item in enumerate(items)}
    assert measures_of(REALWORLDQA, items, texts, "strict")["realworldqa/acc"].metric.value() == 1
    nothing = measures_of(REALWORLDQA, items, {item.id: "" for item in items}, "strict")
    assert nothing["realworldqa/acc"].metric.value() == 0
    assert nothing["realworldqa/test/invalid"].metric.value() == 1


def test_the_copy_on_the_hub():
    (item,) = realworldqa_hub_items([{**QUESTIONS[0], "image": Image.new("L", (6, 5))}])
    assert (item.id, item.pictures[0].load().size) == ("realworldqa/0", (6, 5))


def test_missing_images_and_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no .jsonl or .parquet file .*xai-org/RealworldQA"):
        realworldqa_items(tmp_path, NO_PICTURES)
    (tmp_path / "test.jsonl").write_text(json.dumps(QUESTIONS[0]))
    with pytest.raises(FileNotFoundError, match=r"1 of 1 images .*xai-org/RealworldQA"):
        realworldqa_items(tmp_path, PictureFolder(tmp_path, ORIGIN))
    (tmp_path / "test.jsonl").write_text(json.dumps({**QUESTIONS[0], "answer": ""}))
    with pytest.raises(ValueError, match=r"line 1: not a question with image and answer"):
        realworldqa_items(tmp_path, NO_PICTURES)
