"""Rows with captions to rows with named boxes: phrases of the caption, found by a detector (as CLOC's and GRIT's)."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import pyarrow as pa
from PIL import Image

from mllm_align.data.blocks import PROBLEM, BlockJob
from mllm_align.data.errors import DataError
from mllm_align.data.loading import undecoded
from mllm_align.data.mine.detector import Detection
from mllm_align.data.mine.instructions import Instruction, read_instruction
from mllm_align.data.mine.pairs import input_digest
from mllm_align.data.mine.phrases import phrases_of
from mllm_align.data.mine.problems import RowProblem
from mllm_align.data.mine.results import Tally, write_results
from mllm_align.data.output import RowFile
from mllm_align.data.processes import processes
from mllm_align.data.schema import UNREADABLE

logger = logging.getLogger(__name__)

LOWEST = 0.05  # scores that are kept in the work folder, so that another threshold asks nothing again
_SCHEMA = pa.schema([("row", pa.int64()), ("found", pa.string())])


class Finder(Protocol):
    """A detector; `identity` tells it apart from every other that would find others."""

    identity: str

    def fits(self, phrase: str) -> bool:
        """Whether a phrase is short enough to be read; it is not asked about others."""
        ...

    def __call__(self, image: Image.Image, phrases: Sequence[str], threshold: float = 0.0) -> list[Detection]:
        """What is found of some phrases, best first."""
        ...


@dataclass(frozen=True)
class RegionOptions:
    """What becomes of a caption and of what is found.

    Attributes:
        column: Of the text whose phrases are looked for, or of a list of phrases.
        threshold: Scores must be above it.
        per_phrase: Boxes of a phrase at the most, the best ones.
        overlap: Of two boxes that have more than this share of their union in common the better one is kept.
        min_regions: Rows with fewer are left out.
    """

    column: str = "chosen"
    threshold: float = 0.2
    per_phrase: int = 3
    overlap: float = 0.7
    min_regions: int = 1

    def __post_init__(self) -> None:
        if not LOWEST <= self.threshold < 1:
            raise ValueError(f"threshold must be from {LOWEST} to less than 1, not {self.threshold!r}")
        if self.per_phrase < 1:
            raise ValueError(f"per_phrase must be at least 1, not {self.per_phrase!r}")
        if not 0 < self.overlap <= 1:
            raise ValueError(f"overlap must be above 0 and at most 1, not {self.overlap!r}")


def make_regions(
    rows: Any,
    output: str | os.PathLike[str],
    finder: Finder,
    options: RegionOptions | None = None,
    *,
    strict: bool = False,
    overwrite: bool = False,
    block_size: int = 64,
    progress: bool = True,
) -> dict[str, Any]:
    """Writes the rows in which something was found, with `objects` and `scores`, and `<output>.report.json`.

    Rows keep all their columns. Objects that a row has stay, before those that are found; `scores` has one entry for
    each of its objects, None for those that nobody scored.

    Killed and started again, it goes on, and ends with the very same file. What was found is kept in `<output>.work`,
    so other thresholds look at nothing again. A collective: every process of `accelerate launch` must call it.

    Args:
        rows: Canonical rows with one image each; anything with a length and integer indexing.
        output: The file, .jsonl or .parquet.
        finder: What finds them.
        options: Which phrases, and which boxes.
        strict: Whether a row that cannot be used is an error.
        overwrite: Whether an output file with another content may be replaced.
        block_size: Rows of a block: what a kill costs at the most.
        progress: Whether to show a bar.

    Returns:
        The report: rows in, kept, dropped by problem and by filter, phrases looked for, regions, and how many phrases
        were too long for the detector, with an example.

    Raises:
        DataError: If `strict`, for the first row that cannot be used.
        FileExistsError: If the output is there with another content and may not be replaced.
        ValueError: If the work folder holds a job on other rows or with another detector.
    """
    options = options or RegionOptions()
    rows = undecoded(rows)
    file = RowFile(output, overwrite=overwrite)
    file.refuse_other()
    settings = {
        "job": "regions",
        "detector": finder.identity,
        "column": options.column,
        "input": input_digest([rows[number] for number in range(len(rows))]),
    }
    job = BlockJob(file.work_folder / "regions", settings, len(rows), _SCHEMA, block_size)
    job.run(_Finding(rows, finder, options.column, strict), "finding regions", progress=progress)
    tally, counts, too_long = Tally(strict), Counter(phrases=0, regions=0), list[str]()
    kept = list(_kept(rows, job, options, tally, counts, too_long))
    if too_long and processes().is_main_process:
        logger.warning(
            "%d phrases are longer than the detector reads and were not looked for, such as %r",
            len(too_long),
            too_long[0],
        )
    report = {
        "rows": len(rows),
        "kept": len(kept),
        "problems": tally.problems.as_dict(),
        "filters": dict(tally.filters),
        **counts,
        "too_long": {"phrases": len(too_long), "example": too_long[0] if too_long else None},
        "detector": finder.identity,
        "options": asdict(options),
    }
    write_results(file, kept, report)
    return report


class _Finding:
    """The records of a block: of each row its phrases and what was found of them."""

    def __init__(self, rows: Any, finder: Finder, column: str, strict: bool) -> None:
        self.rows, self.finder, self.column, self.strict = rows, finder, column, strict

    def __call__(self, numbers: range) -> list[dict[str, Any]]:
        records = []
        for number in numbers:
            record: dict[str, Any] = {"row": number}
            try:
                record["found"] = json.dumps(self._look(read_instruction(self.rows[number], number), number))
            except RowProblem as problem:
                if self.strict:
                    raise
                record[PROBLEM] = str(problem)
            records.append(record)
        return records

    def _look(self, item: Instruction, number: int) -> dict[str, Any]:
        raw = self.rows[number]
        _own_scores(raw, item)
        given = _phrases(raw.get(self.column), item, self.column)
        phrases = [phrase for phrase in given if self.finder.fits(phrase)]
        found = self.finder(item.picture(), phrases, LOWEST) if phrases else []
        entries = [[each.phrase, round(each.score, 4), [round(side, 5) for side in each.box]] for each in found]
        too_long = [phrase for phrase in given if phrase not in phrases]
        return {"phrases": len(phrases), "found": entries} | ({"too_long": too_long} if too_long else {})


def _phrases(value: Any, item: Instruction, column: str) -> list[str]:
    if column == "chosen" or (value is not None and isinstance(value, str)):
        return phrases_of(item.chosen if column == "chosen" else value)
    if isinstance(value, Sequence) and all(isinstance(phrase, str) for phrase in value):
        return list(dict.fromkeys(phrase for phrase in value if phrase.strip()))
    raise RowProblem("no phrases", f"{item.name}: column {column!r} is neither a text nor a list of phrases")


def _kept(
    rows: Any, job: BlockJob, options: RegionOptions, tally: Tally, counts: Counter[str], too_long: list[str]
) -> Iterator[dict[str, Any]]:
    for record in job.records():
        if record[PROBLEM] is not None:
            tally.problem(record[PROBLEM])
            continue
        raw = rows[record["row"]]
        item = read_instruction(raw, record["row"])
        if not tally.is_new(item):
            continue
        told: Mapping[str, Any] = json.loads(record["found"])
        counts["phrases"] += told["phrases"]
        too_long += told.get("too_long", ())
        found = chosen([Detection(text, score, tuple(box)) for text, score, box in told["found"]], options)
        if len(found) < options.min_regions:
            unread = "phrases too long" if told.get("too_long") else "no phrases"
            tally.filters["nothing found" if told["phrases"] else unread] += 1
            continue
        counts["regions"] += len(found)
        yield {
            **_all_columns(raw, item),
            "objects": [
                *(raw.get("objects") or ()),
                *({"box": list(each.box), "text": each.phrase} for each in found),
            ],
            "scores": [*_own_scores(raw, item), *(each.score for each in found)],
        }


def _all_columns(raw: Mapping[str, Any], item: Instruction) -> dict[str, Any]:
    """A row as it was given; where its image stands within its conversation, with the image in a column."""
    given = {name: value for name, value in raw.items() if value is not None and name != UNREADABLE}
    if "image" in given or "images" in given:
        return given
    told = {name: value for name, value in given.items() if name not in ("messages", "completion")}
    if isinstance(told.get("rejected"), list | tuple):
        told["rejected"] = told["rejected"][-1:]  # the answer: the turns before it are the prompt's
    return told | item.as_row()


def _own_scores(raw: Mapping[str, Any], item: Instruction) -> list[Any]:
    """Of each object that a row has its score, or None.

    Raises:
        RowProblem: If its column `scores` is something else.
    """
    objects, scores = raw.get("objects") or (), raw.get("scores")
    if scores is None:
        return [None] * len(objects)
    if not isinstance(scores, list | tuple) or len(scores) != len(objects):
        raise RowProblem(
            "other scores",
            f"{item.name}: column 'scores' is not one for each of the row's objects ({len(objects)}); rename it",
        )
    return list(scores)


def chosen(found: Sequence[Detection], options: RegionOptions) -> list[Detection]:
    """Of what was found, best first, what is kept: above the threshold, no box twice, not too many of a phrase."""
    kept: list[Detection] = []
    per_phrase: Counter[str] = Counter()
    for each in sorted(found, key=lambda one: -one.score):
        left, top, right, bottom = each.box
        if each.score <= options.threshold or right <= left or bottom <= top:
            continue
        if per_phrase[each.phrase] < options.per_phrase and all(
            _shared(each.box, other.box) <= options.overlap for other in kept
        ):
            kept.append(each)
            per_phrase[each.phrase] += 1
    return kept


def _shared(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes with an area."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0.0) * max(height, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return both / (areas - both)


def check_column(rows: Any, column: str) -> None:
    """Refuses a column that the rows do not have.

    Raises:
        DataError: Naming those that there are.
    """
    if len(rows) and column != "chosen" and column not in rows[0]:
        raise DataError(f"--phrases {column}: the rows have no such column, but {', '.join(map(str, rows[0]))}")
