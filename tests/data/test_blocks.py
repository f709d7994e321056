"""Block jobs: a kill at any moment changes nothing, settings are watched, processes share the work."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mllm_align.data.blocks import BlockJob
from runs import kill_amid, start_ranks, wait_for_ranks

SCHEMA = pa.schema([("row", pa.int64()), ("square", pa.int64()), ("name", pa.string())])


def square(rows: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {"row": row, "square": row**2, "name": f"Zeile {row} ü"} if row % 5 else {"row": row, "problem": "a fifth"}
        for row in rows
        if row % 7
    ]


def job(folder: Path, num_rows: int = 50, **changes: Any) -> BlockJob:
    settings = {"model": "a", "threshold": 0.5} | changes
    return BlockJob(folder, settings, num_rows, SCHEMA, block_size=8)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_records_come_in_order_with_their_problems(tmp_path: Path) -> None:
    made = job(tmp_path)
    assert made.run(square, "squares", progress=False) == 50
    records = list(made.records())
    assert [record["row"] for record in records] == [row for row in range(50) if row % 7]
    assert all((record["problem"] is None) == bool(record["row"] % 5) for record in records)
    assert records[0]["name"] == "Zeile 1 ü"


def test_what_is_finished_is_not_done_again(tmp_path: Path) -> None:
    job(tmp_path).run(square, "squares", progress=False)
    before = digests(tmp_path)
    (tmp_path / "block-000003.parquet").unlink()
    asked: list[int] = []

    def counting(rows: range) -> list[dict[str, Any]]:
        asked.extend(rows)
        return square(rows)

    assert job(tmp_path).run(counting, "squares", progress=False) == 8
    assert asked == list(range(24, 32))
    assert digests(tmp_path) == before


def test_an_unfinished_job_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has not finished"):
        list(job(tmp_path).records())


@pytest.mark.parametrize(("num_rows", "change"), [(50, {"threshold": 0.7}), (51, {}), (50, {"added": 1})])
def test_other_settings_are_refused_by_name(tmp_path: Path, num_rows: int, change: dict[str, Any]) -> None:
    job(tmp_path).run(square, "squares", progress=False)
    with pytest.raises(ValueError, match=next(iter(change), "rows")):
        job(tmp_path, num_rows, **change)


def test_of_settings_in_groups_the_one_that_differs_is_named(tmp_path: Path) -> None:
    settings = {"choice": {"per_row": 1, "more": {"margin": 0.05, "seed": 0}}}
    BlockJob(tmp_path, settings, 3, SCHEMA)
    settings["choice"]["more"] = {"margin": 0.1, "seed": 0}  # type: ignore[index]
    with pytest.raises(ValueError, match=r"holds a job with choice\.more\.margin 0\.05, this one has 0\.1: name"):
        BlockJob(tmp_path, settings, 3, SCHEMA)
    with pytest.raises(ValueError, match=r"holds a job with choice \{.*\}, this one has None"):
        BlockJob(tmp_path, {}, 3, SCHEMA)


def test_no_rows_and_blocks_without_records_are_fine(tmp_path: Path) -> None:
    empty = job(tmp_path / "none", 0)
    assert empty.run(square, "squares", progress=False) == 0
    assert list(empty.records()) == []
    nothing = job(tmp_path / "nothing")
    nothing.run(lambda rows: [], "squares", progress=False)
    assert list(nothing.records()) == []


def test_an_error_in_a_block_leaves_the_others(tmp_path: Path) -> None:
    def failing(rows: range) -> list[dict[str, Any]]:
        if 20 in rows:
            raise OSError("disk")
        return square(rows)

    with pytest.raises(OSError, match="disk"):
        job(tmp_path).run(failing, "squares", progress=False)
    assert [path.name for path in sorted(tmp_path.glob("block*"))] == ["block-000000.parquet", "block-000001.parquet"]


SLOW = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from data.test_blocks import job, square
def slowly(rows):
    time.sleep(0.05)
    return square(rows)
job(Path(sys.argv[1])).run(slowly, "squares", progress=False)
"""


def test_killed_at_any_moment_it_ends_the_same(tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    tests = Path(__file__).parents[1]
    script.write_text(SLOW.format(tests=str(tests)))
    job(tmp_path / "whole").run(square, "squares", progress=False)
    killed = tmp_path / "killed"
    for wait in (0.0, 0.1, 0.2):
        kill_amid([str(script), str(killed)], lambda: any(killed.glob("block*")), wait)
    job(killed).run(square, "squares", progress=False)
    left = {name: digest for name, digest in digests(killed).items() if not name.startswith(".")}
    assert left == digests(tmp_path / "whole")


@pytest.mark.ddp
def test_processes_share_the_blocks(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(SLOW.format(tests=str(Path(__file__).parents[1])).replace("time.sleep(0.05)", "pass"))
    wait_for_ranks(start_ranks(str(script), tmp_path / "both"))
    job(tmp_path / "whole").run(square, "squares", progress=False)
    assert digests(tmp_path / "both") == digests(tmp_path / "whole")


def test_what_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    job(tmp_path).run(square, "squares", progress=False)
    written, abandoned = (tmp_path / f".block-000000.parquet.{name}" for name in ("now", "before"))
    for draft in (written, abandoned):
        draft.write_bytes(b"half")
    os.utime(abandoned, (0, 0))
    job(tmp_path).run(square, "squares", progress=False)
    assert (written.exists(), abandoned.exists()) == (True, False)
