"""Folders of which some files are empty: counted, told, and the others are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from mllm_align.data.errors import DataError
from mllm_align.data.loading import load_rows


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write(path: Path, *prompts: str) -> None:
    types = datasets.Features(dict.fromkeys(("prompt", "chosen"), datasets.Value("string")))
    table = datasets.Dataset.from_dict({"prompt": list(prompts), "chosen": ["a"] * len(prompts)}, features=types)
    table.to_parquet(path) if path.suffix == ".parquet" else table.to_json(path)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_empty_files_are_told_and_passed_over(
    suffix: str, streaming: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, prompts in (("train-0", "ab"), ("train-2", "c"), ("test-0", "d")):
        write(tmp_path / f"{name}{suffix}", *prompts)
    for name in ("train-1", "test-1"):
        (tmp_path / f"{name}{suffix}").write_bytes(b"")

    def prompts_of(split: str) -> list[Any]:
        return [row["prompt"] for row in load_rows(tmp_path, split=split, streaming=streaming)]

    assert (prompts_of("train"), prompts_of("test")) == (["a", "b", "c"], ["d"])
    assert f"2 of 5 files are empty and give no rows, such as {tmp_path / f'test-1{suffix}'}" in caplog.text


def test_a_shard_without_rows_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "0.parquet")
    write(tmp_path / "1.parquet", "a")
    assert load_rows(tmp_path)["prompt"] == ["a"]
    assert "empty" not in caplog.text


def test_where_there_is_no_row_at_all_it_says_so(tmp_path: Path) -> None:
    write(tmp_path / "0.parquet")
    datasets.Dataset.from_dict({}).to_parquet(tmp_path / "1.parquet")
    for name in ("0.parquet", "1.parquet"):
        with pytest.raises(DataError, match=f"{name} is empty: it has no rows"):
            load_rows(tmp_path / name)
    (tmp_path / "hohl ü").mkdir()
    (tmp_path / "hohl ü" / "0.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match="hohl ü: its 1 files are empty"):
        load_rows(tmp_path / "hohl ü")
