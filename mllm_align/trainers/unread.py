"""What of the vision side no image token depends on does not train, so that nothing but gradients moves a weight.

LLaVA reads a layer before its tower's last, SigLIP has a pooling head, others a mask token for their pre-training, and
PEFT trains a copy as a whole. On several ranks every trained parameter has a gradient, there of zeros: weight decay
would move what one process leaves where it is, and optimiser states would be kept of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mllm_align.data.pixels import ImageEncoder
from mllm_align.families import Family, family_of, unwrap

SIDE = 56  # of the image that is looked at, in pixels: small for models that take any size
WHOSE = {"vision": "the vision tower (train_vision, or vision in lora_scope)", "encoders": "the mixer's encoders"}


def freeze_unread(model: nn.Module, processor: Any) -> None:
    """Switches `requires_grad` off for what trains in tower and encoders and is not read, by the graph of one image.

    The graph is looked at without what a backward pass would need, so that it costs the time of one forward pass and
    no memory.

    Args:
        model: With its adapters; changed in place.
        processor: Of the model.

    Raises:
        ValueError: If something of the tower, or of the encoders, trains and nothing of that is read.
    """
    hf: Any = unwrap(model)
    family = family_of(hf)
    trained = [(family.scope_of(name), p) for name, p in hf.named_parameters() if p.requires_grad]
    trained = [(scope, parameter) for scope, parameter in trained if scope in WHOSE]
    if not trained:
        return
    with _evaluating(hf):
        read = _leaves(_tokens(family, hf, processor))
    for _, parameter in trained:
        parameter.requires_grad_(id(parameter) in read)
    for scope in dict.fromkeys(scope for scope, _ in trained):
        if not any(parameter.requires_grad for own, parameter in trained if own == scope):
            raise ValueError(f"{WHOSE[scope]} would train, but no image token depends on it: leave it frozen")


def _tokens(family: Family, hf: Any, processor: Any) -> tuple[Tensor, ...]:
    image = ImageEncoder(processor, family.image_keys)(Image.new("RGB", (SIDE, SIDE)))
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_drop, _drop):
        return family.encode_images(hf, [image.tensors]).tensors


def _drop(value: Any) -> Any:
    """In place of a tensor that is kept for the backward pass."""


def _leaves(values: Sequence[Tensor]) -> set[int]:
    """The ids of the leaves that the graph of some tensors leads to."""
    todo: list[Any] = [value.grad_fn for value in values]
    seen, found = set(), set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.add(id(getattr(node, "variable", None)))
        todo.extend(following for following, _ in node.next_functions)
    return found


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, which neither draws nor checkpoints; each module as it was when it ends."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
