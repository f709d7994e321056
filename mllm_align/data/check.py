"""One pass over a dataset before training: every row parsed, rendered and measured, every image decoded."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from mllm_align.contract import Feature
from mllm_align.data.collator import AlignCollator
from mllm_align.data.encode import EncodedView
from mllm_align.data.images import MadeImage, image_key, load_image
from mllm_align.data.loading import undecoded
from mllm_align.data.masks import laid_out
from mllm_align.data.messages import Message
from mllm_align.data.objects import ImageObject
from mllm_align.data.pixels import EncodedImage
from mllm_align.data.readings import ANSWER
from mllm_align.data.schema import RESPONSES, DataError, Row, missing_column, parse_row

logger = logging.getLogger(__name__)

MAX_PROBLEMS = 10
# Blank images that are kept as processed; each holds its pixels.
MAX_BLANKS = 16


@dataclass
class DatasetSummary:
    """What a check saw.

    Attributes:
        rows: Rows checked.
        complete: Whether these are all; False for a stream, of which only the beginning was read.
        views: Per source, how many rows have each view.
        images: Distinct images.
        longest: Tokens of the longest prefix with its response.
        longest_row: The row that has it.
        too_long: Rows longer than `max_length`.
        overflow: What becomes of these while training.
        same_responses: Rows whose chosen and rejected response are the same, which no preference can be learnt from.
        repeated_ids: Rows with the id of an earlier row.
        objects: On images whose regions a feature is taken of.
        outside: Those without an area within their image.
        cropped: Others of which the model is shown nothing.
        small: Those that cover less than one token, all views of their image together.
        without_id: Those that nobody says which thing they are.
        without_partner: Those with an id that no other image of their row has.
    """

    rows: int = 0
    complete: bool = True
    views: dict[str, Counter[str]] = field(default_factory=dict)
    images: int = 0
    longest: int = 0
    longest_row: str = ""
    too_long: int = 0
    overflow: str = "error"
    same_responses: int = 0
    repeated_ids: int = 0
    objects: int = 0
    outside: int = 0
    cropped: int = 0
    small: int = 0
    without_id: int = 0
    without_partner: int = 0

    def __str__(self) -> str:
        """A few lines for the terminal."""
        lines = [f"{self.rows:,} rows{'' if self.complete else ' (the first of a stream)'}, {self.images:,} images"]
        for source, views in self.views.items():
            if views:
                lines.append(f"  {source}: " + ", ".join(f"{view} {count:,}" for view, count in views.items()))
        if self.longest:
            lines.append(f"  longest sequence {self.longest:,} tokens ({self.longest_row})")
        if self.objects:
            lines.append(f"  {self.objects:,} objects whose regions are compared")
        of_objects = {
            "have no area within their image (sides are shares from 0 to 1)": self.outside,
            "lie where the processor crops their image: nothing of them is shown, and they are left out": self.cropped,
            "cover less than one token, which tells little of them alone": self.small,
            "have no object_id, so no partner in another image": self.without_id,
            "have an object_id that no other image of their row has": self.without_partner,
        }
        lines += [f"    {count:,} {told}" for told, count in of_objects.items() if count]
        if self.too_long:
            verb = {"drop": "are dropped", "truncate": "have responses cut"}.get(self.overflow, "are refused")
            lines.append(f"  {self.too_long:,} rows are longer than max_length and {verb}")
        if self.same_responses:
            lines.append(f"  {self.same_responses:,} rows have the same chosen and rejected response")
        if self.repeated_ids:
            lines.append(f"  {self.repeated_ids:,} rows have the id of an earlier row")
        return "\n".join(lines)


class _LengthMeter:
    """Stands in for image processing: an image's placeholder depends on its size alone, so one blank image a size."""

    def __init__(self, collator: AlignCollator) -> None:
        self.collator = collator
        self.sizes: dict[str, tuple[int, int]] = {}
        self.expansions: dict[tuple[tuple[int, int], bool], str] = {}
        self.blanks: dict[tuple[tuple[int, int], bool], EncodedImage] = {}

    def expand(self, value: Any, where: str, several: bool) -> tuple[str, str]:
        key = image_key(value, where)
        size = self._size_of(value, where)
        if (size, several) not in self.expansions:
            self.expansions[size, several] = self.blank(value, where, several).expansion
        return key, self.expansions[size, several]

    def blank(self, value: Any, where: str, several: bool) -> EncodedImage:
        """A blank image of the same size, processed; the last few are kept."""
        size = self._size_of(value, where)
        if (size, several) not in self.blanks:
            while len(self.blanks) >= MAX_BLANKS:
                del self.blanks[next(iter(self.blanks))]
            try:
                self.blanks[size, several] = self.collator.images(Image.new("RGB", size), several)
            except ValueError as error:
                raise DataError(f"{where}: the processor refuses {size[0]} x {size[1]} pixels: {error}") from error
        return self.blanks[size, several]

    def _size_of(self, value: Any, where: str) -> tuple[int, int]:
        sized_as = value.sized_as if isinstance(value, MadeImage) else value
        return self._size(image_key(sized_as, where), sized_as, where)

    def _size(self, key: str, value: Any, where: str) -> tuple[int, int]:
        if key not in self.sizes:
            self.sizes[key] = load_image(value, where).size
        return self.sizes[key]


