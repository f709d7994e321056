from PIL import Image

from mllm_align.data.mine.instructions import read_instruction
from mllm_align.data.mine.turns import FirstTurns

RED = Image.new("RGB", (8, 8), "red")
TALK = [
    {"role": "user", "content": "<image>\nWhat is it?"},
    {"role": "assistant", "content": "A square."},
    {"role": "user", "content": "Which colour?"},
]


def test_a_conversation_is_cut_to_its_first_answer() -> None:
    rows = FirstTurns([{"id": "a", "image": RED, "prompt": TALK, "chosen": "Red.", "system": "Be brief."}])
    item = read_instruction(rows[0], 0)
    assert (item.prompt, item.chosen, item.system, item.id) == ("What is it?", "A square.", "Be brief.", "a")
    assert item.image is RED


def test_a_conversation_in_one_column() -> None:
    talk = [*TALK, {"role": "assistant", "content": "Red."}]
    (row,) = FirstTurns([{"image": RED, "messages": talk}])
    assert read_instruction(row, 0).chosen == "A square."


def test_other_rows_are_as_they_are() -> None:
    rows = [{"image": RED, "prompt": "?", "chosen": "x"}, {"image": RED}]
    assert list(FirstTurns(rows)) == rows
