"""The job: rows that train, what is read once, what cannot be read, and a kill in the middle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mllm_align.data.errors import DataError
from mllm_align.data.loading import load_rows
from mllm_align.data.ocr import OcrOptions, read_pages
from mllm_align.data.ocr.words import Word
from mllm_align.data.schema import parse_row
from runs import assert_survives_a_kill, picture


class Counting:
    """Two words a page, which tell its size; counts the pages that it is shown."""

    identity = "counting"

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, page: Image.Image, where: str) -> list[Word]:
        self.seen.append(Path(where).name)
        if page.width < 10:
            raise DataError(f"{where}: too small to read")
        return [Word("page", (0.1, 0.1, 0.3, 0.2)), Word(str(page.width), (0.32, 0.1, 0.5, 0.2))]


def pages(folder: Path, count: int = 5) -> Path:
    (folder / "pages").mkdir(parents=True)
    for number in range(count):
        picture(number).resize((40 + number, 80)).save(folder / "pages" / f"{number:02d}.png")
    return folder / "pages"


def test_a_folder_becomes_rows_that_train(tmp_path: Path) -> None:
    engine = Counting()
    report = read_pages(pages(tmp_path), tmp_path / "rows.jsonl", engine, OcrOptions(level="word"), progress=False)
    assert (report["rows"], report["kept"], report["words"], report["objects"]) == (5, 5, 10, 10)
    assert report["below_one_token"] == 0
    rows = load_rows(tmp_path / "rows.jsonl")
    row = parse_row(rows[3])
    assert [each.text for each in row.objects["image"]] == ["page", "43"]
    assert row.objects["image"][0].box == (0.1, 0.1, 0.3, 0.2)
    assert row.responses == {"chosen": "page 43"}
    assert row.id == "03.png"
    assert Path(row.images[0]).is_file()


def test_what_was_read_is_kept_and_what_was_replaced_read_anew(tmp_path: Path) -> None:
    engine, folder = Counting(), pages(tmp_path)
    out = tmp_path / "rows.jsonl"
    read_pages(folder, out, engine, progress=False, block_size=2)
    assert len(engine.seen) == 5
    read_pages(folder, out, engine, OcrOptions((2, 2)), progress=False, block_size=2, overwrite=True)
    assert len(engine.seen) == 5
    assert [row["objects"][0]["text"] for row in map(json.loads, out.read_text().splitlines())][:2] == [
        "page 40",
        "page 41",
    ]
    picture(9).resize((77, 80)).save(folder / "02.png")
    os.utime(folder / "02.png", (1, 1))
    read_pages(folder, out, engine, progress=False, block_size=2, overwrite=True)
    assert sorted(engine.seen[5:]) == ["02.png", "03.png"]
    assert "page 77" in out.read_text()
    other = Counting()
    other.identity = "another"
    with pytest.raises(ValueError, match="holds a job with engine 'counting', this one has 'another'"):
        read_pages(folder, out, other, progress=False, block_size=2)


def test_pages_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    folder = pages(tmp_path, 3)
    (folder / "broken.png").write_bytes(b"no image")
    Image.new("RGB", (5, 5)).save(folder / "tiny.png")
    report = read_pages(folder, tmp_path / "rows.jsonl", Counting(), progress=False)
    assert report["kept"] == 3
    assert {kind: entry["rows"] for kind, entry in report["problems"].items()} == {
        "damaged image": 1,
        "unread page": 1,
    }
    assert json.loads((tmp_path / "rows.jsonl.report.json").read_text()) == json.loads(json.dumps(report))
    few = read_pages(folder, tmp_path / "few.jsonl", Counting(), OcrOptions(min_objects=9), progress=False)
    assert (few["kept"], few["filters"]) == (0, {"few objects": 3})
    with pytest.raises(DataError, match="broken"):
        read_pages(folder, tmp_path / "strict.jsonl", Counting(), strict=True, progress=False)


def test_questions_about_pages_keep_their_answers(tmp_path: Path) -> None:
    folder = pages(tmp_path, 2)
    given: list[dict[str, Any]] = [
        {"id": "q1", "image": str(folder / "00.png"), "prompt": "How wide?", "chosen": "40"},
        {"id": "q2", "image": str(folder / "01.png"), "prompt": "How wide?", "chosen": "41"},
    ]
    read_pages(given, tmp_path / "rows.jsonl", Counting(), OcrOptions(level="block"), progress=False)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row["id"], row["prompt"], row["chosen"]) for row in rows] == [
        ("q1", "How wide?", "40"),
        ("q2", "How wide?", "41"),
    ]
    assert rows[0]["objects"] == [{"box": [0.1, 0.1, 0.5, 0.2], "text": "page 40"}]


@pytest.mark.parametrize(
    "own",
    [
        {"messages": [{"role": "user", "content": "How wide?"}, {"role": "assistant", "content": "40"}]},
        {
            "chosen": [{"role": "user", "content": "How wide?"}, {"role": "assistant", "content": "40"}],
            "rejected": [{"role": "user", "content": "How wide?"}, {"role": "assistant", "content": "41"}],
        },
        {"chosen": "40"},
    ],
)
def test_conversations_and_answers_without_a_prompt_of_their_own_stay(own: dict[str, Any], tmp_path: Path) -> None:
    image = str(pages(tmp_path, 1) / "00.png")
    given = [{"image": image, "prompt": None, **own}, {"image": image}]
    read_pages(given, tmp_path / "rows.jsonl", Counting(), progress=False)
    first, second = (json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines())
    assert {name: first.get(name) for name in ("prompt", "messages", "chosen", "rejected") if first.get(name)} == own
    assert first["objects"]
    assert (second["prompt"], second["chosen"]) == (OcrOptions().prompt, "page 40")


def test_a_killed_job_ends_as_one_that_was_left_alone(tmp_path: Path) -> None:
    folder = pages(tmp_path, 10)

    def job(place: Path) -> object:
        return read_pages(folder, place / "out.jsonl", Counting(), progress=False, block_size=1)

    script = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_job import Counting, read_pages

class Slow(Counting):
    def __call__(self, page, where):
        time.sleep(0.15)
        return super().__call__(page, where)

read_pages({str(folder)!r}, Path(sys.argv[1]) / "out.jsonl", Slow(), progress=False, block_size=1)
"""
    assert_survives_a_kill(script, job, "words", tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": (0, 24)}, "tokens must be rows and columns of a model's image tokens"),
        ({"level": "page"}, "level must be one of auto, word, line, block"),
        ({"min_objects": -1}, "min_objects must be at least 0"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OcrOptions(**options)
