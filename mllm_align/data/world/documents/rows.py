"""Training rows: a page, a question, the word on it, and the same page with another word there."""

from __future__ import annotations

from typing import Any

from mllm_align.data.world.documents.asking import iter_documents
from mllm_align.data.world.documents.drawing import draw, words
from mllm_align.data.world.documents.sheets import Look, Sheet


def document_rows(
    num_rows: int,
    seed: int = 0,
    split: str = "train",
    paper: str = "small",
) -> list[dict[str, Any]]:
    """Rows `{id, image, prompt, chosen, contrast_image, rejected, objects, contrast_objects, kind}`.

    `chosen` stands on `image`, `rejected` on `contrast_image`: the same page but for one cell (and an invoice's sum),
    moved by some pixels. `objects` are the words with their boxes; the same word in the same place of both pages has
    the same `object_id`. `kind` is form, table or invoice.
    """
    stream = iter_documents(split, seed, paper)
    rows = []
    for _ in range(num_rows):
        pair = next(stream)
        (first, second), looks = pair.sheets, pair.looks
        rows.append(
            {
                "id": f"document/{pair.id}",
                "image": draw(first, looks[0]),
                "prompt": pair.text,
                "chosen": pair.answers[0],
                "contrast_image": draw(second, looks[1]),
                "rejected": pair.answers[1],
                "objects": objects_of(first, looks[0]),
                "contrast_objects": objects_of(second, looks[1]),
                "kind": pair.kind,
            }
        )
    return rows


def objects_of(sheet: Sheet, look: Look) -> list[dict[str, Any]]:
    """The column `objects` of a page."""
    return [
        {"box": list(word.box), "text": word.text, "object_id": f"{word.line}.{word.cell}.{word.place} {word.text}"}
        for word in words(sheet, look)
    ]
