"""Encoders by name: trained, untrained, dual; their vectors are those of the parts themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eval_encoders import Drawn
from mllm_align.cli import main
from mllm_align.contract.embedding import IMAGE_PROMPT, TEXT_PROMPT
from mllm_align.encoding import Encoder, load_encoder, save_embedding
from mllm_align.models import load_model
from mllm_align.objectives.pairs import Pairs
from mllm_align_eval.benchmarks.world_retrieval import pool_items
from mllm_align_eval.dual_encoder import DualEncoder
from mllm_align_eval.encoders import EmbeddingModel, Leading, encoder_of
from mllm_align_eval.items import Picture
from tiny import save_tiny
from tiny_duals import save_dual

TEXTS = ["a red circle", "two small stars", "a square left of the star"]
PROMPTS: dict[str, Any] = {"image_prompt": "Name it.", "text_prompt": "Say it."}


def embedded(folder: Path, **options: Any) -> Path:
    """A whole model with an embedding beside it."""
    save_tiny("llava", folder)
    model, _ = load_model(folder)
    torch.manual_seed(3)
    pairs = Pairs("Test", text="caption", **PROMPTS, **options)
    pairs.set_widths({feature.name: model.config.get_text_config().hidden_size for feature in pairs.features})
    save_embedding(pairs.embedding, folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return embedded(tmp_path_factory.mktemp("trained"), dim=16, dimensions=(8,))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny("llava", tmp_path_factory.mktemp("base"))


def test_a_trained_model(trained, pictures):
    found, plain = encoder_of(trained), load_encoder(trained)
    assert isinstance(found, EmbeddingModel)
    expected = plain.encode(pictures, TEXTS)
    shown = [Picture(f"{n}", lambda picture=picture: picture) for n, picture in enumerate(pictures)]
    np.testing.assert_array_equal(found.images(shown), expected.images)
    np.testing.assert_array_equal(found.texts(TEXTS), expected.texts)
    assert expected.images.shape == (4, 16)
    assert found.images([]).shape[0] == 0
    cut = Leading(found, 8)
    np.testing.assert_allclose(cut.images(pictures), plain.encode(pictures, dimensions=8), atol=1e-6)
    np.testing.assert_allclose(cut.texts(TEXTS), plain.encode(texts=TEXTS, dimensions=8), atol=1e-6)


def test_pictures_are_loaded_a_few_at_a_time(trained, pictures, monkeypatch):
    whole = encoder_of(trained).images(pictures)
    monkeypatch.setattr("mllm_align_eval.encoders.LOADED_AT_ONCE", 3)
    np.testing.assert_allclose(encoder_of(trained, batch_size=2).images(pictures), whole, atol=2e-6)


def test_an_untrained_model_is_read_as_the_trained_one_is(base, trained, pictures):
    model, processor = load_model(base)
    for like, prompts in ((None, {"image_prompt": IMAGE_PROMPT, "text_prompt": TEXT_PROMPT}), (trained, PROMPTS)):
        options: dict[str, Any] = prompts
        expected = Encoder.zero_shot(model, processor, **options).encode(pictures, TEXTS)
        found = encoder_of(base, like=like)
        np.testing.assert_array_equal(found.images(pictures), expected.images)
        np.testing.assert_array_equal(found.texts(TEXTS), expected.texts)


def test_an_untrained_model_has_no_head(base, tmp_path):
    embedded(tmp_path, pooling="query")
    with pytest.raises(ValueError, match="is read by a head or without instructions, which a model that was not"):
        encoder_of(base, like=tmp_path)


def test_a_dual_encoder(tmp_path, pictures):
    folder = save_dual("clip", tmp_path)
    found = encoder_of(folder, batch_size=2)
    assert isinstance(found, DualEncoder)
    np.testing.assert_allclose(found.images(pictures), DualEncoder(folder).images(pictures), atol=1e-6)


def test_what_is_no_encoder(trained, tmp_path, pictures):
    with pytest.raises(ValueError, match=r"there is no folder '.*nothing'"):
        encoder_of(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"cannot load nobody/nothing with its processor \(nor is there a folder"):
        encoder_of("nobody/nothing")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no embedding in .*: embedding\.json is missing"):
        encoder_of(tmp_path)
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        encoder_of(trained, batch_size=0)
    with pytest.raises(ValueError, match="vectors have 16 numbers: 17 of them cannot be kept"):
        Leading(Drawn(16), 17).texts(TEXTS)


def test_vectors_that_are_not_finite(trained):
    found = encoder_of(trained)
    assert isinstance(found, EmbeddingModel)
    with torch.no_grad():
        for head in found.encoder.embedding.heads.values():
            head.projection.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="embeddings that are not finite; try float32"):
        found.texts(TEXTS)


def test_before_and_after_from_the_command_line(base, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mllm_align_eval.run.benchmark_items", lambda *_: pool_items(16))
    out = tmp_path / "out"
    command = ["eval", "encoders", f"base={base}", f"tuned={trained}", "--benchmark", "world_retrieval"]
    assert main([*command, "--output", str(out)]) == 0
    assert "tuned: Ties, which count as wrong: Rendered retrieval 0 of 32." in " ".join(
        capsys.readouterr().out.split()
    )
    results = json.loads((out / "results.json").read_text())
    assert list(results["arms"]) == ["base", "tuned"]
    assert results["differences"]["tuned-base"]["world_retrieval/r_mean"]["n"] == 96
    one = ["eval", "score", "world_retrieval", "--dual-encoder", str(trained), "--json", str(tmp_path / "one.json")]
    assert main(one) == 0
    scores = json.loads((tmp_path / "one.json").read_text())
    assert scores["world_retrieval/r_mean"]["value"] == results["arms"]["tuned"]["world_retrieval/r_mean"]["value"]
