"""Limits of routing, and what a row's captions are."""

from __future__ import annotations

import pytest

from mllm_align.data.errors import DataError
from mllm_align.data.routes import Routed, Routes, captions_of, routes_from, seeded
from mllm_align.data.schema import UNREADABLE


def test_every_length_goes_one_way_or_none() -> None:
    routes = Routes()
    ways = {tokens: (routes.is_short(tokens), routes.is_long(tokens)) for tokens in (1, 29, 30, 500, 501)}
    assert ways == {
        1: (True, False),
        29: (True, False),
        30: (False, True),
        500: (False, True),
        501: (False, False),
    }
    assert Routes(long=None).is_long(10**6)
    assert [Routes(short=5, long=5).is_long(tokens) for tokens in (4, 5, 6)] == [False, True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short": 0}, "short must be a whole number of tokens above 0, not 0"),
        ({"short": True}, "short must be a whole number of tokens above 0, not True"),
        ({"short": 30, "long": 20}, r"long must be a whole number of tokens from short \(30\) on, not 20"),
        ({"long": "500"}, "long must be a whole number of tokens"),
        ({"prompt": " "}, "prompt must be the instruction behind the image, not ' '"),
        ({"redraw": 1}, "redraw must be true or false, not 1"),
        ({"shrot": 20}, "routing captions has no option 'shrot'; it has short, long, prompt, redraw; did you mean 's"),
        ({"seed": 3}, "routing captions has no option 'seed'"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        routes_from(options)


def test_captions_are_gathered_from_all_columns_and_each_is_there_once() -> None:
    row = {
        "captions": ["A dog. ", "Two dogs."],
        "caption": "A dog.",
        "chosen": [{"role": "assistant", "content": "B."}],
    }
    assert captions_of(row, "row 0") == ["A dog.", "Two dogs.", "B."]
    assert captions_of({"caption": ["A cat.", "A cat."], "captions": None}, "row 0") == ["A cat."]
    one_turn = {"prompt": [{"role": "user", "content": "Describe."}], "chosen": "A cup."}
    assert captions_of(one_turn, "row 0") == ["A cup."]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"image": "a.png", "text": "A dog."},
            "row 3: no column 'caption'; captions are in one of captions, caption, ch",
        ),
        ({"captions": []}, "row 3: no column 'caption'"),
        ({"captions": ["A dog.", " "]}, "row 3: column 'captions' is empty; fill it"),
        ({"captions": ["A dog.", 3]}, "row 3: column 'captions' must be text or one assistant message, got int"),
        ({UNREADABLE: "no picture"}, "row 3: no picture"),
        (
            {
                "prompt": [
                    {"role": "user", "content": "Hello"},
                    {"role": "assistant", "content": "Hello!"},
                    {"role": "user", "content": "What is it?"},
                ],
                "chosen": "A dog.",
            },
            "row 3: 'prompt' is a conversation, whose answer is no caption",
        ),
    ],
)
def test_rows_without_captions(row: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        captions_of(row, "row 3")


def test_a_prompt_that_is_not_kept_may_be_anything() -> None:
    for prompt in (["Look.", 3], 5, [{"content": "Look."}]):
        assert captions_of({"prompt": prompt, "caption": "A dog."}, "row 3") == ["A dog."]


def test_draws_of_a_run_and_counts_in_words() -> None:
    assert seeded(Routes(short=7), 5, once=False) == Routes(short=7, seed=5)
    assert not seeded(Routes(), 5, once=True).redraw
    assert not seeded(Routes(redraw=False), 5, once=False).redraw
    assert str(Routed(1000, 20, 3, 4, 5)) == (
        "1,023 rows of captions: 1,000 short, 20 long, 3 both; 4 rows left out, 5 captions too long"
    )
