"""Captions that are scored for an image: what benchmarks of image-text matching share.

The contrastive protocol: a model gives each caption a score for the image, a similarity of embeddings or the
log-likelihood of the caption as the answer to a fixed prompt; the true caption must have the highest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mllm_align_eval.answers import Parsed, parse
from mllm_align_eval.items import Answer, Item, Picture
from mllm_align_eval.matrices import NUM_SCORES
from mllm_align_eval.metrics import Measures, by_split, mean

PROMPT = "Describe the image."


def caption_item(
    name: str,
    split: str,
    kind: str,
    cluster: str,
    picture: Picture,
    captions: Sequence[str],
    right: int,
    *,
    pair: str | None = None,
    truth: Mapping[str, Any] | None = None,
) -> Item:
    """A question whose answer is a row of scores, one per caption; `name` is its id, "<benchmark>/..."."""
    return Item(
        id=name,
        benchmark=name.split("/")[0],
        split=split,
        kind=kind,
        cluster=cluster,
        prompt=PROMPT,
        pictures=(picture,),
        choices=tuple(captions),
        answer=captions[right],
        pair=pair,
        truth={NUM_SCORES: len(captions), **(truth or {})},
    )


def read_as_is(text: str, item: Item) -> Parsed:
    """A text that names a caption; the metrics of these benchmarks take scores alone."""
    return parse(text, item)


def rows_of_scores(items: Sequence[Item], answers: Mapping[str, Answer]) -> dict[str, Sequence[float]]:
    """The scores of each item's captions by its id; empty where answers are texts, which no metric can be made of."""
    found = {item.id: answers[item.id].scores for item in items}
    return found if all(len(scores) for scores in found.values()) else {}


def beats_all(scores: Sequence[float], right: int) -> bool:
    """Whether one score is above all others; a tie is wrong."""
    return all(scores[right] > score for index, score in enumerate(scores) if index != right)


def is_level(scores: Sequence[float], right: int) -> bool:
    """Whether one score is level with the best of the others: the tie that makes it wrong."""
    return scores[right] == max(score for index, score in enumerate(scores) if index != right)


def tied_rows(items: Sequence[Item], answers: Mapping[str, Answer]) -> Measures:
    """By split, `<benchmark>/<split>/tied`, how often the right caption is level with the best of the others."""
    return {
        f"{members[0].benchmark}/{split}/tied": mean(
            members, lambda item: float(is_level(answers[item.id].scores, item.choices.index(item.answer)))
        )
        for split, members in by_split(items).items()
    }


def texts_of(row: Mapping[str, Any], columns: Iterable[str], where: str) -> list[str]:
    """The texts in some columns of a row; ValueError with `where` it is if one is missing or no text."""
    found = [row.get(column) for column in columns] if isinstance(row, Mapping) else [None]
    if not all(isinstance(text, str) for text in found):
        raise ValueError(f"{where}: not an object with the texts {', '.join(columns)}")
    return [str(text) for text in found]
