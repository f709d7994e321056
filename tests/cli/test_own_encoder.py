"""A trained encoder in the place of a dual one: its vectors, and what tells it apart."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from mllm_align.cli.own_encoder import TrainedEmbedder
from mllm_align.contract import Embedding, EmbeddingHead, Feature
from mllm_align.encoding import load_encoder, save_embedding
from runs import picture
from tiny import save_tiny


def test_vectors_and_identity(tmp_path: Path) -> None:
    folder = save_tiny("llava", tmp_path / "first")
    features = {
        "image": Feature("image", "embedding", "image", pooling="last", prompt="The picture:"),
        "text": Feature("text", "embedding", "caption", pooling="last", prompt="The text:"),
    }
    heads = {side: EmbeddingHead(64, 8) for side in features}
    save_embedding(Embedding(features, heads), folder)
    embedder = TrainedEmbedder(str(folder), 2, dtype="float32")
    images, texts = [picture(number) for number in range(3)], ["red", "a blue star"]
    expected = load_encoder(folder, dtype="float32").encode(images, texts, batch_size=2)
    assert np.array_equal(embedder.vectors(embedder.prepare(images)), expected.images)
    assert np.array_equal(embedder.texts(texts), expected.texts)
    assert (embedder.dim, embedder.name, embedder.batch_size) == (8, "first", 2)
    copied = shutil.copytree(folder, tmp_path / "elsewhere" / "first")
    assert TrainedEmbedder(str(copied), 2, dtype="float32").identity == embedder.identity
    save_embedding(Embedding(features, {side: EmbeddingHead(64, 8) for side in features}), copied)
    assert TrainedEmbedder(str(copied), 2, dtype="float32").identity != embedder.identity
