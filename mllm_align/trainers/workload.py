"""What a micro-batch asks of the device: the groups of packed sequences and the images of the longest sampled rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from mllm_align.contract import Batch
from mllm_align.families import Family, family_of, unwrap
from mllm_align.signals.limits import can_share_prefixes
from mllm_align.signals.options import EngineOptions
from mllm_align.signals.packing import Pack, group_packs, plan_packs
from mllm_align.signals.plan import phrases_alone
from mllm_align.trainers.activations import PLAIN, SPLIT, WHOLE

SAMPLE_ROWS = 64


@dataclass(frozen=True)
class GroupShape:
    """Sequences of one forward pass.

    Attributes:
        packs: How many.
        length: Tokens of the longest, to which the others are padded.
        plain: Tokens from the start that need no mask.
        scored: Response tokens.
        reads_images: Whether there is an image in any of them.
        pooled: States that are kept of texts of regions, which have no log-probabilities.
    """

    packs: int
    length: int
    plain: int
    scored: int
    reads_images: bool = True
    pooled: int = 0

    @property
    def tokens(self) -> int:
        """Tokens, padding counted."""
        return self.packs * self.length

    @property
    def attention(self) -> str:
        """How it runs, one of `ATTENTION`."""
        return PLAIN if self.plain == self.length else SPLIT if self.plain else WHOLE


class ImageShape(NamedTuple):
    """Tokens of one image in the tower and in the language model, and the bytes of its pixels."""

    tower: int
    llm: int
    pixels: int


class _Row(NamedTuple):
    packs: tuple[Pack, ...]
    tokens: int
    referenced: bool
    images: frozenset[int]
    phrases: frozenset[int]
    longest: int  # tokens, those of its phrases included


@dataclass(frozen=True)
class Workload:
    """Sampled rows, collated once; the longest are taken for the worst micro-batch."""

    rows: tuple[_Row, ...]
    batch: Batch
    phrases: Batch
    plain: dict[int, int]
    images: tuple[ImageShape, ...]
    least_fill: float
    shared: bool

    def longest(self, count: int, max_tokens: int | None = None) -> tuple[_Row, ...]:
        """The `count` longest rows, or as many as fit `max_tokens`; a sample that is too small is repeated."""
        if not self.rows:
            return ()
        if max_tokens is not None:
            count = max(1, max_tokens // max(1, self.rows[0].tokens))
        repeats = -(-count // len(self.rows))
        return tuple(sorted(self.rows * repeats, key=lambda row: -row.longest)[:count])

    def groups(self, rows: Sequence[_Row], max_tokens: int | None) -> list[GroupShape]:
        """The forward passes that score some rows, as the engine forms them.

        A text of regions counts once, however many rows have it, but anew in each repetition of the sample, whose rows
        stand for others.
        """
        found = []
        for referenced in (True, False):
            packs = [pack for row in rows if row.referenced == referenced for pack in row.packs]
            found += [self._shape(self.batch, own) for own in group_packs(packs, self.least_fill, max_tokens)]
        before: Counter[int] = Counter()
        texts: set[tuple[int, int]] = set()
        for row in rows:
            texts |= {(before[id(row)], phrase) for phrase in row.phrases}
            before[id(row)] += 1
        packs = plan_packs(self.phrases, [phrase for _, phrase in sorted(texts)], self.shared)
        return found + [self._shape(self.phrases, own) for own in group_packs(packs, self.least_fill, max_tokens)]

    def images_of(self, rows: Sequence[_Row]) -> list[ImageShape]:
        """The images of some rows, each once per row."""
        return [self.images[index] for row in rows for index in row.images]

    def image_tokens_of(self, rows: Sequence[_Row]) -> int:
        """Image tokens in the sequences of some rows: one that several sequences show counts for each."""
        shown = [self.batch.prefixes[pack.prefix].images for row in rows for pack in row.packs]
        return sum(self.images[index].llm for images in shown for index in images)

    def _shape(self, batch: Batch, packs: Sequence[Pack]) -> GroupShape:
        length = max(pack.length for pack in packs)
        responses = [batch.branches[index].token_ids.numel() for pack in packs for index in pack.branches]
        is_scored = batch is self.batch
        return GroupShape(
            packs=len(packs),
            length=length,
            plain=min(self._plain(pack, length) for pack in packs),
            scored=sum(responses) if is_scored else 0,
            reads_images=any(batch.prefixes[pack.prefix].images for pack in packs),
            pooled=0 if is_scored else sum(max(size - 1, 1) if batch.region_tokens else 1 for size in responses),
        )

    def _plain(self, pack: Pack, length: int) -> int:
        size = self.batch.prefixes[pack.prefix].input_ids.numel()
        first = self.plain[pack.prefix]
        return first if first < size else (length if len(pack.branches) == 1 else size)


def sample_workload(model: Any, collator: Any, dataset: Any, options: EngineOptions, *, reference: bool) -> Workload:
    """Collates up to `SAMPLE_ROWS` rows, spread evenly over the data (the first ones of a stream).

    Args:
        model: Whose family says how prompts are shared.
        collator: Of the run.
        dataset: Training data.
        options: Of the engine.
        reference: Whether the objective is given a reference.
    """
    batch: Batch = collator(_some_rows(dataset))["batch"]
    hf = unwrap(model)
    family = family_of(hf)
    shared = options.packing == "auto" and can_share_prefixes(family, hf)[0]
    phrases, read = phrases_alone(batch), _phrases_of_rows(batch)
    rows = []
    for row in range(len(batch)):
        own = [index for index, branch in enumerate(batch.branches) if branch.row == row]
        packs = tuple(plan_packs(batch, own, shared))
        images = {image for pack in packs for image in batch.prefixes[pack.prefix].images}
        images |= {image for column in (batch.row_images or {}).values() for image in column[row]}
        tokens = sum(pack.length for pack in packs)
        longest = tokens + sum(pack.length for pack in plan_packs(phrases, sorted(read[row]), shared))
        referenced = reference and batch.reference_rows[row]
        rows.append(_Row(packs, tokens, referenced, frozenset(images), frozenset(read[row]), longest))
    return Workload(
        rows=tuple(sorted((row for row in rows if row.packs or row.images), key=lambda row: -row.longest)),
        batch=batch,
        phrases=phrases,
        plain={index: _first_block(family, prefix) for index, prefix in enumerate(batch.prefixes)},
        images=_images(hf, batch),
        least_fill=options.least_fill,
        shared=shared,
    )


def _phrases_of_rows(batch: Batch) -> list[set[int]]:
    """Of each row which phrases its regions are called, or list."""
    found: list[set[int]] = [set() for _ in range(len(batch))]
    for column, regions in batch.regions.items():
        for row, phrase in zip(regions.row, batch.region_phrases.get(column, ()), strict=False):
            found[row] |= {phrase} - {-1}
        for key in ("negatives", "positives"):
            told = iter(getattr(batch, f"region_{key}").get(column, ()))
            for row, own in zip(regions.row, getattr(regions, key), strict=False):
                found[row] |= set(islice(told, len(own)))
    return found


def _some_rows(dataset: Any) -> list[Any]:
    if hasattr(dataset, "__len__"):
        step = max(1, len(dataset) // SAMPLE_ROWS)
        return [dataset[index] for index in range(0, len(dataset), step)][:SAMPLE_ROWS]
    return list(islice(iter(dataset), SAMPLE_ROWS))


def _first_block(family: Family, prefix: Any) -> int:
    """Tokens of a prefix before the first that sees forwards; all of them where none does."""
    blocks = family.two_way_blocks(prefix.input_ids, prefix.extras)
    seen = [] if blocks is None else (blocks >= 0).nonzero().flatten().tolist()
    return seen[0] if seen else prefix.input_ids.numel()


def _images(hf: Any, batch: Batch) -> tuple[ImageShape, ...]:
    tower = [sum(_patches(hf, value) for value in image.values()) for image in batch.images]
    pixels = [sum(value.numel() * value.element_size() for value in image.values()) for image in batch.images]
    read = {image for prefix in batch.prefixes for image in prefix.images}
    # An image that no prompt shows gives at most as many tokens as it has patches.
    llm = [0 if image in read else patches for image, patches in enumerate(tower)]
    for prefix in batch.prefixes:
        placeholders = int((prefix.input_ids == hf.config.image_token_id).sum())
        total = sum(tower[image] for image in prefix.images) or 1
        for image in prefix.images:
            # Placeholders are not told apart by image, but images take them in proportion to their patches.
            llm[image] = max(llm[image], placeholders * tower[image] // total)
    return tuple(map(ImageShape, tower, llm, pixels))


def _patches(hf: Any, pixels: Any) -> int:
    """Tower tokens of a processor's tensor: patches of (..., 3, h, w), or rows of flattened patches (n, d)."""
    if not pixels.is_floating_point():
        return 0
    if pixels.dim() < 4:
        return int(pixels.shape[0])
    size = hf.config.vision_config.patch_size
    height, width = (size, size) if isinstance(size, int) else size
    frames = pixels.numel() // (pixels.shape[-3] * pixels.shape[-2] * pixels.shape[-1])
    return frames * (pixels.shape[-2] // height) * (pixels.shape[-1] // width)
