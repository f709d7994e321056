"""A vision expert that stays after training: what an objective keeps of it."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from mllm_align.contract.teacher import Teacher

# Stands in a prompt for one object, whose vector is read there.
OBJECT_TOKEN = "<object>"


class ObjectAdapter(nn.Sequential):
    """From the expert's tokens (..., d) to the language model's width, as in CoLVA (2025),
    https://arxiv.org/abs/2501.04670

    Args:
        expert_width: d.
        width: Of the language model.
    """

    def __init__(self, expert_width: int, width: int) -> None:
        super().__init__(
            nn.LayerNorm(expert_width), nn.Linear(expert_width, width), nn.GELU(), nn.Linear(width, width)
        )

    @property
    def widths(self) -> tuple[int, int]:
        """Of the expert and of the language model."""
        return self.get_submodule("1").get_parameter("weight").shape[1], len(
            self.get_submodule("3").get_parameter("bias")
        )


class KeptExpert(NamedTuple):
    """What an objective that is a module may name in an attribute `keeps`: it is saved beside the model's weights.

    A term that trains the adapter alone, and nothing of the model, is then no mistake.

    Attributes:
        teacher: The frozen vision model.
        adapter: What trains; it is given the teacher's features of regions, means over what each covers.
    """

    teacher: Teacher
    adapter: ObjectAdapter
