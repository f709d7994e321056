"""What acts on image tokens: geometry (boxes and masks to token weights)."""

from mllm_align.vision.geometry import box_weights, mask_weights

__all__ = ["box_weights", "mask_weights"]
