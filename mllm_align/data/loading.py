"""Rows from files, folders and the Hub, and several sources as one dataset."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from mllm_align.data.annotations import FEATURES
from mllm_align.data.errors import DataError
from mllm_align.data.schema import UNREADABLE
from mllm_align.data.shards import files_with_content
from mllm_align.data.sources import column_types, converter, reader
from mllm_align.data.world import (
    caption_rows,
    correspondence_rows,
    document_rows,
    instruction_rows,
    pair_rows,
    reference_rows,
)

BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
WORLD = "world:"
# What makes the rows, which of its arguments a source's `distribution` is, and the usual value.
WORLD_ROWS: dict[str, tuple[Callable[..., list[dict[str, Any]]], str, str]] = {
    "world:pairs": (pair_rows, "distribution", "balanced"),
    "world:instructions": (instruction_rows, "distribution", "prior"),
    "world:correspondence": (correspondence_rows, "difficulty", "medium"),
    "world:documents": (document_rows, "paper", "small"),
    "world:captions": (caption_rows, "distribution", "balanced"),
    "world:references": (reference_rows, "distribution", "balanced"),
}
IMAGE_COLUMNS = ("image", "images", "contrast_image")


def load_rows(
    path_or_id: str | os.PathLike[str],
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    streaming: bool = False,
    source: str | None = None,
    row_format: str | None = None,
    image_folder: str | os.PathLike[str] | None = None,
    name: str | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """Load rows; images stay encoded until they are needed.

    Args:
        path_or_id: A .json, .jsonl or .parquet file, a folder (of `Dataset.save_to_disk`, of such files, or of images
            with a metadata file), the id of a dataset on the Hub, or rows of the rendered world (`world_rows`).
        split: Which split; needed only where there are several and none is called "train".
        columns: Names of columns as `{canonical: theirs}`.
        streaming: Read row by row, without a local copy.
        source: Adds a `source` column with this name.
        row_format: Name of a public row format (`mllm_align.data.sources`) to convert from. A row that is none is an
            error where it is read, not here.
        image_folder: Where relative image paths begin; for a local file, its own folder by default.
        name: Configuration of a Hub dataset.

    Raises:
        DataError: If there is no such file, dataset, split or column, or the file cannot be read.
    """
    path = Path(path_or_id).expanduser()
    if str(path_or_id).startswith(WORLD):
        dataset: Any = world_rows(str(path_or_id), split=split)
    elif row_format is not None and path.exists() and reader(row_format) is not None:
        dataset = _from_files(path, row_format, streaming)
        row_format = None
    else:
        dataset = _one_split(_read(path, str(path_or_id), split, streaming, name), split, str(path_or_id))
    dataset = undecoded(dataset)
    if columns:
        dataset = _rename(dataset, columns, str(path_or_id))
    if row_format is not None:
        dataset = _converted(dataset, row_format, streaming)
    folder = Path(image_folder) if image_folder is not None else (path if path.is_dir() else path.parent)
    if image_folder is not None or path.exists():
        dataset = dataset.map(partial(_resolve, folder=str(folder.absolute())), **_quiet(streaming, "image paths"))
    if source is not None:
        dataset = dataset.map(partial(_tag, source=source), **_quiet(streaming, "source"))
    return dataset


def world_rows(
    path: str,
    num_rows: int | None = None,
    seed: int = 0,
    distribution: str | None = None,
    split: str | None = None,
) -> datasets.Dataset:
    """Rows of the rendered world.

    Args:
        path: "world:pairs" (`pair_rows`), "world:instructions" (`instruction_rows`), "world:correspondence"
            (`correspondence_rows`), "world:documents" (`document_rows`), "world:captions" (`caption_rows`) or
            "world:references" (`reference_rows`).
        num_rows: How many; 1,000 by default.
        seed: Which.
        distribution: Of the scenes; with the prior for instructions, balanced for the others by default. Of
            correspondence the difficulty: easy, medium (the default) or hard; of documents the paper: small (the
            default) or large.
        split: Of the world; train by default.

    Raises:
        ValueError: If the world has no such rows, distribution or split.
    """
    if path not in WORLD_ROWS:
        raise DataError(f"{path!r}: the world gives {', '.join(WORLD_ROWS)}")
    make, argument, usual = WORLD_ROWS[path]
    rows = make(num_rows or 1000, seed, split or "train", **{argument: distribution or usual})
    return datasets.Dataset.from_list(rows)


def undecoded(dataset: Any) -> Any:
    """The same dataset with `datasets.Image` columns left encoded.

    Images are then decoded once, where they are used, and a broken one is an error that names its row.
    """
    features = getattr(dataset, "features", None)
    if not isinstance(dataset, datasets.Dataset | datasets.IterableDataset) or features is None:
        return dataset
    changed = {name: _encoded(feature) for name, feature in features.items()}
    for name, feature in changed.items():
        if feature != features[name]:
            dataset = dataset.cast_column(name, feature)
    return dataset


def _encoded(feature: Any) -> Any:
    if isinstance(feature, datasets.Image):
        return datasets.Image(mode=feature.mode, decode=False)
    if isinstance(feature, datasets.List):
        return datasets.List(_encoded(feature.feature), length=feature.length)
    return feature


def _read(path: Path, given: str, split: str | None, streaming: bool, name: str | None) -> Any:
    try:
        if path.is_file():
            if path.suffix not in BUILDERS:
                raise DataError(f"{given}: rows are read from {', '.join(BUILDERS)} files, not this")
            if not path.stat().st_size or (path.suffix == ".parquet" and not pq.read_metadata(path).num_rows):
                raise DataError(f"{given} is empty: it has no rows")
            return datasets.load_dataset(BUILDERS[path.suffix], data_files=str(path), streaming=streaming)
        if path.is_dir():
            if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
                saved = datasets.load_from_disk(str(path))
                return _streamed(saved) if streaming else saved
            files = files_with_content(path, BUILDERS)
            return datasets.load_dataset(str(path), data_files=files, streaming=streaming)
        if given.startswith((".", "/", "~")) or path.suffix in BUILDERS or given.count("/") > 1:
            raise DataError(f"there is no file or folder {given}")
        return datasets.load_dataset(given, name, split=split, streaming=streaming)
    except (DatasetNotFoundError, ConnectionError) as error:
        raise DataError(f"{given} is neither a file nor a dataset on the Hub in reach: {error}") from error
    except FileNotFoundError as error:
        raise DataError(f"folder {given} holds no data files: {error}") from error
    except (DatasetGenerationError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{given} cannot be read as a table of rows: {error.__cause__ or error}") from error


def _streamed(saved: Any) -> Any:
    if isinstance(saved, datasets.DatasetDict):
        return {name: part.to_iterable_dataset() for name, part in saved.items()}
    return saved.to_iterable_dataset()


def _from_files(path: Path, row_format: str, streaming: bool) -> Any:
    """The canonical rows of files that are no tables, written to a table once (kept until the files change)."""
    files = [path, *(sorted(path.glob("*.json")) if path.is_dir() else ())]
    state = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    kind: Any = datasets.IterableDataset if streaming else datasets.Dataset
    given = {"path": str(path), "row_format": row_format} | ({} if streaming else {"state": [state]})
    try:
        return kind.from_generator(_canonical, gen_kwargs=given, features=FEATURES)
    except DatasetGenerationError as error:
        raise DataError(f"{path}: {error.__cause__ or error}") from error


def _canonical(path: str, row_format: str, state: Any = None) -> Iterator[dict[str, Any]]:
    read, convert = reader(row_format), converter(row_format)
    assert read is not None
    for row in read(Path(path)):
        yield convert(row)


def _one_split(loaded: Any, split: str | None, given: str) -> Any:
    if not isinstance(loaded, Mapping):
        return loaded
    wanted = split or ("train" if "train" in loaded else next(iter(loaded)) if len(loaded) == 1 else None)
    if wanted not in loaded:
        raise DataError(f"{given} has the splits {', '.join(loaded)}; {f'not {split!r}' if split else 'name one'}")
    return loaded[wanted]


def _rename(dataset: Any, columns: Mapping[str, str], given: str) -> Any:
    present = dataset.column_names
    if present is None:  # a stream whose first row has not been read
        return dataset.map(partial(_renamed, columns=columns, given=given))
    _check_columns(columns, present, given)
    changed = {theirs: canonical for canonical, theirs in columns.items() if theirs != canonical}
    replaced = [name for name in changed.values() if name in present and name not in changed]
    return dataset.remove_columns(replaced).rename_columns(changed)


def _check_columns(columns: Mapping[str, str], present: Sequence[str], given: str) -> None:
    for canonical, theirs in columns.items():
        if theirs not in present:
            near = get_close_matches(theirs, present, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(f"{given}: columns maps {canonical!r} to {theirs!r}; it has {', '.join(present)}{hint}")


def _renamed(row: dict[str, Any], columns: Mapping[str, str], given: str) -> dict[str, Any]:
    _check_columns(columns, list(row), given)
    return {**dict.fromkeys(columns.values()), **{canonical: row[theirs] for canonical, theirs in columns.items()}}


def _converted(dataset: Any, row_format: str, streaming: bool) -> Any:
    types = column_types(row_format, dataset.features)
    features = None if types is None else datasets.Features({**types, UNREADABLE: datasets.Value("string")})
    convert = partial(_convert, convert=converter(row_format), columns=tuple(features or ()))
    return dataset.map(convert, batched=True, features=features, **_quiet(streaming, row_format))


def _convert(
    batch: dict[str, list[Any]], convert: Callable[[Mapping[str, Any]], dict[str, Any]], columns: Sequence[str]
) -> dict[str, list[Any]]:
    """Canonical rows alone: columns of the other format become None, which counts as absent.

    A row that is none of the format keeps its place and says why in a column of its own, which `parse_row` raises: who
    reads the rows decides what becomes of it.
    """
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    found = []
    for row in rows:
        try:
            # Text, also where there is nothing to say: a column of None alone has no type.
            found.append({**convert(row), UNREADABLE: ""})
        except DataError as error:
            found.append({UNREADABLE: str(error)})
    names = dict.fromkeys([*batch, *columns, *(name for row in found for name in row)])
    return {name: [row.get(name) for row in found] for name in names}


def _resolve(row: dict[str, Any], folder: str) -> dict[str, Any]:
    """Relative image paths of a row, made absolute."""
    return {column: _absolute(row[column], folder) for column in IMAGE_COLUMNS if row.get(column) is not None}


def _absolute(value: Any, folder: str) -> Any:
    if isinstance(value, list):
        return [_absolute(entry, folder) for entry in value]
    if isinstance(value, str) and not value.startswith(("http://", "https://")):
        return os.path.normpath(os.path.join(folder, os.path.expanduser(value)))
    if isinstance(value, dict) and value.get("bytes") is None and value.get("path"):
        return {**value, "path": _absolute(value["path"], folder)}
    return value


def _tag(row: dict[str, Any], source: str) -> dict[str, str]:
    return {"source": source}


def _quiet(streaming: bool, what: str) -> dict[str, Any]:
    """Arguments of `map` that only tables take."""
    return {} if streaming else {"desc": what}
