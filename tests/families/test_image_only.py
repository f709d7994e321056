"""Processors without their video half: they load, read pictures, save and can be sent to workers."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from batches import prompt_inputs
from mllm_align.families.image_only import IMAGE_ONLY, load_processor
from tiny import FAMILIES, save_tiny, tiny


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_processor_reads_pictures_as_before(name: str, tmp_path: Path, pictures: list[Any]) -> None:
    _, processor = tiny(name)
    loaded = load_processor(str(save_tiny(name, tmp_path)))
    before = prompt_inputs(processor, "Which is red?", pictures)
    after = prompt_inputs(loaded, "Which is red?", pictures)
    again = prompt_inputs(pickle.loads(pickle.dumps(loaded)), "Which is red?", pictures)
    assert set(before) == set(after) == set(again)
    for key, value in before.items():
        assert after[key].equal(value), key
        assert again[key].equal(value), key


@pytest.mark.parametrize("name", sorted(IMAGE_ONLY))
def test_it_is_saved_under_the_stock_name(name: str, tmp_path: Path) -> None:
    _, processor = tiny(name)
    processor.save_pretrained(tmp_path)
    stock = IMAGE_ONLY[name].__mro__[1].__name__
    assert json.loads((tmp_path / "processor_config.json").read_text())["processor_class"] == stock


def test_smolvlm_expands_as_idefics3_does(pictures: list[Any]) -> None:
    inputs = {}
    for name in ("idefics3", "smolvlm"):
        _, processor = tiny(name)
        ids = prompt_inputs(processor, "Which?", pictures)["input_ids"][0]
        inputs[name] = processor.tokenizer.decode(ids)
    begin = {"idefics3": "<|begin_of_text|>", "smolvlm": "<|im_start|>"}
    texts = {name: text.removeprefix(begin[name]) for name, text in inputs.items()}
    assert texts["smolvlm"] == texts["idefics3"]
    assert texts["smolvlm"].startswith("User:<fake_token_around_image><row_1_col_1><image>")
