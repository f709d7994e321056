"""Tables of questions: which files are read, and pictures that lie inside them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.tables import hub_rows, table_rows

NO_PICTURES = PictureFolder(None, "nowhere")


def encoded(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (shade, 2), shade).save(file, "png")
    return file.getvalue()


def write_parquet(path: Path, number: int, group: int) -> None:
    images = [{"bytes": encoded(n + 1), "path": f"{n}.png" if n else None} for n in range(number)]
    table = pa.table({"id": list(range(number)), "image": images})
    pq.write_table(table, path, row_group_size=group)


def test_pictures_inside_parquet(tmp_path: Path) -> None:
    write_parquet(tmp_path / "test.parquet", 5, 2)
    rows = list(table_rows(tmp_path, ("id",), "there"))
    assert [row.values for row in rows] == [{"id": n} for n in range(5)]
    assert [row.name for row in rows] == ["test.parquet/0", "1.png", "2.png", "3.png", "4.png"]
    for number in (4, 0, 2):
        shown = rows[number].picture(NO_PICTURES).load()
        assert (shown.mode, shown.size) == ("RGB", (number + 1, 2))


def test_json_lines_come_before_parquet_of_the_same_name(tmp_path: Path) -> None:
    write_parquet(tmp_path / "b.parquet", 1, 1)
    write_parquet(tmp_path / "c.parquet", 1, 1)
    for name in ("a", "c"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"id": name, "image": "x.png"}))
    rows = list(table_rows(tmp_path, ("id",), "there"))
    assert [row.values["id"] for row in rows] == ["a", 0, "c"]
    assert [row.load is None for row in rows] == [True, False, True]
    with pytest.raises(FileNotFoundError, match=r"image x.png is needed.*nowhere"):
        rows[0].picture(NO_PICTURES).load()


def test_what_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no .jsonl or .parquet file in .*: get it from there"):
        list(table_rows(tmp_path, ("id",), "there"))
    write_parquet(tmp_path / "a.parquet", 1, 1)
    with pytest.raises(ValueError, match=r"a.parquet lacks the columns question; get it from there"):
        list(table_rows(tmp_path, ("id", "question"), "there"))
    (tmp_path / "a.parquet").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"a.parquet is not Parquet"):
        list(table_rows(tmp_path, ("id",), "there"))


def test_a_picture_that_cannot_be_read(tmp_path: Path) -> None:
    table = pa.table({"id": [1], "image": [{"bytes": b"no picture", "path": "a.png"}]})
    pq.write_table(table, tmp_path / "a.parquet")
    (row,) = table_rows(tmp_path, ("id",), "there")
    with pytest.raises(ValueError, match=r"cannot read the image of .*a.parquet, row 0"):
        row.picture(NO_PICTURES).load()


def test_rows_of_the_hub() -> None:
    first, second = hub_rows([{"id": 1, "image": Image.new("L", (3, 2))}, {"id": 2, "image": None}])
    assert first.values == {"id": 1}
    assert first.picture(NO_PICTURES).load().size == (3, 2)
    assert (second.name, second.load) == ("", None)
