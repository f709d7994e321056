"""MMVP-VLM: the published schema, and the script's softmax over two images written as a loop."""

from __future__ import annotations

import math
import random

import pytest

from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.mmvp_vlm import IMAGES, MMVP_VLM
from mllm_align_eval.scoring import measures_of

NO_PICTURES = PictureFolder(None, IMAGES)
PATTERNS = (
    "Orientation and Direction",
    "Presence of Specific Features",
    "State and Condition",
    "Quantity and Count",
    "Positional and Relational Context",
    "Color and Appearance",
    "Structural Characteristics",
    "Texts",
    "Viewpoint and Perspective",
)
HEAD = "Question ID,Type,Statement\n"


@pytest.fixture
def items(tmp_path):
    rows = [f'{n + 1},{PATTERNS[n // 30]},"statement {n}"' for n in range(270)]
    (tmp_path / "Questions.csv").write_text(HEAD + "\n".join(rows) + "\n")
    return MMVP_VLM.read(tmp_path, NO_PICTURES)


def values(measures):
    return {key: measure.metric.value() for key, measure in measures.items()}


def loop(scores):
    """The script: a share of more than a half is the first image, everything else the second."""
    right = dict.fromkeys(PATTERNS, 0)
    for pair in range(135):
        first, second = scores[f"mmvp_vlm/{2 * pair + 1}"], scores[f"mmvp_vlm/{2 * pair + 2}"]
        said = []
        for statement in (0, 1):
            a, b = math.exp(first[statement]), math.exp(second[statement])
            said.append(1 if a / (a + b) > 0.5 else 2)
        right[PATTERNS[pair // 15]] += said == [1, 2]
    return {pattern: count / 15 for pattern, count in right.items()}


def test_the_schema(items):
    assert len(items) == 270
    assert items[1].choices == ("a photo of statement 0", "a photo of statement 1")
    assert items[1].answer == "a photo of statement 1"
    assert items[1].pictures[0].name == "Orientation and Direction/2.jpg"
    assert len({item.cluster for item in items}) == 135


def test_official_pairs_are_those_of_the_script(items):
    rng = random.Random(0)
    scores = {item.id: [rng.randint(0, 3), rng.randint(0, 3)] for item in items}
    expected = loop(scores)
    found = values(measures_of(MMVP_VLM, items, scores, "official"))
    for pattern, value in expected.items():
        assert found[f"mmvp_vlm/{pattern.lower().replace(' ', '_')}/pair_acc"] == pytest.approx(value, abs=1e-12)
    assert found["mmvp_vlm/pair_acc"] == pytest.approx(sum(expected.values()) / 9, abs=1e-12)
    strict = values(measures_of(MMVP_VLM, items, scores, "strict"))
    assert strict["mmvp_vlm/pair_acc"] < found["mmvp_vlm/pair_acc"]


@pytest.mark.parametrize("parser", ["strict", "official"])
def test_constant_and_perfect_scores(items, parser):
    constant = measures_of(MMVP_VLM, items, {item.id: [0.2, 0.2] for item in items}, parser)
    assert values(constant)["mmvp_vlm/pair_acc"] == 0
    assert values(constant)["mmvp_vlm/texts/tied"] == 1
    perfect = {item.id: [float(choice == item.answer) for choice in item.choices] for item in items}
    found = values(measures_of(MMVP_VLM, items, perfect, parser))
    assert (found["mmvp_vlm/pair_acc"], found["mmvp_vlm/texts/tied"]) == (1, 0)
    # Of one pair the second statement does not tell the images apart.
    first, second = [item.id for item in items if item.split == "texts"][:2]
    perfect |= {first: [1.0, 0.5], second: [0.0, 0.5]}
    found = values(measures_of(MMVP_VLM, items, perfect, parser))
    assert found["mmvp_vlm/texts/tied"] == pytest.approx(1 / 15)
    assert found["mmvp_vlm/texts/pair_acc"] == pytest.approx(1 if parser == "official" else 14 / 15)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1,Texts,a\n", "has 1 statements, which is not two per pair"),
        ("1,Texts,a\n2,Texts\n", "line 3: not a number, a pattern and a statement"),
        ("2,Texts,a\n1,Texts,b\n", "line 2: pairs are an odd number and then an even one"),
    ],
)
def test_files_of_another_shape(tmp_path, rows, message):
    (tmp_path / "Questions.csv").write_text(HEAD + rows)
    with pytest.raises(ValueError, match=message):
        MMVP_VLM.read(tmp_path, NO_PICTURES)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Questions\.csv: get it from .*MMVP_VLM"):
        MMVP_VLM.read(tmp_path, NO_PICTURES)
