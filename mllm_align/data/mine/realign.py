"""Re-Align's rejected responses (Xing et al. 2025, https://arxiv.org/abs/2502.13146): completed on a similar picture.

Segments of the chosen response are masked. In the order of similarity the model completes the masked response on a
neighbour of the row's picture; the first completion whose text differs enough from chosen (cosine of a sentence
encoder below .95) is the rejected response, and that neighbour the contrast image of rDPO.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from mllm_align.data.blocks import PROBLEM, BlockJob
from mllm_align.data.loading import undecoded
from mllm_align.data.mine.completing import WAYS, Task, Way, complete
from mllm_align.data.mine.differing import Differing
from mllm_align.data.mine.instructions import Instruction, read_instruction
from mllm_align.data.mine.masking import Masking, Segment, Template, rule_segments, spoken_segments
from mllm_align.data.mine.pairs import input_digest
from mllm_align.data.mine.problems import RowProblem, read_picture
from mllm_align.data.mine.results import Tally, TextSimilarity, write_results
from mllm_align.data.mine.speaking import Speaker
from mllm_align.data.output import RowFile

NOTHING_TO_MASK, NO_NEIGHBOUR = "nothing to mask", "no neighbour"
NOT_COMPLETED, TOO_SIMILAR = "not completed", "too similar"

_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("dropped", pa.string()),
        ("rejected", pa.string()),
        ("masked", pa.string()),
        ("by_rule", pa.bool_()),
        ("neighbour", pa.int64()),
        ("similarity", pa.float64()),
        ("rank", pa.int64()),
        ("text_similarity", pa.float64()),
    ]
)


class Neighbourhood(Protocol):
    """Similar pictures of each; what `similar_images` returns."""

    def of(self, row: int) -> Any:
        """`rows` and `similarities`, most similar first."""
        ...


@dataclass(frozen=True, kw_only=True)
class RealignOptions:
    """How responses are masked and completed, and which are accepted.

    Attributes:
        way: "instruct" or "continue"; see `mllm_align.data.mine.completing`.
        masking: How much is masked.
        k: Most neighbours that are tried.
        max_similarity: Cosine of chosen and completed under the text encoder, exclusive; the paper's .95.
        differing: What content must differ besides; all there is to ask where there is no text encoder.
        max_new_tokens: Of a completed response, for "instruct".
    """

    way: Way = "continue"
    masking: Masking = field(default_factory=Masking)
    k: int = 5
    max_similarity: float = 0.95
    differing: Differing = field(default_factory=Differing)
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise ValueError(f"answers are completed by {' or '.join(WAYS)}, not {self.way!r}")
        if self.k < 1:
            raise ValueError(f"at least one neighbour must be tried, not {self.k}")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")


def make_realigned(
    rows: Any,
    pictures: Sequence[Mapping[str, Any]],
    neighbours: Neighbourhood,
    output: str | os.PathLike[str],
    speaker: Speaker,
    options: RealignOptions | None = None,
    *,
    retrieval: Mapping[str, Any],
    similarity: TextSimilarity | None = None,
    segmenter: Speaker | None = None,
    strict: bool = False,
    overwrite: bool = False,
    block_size: int = 64,
    progress: bool = True,
    made_of: str = "",
) -> dict[str, Any]:
    """Writes the rows that got a rejected response and a contrast image, and `<output>.report.json`.

    Killed and started again, it goes on, and ends with the very same file. A collective: every process of
    `accelerate launch` must call it.

    Args:
        rows: Canonical rows, one picture and one question each; anything with a length and integer indexing.
        pictures: What neighbours are numbers of, as `{"image": ..., "id": ...}`; the first are those of `rows`.
        neighbours: Similar pictures of each.
        output: The file, .jsonl or .parquet.
        speaker: The model that completes.
        options: How.
        retrieval: How the neighbours were found (encoder, band, index), for the report; other facts, another job.
        similarity: The text encoder of the paper's rule; None to ask only that words of content differ.
        segmenter: A model that marks segments; by rule where there is none, or where it marks nothing.
        strict: Whether a row that cannot be used is an error.
        overwrite: Whether an output file with another content may be replaced.
        block_size: Rows of a block: what a kill costs at the most.
        progress: Whether to show a bar.
        made_of: What the rows are called, for messages.

    Returns:
        The report: rows in, kept, dropped by reason, how many were accepted at which neighbour.

    Raises:
        DataError: If `strict`, for the first row that cannot be used; for an output that is neither kind of file.
        FileExistsError: If the output is there with another content and may not be replaced.
        ValueError: If the work folder holds a job on other rows, with another model or other options.
    """
    options = options or RealignOptions()
    rows = undecoded(rows)
    file = RowFile(output, overwrite=overwrite)
    file.refuse_other()
    made = {
        "model": speaker.identity,
        "segments_by": segmenter.identity if segmenter is not None else "rule",
        "text_encoder": similarity.identity if similarity is not None else "words of content",
        "options": asdict(options),
        "retrieval": dict(retrieval),
    }
    settings = made | {"input": input_digest(rows)}
    job = BlockJob(file.work_folder / "completed", settings, len(rows), _SCHEMA, block_size, made_of=made_of)
    work = _Completing(rows, pictures, neighbours, speaker, options, similarity, segmenter, strict)
    job.run(work, "completing", progress=progress)
    tally = Tally(strict)
    kept = list(_kept(rows, job, tally))
    ranks = [record["rank"] for record in kept]
    report = {
        "rows": len(rows),
        "kept": len(kept),
        "problems": tally.problems.as_dict(),
        "filters": dict(tally.filters),
        "accepted_at": {str(rank): ranks.count(rank) for rank in sorted(set(ranks))},
        "segments_by_rule": sum(record["by_rule"] for record in kept),
        **made,
    }
    write_results(file, (_row(rows, record, pictures, made) for record in kept), report)
    return report


def _kept(rows: Any, job: BlockJob, tally: Tally) -> Iterator[dict[str, Any]]:
    """Records of the rows that got a response; the rows, which may hold pictures, are read again when written."""
    for record in job.records():
        if record[PROBLEM] is not None:
            tally.problem(record[PROBLEM])
            continue
        item = read_instruction(rows[record["row"]], record["row"])
        if not tally.is_new(item):
            continue
        if record["dropped"] is not None:
            tally.filters[record["dropped"]] += 1
        else:
            yield record


def _row(
    rows: Any, record: Mapping[str, Any], pictures: Sequence[Mapping[str, Any]], made: Mapping[str, Any]
) -> dict[str, Any]:
    """The row with its rejected response and contrast image, and how these were made."""
    item = read_instruction(rows[record["row"]], record["row"])
    neighbour = pictures[record["neighbour"]]
    return {
        **item.as_row(),
        "rejected": record["rejected"],
        "contrast_image": neighbour["image"],
        "contrast_id": _name(neighbour, record["neighbour"]),
        "contrast_similarity": record["similarity"],
        "contrast_rank": record["rank"],
        "masked": record["masked"],
        "masked_by": "rule" if record["by_rule"] else made["segments_by"],
        "text_similarity": record["text_similarity"],
        "text_encoder": made["text_encoder"],
        "rejected_by": made["model"],
    }


def _name(picture: Mapping[str, Any], number: int) -> str:
    """Its id, else its path, else its number."""
    image = picture["image"]
    path = image.get("path") if isinstance(image, Mapping) else image
    if picture.get("id") is not None:
        return str(picture["id"])
    return os.fspath(path) if isinstance(path, str | os.PathLike) else f"row-{number}"


@dataclass
class _Open:
    """A row whose response is still to be completed."""

    item: Instruction
    template: Template
    by_rule: bool
    neighbours: list[tuple[int, float]]
    reason: str = NOT_COMPLETED


class _Completing:
    """The records of a block, all its open rows asked together, round by round."""

    def __init__(
        self,
        rows: Any,
        pictures: Sequence[Mapping[str, Any]],
        neighbours: Neighbourhood,
        speaker: Speaker,
        options: RealignOptions,
        similarity: TextSimilarity | None,
        segmenter: Speaker | None,
        strict: bool,
    ) -> None:
        self.rows, self.pictures, self.neighbours = rows, pictures, neighbours
        self.speaker, self.options, self.similarity = speaker, options, similarity
        self.segmenter, self.strict = segmenter, strict

    def __call__(self, numbers: range) -> list[dict[str, Any]]:
        records: dict[int, dict[str, Any]] = {number: {"row": number} for number in numbers}
        items: list[Instruction] = []
        for number in numbers:
            try:
                item = read_instruction(self.rows[number], number)
                item.picture()  # not shown, but a row without its picture is of no use
                items.append(item)
            except RowProblem as problem:
                if self.strict:
                    raise
                records[number][PROBLEM] = str(problem)
        waiting = self._opened(items, records)
        for rank in range(self.options.k):
            for number, row in list(waiting.items()):
                if rank >= len(row.neighbours):
                    records[number]["dropped"] = row.reason
                    del waiting[number]
            for number, found in self._round(waiting, rank).items():
                records[number] |= found
                del waiting[number]
        for number, row in waiting.items():
            records[number]["dropped"] = row.reason
        return list(records.values())

    def _opened(self, items: Sequence[Instruction], records: dict[int, dict[str, Any]]) -> dict[int, _Open]:
        spoken: Sequence[list[Segment] | None] = [None] * len(items)
        if self.segmenter is not None:
            spoken = spoken_segments([(item.ask().prompt, item.chosen) for item in items], self.segmenter)
        opened: dict[int, _Open] = {}
        for item, marked in zip(items, spoken, strict=True):
            template = self.options.masking(item.chosen, marked or rule_segments(item.chosen), item.key)
            similar = self.neighbours.of(item.number)
            pairs = list(zip(map(int, similar.rows), map(float, similar.similarities), strict=True))
            if template is None:
                records[item.number]["dropped"] = NOTHING_TO_MASK
            elif not pairs:
                records[item.number]["dropped"] = NO_NEIGHBOUR
            else:
                records[item.number] |= {"masked": template.masked, "by_rule": marked is None}
                opened[item.number] = _Open(item, template, marked is None, pairs[: self.options.k])
        return opened

    def _round(self, waiting: Mapping[int, _Open], rank: int) -> dict[int, dict[str, Any]]:
        """What is accepted of the completions on the neighbours of one rank."""
        tasks: dict[int, Task] = {}
        for number, row in waiting.items():
            neighbour = row.neighbours[rank][0]
            try:
                picture = read_picture(self.pictures[neighbour]["image"], f"picture {neighbour}")
                tasks[number] = Task(row.item.ask(picture), row.template)
            except RowProblem:
                continue  # the next neighbour
        texts = complete(list(tasks.values()), self.speaker, self.options.way, self.options.max_new_tokens)
        candidates: dict[int, str] = {}
        for number, text in zip(tasks, texts, strict=True):
            if text is None:
                continue
            waiting[number].reason = TOO_SIMILAR
            item = waiting[number].item
            if self.options.differing.unchanged(item.prompt, item.chosen, text) is None:
                candidates[number] = text
        cosines: list[float | None] = [None] * len(candidates)
        if self.similarity is not None and candidates:
            chosen = [waiting[number].item.chosen for number in candidates]
            cosines = list(self.similarity.similarities(chosen, list(candidates.values())))
        found = {}
        for (number, text), cosine in zip(candidates.items(), cosines, strict=True):
            if cosine is None or cosine < self.options.max_similarity:
                neighbour, similarity = waiting[number].neighbours[rank]
                found[number] = {
                    "rejected": text,
                    "neighbour": neighbour,
                    "similarity": similarity,
                    "rank": rank + 1,
                    "text_similarity": cosine,
                }
        return found
