"""Training: any objective, any source mix, on any number of processes."""

from mllm_align.trainers.config import AlignConfig
from mllm_align.trainers.trainer import AlignTrainer

__all__ = ["AlignConfig", "AlignTrainer"]
