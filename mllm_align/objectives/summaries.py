"""Both sides of a contrast as summaries: states at the end of an instruction, where nothing else is asked for."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from mllm_align.contract import Embedding, Feature, Signals
from mllm_align.objectives.host import sent
from mllm_align.objectives.identity import ids_by_row, ids_of_entries, marked, true_pairs
from mllm_align.objectives.info_nce import InfoNCE
from mllm_align.objectives.options import WithOptions
from mllm_align.objectives.padding import rows_of_entries
from mllm_align.objectives.pairs import IMAGE_PROMPT, TEXT_PROMPT, Compared, Pairs

# The text of a contrast by summaries: a column that is read before an instruction, and so needs no prompt of its row.
TEXT = "caption"
PARAPHRASES = "positives"
OPTIONS = ("image", "text", "image_prompt", "text_prompt", "pooling", "layer", "dim")


class AroundContrast(WithOptions):
    """An objective with one contrast of images and texts and other terms beside it.

    Attributes:
        contrast: The contrast, whose embedding stays after training.
    """

    contrast: InfoNCE

    @property
    def embedding(self) -> Embedding:
        """How an image and a text are embedded after training."""
        return self.contrast.embedding

    def set_widths(self, widths: Mapping[str, int]) -> None:
        """Makes the heads, if there are any.

        Args:
            widths: Of each feature, by name.
        """
        self.contrast.set_widths(widths)


def summaries(owner: str, options: Mapping[str, Any]) -> Pairs:
    """The sides of an objective that compares one vector of each row's image with one of its text.

    Args:
        owner: Name of the objective, for errors.
        options: Of `Pairs`: image, text, image_prompt, text_prompt, pooling, layer, dim; without a word on them, the
            text is column TEXT, and the instructions are IMAGE_PROMPT and TEXT_PROMPT, or none where a side is the
            row's own prompt.

    Raises:
        ValueError: If there is no such option, or `Pairs` refuses it.
    """
    unknown = [name for name in options if name not in OPTIONS]
    if unknown:
        raise ValueError(f"{owner} has no option {unknown[0]!r} (of its sides: {', '.join(OPTIONS)})")
    return Pairs(owner, **{**usual(options), **options})


def usual(options: Mapping[str, Any]) -> dict[str, str | None]:
    """Text and prompts of both sides where options of `Pairs` say nothing of them; no prompt for the row's own."""
    return {
        "text": TEXT,
        "image_prompt": None if options.get("image") == "prompt" else IMAGE_PROMPT,
        "text_prompt": None if options.get("text") == "prompt" else TEXT_PROMPT,
    }


def info_nce_with(
    owner: str, options: Mapping[str, Any], chosen: Mapping[str, Any], kept: Sequence[str] = ()
) -> InfoNCE:
    """The contrast of an objective that has others beside it.

    Args:
        owner: Name of the objective, for errors.
        options: Of `InfoNCE`, as they were given.
        chosen: Those that the objective has where they are not given.
        kept: Names of options that are not to be given.

    Raises:
        ValueError: If there is no such option, or `InfoNCE` refuses it.
    """
    known = [name for name in inspect.signature(InfoNCE).parameters if name not in kept]
    unknown = [name for name in options if name not in known]
    if unknown:
        near = get_close_matches(unknown[0], known, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{owner} has no option {unknown[0]!r}{meant} (of its contrast: {', '.join(known)})")
    return InfoNCE(**{**chosen, **options})


def paraphrases_of(pairs: Pairs) -> Feature:
    """What is measured of further texts that are true of an image, column "positives", as the text side is read.

    Raises:
        ValueError: If that side is no text before an instruction, or is pooled of tokens.
    """
    side = pairs.sides["text"]
    if side.source != "embedding" or side.prompt is None:
        raise ValueError(f"{pairs.owner}: paraphrases are read before an instruction: give text_prompt")
    if side.pooling == "tokens":
        raise ValueError(f"{pairs.owner}: pooling 'query' takes one text a row, not paraphrases: pool otherwise")
    name = side.name.replace(f"text:{side.column}", f"text:{PARAPHRASES}", 1)
    return side._replace(name=name, column=PARAPHRASES, several=True)


def paraphrase_vectors(pairs: Pairs, policy: Signals, found: Compared) -> tuple[Tensor, Tensor]:
    """The vectors of the further texts of a batch.

    Args:
        pairs: The sides, whose head of the texts they go through.
        policy: Signals, with the feature `paraphrases_of` where a row has any.
        found: What `pairs` made of them.

    Returns:
        (P, d) vectors, not of unit length, and (P,) int64, the row of each.
    """
    ragged = policy.features.get(paraphrases_of(pairs).name)
    if ragged is None:
        return found.texts[:0], found.owner[:0]
    values = ragged.values.to(torch.promote_types(ragged.values.dtype, torch.float32))
    return pairs.heads["text"](values) if "text" in pairs.heads else values, ragged.row


def said_of(pairs: Pairs, policy: Signals, found: Compared) -> Tensor | None:
    """Which texts and paraphrases of a batch are no negatives of a row, though they are another's.

    They are those of rows that share its image or its text, and whatever reads as a text or paraphrase of a row with
    its image.

    Args:
        pairs: The sides.
        policy: Signals, with the feature `paraphrases_of` where a row has any.
        found: What `pairs` made of them.

    Returns:
        (B, B + P) bool, texts of rows first, a row's own among them; None where nobody told.
    """
    if found.ids is None:
        return None
    name, size = paraphrases_of(pairs).name, len(found.present)
    images, texts = (ids_by_row(policy, each.name, size) for each in (pairs.sides["image"], pairs.sides["text"]))
    owner = [*range(size), *rows_of_entries(policy, name)]
    listed = [*texts, *ids_of_entries(policy, name)]
    true = true_pairs(images, zip(owner, listed, strict=True), listed)
    device = found.present.device
    places = sent(torch.tensor(true, dtype=torch.long).reshape(-1, 2).T.contiguous(), device)
    of_rows = found.ids.alike()[:, sent(torch.tensor(owner), device)]
    return of_rows | marked(places, slice(0, size), slice(0, len(owner)))
