"""Finding the model that a trained embedding belongs to."""

from __future__ import annotations

import os
from typing import Any

from mllm_align.encoding.files import KeptEmbedding, file_of, load_embedding
from mllm_align.models import load_model


def load_parts(
    folder: str | os.PathLike[str], base: str | os.PathLike[str] | None = None, **overrides: Any
) -> tuple[KeptEmbedding, Any, Any]:
    """What is kept of an embedding, the model beside it, and its processor.

    Args:
        folder: Folder or Hub id, of an adapter or of a whole model.
        base: The base of an adapter, if not the one that it names.
        **overrides: Of `load_model`.

    Raises:
        ValueError: If no embedding is there, a whole model is given a base, or the model cannot be loaded.
    """
    kept = load_embedding(folder)
    name = os.fspath(folder)
    if file_of(name, "adapter_config.json") is None:
        if base is not None:
            raise ValueError(f"{name!r} is a whole model, which has no base: leave base out")
        return kept, *load_model(name, **overrides)
    return kept, *load_model(base or base_of(name), name, **overrides)


def base_of(adapter: str) -> str:
    """Folder or Hub id of the base that an adapter names.

    Raises:
        ValueError: If it names none.
    """
    from peft import PeftConfig

    found = PeftConfig.from_pretrained(adapter).base_model_name_or_path
    if not found:
        raise ValueError(f"the adapter in {adapter!r} does not name its base: give base")
    return found
