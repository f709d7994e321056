"""Training rows, their noise, and what text alone can answer."""

from collections import Counter
from random import Random

import pytest

from mllm_align.data.mine.balance import text_balance
from mllm_align.data.world.catalogue import SMALL
from mllm_align.data.world.language import mentioned
from mllm_align.data.world.pairs import PAIR_KINDS
from mllm_align.data.world.rows import INSTRUCTION_KINDS, annotate, instruction_rows, pair_rows
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
    found = text_balance(balanced)
    for kind in PAIR_KINDS:
        assert found.naming[kind].share.value <= found.naming[kind].chance + 0.04
        assert all(shares[kind].value <= 0.6 for shares in found.telling.values())
    assert not any(prior.is_learnt for prior in found.naming.values())


def test_chosen_alone_gives_nothing_away_either(balanced):
    binary = [{"prompt": r["prompt"], "chosen": r["chosen"]} for r in balanced if r["kind"] != "colour"]
    assert text_balance(binary).naming["all"].share.value == pytest.approx(0.5, abs=0.06)


def test_prior_laden_rows_have_one():
    rows = [{"prompt": r["prompt"], "chosen": r["chosen"]} for r in instruction_rows(900, kinds=("colour",))]
    assert text_balance(rows).naming["all"].share.value > 0.8
    colour = text_balance(pair_rows(400, distribution="prior", kinds=("colour",))).naming["all"]
    assert colour.share.value > 0.4
    assert colour.is_learnt


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
