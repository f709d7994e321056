"""Objectives: what to measure and the maths on it. Each is a class that declares `needs`, beside free functions.

They import torch, the standard library and `mllm_align.contract` alone, and know neither model nor trainer. What an
objective reads are log-probabilities of a row's own responses under its own images, summed or per token. So these
cannot be made of it, and are not here: POVID's second stage and Re-Align's "noisy" log-prob, which score tokens that
the model itself likes best; TPO's token weights, made of raw logits; CHiP's KL term, which compares whole
distributions; KTO's baseline, scored on completions of other rows; SymMPO's third response to a second image.
"""

from mllm_align.objectives.amcl_like import AmclLike
from mllm_align.objectives.cacr_like import CacrLike
from mllm_align.objectives.chip import CHIP
from mllm_align.objectives.cloc_like import ClocLike
from mllm_align.objectives.coca import CoCa
from mllm_align.objectives.cosmo import Cosmo
from mllm_align.objectives.ddpo import DDPO
from mllm_align.objectives.discriminative import Discriminative
from mllm_align.objectives.doco import DocoLike
from mllm_align.objectives.dpo import DPO
from mllm_align.objectives.expert_contrast import ExpertContrast
from mllm_align.objectives.fdt import FDT
from mllm_align.objectives.filip import FILIP
from mllm_align.objectives.image_preference import ImagePreference
from mllm_align.objectives.info_nce import InfoNCE
from mllm_align.objectives.mdpo import MDPO
from mllm_align.objectives.next_token import NextToken
from mllm_align.objectives.orpo import ORPO
from mllm_align.objectives.rdpo import RDPO
from mllm_align.objectives.region_contrast import RegionContrast
from mllm_align.objectives.region_text import RegionText
from mllm_align.objectives.siglip import SigLIP
from mllm_align.objectives.svco import SVCO
from mllm_align.objectives.svlc import SVLC
from mllm_align.objectives.symile import Symile
from mllm_align.objectives.tsvlc import TSVLC
from mllm_align.objectives.vdpo import VDPO
from mllm_align.objectives.view_centroid import ViewCentroid
from mllm_align.objectives.weighted import Weighted

__all__ = [
    "CHIP",
    "DDPO",
    "DPO",
    "FDT",
    "FILIP",
    "MDPO",
    "ORPO",
    "RDPO",
    "SVCO",
    "SVLC",
    "TSVLC",
    "VDPO",
    "AmclLike",
    "CacrLike",
    "ClocLike",
    "CoCa",
    "Cosmo",
    "Discriminative",
    "DocoLike",
    "ExpertContrast",
    "ImagePreference",
    "InfoNCE",
    "NextToken",
    "RegionContrast",
    "RegionText",
    "SigLIP",
    "Symile",
    "ViewCentroid",
    "Weighted",
]
