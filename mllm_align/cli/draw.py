"""`data check --draw`: one picture per row of its regions and of their weights over a model's image tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any


def draw_rows(rows: Any, model: str, folder: str | Path, count: int) -> list[Path]:
    """Writes a PNG for each of the first rows, and replaces none.

    Args:
        rows: Of canonical columns, with `objects`.
        model: Whose processor and geometry are used: Hub id or folder, or demo-base.
        folder: Where the pictures go.
        count: How many rows.

    Raises:
        FileExistsError: If a picture is there already; nothing is written then.
        ValueError: If no row has objects, or a row cannot be read.
    """
    from transformers import AutoConfig

    from mllm_align.data.pixels import ImageEncoder
    from mllm_align.data.schema import parse_row
    from mllm_align.families import family_of
    from mllm_align.models import load_processor, model_path
    from mllm_align.vision import RegionWeights

    if count < 1:
        raise ValueError(f"--draw-rows must be at least 1, not {count}")
    parsed = [parse_row(row, number) for number, row in enumerate(islice(iter(rows), count))]
    if not any(any(found) for row in parsed for found in row.objects.values()):
        raise ValueError(f"none of the first {len(parsed)} rows has objects: give a column 'objects' with boxes")
    paths = [Path(folder) / _file_name(number, row.id) for number, row in enumerate(parsed)]
    there = [path for path in paths if path.exists()]
    if there:
        raise FileExistsError(f"{there[0]} exists: name another folder with --draw")
    name = model_path(model)
    processor, config = load_processor(name), AutoConfig.from_pretrained(name)
    family = family_of(config)
    weigh = RegionWeights(family, processor.image_processor, config)
    encode = ImageEncoder(processor, family.image_keys)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for path, row in zip(paths, parsed, strict=True):
        picture = _picture(row, encode, weigh)
        with path.open("xb") as file:
            picture.save(file, format="PNG")
    return paths


def _file_name(number: int, identifier: str | None) -> str:
    name = re.sub(r"\W+", "_", identifier or "").strip("_")[:80]
    return f"{number:04d}{f'_{name}' if name else ''}.png"


def _picture(row: Any, encode: Any, weigh: Any) -> Any:
    from mllm_align.vision.drawing import stack

    parts = list(_images(row, encode, weigh))
    if not parts:
        raise ValueError(f"{row.name}: no image to draw")
    prompt = " ".join(
        part["text"] for message in row.messages for part in message["content"] if part["type"] == "text"
    )
    said = ", ".join(f"{name}: {text}" for name, text in row.responses.items())
    title = f"{prompt[:120]} [{said[:80]}]"
    return stack([(f"{title}  {parts[0][0]}", parts[0][1]), *parts[1:]])


def _images(row: Any, encode: Any, weigh: Any) -> Iterator[tuple[str, Any]]:
    """The images that objects lie on; without any, the row's own."""
    import torch

    from mllm_align.data.images import load_image
    from mllm_align.vision.drawing import draw_regions

    for column in row.objects or ("image",):
        images = row.images_of(column) or ()
        for place, value in enumerate(images):
            own = [each for each in row.objects.get(column, ()) if each.image == place]
            image = load_image(value, f"{row.name}, column {column!r}")
            encoded = encode(image, len(images) > 1)
            grids = weigh.family.token_grids(encoded.tensors, encoded.size, weigh.image_processor, weigh.config)
            weights = weigh(encoded, own) if own else torch.zeros(0, max(grid.stop for grid in grids))
            names = [each.text or each.object_id or each.kind for each in own]
            lost = int((weights.sum(dim=1) == 0).sum())
            title = f"{column} {place}: {len(own)} regions" + (
                f", {lost} of them not seen by the model" if lost else ""
            )
            yield title, draw_regions(image, own, names, grids, weights)
