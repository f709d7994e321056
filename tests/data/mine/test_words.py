import pytest

from mllm_align.data.mine.words import content, kind_of, numbers, polarity, word_spans, words


def test_words_leave_punctuation_out_and_keep_joined_ones() -> None:
    text = "A well-lit room; it isn't Jörg\u2019s, no. 12 cups!"
    assert words(text) == ["A", "well-lit", "room", "it", "isn't", "Jörg\u2019s", "no", "12", "cups"]
    assert [text[start:end] for start, end in word_spans(text)] == words(text)


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("dog", "object"),
        ("riding", "object"),
        ("Red", "attribute"),
        ("three", "attribute"),
        ("7", "attribute"),
        ("left", "relation"),
        ("yes", "relation"),
        ("the", None),
        ("isn't", None),
        ("picture", None),
    ],
)
def test_kinds(word: str, kind: str | None) -> None:
    assert kind_of(word) == kind


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Two dogs", "2 dog"),
        ("The circles.", "a circle"),
        ("He was running and stopped", "run, stop"),
        ("riding a horse", "rides horses"),
        ("the glasses on the boxes", "glass box"),
        ("a bus", "the buses"),
        ("There isn't a cat", "there is not any cat"),
        ("The image shows a berry", "berries"),
    ],
)
def test_the_same_content_in_other_forms(one: str, other: str) -> None:
    assert content(one) == content(other) != ()


@pytest.mark.parametrize(("one", "other"), [("red", "ring"), ("a cat", "no cat"), ("bus", "bush"), ("left", "right")])
def test_other_content(one: str, other: str) -> None:
    assert content(one) != content(other)


def test_numbers_and_polarity() -> None:
    assert numbers("There are two cats and 11 dogs") == {"2", "11"}
    assert [polarity(text) for text in ("Yes, it is", "no", "Nope.", "It is not", "")] == [
        "yes",
        "no",
        "no",
        None,
        None,
    ]
