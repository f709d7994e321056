"""What an objective declares: views, features, whether there is a reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from mllm_align.contract.teacher import Teacher


class View(NamedTuple):
    """One (image column or None, response column) pairing whose response is scored.

    `image` is a canonical column name (`"image"`, `"contrast_image"`) or None: the prompt is then rendered without
    any image placeholder. `response` is `"chosen"` or `"rejected"`.
    """

    image: str | None
    response: str

    def __str__(self) -> str:
        return f"{self.response}|{self.image or 'no_image'}"


IMAGE_COLUMNS = ("image", "contrast_image")


class Feature(NamedTuple):
    """A named tensor taken from the model or from a teacher.

    `source` is one of projector, text, embedding, teacher; `column` the column it is taken of; `layer` how far into
    the decoder, or None for its output; `pooling` the name of a pooling. The engine measures

    - "projector": pooling "mean" over the tokens of the row's images, of width d of the language model, "tokens", all
      of them, "regions", a mean for each region on them by how much of a token's area it covers, or "region_tokens",
      an entry for each token that a region covers, be it in part, region after region (`Regions.num_tokens`);
    - "text": the last layer's hidden states over a response, read in a pass without image, pooling "mean", "last" or
      "tokens"; or, with an image column, the last one over what each region is called (pooling "regions", zero where
      it is called nothing), or over what it is said not to be or to be, too (pooling "negatives" or "positives", an
      entry for each); or all states over what each region is called ("region_tokens", `Regions.num_words`);
    - "embedding": the language model's hidden states over a prompt about one column alone, `prompt` behind what is in
      it: images, a text read without any image, or, of column "prompt", the row's own messages with their images, to
      which nothing is added. Pooling "last" is the state that would predict an answer, "mean" the mean over the tokens
      of the prompt, "tokens" all of them. With `several` a column may hold any number of texts, and has an entry for
      each, in order;
    - "teacher": what `teacher`, a frozen model beside it, makes of an image column, pooling "mean" over the row's
      images, or "regions", aligned with those of the model, without a gradient.

    With `momentum` a feature is that of a slow copy of what trains, which follows it at that rate a step, without a
    gradient. Of texts and embeddings `layer` is the number of decoder layers that have been run, from 0 for what goes
    into the first, or a share of them between 0 and 1; None is the last one's normalised output.
    """

    name: str
    source: str
    column: str
    layer: int | float | None = None
    pooling: str = "mean"
    teacher: Teacher | None = None
    momentum: float | None = None
    prompt: str | None = None
    several: bool = False

    @property
    def of_phrases(self) -> bool:
        """Whether it is of texts of regions: what they are called, or what they are not."""
        return self.source == "text" and self.pooling in ("regions", "negatives", "positives", "region_tokens")

    @property
    def of_regions(self) -> bool:
        """Whether it is of regions on images, or of their texts."""
        return self.of_phrases or self.pooling in ("regions", "region_tokens")

    @property
    def view(self) -> View | None:
        """What is read for it, of which nothing is scored; None where it takes nothing of the language model, or what
        regions are called."""
        if self.source == "embedding":
            shown = "image" if self.column == "prompt" else self.column if self.column in IMAGE_COLUMNS else None
            return View(shown, f"<{self.column}> {self.prompt or ''}")
        return View(None, self.column) if self.source == "text" and not self.of_phrases else None


@dataclass(frozen=True)
class Needs:
    """What an objective declares.

    Args:
        views: Views that every row of the objective must have; a row without their columns is an error.
        optional: Views that are measured only for the rows that have their columns.
        features: Tensors to extract beside the log-probabilities.
        reference: Whether the same views are also scored under the frozen reference.
        tokens: Whether per-token log-probabilities and the tokens' ids are wanted (`Signals.token_logps`,
            `Signals.host_token_ids`).
    """

    views: tuple[View, ...] = ()
    optional: tuple[View, ...] = ()
    features: tuple[Feature, ...] = ()
    reference: bool = False
    tokens: bool = False

    def __or__(self, other: Needs) -> Needs:
        """The union: shared views and features are measured once."""
        views = tuple(dict.fromkeys(self.views + other.views))
        return Needs(
            views=views,
            optional=tuple(v for v in dict.fromkeys(self.optional + other.optional) if v not in views),
            features=tuple(dict.fromkeys(self.features + other.features)),
            reference=self.reference or other.reference,
            tokens=self.tokens or other.tokens,
        )
