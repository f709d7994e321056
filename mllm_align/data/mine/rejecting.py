"""Rejected responses for plain instruction rows: the model's own answer where it cannot see the row's picture.

POVID (2402.11411) and SENA (2412.15650) answer on a picture with diffusion noise, others without a picture; RLAIF-V
(2405.17220) ranks answers of the model itself. Here the model answers on a corrupted picture, another row's, or none,
and what it says is rejected if it differs from chosen in content (`differing`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from PIL import Image

from mllm_align.data.blocks import PROBLEM, BlockJob
from mllm_align.data.corrupt import Corruption, DrawnImage
from mllm_align.data.corrupt.drawn import seed_of
from mllm_align.data.errors import DataError
from mllm_align.data.images import image_key
from mllm_align.data.loading import undecoded
from mllm_align.data.mine.differing import Differing
from mllm_align.data.mine.instructions import Instruction, answers_to, read_instruction
from mllm_align.data.mine.looks import are_alike
from mllm_align.data.mine.pairs import input_digest
from mllm_align.data.mine.problems import RowProblem
from mllm_align.data.mine.results import Tally, TextSimilarity, write_results
from mllm_align.data.mine.speaking import Ask, Speaker
from mllm_align.data.output import RowFile

Shown = Corruption | Literal["other", "none"]

_SCHEMA = pa.schema([("row", pa.int64()), ("answer", pa.string()), ("shown_row", pa.int64())])


@dataclass(frozen=True, kw_only=True)
class RejectOptions:
    """How rejected responses are made and which are kept.

    Attributes:
        shown: What the model sees: a corruption of the row's picture, "other" for another row's, "none" for none.
        differing: The filters.
        max_similarity: Greatest cosine of chosen and rejected under the text encoder, where there is one.
        contrast: Whether the picture that was shown is given as `contrast_image`.
        seed: Of all draws.
        max_new_tokens: Of an answer.
    """

    shown: Shown = "none"
    differing: Differing = field(default_factory=Differing)
    max_similarity: float = 0.95
    contrast: bool = False
    seed: int = 0
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        if not isinstance(self.shown, Corruption) and self.shown not in ("other", "none"):
            raise ValueError(f"shown must be a corruption, 'other' or 'none', not {self.shown!r}")
        if self.contrast and self.shown == "none":
            raise ValueError("without a picture shown there is none to give as contrast_image")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")


def make_rejected(
    rows: Any,
    output: str | os.PathLike[str],
    speaker: Speaker,
    options: RejectOptions | None = None,
    *,
    similarity: TextSimilarity | None = None,
    strict: bool = False,
    overwrite: bool = False,
    block_size: int = 64,
    progress: bool = True,
    made_of: str = "",
) -> dict[str, Any]:
    """Writes the rows that got a rejected response, and `<output>.report.json`.

    Killed and started again, it goes on, and ends with the very same file. Answers are kept in `<output>.work`, so
    other filters ask nothing again. A collective: every process of `accelerate launch` must call it.

    Args:
        rows: Canonical rows, one picture and one question each; anything with a length and integer indexing.
        output: The file, .jsonl or .parquet.
        speaker: The model that answers.
        options: How rejected responses are made and which are kept.
        similarity: A text encoder as a further filter.
        strict: Whether a row that cannot be used is an error.
        overwrite: Whether an output file with another content may be replaced.
        block_size: Rows of a block: what a kill costs at the most.
        progress: Whether to show a bar.
        made_of: What the rows are called, for messages.

    Returns:
        The report: rows in, kept, and how many were dropped, by problem and by filter.

    Raises:
        DataError: If `strict`, for the first row that cannot be used; for an output that is neither kind of file.
        FileExistsError: If the output is there with another content and may not be replaced.
        ValueError: If the work folder holds a job on other rows or with another model.
    """
    options = options or RejectOptions()
    rows = undecoded(rows)
    file = RowFile(output, overwrite=overwrite)
    file.refuse_other()
    settings = {
        "model": speaker.identity,
        "shown": repr(options.shown),
        "seed": options.seed,
        "max_new_tokens": options.max_new_tokens,
        "input": input_digest(rows),
    }
    job = BlockJob(file.work_folder / "answers", settings, len(rows), _SCHEMA, block_size, made_of=made_of)
    job.run(_Answering(rows, speaker, options, strict), "answering", progress=progress)
    tally = Tally(strict)
    kept = list(_kept(rows, job, options, similarity, tally))
    made = {
        "model": speaker.identity,
        "shown": options.shown if isinstance(options.shown, str) else repr(options.shown),
    }
    report = {
        "rows": len(rows),
        "kept": len(kept),
        "problems": tally.problems.as_dict(),
        "filters": dict(tally.filters),
        **made,
        "text_encoder": similarity.identity if similarity is not None else None,
        "options": asdict(options) | {"shown": made["shown"]},
    }
    write_results(file, (_row(rows, each, options, made) for each in kept), report)
    return report


class _Answering:
    """The records of a block: what the model says to each question, and where another row's picture was shown."""

    def __init__(self, rows: Any, speaker: Speaker, options: RejectOptions, strict: bool) -> None:
        self.rows, self.speaker, self.options, self.strict = rows, speaker, options, strict

    def __call__(self, numbers: range) -> list[dict[str, Any]]:
        records: dict[int, dict[str, Any]] = {}
        asks: dict[int, Ask] = {}
        for number in numbers:
            records[number] = {"row": number}
            try:
                asks[number], records[number]["shown_row"] = self._ask(read_instruction(self.rows[number], number))
            except RowProblem as problem:
                self._note(records[number], problem)
        answers = answers_to(list(asks.values()), self.speaker, self.options.max_new_tokens)
        for number, answer in zip(asks, answers, strict=True):
            if isinstance(answer, RowProblem):
                self._note(records[number], answer)
            else:
                records[number]["answer"] = answer
        return list(records.values())

    def _note(self, record: dict[str, Any], problem: RowProblem) -> None:
        if self.strict:
            raise problem
        record[PROBLEM] = str(problem)

    def _ask(self, item: Instruction) -> tuple[Ask, int | None]:
        own = item.picture()  # also where it is not shown: a row without its picture is of no use
        if isinstance(self.options.shown, Corruption):
            return item.ask(self.options.shown(own, np.random.default_rng(_seed(item, self.options)))), None
        if self.options.shown == "none":
            return item.ask(), None
        other, picture = self._other(item, own)
        return item.ask(picture), other

    def _other(self, item: Instruction, own: Image.Image) -> tuple[int, Image.Image]:
        """Another row whose picture is not the same, drawn by the seed; unreadable ones are passed over."""
        key = image_key(item.image, item.name)
        start = seed_of(self.options.seed, item.key) % len(self.rows)
        for step in range(len(self.rows)):
            number = (start + step) % len(self.rows)
            try:
                other = read_instruction(self.rows[number], number)
                if number == item.number or image_key(other.image, other.name) == key:
                    continue
                picture = other.picture()
            except DataError:
                continue
            if not are_alike(own, picture):  # the same one may be in several files
                return number, picture
        raise RowProblem("no other picture", f"{item.name}: no other row has another picture that could be shown")


