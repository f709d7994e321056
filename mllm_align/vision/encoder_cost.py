"""What an encoder costs: parameters and floating-point operations, counted without running it."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from mllm_align.vision.mixers.base import Cells
from mllm_align.vision.vision_encoder import VisionEncoder


class Cost(NamedTuple):
    """`parameters`, all of them, and `flops` of the forward pass of one view."""

    parameters: int
    flops: int


def encoder_cost(encoder: VisionEncoder, cells: Cells) -> Cost:
    """Counts on a copy without numbers: matrix products, convolutions, and attention; a product and a sum are two.

    Args:
        encoder: In any precision; adapters on it are not counted.
        cells: Rows and columns that are wanted of it.
    """
    config = copy.deepcopy(encoder.model.config)
    config._attn_implementation = "eager"  # attention as matrix products, which can be counted
    with torch.device("meta"):
        body = type(encoder.model)(config).eval()
        pixels = torch.empty(1, 3, *encoder.shape(cells))
    twin = copy.copy(encoder)
    twin._modules = {"model": body}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin.states(pixels)
    return Cost(sum(parameter.numel() for parameter in body.parameters()), counter.get_total_flops())
