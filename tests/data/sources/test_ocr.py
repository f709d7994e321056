"""Pages with words that were read elsewhere, from a file written here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mllm_align.data.errors import DataError
from mllm_align.data.loading import load_rows
from mllm_align.data.schema import parse_row
from mllm_align.data.sources import converter
from runs import picture

PAGE: dict[str, Any] = {
    "id": "receipt",
    "image": "receipt.png",
    "width": 200,
    "height": 400,
    "words": [
        {"text": "Total", "box": [20, 40, 60, 60]},
        {"text": "3.50", "box": [70, 40, 100, 60]},
        {"text": "Thanks", "box": [20, 200, 90, 220]},
    ],
}


def test_a_file_of_pages(tmp_path: Path) -> None:
    picture(1).save(tmp_path / "receipt.png")
    asked = {**PAGE, "id": "asked", "prompt": "What is the total?", "chosen": "3.50"}
    (tmp_path / "pages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (PAGE, asked)))
    first, second = map(parse_row, load_rows(tmp_path / "pages.jsonl", row_format="ocr"))
    assert [each.text for each in first.objects["image"]] == ["Total", "3.50", "Thanks"]
    assert first.objects["image"][1].box == (0.35, 0.1, 0.5, 0.15)
    assert first.responses == {"chosen": "Total 3.50\n\nThanks"}
    assert first.images == (str(tmp_path / "receipt.png"),)
    assert second.messages[-1]["content"][-1]["text"] == "What is the total?"
    assert second.responses == {"chosen": "3.50"}
    assert second.objects == first.objects


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": None, "height": None}, "boxes are in pixels .up to 220., of a page of unknown size: give the row"),
        ({"height": None}, "width and height must be numbers of pixels, got 200 and None"),
        ({"width": 50}, "lies beyond the page of 50 x 400"),
        ({"words": [{"text": "a"}]}, "page 'receipt', word 0: must be a mapping with text and box"),
    ],
)
def test_what_a_page_lacks_is_said(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        converter("ocr")({**PAGE, **change})


def test_a_row_of_another_format() -> None:
    with pytest.raises(DataError, match="a row of format 'ocr' has no 'words'; it has image"):
        converter("ocr")({"image": "x.png"})
