"""Engines: Tesseract where it is installed, on a page that is drawn here; and a user's own function."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw, ImageFont

from mllm_align.data.errors import DataError
from mllm_align.data.ocr import engines
from mllm_align.data.ocr.engines import Tesseract, engine_from

installed = pytest.mark.skipif(shutil.which("tesseract") is None, reason="tesseract is not installed (tesseract-ocr)")
LINES = ("Invoice 2041", "Two coffees 7.00", "Total 10.50")


def drawn() -> Image.Image:
    page = Image.new("RGB", (640, 400), "white")
    for number, text in enumerate(LINES):
        ImageDraw.Draw(page).text((60, 60 + 90 * number), text, "black", ImageFont.load_default(40))
    return page


@installed
def test_tesseract_reads_what_was_drawn_where_it_was_drawn() -> None:
    engine = Tesseract()
    words = engine(drawn(), "page")
    assert " ".join(word.text for word in words) == " ".join(LINES)
    assert "eng" in engine.identity
    total = next(word for word in words if word.text == "Total")
    assert total.box[0] == pytest.approx(60 / 640, abs=0.02)
    assert 240 / 400 < total.box[1] < total.box[3] < 300 / 400


@installed
def test_a_language_that_is_not_there() -> None:
    with pytest.raises(DataError, match="no data for language 'xxx': install tesseract-ocr-xxx, or say one of"):
        Tesseract("eng+xxx")


def test_tesseract_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.shutil, "which", lambda _: None)
    with pytest.raises(DataError, match=r"apt-get install tesseract-ocr .*--engine my_module:my_function"):
        engine_from("tesseract")


def fake(folder: Path, script: str) -> str:
    path = folder / "tesseract"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_what_tesseract_says_is_read_and_its_failure_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a program in its place, so that this runs everywhere: languages, a table with doubtful words, a failure."""
    header = "level\tpage_num\tblock_num\tpar_num\tline_num\tword_num\tleft\ttop\twidth\theight\tconf\ttext"
    rows = [
        "4\t1\t1\t1\t1\t0\t10\t20\t60\t10\t-1\t",
        '5\t1\t1\t1\t1\t1\t10\t20\t20\t10\t96.1\t"quoted',
        "5\t1\t1\t1\t1\t2\t40\t20\t30\t10\t12\tsmudge",
    ]
    (tmp_path / "table").write_text("\n".join([header, *rows]) + "\n")
    script = f"""case "$1" in
--version) echo "tesseract 9.9";;
--list-langs) printf 'List of available languages (1):\\neng\\n';;
*) if [ -e "{tmp_path}/broken" ]; then echo oops >&2; exit 3; fi; cat > /dev/null; cat "{tmp_path}/table";;
esac"""
    program = fake(tmp_path, script)
    monkeypatch.setattr(engines.shutil, "which", lambda _: program)
    engine = engine_from("tesseract", min_confidence=50)
    assert engine.identity == "tesseract 9.9 eng 50"
    page = Image.new("RGB", (100, 50))
    assert engine(page, "page") == [('"quoted', (0.1, 0.4, 0.3, 0.6))]
    (tmp_path / "broken").touch()
    with pytest.raises(DataError, match="page: tesseract failed: oops"):
        engine(page, "page")


def own_reader(page: Image.Image) -> list[dict[str, Any]]:
    return [{"text": f"{page.width}", "box": [0, 0, page.width // 2, page.height]}]


def test_a_function_of_one_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    engine = engine_from("test_engines:own_reader")
    assert engine(drawn(), "page") == [("640", (0.0, 0.0, 0.5, 1.0))]
    assert engine.identity.startswith("test_engines:own_reader ")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("paddle", "unknown OCR engine 'paddle': say tesseract, or module:function"),
        ("no_such_module_here:read", "no module 'no_such_module_here'"),
        ("json:reads", "json has no function 'reads'"),
    ],
)
def test_engines_that_are_not_there(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        engine_from(name)
