"""Texts that are nearly right for the texts of rows, as SVLC and whatever reads `objects` wants them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import pyarrow as pa

from mllm_align.data.blocks import PROBLEM, BlockJob
from mllm_align.data.loading import undecoded
from mllm_align.data.mine.pairs import input_digest
from mllm_align.data.mine.problems import RowProblem
from mllm_align.data.mine.results import Tally, write_results
from mllm_align.data.mine.speaking import Speaker
from mllm_align.data.negatives.known import classes_of
from mllm_align.data.negatives.making import KINDS, Edit, Kept, proposals, select
from mllm_align.data.negatives.positives import paraphrases
from mllm_align.data.negatives.spoken import spoken_edits, spoken_paraphrases
from mllm_align.data.negatives.texts import AUTO, Texts, read_texts, with_negatives
from mllm_align.data.output import RowFile
from mllm_align.data.schema import parse_row

_SCHEMA = pa.schema([("row", pa.int64()), ("made", pa.string())])


class Masker(Protocol):
    """A masked language model, as `masked.MaskedModel`; `identity` tells it apart from others."""

    identity: str

    def edits(self, texts: Sequence[str], rngs: Sequence[Any], most: int) -> list[list[Edit]]:
        """Of each text up to `most` edits."""
        ...


@dataclass(frozen=True, kw_only=True)
class NegativeOptions:
    """What is made of which texts.

    Attributes:
        kinds: Of edits by rules; none where a model makes them all.
        per_text: Negatives of a text at the most.
        column: Which texts: "auto", "objects", or the name of a column (`read_texts`).
        positives: Paraphrases of a text at the most.
        exhaustive: Whether rows list every object of the classes that occur in the data, as COCO's do: one that a row
            does not list is then not there.
        checked_only: Whether edits of which the row's objects do not say that they are false are left out.
        seed: Of all draws.
    """

    kinds: tuple[str, ...] = KINDS
    per_text: int = 4
    column: str = AUTO
    positives: int = 0
    exhaustive: bool = False
    checked_only: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.per_text < 1:
            raise ValueError(f"per_text must be at least 1, not {self.per_text!r}")
        if self.positives < 0:
            raise ValueError(f"positives must be 0 or more, not {self.positives!r}")
        proposals("", self.kinds, Texts(None, "", "", (), (), ()).rng(0, 0, ""))


def make_negatives(
    rows: Any,
    output: str | os.PathLike[str],
    options: NegativeOptions | None = None,
    *,
    masker: Masker | None = None,
    speaker: Speaker | None = None,
    strict: bool = False,
    overwrite: bool = False,
    block_size: int = 256,
    progress: bool = True,
    made_of: str = "",
) -> dict[str, Any]:
    """Writes the rows of which a text got a negative, and `<output>.report.json`.

    Rows keep all their columns. `objects` gain `negatives` and, where asked for, `positives`; a text of the whole
    picture becomes an object that covers it. Further columns, one list an object: `negatives_by`, `negatives_checked`.

    Killed and started again, it goes on, and ends with the very same file. Proposals are kept in `<output>.work`, so
    other checks ask no model again. A collective: every process of `accelerate launch` must call it.

    Args:
        rows: Canonical rows with pictures, which are not read; anything with a length and integer indexing.
        output: The file, .jsonl or .parquet.
        options: What is made of which texts.
        masker: Proposes edits too.
        speaker: A chat model that proposes edits too, and paraphrases where they are asked for.
        strict: Whether a row that cannot be used is an error.
        overwrite: Whether an output file with another content may be replaced.
        block_size: Rows of a block: what a kill costs at the most.
        progress: Whether to show a bar.
        made_of: What the rows are called, for messages.

    Returns:
        The report: rows in, kept, dropped by problem and by filter; texts, negatives by kind and how many of them are
        known to be false, edits dropped because they are true of the picture or not known to be false, positives.

    Raises:
        DataError: If `strict`, for the first row that cannot be used; for an output that is neither kind of file.
        FileExistsError: If the output is there with another content and may not be replaced.
        ValueError: If nothing makes negatives, or the work folder holds a job on other rows or with other settings.
    """
    options = options or NegativeOptions()
    if not options.kinds and masker is None and speaker is None:
        raise ValueError("nothing makes negatives: name kinds of edits, a masked language model or a chat model")
    rows = undecoded(rows)
    file = RowFile(output, overwrite=overwrite)
    file.refuse_other()
    settings = {
        "job": "negatives",
        "kinds": options.kinds,
        "per_text": options.per_text,
        "column": options.column,
        "positives": options.positives,
        "seed": options.seed,
        "masked": masker.identity if masker is not None else None,
        "chat": speaker.identity if speaker is not None else None,
        "input": input_digest(rows),
    }
    job = BlockJob(file.work_folder / "negatives", settings, len(rows), _SCHEMA, block_size, made_of=made_of)
    job.run(_Proposing(rows, options, masker, speaker, strict), "editing texts", progress=progress)
    classes = sorted(_classes(rows)) if options.exhaustive else []
    tally, counts = Tally(strict), _Counts()
    kept = list(_kept(rows, job, options, classes, tally, counts))
    report = {
        "rows": len(rows),
        "kept": len(kept),
        "problems": tally.problems.as_dict(),
        "filters": dict(tally.filters),
        "texts": counts.texts,
        "negatives": dict(counts.kinds),
        "checked": dict(counts.checked),
        "dropped": dict(counts.dropped),
        "positives": counts.positives,
        "masked": settings["masked"],
        "chat": settings["chat"],
        "options": asdict(options),
    }
    write_results(file, kept, report)
    return report


class _Counts:
    """What became of the texts of all rows."""

    def __init__(self) -> None:
        self.texts = self.positives = 0
        self.kinds: Counter[str] = Counter()
        self.checked: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter(true=0, unchecked=0)

    def add(self, kept: Sequence[Kept], positives: Sequence[str]) -> None:
        """One more text."""
        self.texts += 1
        self.positives += len(positives)
        self.kinds.update(each.kind for each in kept)
        self.checked.update(each.kind for each in kept if each.checked)


class _Proposing:
    """The records of a block: of each text all proposals and paraphrases, as JSON."""

    def __init__(
        self, rows: Any, options: NegativeOptions, masker: Masker | None, speaker: Speaker | None, strict: bool
    ) -> None:
        self.rows, self.options, self.masker, self.speaker = rows, options, masker, speaker
        self.strict = strict

    def __call__(self, numbers: range) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = []
        items: list[tuple[dict[str, Any], Texts]] = []
        for number in numbers:
            records.append({"row": number})
            try:
                items.append((records[-1], read_texts(self.rows[number], number, self.options.column)))
            except RowProblem as problem:
                if self.strict:
                    raise
                records[-1][PROBLEM] = str(problem)
        asked = [(item, place) for _, item in items for place in range(len(item.texts))]
        made = iter(self._made(asked))
        for record, item in items:
            record["made"] = json.dumps([next(made) for _ in item.texts])
        return records

    def _made(self, asked: Sequence[tuple[Texts, int]]) -> list[dict[str, Any]]:
        seed, most = self.options.seed, self.options.per_text
        texts = [item.texts[place] for item, place in asked]
        found = [
            proposals(text, self.options.kinds, item.rng(seed, place, "rules"))
            for text, (item, place) in zip(texts, asked, strict=True)
        ]
        if self.masker is not None:
            rngs = [item.rng(seed, place, "masked") for item, place in asked]
            found = [[*own, *more] for own, more in zip(found, self.masker.edits(texts, rngs, most), strict=True)]
        if self.speaker is not None:
            spoken = spoken_edits(texts, self.speaker, most)
            found = [[*own, *more] for own, more in zip(found, spoken, strict=True)]
        return [
            {"edits": [list(each) for each in own], "positives": same}
            for own, same in zip(found, self._positives(asked, texts), strict=True)
        ]

    def _positives(self, asked: Sequence[tuple[Texts, int]], texts: Sequence[str]) -> list[list[str]]:
        """A chat model's first, then those of the rules."""
        most = self.options.positives
        if not most:
            return [[] for _ in texts]
        spoken = spoken_paraphrases(texts, self.speaker, most) if self.speaker is not None else [[] for _ in texts]
        drawn = [
            paraphrases(text, item.rng(self.options.seed, place, "positives"), most)
            for text, (item, place) in zip(texts, asked, strict=True)
        ]
        return [list(dict.fromkeys([*own, *more]))[:most] for own, more in zip(spoken, drawn, strict=True)]


