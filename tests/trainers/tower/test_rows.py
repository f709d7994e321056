"""Images with captions: which rows are alike, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

from mllm_align.data.errors import DataError
from mllm_align.trainers.tower.rows import CaptionedImages, negatives
from tiny_duals import captioned


def test_captions_and_pictures_are_numbered() -> None:
    rows = captioned(6)
    rows.append({**rows[1], "chosen": rows[2]["chosen"]})
    rows.append({"images": [rows[0]["image"]], "chosen": [{"role": "assistant", "content": rows[0]["chosen"]}]})
    data = CaptionedImages(rows)
    assert data.text.tolist() == [0, 1, 2, 3, 4, 5, 2, 0]
    assert data.picture.tolist() == [0, 1, 2, 3, 4, 5, 1, 0]
    assert data.texts[2] == rows[2]["chosen"]
    assert data[6]["image"].tobytes() == rows[1]["image"].tobytes()
    assert data.digest == CaptionedImages(rows).digest != CaptionedImages(rows[:-1]).digest


def test_a_dataset_and_another_column() -> None:
    rows = [{"image": row["image"], "caption": row["chosen"]} for row in captioned(4)]
    data = CaptionedImages(Dataset.from_list(rows), "caption")
    assert len(data) == len(data.texts) == 4
    assert data[3]["image"].size == (64, 64)


def test_negatives_are_of_one_cluster_and_have_nothing_in_common() -> None:
    rng = np.random.default_rng(0)
    text, picture, cluster = (rng.integers(0, 4, 12) for _ in range(3))
    found = negatives([text, picture], cluster)
    for i in range(12):
        for j in range(12):
            assert found[i, j] == (cluster[i] == cluster[j] and text[i] != text[j] and picture[i] != picture[j])
    assert not found.diagonal().any()
    assert found.any()


def test_what_is_refused() -> None:
    rows = captioned(4)
    with pytest.raises(DataError, match=r"row 1.*no column 'caption' with a caption"):
        CaptionedImages([{**rows[0], "caption": "x"}, rows[1]], "caption")
    with pytest.raises(DataError, match=r"row 0.*no column 'image'"):
        CaptionedImages([{"chosen": "x"}, rows[1]])
    with pytest.raises(DataError, match="row 0 has 2 images"):
        CaptionedImages([{"images": [rows[0]["image"]] * 2, "chosen": "x"}])
    with pytest.raises(DataError, match="2 rows with 1 different captions have no negatives"):
        CaptionedImages([rows[0], rows[0]])
    with pytest.raises(DataError, match="load without streaming"):
        CaptionedImages(iter(rows))
