"""Which questions and models a command names."""

from __future__ import annotations

from pathlib import Path

import pytest

from mllm_align.cli.asked import images_by_benchmark, items_of, named


def test_folders_of_images() -> None:
    assert images_by_benchmark(["all/", "pope=val2014/"]) == {"": "all/", "pope": "val2014/"}
    with pytest.raises(ValueError, match="no benchmark is called 'poppe'"):
        images_by_benchmark(["poppe=val2014/"])


def test_questions(tmp_path: Path) -> None:
    items = items_of(["world_retrieval", "world_retrieval"], None, {})
    assert {item.benchmark for item in items} == {"world_retrieval"}
    assert len(items) == 512
    with pytest.raises(ValueError, match="--images is missing: aro needs its pictures"):
        items_of(["aro"], str(tmp_path), {})


def test_names(tmp_path: Path) -> None:
    assert named(["a=x/y", "runs/mine.v2"], "MODEL") == {"a": "x/y", "mine_v2": "runs/mine.v2"}
    with pytest.raises(ValueError, match="x/a and y/a would both be called 'a': name them, as MODEL x=y/a"):
        named(["x/a", "y/a"], "MODEL")
