"""What acts on image tokens: geometry (boxes and masks to token weights), regions; and teachers beside the model."""

from mllm_align.vision.geometry import box_weights, mask_weights
from mllm_align.vision.object_expert import ObjectExpert, load_expert, save_expert
from mllm_align.vision.object_prompts import ObjectPrompts
from mllm_align.vision.regions import RegionWeights

__all__ = [
    "ObjectExpert",
    "ObjectPrompts",
    "RegionWeights",
    "box_weights",
    "load_expert",
    "mask_weights",
    "save_expert",
]
