"""Clusters of earlier stages: k-means, joined labels and merging against plain loops."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import numpy as np
import pytest

from mllm_align.trainers.clusters import ClusterSampler
from mllm_align.trainers.tower.clusters import joined, k_means, merge_small, refined


def blobs(sizes: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    middles = rng.normal(size=(len(sizes), 6))
    which = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    vectors = middles[which] + 0.01 * rng.normal(size=(len(which), 6))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), which


def same_division(one: np.ndarray, other: np.ndarray) -> bool:
    return len(set(zip(one.tolist(), other.tolist(), strict=True))) == len(set(one.tolist())) == len(set(other))


def test_k_means_finds_blobs_and_is_the_same_at_every_call() -> None:
    features, which = blobs([30, 20, 25, 40])
    found = k_means(features, 4, seed=3)
    assert same_division(found, which)
    assert np.array_equal(found, k_means(features, 4, seed=3))
    assert len(k_means(features[:3], 10)) == 3


def test_k_means_gives_each_row_the_nearest_mean() -> None:
    features = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    found = k_means(features, 5)
    means = np.stack([features[found == name].mean(0) for name in range(5)])
    for row, label in enumerate(found):
        distances = [float(((features[row] - mean) ** 2).sum()) for mean in means]
        assert distances[label] <= min(distances) + 0.05  # the means moved once more


def test_labels_are_joined_over_all_stages() -> None:
    stages = [np.random.default_rng(seed).integers(0, 3, 50) for seed in range(3)]
    found = joined(stages)
    for one in range(50):
        for other in range(50):
            alike = all(stage[one] == stage[other] for stage in stages)
            assert (found[one] == found[other]) == alike
    assert list(dict.fromkeys(found.tolist())) == list(range(found.max() + 1))


def merged_by_loop(labels: list[int], parents: list[int], features: np.ndarray, smallest: int) -> list[int]:
    labels = list(labels)
    for parent in sorted(set(parents)):
        while True:
            sizes = Counter(label for label, own in zip(labels, parents, strict=True) if own == parent)
            least = min(sizes, key=lambda name: (sizes[name], name))
            if len(sizes) == 1 or sizes[least] >= smallest:
                break
            mean = {
                name: features[[i for i, label in enumerate(labels) if label == name]].astype(float).mean(0)
                for name in sizes
            }
            others = [name for name in sorted(sizes) if name != least]
            nearest = min(others, key=lambda name: float(((mean[name] - mean[least]) ** 2).sum()))
            labels = [nearest if label == least else label for label in labels]
    return labels


def test_small_clusters_go_to_the_nearest_of_their_parent() -> None:
    rng = np.random.default_rng(4)
    parents = rng.integers(0, 3, 120)
    labels = joined([parents, rng.integers(0, 9, 120)])
    features = rng.normal(size=(120, 4)).astype(np.float32)
    found = merge_small(labels, parents, features, 12)
    wanted = np.array(merged_by_loop(labels.tolist(), parents.tolist(), features, 12))
    assert same_division(found, wanted)
    assert np.bincount(found).min() >= 12
    assert len(set(found)) < len(set(labels))
    for name in set(found.tolist()):
        assert len(set(parents[found == name])) == 1
    alone = merge_small(np.array([0, 1, 2]), np.array([0, 1, 2]), features[:3], 5)
    assert alone.tolist() == [0, 1, 2]  # there is nothing else of the same parent


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_batches_lie_in_one_joined_cluster_and_have_every_row_once(num_ranks: int) -> None:
    first, _ = blobs([70, 50, 40], seed=1)
    second, _ = blobs([50, 60, 50], seed=2)
    clusters = refined(refined(np.zeros(160, np.int64), first, 3, 8), second, 3, 8)
    assert np.bincount(clusters).min() >= 8
    samplers = [
        ClusterSampler(clusters.tolist(), 8 // num_ranks, seed=5, num_ranks=num_ranks, rank=rank)
        for rank in range(num_ranks)
    ]
    shares = [list(sampler) for sampler in samplers]
    whole = [list(chain(*parts)) for parts in zip(*shares, strict=True)]
    assert sorted(chain(*whole)) == list(range(160))
    pure = [batch for batch in whole if len(set(clusters[batch])) == 1]
    # What does not fill a batch of its own cluster shares one.
    left = sum(int(size) % 8 for size in np.bincount(clusters))
    assert sum(map(len, whole)) - sum(map(len, pure)) <= left
    assert len(pure) >= sum(int(size) // 8 for size in np.bincount(clusters))
    assert shares[0] == list(ClusterSampler(clusters.tolist(), 8 // num_ranks, seed=5, num_ranks=num_ranks))


def test_a_broken_feature_is_named() -> None:
    features, _ = blobs([10, 10])
    features[7, 2] = np.nan
    with pytest.raises(ValueError, match="row 7 has a feature that is not finite"):
        k_means(features, 2)
