"""Vectors of all texts and all pictures, made by all processes together and kept on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from mllm_align.data.processes import processes
from mllm_align.trainers.tower.dual import Dual, unit
from mllm_align.trainers.tower.rows import CaptionedImages


def kept(path: Path, count: int, compute: Callable[[range], np.ndarray]) -> np.ndarray:
    """What is in a file of vectors, memory-mapped; made first where there is none. A collective.

    Args:
        path: Of the .npy file.
        count: Of vectors.
        compute: Makes those of a range of numbers; each process is asked for its share.
    """
    world = processes()
    if not path.exists():
        share = count / world.num_processes
        own = range(round(world.process_index * share), round((world.process_index + 1) * share))
        parts = [path.with_name(f".{path.stem}.{rank}.npy") for rank in range(world.num_processes)]
        # A process without any would not know how long a vector is.
        if own:
            save_array(parts[world.process_index], compute(own))
        world.wait_for_everyone()
        if world.is_main_process:
            save_array(path, np.concatenate([np.load(part) for part in parts if part.exists()]))
            for part in parts:
                part.unlink(missing_ok=True)
    world.wait_for_everyone()
    return np.load(path, mmap_mode="r")


def save_array(path: Path, values: np.ndarray) -> None:
    """Writes a .npy file, whole or not at all."""
    draft = path.with_name(f"{path.name}.draft")
    with open(draft, "wb") as file:
        np.save(file, values)
    os.replace(draft, path)


def text_vectors(path: Path, dual: Dual, rows: CaptionedImages, batch_size: int) -> np.ndarray:
    """(T, d) float32 unit vectors of `rows.texts`; a collective."""

    def compute(part: range) -> np.ndarray:
        return dual.text_vectors([rows.texts[number] for number in part], batch_size)

    return kept(path, len(rows.texts), compute)


def picture_vectors(path: Path, dual: Dual, rows: CaptionedImages, batch_size: int, workers: int) -> np.ndarray:
    """(N, d) float32 unit vectors of the rows' pictures, each picture seen once; a collective."""
    _, first = np.unique(rows.picture, return_index=True)

    def compute(part: range) -> np.ndarray:
        wanted = Subset(rows, [int(first[number]) for number in part])
        loader = DataLoader(wanted, batch_size, num_workers=workers, collate_fn=_Read(dual))
        found = []
        with torch.inference_mode():
            for inputs in loader:
                placed = {key: value.to(dual.model.device) for key, value in inputs.items()}
                found.append(unit(dual.model.get_image_features(**placed)).cpu().numpy())
        return np.concatenate(found)

    return kept(path, len(first), compute)[rows.picture]


class _Read:
    """Joins what the tower reads of some rows."""

    def __init__(self, dual: Dual) -> None:
        self.reader = dual.reader()

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return self.reader([item["image"] for item in items])
