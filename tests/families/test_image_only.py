"""Processors without their video half: they load, read pictures, save and can be sent to workers."""

from __future__ import annotations

import importlib
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers.models.pixtral import image_processing_pil_pixtral

from batches import prompt_inputs
from mllm_align.families.image_only import IMAGE_ONLY, load_processor
from tiny import FAMILIES, save_tiny, tiny

STOCK = {
    "qwen2_vl": "Qwen2VLProcessor",
    "qwen2_5_vl": "Qwen2_5_VLProcessor",
    "qwen3_vl": "Qwen3VLProcessor",
    "qwen3_vl_moe": "Qwen3VLProcessor",
    "internvl": "InternVLProcessor",
    "llava_onevision": "LlavaOnevisionProcessor",
    "mistral3": "PixtralProcessor",
    "pixtral": "PixtralProcessor",
    "smolvlm": "SmolVLMProcessor",
}


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
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["processor_class"] == IMAGE_ONLY[name].__name__ == STOCK[name]


@pytest.mark.parametrize("name", ["pixtral", "mistral3"])
def test_pixtral_does_as_the_stock_class(name: str, pictures: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    package = "transformers.models.pixtral"
    # The stock module needs of torchvision's image processor no more than a function that the PIL one has as well.
    monkeypatch.setitem(sys.modules, f"{package}.image_processing_pixtral", image_processing_pil_pixtral)
    stock_class = importlib.import_module(f"{package}.processing_pixtral").PixtralProcessor
    monkeypatch.delitem(sys.modules, f"{package}.processing_pixtral")
    _, ours = tiny(name)
    stock = stock_class(
        ours.image_processor,
        ours.tokenizer,
        ours.patch_size,
        ours.spatial_merge_size,
        chat_template=ours.chat_template,
    )
    for shown in ([], pictures[:1], pictures):
        expected = prompt_inputs(stock, "Which is red?", shown)
        found = prompt_inputs(ours, "Which is red?", shown)
        assert set(found) == set(expected)
        assert all(found[key].equal(value) for key, value in expected.items())
    assert ours.to_dict() == stock.to_dict()
    assert set(ours.model_input_names) == set(stock.model_input_names)
    assert ours.create_mm_token_type_ids([[1, ours.image_break_token_id]]) == [[0, 1]]


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
