"""Tuning the image tower of a dual encoder (CLIP, SigLIP) against its frozen text tower, in stages."""

from mllm_align.trainers.tower.config import TowerConfig
from mllm_align.trainers.tower.stages import train_stages
from mllm_align.trainers.tower.trainer import TowerTrainer

__all__ = ["TowerConfig", "TowerTrainer", "train_stages"]
