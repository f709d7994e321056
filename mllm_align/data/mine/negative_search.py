"""The search for hard negatives in both directions: texts for pictures, pictures for texts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mllm_align.data.blocks import BlockJob
from mllm_align.data.errors import DataError
from mllm_align.data.mine.captioned import Captions, Pictures
from mllm_align.data.mine.index import VectorIndex
from mllm_align.data.mine.negative_choice import FILTERS, NegativeChoice
from mllm_align.data.mine.neighbours import INDEX_FILE, kept_index
from mllm_align.data.mine.same_pictures import SamePictures
from mllm_align.data.mine.vector_files import digest_of

_SCHEMA = pa.schema(
    [
        ("query", pa.int64()),
        ("negatives", pa.list_(pa.int64())),
        ("scores", pa.list_(pa.float64())),
        ("dropped", pa.list_(pa.int64())),
    ]
)


class Sides(NamedTuple):
    """Pictures and texts with their vectors."""

    pictures: Pictures
    captions: Captions
    texts: np.ndarray

    @property
    def own_texts(self) -> list[tuple[int, ...]]:
        """Of each picture the texts of all rows that show it."""
        found: list[dict[int, None]] = [{} for _ in self.pictures.vectors]
        for picture, texts in zip(self.pictures.of_row.tolist(), self.captions.of_row, strict=True):
            if picture >= 0:
                found[picture].update(dict.fromkeys(texts))
        return [tuple(own) for own in found]

    @property
    def own_pictures(self) -> list[tuple[int, ...]]:
        """Of each text the pictures of all rows that have it."""
        found: list[list[int]] = [[] for _ in self.captions.texts]
        for picture, texts in enumerate(self.own_texts):
            for text in texts:
                found[text].append(picture)
        return [tuple(own) for own in found]

    @property
    def further_texts(self) -> list[frozenset[int]]:
        """Of each picture the texts of other pictures that a row calls true of it."""
        numbers = {text: number for number, text in enumerate(self.captions.texts)}
        found: list[set[int]] = [set() for _ in self.pictures.vectors]
        for picture, texts in zip(self.pictures.of_row.tolist(), self.captions.further, strict=True):
            if picture >= 0:
                found[picture].update(numbers[text] for text in texts if text in numbers)
        return [frozenset(own) for own in found]


class Found(NamedTuple):
    """What was mined.

    Attributes:
        negatives: Per query their numbers and their scores.
        dropped: By filter.
        reach: `NegativeChoice.reach`.
    """

    negatives: Sequence[tuple[Sequence[int], Sequence[float]]]
    dropped: dict[str, int]
    reach: int


class Mining:
    """Both directions of a job, in a folder each.

    Args:
        sides: Pictures and texts.
        choice: Which candidates are negatives.
        folder: Where indices and results are kept.
        same_picture: Cosine from which two pictures are taken for the same one; None for never.
        max_words: Of a text that is mined, told apart by blanks; None for any number.
        index: Kind of FAISS index.
        digest: Of the rows.
        block_size: Queries of a block.
        progress: Whether to show bars.
        made_of: What the rows are called, for messages.

    Attributes:
        among: The texts that may be mined; None for all.

    Raises:
        DataError: If every text is too long.
    """

    def __init__(
        self,
        sides: Sides,
        choice: NegativeChoice,
        folder: Path,
        *,
        same_picture: float | None,
        max_words: int | None = None,
        index: str,
        digest: str,
        block_size: int,
        progress: bool,
        made_of: str,
    ) -> None:
        self.sides, self.choice, self.folder, self.kind = sides, choice, folder, index
        self.block_size, self.progress, self.made_of = block_size, progress, made_of
        self.settings = {
            "same_picture": same_picture,
            "images": digest_of(sides.pictures.vectors),
            "embeddings": digest_of(sides.texts),
            "input": digest,
        }
        self.among: np.ndarray | None = None
        if max_words is not None:
            short = [len(text.split()) <= max_words for text in sides.captions.texts]
            if short and not any(short):
                raise DataError(f"every text has more than {max_words} words: raise max_words (--max-words)")
            self.among = np.flatnonzero(short)
        self.same: SamePictures | None = None
        if same_picture is not None and len(sides.pictures.vectors):
            near = self._index("pictures", sides.pictures.vectors)
            self.same = SamePictures(sides.pictures.vectors, near, same_picture)

    def texts(self) -> Found:
        """For every picture texts that are false of it. A collective."""
        own, further = self.sides.own_texts, self.sides.further_texts

        def alike(pictures: range) -> list[set[int]]:
            return [{text for other in each for text in own[other]} for each in self._same(pictures)]

        known = [own[picture] for picture in range(len(own))]
        search = (self.sides.pictures.vectors, self.sides.texts, self.sides.pictures.keys, known, further)
        return self._mine("texts", "mining texts", search, alike, self.choice, self.among)

    def pictures(self) -> Found:
        """For every text one picture that it is false of. A collective."""
        own = self.sides.own_pictures

        def alike(texts: range) -> list[set[int]]:
            shown = [picture for text in texts for picture in own[text]]
            near = iter(self._same(shown))
            return [set().union(*(next(near) for _ in own[text])) for text in texts]

        true_of: list[set[int]] = [set() for _ in own]
        for picture, texts in enumerate(self.sides.further_texts):
            for text in texts:
                true_of[text].add(picture)
        search = (self.sides.texts, self.sides.pictures.vectors, self.sides.captions.texts, own, true_of)
        choice = replace(self.choice, per_row=1)
        return self._mine("pictures", "mining pictures", search, alike, choice)

    def _same(self, pictures: Sequence[int]) -> list[frozenset[int]]:
        return [frozenset()] * len(pictures) if self.same is None else self.same.of(pictures)

    def _index(self, name: str, vectors: np.ndarray) -> VectorIndex:
        folder = self.folder / f"{name}_{digest_of(vectors)}"
        folder.mkdir(parents=True, exist_ok=True)
        return kept_index([vectors], folder / INDEX_FILE, self.kind)

    def _mine(
        self,
        name: str,
        title: str,
        search: tuple[Any, ...],
        alike: Callable[[range], list[set[int]]],
        choice: Any,
        among: np.ndarray | None = None,
    ) -> Found:
        queries, candidates, keys, own, further = search
        reach = choice.reach(max(map(len, own), default=0))
        if not len(queries) or not len(candidates):
            return Found([((), ())] * len(queries), dict.fromkeys(FILTERS, 0), reach)
        index = self._index(name, candidates if among is None else candidates[among])
        work = _Search(queries, candidates, among, index, keys, own, further, alike, choice, reach)
        settings = self.settings | {"job": f"mine {name}", "choice": asdict(choice), "index": index.identity}
        settings |= {} if among is None else {"among": digest_of(among)}
        folder = self.folder / f"mined_{name}"
        job = BlockJob(folder, settings, len(queries), _SCHEMA, self.block_size, made_of=self.made_of)
        job.run(work, title, progress=self.progress)
        records = list(job.records())
        dropped = np.array([record["dropped"] for record in records]).sum(0).tolist()
        negatives = [(record["negatives"], record["scores"]) for record in records]
        return Found(negatives, dict(zip(FILTERS, dropped, strict=True)), reach)


class _Search(NamedTuple):
    """What a block of queries comes to."""

    queries: np.ndarray
    candidates: np.ndarray
    among: np.ndarray | None
    index: VectorIndex
    keys: Sequence[str]
    own: Sequence[tuple[int, ...]]
    further: Sequence[Collection[int]]
    alike: Callable[[range], list[set[int]]]
    choice: NegativeChoice
    reach: int

    def __call__(self, numbers: range) -> list[dict[str, Any]]:
        alike = self.alike(numbers)
        known = [{*self.own[number], *self.further[number]} for number in numbers]
        # As many more as are sure to be dropped; else a picture with many copies would look at few others.
        most = max(map(len, self.own))
        sizes = [
            self.reach + most + len((own | near) - {*self.own[number]})
            for number, own, near in zip(numbers, known, alike, strict=True)
        ]
        found, scores = self.index.search(self.queries[numbers.start : numbers.stop], max(sizes))
        if self.among is not None:
            found = np.where(found < 0, -1, self.among[found])
        records = []
        for place, number in enumerate(numbers):
            chosen = self.choice.choose(
                found[place, : sizes[place]],
                scores[place, : sizes[place]],
                reach=self.reach,
                known=known[place],
                alike=alike[place] - known[place],
                positive=self._positive(number),
                key=self.keys[number],
            )
            records.append(
                {
                    "query": number,
                    "negatives": chosen.numbers.tolist(),
                    "scores": chosen.scores.tolist(),
                    "dropped": list(chosen.dropped),
                }
            )
        return records

    def _positive(self, number: int) -> float:
        own = self.candidates[list(self.own[number])].astype(np.float64)
        return float((own * self.queries[number].astype(np.float64)).sum(1).min(initial=np.inf))
