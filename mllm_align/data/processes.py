"""The processes that share a job, whatever they compute on."""

from __future__ import annotations

import os

import torch
from accelerate import PartialState


def processes() -> PartialState:
    """This process among those of `accelerate launch` (or `torchrun`); the group is made at the first call.

    Accelerate forms no group of processes on a CPU unless it is told that there is no GPU: each would then take
    itself for the only one, and all of them would do, and write, the same.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    on_cpu = not torch.accelerator.is_available()
    return PartialState(cpu=several and on_cpu) if not PartialState._shared_state else PartialState()
