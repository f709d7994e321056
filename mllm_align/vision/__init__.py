"""What acts on image tokens: geometry (boxes and masks to token weights), regions, mixers of several vision encoders;
and teachers beside the model."""

from mllm_align.vision.attach import attach, detach
from mllm_align.vision.geometry import box_weights, mask_weights
from mllm_align.vision.mixer_files import attach_saved, save_mixer
from mllm_align.vision.object_expert import ObjectExpert, load_expert, save_expert
from mllm_align.vision.object_prompts import ObjectPrompts
from mllm_align.vision.regions import RegionWeights

__all__ = [
    "ObjectExpert",
    "ObjectPrompts",
    "RegionWeights",
    "attach",
    "attach_saved",
    "box_weights",
    "detach",
    "load_expert",
    "mask_weights",
    "save_expert",
    "save_mixer",
]
