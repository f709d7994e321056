"""The module files against those that sentence-transformers itself writes of the same modules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mllm_align.encoding.stock_modules import Stock, write_modules
from tiny import save_tiny

st = pytest.importorskip("sentence_transformers")

EYE = torch.eye(64)


@pytest.mark.parametrize(
    ("options", "heads"),
    [
        ({"images": {"do_rescale": True}}, {}),
        ({"output": ["hidden_states", 1]}, {"": EYE[:8]}),
        ({"pooling": "mean"}, {"image": EYE[:8], "text": EYE[8:16]}),
    ],
)
def test_files_are_those_of_sentence_transformers(
    options: dict[str, Any], heads: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    own, again = tmp_path / "own", tmp_path / "again"
    settings = {"width": 64, "pooling": "lasttoken", "output": ["last_hidden_state"], "images": {}} | options
    save_tiny("llava", own / "model" if "image" in heads else own)
    write_modules(own, Stock(heads=heads, backbone="model", **settings))
    model = st.SentenceTransformer(str(own), device="cpu")
    model.save_pretrained(str(again), create_model_card=False)
    assert read(own / "modules.json") == read(again / "modules.json")
    written = [file for file in own.rglob("*.json") if "Pooling" in str(file) or "Dense" in str(file)]
    if "image" in heads:
        # It names folders by route and place, and each of ours has the config that one of its has.
        ours, theirs = read(own / "router_config.json"), read(again / "router_config.json")
        assert list(ours["types"].values()) == [theirs["types"][name] for name in theirs["types"]]
        assert ours["parameters"].items() <= theirs["parameters"].items()
        for side, names in ours["structure"].items():
            for name, other in zip(names, theirs["structure"][side], strict=True):
                file = "sentence_bert_config.json" if name == "model" else "config.json"
                assert read(own / name / file) == read(again / other / file)
    else:
        assert read(own / "sentence_bert_config.json") == read(again / "sentence_bert_config.json")
        assert len(written) == 1 + len(heads)
        for file in (*written, own / f"{2 + len(heads)}_Normalize" / "config.json"):
            assert read(file) == read(again / file.relative_to(own))
    kept = read(again / "config_sentence_transformers.json")
    ours = read(own / "config_sentence_transformers.json")
    assert ours | {"__version__": kept["__version__"]} == kept


def read(file: Path) -> Any:
    return json.loads(file.read_text())
