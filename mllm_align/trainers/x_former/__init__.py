"""The first stage of X-Former: queries learn from texts and from a masked autoencoder, without a language model."""

from mllm_align.trainers.x_former.config import XFormerConfig
from mllm_align.trainers.x_former.run import train_x_former

__all__ = ["XFormerConfig", "train_x_former"]
