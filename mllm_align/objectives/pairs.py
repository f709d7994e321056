"""The two sides that contrasts of whole images and texts compare: what is measured of each, its vectors by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm_align.contract import Embedding, EmbeddingHead, Feature, Ragged, Signals
from mllm_align.contract.embedding import IMAGE_PROMPT as IMAGE_PROMPT
from mllm_align.contract.embedding import TEXT_PROMPT as TEXT_PROMPT
from mllm_align.objectives.columns import IMAGES, TEXTS
from mllm_align.objectives.host import sent
from mllm_align.objectives.identity import Ids, ids_by_row, ids_of_entries, true_pairs
from mllm_align.objectives.nearest import nearer_than_false
from mllm_align.objectives.options import WithOptions
from mllm_align.objectives.padding import padded, places_by_row, rows_of_entries

POOLINGS = ("last", "mean", "query")
SIDES = ("image", "text")


@dataclass(frozen=True)
class Compared:
    """The vectors of one batch of B rows, not of unit length yet.

    Attributes:
        images: (B, d), zero where a row has none.
        texts: (B, d), likewise.
        present: (B,) bool, the rows with both.
        anchors: (N,) int64, those rows.
        negatives: (M, d) texts that are false of an image, in order of row.
        owner: (M,) int64, the row of each.
        ids: What was read twice; None where nobody told.
        lists: The rows with both that list a text which is not their own, on the host.
    """

    images: Tensor
    texts: Tensor
    present: Tensor
    anchors: Tensor
    negatives: Tensor
    owner: Tensor
    ids: Ids | None = None
    lists: tuple[int, ...] = ()

    @property
    def repeated(self) -> Ids | None:
        """What was read twice; None where nothing was."""
        return self.ids if self.ids is not None and self.ids.repeated else None

    @property
    def own_text(self) -> Tensor:
        """(M,) bool: which negatives are true of the image of the very row that lists them."""
        found = torch.zeros(len(self.owner), dtype=torch.long, device=self.owner.device)
        if self.repeated is None:
            return found > 0
        row, place = self.repeated.true
        return found.index_add(0, place, (self.owner[place] == row).long()) > 0

    def at(self, dimension: int | None = None) -> Compared:
        """The same with vectors of unit length, of the leading `dimension` numbers; None for all."""
        unit = (F.normalize(each[:, :dimension], dim=1) for each in (self.images, self.texts, self.negatives))
        images, texts, negatives = unit
        return replace(self, images=images, texts=texts, negatives=negatives)


def nearer_than_listed(own: Tensor, found: Compared) -> Tensor:
    """Whether a row's own text is nearer to its image than all that it lists as false.

    Args:
        own: (B,) cosine of image and text.
        found: Unit vectors.

    Returns:
        (N,), 1 or 0 for each of the rows `found.lists`.
    """
    cosines = (found.images[found.owner] * found.negatives).sum(dim=1).detach()
    return nearer_than_false(own, cosines.masked_fill(found.own_text, -torch.inf), found.owner, found.lists)


class Pairs(WithOptions):
    """Declares the features of both sides, holds their heads, and puts what was measured in order of row.

    Args:
        owner: Name of the objective, for errors.
        image: What one side is taken of: "image", "contrast_image", or "prompt" for the row's own prompt with its
            images.
        text: What the other is taken of: "chosen", "rejected", any other column of texts, or, beside
            "contrast_image", "prompt".
        image_prompt: Instruction behind the image, the language model's state at whose end is the vector; None for the
            mean of the image's tokens as the language model is given them.
        text_prompt: Likewise behind the text; None for the state at the end of the text as a response to the row's
            prompt, read without the image.
        pooling: Of states: "last"; "mean" of all tokens; "query", attention of a learned query over all tokens.
        layer: Decoder layers that are run before states are taken (`Feature.layer`).
        dim: Width of linear heads; None for none.
        dimensions: Numbers of leading dimensions that shall be embeddings by themselves (`at`).
        negatives: Whether rows list texts that are false of their image (column "negatives").

    Raises:
        ValueError: Naming the owner and what has no meaning.
    """

    def __init__(
        self,
        owner: str,
        *,
        image: str = "image",
        text: str = "chosen",
        image_prompt: str | None = None,
        text_prompt: str | None = None,
        pooling: str = "last",
        layer: int | float | None = None,
        dim: int | None = None,
        dimensions: Sequence[int] = (),
        negatives: bool = False,
    ) -> None:
        super().__init__()
        if image not in (*IMAGES, "prompt"):
            raise ValueError(f"{owner}: image must be {' or '.join(map(repr, IMAGES))} or 'prompt', got {image!r}")
        if not text or text in IMAGES:
            raise ValueError(f"{owner}: text must be a column of texts, got {text!r}")
        if pooling not in POOLINGS:
            raise ValueError(f"{owner}: pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
        _check_own_prompt(owner, image, text, image_prompt, text_prompt)
        if text_prompt is None and text not in (*TEXTS, "prompt"):
            raise ValueError(
                f"{owner}: column {text!r} is no response, it is read before an instruction: set text_prompt"
            )
        if negatives and text_prompt is None:
            raise ValueError(f"{owner}: negatives are read before an instruction: give text_prompt")
        if negatives and pooling == "query":
            raise ValueError(f"{owner}: pooling 'query' takes one text a row: leave negatives out, or pool otherwise")
        if dim is not None and (isinstance(dim, bool) or not isinstance(dim, int) or dim < 1):
            raise ValueError(f"{owner}: dim must be a whole number above 0, or nothing for no heads, got {dim!r}")
        self.owner, self.image, self.text, self.pooling, self.dim = owner, image, text, pooling, dim
        self.dimensions = _ascending(owner, dimensions)
        taken = "tokens" if pooling == "query" else pooling
        seen = Feature(f"image:{image}", "projector", image)
        if image_prompt is not None or image == "prompt":
            name = _named(f"image:{image}", pooling, layer, image_prompt, IMAGE_PROMPT)
            seen = Feature(name, "embedding", image, layer, taken, prompt=image_prompt)
        read = Feature(_named(f"text:{text}", pooling, layer), "text", text, layer, taken)
        if text_prompt is not None or text == "prompt":
            name = _named(f"text:{text}", pooling, layer, text_prompt, TEXT_PROMPT)
            read = Feature(name, "embedding", text, layer, taken, prompt=text_prompt)
        name = _named("text:negatives", pooling, layer, text_prompt, TEXT_PROMPT)
        false = Feature(name, "embedding", "negatives", layer, taken, prompt=text_prompt, several=True)
        self.sides = {"image": seen, "text": read}
        self.false = false if negatives else None
        self.heads = nn.ModuleDict()

    @property
    def options(self) -> dict[str, Any]:
        """Those of the sides, without the objective's name."""
        return {name: value for name, value in super().options.items() if name != "owner"}

    @property
    def features(self) -> tuple[Feature, ...]:
        """What is measured: image, text, and where wanted the negatives."""
        return (*self.sides.values(), *([self.false] if self.false is not None else []))

    @property
    def embedding(self) -> Embedding:
        """How an image and a text are embedded after training."""
        heads = {side: head for side, head in self.heads.items() if isinstance(head, EmbeddingHead)}
        return Embedding(self.sides, heads, self.dimensions)

    def set_widths(self, widths: Mapping[str, int]) -> None:
        """Makes the heads; a second call changes nothing.

        Raises:
            ValueError: If a dimension that is asked for is not there.
        """
        for side, feature in self.sides.items():
            query = feature.pooling == "tokens"
            if side not in self.heads and (query or self.dim is not None):
                self.heads[side] = EmbeddingHead(widths[feature.name], self.dim, query)
        width = self.dim or widths[self.sides["text"].name]
        if self.dimensions and self.dimensions[-1] > width:
            raise ValueError(f"{self.owner}: dimensions go up to {self.dimensions[-1]}, the vectors to {width}")

    def forward(self, policy: Signals, *, slow: bool = False) -> Compared | None:
        """The vectors of a batch in float32 at least; None where no row has an image, or none a text.

        `slow` reads the features called "slow ...", which are a slower model's.

        Raises:
            ValueError: If the signals do not tell how many rows there are, a row has several texts, or heads are not
                made yet.
        """
        size = len(policy.sources)
        names = {side: f"slow {each.name}" if slow else each.name for side, each in self.sides.items()}
        found = {side: policy.features.get(name) for side, name in names.items()}
        if not size and any(each is not None and each.row.numel() for each in found.values()):
            raise ValueError(
                f"{self.owner}: the signals do not tell how many rows there are: give sources, one per row"
            )
        image, text = found["image"], found["text"]
        rows = {side: rows_of_entries(policy, name) for side, name in names.items()}
        if image is None or text is None or not all(rows.values()):
            return None
        self._refuse_several(policy, rows["text"])
        images, texts = self._table("image", image, rows["image"], size), self._table("text", text, rows["text"], size)
        both = sorted(set(rows["image"]) & set(rows["text"]))
        anchors = sent(torch.tensor(both, dtype=torch.long), images.device)
        present = torch.zeros(size, dtype=torch.bool, device=images.device).index_fill(0, anchors, True)
        false = policy.features.get(self.false.name) if self.false is not None and not slow else None
        read = {side: ids_by_row(policy, name, size) for side, name in names.items()}
        listed = [] if false is None or self.false is None else ids_of_entries(policy, self.false.name)
        true = true_pairs(read["image"], list(enumerate(read["text"])), listed)
        told = any(map(any, read.values()))
        ids = Ids.of(read["image"], read["text"], true, images.device) if told else None
        if false is None or self.false is None:
            return Compared(images, texts, present, anchors, texts[:0], text.row[:0], ids)
        owners = rows_of_entries(policy, self.false.name)
        own = set(true)
        lists = {row for place, row in enumerate(owners) if (row, place) not in own}
        negatives = self._vectors("text", false.values)
        return Compared(images, texts, present, anchors, negatives, false.row, ids, tuple(sorted(lists & set(both))))

    def _refuse_several(self, policy: Signals, rows: list[int]) -> None:
        """Of several texts of one row all but the last would be lost; tokens are told apart by row alone."""
        if self.sides["text"].pooling == "tokens" or len(set(rows)) == len(rows):
            return
        row = next(row for place, row in enumerate(rows) if row in rows[:place])
        name = f" ({policy.row_ids[row]!r})" if policy.row_ids else ""
        raise ValueError(
            f"{self.owner}: row {row} of the batch{name} has {rows.count(row)} texts in column {self.text!r}, and one "
            "of each row is compared: give it one, or a row for each (in a recipe `route_captions` draws one)"
        )

    def _table(self, side: str, ragged: Ragged, rows: list[int], size: int) -> Tensor:
        """(size, d) vectors by row."""
        if self.sides[side].pooling == "tokens":
            own = sorted(set(rows))
            values, there = padded(ragged.values, places_by_row(rows, own))
            vectors, places = self._head(side)(values, there), sent(torch.tensor(own), ragged.values.device)
        else:
            vectors, places = self._vectors(side, ragged.values), ragged.row
        table = torch.zeros(size, vectors.shape[1], dtype=vectors.dtype, device=vectors.device)
        return table.index_copy(0, places, vectors)

    def _vectors(self, side: str, values: Tensor) -> Tensor:
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        return values if self.dim is None else self._head(side)(values)

    def _head(self, side: str) -> nn.Module:
        if side not in self.heads:
            raise ValueError(f"{self.owner}: its heads are not made: call set_widths with the width of each feature")
        return self.heads[side]


