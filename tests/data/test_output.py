"""Output files: what is written is what `load_rows` reads, pictures are kept beside, nothing is lost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mllm_align.data.errors import DataError
from mllm_align.data.images import load_image
from mllm_align.data.loading import load_rows
from mllm_align.data.output import RowFile, write_together


def picture(value: int) -> Image.Image:
    return Image.new("RGB", (5, 4), (value, 2, 3))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rows_come_back_with_their_images(tmp_path: Path, suffix: str) -> None:
    inside, outside = tmp_path / "out" / "bilder" / "größe.png", tmp_path / "away.png"
    inside.parent.mkdir(parents=True)
    picture(1).save(inside)
    picture(2).save(outside)
    rows: list[dict[str, Any]] = [
        {"id": "a", "image": str(inside), "contrast_image": outside, "prompt": "Was?", "chosen": "größer"},
        {"id": "b", "image": picture(3), "contrast_image": {"bytes": inside.read_bytes(), "path": None}},
        {"id": "c", "image": picture(3), "contrast_image": {"bytes": None, "path": str(outside)}},
    ]
    path = tmp_path / "out" / f"rows{suffix}"
    assert RowFile(path).write(rows) == 3
    found = load_rows(path)
    assert found["id"] == ["a", "b", "c"]
    assert found["chosen"][0] == "größer"
    for row, (own, other) in zip(found, [(1, 2), (3, 1), (3, 2)], strict=True):
        assert np.array_equal(load_image(row["image"]), picture(own))
        assert np.array_equal(load_image(row["contrast_image"]), picture(other))
    assert len(list((tmp_path / "out" / "rows_images").iterdir())) == 2


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_column_that_only_later_rows_have_is_kept(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    RowFile(path).write([{"id": "a"}, {"id": "b", "kind": "late"}])
    assert [dict(row) for row in load_rows(path)] == [{"id": "a", "kind": None}, {"id": "b", "kind": "late"}]


def test_lists_of_images(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    RowFile(path).write([{"images": [picture(1), picture(2)], "contrast_image": [picture(2), picture(1)]}])
    row = load_rows(path)[0]
    assert [np.asarray(load_image(image))[0, 0, 0] for image in row["images"]] == [1, 2]


def test_the_same_again_is_no_error_and_another_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    RowFile(path).write([{"id": "a"}])
    RowFile(path).write([{"id": "a"}])
    with pytest.raises(FileExistsError, match="other rows"):
        RowFile(path).write([{"id": "b"}])
    assert path.read_text() == '{"id": "a"}\n'
    with pytest.raises(FileExistsError, match="is there already"):
        RowFile(path).refuse_other()
    RowFile(path, overwrite=True).write([{"id": "b"}])
    assert path.read_text() == '{"id": "b"}\n'


def test_a_file_of_its_own_job_may_be_finished(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    RowFile(path).write([{"id": "a"}])
    RowFile(path).work_folder.mkdir()
    RowFile(path).refuse_other()


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="jsonl or"):
        RowFile(tmp_path / "rows.csv")


def test_no_rows_are_an_empty_file(tmp_path: Path) -> None:
    assert RowFile(tmp_path / "rows.jsonl").write([]) == 0
    assert (tmp_path / "rows.jsonl").read_bytes() == b""


def test_a_part_and_a_report_belong_to_the_same_job(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows.jsonl")
    part = file.part("validation")
    assert (part.path.name, part.work_folder) == ("rows_validation.jsonl", file.work_folder)
    part.path.write_text("mine")
    file.report_path.write_text("mine")
    for each in (file, part):
        with pytest.raises(FileExistsError, match="is there already"):
            each.refuse_other()
    file.work_folder.mkdir()
    file.refuse_other()
    part.refuse_other()
    with pytest.raises(FileExistsError, match="other rows"):
        write_together([(file, [{"id": "a"}]), (part, [{"id": "b"}])])
    assert not file.path.exists()


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_file_name_that_is_no_unicode(tmp_path: Path, suffix: str) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/Bild \xff.png")
    picture(7).save(tmp_path / "named.png")
    os.rename(tmp_path / "named.png", name)
    path = tmp_path / f"rows{suffix}"
    RowFile(path).write([{"id": name, "image": name}])
    row = load_rows(path)[0]
    assert row["id"].endswith("Bild \\xff.png")
    assert np.array_equal(load_image(row["image"]), picture(7))
