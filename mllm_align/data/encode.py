"""One row to token ids: for every view that is to be scored, its prefix and its response."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mllm_align.contract import OBJECT_TOKEN, Needs, View
from mllm_align.data.masks import ChatRenderer, laid_out, leading_ids, plain_ids, response_ids
from mllm_align.data.messages import Message, without_images
from mllm_align.data.readings import ANSWER, Reading, readings, replaced
from mllm_align.data.remember import Remembered
from mllm_align.data.schema import OBJECTS, RESPONSES, DataError, Row, missing_column

# What a region is called is read as the answer to this question, as responses are, without an image. That it is an
# answer makes its end a token whose prediction has read all of it; what the question says matters less than that
# there is the same one for all.
REGION_PROMPT = "What is this?"

# Gives the key of an image and the text that its placeholder becomes; told is also whether the prompt has several.
Expand = Callable[[Any, str, bool], tuple[str, str]]


@dataclass(frozen=True)
class EncodedView:
    """One response behind one prefix.

    Attributes:
        view: What is scored.
        prefix: The rendered prompt with every image placeholder expanded.
        prefix_ids: Its token ids, BOS included.
        response_ids: Ids of the scored tokens.
        images: Keys of the images in the prefix, in order.
    """

    view: View
    prefix: str
    prefix_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    images: tuple[str, ...]

    @property
    def length(self) -> int:
        """Number of tokens of prefix and response."""
        return len(self.prefix_ids) + len(self.response_ids)


class RowEncoder:
    """Renders and tokenises the views of rows.

    Args:
        processor: Chat template, image token and tokenizer are used.
        needs_for: What the objective needs of the rows of a source.
        replace: What is put in the place of a text part that is a key of it (soft prompts).
    """

    def __init__(
        self, processor: Any, needs_for: Callable[[str], Needs], replace: Mapping[str, str] | None = None
    ) -> None:
        self.processor = processor
        self.replace = dict(replace or {})
        self.renderer = ChatRenderer(processor)
        self.image_token: str = processor.image_token
        self.needs_for = needs_for
        self._plain_ids = Remembered(partial(plain_ids, processor.tokenizer))
        self._leading_ids = Remembered(partial(leading_ids, processor.tokenizer))
        self._response_ids = Remembered(partial(response_ids, processor.tokenizer))
        if self.image_token is None:
            raise ValueError(f"{type(processor).__name__} has no image token; pass an image-text processor")

    def needs(self, row: Row) -> Needs:
        """What the objective needs of a row.

        Raises:
            DataError: If no part of the objective takes rows of its source.
        """
        try:
            needs = self.needs_for(row.source)
        except (KeyError, ValueError) as error:
            raise DataError(f"{row.name}: unknown source {row.source!r}: {error}") from error
        if not (needs.views or needs.optional or needs.features):
            raise DataError(
                f"{row.name}: no part of the objective takes rows of source {row.source!r}; name it in the objective, "
                "or leave these rows out"
            )
        return needs

    def views(self, row: Row) -> tuple[View, ...]:
        """The views of a row that are read: all that are needed, those of text features, the optional ones it has.

        Raises:
            DataError: If a column that is needed is missing.
        """
        needs = self.needs(row)
        said = (feature.view for feature in needs.features if feature.source == "text")
        read = needs.views + tuple(view for view in said if view is not None)
        for view in read:
            self._require(row, view)
        return tuple(dict.fromkeys(read + tuple(view for view in needs.optional if _has(row, view))))

    def images_for_features(self, row: Row) -> dict[str, tuple[Any, ...]]:
        """Per image column that a feature is taken of, the images of a row.

        Raises:
            DataError: If the row has no such column, or several images where a phrase is looked for on one.
        """
        found = {}
        for feature in self.needs(row).features:
            if feature.source in ("projector", "teacher") or feature.of_phrases:
                images = row.images_of(feature.column)
                if images is None:
                    purpose = f", of which feature {feature.name!r} is taken"
                    raise missing_column(feature.column, row.columns, row.name, purpose)
                found[feature.column] = tuple(images)
        for column, images in found.items():
            if len(images) > 1:
                self._refuse_phrases_on_several(row, column, len(images))
        return found

    def columns_with_regions(self, row: Row) -> tuple[str, ...]:
        """The image columns of which a feature pools regions.

        Raises:
            DataError: If the row does not say what is on one of them.
        """
        wanted = [f for f in self.needs(row).features if f.of_regions]
        for feature in wanted:
            if feature.column not in row.objects:
                column, purpose = OBJECTS[feature.column], f", whose regions feature {feature.name!r} pools"
                raise missing_column(column, row.columns, row.name, purpose)
        return tuple(dict.fromkeys(feature.column for feature in wanted))

    def columns_with_phrases(self, row: Row, *poolings: str) -> tuple[str, ...]:
        """The image columns of which the texts of regions are read, or (pooling "negatives") those that are false, or
        ("positives") say the same."""
        wanted = poolings or ("regions", "region_tokens")
        found = (f.column for f in self.needs(row).features if f.of_phrases and f.pooling in wanted)
        return tuple(dict.fromkeys(found))

    def columns_with_region_tokens(self, row: Row) -> tuple[str, ...]:
        """The image columns of which a feature is of the tokens that regions cover."""
        found = (f for f in self.needs(row).features if f.source == "projector" and f.pooling == "region_tokens")
        return tuple(dict.fromkeys(feature.column for feature in found))

    def phrases(self, row: Row) -> dict[str, EncodedView]:
        """The distinct texts of a row's objects that are read, each as an answer to `REGION_PROMPT`.

        Raises:
            DataError: If a text cannot be an answer.
        """
        texts = [each.text for column in self.columns_with_phrases(row) for each in row.objects.get(column, ())]
        for key in ("negatives", "positives"):
            for column in self.columns_with_phrases(row, key):
                texts += [text for each in row.objects.get(column, ()) for text in getattr(each, key)]
        return {text: self._phrase(text, row.name) for text in dict.fromkeys(texts) if text}

    def _phrase(self, text: str, where: str) -> EncodedView:
        asked: list[Message] = [{"role": "user", "content": [{"type": "text", "text": REGION_PROMPT}]}]
        prompt, answer = self.renderer.render(asked, text, 0, f"{where}, text of an object")
        prompt = laid_out(self.processor, prompt)
        ids = (*self._leading_ids(prompt), *self._plain_ids(prompt))
        return EncodedView(View(None, "objects"), prompt, ids, tuple(self._response_ids(prompt, answer)), ())

    def readings(self, row: Row) -> Iterator[Reading]:
        """The conversations of a row that are read for embeddings.

        Raises:
            DataError: If a column that is needed is missing, or cannot be read.
        """
        return readings(row, self.needs(row), _has, self.replace)

    def encode(self, row: Row, expand: Expand) -> Iterator[EncodedView]:
        """The views of a row as token ids, and what is read for embeddings, each as a view with one token that is not
        read; `expand` is asked for every image in a prefix."""
        yield from self._scored(row, expand)
        for view, messages, images, where in self.readings(row):
            text, _ = self.renderer.render(messages, ANSWER, len(images), where)
            found = self.prefix(laid_out(self.processor, text), images, where, expand)
            yield EncodedView(view, *found[:2], (self.processor.tokenizer.eos_token_id,), found[2])

    def _scored(self, row: Row, expand: Expand) -> Iterator[EncodedView]:
        own = replaced(row.messages, self.replace) if self.replace else row.messages
        bare = without_images(own)
        rendered: dict[tuple[bool, str], tuple[str, str]] = {}
        prefixes: dict[tuple[str | None, str], tuple[str, tuple[int, ...], tuple[str, ...]]] = {}
        for view in self.views(row):
            _refuse_object_tokens(row)
            images = row.images_of(view.image) or ()
            side = (bool(images), view.response)
            if side not in rendered:
                messages = own if images else bare
                text, response = self.renderer.render(messages, row.responses[view.response], len(images), row.name)
                rendered[side] = laid_out(self.processor, text), response
            text, response = rendered[side]
            column = view.image if images else None
            if (column, text) not in prefixes:
                prefixes[column, text] = self.prefix(text, images, f"{row.name}, column {column!r}", expand)
            prefix, prefix_ids, keys = prefixes[column, text]
            yield EncodedView(view, prefix, prefix_ids, tuple(self._response_ids(text, response)), keys)

    def prefix(
        self, text: str, images: Sequence[Any], where: str, expand: Expand
    ) -> tuple[str, tuple[int, ...], tuple[str, ...]]:
        """A prompt as laid out, with its images expanded: the text, its token ids, and the keys of the images."""
        head = self._leading_ids(text)
        pairs = [expand(image, where, len(images) > 1) for image in images]
        pieces = text.split(self.image_token)
        expanded = pieces[0] + "".join(new + piece for (_, new), piece in zip(pairs, pieces[1:], strict=True))
        return expanded, (*head, *self._plain_ids(expanded)), tuple(key for key, _ in pairs)

    def _refuse_phrases_on_several(self, row: Row, column: str, count: int) -> None:
        features = [feature for feature in self.needs(row).features if feature.column == column]
        named = [each for each in features if each.of_phrases and each.pooling == "regions"]
        everything = [each for each in features if each.source == "projector" and each.pooling == "tokens"]
        if named and everything and any(each.text for each in row.objects.get(column, ())):
            # The tokens do not say which image they are of, and an object is on one.
            raise DataError(
                f"{row.name}, column {column!r}: {count} images, and objects with texts (feature {named[0].name!r}) "
                f"that are looked for among the tokens of all of them (feature {everything[0].name!r}): give each "
                "image a row of its own"
            )

    @staticmethod
    def _require(row: Row, view: View) -> None:
        if view.response not in row.responses:
            if view.response not in RESPONSES:
                raise DataError(f"view {view} of response column {view.response!r}: use {' or '.join(RESPONSES)}")
            raise missing_column(view.response, row.columns, row.name, f", which view {view} scores")
        if row.images_of(view.image) is None:
            purpose = (
                f", which view {view} needs; add it, let it be made of the row's own image (in a recipe "
                "corrupt: {kind: crop}, in Python corrupted(rows, Crop())), or use an objective without contrast "
                "images (DPO)"
            )
            raise missing_column("contrast_image", row.columns, row.name, purpose)


def _refuse_object_tokens(row: Row) -> None:
    texts = (part.get("text", "") for message in row.messages for part in message["content"])
    if any(row.objects.values()) and any(OBJECT_TOKEN in text for text in texts):
        raise DataError(
            f"{row.name}: its prompt has {OBJECT_TOKEN}, which stands for the vector of an object "
            "(vision.ObjectPrompts); what trains here would read the word: take it out of 'prompt'"
        )


def _has(row: Row, view: View) -> bool:
    """Whether a row has a view."""
    return view.response in row.responses and row.images_of(view.image) is not None
