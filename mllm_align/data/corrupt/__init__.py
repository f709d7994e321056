"""Contrast images that are made: a crop, noise, another row's image, drawn once for policy and reference.

    train_dataset={"pairs": corrupted(rows, Crop())}          in Python
    data: {pairs: {path: ..., corrupt: {kind: crop}}}         in a recipe

A corruption of your own is a frozen dataclass that derives from `Corruption`.
"""

from mllm_align.data.corrupt.base import Corruption
from mllm_align.data.corrupt.crop import Crop
from mllm_align.data.corrupt.dataset import CorruptedDataset, CorruptedStream, corrupted
from mllm_align.data.corrupt.drawn import DrawnImage
from mllm_align.data.corrupt.kinds import KINDS, corruption_from
from mllm_align.data.corrupt.noise import DiffusionNoise, GaussianNoise
from mllm_align.data.corrupt.patches import MaskPatches, PatchShuffle
from mllm_align.data.corrupt.plain import Blank, MeanImage
from mllm_align.data.corrupt.swap import Swap
from mllm_align.data.corrupt.transform import Blur, Mirror, Rotate

__all__ = [
    "KINDS",
    "Blank",
    "Blur",
    "CorruptedDataset",
    "CorruptedStream",
    "Corruption",
    "Crop",
    "DiffusionNoise",
    "DrawnImage",
    "GaussianNoise",
    "MaskPatches",
    "MeanImage",
    "Mirror",
    "PatchShuffle",
    "Rotate",
    "Swap",
    "corrupted",
    "corruption_from",
]