def check_dataset(
    dataset: Iterable[Mapping[str, Any]],
    collator: AlignCollator,
    *,
    stream_rows: int = 256,
    progress: bool = True,
    observe: Callable[[Row, list[EncodedView]], None] | None = None,
) -> DatasetSummary:
    """Read a dataset as training would, without the pixels.

    A map-style dataset (one with a length) is read whole, and every distinct image decoded once; of a stream the
    first `stream_rows` rows are read, and a log line says so. The first image row is compared with what the
    processor itself makes of it. A feature that no row has anything for is refused, or warned of where rows may do
    without it.

    Args:
        dataset: Rows; a `datasets.Dataset`, a list, a stream, a mix.
        collator: The collator of the run; it knows processor, objective and limits.
        stream_rows: How many rows of a stream to read.
        progress: Whether to show a progress bar.
        observe: Is shown every row and its views.

    Raises:
        DataError: For rows that cannot be used, naming row, column and mend: the first alone where no row before it
            could be used (then it is probably all of them), else up to `MAX_PROBLEMS`; with `on_overflow="error"`,
            for rows longer than `max_length`, with their number and the longest.
    """
    size = len(dataset) if isinstance(dataset, Sized) else None
    if size == 0:
        raise DataError("the dataset has no rows")
    summary = DatasetSummary(complete=size is not None, overflow=collator.on_overflow)
    if size is None:
        logger.warning("the dataset is a stream: only its first %d rows are checked", stream_rows)
    meter, compared, wanted = _LengthMeter(collator), False, _Wanted(collator)
    problems: list[DataError] = []
    ids: set[str] = set()
    for index, raw in enumerate(tqdm(_rows(dataset, size, stream_rows), "checking data", size, disable=not progress)):
        try:
            row = parse_row(raw, index)
            views = _measured(row, collator, meter)
            _count(summary, row, views, collator)
            wanted.see(row, views)
            _count_objects(summary, row, sorted(collator.rows.columns_with_regions(row)), meter)
            summary.repeated_ids += row.id in ids
            ids.update([row.id] if row.id is not None else [])
            if observe is not None:
                observe(row, views)
        except DataError as error:
            problems.append(error)
            if len(problems) == MAX_PROBLEMS or not summary.rows:
                break
            continue
        if not compared:
            compared = _compare_first(row, collator)
    if problems:
        raise _together(problems, index + 1, size) from problems[0]
    if not summary.rows:
        raise DataError("the dataset has no rows")
    summary.images = len(meter.sizes)
    wanted.refuse_absent(complete=summary.complete)
    _refuse_overflow(summary, collator)
    return summary


