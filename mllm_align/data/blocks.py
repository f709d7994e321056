"""Long jobs over many rows: cut into blocks, shared by any number of processes, killed and started again at will."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from mllm_align.data.files import as_text, write_whole
from mllm_align.data.processes import processes

SETTINGS = "job.json"
MADE_OF = ".made_of"  # beside the settings, which stand for the result wherever its input lies
PROBLEM = "problem"
ABANDONED = 3600  # seconds after which an unfinished file is of a process that was killed

Work = Callable[[range], Sequence[Mapping[str, Any]]]


class BlockJob:
    """A folder with what a job has finished: one Parquet file for each block of its rows, whole or not there.

    A block is always the same rows, whoever works on it and whenever, so a job that was killed, or that goes on with
    another number of processes, ends with the very same files. Under `accelerate launch` every process takes its
    share of the blocks; the folder must be one that all of them see.

    Args:
        folder: Where the files are; made if it is not there.
        settings: Everything that decides the result, as JSON can hold it.
        num_rows: Rows of the input.
        schema: Columns of the records that work returns. A string column "problem" is added: a record that has one
            is a row that could not be used, and why.
        block_size: Rows of a block: what a kill costs at the most, and what is in memory at one time.
        inputs: Settings that stand for what the input holds, as a digest of it.
        made_of: What the input is called, as a path; it decides nothing, and is for messages alone.

    Raises:
        ValueError: If the folder holds what a job on another input or with other settings made; the message says
            which.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        settings: Mapping[str, Any],
        num_rows: int,
        schema: pa.Schema,
        block_size: int = 256,
        *,
        inputs: Collection[str] = ("input", "images", "pages", "embeddings"),
        made_of: str = "",
    ) -> None:
        if block_size < 1:
            raise ValueError(f"block_size must be at least 1, not {block_size}")
        self.folder = Path(folder)
        self.schema = schema if PROBLEM in schema.names else schema.append(pa.field(PROBLEM, pa.string()))
        self.blocks = [range(start, min(start + block_size, num_rows)) for start in range(0, num_rows, block_size)]
        self._claim({**settings, "rows": num_rows, "block_size": block_size}, {"rows", *inputs}, made_of)

    def run(
        self, work: Work, title: str, *, progress: bool = True, outdated: Callable[[Path], bool] | None = None
    ) -> int:
        """Finishes every block that is not finished yet. A collective: every process must call it.

        Args:
            work: Given the row numbers of a block, returns its records (any number, also none).
            title: For the progress bar.
            progress: Whether to show one.
            outdated: Given the file of a finished block, whether that must be made anew, for what it was made of is
                no longer the same; until then the file stays.

        Returns:
            How many rows this process worked on; the others were done before, or by others.
        """
        state = processes()
        own = [number for number in range(len(self.blocks)) if number % state.num_processes == state.process_index]
        worked = 0
        total = sum(len(self.blocks[number]) for number in own)
        hidden = not progress or not state.is_main_process
        with tqdm(total=total, desc=title, unit="row", disable=hidden) as bar:
            for number in own:
                rows = self.blocks[number]
                path = self._path(number)
                if not path.exists() or (outdated is not None and outdated(path)):
                    self._write(number, work(rows))
                    worked += len(rows)
                bar.update(len(rows))
        state.wait_for_everyone()
        if state.is_main_process:
            self._sweep()
        return worked

    def tables(self) -> Iterator[pa.Table]:
        """The finished blocks in order.

        Raises:
            FileNotFoundError: If a block is not finished.
        """
        for number in range(len(self.blocks)):
            if not self._path(number).exists():
                raise FileNotFoundError(f"{self._path(number)} is not there: the job has not finished; start it again")
            yield pq.read_table(self._path(number), schema=self.schema)

    def records(self) -> Iterator[dict[str, Any]]:
        """Every record in order, one at a time; those with a problem too."""
        for table in self.tables():
            yield from table.to_pylist()

    def _claim(self, settings: dict[str, Any], inputs: Collection[str], made_of: str) -> None:
        content = json.loads(json.dumps(settings, sort_keys=True, default=str))
        path = self.folder / SETTINGS
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            named = self.folder / MADE_OF
            made_before = named.read_text(encoding="utf-8") if named.exists() else ""
            changed = [key for key in sorted({*before, *content}) if before.get(key) != content.get(key)]
            if any(key in inputs for key in changed):
                raise ValueError(self._other_input(before.get("rows"), made_before, content["rows"], made_of))
            if changed:
                key, old, new = _first_change(changed[0], before.get(changed[0]), content.get(changed[0]))
                raise ValueError(
                    f"{self.folder} holds a job with {key} {old!r}, this one has {new!r}: name another output, or "
                    "remove that folder to begin anew"
                )
            return
        # Every process writes the same.
        if made_of:
            write_whole(self.folder / MADE_OF, as_text(made_of).encode())
        write_whole(path, (json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode())

    def _other_input(self, rows_before: Any, made_before: str, rows: int, made_of: str) -> str:
        first, second = (
            f"{n} rows{f' of {name}' if name else ''}" for n, name in ((rows_before, made_before), (rows, made_of))
        )
        what = f"this one has {second}" if first != second else "which hold something else now (texts, ids or images)"
        return (
            f"the job in {self.folder} was made from {first}, {what}: remove the folder {self.folder} to begin anew, "
            "or name another output"
        )

    def _write(self, number: int, records: Sequence[Mapping[str, Any]]) -> None:
        table = pa.Table.from_pylist([dict(record) for record in records], schema=self.schema)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        write_whole(self._path(number), sink.getvalue())

    def _sweep(self) -> None:
        """Removes unfinished files that nobody writes any more; the same job may run in another terminal."""
        for draft in self.folder.glob(".block-*"):
            try:
                if time.time() - draft.stat().st_mtime > ABANDONED:
                    draft.unlink()
            except FileNotFoundError:  # finished meanwhile
                continue

    def _path(self, number: int) -> Path:
        return self.folder / f"block-{number:06d}.parquet"


def _first_change(key: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    """Where two settings differ first, and how; of groups of settings the first of them that does."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return key, old, new
    name = next(name for name in sorted({*old, *new}) if old.get(name) != new.get(name))
    return _first_change(f"{key}.{name}", old.get(name), new.get(name))
