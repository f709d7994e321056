"""The most similar of many vectors, by looking at all of them: blocked products, settled in float64."""

from __future__ import annotations

import numpy as np
import torch

VECTORS, QUERIES = 16384, 1024
MARGIN = 16  # candidates beyond k, among which rounding may have mixed up the order
UNIT_ROUNDOFF = 2.0**-24


def nearest(
    vectors: np.ndarray, queries: np.ndarray, k: int, device: torch.device | str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar vectors of each query, exactly as a loop in float64 finds them.

    Candidates come from float32 products; their similarities are taken again in float64. Where a vector that was left
    out might, within the rounding error of a product, belong to the k, more candidates are looked at.

    Args:
        vectors: (N, d) float32 of length 1; may be memory-mapped, a block of it is read at a time.
        queries: (Q, d) float32 of length 1.
        k: At most N.
        device: Where products are taken.

    Returns:
        Numbers (Q, k) int64 and similarities (Q, k) float64, most similar first, equal ones by number.
    """
    numbers = np.empty((len(queries), k), np.int64)
    similarities = np.empty((len(queries), k), np.float64)
    for start in range(0, len(queries), QUERIES):
        pending = np.arange(start, min(start + QUERIES, len(queries)))
        fetch = k + MARGIN
        while len(pending):
            fetch = min(fetch, len(vectors))
            found, least = _candidates(vectors, queries[pending], fetch, device)
            ordered, exact = ranked(found, vectors, queries[pending])
            numbers[pending], similarities[pending] = ordered[:, :k], exact[:, :k]
            # Of vectors of length 1 no sum of d products, in whatever order, is wrong by more than d roundoffs.
            error = 2 * vectors.shape[1] * UNIT_ROUNDOFF
            unsure = exact[:, k - 1] <= least + error if fetch < len(vectors) else np.zeros(len(pending), bool)
            pending, fetch = pending[unsure], 4 * fetch
    return numbers, similarities


def ranked(numbers: np.ndarray, vectors: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Candidates in order of their similarity in float64, equal ones by number.

    What is returned for a pair depends on its two vectors alone, whatever else is asked at the same time.

    Args:
        numbers: (Q, K) of the candidates; -1 for none.
        vectors: (N, d), where `numbers` point into; or (Q, K, d), the candidates' own.
        queries: (Q, d).

    Returns:
        (Q, K) numbers and float64 similarities, -inf for none.
    """
    similarities = np.empty(numbers.shape, np.float64)
    for place, query in enumerate(queries.astype(np.float64)):
        own = vectors[place] if vectors.ndim == 3 else vectors[numbers[place]]
        similarities[place] = (own.astype(np.float64) * query).sum(1)
    similarities[numbers < 0] = -np.inf
    order = np.lexsort((numbers, -similarities), axis=1)
    return np.take_along_axis(numbers, order, 1), np.take_along_axis(similarities, order, 1)


def _candidates(
    vectors: np.ndarray, queries: np.ndarray, fetch: int, device: torch.device | str
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (Q, fetch) of the most similar in float32, and the least of their similarities (Q,)."""
    asked = torch.from_numpy(queries).to(device)
    best = torch.empty(len(queries), 0, device=device)
    numbers = torch.empty(len(queries), 0, dtype=torch.long, device=device)
    for start in range(0, len(vectors), VECTORS):
        block = torch.from_numpy(np.asarray(vectors[start : start + VECTORS])).to(device)
        similar = asked @ block.T
        top = similar.topk(min(fetch, len(block)), sorted=False)
        best = torch.cat([best, top.values], 1)
        numbers = torch.cat([numbers, top.indices + start], 1)
        if best.shape[1] > fetch:
            top = best.topk(fetch, sorted=False)
            best, numbers = top.values, numbers.gather(1, top.indices)
    return numbers.cpu().numpy(), best.min(1).values.double().cpu().numpy()
