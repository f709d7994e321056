"""Public preference data in files as their authors ship it: every row arrives, whatever a thousand before it are."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from data.sources.test_formats import ANSWERS, EXAMPLES, GPT, HUMAN
from mllm_align.data.errors import DataError
from mllm_align.data.images import load_image
from mllm_align.data.loading import load_rows
from mllm_align.data.schema import parse_row

NAMES = ("llava", "mvc", "povid", "re_align")
MANY = 1001  # more than a table's first batch


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def example(name: str) -> dict[str, Any]:
    return next(raw for other, raw, _ in EXAMPLES if other == name)


def loaded(rows: list[dict[str, Any]], name: str, folder: Path, streaming: bool = False) -> list[Any]:
    path = folder / "daten ü.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return list(load_rows(path, row_format=name, streaming=streaming))


def in_folder(images: tuple[Any, ...] | None, folder: Path) -> list[str]:
    return [Path(image).relative_to(folder).as_posix() for image in images or ()]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_gives_what_its_rows_give(name: str, streaming: bool, tmp_path: Path) -> None:
    raw = example(name)
    (found,) = [parse_row(row) for row in loaded([raw], name, tmp_path, streaming)]
    assert found.responses == {"chosen": "A cat."} | ({} if name == "llava" else {"rejected": "A dog."})
    assert found.messages == ({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},)
    assert in_folder(found.images, tmp_path) == ["1.jpg"]
    assert in_folder(found.contrast_images, tmp_path) == (["2.jpg"] if name in ("mvc", "re_align") else [])
    assert found.id == raw.get("id")


@pytest.mark.parametrize("name", NAMES)
def test_a_thousand_rows_that_cannot_be_read_spoil_none_behind_them(name: str, tmp_path: Path) -> None:
    raw = example(name)
    column = next(key for key, value in raw.items() if isinstance(value, list) and key != "rejected_images")
    rows = loaded([{**raw, column: None}] * MANY + [raw], name, tmp_path)
    assert parse_row(rows[-1]).responses["chosen"] == "A cat."
    assert in_folder(parse_row(rows[-1]).images, tmp_path) == ["1.jpg"]
    with pytest.raises(DataError, match="row 0: "):
        parse_row(rows[0], 0)


def test_a_system_prompt_may_come_late(tmp_path: Path) -> None:
    raw = example("mvc")
    rows = loaded([raw] * MANY + [{**raw, "system_prompt": "Be brief."}], "mvc", tmp_path)
    roles = [[message["role"] for message in parse_row(rows[number]).messages] for number in (0, -1)]
    assert roles == [["user"], ["system", "user"]]


def test_rows_of_text_alone_may_come_first_and_images_be_several(tmp_path: Path) -> None:
    talk = {"conversations": [{**HUMAN, "value": "Hi"}, GPT]}
    rows = loaded([talk] * MANY + [{"image": ["1.jpg", "2.jpg"], **talk}], "llava", tmp_path)
    assert parse_row(rows[0]).images == ()
    assert in_folder(parse_row(rows[-1]).images, tmp_path) == ["1.jpg", "2.jpg"]


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_of_rlhf_v_and_rlaif_v(streaming: bool, tmp_path: Path) -> None:
    sink = io.BytesIO()
    Image.new("RGB", (4, 4), (9, 9, 9)).save(sink, "PNG")
    shared = {
        "image": {"bytes": sink.getvalue(), "path": "1.jpg"}, "origin_dataset": "VQAv2", "origin_split": '{"a": 1}',
        "image_path": "1.jpg",
    }  # fmt: skip
    for name, own in (
        ("RLHF-V", {"idx": 1, "text": json.dumps(ANSWERS)}),
        ("RLAIF-V", {"idx": "1", **ANSWERS}),
    ):
        table = datasets.Dataset.from_list([{"ds_name": name, **shared, **own}])
        table.cast_column("image", datasets.Image()).to_parquet(tmp_path / f"{name}.parquet")
        (found,) = map(parse_row, load_rows(tmp_path / f"{name}.parquet", row_format="rlhf_v", streaming=streaming))
        assert (found.id, found.responses) == (f"{name}/1", {"chosen": "A cat.", "rejected": "A dog."})
        assert load_image(found.images[0]).getpixel((0, 0)) == (9, 9, 9)


def test_a_file_of_another_format_says_so_row_by_row(tmp_path: Path) -> None:
    for name in ("mvc", "povid", "re_align", "rlhf_v"):
        (row,) = loaded([example("llava")], name, tmp_path)
        with pytest.raises(DataError, match="row 0: "):
            parse_row(row, 0)
