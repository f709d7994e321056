import pytest

from eval_items import item
from mllm_align_eval.answers import parse, parse_choice, parse_yes_no

YES_NO = {
    "yes": [
        "Yes",
        "yes.",
        "**Yes**",
        "Yes, there is.",
        "YES!",
        " yes ",
        "Yeah, a dog.",
        "The answer is yes.",
        "There is a star in the picture.",
        "I can see a red star.",
        "Yes, there is no doubt that it is there.",
        "There is no doubt that it is there.",
        "No doubt, there is a dog.",
        "There is a dog, without a leash.",
    ],
    "no": [
        "No",
        "NO",
        "\nNo",
        "**No**",
        "no, there is a circle",
        "Nope",
        "There isn't a star.",
        "There is no star.",
        "There are no stars in the picture.",
        "There\u2019s no star.",
        "I don't see a star",
        "The star is not in the picture.",
        "The picture is without a star.",
        "Without a doubt there is no star.",
        "Answer: No",
        "No, his eyes are closed",
        "The image does not show a dog, yes or no",
    ],
    "abstained": [
        "I cannot tell.",
        "It is unclear",
        "I'm not sure",
        "Unknown",
        "It is impossible to determine",
        "I don't know",
        "No idea",
        "It can't be determined from the image",
    ],
    "invalid": ["", "   ", "...", "Yes and no", "yes or no", "yes/no", "red", "a star", "yesterday", "noon", "eyes"],
}


@pytest.mark.parametrize(("state", "text"), [(state, text) for state, texts in YES_NO.items() for text in texts])
def test_yes_no_has_four_states(state, text):
    assert parse_yes_no(text) == state


LETTERS = (("(a)", "(b)"), ("open", "closed"))


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("(a)", "(a)"),
        ("(a) Open", "(a)"),
        ("A.", "(a)"),
        ("b", "(b)"),
        ("B)", "(b)"),
        ("The answer is (B).", "(b)"),
        ("Closed", "(b)"),
        ("The door is closed.", "(b)"),
        ("**B**", "(b)"),
        ("(B) closed is what I see, not (A)", "(b)"),
        ("I see a dog, it is closed", "(b)"),
        ("Option b", "(b)"),
        ("The answer is B because the door is shut.", "(b)"),
        ("B, since it is shut", "(b)"),
        ("B\n\nThe door (a) would be open if ...", "(b)"),
        ("Answer: B\nExplanation: it is not A", "(b)"),
        ("I choose B", "(b)"),
        ("A, B", None),
        ("A because it is, or B", "(a)"),
        ("A door is closed", "(b)"),
        ("Neither A nor B", None),
        ("The camera shows something", None),
        ("The bathtub is full", None),
        ("(a) and (b)", None),
        ("Either (a) or (b)", None),
        ("not open", None),
        ("", None),
        ("I cannot tell", None),
    ],
)
def test_letters_and_their_labels(text, choice):
    assert parse_choice(text, *LETTERS).choice == choice


@pytest.mark.parametrize(
    ("text", "choices", "choice"),
    [
        ("red", ("red", "blue"), "red"),
        ("It is Red.", ("red", "blue"), "red"),
        ("a blue one", ("red", "blue"), "blue"),
        ("reddish", ("red", "blue"), None),
        ("red or blue", ("red", "blue"), None),
        ("either red or blue", ("red", "blue"), None),
        ("There are red and blue ones", ("red", "blue"), None),
        ("3", ("two", "three"), "three"),
        ("There are 3 objects", ("two", "three"), "three"),
        ("13", ("two", "three"), None),
        ("the left of the ring", ("left", "left of the ring"), "left of the ring"),
        ("dark blue", ("blue", "dark blue"), "dark blue"),
        ("It looks dark blue", ("blue", "dark blue"), "dark blue"),
    ],
)
def test_words(text, choices, choice):
    assert parse_choice(text, choices).choice == choice


def test_abstention_is_not_invalid():
    assert parse_choice("I cannot tell", ("red", "blue")).state == "abstained"
    assert parse_choice("green", ("red", "blue")).state == "invalid"


def test_parse_follows_the_kind_of_item():
    assert parse("There is no star", item("a")).choice == "no"
    assert parse("I don't know", item("a")).state == "abstained"
    assert parse("small", item("a", "small", choices=("small", "large"))).choice == "small"


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("open or closed", None),
        ("Open / closed?", None),
        ("(a) or (b)", None),
        ("open, and the lights are on", "open"),
        ("open or nearly so", "open"),
        ("The answer is closed or open", None),
    ],
)
def test_two_choices_are_no_answer(text, choice):
    labels = ("(a)", "(b)")
    found = parse_choice(text, ("open", "closed"), labels)
    assert found.choice == choice
    assert found.state == ("invalid" if choice is None else "answered")
