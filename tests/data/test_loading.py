"""Rows from every kind of place, with images still encoded and paths made absolute."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from mllm_align.data.errors import DataError
from mllm_align.data.images import load_image
from mllm_align.data.loading import load_rows, undecoded
from mllm_align.data.schema import parse_row

ROWS = [
    {"image": "pics/0.png", "prompt": "What?", "chosen": "A cat.", "rejected": "A dog."},
    {"image": "pics/1.png", "prompt": "Who?", "chosen": "Kane.", "rejected": "Bob."},
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pics").mkdir()
    for number in range(2):
        Image.new("RGB", (8, 6), (number, 2, 3)).save(tmp_path / "pics" / f"{number}.png")
    return tmp_path


def colours(dataset: Any) -> list[int]:
    return [load_image(parse_row(row).images[0]).getpixel((0, 0))[0] for row in dataset]


def write_json(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_files_resolve_paths_beside_them(folder: Path, suffix: str, streaming: bool) -> None:
    path = folder / f"rows{suffix}"
    if suffix == ".parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(path)
    else:
        write_json(path, ROWS)
    loaded = load_rows(path, streaming=streaming, source="pairs")
    assert isinstance(loaded, datasets.IterableDataset if streaming else datasets.Dataset)
    assert colours(loaded) == [0, 1]
    first = next(iter(loaded))
    assert (first["source"], first["image"]) == ("pairs", str(folder / "pics/0.png"))


def test_image_folder_and_absolute_paths(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("rows")
    rows = [{**ROWS[0], "image": "0.png", "contrast_image": str(folder / "pics/1.png")}]
    row = load_rows(write_json(elsewhere / "a.jsonl", rows), image_folder=folder / "pics")[0]
    assert (row["image"], row["contrast_image"]) == (str(folder / "pics/0.png"), str(folder / "pics/1.png"))
    rows = [{"images": ["0.png", "1.png"], "prompt": "?", "chosen": "a"}]
    row = load_rows(write_json(elsewhere / "b.jsonl", rows), image_folder=folder / "pics")[0]
    assert row["images"] == [str(folder / "pics/0.png"), str(folder / "pics/1.png")]


@pytest.mark.parametrize("streaming", [False, True])
def test_saved_datasets_stay_encoded(folder: Path, streaming: bool) -> None:
    table = datasets.Dataset.from_list([{**row, "image": str(folder / row["image"])} for row in ROWS])
    table = table.cast_column("image", datasets.Image())
    table.save_to_disk(folder / "one")
    datasets.DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(folder / "many")
    loaded = load_rows(folder / "one", streaming=streaming)
    assert colours(loaded) == [0, 1]
    assert isinstance(next(iter(loaded))["image"], dict)
    assert colours(load_rows(folder / "many", streaming=streaming)) == [0, 1]
    assert colours(load_rows(folder / "many", split="test", streaming=streaming)) == [1]
    with pytest.raises(DataError, match="has the splits train, test; not 'dev'"):
        load_rows(folder / "many", split="dev", streaming=streaming)


def test_image_folders(folder: Path) -> None:
    lines = [{"file_name": f"{n}.png", **{k: v for k, v in row.items() if k != "image"}} for n, row in enumerate(ROWS)]
    write_json(folder / "pics" / "metadata.jsonl", lines)
    loaded = load_rows(folder / "pics")
    assert colours(loaded) == [0, 1]
    assert loaded[1]["chosen"] == "Kane."


def test_parquet_with_image_bytes(folder: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (9, 9, 9)).save(buffer, "PNG")
    rows = [{**ROWS[0], "image": {"bytes": buffer.getvalue(), "path": "x.png"}}]
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(folder / "a.parquet")
    loaded = load_rows(folder / "a.parquet")
    assert colours(loaded) == [9]


def test_undecoded_lists_of_images() -> None:
    pixels = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
    features = datasets.Features({"images": datasets.List(datasets.Image()), "n": datasets.Value("int64")})
    table = datasets.Dataset.from_list([{"images": [pixels, pixels], "n": 1}], features=features)
    assert [set(image) for image in undecoded(table)[0]["images"]] == [{"bytes", "path"}] * 2
    rows = [{"images": [pixels]}]
    assert undecoded(rows) is rows


def test_columns_are_renamed(folder: Path) -> None:
    rows = [{"image": "x.png", "question": "What?", "chosen": "stale", "answer": "A cat."}]
    path = write_json(folder / "a.jsonl", rows)
    names = {"prompt": "question", "chosen": "answer", "image": "image"}
    for streaming in (False, True):
        row = parse_row(next(iter(load_rows(path, columns=names, streaming=streaming))))
        assert row.responses == {"chosen": "A cat."}
        assert row.messages[0]["content"][1]["text"] == "What?"
        assert row.images == (str(folder / "x.png"),)
        with pytest.raises(DataError, match=r"maps 'prompt' to 'qestion'.*did you mean 'question'"):
            next(iter(load_rows(path, columns={"prompt": "qestion"}, streaming=streaming)))


def test_formats(folder: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    rows = [{"id": "1", "image": "pics/1.png", "conversations": turns}, {"id": "2", "conversations": turns[1:] * 2}]
    rows[1]["conversations"] = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
    path = write_json(folder / "llava.json", rows)
    for streaming in (False, True):
        first, second = (parse_row(row) for row in load_rows(path, row_format="llava", streaming=streaming))
        assert first.images == (str(folder / "pics/1.png"),)
        assert first.responses == {"chosen": "A cat."}
        assert second.images == ()
    rows = [{"image": ["pics/0.png", "pics/1.png"], "conversations": [{**turns[0], "value": "Which?"}, turns[1]]}]
    for streaming in (False, True):
        loaded = load_rows(write_json(folder / "lists.jsonl", rows), row_format="llava", streaming=streaming)
        assert len(parse_row(next(iter(loaded))).images) == 2
    with pytest.raises(DataError, match=r"unknown row format 'lava'.*did you mean 'llava'"):
        load_rows(path, row_format="lava")


def test_a_real_sharegpt_file(data_dir: Path) -> None:
    loaded = load_rows(data_dir / "photos" / "sharegpt_mllm_demo.json", row_format="llava")
    rows = [parse_row(row, index) for index, row in enumerate(loaded)]
    assert len(rows[0].images) == 2
    assert rows[0].messages[0]["content"][0] == {"type": "image"}
    assert rows[0].responses["chosen"].startswith("They are celebrating")
    assert all(Path(image).is_absolute() for row in rows for image in row.images)


def test_one_column_may_hold_text_here_and_messages_there(folder: Path) -> None:
    mixed = [ROWS[0], {**ROWS[1], "prompt": [{"role": "user", "content": "Who?"}]}]
    for streaming in (False, True):
        rows = load_rows(write_json(folder / "mixed.jsonl", mixed), streaming=streaming)
        assert [parse_row(row).messages[0]["content"][-1]["text"] for row in rows] == ["What?", "Who?"]


def test_what_cannot_be_read(folder: Path) -> None:
    for name, text in (("cut.json", '[{"prompt": "a"}, {"pro'), ("cut.jsonl", '{"prompt": "a"}\n{"prompt": \n')):
        (folder / name).write_text(text)
        with pytest.raises(DataError, match=f"{name} cannot be read as a table of rows"):
            load_rows(folder / name)
    for missing in ("nowhere.jsonl", "/nowhere/data", "./nowhere"):
        with pytest.raises(DataError, match="there is no file or folder"):
            load_rows(missing)
    (folder / "rows.txt").write_text("x")
    with pytest.raises(DataError, match=r"rows are read from \.json, \.jsonl, \.parquet files"):
        load_rows(folder / "rows.txt")
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="holds no data files"):
        load_rows(folder / "empty")
    with pytest.raises(DataError, match="neither a file nor a dataset on the Hub in reach"):
        load_rows("nobody/nothing")


def test_rows_of_the_world_have_a_path() -> None:
    pairs = load_rows("world:pairs", source="pairs")
    assert len(pairs) == 1000
    assert parse_row(pairs[0]).contrast_images
    assert parse_row(pairs[0]).source == "pairs"
    assert "kind" in load_rows("world:instructions").column_names
    with pytest.raises(DataError, match="the world gives world:pairs, world:instructions"):
        load_rows("world:pears")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_row_that_is_none_of_the_format_keeps_its_place_and_says_why(tmp_path: Path, streaming: bool) -> None:
    whole = [
        {"image": "a.jpg", "conversations": [{"from": who, "value": f"text {n}"} for who in ("human", "gpt")]}
        for n in range(1200)
    ]
    whole[0]["conversations"] = whole[1100]["conversations"] = None
    rows = list(load_rows(write_json(tmp_path / "rows.jsonl", whole), row_format="llava", streaming=streaming))
    assert len(rows) == 1200
    assert parse_row(rows[1199], 1199).responses["chosen"] == "text 1199"
    assert "unreadable" not in parse_row(rows[1], 1).columns
    for number in (0, 1100):
        with pytest.raises(DataError, match=rf"^row {number}: .*no 'conversations' or 'messages'"):
            parse_row(rows[number], number)
