"""MMVP-style questions from mined pairs: two pictures, one question, two answers (Tong et al. 2024, arXiv 2401.06209).

Rows are canonical preference rows (`mllm-align data counterfactual` makes them): `chosen` answers the prompt for
`image`, `rejected` for `contrast_image`. A row becomes two questions with the two answers as options (a) and (b), in
an order that is drawn, the same for both, so that a constant letter never gets a pair.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from random import Random
from typing import Any

from mllm_align.data.files import write_whole
from mllm_align.data.images import load_image
from mllm_align.data.schema import DataError, Row, parse_row

COLUMNS = ("Index", "Question", "Options", "Correct Answer")
LETTERS = ("(a)", "(b)")


def write_mined_pairs(rows: Iterable[Mapping[str, Any]], folder: Path, *, seed: int = 0) -> int:
    """Writes `Questions.csv` and `images/<n>.jpg`, which `--benchmark mmvp` reads, and returns the number of pairs.

    Args:
        rows: Canonical rows with image, contrast image, prompt, chosen and rejected.
        folder: Which is made; it is to be called `mmvp` to be found.
        seed: Of the order of the options.

    Raises:
        FileExistsError: If there is a Questions.csv.
        DataError: For a row that is no pair of two single pictures with one question and two different answers.
    """
    table = folder / "Questions.csv"
    if table.exists():
        raise FileExistsError(f"{table} exists: name another folder")
    pictures = folder / "images"
    pictures.mkdir(parents=True, exist_ok=True)
    rng, number = Random(seed), 0
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for index, raw in enumerate(rows):
        row = parse_row(raw, index)
        question, answers, images = _pair(row)
        order = (0, 1) if rng.random() < 0.5 else (1, 0)
        options = f"(a) {answers[order[0]]} (b) {answers[order[1]]}"
        for side, image in enumerate(images):
            number += 1
            writer.writerow([number, question, options, LETTERS[order.index(side)]])
            picture = load_image(image, f"{row.name}, picture {side + 1}")
            # The name has to be MMVP's; what tells the two pictures apart may be fine.
            picture.save(pictures / f"{number}.jpg", quality=100, subsampling=0)
    if not number:
        raise DataError("there are no rows to make questions of")
    # Last, so that a folder with a table is whole.
    write_whole(table, text.getvalue().encode())
    return number // 2


def _pair(row: Row) -> tuple[str, tuple[str, str], tuple[Any, Any]]:
    if len(row.images) != 1 or row.contrast_images is None or len(row.contrast_images) != 1:
        raise DataError(f"{row.name}: a question of a pair needs one image and one contrast image")
    if [turn["role"] for turn in row.messages] != ["user"]:
        raise DataError(f"{row.name}: a question of a pair is one user turn")
    chosen, rejected = (row.responses.get(name, "").strip() for name in ("chosen", "rejected"))
    if not chosen or not rejected or chosen == rejected:
        raise DataError(f"{row.name}: chosen and rejected must be two different answers")
    question = "".join(part["text"] for part in row.messages[0]["content"] if part["type"] == "text").strip()
    return " ".join(question.split()), (chosen, rejected), (row.images[0], row.contrast_images[0])
