"""`data check --draw`: pictures of the first rows for any family, and none is replaced."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mllm_align.cli import main
from mllm_align.cli.draw import draw_rows
from mllm_align.data.world import correspondence_rows, document_rows
from tiny import save_tiny


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl"])
def test_every_geometry_is_drawn(family: str, tmp_path: Path) -> None:
    folder = save_tiny(family, tmp_path / "model")
    rows = [*correspondence_rows(1), *document_rows(1)]
    paths = draw_rows(rows, str(folder), tmp_path / "drawn", 5)
    names = ["0000_correspondence_train_medium_0_0.png", "0001_document_train_small_0_0.png"]
    assert [path.name for path in paths] == names
    with Image.open(paths[0]) as first, Image.open(paths[1]) as second:
        assert first.height > 1.8 * second.height  # two images and two contrast images, against one and one
        assert (first.width > 1000) == (family == "llava_next")  # which has a panel of tiles more


def test_the_command_writes_and_replaces_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "check", "world:documents", "--draw", str(tmp_path / "drawn"), "--draw-rows", "2"]
    assert main(command) == 0
    assert "wrote 2 pictures" in capsys.readouterr().out
    before = {path.name: path.read_bytes() for path in (tmp_path / "drawn").iterdir()}
    assert main(command) == 2
    assert "0000_document_train_small_0_0.png exists: name another folder" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "drawn").iterdir()} == before


def test_rows_without_objects_are_refused(tmp_path: Path) -> None:
    rows = [{"image": Image.new("RGB", (8, 8)), "prompt": "What?", "chosen": "it"}]
    with pytest.raises(ValueError, match="none of the first 1 rows has objects"):
        draw_rows(rows, "demo-base", tmp_path / "drawn", 3)
    with pytest.raises(ValueError, match="--draw-rows must be at least 1"):
        draw_rows(rows, "demo-base", tmp_path / "drawn", 0)
    assert not (tmp_path / "drawn").exists()
