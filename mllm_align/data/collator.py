"""Rows to one batch: distinct images processed once, distinct prefixes tokenised once, every response a branch."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from mllm_align.contract import Batch, Branch, Feature, Needs, Phrase, Prefix, Regions
from mllm_align.data.encode import EncodedView, RowEncoder
from mllm_align.data.images import image_key, load_image
from mllm_align.data.objects import ImageObject
from mllm_align.data.pixel_cache import PixelCache
from mllm_align.data.pixels import EncodedImage, ImageEncoder
from mllm_align.data.regions import RegionList, WeighRegions
from mllm_align.data.schema import RESPONSES, DataError, Row, parse_row
from mllm_align.data.transport import few_storages

logger = logging.getLogger(__name__)

Overflow = Literal["error", "drop", "truncate"]
PHRASES_PER_PREFIX = 64
# What a teacher makes of a row's images and the objects on them: one vector for each object, or one in all (N, d).
AskTeacher = Callable[[Feature, Sequence[Any], Sequence[ImageObject], str], Tensor]
OVERFLOWS: tuple[Overflow, ...] = ("error", "drop", "truncate")


class AlignCollator:
    """Turns rows into `{"batch": Batch}`; picklable and deterministic.

    Every distinct image (by `image_key`) is decoded and processed once a batch; every distinct prompt under distinct
    images is one prefix, shared by views and rows. A prompt is tokenised as the processor itself would: images are
    expanded by the processor, BOS is there once. Images are processed one by one, also where a prompt has several.

    Args:
        processor: The model's processor.
        needs_for: What the objective needs of the rows of a source (`Objective.needs_for`).
        image_keys: Processor outputs that describe images (`Family.image_keys`).
        token_keys: Processor outputs with one entry per prompt token (`Family.token_keys`).
        max_length: Most tokens of prefix and response together; None for no limit.
        on_overflow: What happens to a row with a longer view. "error": refused. "drop": left out and counted (a
            batch may come out with fewer rows, or none). "truncate": responses lose their tail; prompts and images
            are never cut, so a prefix that leaves no room is an error.
        min_pixels: Smallest number of pixels that images are resized to, where the image processor has the option.
        max_pixels: Largest number, likewise.
        region_weights: Weights of objects over the tokens of their image (`vision.RegionWeights`), for objectives that
            look at regions; None for others.
        ask_teacher: What teachers make of images, for objectives that compare with one; None for others.
        replace: Texts in the place of prompts that are wholly one of its keys, such as the tokens of a soft prompt.
        pixel_cache: Folder in which processed images are kept for later epochs and runs; None for no cache.

    Raises:
        ValueError: If an option is unknown, or not one of this processor.
        DataError: On call, for a row that cannot be used.
    """

    def __init__(
        self,
        processor: Any,
        needs_for: Callable[[str], Needs],
        image_keys: Sequence[str],
        token_keys: Sequence[str] = (),
        max_length: int | None = None,
        on_overflow: Overflow = "error",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        pixel_cache: str | os.PathLike[str] | None = None,
        region_weights: WeighRegions | None = None,
        ask_teacher: AskTeacher | None = None,
        replace: Mapping[str, str] | None = None,
    ) -> None:
        if on_overflow not in OVERFLOWS:
            raise ValueError(f"on_overflow must be one of {', '.join(OVERFLOWS)}, got {on_overflow!r}")
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length must be at least 1 or None, got {max_length}")
        self.processor = processor
        self.rows = RowEncoder(processor, needs_for, replace)
        self.images = ImageEncoder(processor, image_keys, min_pixels, max_pixels)
        self.pixel_cache = PixelCache(pixel_cache, self.images) if pixel_cache is not None else None
        self.region_weights = region_weights
        self.ask_teacher = ask_teacher
        self.token_keys = tuple(token_keys)
        self.max_length = max_length
        self.on_overflow = on_overflow
        self.num_dropped = 0

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Batch]:
        """Collate raw rows."""
        batch = self.collate([parse_row(row) for row in rows])
        return {"batch": batch if get_worker_info() is None else few_storages(batch)}

    def collate(self, rows: Sequence[Row]) -> Batch:
        """Collate parsed rows."""
        builder = _BatchBuilder(self)
        for row in rows:
            views, phrases = list(self.rows.encode(row, builder.expand)), self.rows.phrases(row)
            kept = self.fit(row, [*views, *phrases.values()])
            if kept is not None:
                builder.add(row, kept[: len(views)], dict(zip(phrases, kept[len(views) :], strict=True)))
        return builder.build()

    def image(self, key: str, value: Any, where: str, several: bool = False) -> EncodedImage:
        """The processed image of a key: from the pixel cache where it is there, else decoded and processed.

        Raises:
            DataError: If the image cannot be read.
        """
        if self.pixel_cache is None:
            return self.images(load_image(value, where), several)
        image_id = self.images.image_id(key)
        kept = self.pixel_cache.get(image_id)
        if kept is None:
            kept = self.images(load_image(value, where), several)
            self.pixel_cache.put(image_id, kept)
        return kept

    def fit(self, row: Row, views: list[EncodedView]) -> list[EncodedView] | None:
        """The views of a row within `max_length`, or None where the row is dropped.

        Raises:
            DataError: If a view is too long and may not be shortened.
        """
        limit = self.max_length
        longest = max(views, key=lambda view: view.length, default=None)
        if limit is None or longest is None or longest.length <= limit:
            return views
        if self.on_overflow == "drop":
            self.num_dropped += 1
            if self.num_dropped.bit_count() == 1:
                logger.warning("%s is longer than max_length=%d; %d dropped", row.name, limit, self.num_dropped)
            return None
        if self.on_overflow == "error":
            raise DataError(
                f"{row.name}: view {longest.view} has {len(longest.prefix_ids)} prompt and "
                f"{len(longest.response_ids)} response tokens, more than max_length={limit}; raise it, lower "
                "max_pixels, or set on_overflow to 'drop' or 'truncate'"
            )
        return [self._truncated(row, view, limit) for view in views]

    @staticmethod
    def _truncated(row: Row, view: EncodedView, limit: int) -> EncodedView:
        room = limit - len(view.prefix_ids)
        if room < 1:
            mend = "lower max_pixels" if view.images else "set on_overflow to 'drop'"
            raise DataError(
                f"{row.name}: the prompt of view {view.view} alone has {len(view.prefix_ids)} tokens, which leaves no "
                f"room in max_length={limit}; raise it or {mend} (prompts and images are never cut)"
            )
        return EncodedView(view.view, view.prefix, view.prefix_ids, view.response_ids[:room], view.images)

    def token_extras(self, prefix_ids: Sequence[int]) -> dict[str, Tensor]:
        """Per-token processor outputs of a prefix, each (P,).

        Raises:
            ValueError: If the processor does not say which modality a token is of.
        """
        if not self.token_keys:
            return {}
        if getattr(self.processor, "return_mm_token_type_ids", False):
            kinds = torch.tensor(self.processor.create_mm_token_type_ids([list(prefix_ids)])[0], dtype=torch.long)
        elif set(self.token_keys) <= {"token_type_ids"} & set(getattr(self.processor, "model_input_names", ())):
            # Those of a tokenizer, which tell the first text of a pair (the prompt) from the second.
            kinds = torch.zeros(len(prefix_ids), dtype=torch.long)
        else:
            raise ValueError(f"{type(self.processor).__name__} makes no {', '.join(self.token_keys)}")
        return dict.fromkeys(self.token_keys, kinds)


class _BatchBuilder:
    """Collects distinct images and prefixes while rows are added."""

    def __init__(self, collator: AlignCollator) -> None:
        self.collator = collator
        self.seen: dict[str, EncodedImage] = {}
        self.images: dict[str, int] = {}
        self.prefixes: dict[tuple[str, tuple[str, ...], int], int] = {}
        self.prefix_list: list[Prefix] = []
        self.branches: list[Branch] = []
        self.rows: list[tuple[str, str, bool]] = []
        self.row_images: dict[str, dict[int, tuple[int, ...]]] = {}
        self.regions: dict[str, RegionList] = {}
        self.taught: dict[Feature, dict[int, Tensor]] = {}
        self.phrases: dict[str, int] = {}
        self.phrase_list: list[Phrase] = []
        self.phrase_columns: set[str] = set()
        self.listed_columns: dict[str, set[str]] = {"negatives": set(), "positives": set()}
        self.token_columns: set[str] = set()

    def expand(self, value: Any, where: str, several: bool) -> tuple[str, str]:
        key = self.collator.images.variant(image_key(value, where), several)
        if key not in self.seen:
            self.seen[key] = self.collator.image(key, value, where, several)
        return key, self.seen[key].expansion

    def add(self, row: Row, views: Sequence[EncodedView], phrases: Mapping[str, EncodedView]) -> None:
        number = len(self.rows)
        for view in views:
            ids = torch.tensor(view.response_ids, dtype=torch.long)
            self.branches.append(Branch(self._prefix(view), number, view.view, ids))
        with_regions = self.collator.rows.columns_with_regions(row)
        kept: dict[str, list[int]] = {}
        seen: dict[str, list[str]] = {}
        for column, images in self.collator.rows.images_for_features(row).items():
            where = f"{row.name}, column {column!r}"
            keys = [self.expand(image, where, len(images) > 1)[0] for image in images]
            own = tuple(self.images.setdefault(key, len(self.images)) for key in keys)
            seen[column] = keys
            self.row_images.setdefault(column, {})[number] = own
            if column in with_regions:
                found = self.regions.setdefault(column, RegionList())
                pictures = [self.seen[key] for key in keys]
                kept[column] = found.add(number, row.objects[column], pictures, self.weigh)
        self._teach(number, row, kept)
        for text, view in phrases.items():
            self._add_phrase(text, view)
        self.phrase_columns.update(self.collator.rows.columns_with_phrases(row))
        for key, columns in self.listed_columns.items():
            columns.update(self.collator.rows.columns_with_phrases(row, key))
        self.token_columns.update(self.collator.rows.columns_with_region_tokens(row))
        reference = self.collator.rows.needs(row).reference
        self.rows.append((row.source, row.id or _fingerprint(row, views, seen), reference))

    def _teach(self, number: int, row: Row, kept: Mapping[str, list[int]]) -> None:
        """What teachers make of a row; `kept` are the objects of each column that are regions of the batch."""
        for feature in self.collator.rows.needs(row).features:
            images = row.images_of(feature.column) if feature.source == "teacher" else None
            if not images:
                continue
            if self.collator.ask_teacher is None:
                raise ValueError(f"feature {feature.name!r} is a teacher's: give the collator ask_teacher")
            found = self.collator.ask_teacher(feature, images, row.objects.get(feature.column, ()), row.name)
            found = found[kept[feature.column]] if feature.pooling == "regions" else found
            if len(found):
                self.taught.setdefault(feature, {})[number] = found

    def _taught(self, feature: Feature, found: Mapping[int, Tensor]) -> Tensor:
        """(N, d), aligned with the batch's regions or images: zeros for rows whose source asks no teacher."""
        entries = Counter(self.regions[feature.column].regions.row) if feature.pooling == "regions" else None
        rows = self.row_images[feature.column]
        nothing = next(iter(found.values()))[:1] * 0
        counts = {row: entries[row] if entries is not None else int(bool(images)) for row, images in rows.items()}
        return torch.cat([found.get(row, nothing.expand(count, -1)) for row, count in sorted(counts.items())])

    @property
    def weigh(self) -> WeighRegions:
        """The collator's.

        Raises:
            ValueError: If it has none.
        """
        if self.collator.region_weights is None:
            raise ValueError("the objective looks at regions: give the collator region_weights")
        return self.collator.region_weights

    def _add_phrase(self, text: str, view: EncodedView) -> None:
        if text in self.phrases:
            return
        # Now and then a prefix of its own, so that one sequence does not hold all the phrases of a large batch.
        part = 1 + len(self.phrase_list) // PHRASES_PER_PREFIX
        ids = torch.tensor(view.response_ids, dtype=torch.long)
        self.phrases[text] = len(self.phrase_list)
        self.phrase_list.append(Phrase(self._prefix(view, part), ids))

    def _prefix(self, view: EncodedView, part: int = 0) -> int:
        key = (view.prefix, view.images, part)
        if key not in self.prefixes:
            order = tuple(self.images.setdefault(image, len(self.images)) for image in view.images)
            ids = torch.tensor(view.prefix_ids, dtype=torch.long)
            self.prefix_list.append(Prefix(ids, order, self.collator.token_extras(view.prefix_ids)))
            self.prefixes[key] = len(self.prefixes)
        return self.prefixes[key]

    def build(self) -> Batch:
        return Batch(
            sources=tuple(source for source, _, _ in self.rows),
            row_ids=tuple(name for _, name, _ in self.rows),
            images=tuple(self.seen[key].tensors for key in self.images),
            prefixes=tuple(self.prefix_list),
            branches=tuple(self.branches),
            reference_rows=tuple(reference for _, _, reference in self.rows),
            image_ids=tuple(self.collator.images.image_id(key) for key in self.images),
            row_images={
                column: tuple(of_row.get(number, ()) for number in range(len(self.rows)))
                for column, of_row in self.row_images.items()
            },
            regions={column: self._told(column, found) for column, found in self.regions.items()},
            region_weights={column: tuple(found.weights) for column, found in self.regions.items()},
            num_lost_regions=sum(found.num_lost for found in self.regions.values()),
            phrases=tuple(self.phrase_list),
            region_phrases={
                column: tuple(self.phrases.get(text, -1) for text in found.regions.texts)
                for column, found in self.regions.items()
                if column in self.phrase_columns
            },
            region_negatives=self._listed("negatives"),
            region_positives=self._listed("positives"),
            region_tokens={
                column: tuple(own.nonzero().flatten() for own in found.weights)
                for column, found in self.regions.items()
                if column in self.token_columns
            },
            image_sizes=tuple(self.collator.images.num_tokens(self.seen[key]) for key in self.images),
            teacher_features={feature.name: self._taught(feature, own) for feature, own in self.taught.items()},
        )

    def _told(self, column: str, found: RegionList) -> Regions:
        """What is known of the regions of a column, and how many states there are of each one's text.

        Told where no row wants them, too: the regions of all processes are joined entry by entry.
        """
        told = found.regions
        read = [self.phrases.get(text) if column in self.phrase_columns else None for text in told.texts]
        states = tuple(0 if each is None else self.phrase_list[each].num_states for each in read)
        return replace(told, num_words=states)

    def _listed(self, key: str) -> dict[str, tuple[int, ...]]:
        """Per column that a feature of such texts is taken of, which phrases they are, in order of region."""
        return {
            column: tuple(self.phrases.get(text, -1) for own in getattr(found.regions, key) for text in own)
            for column, found in self.regions.items()
            if column in self.listed_columns[key]
        }


def _fingerprint(row: Row, views: Sequence[EncodedView], images: Mapping[str, Sequence[str]]) -> str:
    """An id made of what the row holds, for rows without one."""
    content = [row.source, *row.messages, *row.responses.items(), *(view.images for view in views)]
    content += [view.prefix for view in views if view.view.response not in RESPONSES]
    for column in sorted(images):
        told = [(each.box, each.text, each.object_id, each.kind) for each in row.objects.get(column, ())]
        content += [column, *images[column], *told]
    return hashlib.blake2b(repr(content).encode(), digest_size=8).hexdigest()
