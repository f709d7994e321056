"""The arms of a comparison: one loaded model, its adapters switched between them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mllm_align.data.pixels import processor_facts
from mllm_align.families import unwrap
from mllm_align.signals import AdaptersOff, NamedAdapter

SAMPLES_PER_TENSOR = 4096


@dataclass(frozen=True)
class Arm:
    """A name for the tables, and the adapter that makes it: None for the base, all adapters off."""

    name: str
    adapter: str | None = None


@contextmanager
def active_arm(model: nn.Module, arm: Arm) -> Iterator[nn.Module]:
    """Inside, the model answers as `arm`; afterwards its adapters are as before.

    Raises:
        ValueError: If the adapter is not loaded.
    """
    if arm.adapter is not None:
        with NamedAdapter(arm.adapter).on(model):
            yield model
    elif hasattr(model, "disable_adapter"):
        with AdaptersOff().on(model):
            yield model
    else:
        yield model


def fingerprint(model: nn.Module, adapter: str | None = None) -> str:
    """A hash by which cached answers are kept apart: another weight, adapter or quantisation is another model.

    Of each tensor of the base up to 4,096 evenly spaced entries are read, of the adapter all.

    Args:
        model: The model, wrapped in adapters or not.
        adapter: The adapter that is active; None for the base alone.
    """
    hf = unwrap(model)
    digest = hashlib.sha256(f"{type(hf).__name__}|{getattr(hf, 'dtype', '')}".encode())
    adapters = list(getattr(model, "peft_config", {}))
    for name, tensor in [*hf.named_parameters(), *hf.named_buffers()]:
        owner = next((known for known in adapters if f".{known}." in f".{name}."), None)
        if owner not in (None, adapter):
            continue
        flat = tensor.detach().flatten()
        if owner is None and flat.numel() > SAMPLES_PER_TENSOR:
            index = torch.linspace(0, flat.numel() - 1, SAMPLES_PER_TENSOR, dtype=torch.float64).long()
            flat = flat[index.to(flat.device)]
        raw = flat.cpu().contiguous().view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode() + raw)
    if adapter is not None:
        digest.update(_scalings(hf, adapter).encode())
    return digest.hexdigest()


def identity_of(model: nn.Module, processor: Any, adapter: str | None = None) -> str:
    """A hash of who answers: the weights (`fingerprint`), and how its processor and chat template put a question."""
    facts = processor_facts(processor) | {"chat_template": getattr(processor, "chat_template", None)}
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(f"{fingerprint(model, adapter)}|{text}".encode()).hexdigest()


def _scalings(model: Any, adapter: str) -> str:
    """The LoRA scalings, which no tensor holds."""
    # Attention layers have a `scaling` too, which is a number.
    scalings = {name: getattr(module, "scaling", None) for name, module in model.named_modules()}
    found = {name: value[adapter] for name, value in scalings.items() if isinstance(value, dict) and adapter in value}
    return repr(sorted(found.items()))
