"""Files that appear whole or not at all, and a reader that trusts nothing."""

from __future__ import annotations

import json
import logging
import pickle
import threading
from pathlib import Path

import pytest
import torch

from mllm_align.data.tensor_files import TensorFiles

KEY = "ab12"


def files_in(folder: Path) -> TensorFiles:
    return TensorFiles(folder / "cache", {"what": "a test"})


def file_of(files: TensorFiles, key: str = KEY) -> Path:
    return files.folder / key[:2] / f"{key}.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool])
def test_tensors_come_back_as_they_went(tmp_path: Path, dtype: torch.dtype) -> None:
    big = torch.arange(24).reshape(4, 6).to(dtype)
    given = {"part": big[1:3], "turned": big.T, "none": big[:0], "one": torch.tensor(3, dtype=dtype)}
    pickle.loads(pickle.dumps(files_in(tmp_path))).put(KEY, given, {"name": "ärm"})
    tensors, text = files_in(tmp_path).get(KEY)
    assert text == {"name": "ärm"}
    assert tensors.keys() == given.keys()
    for name, tensor in given.items():
        assert tensors[name].dtype == dtype
        assert torch.equal(tensors[name], tensor)


def test_a_folder_says_what_it_is_and_an_empty_one_is_not_made(tmp_path: Path) -> None:
    files = files_in(tmp_path)
    assert files.get(KEY) is None
    assert list(files.keys()) == []
    assert not files.folder.exists()
    files.put(KEY, {"x": torch.ones(2)})
    files.put("cd", {"x": torch.ones(2)})
    assert json.loads((files.folder / "cache.json").read_text()) == {"what": "a test"}
    assert list(files.keys()) == [KEY, "cd"]


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_a_damaged_file_is_absent_and_is_written_again(
    tmp_path: Path, keep: int, caplog: pytest.LogCaptureFixture
) -> None:
    files = files_in(tmp_path)
    files.put(KEY, {"x": torch.arange(100)})
    path = file_of(files)
    path.write_bytes(path.read_bytes()[:keep])
    with caplog.at_level(logging.WARNING):
        assert files.get(KEY) is None
    assert str(path) in caplog.text
    files.put(KEY, {"x": torch.arange(100)})
    assert torch.equal(files.get(KEY)[0]["x"], torch.arange(100))


def test_readers_never_see_half_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = files_in(tmp_path)
    files.put(KEY, {"x": torch.zeros(200_000)})

    def write(value: int) -> None:
        for _ in range(20):
            files_in(tmp_path).put(KEY, {"x": torch.full((200_000,), float(value))})

    writers = [threading.Thread(target=write, args=(value,)) for value in (1, 2, 3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        found = files.get(KEY)
        assert found is not None
        assert found[0]["x"].unique().numel() == 1
    assert [path.name for path in file_of(files).parent.iterdir()] == [f"{KEY}.safetensors"]
    assert not caplog.records


def test_a_disk_that_refuses_is_an_error_or_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    files = files_in(tmp_path)
    with pytest.raises(OSError, match="cache"):
        files.put(KEY, {"x": torch.ones(1)})
    with caplog.at_level(logging.WARNING):
        files.offer(KEY, {"x": torch.ones(1)})
        files.offer(KEY, {"x": torch.ones(1)})
    assert len(caplog.records) == 1
    assert "set cache_dir" in caplog.text
