"""Evaluation questions: true, matched, at most two a scene, and hard on the prior where they should be."""

from collections import Counter

import pytest

from mllm_align.data.world.facts import CLOSED_KINDS, fact
from mllm_align.data.world.language import PARAPHRASES
from mllm_align.data.world.questions import POPE_REGIMES, existence_questions, popular_shapes, questions
from mllm_align.data.world.splits import scenes, split_of


def matched(asked):
    """Per kind and first names: yes minus no."""
    surplus = Counter()
    for question in asked:
        if question.choices == ("yes", "no"):
            surplus[question.kind, *question.subject[:2]] += 1 if question.answer == "yes" else -1
    return surplus


@pytest.mark.parametrize("split", ["test_in_distribution", "test_adversarial", "validation"])
def test_questions_are_true_matched_and_at_most_two_a_scene(split):
    asked = questions(split, 200)
    assert 360 <= len(asked) <= 400
    assert len({question.id for question in asked}) == len(asked)
    assert max(Counter(question.cluster for question in asked).values()) == 2
    assert set(matched(asked).values()) == {0}
    kinds = Counter(question.kind for question in asked)
    assert set(kinds) == set(CLOSED_KINDS)
    assert min(kinds.values()) > 0.7 * max(kinds.values())
    for question in asked:
        found = fact(question.scene, question.kind, question.subject)
        assert (question.answer, question.choices, question.prior_answer) == found[2:]
        assert split_of(question.scene) == question.split == split
        assert question.cluster == question.scene.content_hash


def test_the_prior_fails_on_adversarial_questions_and_serves_in_distribution():
    def prior_accuracy(split, kind):
        asked = [q for q in questions(split, 120, kinds=(kind,)) if q.prior_answer is not None]
        return sum(q.answer == q.prior_answer for q in asked) / len(asked)

    for kind in ("colour", "size", "existence"):
        assert prior_accuracy("test_adversarial", kind) == 0
    assert prior_accuracy("test_adversarial", "side") < 0.2
    for kind in ("colour", "size", "side"):
        assert prior_accuracy("test_in_distribution", kind) > 0.8


@pytest.mark.parametrize("regime", POPE_REGIMES)
def test_polling_is_object_matched(regime):
    asked = existence_questions(regime, 200)
    assert 200 <= len(asked) <= 202
    assert set(matched(asked).values()) == {0}
    assert max(Counter(question.cluster for question in asked).values()) <= 2
    assert {question.regime for question in asked} == {regime}
    for question in asked:
        assert (question.subject[0] in question.scene.shapes) == (question.answer == "yes")
    texts = Counter((question.cluster, question.subject) for question in asked)
    assert max(texts.values()) == 1


def test_regimes_ask_about_what_their_names_say():
    asked = {regime: existence_questions(regime, 200) for regime in POPE_REGIMES}
    assert all(question.prior_answer != question.answer for question in asked["adversarial"])
    popular = popular_shapes()
    assert {question.subject[0] for question in asked["popular"]} == set(popular)
    counts = Counter(shape for scene in scenes("train", 1000) for shape in scene.shapes)
    assert min(counts[shape] for shape in popular) >= max(c for s, c in counts.items() if s not in popular)
    assert len({question.subject[0] for question in asked["random"]}) == 6
    with pytest.raises(ValueError, match="unknown polling regime 'hard'"):
        existence_questions("hard", 10)


def test_held_out_wordings_and_combinations():
    asked = questions("test_adversarial", 100, paraphrases="held_out")
    for question in asked:
        assert question.text == PARAPHRASES[question.kind][-1].format(*question.subject)
    about_colour = [question for question in asked if question.kind == "colour"]
    assert 0 < sum(question.held_out for question in about_colour) < len(about_colour)
    assert not any(question.held_out for question in questions("test_in_distribution", 50))


def test_captions_are_open():
    asked = questions("validation", 10, kinds=("caption",))
    assert len(asked) == 10
    assert {question.choices for question in asked} == {()}


def test_questions_are_the_same_from_the_same_seed():
    assert questions("validation", 30) == questions("validation", 30)
    assert questions("validation", 30) != questions("validation", 30, seed=1)
    private = questions("private", 10, salt="mine")
    assert private != questions("private", 10, salt="other")