def _check_own_prompt(owner: str, image: str, text: str, image_prompt: str | None, text_prompt: str | None) -> None:
    """Refuses options that do not go with a side that is the row's own prompt."""
    if image == "prompt" and image_prompt is not None:
        raise ValueError(f"{owner}: the row's own prompt is read as it is: leave image_prompt out")
    if text == "prompt" and text_prompt is not None:
        raise ValueError(f"{owner}: the row's own prompt is read as it is: leave text_prompt out")
    if text == "prompt" and image != "contrast_image":
        # A contrast of a picture with what has seen it learns nothing.
        raise ValueError(
            f"{owner}: the row's own prompt shows its images, so as a text it is compared with 'contrast_image' "
            f"alone: set image to that, or text to another column (image is {image!r})"
        )


def _named(
    what: str, pooling: str, layer: int | float | None, prompt: str | None = None, usual: str | None = None
) -> str:
    """A name that says what is not usual: two objectives may read one column in two ways, which are two features."""
    parts = [what, *([pooling] if pooling != "last" else []), *([f"layer {layer}"] if layer is not None else [])]
    return " ".join([*parts, *([repr(prompt)] if prompt not in (None, usual) else [])])


def _ascending(owner: str, dimensions: Sequence[int]) -> tuple[int, ...]:
    found = tuple(dimensions)
    whole = all(isinstance(each, int) and not isinstance(each, bool) and each > 0 for each in found)
    if not whole or list(found) != sorted(set(found)):
        raise ValueError(f"{owner}: dimensions must be whole numbers above 0 that rise, got {list(dimensions)!r}")
    return found
