"""LLaVA-1.5 and its kin: a CLIP tower, a two-layer projector, one token per patch."""

from mllm_align.families.base import Family

LLAVA = Family(name="LLaVA-1.5", model_types=("llava",))
