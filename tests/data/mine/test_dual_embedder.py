"""Both sides of a dual encoder: the vectors that its own model gives, and what has not both."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor

from mllm_align.data.errors import DataError
from mllm_align.data.mine.dual_embedder import DualEmbedder
from mllm_align.data.mine.encoder import ImageEmbedder
from tiny_duals import LENGTH, captioned, save_dual

TEXTS = [*(row["chosen"] for row in captioned(5)), "red " * 20, "an unknown word"]


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_texts_are_what_the_model_makes_of_them(name: str, tmp_path: Path) -> None:
    folder = save_dual(name, tmp_path / "model")
    embedder = DualEmbedder(folder, "cpu", batch_size=3)
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    read = processor(text=TEXTS, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model.get_text_features(**read).pooler_output, dim=-1).numpy()
    found = embedder.texts(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert found.shape[1] == embedder.dim
    assert embedder.texts([]).shape == (0, embedder.dim)
    images = [row["image"] for row in captioned(4)]
    plain = ImageEmbedder(folder, "cpu", batch_size=3)
    assert np.array_equal(embedder(images), plain(images))
    assert (embedder.identity, embedder.name) == (plain.identity, "model")


def test_what_has_not_both_sides_is_refused(tmp_path: Path) -> None:
    folder = save_dual("siglip", tmp_path / "model")
    silent = shutil.copytree(folder, tmp_path / "silent")
    for file in silent.glob("*token*"):
        file.unlink()
    with pytest.raises(DataError, match="has no tokenizer, so no text side"):
        DualEmbedder(silent, "cpu")
    embedder = DualEmbedder(folder, "cpu")
    with torch.no_grad():
        next(embedder._texts.text_model.parameters()).fill_(torch.nan)
    with pytest.raises(DataError, match="no finite vector for the text 'a'; try dtype float32"):
        embedder.texts(["a"])
