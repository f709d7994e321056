"""Each blind reader finds the hint that is planted for it, and only on rows it has not learned from."""

from __future__ import annotations

import numpy as np
import pytest

from mllm_align.data.mine.probes import TextPair, frequencies, lengths, naming, words

FOLDS = np.arange(400) % 5


def pairs(make: object) -> list[TextPair]:
    rng = np.random.default_rng(0)
    return [TextPair(*make(number, rng), True) for number in range(400)]  # type: ignore[operator]


def sentence(rng: np.random.Generator, count: int) -> str:
    return " ".join(rng.choice(list("abcdefghijklmnop"), count))


def test_frequencies_follow_the_question() -> None:
    def make(number: int, rng: np.random.Generator) -> tuple[str, str, str]:
        question, answers = f"Question {number % 2}?", ["yes", "no"]
        usual = rng.random() < 0.8
        return (question, *(answers if usual == (number % 2 == 0) else answers[::-1]))

    found = frequencies(pairs(make), FOLDS)
    assert found.mean() == pytest.approx(0.8, abs=0.06)
    assert words(pairs(make), FOLDS).mean() < 0.6  # which answer it is tells nothing without the question


def test_frequencies_fall_back_on_the_answer() -> None:
    found = frequencies(pairs(lambda number, rng: (f"Question {number}?", "Yes.", "no")), FOLDS)
    assert found.mean() == 1.0


def test_words_find_a_word_and_lengths_a_length() -> None:
    def word(number: int, rng: np.random.Generator) -> tuple[str, str, str]:
        return f"{number}?", f"{sentence(rng, 8)} indeed", f"{sentence(rng, 8)} perhaps"

    def longer(number: int, rng: np.random.Generator) -> tuple[str, str, str]:
        return f"{number}?", sentence(rng, 7), sentence(rng, 9)

    assert words(pairs(word), FOLDS).mean() > 0.99
    assert lengths(pairs(word), FOLDS).mean() == 0.5
    assert lengths(pairs(longer), FOLDS).mean() == 1.0
    assert words(pairs(longer), FOLDS).mean() > 0.9


@pytest.mark.parametrize("probe", [frequencies, words, lengths])
def test_what_tells_nothing_is_at_half(probe: object) -> None:
    def make(number: int, rng: np.random.Generator) -> tuple[str, str, str]:
        return "What?", sentence(rng, int(rng.integers(3, 9))), sentence(rng, int(rng.integers(3, 9)))

    assert probe(pairs(make), FOLDS).mean() == pytest.approx(0.5, abs=0.08)  # type: ignore[operator]


@pytest.mark.parametrize("probe", [frequencies, words, lengths])
def test_they_cannot_tell_by_the_order_or_by_rows_of_their_own_fold(probe: object) -> None:
    same = pairs(lambda number, rng: ("What?", "a cat", "a cat"))
    assert set(probe(same, FOLDS)) == {0.5}  # type: ignore[operator]
    one_fold = pairs(lambda number, rng: ("What?", "yes", "not at all"))
    assert set(probe(one_fold, np.zeros(400, dtype=int))) == {0.5}  # type: ignore[operator]


def test_swapping_chosen_and_rejected_swaps_what_is_learned() -> None:
    given = pairs(lambda number, rng: (f"{number}?", f"{sentence(rng, 5)} indeed", sentence(rng, 6)))
    swapped = [pair._replace(chosen=pair.rejected, rejected=pair.chosen) for pair in given]
    for probe in (frequencies, words, lengths):
        assert np.array_equal(probe(given, FOLDS), probe(swapped, FOLDS))


def test_naming_counts_both_right_answers_and_only_known_questions() -> None:
    given = [
        TextPair("Which?", "red", "blue", True),
        TextPair("Which?", "red", "green", True),
        TextPair("Which?", "red", "blue", False),
        TextPair("Never again?", "red", "blue", True),
    ]
    found = naming(given, np.array([0, 1, 2, 3]))
    assert found.asked == 7
    assert found.rows.tolist() == [0, 0, 1, 1, 2]
    assert found.right.tolist() == [1, 0, 1, 0, 1]
    # The others of row 0 say red, green, red: two answers; of row 1 red, blue, red; of row 2 red, blue, red, green.
    assert found.chance.tolist() == pytest.approx([1 / 2, 1 / 2, 1 / 2, 1 / 2, 1 / 3])


def test_naming_shares_a_tie() -> None:
    given = [TextPair("Which?", answer, None, False) for answer in ("red", "red", "blue", "green", "blue")]
    found = naming(given, np.array([0, 1, 1, 1, 1]))
    assert found.right[0] == 0  # blue is in front among the others
    assert naming(given[:4], np.arange(4)).right.tolist() == [1 / 3, 1 / 3, 0, 0]
