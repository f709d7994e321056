"""Pictures that are taken for the same one: all above the threshold, however many there are."""

from __future__ import annotations

import numpy as np
import pytest

from mllm_align.data.mine.index import build_index
from mllm_align.data.mine.same_pictures import SamePictures


def vectors() -> np.ndarray:
    """A crowd of forty copies among others."""
    rng = np.random.default_rng(0)
    found = rng.normal(size=(120, 12))
    found[30:70] = found[30] + 0.02 * rng.normal(size=(40, 12))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("threshold", [0.5, 0.99, 1.0, -1.0])
def test_all_that_are_near_enough(threshold: float) -> None:
    own = vectors()
    exact = own.astype(np.float64)
    same = SamePictures(own, build_index([own], "exact"), threshold)
    for number, found in zip((0, 31, 69, 119), same.of([0, 31, 69, 119]), strict=True):
        near = [n for n in range(len(own)) if n != number and (exact[n] * exact[number]).sum() >= threshold]
        assert found == frozenset(near)
    assert len(same.of([31])[0]) >= {0.5: 39, 0.99: 39, 1.0: 0, -1.0: 119}[threshold]
    assert same.of([]) == []


def test_what_is_no_cosine_is_refused() -> None:
    own = vectors()
    with pytest.raises(ValueError, match="is a cosine from -1 to 1, not"):
        SamePictures(own, build_index([own], "exact"), 1.5)
