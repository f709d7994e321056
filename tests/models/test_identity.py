from __future__ import annotations

from pathlib import Path

import pytest
from peft import get_peft_model

from mllm_align.models import base_probe, check_base, load_model, save_base_identity
from runs import lora
from tiny import FAMILIES, save_tiny, tiny


@pytest.mark.parametrize("family", FAMILIES)
def test_the_probe_sees_embeddings_and_projector(family: str) -> None:
    probe = base_probe(tiny(family)[0])
    assert any("embed" in name for name in probe)
    assert len(probe) >= 2
    assert all(len(values) == 16 for values in probe.values())
    assert probe != base_probe(tiny(family, seed=1)[0])


def test_the_probe_does_not_see_adapters() -> None:
    model, _ = tiny("llava")
    probe = base_probe(model)
    assert base_probe(get_peft_model(model, lora(model, train_projector=True))) == probe
    model, _ = tiny("llava")
    assert base_probe(get_peft_model(model, lora(model, lora_scope=["projector", "language"]))) == probe


def test_the_same_base_in_every_precision(tmp_path: Path) -> None:
    base = save_tiny("llava", tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_base_identity(base_probe(load_model(base)[0]), "elsewhere", adapter)
    for settings in ({"dtype": "bfloat16"}, {"dtype": "float16"}, {"load_in_4bit": True}):
        check_base(load_model(base, **settings)[0], str(adapter), "elsewhere")
    with pytest.raises(ValueError, match=r"another base, 'elsewhere'.*embed_tokens.weight has other values"):
        check_base(tiny("qwen2_vl")[0], str(adapter), "elsewhere")


def test_names_decide_where_nothing_was_recorded(tmp_path: Path) -> None:
    base = save_tiny("llava", tmp_path / "base")
    model, _ = load_model(base)
    check_base(model, str(tmp_path), str(base))
    check_base(model, str(tmp_path), str(tmp_path / "base" / ".." / "base"))
    check_base(model, str(tmp_path), None)
    with pytest.raises(ValueError, match="says it was trained on 'org/other'"):
        check_base(model, str(tmp_path), "org/other")