class _Wanted:
    """The features of whole images, texts and prompts that rows are to be read for, and whether any row is.

    A row whose only image stands in a column of another name is a text-only row, and one with a long text may do
    without a short one: of either kind all rows together would train nothing of a contrast.
    """

    def __init__(self, collator: AlignCollator) -> None:
        self.collator = collator
        # Of each that no row had so far: whether each row that was to have it might do without.
        self.absent: dict[Feature, bool] = {}
        self.found: set[Feature] = set()
        self.columns: dict[str, None] = {}

    def see(self, row: Row, views: list[EncodedView]) -> None:
        """One more row."""
        needs, read = self.collator.rows.needs(row), {view.view for view in views}
        self.columns.update(dict.fromkeys(row.columns))
        for feature in needs.features:
            if feature in self.found or feature.of_regions:
                continue
            images = row.images_of(feature.column) if feature.view is None else ()
            if images or feature.view in read:
                self.found.add(feature)
                self.absent.pop(feature, None)
                continue
            listed = feature.column in row.texts
            may = listed or any(view in read for view in needs.optional)
            self.absent[feature] = self.absent.get(feature, True) and may

    def refuse_absent(self, *, complete: bool) -> None:
        """After the last row; where more rows are to come, it is no more than a warning.

        Raises:
            DataError: If there is nothing of which a feature could be taken.
        """
        rows = "all rows" if complete else "all rows so far"
        for feature, may in self.absent.items():
            purpose = f", of which feature {feature.name!r} is taken, so nothing is trained by it"
            if feature.column in self.columns:
                problem = DataError(f"{rows}: nothing in column {feature.column!r}{purpose}")
            else:
                problem = missing_column(feature.column, list(self.columns), rows, purpose)
            if complete and (not may or feature.column not in self.columns):
                raise problem
            logger.warning("%s", problem)


def _measured(row: Row, collator: AlignCollator, meter: _LengthMeter) -> list[EncodedView]:
    """The views of a row; images that only features look at are read too, that there are objects is seen,
    and what these are called is tokenised."""
    views = list(collator.rows.encode(row, meter.expand))
    phrases = list(collator.rows.phrases(row).values())
    if collator.on_overflow == "error":
        collator.fit(row, phrases)
    for column, images in collator.rows.images_for_features(row).items():
        for image in images:
            meter.expand(image, f"{row.name}, column {column!r}", len(images) > 1)
    return views


def _compare_first(row: Row, collator: AlignCollator) -> bool:
    """What is done once: the processor's own prefix, and one image that is made for training; False where the row has
    no conversation with an image, as where images are read alone."""
    if row.images and row.responses:
        _compare_with_processor(row.messages, row.images, row.name, collator)
    else:
        shown = next((reading for reading in collator.rows.readings(row) if reading.images), None)
        if shown is None:
            return False
        _compare_with_processor(shown.messages, shown.images, shown.where, collator)
    # The others are only measured, which for most means to look at what they are made of.
    for image in row.contrast_images or ():
        if isinstance(image, MadeImage):
            load_image(image, f"{row.name}, column 'contrast_image'")
    return True


def _together(problems: list[DataError], seen: int, size: int | None) -> DataError:
    """One error: of one row as it is, of several a list."""
    if len(problems) == 1:
        return problems[0]
    of = f"the first {seen:,}" if size is None or seen < size else f"{size:,}"
    more = f"; the check stopped at {MAX_PROBLEMS}" if len(problems) == MAX_PROBLEMS and seen != size else ""
    lines = "".join(f"\n- {problem}" for problem in problems)
    return DataError(f"{len(problems)} of {of} rows cannot be used{more}:{lines}")


def _rows(dataset: Iterable[Mapping[str, Any]], size: int | None, stream_rows: int) -> Iterator[Mapping[str, Any]]:
    rows: Any = undecoded(dataset)
    if size is not None:
        yield from (rows[index] for index in range(size))
        return
    stream = itertools.islice(iter(rows), stream_rows)
    for index in itertools.count():
        try:
            row = next(stream, None)
        except (OSError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"row {index} of the stream cannot be read: {error}") from error
        if row is None:
            return
        yield row


