"""Which base model an adapter belongs to, told by its weights rather than by where they happened to lie."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mllm_align.families import family_of, unwrap

FILE_NAME = "base_model.json"
KEPT = "probe_of_embeddings"
PROBES_PER_TENSOR = 16
TOLERANCE = 2e-2  # bfloat16 keeps 8 bits: 4e-3 per value, and a checkpoint may have been rounded twice


def base_probe(model: nn.Module) -> dict[str, list[float]]:
    """A few weights of the base that no quantisation touches: input embeddings, projector, last norm.

    Args:
        model: The model, wrapped in adapters or not; adapters and trained copies are left out.

    Returns:
        Parameter name to evenly spaced values, as float32.
    """
    hf = unwrap(model)
    family = family_of(hf)
    embeddings = _embeddings(hf)
    probe = {}
    for raw, parameter in hf.named_parameters():
        if "lora_" in raw or ".modules_to_save." in raw or not parameter.is_floating_point():
            continue
        name = raw
        for wrapper in (".base_layer", ".original_module", ".token_adapter"):
            name = name.replace(wrapper, "")
        if parameter is embeddings:
            probe[name] = getattr(hf, KEPT, None) or _values(parameter)
        elif family.scope_of(name) == "projector" or name == f"{family.language_model}.norm.weight":
            probe[name] = _values(parameter)
    return probe


def keep_embeddings_probe(model: nn.Module) -> None:
    """Keeps what `base_probe` tells of a model's embeddings, for when some of them will not be the base's any more."""
    hf = unwrap(model)
    setattr(hf, KEPT, _values(_embeddings(hf)))


def _embeddings(hf: Any) -> nn.Parameter:
    """The base's own, also where some train as an adapter's."""
    module = hf.get_input_embeddings()
    return getattr(module, "original_module", module).weight


def _values(parameter: nn.Parameter) -> list[float]:
    flat = parameter.detach().flatten()
    index = torch.linspace(0, flat.numel() - 1, PROBES_PER_TENSOR, dtype=torch.float64).long()
    return [round(value, 6) for value in flat[index.to(flat.device)].float().tolist()]


def save_base_identity(probe: dict[str, list[float]], name: str, folder: str | os.PathLike[str]) -> None:
    """Writes `base_model.json` beside an adapter."""
    text = json.dumps({"name": name, "probe": probe}, indent=1)
    (Path(folder) / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def check_base(model: nn.Module, adapter: str, recorded: str | None) -> None:
    """Refuses an adapter of another base model.

    An adapter saved by us carries a probe of its base, which decides. Another adapter is judged by the base's name;
    its tensor shapes are checked when it is loaded.

    Args:
        model: The base that the adapter is to go on.
        adapter: The adapter's folder (or Hub id).
        recorded: `base_model_name_or_path` of its configuration.

    Raises:
        ValueError: If it belongs to another base.
    """
    name = getattr(unwrap(model), "name_or_path", "") or "this model"
    file = Path(adapter) / FILE_NAME
    if file.is_file():
        identity = json.loads(file.read_text(encoding="utf-8"))
        difference = _difference(identity["probe"], base_probe(model))
        if difference:
            raise ValueError(
                f"the adapter in {adapter!r} was trained on another base, {identity['name']!r}, than {name!r}: "
                f"{difference}. Load its own base"
            )
    elif recorded and not _same_name(recorded, name):
        raise ValueError(
            f"the adapter in {adapter!r} says it was trained on {recorded!r}, the model loaded is {name!r}: load its "
            "own base, or correct base_model_name_or_path in its adapter_config.json if it is the same model"
        )


def _difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    for name in sorted(theirs.keys() | ours.keys()):
        if name not in theirs or name not in ours:
            return f"only one of them has {name}"
        left, right = torch.tensor(theirs[name]), torch.tensor(ours[name])
        scale = left.abs().max().clamp(min=1e-6)
        if (left - right).abs().max() > TOLERANCE * scale:
            return f"{name} has other values"
    return ""


def _same_name(left: str, right: str) -> bool:
    if left == right:
        return True
    return Path(left).exists() and Path(right).exists() and Path(left).resolve() == Path(right).resolve()
