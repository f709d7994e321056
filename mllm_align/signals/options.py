"""Settings of the engine."""

from __future__ import annotations

from dataclasses import dataclass

from mllm_align.signals.encoder_cache import EncoderCache
from mllm_align.signals.feature_cache import FeatureCache


@dataclass(frozen=True)
class EngineOptions:
    """How the measuring is done; no setting changes what is measured.

    Attributes:
        packing: "auto" shares prefixes wherever the model allows it, "off" scores every view as its own sequence.
        logits_chunk_size: Response positions whose logits exist at one time.
        least_fill: Packs are run together while the shortest is at least this fraction of the longest.
        max_tokens_per_forward: Padded tokens of one forward pass at the most; None for no limit.
        max_images_per_forward: Images that the vision tower sees at one time where gradients are cached.
        recompute_without_image: Keep no activations of sequences without an image; they are run again in the backward
            pass, which costs little where they are the short ones.
        feature_cache: Where image tokens of a frozen vision side are kept; None to compute them each time.
        encoder_cache: Where features of a mixer's frozen encoders are kept; None to compute them each time. Image
            tokens that are kept need none.
    """

    packing: str = "auto"
    logits_chunk_size: int = 256
    least_fill: float = 0.8
    max_tokens_per_forward: int | None = None
    max_images_per_forward: int = 16
    recompute_without_image: bool = False
    feature_cache: FeatureCache | None = None
    encoder_cache: EncoderCache | None = None


DEFAULTS = EngineOptions()
