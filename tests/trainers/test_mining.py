"""What is mined: the vectors that training compares, of every row, and the rows whose texts are nearest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mllm_align.contract import Embedding, EmbeddingHead, Feature, Ragged, Signals
from mllm_align.data.corrupt import Crop
from mllm_align.data.corrupt.dataset import corrupted
from mllm_align.objectives.info_nce import InfoNCE
from mllm_align.signals import measure
from mllm_align.trainers.mining import measured_sides, mined_neighbours, vectors_of
from runs import make_trainer, pair_rows

COUNT = 7
OPTIONS: dict[str, dict[str, Any]] = {
    "tokens and response": {},
    "states": {"image_prompt": "The picture:", "text_prompt": "The text:", "text": "caption", "layer": 1},
    "heads": {"image_prompt": "The picture:", "text_prompt": "The text:", "text": "caption", "dim": 8},
    "query": {"image_prompt": "The picture:", "text_prompt": "The text:", "text": "caption", "pooling": "query"},
}


def rows() -> list[dict[str, Any]]:
    made = pair_rows(COUNT)
    for number, row in enumerate(made):
        row |= {"chosen": f"{row['chosen']} {number}", "caption": f"thing {number * 37}"}
    return made


def trainer_of(folder: Path, options: dict[str, Any], data: Any = None, **changes: Any) -> Any:
    settings = {"mine_batches_every": 1, "mine_batches_from": "model", "per_device_eval_batch_size": 3}
    return make_trainer(folder, InfoNCE(**options), rows() if data is None else data, **(settings | changes))


@pytest.mark.parametrize("name", OPTIONS)
def test_vectors_are_those_that_training_compares(name: str, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, OPTIONS[name])
    images, texts = measured_sides(trainer, np.arange(COUNT), 0)
    batch = trainer.data_collator(rows())["batch"]
    features = trainer.objective.needs.features
    trainer.model.eval()
    with torch.no_grad():
        signals, _ = measure(trainer.model, batch, features=features, options=trainer.options)
        compared = trainer.objective.pairs(signals).at()
    np.testing.assert_allclose(images, compared.images.numpy(), atol=2e-6)
    np.testing.assert_allclose(texts, compared.texts.numpy(), atol=2e-6)
    some = measured_sides(trainer, np.array([6, 1]), 0)
    np.testing.assert_allclose(some[1], texts[[6, 1]], atol=2e-6)


def test_neighbours_are_what_a_loop_finds(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, OPTIONS["heads"])
    images, texts = (side.astype(np.float64) for side in measured_sides(trainer, np.arange(COUNT), 0))
    found = mined_neighbours(trainer, 0, COUNT)
    for number in range(COUNT):
        similar = [float((images[number] * text).sum()) for text in texts]
        others = sorted((n for n in range(COUNT) if n != number), key=lambda n, s=similar: (-s[n], n))
        assert found[number].tolist() == [*others, -1]


def test_rows_that_change_are_measured_as_they_are_in_the_epoch(tmp_path: Path) -> None:
    data = corrupted([{k: v for k, v in row.items() if k != "contrast_image"} for row in rows()], Crop())
    trainer = trainer_of(tmp_path, {"image": "contrast_image"}, data)
    first, again, second = (measured_sides(trainer, np.arange(COUNT), epoch)[0] for epoch in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.allclose(first, second, atol=1e-4)


def test_no_row_is_left_out_for_its_length(tmp_path: Path) -> None:
    """Rows that training leaves out have a vector all the same: numbers stay those of rows."""
    trainer = trainer_of(tmp_path, {}, max_length=30, on_overflow="drop")
    whole = trainer_of(tmp_path, {})
    for one, other in zip(*(measured_sides(each, np.arange(COUNT), 0) for each in (trainer, whole)), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)
    assert trainer.data_collator.max_length == 30
    assert len(trainer.data_collator(rows())["batch"]) < COUNT


def test_a_row_without_an_entry_has_none_and_of_several_the_first_counts() -> None:
    feature = Feature("text", "embedding", "caption", pooling="last", prompt="?")
    values = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
    signals = Signals(
        {},
        {},
        features={"text": Ragged(values, torch.tensor([1, 1, 2]))},
        sources=("", "", ""),
        host_feature_rows={"text": (1, 1, 2)},
    )
    embedding = Embedding({"text": feature, "image": feature._replace(name="image")}, {})
    found = vectors_of(embedding, "text", signals, 2)
    assert found[0].isnan().all()
    torch.testing.assert_close(found[1:], torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
    assert vectors_of(embedding, "image", signals, 2).isnan().all()
    headed = Embedding(embedding.features, {"image": EmbeddingHead(2, 5), "text": EmbeddingHead(2, 5)})
    assert vectors_of(headed, "image", signals, 5).shape == vectors_of(headed, "text", signals, 5).shape == (3, 5)
