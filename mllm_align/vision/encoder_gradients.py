"""What of an encoder a gradient reaches: the rest (poolers, layers behind the one that is read) must not train.

Parameters without a gradient are dead weight on one device and an error under DDP.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mllm_align.vision.vision_encoder import VisionEncoder


def keep_read_parameters(encoder: VisionEncoder) -> None:
    """Switches `requires_grad` off for those parameters on which what is read does not depend."""
    trained = [parameter for parameter in encoder.model.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        found = torch.autograd.grad(_total(encoder), trained, allow_unused=True)
    for parameter, gradient in zip(trained, found, strict=True):
        parameter.requires_grad_(gradient is not None)


def read_linears(encoder: VisionEncoder) -> list[str]:
    """Names in `encoder.model` of the linear layers on which what is read depends: where LoRA has an effect.

    4-bit layers are among them.
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str):
        return lambda module, inputs, output: outputs.update({name: output})

    layers = {name: module for name, module in encoder.model.named_modules() if isinstance(module, nn.Linear)}
    handles = [module.register_forward_hook(keep(name)) for name, module in layers.items()]
    try:
        with torch.enable_grad():
            total = _total(encoder, through_pixels=True)
    finally:
        for handle in handles:
            handle.remove()
    # Layers that are called past their own forward (packed attention of pooling heads) have no output here.
    names = [name for name, output in outputs.items() if output.requires_grad]
    if not names:
        return []
    found = torch.autograd.grad(total, [outputs[name] for name in names], allow_unused=True)
    return [name for name, gradient in zip(names, found, strict=True) if gradient is not None]


def _total(encoder: VisionEncoder, *, through_pixels: bool = False) -> Tensor:
    """The sum of all states that are read of a black image, with its graph."""
    device = next(encoder.model.parameters()).device
    pixels = torch.zeros(1, 3, *encoder.shape((2, 2)), device=device, requires_grad=through_pixels)
    return torch.stack([states.float().sum() for states in encoder.states(pixels)]).sum()
