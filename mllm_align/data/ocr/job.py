"""Pages to rows with objects: each page read once, and what was read kept, so that other groupings read nothing."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from mllm_align.data.blocks import PROBLEM, BlockJob
from mllm_align.data.errors import DataError
from mllm_align.data.files import as_text
from mllm_align.data.loading import undecoded
from mllm_align.data.mine.listing import Listing, list_images
from mllm_align.data.mine.problems import Problems, RowProblem, read_picture
from mllm_align.data.mine.results import write_results
from mllm_align.data.ocr.engines import Engine
from mllm_align.data.ocr.layout import LEVELS, covered, page_objects, page_text
from mllm_align.data.ocr.words import PROMPT, Word
from mllm_align.data.output import RowFile

# Columns that say something of an image: a row with one of them has a conversation, or part of one, of its own.
_SAID = ("prompt", "messages", "chosen", "completion")
_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("words", pa.string()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("file_size", pa.int64()),
        ("file_time", pa.int64()),
    ]
)


@dataclass(frozen=True)
class OcrOptions:
    """How what was read becomes a row.

    Attributes:
        tokens: Rows and columns of the model's tokens on a page.
        level: Which pieces become objects; see `page_objects`.
        prompt: Of rows with no prompt, answer or conversation of their own; their response is the text of the page.
        min_objects: Pages with fewer are left out.
    """

    tokens: tuple[int, int] = (24, 24)
    level: str = "auto"
    prompt: str = PROMPT
    min_objects: int = 1

    def __post_init__(self) -> None:
        if len(self.tokens) != 2 or any(type(side) is not int or side < 1 for side in self.tokens):
            raise ValueError(f"tokens must be rows and columns of a model's image tokens, not {self.tokens!r}")
        if self.level not in LEVELS:
            raise ValueError(f"level must be one of {', '.join(LEVELS)}, not {self.level!r}")
        if self.min_objects < 0:
            raise ValueError(f"min_objects must be at least 0, not {self.min_objects}")


def read_pages(
    pages: str | os.PathLike[str] | Sequence[Mapping[str, Any]] | datasets.Dataset,
    output: str | os.PathLike[str],
    engine: Engine,
    options: OcrOptions | None = None,
    *,
    workers: int = 4,
    strict: bool = False,
    overwrite: bool = False,
    block_size: int = 64,
    progress: bool = True,
) -> dict[str, Any]:
    """Writes a row for each page, with its objects, and `<output>.report.json`.

    Killed and started again, it goes on, and ends with the very same file. What was read is kept in `<output>.work`,
    so other options read nothing again; a file that was replaced is read anew. A collective: every process of
    `accelerate launch` must call it.

    Args:
        pages: A folder of images, searched below too; or canonical rows with one image each, which keep their columns.
        output: The file, .jsonl or .parquet.
        engine: What finds words.
        options: How rows are made.
        workers: Pages that are read at one time.
        strict: Whether a page that cannot be read is an error.
        overwrite: Whether an output file with another content may be replaced.
        block_size: Pages of a block: what a kill costs at the most.
        progress: Whether to show a bar.

    Returns:
        The report: pages in, kept, their words and objects, how many of these cover less than one token.

    Raises:
        DataError: If there are no pages; if `strict`, for the first one that cannot be read.
        FileExistsError: If the output is there with another content and may not be replaced.
        ValueError: If the work folder holds a job on other pages or by another engine.
    """
    options = options or OcrOptions()
    file = RowFile(output, overwrite=overwrite)
    file.refuse_other()
    listing = list_images(pages)
    settings = {"job": "ocr", "engine": engine.identity, "pages": listing.digest}
    job = BlockJob(file.work_folder / "words", settings, len(listing), _SCHEMA, block_size)
    work = _Reading(listing, engine, max(1, workers), strict)
    job.run(work, "reading pages", progress=progress, outdated=lambda block: _replaced(listing, block))
    problems, counts = Problems(), Counter(words=0, objects=0, below_one_token=0)
    own = None if isinstance(pages, str | os.PathLike) else undecoded(pages)
    rows = list(_rows(job, listing, own, options, problems, counts))
    filters = counts.pop("few", 0)
    report = {
        "rows": len(listing),
        "kept": len(rows),
        **counts,
        "problems": problems.as_dict(),
        "filters": {"few objects": filters} if filters else {},
        "engine": engine.identity,
        "options": asdict(options),
    }
    write_results(file, rows, report)
    return report


class _Reading:
    """The records of a block: the words of each page, as JSON."""

    def __init__(self, listing: Listing, engine: Engine, workers: int, strict: bool) -> None:
        self.listing, self.engine, self.workers, self.strict = listing, engine, workers, strict

    def __call__(self, numbers: range) -> list[dict[str, Any]]:
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(self._record, numbers))

    def _record(self, number: int) -> dict[str, Any]:
        record: dict[str, Any] = {"row": number}
        record["file_size"], record["file_time"] = self.listing.state(number)  # first: it may change meanwhile
        name = self.listing.keys[number] or f"row {number}"
        try:
            page = read_picture(self.listing.image(number), as_text(name))
            record["width"], record["height"] = page.size
            record["words"] = json.dumps(self.engine(page, as_text(name)), ensure_ascii=False)
        except DataError as error:
            problem = error if isinstance(error, RowProblem) else RowProblem("unread page", str(error))
            if self.strict:
                raise problem from None
            record[PROBLEM] = str(problem)
        return record


def _replaced(listing: Listing, block: Path) -> bool:
    """Whether a file of a block was written again since."""
    columns = pq.read_table(block, columns=["row", "file_size", "file_time"]).to_pydict()
    told = zip(columns["row"], columns["file_size"], columns["file_time"], strict=True)
    # A file that is gone was not replaced: a disk may only not be mounted.
    return any((now := listing.state(row)) != (None, None) and now != (size, time) for row, size, time in told)


def _rows(
    job: BlockJob, listing: Listing, own: Any, options: OcrOptions, problems: Problems, counts: Counter[str]
) -> Iterator[dict[str, Any]]:
    for record in job.records():
        if record[PROBLEM] is not None:
            problems.add(record[PROBLEM])
            continue
        number = record["row"]
        words = [Word(text, tuple(box)) for text, box in json.loads(record["words"])]
        aspect = record["width"] / record["height"]
        objects = page_objects(words, options.tokens, aspect, options.level)
        if len(objects) < options.min_objects:
            counts["few"] += 1
            continue
        counts["words"] += len(words)
        counts["objects"] += len(objects)
        counts["below_one_token"] += sum(covered(each.box, options.tokens) < 1 for each in objects)
        row = {"id": listing.ids[number], "image": listing.image(number)} if own is None else dict(own[number])
        if all(row.get(name) is None for name in _SAID):
            row |= {"prompt": options.prompt, "chosen": page_text(words, aspect)}
        yield row | {
            "objects": [{"box": [round(side, 6) for side in each.box], "text": each.text} for each in objects]
        }
