from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mllm_align.data.errors import DataError
from mllm_align.data.mine.instructions import answers_to, read_instruction
from mllm_align.data.mine.problems import RowProblem
from mllm_align.data.mine.speaking import Ask
from speakers import Scripted

RED = Image.new("RGB", (8, 8), "red")
ROW = {"id": "a", "image": RED, "prompt": "What is it?", "chosen": " A square. "}


def test_a_row_is_read_whatever_its_form() -> None:
    plain = read_instruction({**ROW, "score": 0.5, "boxes": [1, 2]}, 3)
    assert (plain.key, plain.prompt, plain.chosen, plain.system) == ("a", "What is it?", "A square.", "")
    assert plain.extras == {"score": 0.5}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
    ]
    answer = [{"role": "assistant", "content": "A square."}]
    other = read_instruction({"images": [RED], "prompt": messages, "chosen": answer}, 3)
    assert (other.key, other.prompt, other.chosen, other.system) == ("row-3", plain.prompt, plain.chosen, "Be brief.")
    whole = read_instruction({"image": RED, "messages": [*messages, *answer]}, 0)
    assert (whole.prompt, whole.chosen) == (plain.prompt, plain.chosen)


def test_what_is_made_of_it_again_is_a_row() -> None:
    assert read_instruction({**ROW, "source": "vqa", "kind": "x"}, 0).as_row() == {
        **ROW, "source": "vqa", "kind": "x", "chosen": "A square.",
    }  # fmt: skip
    assert set(read_instruction({"image": RED, "prompt": "?", "chosen": "x", "rejected": "y"}, 0).as_row()) == {
        "image", "prompt", "chosen",
    }  # fmt: skip


def test_a_placeholder_inside_the_question_stays_where_pictures_are() -> None:
    item = read_instruction({**ROW, "prompt": "Look at <image> and tell."}, 0)
    assert item.ask(RED).prompt == "Look at <image> and tell."
    assert item.ask().prompt == "Look at and tell."
    assert item.ask().images == ()


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"prompt": ""}, "missing text"),
        ({"prompt": None}, "invalid row"),
        ({"chosen": None}, "missing text"),
        ({"chosen": "  "}, "missing text"),
        ({"image": None}, "missing image"),
        ({"image": None, "images": [RED, RED]}, "several images"),
        ({"prompt": "<image><image>?"}, "invalid row"),
        (
            {"prompt": [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]},
            "several turns",
        ),
    ],
)
def test_a_row_that_cannot_be_used_has_a_kind_of_problem_and_its_name(change: Mapping[str, Any], kind: str) -> None:
    with pytest.raises(RowProblem) as caught:
        read_instruction({**ROW, **change}, 7)
    assert caught.value.kind == kind
    assert "row 7" in str(caught.value)
    assert str(caught.value).startswith(f"{kind}: ")


def test_pictures_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "kaputt ü.png").write_bytes(b"no picture")
    for name, kind in (("kaputt ü.png", "damaged image"), ("fehlt ü.png", "missing file")):
        for value in (str(tmp_path / name), {"path": str(tmp_path / name), "bytes": None}):
            with pytest.raises(RowProblem, match="ü") as caught:
                read_instruction({**ROW, "image": value}, 0).picture()
            assert caught.value.kind == kind
    with pytest.raises(RowProblem) as caught:
        read_instruction({**ROW, "image": {"path": None, "bytes": b"no picture"}}, 0).picture()
    assert caught.value.kind == "damaged image"


def test_one_bad_ask_is_a_problem_of_its_own() -> None:
    def rule(ask: Ask) -> str:
        if ask.prompt == "bad":
            raise DataError("the processor refuses it")
        return ask.prompt.upper()

    found = list(answers_to([Ask("a"), Ask("bad"), Ask("b")], Scripted(rule), 4))
    assert [found[0], found[2]] == ["A", "B"]
    assert isinstance(found[1], RowProblem)
    assert str(found[1]) == "cannot be asked: the processor refuses it"
    assert list(answers_to([], Scripted(rule), 4)) == []


def test_what_is_wrong_with_a_model_is_no_row_s_problem() -> None:
    def rule(ask: Ask) -> str:
        raise ValueError("nothing answers at the address")

    with pytest.raises(ValueError, match="nothing answers"):
        list(answers_to([Ask("a"), Ask("b")], Scripted(rule), 4))
