"""Which rows are near: by a cluster, by ids, by vectors; and which may not meet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mllm_align.data.schema import DataError
from mllm_align.trainers.neighbourhood import given_neighbourhood, near_rows, nowhere, row_keys
from runs import picture


def given(source: str, rows: Any, count: int, seed: int = 0) -> np.ndarray:
    return given_neighbourhood(source, rows, seed, 0, 1, "cpu")(count)


def test_rows_of_one_cluster_are_near_in_any_order() -> None:
    rows = [{"cluster": "ab"[number % 2]} for number in range(12)]
    found = given("cluster", rows, 4)
    assert found.shape == (12, 4)
    for number, own in enumerate(found.tolist()):
        assert len(set(own)) == 4
        assert number not in own
        assert all(other % 2 == number % 2 for other in own)
    assert (given("cluster", rows, 8)[:, 5:] == -1).all()
    assert found.tolist() != given("cluster", rows, 4, seed=1).tolist()
    large = given("cluster", [{"cluster": 7}] * 500, 6)  # drawn, not permuted
    assert all(len(set(own) - {number, -1}) >= 5 for number, own in enumerate(large.tolist()))


def test_lists_of_ids_are_in_order() -> None:
    rows = [
        {"id": "a", "near": ["c", "b", "elsewhere", "a"]},
        {"id": 5, "near": []},
        {"id": "c", "near": [5]},
        {"id": "b", "near": ["a", "c"]},
        {"id": "b", "near": ["b"]},
    ]
    assert given("near", rows, 3).tolist() == [
        [2, 3, 4],
        [-1, -1, -1],
        [1, -1, -1],
        [0, 2, -1],
        [3, -1, -1],
    ]
    assert given("near", rows, 1).tolist() == [[2], [-1], [1], [0], [3]]


def test_vectors_of_one_or_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    rng = np.random.default_rng(0)
    images, texts = rng.normal(size=(9, 4)), rng.normal(size=(9, 4))
    np.save(tmp_path / "one.npy", images)
    np.savez(tmp_path / "both.npz", image=images, text=texts)
    for name, other in (("one.npy", images), ("both.npz", texts)):
        unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (images, other)]
        similar = unit[0] @ unit[1].T
        expected = [[o for o in np.argsort(-own).tolist() if o != n][:3] for n, own in enumerate(similar)]
        assert given(str(tmp_path / name), [{}] * 9, 3).tolist() == expected
    named = [{"image": f"/pictures/{number}.png"} for number in range(9)]
    names = np.array([f"{number}.png" for number in reversed(range(9))])
    np.savez(tmp_path / "named.npz", image_names=names, image_vectors=images[::-1], text_vectors=texts)
    for place in (str(tmp_path), "~"):
        assert given(f"{place}/named.npz", named, 3).tolist() == given(f"{place}/one.npy", named, 3).tolist()
    with pytest.raises(DataError, match="holds 9 image and 9 text vectors for 8 training rows"):
        given(str(tmp_path / "one.npy"), [{}] * 8, 3)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"cluster": 1}, {"cluster": None}], "row 1 has nothing in column 'cluster', which mine_batches_from names"),
        ([{"id": "a", "cluster": ["x"]}, {"id": "b", "cluster": ["y"]}], "no list in column 'cluster'.*has the id"),
    ],
)
def test_a_column_that_tells_nothing_is_refused(rows: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        given("cluster", rows, 2)


def test_rows_without_a_vector_are_near_to_none() -> None:
    unit = np.eye(3, dtype=np.float32)
    found = near_rows(5, np.array([0, 4]), unit[[0, 2]], np.array([0, 1, 4]), unit[[0, 0, 2]], 3, "cpu")
    assert found.tolist() == [[1, 4, -1], [-1] * 3, [-1] * 3, [-1] * 3, [0, 1, -1]]
    empty = np.empty((0, 3), np.float32)
    assert (near_rows(2, np.array([0]), unit[:1], np.array([], int), empty, 2, "cpu") == -1).all()
    assert nowhere(2)(3).tolist() == [[-1] * 3] * 2


def test_rows_of_one_picture_have_one_key(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    path = str(tmp_path / "a.png")
    rows = [{"image": path}, {"images": [path]}, {"image": picture(0)}, {"image": picture(0)}, {}, {"image": None}]
    assert row_keys(rows, None).tolist() == [0, 0, 1, 1, 2, 3]
    rows.append({"images": [path, picture(0)]})
    assert row_keys(rows, None)[-1] == 4
    named = [{"scene": 1}, {"scene": "1"}, {"scene": 2}]
    assert row_keys(named, "scene").tolist() == [0, 0, 1]
    with pytest.raises(DataError, match="row 0 has nothing in column 'place', which mine_batches_id names"):
        row_keys(named, "place")
