"""MMVP: its real file, both sets of labels, and its metrics against a plain loop."""

from __future__ import annotations

import random

import pytest
from PIL import Image

from eval_items import said
from mllm_align_eval.answers import parse
from mllm_align_eval.baselines import baselines
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.mmvp import MMVP, ORIGIN, mmvp_hub_items, mmvp_items, mmvp_score, read_questions
from mllm_align_eval.measures import measures
from mllm_align_eval.scoring import measures_of

NO_PICTURES = PictureFolder(None, ORIGIN)
HEAD = "Index,Question,Options,Correct Answer\n"


@pytest.fixture(scope="module")
def items(data_dir):
    return mmvp_items(data_dir / "mmvp", NO_PICTURES)


def test_the_real_file(items):
    assert len(items) == 300
    assert len({item.pair for item in items}) == 150
    assert items[0].prompt == "Are the butterfly's wings closer to being open or closed? (a) Open (b) Closed"
    assert items[0].labels == ("Open", "Closed")
    pairs = list(zip(items[::2], items[1::2], strict=True))
    assert all(a.pair == b.pair == a.cluster for a, b in pairs)
    # Where both rows ask with the same options, the answers differ.
    assert all(a.answer != b.answer for a, b in pairs if a.prompt == b.prompt)


def test_every_option_is_read_as_its_letter(items):
    for item in items:
        for letter, label in zip(item.choices, item.labels, strict=True):
            assert parse(letter, item).choice == letter
            assert parse(f"{letter} {label}", item).choice == letter
            if "Happy Easter" not in label:  # the options of this pair differ in punctuation alone
                assert parse(label, item).choice == letter, label


def test_corrected_answers(items):
    changed = [item.id for item in items if item.answer != item.truth["corrected"]]
    assert changed == ["mmvp/99", "mmvp/100", "mmvp/279", "mmvp/280"]
    perfect = measures_of(MMVP, items, {item.id: item.answer for item in items}, "s-vco")
    assert perfect["mmvp/pair_acc"].metric.value() == 1
    assert perfect["mmvp/corrected/pair_acc"].metric.value() == 148 / 150
    assert perfect["mmvp/corrected/pair_item_acc"].metric.value() == 296 / 300


@pytest.mark.parametrize("parser", ["strict", "s-vco"])
def test_metrics_are_those_of_a_loop(items, parser):
    rng = random.Random(0)
    texts = {item.id: rng.choice([item.answer, item.answer, "(a)", "B.", "", "neither"]) for item in items}
    found = measures_of(MMVP, items, texts, parser)
    for key, swapped in (("mmvp", ()), ("mmvp/corrected", (99, 100, 279, 280))):
        pairs = singles = last = 0
        for number, item in enumerate(items, start=1):
            truth = "ab"["(a)(b)".index(item.answer) // 3]
            if number in swapped:
                truth = "b" if truth == "a" else "a"
            if parser == "s-vco":
                letter = texts[item.id].strip().lower()[:4].replace("(", "").replace(")", "").replace(" ", "")
            else:
                letter = texts[item.id].lower().strip("().")
            right = letter == truth
            singles += right
            pairs += right and last and number % 2 == 0
            last = right
        assert found[f"{key}/pair_acc"].metric.value() == pytest.approx(pairs / 150, abs=1e-12)
        assert found[f"{key}/pair_item_acc"].metric.value() == pytest.approx(singles / 300, abs=1e-12)


def test_a_constant_answer_gets_no_pair(items):
    found = measures(items, {("logprob", "right"): [said(i, "(a)", scores=(-1.0, -2.0)) for i in items]})
    assert found["mmvp/pair_acc"].metric.value() <= 0.02
    assert found["mmvp/pair_item_acc"].metric.value() == pytest.approx(0.5, abs=0.02)
    assert baselines(items)["chance"]["mmvp/pair_acc"] == 0.25


def test_half_a_pair_counts_for_none(items):
    answers = {item.id: said(item, item.answer) for item in items[:3]}
    found = mmvp_score(items[:3], answers, "strict")
    assert (found["mmvp/pair_acc"].metric.value(), found["mmvp/pair_acc"].clusters) == (1, ("mmvp/1",))
    assert "mmvp/pair_acc" not in mmvp_score(items[:1], answers, "strict")


def test_the_copy_on_the_hub():
    picture = Image.new("L", (5, 4))
    options = {"Question": "Long or short?", "Options": "(a) Long (b) Short", "image": picture}
    first, second = mmvp_hub_items(
        [{"Index": n, "Correct Answer": a, **options} for n, a in ((99, "(b)"), (1, "(b)"))]
    )
    assert (first.id, first.answer, first.truth["corrected"]) == ("mmvp/99", "(a)", "(b)")
    assert (second.answer, second.truth["corrected"]) == ("(b)", "(b)")
    assert second.pictures[0].load().mode == "RGB"


def test_missing_images(data_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"300 of 300 images .*first: 1.jpg.*huggingface"):
        mmvp_items(data_dir / "mmvp", PictureFolder(tmp_path, ORIGIN))


@pytest.mark.parametrize(
    "row", ["1,Open?,open or closed,(a)", "1,Open?,(a) Open (b) Closed,(c)", "x,Open?,(a) O (b) C,(a)"]
)
def test_a_row_that_is_no_question(tmp_path, row):
    path = tmp_path / "Questions.csv"
    path.write_text(HEAD + row + "\n")
    with pytest.raises(ValueError, match="line 2"):
        read_questions(path)


def test_another_file(tmp_path):
    path = tmp_path / "Questions.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="has not the columns Index"):
        read_questions(path)
