"""The data files of a folder, of which some may be empty: what a writer leaves that had nothing, or was killed."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

import datasets.data_files

from mllm_align.data.errors import DataError

logger = logging.getLogger(__name__)


def files_with_content(folder: Path, suffixes: Collection[str]) -> dict[str, list[str]] | None:
    """Per split the files that have a content; None where all have. A warning says how many have none.

    Args:
        folder: Laid out as `datasets.load_dataset` reads it.
        suffixes: Of files of rows.

    Raises:
        DataError: If no file of rows has a content.
    """
    found = [file for file in folder.rglob("*") if file.suffix in suffixes and file.is_file()]
    empty = {str(file.resolve()) for file in found if not file.stat().st_size}
    if not empty:
        return None
    if len(empty) == len(found):
        raise DataError(f"{folder}: its {len(empty)} files are empty: they have no rows")
    counts = folder, len(empty), len(found)
    logger.warning("%s: %d of %d files are empty and give no rows, such as %s", *counts, min(empty))
    patterns = datasets.data_files.get_data_patterns(str(folder))
    files = datasets.data_files.DataFilesDict.from_patterns(patterns, base_path=str(folder))
    kept = {split: [file for file in own if str(Path(file).resolve()) not in empty] for split, own in files.items()}
    return {split: own for split, own in kept.items() if own}
