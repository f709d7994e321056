import time

import pytest

from mllm_align.data.errors import DataError
from mllm_align.data.mine.completing import Task, complete, read_completion, segment_of
from mllm_align.data.mine.masking import Template
from mllm_align.data.mine.speaking import Ask
from speakers import Scripted

TEMPLATE = Template(("a ", " circle on the ", " and a large ", ""), ("small red", "left", "star"))


@pytest.mark.parametrize(
    "reply",
    [
        "a large blue circle on the right and a large moon",
        '  Answer: "A large  blue circle on the right and a large moon" ',
        "The completed answer:\na large blue circle on the right and a large moon",
    ],
)
def test_a_completion_is_read_with_the_fixed_words_as_they_were(reply: str) -> None:
    assert read_completion(TEMPLATE, reply) == "a large blue circle on the right and a large moon"


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "a [MASK] circle on the right and a large moon",
        "a large blue square on the right and a large moon",  # another word than a fixed one
        "the circle on the left is large and blue",
        "a  circle on the right and a large moon",  # nothing in a hole
        "a the circle on the right and a large moon",  # nothing said in a hole
        "a circle which is large and blue and lies near a big green circle on the right and a large moon",
        "a large blue circle on the right and a large moon.\nI hope that this helps!",
        "a big, blue circle on the right and a large moon",
    ],
)
def test_other_words_are_no_completion(reply: str) -> None:
    assert read_completion(TEMPLATE, reply) is None


def test_holes_at_both_ends_and_side_by_side() -> None:
    assert read_completion(Template(("", ""), ("yes",)), "No.") == "No"
    template = Template(
        (
            "",
            " ",
            " sits.",
        ),
        ("red", "dog"),
    )
    assert read_completion(template, "blue cat sits.") == "blue cat sits."
    assert read_completion(template, "blue cat stands.") is None


def test_a_long_reply_that_does_not_fit_costs_no_time() -> None:
    template = Template(("", *[" "] * 7, " end"), ("red",) * 8)
    begin = time.perf_counter()
    assert read_completion(template, "word " * 3000) is None
    assert time.perf_counter() - begin < 1


@pytest.mark.parametrize(
    ("reply", "hole", "following", "fill"),
    [
        (" square on the left", "circle", " on the ", "square"),
        (" red square on the left", "circle", " on the ", "red square"),  # up to a word of the hole's kind
        (" large blue star on", "small red", " circle", "large blue"),
        (" right and a", "left", "", "right"),
        (", right.", "left", "", "right"),
        (" the two cats. And", "three dogs", "", "the two cats"),
        ("es square on", "circle", " on the ", "square"),  # goes on with the last fixed word
        (" on the", "circle", "", None),
        ("", "circle", "", None),
        (". A dog", "circle", "", "A dog"),
    ],
)
def test_the_segment_of_a_continuation(reply: str, hole: str, following: str, fill: str | None) -> None:
    assert segment_of(reply, hole, following, inside=True) == fill


def test_from_the_beginning_nothing_is_passed_over() -> None:
    assert segment_of("squares are", "circles", " are", inside=False) == "squares"


def test_continuing_asks_hole_by_hole_for_all_tasks_at_once() -> None:
    said = {"a": " tiny pink circle on the", "a tiny pink circle on the": " top of", "": "no"}
    speaker = Scripted(lambda ask: said.get(ask.start, " moon and a"))
    tasks = [Task(Ask("What?"), TEMPLATE), Task(Ask("Is it?"), Template(("", ""), ("yes",)))]
    assert complete(tasks, speaker, "continue") == ["a tiny pink circle on the top and a large moon", "no"]
    assert speaker.calls == 3
    assert [ask.prompt for ask in speaker.asked] == ["What?", "Is it?", "What?", "What?"]
    assert speaker.asked[-1].start == "a tiny pink circle on the top and a large"


def test_continuing_stops_where_a_hole_stays_empty() -> None:
    speaker = Scripted(lambda ask: "")
    assert complete([Task(Ask("What?"), TEMPLATE)], speaker, "continue") == [None]
    assert speaker.calls == 1
    assert complete([], speaker, "continue") == complete([], speaker, "instruct") == []


def test_instructing_asks_once_with_the_masked_answer() -> None:
    speaker = Scripted(lambda ask: "a blue circle on the right and a large moon" if "What" in ask.prompt else "Sorry")
    tasks = [Task(Ask("What {is} it?", system="Be brief."), TEMPLATE), Task(Ask("Is it?"), TEMPLATE)]
    assert complete(tasks, speaker, "instruct") == ["a blue circle on the right and a large moon", None]
    assert speaker.calls == 1
    assert speaker.asked[0].prompt.startswith("What {is} it?\n")
    assert speaker.asked[0].prompt.endswith(TEMPLATE.masked)
    assert speaker.asked[0].system == "Be brief."


@pytest.mark.parametrize("way", ["instruct", "continue"])
def test_what_cannot_be_asked_is_not_completed_and_spoils_no_other(way: str) -> None:
    def rule(ask: Ask) -> str:
        if ask.prompt.startswith("bad"):
            raise DataError("refused")
        return "no"

    template = Template(("", ""), ("yes",))
    tasks = [Task(Ask(prompt), template) for prompt in ("good", "bad", "good")]
    assert complete(tasks, Scripted(rule), way) == ["no", None, "no"]


def test_an_unknown_way() -> None:
    with pytest.raises(ValueError, match="instruct or continue, not 'guess'"):
        complete([], Scripted(str), "guess")
