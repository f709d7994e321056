"""Which rows are alike in the features of earlier stages: k-means of each stage, joined, none too small."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from mllm_align.data.mine.faiss_settings import load_faiss, threads

ROUNDS = 20
REDONE = 3  # starts, of which the best is kept
MAX_TRAINING = 400_000  # vectors that centroids are placed by
Labels = np.ndarray


def k_means(features: np.ndarray, num_clusters: int, seed: int = 0) -> Labels:
    """(N,) int64: the cluster of each feature by k-means with FAISS, the same at every call.

    Args:
        features: (N, d) float32, unit vectors as MCL has them.
        num_clusters: At the most; there are no more than features.
        seed: Of the first centroids.

    Raises:
        ImportError: If FAISS is not installed.
        ValueError: If a feature is not finite.
    """
    faiss = load_faiss()
    features = np.ascontiguousarray(features, np.float32)
    broken = ~np.isfinite(features).all(axis=1)
    if broken.any():
        raise ValueError(f"row {broken.argmax()} has a feature that is not finite: the tower has diverged")
    count = min(num_clusters, len(features))
    sample = features
    if len(features) > MAX_TRAINING:
        sample = features[np.random.default_rng(seed).choice(len(features), MAX_TRAINING, replace=False)]
    with threads(1):  # sums of several threads differ in the last bit
        found = faiss.Kmeans(
            features.shape[1],
            count,
            niter=ROUNDS,
            nredo=REDONE,
            seed=seed,
            min_points_per_centroid=1,
            max_points_per_centroid=len(sample),
        )
        found.train(sample)
        return found.index.search(features, 1)[1][:, 0].astype(np.int64)


def joined(labels: Sequence[Labels]) -> Labels:
    """(N,) int64: numbers of the tuples of labels, in the order in which they first come.

    Args:
        labels: (N,) of each stage.
    """
    return _numbered(list(zip(*(each.tolist() for each in labels), strict=True)))


def merge_small(labels: Labels, parents: Labels, features: np.ndarray, smallest: int) -> Labels:
    """Clusters of fewer than `smallest` rows, put with the nearest one of the same parent, the smallest first.

    What is alone in its parent stays as it is: so if no parent is too small, no cluster is in the end.

    Args:
        labels: (N,) int64; all rows of one label have the same parent.
        parents: (N,) int64, the clusters of earlier stages.
        features: (N, d); the distance is that of the means.
        smallest: Rows of a cluster.

    Returns:
        (N,) int64, numbered in the order in which they first come.
    """
    labels = labels.copy()
    for parent in np.unique(parents):
        rows = np.flatnonzero(parents == parent)
        while True:
            names, sizes = np.unique(labels[rows], return_counts=True)
            if len(names) == 1 or sizes.min() >= smallest:
                break
            means = np.stack([features[rows[labels[rows] == name]].astype(np.float64).mean(0) for name in names])
            least = int(sizes.argmin())
            distances = ((means - means[least]) ** 2).sum(1)
            distances[least] = np.inf
            labels[rows[labels[rows] == names[least]]] = names[int(distances.argmin())]
    return _numbered(labels.tolist())


def refined(parents: Labels, features: np.ndarray, num_clusters: int, smallest: int, seed: int = 0) -> Labels:
    """The clusters of earlier stages, each divided by the features of one more stage.

    Args:
        parents: (N,) int64, of earlier stages; all 0 where there is none.
        features: (N, d) float32 unit vectors of that stage.
        num_clusters: Of its k-means, over all rows.
        smallest: Rows that a cluster has at the least, wherever its parent has as many.
        seed: Of the k-means.
    """
    found = joined([parents, k_means(features, num_clusters, seed)])
    return merge_small(found, parents, features, smallest)


def _numbered(names: Sequence[Hashable]) -> Labels:
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)
