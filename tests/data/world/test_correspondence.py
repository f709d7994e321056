"""Two pictures of the same things: what is asked, what is drawn, and what gives nothing away."""

import re
from collections import Counter

import numpy as np
import pytest

from mllm_align.data.loading import world_rows
from mllm_align.data.schema import parse_row
from mllm_align.data.world.catalogue import COLOURS, NUMBER_WORDS, SMALL, World
from mllm_align.data.world.correspondence import (
    DIFFICULTIES,
    Difficulty,
    Frame,
    Placed,
    Thing,
    boxes,
    correspondence_rows,
    draw,
    iter_matchings,
)
from mllm_align.data.world.correspondence.drawing import CONTOUR
from mllm_align.data.world.correspondence.matching import PARAPHRASES
from mllm_align.demo.base_model import vocabulary


def matchings(count, *args, **kwargs):
    stream = iter_matchings(*args, **kwargs)
    return [next(stream) for _ in range(count)]


@pytest.fixture(scope="module", params=["easy", "medium", "hard"])
def found(request):
    return DIFFICULTIES[request.param], matchings(300, "train", 0, request.param)


def looks(frame):
    return {each.thing.name: each.thing.looks for each in frame.placed}


def test_the_two_that_are_asked_for_differ_in_one_attribute_and_exactly_one_number_is_right(found):
    how, all_matchings = found
    for matching in all_matchings:
        first, second = map(looks, matching.frames)
        one, other = (first[name] for name in matching.asked)
        assert sum(a != b for a, b in zip(one, other, strict=True)) == 1
        assert matching.differs_in in how.differ_in
        for frame in (first, second):
            assert len(set(frame.values())) == len(frame) == how.num_things
        for name, answer in zip(matching.asked, matching.answers, strict=True):
            same = [NUMBER_WORDS[matching.numbers[other]] for other, seen in second.items() if seen == first[name]]
            assert same == ([] if answer == "no" else [answer])
            assert answer in matching.choices
        assert matching.answers[0] != matching.answers[1]
        shared = set(first) & set(second)
        assert len(shared) >= how.num_things - 1
        assert all(first[name] == second[name] for name in shared)


def test_look_alikes_are_one_attribute_from_the_first_and_others_have_another_shape(found):
    how, all_matchings = found
    for matching in all_matchings[:100]:
        first = list(looks(matching.frames[0]).values())
        away = [sum(a != b for a, b in zip(first[0], other, strict=True)) for other in first[1:]]
        assert away[: how.num_alike - 1] == [1] * (how.num_alike - 1)
        assert all(first[0][0] != other[0] for other in first[how.num_alike :])


def test_neither_text_nor_place_tells_the_answer(found):
    how, all_matchings = found
    chosen = Counter(matching.answers[0] for matching in all_matchings)
    rejected = Counter(matching.answers[1] for matching in all_matchings)
    chance = (1 - how.none_rate / 2) / how.num_things
    for word in all_matchings[0].choices:
        wanted = how.none_rate / 2 if word == "no" else chance
        assert chosen[word] / 300 == pytest.approx(wanted, abs=0.09)
        assert rejected[word] / 300 == pytest.approx(wanted, abs=0.09)
    stayed = [
        {(e.thing.name, e.row, e.column) for e in m.frames[0].placed}
        & {(e.thing.name, e.row, e.column) for e in m.frames[1].placed}
        for m in all_matchings
    ]
    assert sum(map(len, stayed)) / (300 * how.num_things) == pytest.approx(1 / SMALL.grid**2, abs=0.04)


def test_splits_share_no_picture_and_seeds_give_the_same_again():
    pictures = {
        split: {repr(frame.content) for m in matchings(120, split) for frame in m.frames}
        for split in ("train", "validation", "test")
    }
    assert not pictures["train"] & pictures["validation"]
    assert not pictures["train"] & pictures["test"]
    assert not pictures["validation"] & pictures["test"]
    assert matchings(5, "test", 3) == matchings(5, "test", 3)
    assert matchings(5, "test", 3) != matchings(5, "test", 4)


def test_combinations_held_out_of_training_are_in_none():
    things = [each.thing for m in matchings(200, "test") for frame in m.frames for each in frame.placed]
    assert not any(SMALL.held_out(thing.shape, thing.colour) for thing in things)


