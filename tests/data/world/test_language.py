"""Wordings, captions and what a text mentions."""

import re
from random import Random

import pytest

from mllm_align.data.world.language import PARAPHRASES, caption, mentioned, paraphrases, word
from mllm_align.data.world.sampling import BALANCED, sample_scene
from mllm_align.data.world.scenes import Item, Scene


def words(text):
    return set(re.findall(r"[a-z]+", text.lower()))


@pytest.mark.parametrize("kind", PARAPHRASES)
def test_held_out_wordings_use_trained_words_only(kind):
    trained = set().union(*(words(text) for other in PARAPHRASES for text in paraphrases(other)))
    (held_out,) = paraphrases(kind, "held_out")
    assert held_out not in paraphrases(kind)
    assert words(held_out) <= trained
    assert set(paraphrases(kind, "all")) == {*paraphrases(kind), held_out}


def test_an_unknown_set_of_wordings_is_refused():
    with pytest.raises(ValueError, match="unknown set of paraphrases 'new'"):
        paraphrases("colour", "new")


def test_wordings_are_drawn_from_the_set_that_was_asked_for():
    rng = Random(0)
    drawn = {word("colour", ("star",), rng) for _ in range(50)}
    assert drawn == {text.format("star") for text in PARAPHRASES["colour"][:-1]}


def test_a_caption_says_every_object_in_reading_order():
    scene = Scene((Item(2, 3, "star", "blue", "large"), Item(0, 1, "circle", "red", "small")))
    assert caption(scene) == "a small red circle on the left and a large blue star on the right"


def test_captions_mention_exactly_the_objects_and_stay_short():
    rng = Random(0)
    for _ in range(50):
        scene = sample_scene(rng, BALANCED)
        assert mentioned(caption(scene)) == scene.shapes
        assert len(caption(scene).split()) <= 39


def test_mentions_are_whole_words_in_singular_or_plural():
    assert mentioned("Two crosses, a STAR and circles; another star.") == ("cross", "star", "circle")
    assert mentioned("a starring role crossing the squared string") == ()
