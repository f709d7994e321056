"""Training rows, their noise, and what text alone can answer."""

from collections import Counter
from random import Random

import pytest

from mllm_align.data.world.catalogue import SMALL
from mllm_align.data.world.language import mentioned
from mllm_align.data.world.pairs import PAIR_KINDS
from mllm_align.data.world.rows import INSTRUCTION_KINDS, annotate, instruction_rows, pair_rows, text_only_accuracy
from mllm_align.data.world.splits import scenes


@pytest.fixture(scope="module")
def balanced():
    return pair_rows(1200)


def test_pair_rows_have_the_canonical_columns(balanced):
    row = balanced[0]
    assert list(row) == ["id", "image", "prompt", "chosen", "contrast_image", "rejected", "kind"]
    assert row["image"].size == row["contrast_image"].size == (64, 64)
    assert len({row["id"] for row in balanced}) == len(balanced)
    assert all(row["chosen"] != row["rejected"] for row in balanced)
    assert all(row["image"].tobytes() != row["contrast_image"].tobytes() for row in balanced[:100])


def test_text_alone_is_at_chance_on_balanced_pairs(balanced):
    chance = {"existence": 1 / 2, "size": 1 / 2, "side": 1 / 2, "colour": 1 / 5}  # of a shape, one or two held out
    for kind in PAIR_KINDS:
        rows = [row for row in balanced if row["kind"] == kind]
        assert len(rows) == 300
        assert text_only_accuracy(rows) <= chance[kind] + 0.04  # 600 examples: two standard errors


def test_chosen_alone_gives_nothing_away_either(balanced):
    binary = [{"prompt": r["prompt"], "chosen": r["chosen"]} for r in balanced if r["kind"] != "colour"]
    assert text_only_accuracy(binary) == pytest.approx(0.5, abs=0.06)


def test_the_check_finds_a_prior():
    rows = [{"prompt": r["prompt"], "chosen": r["chosen"]} for r in instruction_rows(900, kinds=("colour",))]
    assert text_only_accuracy(rows) > 0.8
    colour = [row for row in pair_rows(400, distribution="prior", kinds=("colour",))]
    assert text_only_accuracy(colour) > 0.4


def test_the_check_is_cross_validated():
    alone = [{"prompt": f"question {number}", "chosen": "yes"} for number in range(50)]
    assert text_only_accuracy(alone) == 0
    assert text_only_accuracy([{"prompt": "q", "chosen": "yes"}] * 50) == 1
    with pytest.raises(ValueError, match="no rows"):
        text_only_accuracy([])


def test_instruction_rows_cover_the_kinds():
    rows = instruction_rows(70)
    assert list(rows[0]) == ["id", "image", "prompt", "chosen", "kind"]
    assert set(Counter(row["kind"] for row in rows).values()) == {70 // len(INSTRUCTION_KINDS)}
    assert all(mentioned(row["chosen"]) for row in rows if row["kind"] == "caption")
    assert [row["chosen"] for row in rows] == [row["chosen"] for row in instruction_rows(70)]


def test_the_noise_is_on_absent_partners_alone_and_has_its_rate():
    rng = Random(0)
    flipped = tempting = other = 0
    for scene in scenes("train", 1500):
        prompt, answer = annotate(scene, "existence", rng)
        (shape,) = mentioned(prompt)
        if shape in scene.shapes:
            assert answer == "yes"
        elif SMALL.partner(shape) in scene.shapes:
            tempting += 1
            flipped += answer == "yes"
        else:
            other += 1
            assert answer == "no"
    assert tempting > 150
    assert other > 150
    assert flipped / tempting == pytest.approx(0.45, abs=0.1)


def test_without_noise_every_answer_is_true():
    rng = Random(0)
    for scene in scenes("train", 300):
        prompt, answer = annotate(scene, "existence", rng, noise=0.0)
        assert (mentioned(prompt)[0] in scene.shapes) == (answer == "yes")
