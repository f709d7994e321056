"""sentence-transformers and ours read the same tokens, and compute one loss and one gradient."""

from __future__ import annotations

import json

import pytest
from sentence_transformers.sentence_transformer.modules import Pooling

import table
from contrast_vs_sentence_transformers import Ours, Peer, gradient_distance
from pairs import CAPTION_WORDS, Pairs, pair_rows, pair_shape


def test_both_read_the_same_and_agree() -> None:
    shape = pair_shape("tiny")
    ours, peer = Ours(shape), Peer(shape)
    assert ours.trainer.args.cache_gradients
    assert [type(module).__module__.partition(".")[0] for module in peer.encoder] == ["sentence_transformers"] * 3
    assert isinstance(peer.encoder[1], Pooling)
    images, texts = peer.prepare(Pairs(5))
    batch = ours.prepare(Pairs(5))["batch"]
    read = {tuple(prefix.input_ids.tolist()) for prefix in batch.prefixes}
    for column in (images, texts):
        for ids, mask in zip(column["input_ids"], column["attention_mask"], strict=True):
            assert tuple(ids[mask.bool()].tolist()) in read
    assert len(read) == 6  # all images have one prompt
    losses = [side.step(side.prepare(Pairs(40))) for side in (ours, peer)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0] > 0.1
    assert gradient_distance(shape) < 1e-5


def test_rows_are_the_same_every_time() -> None:
    one, other = (pair_rows(pair_shape("tiny"), 4) for _ in range(2))
    assert [row["caption"] for row in one] == [row["caption"] for row in other]
    assert all(CAPTION_WORDS[0] <= len(row["caption"].split()) < CAPTION_WORDS[1] for row in one)
    assert pair_shape("small").image_tokens == 16
    assert one[3]["image"].tobytes() == other[3]["image"].tobytes()


def test_the_results_beside_the_benchmark_clear_the_bars() -> None:
    result = json.loads((table.FOLDER / "contrast_vs_sentence_transformers.json").read_text())
    assert list(result["speedup"]) == ["256", "512"]
    assert result["gradient_distance"] < 1e-4
    for count, speedup in result["speedup"].items():
        assert speedup >= 1, f"at {count} pairs"
        assert result["memory_ratio"][count] <= 1.25, f"at {count} pairs"
        losses = result["loss"][count]
        assert losses["ours"] == pytest.approx(losses["peer"], abs=1e-3)
