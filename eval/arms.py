"""The arms of a comparison: one loaded model, its adapters switched between them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from mllm_align.data.pixels import processor_facts
from mllm_align.families import unwrap
from mllm_align.families.base import MIXED
from mllm_align.models import mixer_facts, mixing_without, stock_processor
from mllm_align.signals import AdaptersOff, NamedAdapter

SAMPLES_PER_TENSOR = 4096
# To be raised where the same model, asked the same, would answer otherwise than before.
CODE = 1


@dataclass(frozen=True)
class Arm:
    """A name for the tables, and what makes it.

    Attributes:
        name: For the tables.
        adapter: The active one; None for the base, all adapters off.
        off: Further vision encoders of a mixer that are switched off, counted from 0; None for the whole mixer.
    """

    name: str
    adapter: str | None = None
    off: tuple[int, ...] | None = ()


@contextmanager
def active_arm(model: nn.Module, arm: Arm) -> Iterator[nn.Module]:
    """Inside, the model answers as `arm`; afterwards its adapters, and its mixer, are as before.

    Raises:
        ValueError: If the adapter is not loaded, or an encoder to switch off is not there.
    """
    with mixing_without(model, arm.off):
        if arm.adapter is not None:
            with NamedAdapter(arm.adapter).on(model):
                yield model
        elif hasattr(model, "disable_adapter"):
            with AdaptersOff().on(model):
                yield model
        else:
            yield model


def alike(arms: Sequence[Arm]) -> bool:
    """Whether all arms mix the same vision encoders, so that only adapters can tell their image tokens apart."""
    return len({arm.off for arm in arms}) <= 1


def fingerprint(model: nn.Module, adapter: str | None = None, off: Sequence[int] | None = ()) -> str:
    """A hash by which cached answers are kept apart: another weight, adapter or quantisation is another model.

    Of each tensor of the base up to 4,096 evenly spaced entries are read, of the adapter all.

    Args:
        model: The model, wrapped in adapters or not.
        adapter: The adapter that is active; None for the base alone.
        off: As in `Arm`; a mixer that is switched off as a whole is not read.
    """
    with mixing_without(model, off):  # weights that a mixer's files carry are the base's there
        return _digest(model, adapter, off)


def _digest(model: nn.Module, adapter: str | None, off: Sequence[int] | None) -> str:
    hf = unwrap(model)
    digest = hashlib.sha256(f"{type(hf).__name__}|{getattr(hf, 'dtype', '')}".encode())
    adapters, added = list(getattr(model, "peft_config", {})), _added_names(hf)
    for name, tensor in [*hf.named_parameters(), *hf.named_buffers()]:
        owner = _owner(name, adapters, added)
        if owner not in (None, adapter) or (off is None and MIXED in name):
            continue
        flat = tensor.detach().flatten()
        if owner is None and flat.numel() > SAMPLES_PER_TENSOR:
            index = torch.linspace(0, flat.numel() - 1, SAMPLES_PER_TENSOR, dtype=torch.float64).long()
            flat = flat[index.to(flat.device)]
        raw = flat.cpu().contiguous().view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode() + raw)
    if adapter is not None:
        digest.update(_scalings(hf, adapter).encode())
    mixer = mixer_facts(model)
    if mixer is not None and off is not None:  # windows, layers, sizes; where the encoders lie does not matter
        told = {name: mixer[name] for name in ("kind", "options", "read")} | {"off": sorted(off)}
        digest.update(json.dumps(told, sort_keys=True).encode())
    return digest.hexdigest()


def _added_names(model: nn.Module) -> set[str]:
    """What PEFT calls the containers that it puts an adapter's tensors in, by the adapter's name."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    found = {name for layer in layers for name in (*layer.adapter_layer_names, *layer.other_param_names)}
    return found | {"modules_to_save"}


def _owner(parameter: str, adapters: Sequence[str], added: set[str]) -> str | None:
    """The adapter that a parameter is of; None for the base's own, whatever its parts are called."""
    for container, name in pairwise(parameter.split(".")):
        if container in added and name in adapters:
            return name
    return None


def identity_of(model: nn.Module, processor: Any, adapter: str | None = None, off: Sequence[int] | None = ()) -> str:
    """A hash of who answers.

    The weights (`fingerprint`), the model's config and how it generates, and how its processor, tokenizer and chat
    template put a question.
    """
    hf: Any = unwrap(model)
    processor = processor if off is not None else stock_processor(model) or processor
    tokenizer = processor.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    facts = processor_facts(processor) | {
        "code": CODE,
        "chat_template": getattr(processor, "chat_template", None),
        "tokenizer": backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items()),
        "config": hf.config.to_dict(),
        "generation": hf.generation_config.to_dict(),
    }
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(f"{fingerprint(model, adapter, off)}|{text}".encode()).hexdigest()


def _scalings(model: Any, adapter: str) -> str:
    """The LoRA scalings, which no tensor holds."""
    # Attention layers have a `scaling` too, which is a number.
    scalings = {name: getattr(module, "scaling", None) for name, module in model.named_modules()}
    found = {name: value[adapter] for name, value in scalings.items() if isinstance(value, dict) and adapter in value}
    return repr(sorted(found.items()))
