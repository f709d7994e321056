"""Whether a partner is the nearest: strictly, so that vectors which are all alike find nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mllm_align.objectives.host import sent
from mllm_align.objectives.identity import Ids


class Nearest(NamedTuple):
    """How near partners are, and how near the nearest other.

    Attributes:
        own: (B,) cosine of image and text of each row.
        text: (B,) largest cosine of the image to another row's text; minus infinity where there is none.
        image: (B,) largest cosine of the text to another row's image.
        ties: (B,) how many other texts of the image and images of the text are as near as the partner.
    """

    own: Tensor
    text: Tensor
    image: Tensor
    ties: Tensor

    def metrics(self, anchors: Tensor) -> dict[str, Tensor]:
        """Of some rows (N,): "accuracy/image_to_text", "accuracy/text_to_image" and "ties"."""
        margin = tolerance(self.own.dtype)
        told = {
            "accuracy/image_to_text": self.own - self.text > margin,
            "accuracy/text_to_image": self.own - self.image > margin,
            "ties": self.ties,
        }
        return {name: found[anchors].float() for name, found in told.items()}


def tolerance(dtype: torch.dtype) -> float:
    """Cosines nearer than this are equal: two products of the same vectors may be rounded in another order."""
    return 16 * torch.finfo(dtype).eps


def nearest(cosines: Tensor, present: Tensor, ids: Ids | None = None) -> Nearest:
    """Finds the nearest others.

    Args:
        cosines: (B, B), rows are images.
        present: (B,) bool, the rows that take part.
        ids: What was read twice, and so is no other; None for nothing.
    """
    cosines = cosines.detach()
    own = cosines.diagonal()
    other = ~torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    if ids is not None:
        other &= ~ids.alike()
    texts, images = other & present[None, :], other & present[:, None]
    margin = tolerance(cosines.dtype)
    ties = (texts & ((cosines - own[:, None]).abs() <= margin)).sum(dim=1)
    ties = ties + (images & ((cosines - own[None, :]).abs() <= margin)).sum(dim=0)
    return Nearest(
        own,
        cosines.masked_fill(~texts, -torch.inf).amax(dim=1),
        cosines.masked_fill(~images, -torch.inf).amax(dim=0),
        ties,
    )


def nearer_than_false(own: Tensor, cosines: Tensor, owner: Tensor, rows: Sequence[int]) -> Tensor:
    """Whether a text is strictly nearer to its image than every text that its row lists as false.

    Args:
        own: (B,) cosine of image and text.
        cosines: (M,) of each false text to the image of its row; minus infinity for one that does not count.
        owner: (M,) int64, that row.
        rows: The rows to tell of, on the host.

    Returns:
        (N,), 1 or 0 for each of `rows`.
    """
    worst = torch.full_like(own, -torch.inf).scatter_reduce(0, owner, cosines, "amax")
    found = own - worst > tolerance(own.dtype)
    return found[sent(torch.tensor(rows, dtype=torch.long), own.device)].float()
