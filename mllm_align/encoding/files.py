"""What is kept of a trained embedding beside a model's or an adapter's weights, and reading it back."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils.hub import cached_file

from mllm_align.contract import Embedding, EmbeddingHead, Feature
from mllm_align.models.export import EMBEDDING_FILES
from mllm_align.models.loading import model_path, nowhere

SETTINGS_FILE, WEIGHTS_FILE = EMBEDDING_FILES
VERSION = 1
SIDES = ("image", "text")
READ = ("source", "column", "layer", "pooling", "prompt")


class KeptEmbedding(NamedTuple):
    """An embedding as it lies beside a model, and the bounds of an image's pixels that it was trained with."""

    embedding: Embedding
    min_pixels: int | None = None
    max_pixels: int | None = None


def embedding_of(objective: Any) -> Embedding | None:
    """The embedding that an objective, or a part of one, has in an attribute `embedding`; None where none has.

    Args:
        objective: An objective; one that is no module keeps nothing.

    Raises:
        ValueError: If two parts have one and they are not the same.
    """
    parts = objective.modules() if isinstance(objective, nn.Module) else ()
    found = [own for part in parts if isinstance(own := getattr(part, "embedding", None), Embedding)]
    for other in found[1:]:
        if not _same(found[0], other):
            raise ValueError(
                "parts of the objective train two embeddings that are not the same, and one can be kept beside the "
                f"model: {_told(found[0])}; {_told(other)}. Give both the same options (and no heads of their own)"
            )
    return found[0] if found else None


def save_embedding(
    embedding: Embedding,
    folder: str | os.PathLike[str],
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> None:
    """Writes `embedding.json`, and `embedding.safetensors` where there are heads.

    Args:
        embedding: What an objective trains.
        folder: Where to, beside the weights of the model or the adapter.
        min_pixels: Least number of pixels of an image in training, where it was set.
        max_pixels: Largest, likewise.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    settings = {
        "version": VERSION,
        "sides": {side: {name: getattr(embedding.features[side], name) for name in READ} for side in SIDES},
        "heads": {side: head.options for side, head in embedding.heads.items()},
        "dimensions": list(embedding.dimensions),
        "min_pixels": min_pixels,
        "max_pixels": max_pixels,
    }
    weights = place / WEIGHTS_FILE
    tensors = {f"{side}.{name}": value for side, head in embedding.heads.items() for name, value in _state(head)}
    if tensors:
        save_file(tensors, weights)
    else:
        weights.unlink(missing_ok=True)  # of an earlier run, in a folder that is written over
    (place / SETTINGS_FILE).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def has_embedding(folder: str | os.PathLike[str]) -> bool:
    """Whether an embedding lies beside what is in a folder.

    Raises:
        ValueError: If it can be nothing but a folder, and is not there.
    """
    return (Path(model_path(os.fspath(folder))) / SETTINGS_FILE).is_file()


def load_embedding(folder: str | os.PathLike[str]) -> KeptEmbedding:
    """What lies beside a trained model, its heads in evaluation mode, on the CPU.

    Args:
        folder: Folder of a run, a checkpoint or an export, or a Hub id.

    Raises:
        ValueError: If there is no embedding, it cannot be read, or its weights do not fit.
    """
    name = os.fspath(folder)
    file = file_of(name, SETTINGS_FILE)
    if file is None:
        raise ValueError(
            f"no embedding in {name!r}: {SETTINGS_FILE} is missing{nowhere(model_path(name))}. Train with an "
            "objective of images and texts (such as InfoNCE), or measure the model as it is with Encoder.zero_shot "
            "(encode --zero-shot)"
        )
    try:
        settings: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if settings["version"] != VERSION:
            raise ValueError(f"it is of another version of mllm_align: it says {settings['version']!r}")
        features = {side: _feature(side, settings["sides"][side]) for side in SIDES}
        heads = {side: EmbeddingHead(**options) for side, options in settings["heads"].items()}
        if heads:
            _load_heads(heads, file_of(name, WEIGHTS_FILE))
        embedding = Embedding(features, heads, tuple(settings["dimensions"]))
        return KeptEmbedding(embedding, settings["min_pixels"], settings["max_pixels"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise ValueError(f"the embedding in {name!r} cannot be read: {reason}. Save it again") from None


def _feature(side: str, told: Mapping[str, Any]) -> Feature:
    return Feature(f"{side}:{told['column']}", **{name: told[name] for name in READ})


def _load_heads(heads: Mapping[str, EmbeddingHead], weights: Path | None) -> None:
    if weights is None:
        raise ValueError(f"{WEIGHTS_FILE} is missing")
    tensors = load_file(weights)
    for side, head in heads.items():
        start = f"{side}."
        head.load_state_dict(
            {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
        )
        head.eval()  # and not frozen: attention whose weights are rounds otherwise than in training


def file_of(name: str, file: str) -> Path | None:
    """Where a file of a model lies, in its folder or fetched from the Hub; None where there is none.

    Args:
        name: Folder, Hub id, or "demo-base" for the model that comes with the package.
        file: Name of the file.
    """
    name = model_path(name)
    if Path(name).is_dir():
        found = Path(name) / file
        return found if found.is_file() else None
    quietly = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    try:
        there = cached_file(name, file, **quietly)
    except (OSError, ValueError):  # no name of a repository either
        return None
    return None if there is None else Path(there)


def _state(head: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(name, value.detach().cpu().contiguous()) for name, value in head.state_dict().items()]


def _same(one: Embedding, other: Embedding) -> bool:
    """Equal in what is read, and with the very same heads."""
    heads = {side: id(head) for side, head in one.heads.items()}
    return (
        all(one.features[side]._replace(name="") == other.features[side]._replace(name="") for side in SIDES)
        and one.dimensions == other.dimensions
        and heads == {side: id(head) for side, head in other.heads.items()}
    )


def _told(embedding: Embedding) -> str:
    sides = (f"{side} of {_words(embedding.features[side])}" for side in SIDES)
    heads = "with heads" if embedding.heads else "without heads"
    return f"{' and '.join(sides)}, {heads}, dimensions {list(embedding.dimensions)}"


def _words(feature: Feature) -> str:
    return ", ".join(f"{name} {getattr(feature, name)!r}" for name in READ if getattr(feature, name) is not None)