def _kept(
    rows: Any, job: BlockJob, options: NegativeOptions, classes: Sequence[str], tally: Tally, counts: _Counts
) -> Iterator[dict[str, Any]]:
    for record in job.records():
        if record[PROBLEM] is not None:
            tally.problem(record[PROBLEM])
            continue
        item = read_texts(rows[record["row"]], record["row"], options.column)
        if not tally.is_new(item):
            continue
        chosen, positives = [], []
        for place, made in enumerate(json.loads(record["made"])):
            where = item.places[place]
            given = () if where is None else (*item.objects[where].negatives, *item.objects[where].positives)
            kept = select(
                item.texts[place],
                [Edit(*each) for each in made["edits"]],
                item.known(place, classes),
                options.per_text,
                item.rng(options.seed, place, "order"),
                counts.dropped,
                checked_only=options.checked_only,
                taken=(*given, *made["positives"]),
            )
            there = {text.casefold() for text in given}
            chosen.append(kept)
            positives.append([text for text in made["positives"] if text.casefold() not in there])
            counts.add(kept, positives[-1])
        if any(chosen):
            yield with_negatives(rows[record["row"]], item, chosen, positives)
        else:
            tally.filters["no negatives"] += 1


def _classes(rows: Any) -> set[str]:
    """The classes of all rows that can be read."""
    found: set[str] = set()
    for number in range(len(rows)):
        try:
            found |= classes_of(parse_row(rows[number], number).objects.get("image", ()))
        except ValueError:
            continue
    return found
