"""What acts on image tokens: geometry (boxes and masks to token weights), regions."""

from mllm_align.vision.geometry import box_weights, mask_weights
from mllm_align.vision.regions import RegionWeights

__all__ = ["RegionWeights", "box_weights", "mask_weights"]
