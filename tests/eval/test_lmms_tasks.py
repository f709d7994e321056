"""Our questions as files that lmms-eval reads."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import load_dataset

from mllm_align.cli import main
from mllm_align_eval.benchmarks.world import world_items
from mllm_align_eval.items import Item, Picture
from mllm_align_eval.lmms_bridge.tasks import write_tasks


class _Loader(yaml.SafeLoader):
    """Takes lmms-eval's own tag as the name behind it."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def reading(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("reading", folder / "reading.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_split_is_a_task(tmp_path: Path) -> None:
    items = [item for item in world_items(6, 4, 4, regimes=["adversarial"]) if item.is_closed]
    group, *names = write_tasks(items, tmp_path / "tasks")
    splits = list(dict.fromkeys(item.split for item in items))
    assert names == [f"mllm_align_world_{split}" for split in splits]
    said = yaml.load((tmp_path / "tasks" / f"{group}.yaml").read_text(), _Loader)
    assert said == {"group": group, "task": names}
    told = reading(tmp_path / "tasks")
    for name, split in zip(names, splits, strict=True):
        task = yaml.load((tmp_path / "tasks" / f"{name}.yaml").read_text(), _Loader)
        assert task["task"] == name
        rows = load_dataset(
            task["dataset_path"], data_files=task["dataset_kwargs"]["data_files"], cache_dir=str(tmp_path / "cache")
        )[task["test_split"]]
        own = [item for item in items if item.split == split]
        assert [row["id"] for row in rows] == [item.id for item in own]
        for row, item in zip(rows, own, strict=True):
            assert row[task["doc_to_text"]] == item.prompt
            assert [picture.tobytes() for picture in told.visuals(row)] == [
                picture.load().convert("RGB").tobytes() for picture in item.pictures
            ]
            assert told.right(row, [f" {item.answer.capitalize()}. "]) == {"right": 1.0}
            for other in set(item.choices) - {item.answer}:
                assert told.right(row, [other]) == {"right": 0.0}
            assert told.right(row, [f"{item.answer} or not"]) == {"right": 0.0}


def test_nothing_is_overwritten_and_open_questions_are_left_out(tmp_path: Path) -> None:
    items = [item for item in world_items(2, 2, 2, regimes=["random"]) if item.is_closed]
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="has something in it"):
        write_tasks(items, tmp_path)
    with pytest.raises(ValueError, match="is a file and is kept"):
        write_tasks(items, tmp_path / "mine.txt")
    picture = items[0].pictures[0]
    open_question = Item("a", "world", "s", "k", "c", "What?", (Picture("a", picture.load),))
    with pytest.raises(ValueError, match="none of the questions has choices"):
        write_tasks([open_question], tmp_path / "tasks")
    assert not (tmp_path / "tasks").exists()


def test_the_command_writes_the_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "tasks", "world", "--output", str(tmp_path / "tasks"), "--num-scenes", "3"]) == 0
    said = capsys.readouterr().out
    assert "--include_path" in said
    assert "mllm_align_world_adversarial" in said
    assert main(["eval", "tasks", "world", "--output", str(tmp_path / "tasks")]) == 2
