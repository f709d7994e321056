"""Filters of hard negatives: at their bounds, in their order, and as sentence-transformers means them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch

from mllm_align.data.mine.negative_choice import FILTERS, Chosen, NegativeChoice

NUMBERS = np.arange(8)
SCORES = np.array([0.75, 0.5, 0.5, 0.25, 0.0, -0.25, -0.5, -0.75])


def chosen(
    choice: NegativeChoice, *, known: Any = (), alike: Any = (), positive: float = 0.5, key: str = ""
) -> Chosen:
    return choice.choose(NUMBERS, SCORES, reach=choice.reach(1), known=known, alike=alike, positive=positive, key=key)


@pytest.mark.parametrize(
    ("settings", "positive", "expected"),
    [
        ({}, 0.5, [0, 1, 2]),
        ({"range_min": 2}, 0.5, [2, 3, 4]),
        ({"range_min": 1, "range_max": 3, "per_row": 2}, 0.5, [1, 2]),
        ({"max_score": 0.5}, 0.5, [1, 2, 3]),  # one that equals a bound stays
        ({"max_score": 0.49}, 0.5, [3, 4, 5]),
        ({"min_score": 0.5}, 0.5, [0, 1, 2]),
        ({"min_score": 0.51}, 0.5, [0]),
        ({"absolute_margin": 0.0}, 0.5, [1, 2, 3]),
        ({"absolute_margin": 0.25}, 0.5, [3, 4, 5]),
        ({"relative_margin": 0.5}, 0.5, [3, 4, 5]),
        ({"relative_margin": 0.5}, -0.5, [7]),  # at most -0.5 - 0.25, not -0.5 + 0.25
        ({"relative_margin": 1.0}, 0.5, [4, 5, 6]),
        ({"range_min": 1, "max_score": 0.5}, 0.5, [2, 3, 4]),  # what is skipped passed the filters
    ],
)
def test_bounds(settings: dict[str, Any], positive: float, expected: list[int]) -> None:
    found = chosen(NegativeChoice(**settings), positive=positive)
    assert found.numbers.tolist() == expected
    assert found.scores.tolist() == SCORES[expected].tolist()


def test_a_candidate_counts_for_the_first_filter_that_it_fails() -> None:
    choice = NegativeChoice(absolute_margin=0.1, relative_margin=0.6, max_score=0.1, min_score=-0.5)
    found = chosen(choice, known=[0, 7], alike=[1, 0])
    assert dict(zip(FILTERS, found.dropped, strict=True)) == {
        "known positive": 2,
        "same picture": 1,
        "absolute margin": 1,
        "relative margin": 1,
        "max score": 0,
        "min score": 0,
    }
    assert found.numbers.tolist() == [4, 5, 6]


def test_what_was_not_found_is_no_candidate() -> None:
    numbers, scores = np.array([3, -1, -1]), np.array([0.5, -np.inf, -np.inf])
    found = NegativeChoice().choose(numbers, scores, reach=4, known=(), alike=(), positive=0.9)
    assert found.numbers.tolist() == [3]
    assert sum(found.dropped) == 0


def test_draws_hang_on_seed_and_key_alone() -> None:
    choice = NegativeChoice(sampling="random", range_max=8, range_min=1)
    draws = {key: chosen(choice, key=key).numbers.tolist() for key in map(str, range(40))}
    assert all(own == sorted(own) and len(set(own)) == 3 for own in draws.values())
    assert set().union(*draws.values()) == set(range(1, 8))
    assert draws["7"] == chosen(choice, key="7").numbers.tolist()
    other = NegativeChoice(sampling="random", range_max=8, range_min=1, seed=1)
    assert draws != {key: chosen(other, key=key).numbers.tolist() for key in draws}
    few = NegativeChoice(sampling="random", range_max=8, max_score=-0.5)
    assert chosen(few).numbers.tolist() == [6, 7]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"per_row": 0}, "per_row must be at least 1"),
        ({"range_min": -1}, "range_min must not be negative"),
        ({"range_min": 3, "range_max": 5}, "leaves 2 candidates for 3 negatives"),
        ({"sampling": "hard"}, "sampling must be one of top, random"),
        ({"absolute_margin": -0.1}, "absolute_margin must not be negative"),
        ({"relative_margin": float("nan")}, "relative_margin must not be negative"),
        ({"min_score": 0.5, "max_score": 0.4}, "nothing is between"),
    ],
)
def test_what_has_no_meaning_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        NegativeChoice(**settings)


class Vectors:
    """What `mine_hard_negatives` asks a model for."""

    device = torch.device("cpu")

    def __init__(self, queries: np.ndarray, texts: dict[str, np.ndarray]) -> None:
        self.queries, self.known = queries, texts
        self.model_card_data = type("Card", (), {"base_model": None})()

    def encode_query(self, queries: list[str], **_: Any) -> np.ndarray:
        return self.queries[[int(query) for query in queries]]

    def encode_document(self, texts: list[str], **_: Any) -> np.ndarray:
        return np.stack([self.known[text] for text in texts])

    def similarity(self, one: Any, other: Any) -> torch.Tensor:
        return torch.as_tensor(one).double() @ torch.as_tensor(other).double().T

    def similarity_pairwise(self, one: Any, other: Any) -> torch.Tensor:
        return (torch.as_tensor(one).double() * torch.as_tensor(other).double()).sum(-1)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"range_min": 2},
        {"range_max": 6, "max_score": 0.3},
        {"absolute_margin": 0.05},
        {"relative_margin": 0.2, "range_min": 1},
        {"min_score": 0.1, "max_score": 0.4, "relative_margin": 0.05},
    ],
)
def test_they_are_those_of_sentence_transformers(settings: dict[str, Any]) -> None:
    """Each of 30 queries has one or two of 45 texts as positives."""
    mined = pytest.importorskip("sentence_transformers.util.hard_negatives")
    datasets = pytest.importorskip("datasets")
    rng = np.random.default_rng(3)
    queries, texts = rng.normal(size=(30, 8)), rng.normal(size=(45, 8))
    texts[:30] += queries
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    positives = [[query, *([30 + query // 2] if query % 2 else [])] for query in range(30)]
    pairs = [(str(query), f"t{text:02d}") for query, own in enumerate(positives) for text in own]
    corpus = [f"t{text:02d}" for text in range(45)]
    expected: dict[str, list[str]] = defaultdict(list)
    model: Any = Vectors(queries, dict(zip(corpus, texts, strict=True)))
    found = mined.mine_hard_negatives(
        datasets.Dataset.from_dict({"query": [q for q, _ in pairs], "positive": [t for _, t in pairs]}),
        model,
        corpus=corpus,
        output_format="triplet",
        verbose=False,
        **settings,
    )
    for row in found:
        if row["negative"] not in expected[row["query"]]:
            expected[row["query"]].append(row["negative"])
    choice = NegativeChoice(**settings)
    similar = queries @ texts.T
    for query, own in enumerate(positives):
        order = np.lexsort((np.arange(45), -similar[query]))[: choice.reach(2) + 2]
        got = choice.choose(
            order,
            similar[query][order],
            reach=choice.reach(2),
            known=own,
            alike=(),
            positive=similar[query][own].min(),
        )
        assert [corpus[text] for text in got.numbers] == expected[str(query)], query
    assert any(expected.values())
