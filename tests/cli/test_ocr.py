"""`data ocr`: from a folder to rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mllm_align.cli import main
from runs import picture
from tiny import save_tiny

READER = """
def read(page):
    return [{"text": "wide", "box": [0.1, 0.1, 0.4, 0.15]}, {"text": str(page.width), "box": [0.41, 0.1, 0.6, 0.15]}]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "reader_of_a_test.py").write_text(READER)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "pages").mkdir()
    for number in range(3):
        picture(number).save(tmp_path / "pages" / f"{number}.png")
    return tmp_path


def test_a_folder_to_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = folder / "rows.jsonl"
    command = ["data", "ocr", str(folder / "pages"), "--output", str(output), "--engine", "reader_of_a_test:read"]
    assert main([*command, "--tokens", "8", "8", "--prompt", "Read it."]) == 0
    said = capsys.readouterr().out
    assert "3 rows, 3 kept" in said
    assert "3 objects of 6 words" in said
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert rows[0]["objects"] == [{"box": [0.1, 0.1, 0.6, 0.15], "text": "wide 56"}]
    assert rows[0]["prompt"] == "Read it."
    assert rows[0]["image"] == "pages/0.png"
    assert main([*command, "--tokens", "4", "4", "--level", "word", "--overwrite"]) == 0
    assert "6 objects of 6 words, 6 of them below one token" in capsys.readouterr().out


def test_the_rows_fit_an_objective_that_asks_a_teacher(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(folder / "rows.jsonl")
    engine = ["--engine", "reader_of_a_test:read"]
    assert main(["data", "ocr", str(folder / "pages"), "--output", output, *engine]) == 0
    save_tiny("llava", folder / "model")
    # The teacher of this name is nowhere here, and is not needed to look at rows.
    assert main(["data", "check", output, "--model", str(folder / "model"), "--objective", "doco_like"]) == 0
    assert "3 rows, 3 images" in capsys.readouterr().out


def test_what_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "ocr", str(folder / "pages"), "--engine", "nothing"]
    assert main([*command, "--output", str(folder / "rows.jsonl")]) == 2
    assert "unknown OCR engine 'nothing'" in capsys.readouterr().err
    (folder / "mine.jsonl").write_text("{}\n")
    assert main([*command, "--output", str(folder / "mine.jsonl")]) == 2
    assert "is there already and is kept" in capsys.readouterr().err
