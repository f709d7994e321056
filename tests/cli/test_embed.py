"""`data embed` and `data neighbours`: what they write, print and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mllm_align.cli import main
from mllm_align.data.mine.embeddings import Embeddings
from mllm_align.data.mine.neighbours import Neighbours
from runs import picture
from tiny_encoders import save_encoder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_encoder("siglip", tmp_path_factory.mktemp("model") / "siglip"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "Bilder ü"
    images.mkdir()
    for number in range(12):
        picture(number).save(images / f"{number:02d} é.png")
    return images


def test_a_folder_to_vectors_to_neighbours(
    model: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors, found = str(tmp_path / "vectors"), str(tmp_path / "found")
    command = ["data", "embed", str(folder), "--model", model, "--output", vectors, "--batch-size", "5", "--half"]
    assert main(command) == 0
    assert "12 images of 12 rows" in capsys.readouterr().out
    assert main(["data", "neighbours", vectors, "--output", found, "--k", "3", "--band", "-1", "1"]) == 0
    assert "12 images, 3.0 neighbours each" in capsys.readouterr().out
    neighbours = Neighbours(Embeddings(vectors), found)
    assert all(len(neighbours.of(row).rows) == 3 for row in range(12))
    assert main(command) == 0  # nothing is left to do


def test_rows_with_a_bad_image(model: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"image": f"{folder.name}/{number:02d} é.png", "scene": number // 2} for number in range(5)]
    rows.append({"image": "nowhere.png", "scene": 9})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["data", "embed", str(tmp_path / "rows.jsonl"), "--model", model, "--group", "scene"]
    assert main([*command, "--output", str(tmp_path / "vectors")]) == 0
    found = Embeddings(tmp_path / "vectors")
    assert list(found.problems) == [5]
    assert found.labels("group").tolist() == [0, 0, 1, 1, 2, 3]
    assert main([*command, "--output", str(tmp_path / "strict"), "--strict"]) == 2
    assert "there is no image file" in capsys.readouterr().err


def test_what_is_refused(model: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "embed", str(folder), "--model", model, "--output", str(folder / "vectors")]) == 0
    assert main(["data", "embed", str(folder), "--model", model, "--output", str(folder / "vectors")]) == 0
    (tmp_path / "empty").mkdir()
    out = ["--output", str(tmp_path / "out")]
    for command, text in (
        (["embed", str(tmp_path / "empty"), "--model", model], "holds no data files"),
        (["embed", str(folder), "--model", str(tmp_path)], "neither a model's folder nor"),
        (["neighbours", str(tmp_path)], "holds no embeddings"),
    ):
        assert main(["data", *command, *out]) == 2
        assert text in capsys.readouterr().err.splitlines()[-1]
