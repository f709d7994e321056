"""`--data`: a folder of benchmarks, a benchmark's own folder, one file; and what is ambiguous or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mllm_align.cli import main
from mllm_align_eval.benchmarks import BENCHMARKS
from mllm_align_eval.benchmarks.locating import DATA_VARIABLE, data_folder
from mllm_align_eval.run import benchmark_items


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data" / "pope").mkdir(parents=True)
    for split in ("random", "popular"):
        row = {"question_id": 1, "image": "0.jpg", "text": "Is there a dog?", "label": "yes"}
        (tmp_path / "data" / "pope" / f"coco_pope_{split}.json").write_text(json.dumps(row))
    return tmp_path / "data"


def splits(given: Path | str | None) -> list[str]:
    return [item.split for item in benchmark_items("pope", None if given is None else str(given))]


def test_three_ways_to_name_annotations(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert splits(data) == splits(data / "pope") == ["random", "popular"]
    assert splits(data / "pope" / "coco_pope_random.json") == ["random"]
    monkeypatch.setenv(DATA_VARIABLE, str(data / "pope" / "coco_pope_popular.json"))
    assert splits(None) == ["popular"]
    monkeypatch.chdir(data / "pope")
    assert splits("coco_pope_random.json") == ["random"]


def test_a_folder_of_pictures_of_that_name_is_not_the_annotations(data: Path) -> None:
    (data / "pope" / "pope").mkdir()
    (data / "pope" / "pope" / "0.jpg").touch()
    assert splits(data / "pope") == ["random", "popular"]


def test_what_is_ambiguous_or_not_there(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(given: Path, benchmark: str = "pope") -> str:
        assert main(["eval", "questions", benchmark, "--data", str(given)]) == 2
        return capsys.readouterr().err

    (data / "coco_pope_random.json").write_text("{}")
    twice = refused(data)
    assert f"{data / 'coco_pope_random.json'} and {data / 'pope' / 'coco_pope_random.json'} are both there" in twice
    assert f"Name {data / 'pope'}" in twice
    (tmp_path / "empty").mkdir()
    nowhere = refused(tmp_path / "empty")
    assert f"there is no folder {tmp_path / 'empty' / 'pope'}, and its files (coco_pope_*.json) are not in" in nowhere
    assert "from https://github.com/AoiDragon/POPE" in nowhere
    assert f"there is no {tmp_path / 'none'}, which --data names" in refused(tmp_path / "none")
    (tmp_path / "mine.json").write_text("{}")
    other = refused(tmp_path / "mine.json")
    assert "mine.json is no file of pope by its name: its files (coco_pope_*.json)" in other
    (tmp_path / "coco_pope_random.json").write_text("[")
    broken = refused(tmp_path / "coco_pope_random.json")
    assert f"{tmp_path / 'coco_pope_random.json'}, line 1, is not JSON" in broken
    (tmp_path / "query_generative.json").write_text("[]")
    alone = refused(tmp_path / "query_generative.json", "amber")
    assert "is one file and amber is read from several: name their folder" in alone
    assert f"no file {tmp_path / 'annotations.json'}" in alone


@pytest.mark.parametrize("name", ["pope", "popev2", "amber", "mmvp", "cvbench", "sugarcrepe", "sugarcrepe_captions"])
def test_own_folders_of_real_files(name: str, data_dir: Path) -> None:
    benchmark = BENCHMARKS[name]
    own = data_dir / (benchmark.folder or name)
    assert data_folder(data_dir, benchmark) == data_folder(own, benchmark) == own


def test_every_benchmark_that_is_read_says_its_files() -> None:
    unsaid = [name for name, benchmark in BENCHMARKS.items() if not benchmark.files and not benchmark.is_rendered]
    assert unsaid == []
