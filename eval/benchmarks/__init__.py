"""One benchmark per file: its questions as items."""

from mllm_align_eval.benchmarks.mmvp import mmvp_items
from mllm_align_eval.benchmarks.pope import pope_items
from mllm_align_eval.benchmarks.world import validation_items, world_items

__all__ = ["mmvp_items", "pope_items", "validation_items", "world_items"]
