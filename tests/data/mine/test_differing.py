import pytest

from mllm_align.data.mine.differing import FILTERS, Differing, normalised

CAPTION = "A small dog sleeps on a red sofa near the window."


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("What colour is it?", "red", "blue"),
        ("What colour is it?", "red", "It is blue."),
        ("Is it on the left or on the right?", "left", "on the right"),
        ("How many?", "two", "There are 3."),
        ("Is there a dog?", "Yes.", "No, there is not."),
        ("Is there a dog?", "No", "yes"),
        ("Is there a dog?", "Yes, a small one sleeps here.", "No, there is none."),
        ("What is it?", "a cat", "two dogs"),
        ("Describe it.", CAPTION, "A small cat sleeps on a red sofa near the window."),
        ("Describe it.", CAPTION, "A dog sleeps on a red sofa, and a man sits on a chair."),
    ],
)
def test_other_content_passes(prompt: str, chosen: str, rejected: str) -> None:
    assert Differing().failed(prompt, chosen, rejected) is None


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "name"),
    [
        ("What is it?", "a cat", "", "empty"),
        ("What is it?", "a cat", " ... ", "empty"),
        ("What is it?", "a cat", "I cannot see any picture.", "refusal"),
        ("What is it?", "a cat", "I'm sorry, but there is no image provided", "refusal"),
        ("What is it?", "a cat", "As an AI model I do not have eyes", "refusal"),
        ("What is it?", "a cat", "I don\u2019t have access to it", "refusal"),
        ("What is it?", "a cat", "Please upload the photo first", "refusal"),
        ("What is it?", "a cat", "It is not possible to tell without seeing the image", "refusal"),
        ("Describe it.", CAPTION, "A man and a man and a man and a man.", "repetition"),
        ("Describe it.", CAPTION, "red red red red", "repetition"),
        ("Describe it.", CAPTION, "A large cat sits on a green chair beside the", "unfinished"),
        ("What is it?", "A cat.", "the cat", "equal"),
        ("How many?", "Two", "2", "equal"),
        ("Is there a dog?", "Yes", "Yes, there is a brown dog.", "polarity"),
        ("Is there a dog?", "Yes", "A dog", "polarity"),
        ("What is it?", "a cat", "yes", "polarity"),
        ("How many?", "two", "several", "numbers"),
        ("How many?", "two", "two or three", "numbers"),
        ("What colour is the dog?", "red", "The dog is red.", "same content"),
        ("What is it?", "two dogs", "There are 2 dogs in the picture", "same content"),
        ("What colour is the dog?", "red", "a dog", "nothing new"),
        ("What is it?", "dark red", "red", "nothing new"),
        ("Describe it.", CAPTION, "A dog sleeps on a sofa.", "nothing new"),
        ("Describe it.", CAPTION, "The picture shows a small dog near a red sofa.", "nothing new"),
        ("Describe it.", CAPTION, "A dog and a cat.", "length"),
    ],
)
def test_what_is_dropped_and_why(prompt: str, chosen: str, rejected: str, name: str) -> None:
    differing = Differing(length_ratio=(0.5, 3.0))
    assert name in FILTERS
    assert differing.failed(prompt, chosen, rejected) == name


def test_bounds() -> None:
    other = "A small cat sleeps on a red sofa near the window."
    assert Differing(max_overlap=0.5).failed("Describe it.", CAPTION, other) == "overlap"
    assert Differing(min_new=2).failed("Describe it.", CAPTION, other) == "nothing new"
    assert Differing(closed_words=0).failed("What?", "red", "It is red and warm, and so is the sofa") == "length"
    for options in ({"max_overlap": 1.5}, {"min_new": 0}, {"length_ratio": (2.0, 1.0)}, {"closed_words": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Differing(**options)


@pytest.mark.parametrize(
    ("completed", "name"),
    [
        ("A small cat sleeps on a red sofa near the window.", None),
        ("A small sofa sleeps on a red dog near the window.", None),  # the same words, said of others
        ("The small dogs sleep on a red sofa near the window.", "same content"),
    ],
)
def test_of_a_completed_answer_any_other_word_counts(completed: str, name: str | None) -> None:
    assert Differing().unchanged("Describe it.", CAPTION, completed) == name


def test_of_a_closed_one_as_much_as_ever() -> None:
    assert Differing().unchanged("How many?", "two", "several") == "numbers"
    assert Differing().unchanged("Is it?", "Yes, it is a big red dog", "Yes, it is a big red cat") == "polarity"


def test_normalised() -> None:
    assert normalised("The Two-tone cat, please!") == normalised("two-tone CAT please")
    assert normalised("Two cats") == normalised("2 cats.") != normalised("3 cats")
