"""Losses between images and their texts, both embedded: what tunes a dual encoder rather than a language model.

Free functions alone: a dual encoder has its own temperature, and no log-probabilities that an objective could read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mllm_align.objectives.contrast_kernels import sigmoid_contrast, softmax_contrast


def softmax_pairs(images: Tensor, texts: Tensor, negative: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """CLIP's loss (Radford et al., 2021), https://arxiv.org/abs/2103.00020, with a say in what is a negative.

    With `negative` true off the diagonal it is CLIP's. With it true within clusters alone it is the loss of a stage of
    MCL (2024), https://arxiv.org/abs/2402.11816.

    Args:
        images: (B, d) unit vectors.
        texts: (B, d) unit vectors; row b belongs to image b.
        negative: (B, B) bool and symmetric: whether the text of one row (columns) is none of another's image (rows).
        scale: 0-d, one over the temperature.
        bias: Not used: it changes no share of a softmax.

    Returns:
        (B,) losses, the mean of both directions; 0 for a row without negatives.
    """
    own = torch.eye(len(images), dtype=torch.bool, device=images.device)
    similarities = scale * images @ texts.T
    both = (similarities, negative), (similarities.T, negative.T)
    return torch.stack([softmax_contrast(each, own, others | own) for each, others in both]).mean(0)


def sigmoid_pairs(images: Tensor, texts: Tensor, negative: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """SigLIP's loss (Zhai et al., 2023), https://arxiv.org/abs/2303.15343, with a say in what is a negative.

    Args:
        images: (B, d) unit vectors.
        texts: (B, d) unit vectors; row b belongs to image b.
        negative: (B, B) bool: whether the text of one row (columns) is none of another's image (rows).
        scale: 0-d, one over the temperature.
        bias: 0-d, added to each logit; None for 0.

    Returns:
        (B,) sums over texts.
    """
    own = torch.eye(len(images), dtype=torch.bool, device=images.device)
    logits = scale * images @ texts.T + (0.0 if bias is None else bias)
    return sigmoid_contrast(logits, own, negative & ~own, 1.0)
