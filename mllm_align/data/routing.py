"""Captions of any granularity as rows that are contrasted, trained on, or both: what becomes of one says its length.

After VladVA (Ouali et al., CVPR 2025, "Discriminative Fine-tuning of LVLMs"), https://arxiv.org/abs/2412.04378: texts
of under 30 tokens are contrasted, those of 30 to 500 are trained on token by token behind the image and its
instruction. Long ones would make contrast too easy: no two pictures come near the same long text.

    train_dataset={"captions": route_captions(rows, tokenizer, IMAGE_PROMPT)}        in Python
    data: {captions: {path: ..., route_captions: {short: 30, long: 500}}}            in a recipe
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
import torch.utils.data

from mllm_align.data.corrupt.drawn import seed_of
from mllm_align.data.errors import DataError, quoted
from mllm_align.data.loading import undecoded
from mllm_align.data.mixing import MixedDataset
from mllm_align.data.routes import TEXTS, Routed, Routes, captions_of, filled, routes_from
from mllm_align.data.schema import UNREADABLE, missing_column, row_name

logger = logging.getLogger(__name__)

# A routed row keeps none of these columns as it was: what they say would stand in front of the instruction.
REPLACED = (*TEXTS, "prompt", "system")
SCANNED = 1000


class Scanned(NamedTuple):
    """What a pass over all rows has found.

    Attributes:
        kept: (R,) int64, places of the rows that have a caption of either kind.
        counts: How many rows went which way.
        several: Whether one of them has several captions of a kind.
    """

    kept: np.ndarray
    counts: Routed
    several: bool


class RoutedDataset(torch.utils.data.Dataset):
    """Map-style rows of captions, routed; see `route_captions`.

    Args:
        rows: Map-style rows with an image and captions each.
        tokenizer: Of the model: called with texts, gives their `input_ids`.
        routes: Which way captions go, with a prompt.
        scanned: What a pass over these rows with these limits has found, so that there is no second one.
    """

    def __init__(
        self, rows: Any, tokenizer: Callable[..., Any], routes: Routes, scanned: Scanned | None = None
    ) -> None:
        self.rows: Any = undecoded(rows)
        self.tokenizer = tokenizer
        self.routes = routes
        self._scanned = scanned or self._scan()
        # In shared memory, because workers that stay have copies of the dataset.
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()

    def redrawn(self, change: Callable[[Routes], Routes]) -> RoutedDataset:
        """The same rows with other draws; the limits must stay as they are."""
        return RoutedDataset(self.rows, self.tokenizer, change(self.routes), self._scanned)

    @property
    def by_epoch(self) -> bool:
        """Whether rows are asked for as `(index, epoch)` while training."""
        return self.routes.redraw and self._scanned.several

    @property
    def counts(self) -> Routed:
        """How many rows went which way."""
        return self._scanned.counts

    def set_epoch(self, epoch: int) -> None:
        """Which epoch is iterated over next."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._scanned.kept)

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, Any]:
        """The row at an index as epoch 0 has it, or at `(index, epoch)`.

        Raises:
            DataError: If the row has no image.
        """
        index, epoch = item if isinstance(item, tuple) else (item, 0)
        place = int(self._scanned.kept[range(len(self))[index]])
        raw = self.rows[place]
        where = row_name(raw, place)
        if raw.get("image") is None and not raw.get("images"):
            raise missing_column("image", filled(raw), where, ", of which captions are")
        texts = captions_of(raw, where)
        short, long, _ = self._sorted(texts, self._lengths(texts))
        name = raw["id"] if raw.get("id") is not None else place
        epoch = epoch if self.by_epoch else 0
        made = {key: value for key, value in raw.items() if key not in REPLACED}
        made["prompt"] = self.routes.prompt
        false = raw.get("negatives")
        if isinstance(false, list | tuple) and all(isinstance(text, str) for text in false):
            # They are contrasted, too; what was mined among all captions may be as long as any.
            made["negatives"], _, _ = self._sorted(false, self._lengths(false))
        for column, found in (("caption", short), ("chosen", long)):
            if found:
                made[column] = found[self._drawn(len(found), name, column, epoch)]
        return made

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All rows of the epoch that `set_epoch` named."""
        epoch = int(self._epoch)
        for index in range(len(self)):
            yield self[index, epoch]

    def _drawn(self, count: int, name: Any, column: str, epoch: int) -> int:
        turn, place = divmod(epoch, count)
        return int(np.random.default_rng(seed_of(self.routes.seed, name, column, turn)).permutation(count)[place])

    def _sorted(self, texts: Sequence[str], lengths: Sequence[int]) -> tuple[list[str], list[str], int]:
        """Short captions, long ones, and the number of those above the limit."""
        short = [text for text, length in zip(texts, lengths, strict=True) if self.routes.is_short(length)]
        long = [text for text, length in zip(texts, lengths, strict=True) if self.routes.is_long(length)]
        return short, long, len(texts) - len(short) - len(long)

    def _lengths(self, texts: Sequence[str]) -> list[int]:
        if not texts:
            return []
        return [len(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    def _scan(self) -> Scanned:
        kept: list[int] = []
        short = long = both = too_long = seen = 0
        several = False
        for start, batch in _text_batches(self.rows):
            texts = [captions_of(raw, row_name(raw, start + n)) for n, raw in enumerate(batch)]
            lengths = iter(self._lengths([text for own in texts for text in own]))
            for place, own in enumerate(texts, start):
                found = self._sorted(own, [next(lengths) for _ in own])
                kinds = bool(found[0]), bool(found[1])
                short, long, both = (
                    short + (kinds == (True, False)),
                    long + (kinds == (False, True)),
                    both + all(kinds),
                )
                too_long += found[2]
                several = several or max(len(found[0]), len(found[1])) > 1
                kept += [place] if any(kinds) else []
            seen += len(texts)
        counts = Routed(short, long, both, seen - len(kept), too_long)
        return Scanned(np.array(kept, dtype=np.int64), counts, several)


def route_captions(rows: Any, tokenizer: Any, prompt: str, **options: Any) -> RoutedDataset:
    """Rows of an image and captions as rows with `caption`, a short text to contrast, `chosen`, a long one, or both.

    Captions are what is in `captions` (a list), `caption` and `chosen`, each text once; which way one goes is told by
    its tokens alone. `prompt` is the instruction that the objective reads behind an image, so that image, summary
    vector and long caption share one forward; what stood in a row's own `prompt` and `system` is not kept. Answers to
    questions are no captions: leave such a source as it is.

    A row stays one row, and shows its image once an epoch, whatever number of captions it has. So a batch that has no
    row twice has none of these images twice with another of its texts. What is drawn is fixed by the seed of the run
    (`data_seed`), the row (its id; without one its place) and the epoch; evaluation always sees what epoch 0 has.
    Rows of one image apart, one for each caption, are not joined. Of `negatives`, which are contrasted, those that are
    as long as a long caption are left out.

    Args:
        rows: Map-style rows, one source: a `datasets.Dataset`, a list.
        tokenizer: Of the model; lengths are counted without special tokens.
        prompt: Instruction behind the image, the objective's `image_prompt`.
        **options: Of `Routes`.

    Returns:
        The rows that have a caption of either kind; `counts` says how many, and is logged.

    Raises:
        DataError: If an option is unknown or makes no sense, the rows are a stream, none of them has a caption of
            either kind, or one has none at all, an empty one, or a conversation.

    Example:
        >>> from mllm_align.data.routing import route_captions
        >>> words = lambda texts, **_: {"input_ids": [text.split() for text in texts]}
        >>> rows = [{"image": "a.jpg", "captions": ["A dog.", "A brown dog with a ball lies before a red door."]}]
        >>> routed = route_captions(rows, words, "Describe.", short=5)
        >>> routed[0]["prompt"], routed[0]["caption"], routed[0]["chosen"]
        ('Describe.', 'A dog.', 'A brown dog with a ball lies before a red door.')
        >>> print(routed.counts)
        1 rows of captions: 0 short, 0 long, 1 both; 0 rows left out, 0 captions too long
    """
    if isinstance(rows, Mapping):
        raise DataError("route_captions() takes one dataset: route the source that has captions, not all of them")
    if not hasattr(rows, "__len__"):
        raise DataError("captions are counted before training, which a stream does not allow: load without streaming")
    routes = routes_from({**options, "prompt": prompt})
    if routes.prompt is None:
        raise DataError("route_captions() needs a prompt: the instruction that the objective reads behind an image")
    routed = RoutedDataset(rows, tokenizer, routes)
    if not len(routed):
        raise DataError(f"no row is left: {routed.counts}; set short and long to lengths that captions have")
    logger.info("%s", routed.counts)
    return routed


def with_routes(dataset: Any, change: Callable[[Routes], Routes]) -> Any:
    """A dataset whose captions are drawn otherwise; the one that was given stays as it is."""
    if isinstance(dataset, RoutedDataset):
        return dataset.redrawn(change)
    if isinstance(dataset, MixedDataset) and any(isinstance(part, RoutedDataset) for part in dataset.parts.values()):
        return dataset.with_parts({name: with_routes(part, change) for name, part in dataset.parts.items()})
    return dataset


def _text_batches(rows: Any) -> Iterator[tuple[int, list[Mapping[str, Any]]]]:
    """Where each batch of rows begins, and its rows, without the images where a table allows it."""
    if isinstance(rows, datasets.Dataset):
        named = [name for name in ("id", "prompt", UNREADABLE, *TEXTS) if name in rows.column_names]
        rows = rows.select_columns(named) if named else rows
    for start in range(0, len(rows), SCANNED):
        yield start, [_mapping(rows[place], place) for place in range(start, min(start + SCANNED, len(rows)))]


def _mapping(raw: Any, place: int) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping):
        raise DataError(f"row {place} must be a mapping of columns, got {type(raw).__name__}: {quoted(raw)}")
    return raw
