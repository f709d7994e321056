"""FDT: images and texts described by one codebook, so that both are of one granularity."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mllm_align.contract import Feature, Needs, Outcome, Signals, Term
from mllm_align.objectives.columns import check_sides
from mllm_align.objectives.host import sent
from mllm_align.objectives.info_nce import info_nce
from mllm_align.objectives.options import WithOptions
from mllm_align.objectives.padding import places_by_row, rows_of_entries
from mllm_align.objectives.preference import check_positive, check_switches
from mllm_align.objectives.temperature import bounded_scale, check_temperature, log_scale_of


def sparsemax(scores: Tensor) -> Tensor:
    """The nearest point of the simplex, Martins and Astudillo (2016), https://arxiv.org/abs/1602.02068

    Args:
        scores: (..., C).

    Returns:
        (..., C) weights from 0 that sum to 1; most of them are 0.
    """
    ordered = scores.sort(dim=-1, descending=True).values
    above = ordered.cumsum(dim=-1) - 1
    count = torch.arange(1, scores.shape[-1] + 1, dtype=scores.dtype, device=scores.device)
    support = (count * ordered > above).sum(dim=-1, keepdim=True)
    threshold = above.gather(-1, support - 1) / support.to(scores.dtype)
    return (scores - threshold).clamp(min=0)


def relevance(tokens: Tensor, codes: Tensor) -> Tensor:
    """(C,) how far each code is in a picture or a text: the largest <token, code> / sqrt(d) over its tokens.

    Args:
        tokens: (n, d), one at the least.
        codes: (C, d).
    """
    return (tokens @ codes.T).amax(dim=0) / math.sqrt(codes.shape[1])


class FDT(WithOptions):
    """Contrast of codebook weights, Finite Discrete Tokens (Chen et al., 2023), https://arxiv.org/abs/2303.14865

    A token, brought into the codebook's space by a small head, is as near to a code as their product; a picture or a
    text has a code as far as its nearest token has it, and is the sum of the codes, weighted by the sparsemax of that.

    Args:
        image: Column of the images, "image" or "contrast_image".
        text: Response column of the texts, "chosen" or "rejected".
        codes: Entries of the codebook.
        dim: Their width.
        temperature: At the start, 1/100 at the least; cosines are divided by it.
        learn_temperature: Whether it is trained (as its logarithm, kept from going below 1/100).

    Needs:
        Two features, all tokens of a row's images and of its text; no views, no reference.

    Shapes:
        Features (N, d), any number a row; computed in float32 at least. Term "fdt": sum over the rows with both, count
        their number. Metrics, for each such row: "accuracy/image_to_text" and "accuracy/text_to_image" (N,), whether
        its partner is the nearest, "codes/image" and "codes/text" (N,), how many codes describe it; "temperature".

    Example:
        >>> from mllm_align.contract import Ragged
        >>> objective = FDT(codes=16, dim=8)
        >>> objective.set_widths({feature.name: 4 for feature in objective.needs.features})
        >>> tokens = Ragged(torch.randn(4, 4), torch.tensor([0, 0, 1, 1]))
        >>> features = {feature.name: tokens for feature in objective.needs.features}
        >>> objective(Signals({}, {}, features=features, sources=("a", "a")), None).terms[0].count.item()
        2.0

    Relations:
        FILIP compares the tokens themselves. The codebook and the heads are trained with the model and are no part of
        what is exported: what stays of them is what the model's tokens learned.

    Deviations:
        Its code multiplies padded words by 0 before the largest is taken, so that a sentence has no code below 0; here
        there is no padding. The released settings divide by a temperature of the codes that stays at 1; there is none.
        The published codebook has 16,384 codes of width 512 for images and texts by the million; the defaults are
        smaller.
    """

    def __init__(
        self,
        image: str = "image",
        text: str = "chosen",
        codes: int = 4096,
        dim: int = 512,
        temperature: float = 0.07,
        learn_temperature: bool = True,
    ) -> None:
        """Refuses values without a meaning."""
        super().__init__()
        check_positive("FDT", temperature=temperature, codes=codes, dim=dim)
        check_switches("FDT", learn_temperature=learn_temperature)
        check_temperature("FDT", temperature)
        check_sides("FDT", image, text)
        self.image, self.text = image, text
        self.log_scale = log_scale_of(temperature, learn_temperature)
        self.codes = nn.Parameter(torch.randn(codes, dim))
        self.heads = nn.ModuleDict()

    def set_widths(self, widths: Mapping[str, int]) -> None:
        """Makes the heads; a second call changes nothing.

        Args:
            widths: Of each feature, by name.
        """
        dim = self.codes.shape[1]
        for side, feature in zip(("images", "texts"), self.needs.features, strict=True):
            if side not in self.heads:
                width = widths[feature.name]
                self.heads[side] = nn.Sequential(
                    nn.LayerNorm(width), nn.Linear(width, dim), nn.GELU(), nn.LayerNorm(dim), nn.Linear(dim, dim)
                )

    @property
    def needs(self) -> Needs:
        """All tokens of both sides."""
        return Needs(
            features=(
                Feature(f"image_tokens:{self.image}", "projector", self.image, pooling="tokens"),
                Feature(f"text_tokens:{self.text}", "text", self.text, pooling="tokens"),
            )
        )

    def forward(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The term and metrics of one batch."""
        if not self.heads:
            raise ValueError("FDT: its heads are not made: call set_widths with the width of each feature")
        scale = bounded_scale(self.log_scale)
        places = [rows_of_entries(policy, feature.name) for feature in self.needs.features]
        rows = sorted(set(places[0]) & set(places[1]))
        if not rows:
            zero = 0 * torch.stack([parameter.sum() for parameter in self.parameters()]).sum()
            return Outcome((Term("fdt", 1.0, zero, 0 * scale.detach()),))
        with torch.autocast(scale.device.type, enabled=False):
            weights = [
                self._weights(side, policy.features[feature.name].values, places_by_row(own, rows))
                for side, feature, own in zip(self.heads, self.needs.features, places, strict=True)
            ]
            images, texts = (F.normalize(each @ self.codes.to(each.dtype), dim=1) for each in weights)
            present = torch.ones(len(rows), dtype=torch.bool, device=images.device)
            losses, cosines = info_nce(images, texts, present, scale)
        own = torch.arange(len(rows), device=losses.device)
        metrics = {
            "accuracy/image_to_text": (cosines.detach().argmax(dim=1) == own).float(),
            "accuracy/text_to_image": (cosines.detach().argmax(dim=0) == own).float(),
            "codes/image": (weights[0] > 0).sum(dim=1).float(),
            "codes/text": (weights[1] > 0).sum(dim=1).float(),
            "temperature": 1 / scale.detach(),
        }
        return Outcome((Term("fdt", 1.0, losses.sum(), present.sum().float()),), metrics)

    def _weights(self, side: str, values: Tensor, groups: list[list[int]]) -> Tensor:
        """(G, C) of the tokens of each group; products of tokens and codes are there for one group at a time."""
        dtype = self.codes.dtype
        tokens = self.heads[side](values.to(dtype))
        found = []
        for group in groups:
            own = tokens[sent(torch.tensor(group), tokens.device)]
            again = torch.is_grad_enabled() and len(groups) > 1
            found.append(
                checkpoint(relevance, own, self.codes, use_reentrant=False) if again else relevance(own, self.codes)
            )
        return sparsemax(torch.stack(found))
