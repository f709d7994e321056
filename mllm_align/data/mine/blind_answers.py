"""Texts for pairs that have none: what a vision-language model answers for each of the two images.

Where it answers the same for both, it is blind to the pair too, and the pair gets no texts: one of the two would be
wrong. What it says otherwise is its own, right or not; for a benchmark, people check it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from mllm_align.data.blocks import PROBLEM, BlockJob
from mllm_align.data.mine.pairs import input_digest, plain
from mllm_align.data.mine.problems import RowProblem, read_picture
from mllm_align.data.mine.speaking import Ask, Speaker

ANSWERED, SAME, EMPTY, DAMAGED = "two answers", "the same answer twice", "no answer", "an image that cannot be read"
_SCHEMA = pa.schema([("row", pa.int64()), ("chosen", pa.string()), ("rejected", pa.string())])


def with_answers(
    rows: Sequence[Mapping[str, Any]],
    speaker: Speaker,
    folder: str | os.PathLike[str],
    max_new_tokens: int = 64,
    *,
    block_size: int = 64,
    progress: bool = True,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows, those without texts with the answers to their prompt; resumable. A collective.

    Args:
        rows: Pair rows; a prompt that is no plain text is left alone.
        speaker: What answers.
        folder: Where the job keeps what it has finished.
        max_new_tokens: Of an answer.
        block_size: Pairs of a block.
        progress: Whether to show a bar.

    Returns:
        The rows, `texts_by` telling who wrote, and for a report who that is and how many pairs got what.
    """
    asked = [number for number, row in enumerate(rows) if "chosen" not in row and isinstance(row["prompt"], str)]
    settings = {
        "job": "answers",
        "speaker": speaker.identity,
        "max_new_tokens": max_new_tokens,
        "input": input_digest([rows[number] for number in asked]),
    }
    job = BlockJob(folder, settings, len(asked), _SCHEMA, block_size)

    def work(places: range) -> list[dict[str, Any]]:
        return _answers([(asked[place], rows[asked[place]]) for place in places], speaker, max_new_tokens)

    job.run(work, "asking about pairs", progress=progress)
    made, outcome = [dict(row) for row in rows], Counter[str]()
    for record in job.records():
        texts = {side: record[side] for side in ("chosen", "rejected")}
        if record[PROBLEM] is None:
            made[record["row"]] |= texts | {"texts_by": speaker.identity}
        outcome[record[PROBLEM] or ANSWERED] += 1
    return made, {"identity": speaker.identity, "outcome": dict(sorted(outcome.items()))}


def _answers(
    rows: Sequence[tuple[int, Mapping[str, Any]]], speaker: Speaker, max_new_tokens: int
) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    asks: list[Ask] = []
    waiting: list[dict[str, Any]] = []
    for number, row in rows:
        record: dict[str, Any] = {"row": number}
        records.append(record)
        try:
            pictures = [read_picture(row[column], f"row {number}") for column in ("image", "contrast_image")]
        except RowProblem:
            record[PROBLEM] = DAMAGED
            continue
        asks += [Ask(row["prompt"], (picture,)) for picture in pictures]
        waiting.append(record)
    said = [text.strip() for text in speaker(asks, max_new_tokens)] if asks else []
    for record, chosen, rejected in zip(waiting, said[::2], said[1::2], strict=True):
        record |= {"chosen": chosen, "rejected": rejected}
        if not chosen or not rejected:
            record[PROBLEM] = EMPTY
        elif plain(chosen) == plain(rejected):
            record[PROBLEM] = SAME
    return records