def _count(summary: DatasetSummary, row: Row, views: list[EncodedView], collator: AlignCollator) -> None:
    summary.rows += 1
    said = [row.responses[name].strip() for name in RESPONSES if name in row.responses]
    summary.same_responses += len(said) == len(RESPONSES) and len(set(said)) == 1
    counter = summary.views.setdefault(row.source, Counter())
    counter.update(str(view.view) for view in views)
    longest = max((view.length for view in views), default=0)
    if longest > summary.longest:
        summary.longest, summary.longest_row = longest, row.name
    if collator.max_length is not None and longest > collator.max_length:
        summary.too_long += 1
        if collator.on_overflow == "truncate":
            collator.fit(row, views)


def _count_objects(summary: DatasetSummary, row: Row, columns: Sequence[str], meter: _LengthMeter) -> None:
    """What is on the images of some columns; an objective may compare a thing in one column with it in another."""
    found = [(column, each) for column in columns for each in row.objects.get(column, ())]
    places: dict[str, set[tuple[str, int]]] = {}
    for column, each in found:
        places.setdefault(each.object_id, set()).add((column, each.image))
        summary.outside += not _has_area(each)
    for column in columns:
        _count_shown(summary, row, column, meter)
    summary.objects += len(found)
    summary.without_id += sum(not each.object_id for _, each in found)
    summary.without_partner += sum(len(places[each.object_id]) == 1 for _, each in found if each.object_id)


def _count_shown(summary: DatasetSummary, row: Row, column: str, meter: _LengthMeter) -> None:
    """Of how many objects with an area the model is shown nothing, or less than a token."""
    weigh, images = meter.collator.region_weights, row.images_of(column) or ()
    if weigh is None:
        return
    for index, image in enumerate(images):
        there = [each for each in row.objects.get(column, ()) if each.image == index and _has_area(each)]
        if there:
            blank = meter.blank(image, f"{row.name}, column {column!r}", len(images) > 1)
            covered = weigh(blank, there).sum(dim=1).tolist()
            summary.cropped += sum(each == 0 for each in covered)
            summary.small += sum(0 < each < 1 for each in covered)


def _has_area(each: ImageObject) -> bool:
    left, top, right, bottom = (min(max(side, 0.0), 1.0) for side in each.box)
    return left < right and top < bottom


def _refuse_overflow(summary: DatasetSummary, collator: AlignCollator) -> None:
    if summary.too_long and collator.on_overflow == "error":
        raise DataError(
            f"{summary.too_long} of {summary.rows} rows are longer than max_length={collator.max_length}; the longest "
            f"is {summary.longest_row} with {summary.longest} tokens. Raise max_length, lower max_pixels, or set "
            "on_overflow to 'drop' or 'truncate'"
        )
    if summary.too_long == summary.rows and collator.on_overflow == "drop":
        raise DataError(f"every row is longer than max_length={collator.max_length} and would be dropped; raise it")


def _compare_with_processor(
    messages: Sequence[Message], shown: Sequence[Any], where: str, collator: AlignCollator
) -> None:
    """A prefix must be, id for id, what the processor makes of text and images itself."""
    text, _ = collator.rows.renderer.render(messages, ANSWER, len(shown), where)
    images = [load_image(image, where) for image in shown]
    _, ids, _ = collator.rows.prefix(
        laid_out(collator.processor, text),
        images,
        where,
        lambda image, _, several: ("", collator.images(image, several).expansion),
    )
    bos = collator.processor.tokenizer.bos_token
    own = collator.processor(
        text=[text],
        images=[images],
        return_tensors="pt",
        add_special_tokens=bos is None or not text.startswith(bos),
        **collator.images.options,
    )
    if own["input_ids"][0].tolist() != list(ids):
        raise DataError(
            f"{where}: {type(collator.processor).__name__} tokenises a prompt with images in a way of its own, "
            "which the collator does not reproduce; this processor is not supported"
        )
