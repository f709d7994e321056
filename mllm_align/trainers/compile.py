"""`torch.compile` of the decoder's layers, one by one and in place: names of parameters stay as they are."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import TorchDynamoPlugin
from torch import nn

from mllm_align.families import family_of, inner, unwrap
from mllm_align.vision.mixed_vision import mixed_of

# Per layer code: policy and reference, with and without gradients, packed and plain masks.
LEAST_RECOMPILES = 64


def compile_layers(model: nn.Module, backend: str, mode: str | None = None) -> int:
    """Compiles every layer of a model's language model, for any number of sequences of any length.

    Those behind which a mixer has a layer of its own stay as they are.

    The layers are nearly all of a step's work and look alike, so what is compiled for one serves the others. The model
    as a whole cannot be compiled: measuring calls parts of it.

    Args:
        model: The policy or a frozen copy; adapters, quantised layers and activation checkpointing stay what they are.
        backend: Of `torch.compile`.
        mode: Of `torch.compile`.

    Returns:
        How many layers that are.

    Raises:
        ValueError: If there is no such backend, or it cannot compile for this device.
    """
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise ValueError(f"torch_compile_backend {backend!r} is none of {', '.join(known)}")
    hf = unwrap(model)
    if backend == "inductor" and hf.device.type == "cpu":
        # What it makes of scaled-dot-product attention's backward pass stops at an assertion about strides.
        raise ValueError(
            "torch_compile with inductor fails in the backward pass of attention on a CPU: leave torch_compile out "
            "there, or use a GPU"
        )
    family = family_of(hf)
    layers: Any = family.module(hf, f"{family.language_model}.layers")
    limits: Any = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, LEAST_RECOMPILES)
    mixed = mixed_of(inner(hf))
    # Compiled code would go on without what a mixer puts behind a layer for one call.
    chosen = [layer for number, layer in enumerate(layers) if mixed is None or number not in mixed.kind.after]
    for layer in chosen:
        layer.compile(backend=backend, mode=mode, dynamic=True)
    return len(chosen)


def not_the_whole(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of an `Accelerator` that leave the model as it is."""
    return arguments | {"dynamo_plugin": TorchDynamoPlugin(backend="no")}  # type: ignore[arg-type]
