from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mllm_align.encoding.output import free_file, images_in, save_vectors, texts_in


def test_images_by_name_and_nothing_else(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt", "deep/er/c.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name) if name != "notes.txt" else (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [str(each.relative_to(tmp_path)) for each in images_in(tmp_path)] == ["a.JPG", "b.png", "deep/er/c.webp"]
    with pytest.raises(ValueError, match="no folder of images at"):
        images_in(tmp_path / "b.png")
    (tmp_path / "d.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"d\.png' is no image that can be read: mend it, or move it away"):
        images_in(tmp_path)


def test_texts_are_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text(" first \n\nsecond é\n", encoding="utf-8")
    assert texts_in(file) == [" first ", "second é"]
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="no texts could be read"):
        texts_in(file)


def test_vectors_come_back_whole_or_not_at_all(tmp_path: Path) -> None:
    file, vectors = tmp_path / "v.npz", np.eye(2, dtype=np.float32)
    assert save_vectors(file, texts=(["a", "bé"], vectors)) == file
    found = np.load(file)
    assert found["texts"].tolist() == ["a", "bé"]
    assert np.array_equal(found["text_vectors"], vectors)
    with pytest.raises(ValueError, match="is there already and is kept"):
        save_vectors(file, texts=(["c", "d"], vectors))
    assert np.load(file)["texts"].tolist() == ["a", "bé"]
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        free_file(tmp_path / "v.npy")

    class Broken:
        def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_vectors(tmp_path / "w.npz", images=(["a"], Broken()))  # type: ignore[arg-type]
    assert [each.name for each in tmp_path.iterdir()] == ["v.npz"]
