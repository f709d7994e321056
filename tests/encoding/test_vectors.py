"""Vectors of what was measured: which row each is of, heads, tokens of a row brought together, modes put back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mllm_align.contract import EmbeddingHead, Feature, Ragged, Signals
from mllm_align.encoding.vectors import entry_vectors, evaluating, vector_width

VALUES = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]], dtype=torch.bfloat16)
ROWS = (1, 1, 3)


def measured(pooling: str) -> tuple[Signals, Feature]:
    feature = Feature("text", "embedding", "caption", pooling=pooling, prompt="?")
    held = {"text": Ragged(VALUES, torch.tensor(ROWS))}
    return Signals({}, {}, features=held, sources=("",) * 4, host_feature_rows={"text": ROWS}), feature


def test_of_states_each_is_one() -> None:
    signals, feature = measured("last")
    rows, vectors = entry_vectors(signals, feature, None)
    assert rows == list(ROWS)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors, VALUES.float())
    head = EmbeddingHead(2, 5)
    torch.testing.assert_close(entry_vectors(signals, feature, head)[1], head(VALUES.float()))


def test_of_tokens_those_of_a_row_are_one() -> None:
    signals, feature = measured("tokens")
    head = EmbeddingHead(2, 5, True, 1)
    rows, vectors = entry_vectors(signals, feature, head)
    assert rows == [1, 3]
    for own, vector in ((VALUES[:2], vectors[0]), (VALUES[2:], vectors[1])):
        torch.testing.assert_close(vector, head(own.float()[None], torch.ones(1, len(own), dtype=torch.bool))[0])
    with pytest.raises(ValueError, match="column 'caption' is of all tokens: no head to pool them"):
        entry_vectors(signals, feature, None)


def test_their_width() -> None:
    model: Any = nn.Linear(1, 1)
    model.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(hidden_size=7))
    assert vector_width(model, None) == 7
    assert vector_width(model, EmbeddingHead(2, 5)) == 5
    assert vector_width(model, EmbeddingHead(2, None, True, 1)) == 2


def test_modes_are_put_back() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Dropout(), nn.Dropout())
    model.train()
    model[1].eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False, True]
