"""Whether captions are true and negatives false, by the scene's facts and a parser of the tests' own."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from caption_truth import claims_of, is_true
from mllm_align.data.world import SMALL, Scene, scenes
from mllm_align.data.world.catalogue import NUMBER_WORDS
from mllm_align.data.world.scenes import Item
from mllm_align.data.world.statements import (
    FORMS,
    NEGATIVE_KINDS,
    Said,
    Statement,
    draw,
    made_false,
    paraphrase,
    statements,
)


def sayable(shape: str, colour: str) -> bool:
    return not SMALL.held_out(shape, colour)


def drawn(count: int, seed: int = 0) -> list[tuple[Scene, Statement]]:
    rng = Random(seed)
    flags = (False, True)
    return [
        (scene, draw(scene, rng.choice((1, 2, 3)), rng, count=rng.choice(flags), leave_out=rng.choice(flags)))
        for scene in scenes("train", count, seed, "balanced")
    ]


def words(statement: Statement) -> Counter[str]:
    return Counter(statement.text().replace(".", " .").split())


def test_what_is_drawn_is_true_in_every_form() -> None:
    for scene, said in drawn(400):
        assert said.holds(scene)
        texts = [said.text(form) for form in FORMS]
        assert all(is_true(text, scene) for text in texts), texts
        # The forms say exactly the same.
        assert all(claims_of(text) == claims_of(texts[0]) for text in texts), texts
        other = paraphrase(said, Random(0))
        assert other != said.text()
        assert other in texts


def test_truth_is_that_of_the_words() -> None:
    """Of scenes that a statement was not made for, too: what `holds` says the facts say."""
    pairs = drawn(120)
    agreed = [said.holds(scene) == is_true(said.text(), scene) for scene, _ in pairs for _, said in pairs]
    assert all(agreed)
    assert 120 < sum(said.holds(scene) for scene, _ in pairs for _, said in pairs) < 2000


@pytest.mark.parametrize("kind", NEGATIVE_KINDS)
def test_negatives_are_false_and_differ_in_what_their_kind_says(kind: str) -> None:
    rng = Random(1)
    made = 0
    for scene, said in drawn(900, seed=2):
        false = made_false(said, scene, kind, rng, sayable)
        if false is None:
            continue
        made += 1
        before, after = claims_of(said.text()), claims_of(false.text())
        assert not is_true(false.text(), scene), false.text()
        lost, new = before - after, after - before
        if kind.startswith("add"):
            assert not lost
            assert {name for name, _, _ in new} <= (
                {"existence", "colour", "size", "side"} if kind == "add_object" else {"colour", "size"}
            )
            assert (sum(new.values()) == 1) == (kind == "add_attribute")
        elif kind == "swap_attribute":
            # The words stay, what they are said of changes.
            assert words(said) == words(false)
            assert len({name for name, _, _ in new}) == 1
        elif kind == "swap_object":
            assert words(said) == words(false)
        elif kind == "replace_object":
            (shape,) = {shape for name, shape, _ in new if name == "existence"}
            assert scene.find(shape) is None
        else:
            names = {
                "replace_attribute": {"colour", "size"},
                "replace_relation": {"side"},
                "replace_count": {"count"},
            }
            assert sum(new.values()) == sum(lost.values()) == 1
            assert {name for name, _, _ in new} <= names[kind]
        assert all(each.colour is None or sayable(each.shape, each.colour) for each in false.objects)
    assert made > 300


def test_a_change_is_drawn_among_what_may_change_and_not_among_its_values() -> None:
    """Colours have five other values and sizes one, yet they are replaced as often."""
    rng = Random(3)
    changed: Counter[str] = Counter()
    for scene in scenes("train", 600, 4, "balanced"):
        said = statements(scene, 2)[0]
        false = made_false(said, scene, "replace_attribute", rng, sayable)
        assert false is not None
        changed.update({name for name, _, _ in claims_of(false.text()) - claims_of(said.text())})
    assert changed["colour"] == pytest.approx(300, abs=60)


def test_no_change_of_a_kind_gives_none() -> None:
    items = (Item(0, 0, "circle", "red", "small"), Item(1, 1, "square", "red", "small"))
    scene = Scene(items)
    said = Statement((Said("circle", "left", "red", "small"), Said("square", "left", "red", "small")))
    assert said.holds(scene)
    rng = Random(0)
    # Both look the same and are on one side, nothing is counted, and nothing is left open.
    for kind in ("swap_object", "swap_attribute", "replace_count", "add_attribute"):
        assert made_false(said, scene, kind, rng, sayable) is None
    assert made_false(said, scene, "replace_object", rng, lambda shape, colour: False) is None


def test_statements_by_hand() -> None:
    scene = Scene((Item(0, 0, "circle", "red", "small"), Item(1, 3, "star", "blue", "large")))
    (said,) = statements(scene, 2)
    assert said.text() == "a small red circle on the left and a large blue star on the right"
    assert said.text("turned") == "a large blue star on the right and a small red circle on the left"
    assert said.text("there") == "there is a small red circle on the left and a large blue star on the right"
    assert (
        said.text("predicate") == "the circle on the left is small and red and the star on the right is large and blue"
    )
    counted = Statement((Said("star", "right", size="large"),), count=2)
    assert counted.text() == f"a large star on the right. there are {NUMBER_WORDS[2]} objects."
    assert counted.holds(scene)
    assert not Statement(counted.objects, count=3).holds(scene)
    assert not Statement((Said("ring", "right"),)).holds(scene)


def test_unknown_words_are_refused() -> None:
    scene, said = drawn(1)[0]
    with pytest.raises(ValueError, match=r"unknown form 'short'; there are plain, turned, there, predicate"):
        said.text("short")
    with pytest.raises(ValueError, match="unknown kind of negative 'swap'; there are swap_object, swap_attribute"):
        made_false(said, scene, "swap", Random(0), sayable)
