"""Searching images by text with FAISS, as the README shows it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mllm_align.encoding import Encoder
from runs import picture
from tiny import tiny

faiss = pytest.importorskip("faiss")

TEXTS = ["a small red circle", "two stars", "What shape is left of the square?", "large and blue"]


@pytest.mark.parametrize("dimensions", [None, 16])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_an_index_of_images_is_searched_by_text(family: str, dimensions: int | None) -> None:
    encoder = Encoder.zero_shot(*tiny(family))
    photos: list[Any] = [picture(number) for number in range(40)]

    images = encoder.encode(images=photos, dimensions=dimensions)  # (N, d), unit length
    index = faiss.IndexFlatIP(images.shape[1])  # inner product of unit vectors: the cosine
    index.add(images)
    scores, places = index.search(encoder.encode(texts=TEXTS, dimensions=dimensions), 5)  # (M, 5) each, best first

    similarity = encoder.similarity(photos, TEXTS, dimensions=dimensions)
    for number in range(len(TEXTS)):
        best = np.argsort(-similarity[:, number], kind="stable")[:5]
        np.testing.assert_allclose(scores[number], similarity[best, number], atol=1e-5)
        np.testing.assert_allclose(similarity[places[number], number], similarity[best, number], atol=1e-5)
        assert len(set(places[number].tolist())) == 5