def test_boxes_are_those_of_the_pixels_in_sight():
    """Each thing drawn alone, without light and noise: what differs from the empty background, bar apart."""
    checked = 0
    for matching in matchings(40, "train", 0, "hard"):
        frame = matching.frames[1]
        for each in frame.placed:
            fields = {**vars(frame), "placed": (each,), "light": 1.0, "noise": 0.0}
            levels = np.asarray(draw(type(frame)(**fields)), dtype=float)
            part = np.abs(levels - frame.background).max(axis=2) > 0
            grey = (levels == 128).all(axis=2) if each.hidden_edge else np.zeros_like(part)
            rows, columns = (np.flatnonzero((part & ~grey).any(axis=axis)) for axis in (1, 0))
            wanted = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            # A pixel that is covered by less than a half is drawn, and not in the box: up to two at a point.
            most = 1.01 if each.thing.shape in ("square", "circle", "cross") else 2.01
            assert np.asarray(boxes(frame)[each.thing.name]) * frame.image_size == pytest.approx(wanted, abs=most)
            checked += 1
    assert checked == 240


def test_boxes_of_a_square_are_what_its_side_says():
    """A large square's half side is 0.9 x 0.44 of a cell of 16 pixels: pixels 2 to 13 are covered by half or more."""
    thing = Thing("it", "square", "red", "large", "plain", "none")
    whole = Frame((Placed(thing, 1, 2, dx=1),), 64, 4, 240)
    assert np.asarray(boxes(whole)["it"]) * 64 == pytest.approx([32 + 3, 16 + 2, 32 + 15, 16 + 14])
    for edge, wanted in {"left": [38, 18, 47, 30], "bottom": [35, 18, 47, 27]}.items():
        hidden = Frame((Placed(thing, 1, 2, 1, 0, edge, 0.25),), 64, 4, 240)
        assert np.asarray(boxes(hidden)["it"]) * 64 == pytest.approx(wanted)


def test_rows_fit_the_schema_and_the_marks_are_where_they_should_be():
    rows = correspondence_rows(30)
    for raw, matching in zip(rows, matchings(30), strict=True):
        row = parse_row(raw)
        assert len(row.images) == len(row.contrast_images) == 2
        assert row.images[1] is row.contrast_images[1]
        assert (row.responses["chosen"], row.responses["rejected"]) == matching.answers
        assert {each.image for each in row.objects["image"]} == {0, 1}
        for image, name in zip((row.images[0], row.contrast_images[0]), matching.asked, strict=True):
            marked = (np.asarray(image) == CONTOUR).all(axis=2)
            ys, xs = (np.flatnonzero(marked.any(axis=axis)) for axis in (1, 0))
            box = np.asarray(boxes(matching.frames[0])[name]) * 64
            assert [xs[0], ys[0], xs[-1] + 1, ys[-1] + 1] == pytest.approx(list(box), abs=1.01)
        assert not (np.asarray(row.images[1]) == CONTOUR).all(axis=2).any()
    assert np.asarray(rows[0]["images"][1]).tobytes() == np.asarray(correspondence_rows(1)[0]["images"][1]).tobytes()


def test_the_shipped_base_has_every_word():
    words = set(vocabulary())
    for text in (*PARAPHRASES["seen"], *PARAPHRASES["held_out"]):
        assert set(re.findall(r"[a-z]+|[:?.]", text.format("one or no").lower())) <= words


def test_larger_pictures_and_difficulties_of_ones_own():
    (matching,) = matchings(1, "train", 0, Difficulty(8, 2, ("colour",)), world=World(image_size=224, num_shapes=10))
    assert draw(matching.frames[1], numbers=matching.numbers).size == (224, 224)
    assert "eight" in matching.choices
    assert all(each.thing.colour in COLOURS for each in matching.frames[0].placed)


def test_they_are_rows_of_the_world():
    dataset = world_rows("world:correspondence", 3, split="test", distribution="hard")
    row = parse_row(dataset[0])
    assert row.id == "correspondence/test/hard/0/0"
    assert [each.object_id for each in row.objects["image"][:2]] == ["thing 0", "thing 1"]
    assert (
        row.objects["image"][0].box == parse_row(correspondence_rows(1, 0, "test", "hard")[0]).objects["image"][0].box
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"difficulty": "odd"}, "unknown difficulty 'odd'; there are easy, medium, hard"),
        ({"split": "pairs"}, "unknown split 'pairs'"),
        ({"paraphrases": "all"}, "there are seen, held_out, full"),
        ({"world": World(grid=2, num_objects=(1,))}, "a grid of 2 has no room for 6 things"),
        ({"difficulty": Difficulty(4, 4, ("size",))}, "look-alikes that differ in size alone are fewer"),
    ],
)
def test_what_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        matchings(1, **{"difficulty": "hard"} | wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_alike": 1},
        {"num_things": 9},
        {"differ_in": ()},
        {"differ_in": ("side",)},
        {"least_zoom": 0.5},
        {"hidden_share": 0.4},
    ],
)
def test_difficulties_without_a_meaning(wrong):
    with pytest.raises(ValueError, match="Difficulty: "):
        Difficulty(**wrong)
