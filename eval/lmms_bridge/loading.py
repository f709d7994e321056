"""From `--model_args` to a model: what lmms-eval calls `pretrained` is whatever the package's loader takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mllm_align.models import ModelArguments, load_model

LOADING = (
    "dtype",
    "attn_implementation",
    "load_in_4bit",
    "bnb_4bit_quant_type",
    "use_bnb_nested_quant",
    "model_revision",
    "trust_remote_code",
)
ADAPTER_CONFIG = "adapter_config.json"
ENCODERS = "encoders"


def load(pretrained: str | None, adapter: str | None, device: str | None, arguments: Mapping[str, Any]) -> Any:
    """Model and processor; a mixer that lies beside the adapter, or the model, is attached.

    Args:
        pretrained: Hub id, folder, "demo-base", or the folder of a run that holds an adapter, which is then loaded on
            the base that it names.
        adapter: Folder or Hub id of an adapter; none or "" for the base alone.
        device: Where to; None or "cuda" is this process's own GPU where there is one.
        arguments: Fields of `ModelArguments`, of those in `LOADING`; and `encoders`, where the further vision encoders
            of a mixer are now, if they were moved: folders with semicolons between them.

    Raises:
        ValueError: If no model or an unknown argument is named, two adapters are, or as `load_model`.
    """
    stray = sorted(arguments.keys() - {*LOADING, ENCODERS})
    if stray:
        known = ", ".join(("pretrained", "adapter", ENCODERS, "batch_size", "device", *LOADING))
        raise ValueError(f"--model_args of mllm_align has no {', '.join(stray)}; there are {known}")
    if not pretrained:
        raise ValueError("--model_args needs pretrained=MODEL: a Hub id, a folder, or demo-base")
    base, own = _base_of(str(pretrained))
    if own and adapter:
        raise ValueError(f"{pretrained!r} is an adapter itself; name its base as pretrained, or leave adapter out")
    told = dict(arguments)
    encoders = str(told.pop(ENCODERS)).split(";") if told.get(ENCODERS) else None
    settings = ModelArguments(model_name_or_path=base, **told)
    # A bare "cuda" would put every process on the first GPU.
    where = None if device == "cuda" else device
    return load_model(settings, own or adapter or None, device=where, encoders=encoders)


def _base_of(pretrained: str) -> tuple[str, str | None]:
    """The base model, and the adapter where `pretrained` is the folder of one."""
    config = Path(pretrained) / ADAPTER_CONFIG
    if not config.is_file() or (config.parent / "config.json").exists():
        return pretrained, None
    base = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{config} names no base model: give that as pretrained, and {pretrained!r} as adapter")
    return base, pretrained
