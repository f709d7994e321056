"""Minimal pairs differ in one fact and nothing else."""

from collections import Counter
from itertools import islice

import pytest

from mllm_align.data.world.catalogue import SMALL
from mllm_align.data.world.facts import facts
from mllm_align.data.world.pairs import MORE_PAIR_KINDS, PAIR_KINDS, iter_pairs, pair_questions
from mllm_align.data.world.splits import split_of

ALL = PAIR_KINDS + MORE_PAIR_KINDS
FIELDS = {"colour": {"colour"}, "size": {"size"}, "side": {"column"}, "shape": {"shape"}, "place": {"column"}}


def take(count, **settings):
    return list(islice(iter_pairs(**settings), count))


@pytest.mark.parametrize("distribution", ["balanced", "prior", "broken"])
def test_one_item_differs_in_one_fact(distribution):
    for pair in take(70, kinds=ALL, distribution=distribution):
        first, second = (set(scene.items) for scene in pair.scenes)
        gone, come = first - second, second - first
        if pair.changed == "presence":
            assert sorted((len(gone), len(come))) == [0, 1]
            continue
        (old,), (new,) = gone, come
        differs = {name for name in vars(old) if getattr(old, name) != getattr(new, name)}
        assert differs == FIELDS[pair.changed]
        assert pair.scenes[0].background == pair.scenes[1].background


def test_answers_differ_and_are_those_of_the_scenes():
    for pair in take(70, kinds=ALL):
        assert pair.answers[0] != pair.answers[1]
        for scene, answer in zip(pair.scenes, pair.answers, strict=True):
            assert [f.answer for f in facts(scene, pair.kind) if f.subject == pair.subject] == [answer]


def test_kinds_take_turns_and_no_scene_comes_twice():
    pairs = take(200)
    assert set(Counter(pair.kind for pair in pairs).values()) == {50}
    hashes = [scene.content_hash for pair in pairs for scene in pair.scenes]
    assert len(set(hashes)) == 400


@pytest.mark.parametrize("split", ["train", "pairs", "validation"])
def test_both_scenes_are_in_the_split(split):
    for pair in take(60, split=split):
        assert {split_of(scene) for scene in pair.scenes} == {split}
        if split == "train":
            assert not any(SMALL.held_out(i.shape, i.colour) for scene in pair.scenes for i in scene.items)


def test_existence_keeps_the_number_of_objects():
    for pair in take(40, kinds=("existence",)):
        assert len(pair.scenes[0].items) == len(pair.scenes[1].items)


def test_neither_place_tells_the_answer():
    pairs = take(400, kinds=("existence", "size"))
    for kind in ("existence", "size"):
        first = Counter(pair.answers[0] for pair in pairs if pair.kind == kind)
        assert min(first.values()) > 70  # of 200


def test_balanced_pairs_are_neutral_to_the_prior_and_broken_ones_are_not():
    def typical(distribution):
        pairs = take(300, kinds=("colour",), distribution=distribution)
        hits = [a == SMALL.typical_colour(p.subject[0]) for p in pairs for a in p.answers]
        return sum(hits) / len(hits)

    allowed = [sum(not SMALL.held_out(s, c) for c in SMALL.colours) for s in SMALL.shapes]
    uniform = sum(1 / count for count in allowed) / len(allowed)
    assert typical("balanced") == pytest.approx(uniform, abs=0.05)
    assert typical("prior") > 0.4
    assert typical("broken") < uniform


def test_pair_questions_come_in_twos():
    asked = pair_questions(20)
    assert len(asked) == 40
    for one, other in zip(asked[::2], asked[1::2], strict=True):
        assert (one.pair_id, one.text, one.kind, one.cluster) == (other.pair_id, other.text, other.kind, other.cluster)
        assert one.answer != other.answer
        assert one.scene != other.scene
        assert one.id != other.id
        assert {one.answer, other.answer} <= set(one.choices)
    assert len({question.pair_id for question in asked}) == 20
    assert asked == pair_questions(20)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="texture"):
        next(iter_pairs(kinds=("texture",)))
    with pytest.raises(ValueError, match="nothing"):
        next(iter_pairs(kinds=()))
