"""Vectors of others: which array of a file, of which length, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mllm_align.data.errors import DataError
from mllm_align.data.mine.vector_files import digest_of, load_vectors

VECTORS = np.array([[3.0, 4.0], [0.0, -2.0]])
UNIT = np.array([[0.6, 0.8], [0.0, -1.0]], np.float32)


def test_they_are_as_long_as_one(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", VECTORS)
    np.savez(tmp_path / "b.npz", images=VECTORS, text=2 * VECTORS[:1])
    np.savez(tmp_path / "c.npz", whatever=VECTORS.astype(np.float16))
    for name, side in (("a.npy", "text"), ("b.npz", "image"), ("c.npz", "image")):
        found = load_vectors(tmp_path / name, side)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, UNIT, rtol=1e-6)
    assert load_vectors(tmp_path / "b.npz", "text").shape == (1, 2)


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros((2, 3)), "image vector 0 is zero or not finite"),
        (np.array([[1.0, 0.0], [np.nan, 1.0]]), "image vector 1 is zero or not finite"),
        (np.ones(3), r"of shape \(N, d\), not float64 of \(3,\)"),
        (np.array([["a"]]), "vectors are numbers"),
    ],
)
def test_what_is_no_table_of_vectors_is_refused(array: np.ndarray, told: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=told):
        load_vectors(tmp_path / "a.npy", "image")


def test_files_that_are_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", one=VECTORS, other=VECTORS)
    (tmp_path / "b.npy").write_bytes(b"nothing")
    np.save(tmp_path / "c.npy", np.array([None, {}], object), allow_pickle=True)
    for name, told in (
        ("a.npz", "holds one, other, but no numbers called 'image_vectors'"),
        ("b.npy", "no plain array"),
        ("c.npy", "no plain array"),
        ("d.npy", "there is no file of vectors"),
        ("e.csv", "read from .npy or .npz files"),
    ):
        with pytest.raises(DataError, match=told):
            load_vectors(tmp_path / name, "image")


def test_vectors_that_are_named_are_found_by_name(tmp_path: Path) -> None:
    file = tmp_path / "named.npz"
    told: dict[str, Any] = {"image_names": np.array(["b/1.png", "1.png"]), "texts": np.array(["two", "one"])}
    np.savez(file, image_vectors=VECTORS, text_vectors=VECTORS[::-1], **told)
    images = load_vectors(file, "image", ["/root/1.png", "/root/b/1.png", "1.png"])
    np.testing.assert_allclose(images, UNIT[[1, 0, 1]], rtol=1e-6)
    np.testing.assert_allclose(load_vectors(file, "text", ["one", "one"]), UNIT[[0, 0]], rtol=1e-6)
    np.testing.assert_allclose(load_vectors(file, "text"), UNIT[::-1], rtol=1e-6)
    for side, wanted in (("image", "2.png"), ("image", ""), ("text", "three")):
        with pytest.raises(DataError, match=f"has no vector of the {side} '{wanted}': encode it too"):
            load_vectors(file, side, [wanted])
    with pytest.raises(DataError, match=r"one vector, '1.png', for the images '/root/x/1.png' and 'y/1.png'"):
        load_vectors(file, "image", ["x/1.png", "/root/x/1.png", "y/1.png"])
    np.save(tmp_path / "plain.npy", VECTORS)
    np.testing.assert_allclose(load_vectors(tmp_path / "plain.npy", "text", ["x"]), UNIT, rtol=1e-6)


def test_a_digest_is_of_numbers_and_shape() -> None:
    assert digest_of(UNIT) == digest_of(UNIT.copy(order="F"))
    assert len({digest_of(UNIT), digest_of(UNIT.reshape(1, 4)), digest_of(-UNIT)}) == 3
