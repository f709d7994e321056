"""Edit distance, ANLS and VQA accuracy against the published scripts written down again as plain loops."""

from __future__ import annotations

import functools
import random
import re

import pytest

from mllm_align_eval.text_metrics import (
    anls,
    anls_rrc,
    levenshtein,
    vqa_accuracy,
    vqa_normalise,
    vqa_normalise_vlmevalkit,
)

LETTERS = "ab cİß "


def distance(first: str, second: str) -> int:
    """By the recursive definition."""

    @functools.cache
    def tail(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        return min(tail(i - 1, j) + 1, tail(i, j - 1) + 1, tail(i - 1, j - 1) + (first[i - 1] != second[j - 1]))

    return tail(len(first), len(second))


def draws(number: int, letters: str = LETTERS):
    rng = random.Random(0)
    word = lambda: "".join(rng.choice(letters) for _ in range(rng.randint(0, 8)))  # noqa: E731
    for _ in range(number):
        yield word(), [word() for _ in range(rng.randint(1, 3))]


def test_levenshtein():
    assert levenshtein("kitten", "sitting") == 3
    assert levenshtein("", "abc") == levenshtein("abc", "") == 3
    for text, answers in draws(1500):
        assert levenshtein(text, answers[0]) == distance(text, answers[0])


def test_anls_is_the_formula_of_the_paper():
    for text, answers in draws(1500):
        best = 0.0
        for answer in answers:
            said, true = text.strip().lower(), answer.strip().lower()
            longer = max(len(said), len(true))
            far = distance(said, true) / longer if longer else 0.0
            best = max(best, 1 - far if far < 0.5 else 0.0)
        assert anls(text, answers) == best
    assert anls("abc", []) == anls_rrc("abc", []) == 0


def rrc(text: str, answers: list[str]) -> float:
    """The competition's script."""
    values = []
    for answer in answers:
        true = " ".join(answer.strip().lower().split())
        said = " ".join(text.strip().lower().split())
        length = max(len(answer.upper()), len(text.upper()))
        values.append(0.0 if length == 0 else float(distance(true, said)) / float(length))
    result = 1 - min(values)
    return 0 if result < 0.5 else result


def test_anls_of_the_competition_is_that_of_its_script():
    for text, answers in draws(2500):
        assert anls_rrc(text, answers) == rrc(text, answers), (text, answers)


def test_where_paper_and_script_differ():
    assert (anls("ab", ["ax"]), anls_rrc("ab", ["ax"])) == (0, 0.5)
    padded = "xyz" + " " * 60
    assert anls(padded, ["abc"]) == 0
    assert anls_rrc(padded, ["abc"]) == pytest.approx(1 - 3 / 63)
    # White space inside counts for the paper alone.
    assert anls("new  york", ["new york"]) == 1 - 1 / 9
    assert anls_rrc("New York", ["new york"]) == anls("New York\n", ["new york"]) == 1


CONTRACTIONS = {
    "dont": "don't",
    "couldntve": "couldntve",
    "couldn'tve": "couldn't've",
    "couldnt've": "couldn't've",
    "yall'd've": "y'all'd've",
    "ow's'at": "'ow's'at",
    "somebody'd": "somebodyd",
    "ill": "ill",
    "youre": "you're",
}


def mmf(text: str) -> str:
    """The evaluation of TextVQA, with as much of its table as the words below need."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    out = text
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        if mark + " " in text or " " + mark in text or re.search(r"(?<=\d)(\,)+(?=\d)", text) is not None:
            out = out.replace(mark, "")
        else:
            out = out.replace(mark, " ")
    return words(re.sub(r"(?!<=\d)(\.)(?!\d)", "", out, count=32))


def kit(text: str) -> str:
    """VLMEvalKit's."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    out = text
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        if mark + " " in text or " " + mark in text or re.search(r"(\d)(,)(\d)", text) is not None:
            out = out.replace(mark, "")
        else:
            out = out.replace(mark, " ")
    return words(re.sub(r"(?<!\d)\.(?!\d)", "", out, count=32))


def words(text: str) -> str:
    names = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    numbers = {name: str(place) for place, name in enumerate(names)} | {"zero": "0"}
    kept = [numbers.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in kept if word not in ("a", "an", "the"))


def test_normalisation_is_that_of_the_scripts():
    pieces = [*"abe 01.,'?!-/$\n\t", "the ", " Two", "none", "1,000", "1.5", "'s", "What's ", *CONTRACTIONS]
    rng = random.Random(0)
    for number in range(6000):
        text = "".join(rng.choice(pieces) for _ in range(rng.randint(0, 8))) + "." * (40 * (number % 50 == 0))
        assert vqa_normalise(text) == mmf(text), text
        assert vqa_normalise_vlmevalkit(text) == kit(text), text


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The dogs.", "dogs"),
        ("Two", "2"),
        ("1,000", "1000"),
        ("3.50", "3.50"),
        ("NO SMOKING!", "no smoking"),
        ("mcdonald's", "mcdonald 's"),
        ("dont", "don't"),
        ("new-york", "new york"),
        ("  ", ""),
    ],
)
def test_normal_texts(text, normal):
    assert vqa_normalise(text) == normal


def test_vqa_accuracy_leaves_each_answer_out_once():
    for same in range(11):
        answers = ["red"] * same + ["blue"] * (10 - same)
        scores = []
        for left_out in range(10):
            others = answers[:left_out] + answers[left_out + 1 :]
            scores.append(min(1, float(len([answer for answer in others if answer == "red"])) / 3))
        assert vqa_accuracy("red", answers) == pytest.approx(sum(scores) / 10, abs=1e-15)
    assert vqa_accuracy("red", ["red"] * 3 + ["blue"] * 7) == pytest.approx(0.9)
    assert vqa_accuracy("red", []) == 0
