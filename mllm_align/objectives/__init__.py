"""Objectives: what to measure and the maths on it. Each is a class that declares `needs`, beside free functions.

They import torch, the standard library and `mllm_align.contract` alone, and know neither model nor trainer.
"""

from mllm_align.objectives.dpo import DPO
from mllm_align.objectives.info_nce import InfoNCE
from mllm_align.objectives.next_token import NextToken
from mllm_align.objectives.svco import SVCO
from mllm_align.objectives.weighted import Weighted

__all__ = ["DPO", "SVCO", "InfoNCE", "NextToken", "Weighted"]
