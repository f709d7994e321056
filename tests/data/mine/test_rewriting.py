"""Two stages, the checks on what comes back, and a job that goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from candidates import candidate
from mllm_align.data.mine.rewriting import MOST_WORDS, fault, rewritten
from mllm_align.data.mine.speaking import Ask


class Writer:
    """Answers the first stage with a frame around the short answer, the second by exchanging the fact in it."""

    identity = "writer"

    def __init__(self, spoil: dict[str, str] | None = None) -> None:
        self.spoil = spoil or {}
        self.asks: list[Ask] = []

    def __call__(self, asks: Sequence[Ask], max_new_tokens: int) -> list[str]:
        self.asks += asks
        return [self._answer(ask.prompt) for ask in asks]

    def _answer(self, prompt: str) -> str:
        if "Short answer:" in prompt:
            short = prompt.rsplit("Short answer: ", 1)[1]
            return self.spoil.get(short, f'New answer: "In this picture you can see {short} quite clearly."')
        short = prompt.rsplit("\nFact: ", 1)[1].split(" (asked")[0]
        return self.spoil.get(short, f"In this picture you can see {short} quite clearly.")


def test_both_texts_are_written_out_with_one_difference(tmp_path: Path) -> None:
    items = [candidate(number, chosen="a red cup", rejected="a blue cup") for number in range(3)]
    found, outcome = rewritten(items, Writer(), tmp_path, progress=False)
    assert outcome == {"rewritten": 3}
    assert found[0].chosen == "In this picture you can see a red cup quite clearly."
    assert found[0].rejected == "In this picture you can see a blue cup quite clearly."
    assert found[0].texts_by == "writer"
    assert found[0].images == items[0].images


def test_the_second_stage_edits_the_first(tmp_path: Path) -> None:
    writer = Writer()
    rewritten([candidate(0, chosen="left", rejected="right")], writer, tmp_path, progress=False)
    first, second = (ask.prompt for ask in writer.asks)
    assert "Question: What is there?" in first
    assert '"left"' in first
    assert "you can see left quite clearly" in second
    assert "right (asked: What is there?)" in second


def test_what_fails_a_check_keeps_its_texts_and_is_counted(tmp_path: Path) -> None:
    items = [
        candidate(0, chosen="a red cup", rejected="a blue cup"),
        candidate(1, chosen="a cat", rejected="a dog"),
        candidate(2, chosen="two men", rejected="three men"),
        candidate(3, chosen="a tall tree", rejected="a small tree"),
    ]
    writer = Writer({"a cat": "An animal sits there.", "three men": "", "a small tree": "A small green tree."})
    found, outcome = rewritten(items, writer, tmp_path, progress=False)
    assert outcome == {"rewritten": 1, "lost key words": 1, "empty": 1, "another difference": 1}
    assert found[1:] == items[1:]
    assert found[0].texts_by == "writer"


def test_a_flip_says_both_who_made_its_texts(tmp_path: Path) -> None:
    item = candidate(0, chosen="on the left", rejected="on the right", texts_by="left and right exchanged")
    (found,), _ = rewritten([item], Writer(), tmp_path, progress=False)
    assert found.texts_by == "left and right exchanged, writer"


def test_what_is_done_is_not_asked_again_and_other_pairs_are(tmp_path: Path) -> None:
    items = [candidate(number) for number in range(5)]
    first = rewritten(items, Writer(), tmp_path, block_size=2, progress=False)
    again = Writer()
    assert rewritten(items, again, tmp_path, block_size=2, progress=False) == first
    assert again.asks == []
    rewritten(items[1:], again, tmp_path, block_size=2, progress=False)
    assert len(again.asks) == 8
    assert rewritten([], again, tmp_path, progress=False) == ([], {})


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ("There is a red cup on it.", "There is a blue cup on it.", None),
        ("A red cup is there.", "Blue cups are there.", "another difference"),
        ("There is a red cup.", "There is a red cup.", "same texts"),
        ("There is a RED cup!", "There is a blue cup!", None),
        ("There is a cup.", "There is a blue cup.", "lost key words"),
        ("There is a red cup, not a blue one.", "There is a blue cup, not a red one.", "key words of the other text"),
        ("A red cup stands on a table.", "A blue cup stands on a chair.", "another difference"),
        ("", "There is a blue cup.", "empty"),
        ("red", "blue", "shorter"),
        ("red " * (MOST_WORDS + 1), "blue", "too long"),
    ],
)
def test_the_checks(first: str, second: str, reason: str | None) -> None:
    assert fault("a red cup", "a blue cup", first, second) == reason


def test_numbers_bring_their_forms_along() -> None:
    assert fault("one dog", "two dogs", "There is one dog here.", "There are two dogs here.") is None
    assert fault("yes", "no", "Yes, there is a cup.", "No, there is a cup.") is None
    assert fault("Ja, süß", "Nein, süß", "Ja, das ist süß.", "Nein, das ist süß.") is None