@dataclass(frozen=True)
class _Kept:
    """Without the row, which may hold a picture: it is read again when it is written."""

    number: int
    chosen: str
    rejected: str
    shown_row: int | None


def _kept(
    rows: Any, job: BlockJob, options: RejectOptions, similarity: TextSimilarity | None, tally: Tally
) -> Iterator[_Kept]:
    """The rows whose answer passes all filters, a block at a time."""
    for table in job.tables():
        passed: list[_Kept] = []
        for record in table.to_pylist():
            if record[PROBLEM] is not None:
                tally.problem(record[PROBLEM])
                continue
            item = read_instruction(rows[record["row"]], record["row"])
            if tally.is_new(item):
                failed = options.differing.failed(item.prompt, item.chosen, record["answer"])
                if failed is None:
                    passed.append(_Kept(item.number, item.chosen, record["answer"], record["shown_row"]))
                else:
                    tally.filters[failed] += 1
        if similarity is None or not passed:
            yield from passed
            continue
        cosines = similarity.similarities([kept.chosen for kept in passed], [kept.rejected for kept in passed])
        for kept, cosine in zip(passed, cosines, strict=True):
            if cosine < options.max_similarity:
                yield kept
            else:
                tally.filters["similarity"] += 1


def _row(rows: Any, kept: _Kept, options: RejectOptions, made: Mapping[str, str]) -> dict[str, Any]:
    """The row with its rejected response, and how that was made."""
    item = read_instruction(rows[kept.number], kept.number)
    other = read_instruction(rows[kept.shown_row], kept.shown_row) if kept.shown_row is not None else None
    shown = None
    if options.contrast:
        shown = other.image if other is not None else None
        if isinstance(options.shown, Corruption):
            shown = DrawnImage(item.image, options.shown, _seed(item, options))
    return {
        **item.as_row(),
        "rejected": kept.rejected,
        **({"contrast_image": shown} if options.contrast else {}),
        "rejected_by": made["model"],
        "rejected_on": made["shown"] if other is None else f"{made['shown']}: {other.key}",
    }


def _seed(item: Instruction, options: RejectOptions) -> int:
    return seed_of(options.seed, item.key)
