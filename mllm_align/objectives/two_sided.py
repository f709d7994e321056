"""A softmax contrast of paired images and texts, both ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mllm_align.objectives.contrast_rules import INFO_NCE, SIDES, Rule, contrast
from mllm_align.objectives.identity import Ids
from mllm_align.objectives.memory import Further
from mllm_align.objectives.mochi import Mixing, drawn, generator_of, synthetic
from mllm_align.objectives.nearest import Nearest, nearest
from mllm_align.objectives.pairs import Compared
from mllm_align.objectives.soft_targets import soft_contrast
from mllm_align.objectives.tiled import tiled_info_nce

# Rows from which on similarities are computed in tiles of as many, where nothing needs all of them at once.
TILE = 2048


def info_nce(
    images: Tensor,
    texts: Tensor,
    present: Tensor,
    scale: Tensor,
    further: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    keys: tuple[Tensor, Tensor] | None = None,
    soft_targets: float = 0.0,
    *,
    rule: Rule = INFO_NCE,
    sides: str = "both",
    negatives: tuple[Tensor, Tensor] | None = None,
    owner: Tensor | None = None,
    weights: tuple[Tensor | None, Tensor | None] = (None, None),
    mixing: tuple[Mixing, torch.Generator] | None = None,
    ids: Ids | None = None,
) -> tuple[Tensor, Tensor]:
    """Symmetric InfoNCE, van den Oord et al. (2018), https://arxiv.org/abs/1807.03748, as CLIP pairs it.

    Args:
        images: (B, d) unit vectors.
        texts: (B, d) unit vectors; row b belongs to image b.
        present: (B,) bool, the rows that take part; the others are neither anchors nor negatives.
        scale: 0-d, one over the temperature.
        further: Unit vectors (M, d) of other texts, which no image has, and (B, M) bool, for which rows they count;
            and the same of other images.
        keys: (B, d) unit vectors that are chosen among in place of `images` and `texts`, of a slower model.
        soft_targets: Share of the target that is what the slower model's own vectors find (`soft_contrast`).
        rule: What weighs how much; InfoNCE's own with `soft_targets`.
        sides: "both", of which the loss is the mean, "image_to_text" or "text_to_image".
        negatives: Unit vectors (M, d) of texts that rows list as false, which every image is told from, and (M,) bool,
            which count.
        owner: (M,) int64, the row that lists each of them, of whose image it is known to be false; None where nobody
            told.
        weights: (B, B) of several positives (`contrast`), of images among texts and of texts among images.
        mixing: Synthetic negatives, and where they are drawn from.
        ids: What was read twice: such pairs are left out, neither positives nor negatives. None for nothing.

    Returns:
        (B,) losses, the mean of both directions and 0 where not present; (B, B) scaled cosines, rows are images.
    """
    key_images, key_texts = keys or (images, texts)
    other_texts, other_images = further or (None, None)
    scale = scale.to(images.dtype)
    own = torch.arange(len(present), device=present.device)
    total = torch.zeros_like(present, dtype=images.dtype)
    counted = present.expand(len(present), -1)
    if ids is not None:
        counted = counted & ~ids.alike()
    ways = (
        (images, key_images, key_texts, other_texts, negatives, weights[0]),
        (texts, key_texts, key_images, other_images, None, weights[1]),
    )
    for part, (anchors, slow, among, others, false, weight) in zip(SIDES[sides], ways, strict=True):
        if not part:
            continue
        counts = counted
        if false is not None:
            of_false = false[1].expand(len(present), -1)
            if ids is not None:
                of_false = of_false & ~ids.true_of(slice(0, len(present)), slice(0, len(false[0])))
            among, counts = torch.cat([among, false[0]]), torch.cat([counts, of_false], dim=1)
        if others is not None:
            among, counts = torch.cat([among, others[0]]), torch.cat([counts, others[1]], dim=1)
        similarities = scale * anchors @ among.T
        if soft_targets:
            total = total + part * soft_contrast(similarities, scale * slow @ among.T, own, counts, soft_targets)
            continue
        if mixing is not None:
            draws = drawn(len(anchors), *mixing, like=anchors)
            made, made_count = synthetic(
                anchors, among, counts.scatter(1, own[:, None], False), mixing[0].hardest, draws
            )
            similarities, counts = torch.cat([similarities, scale * made], 1), torch.cat([counts, made_count], 1)
        place = torch.arange(similarities.shape[1], device=own.device)
        explicit = None if false is None else (place >= len(own)) & (place < len(own) + len(false[0]))
        certain = None
        if false is not None and owner is not None:
            certain = F.pad(owner == own[:, None], (len(own), similarities.shape[1] - len(own) - len(owner)))
        wide = None if weight is None else F.pad(weight * counted, (0, similarities.shape[1] - len(own)))
        total = total + part * contrast(
            similarities, own, counts, scale, rule, explicit=explicit, certain=certain, weights=wide
        )
    return torch.where(present, total, 0.0), scale * images @ texts.T


@dataclass(frozen=True)
class TwoSided:
    """What of the options of `InfoNCE` says how vectors become losses; see there.

    Raises:
        ValueError: For options that do not go together.
    """

    rule: Rule
    sides: str
    soft_targets: float
    mixing: Mixing | None
    tile: int | None
    continuous: bool
    keys: bool
    memory: bool

    def __post_init__(self) -> None:
        if self.sides not in SIDES:
            raise ValueError(f"InfoNCE: sides must be one of {', '.join(SIDES)}, got {self.sides!r}")
        if self.continuous and (self.sides == "text_to_image" or self.rule.sigma is not None):
            raise ValueError("InfoNCE: continuous weighs the positives of images: leave sides and sigma of rule out")
        own = {"rule": self.rule != INFO_NCE, "continuous": self.continuous, "mixing": self.mixing is not None}
        other = ", ".join(name for name, given in own.items() if given)
        if self.soft_targets and other:
            raise ValueError(f"InfoNCE: soft_targets are a rule of their own: leave {other} out")
        whole = isinstance(self.tile, int) and not isinstance(self.tile, bool)
        if self.tile is not None and (not whole or self.tile < 1):
            raise ValueError(f"InfoNCE: tile must be a whole number above 0, or nothing, got {self.tile!r}")
        if self.tile is not None and self.whole:
            raise ValueError(f"InfoNCE: {self.whole} needs all similarities at once: leave tile out")

    @property
    def whole(self) -> str:
        """The options that look at all pairs at once."""
        given = {
            "memory": self.memory,
            "momentum": self.keys,
            "continuous": self.continuous,
            "mixing": self.mixing is not None,
            "rule": self.rule != Rule(positive_weight=self.rule.positive_weight),
        }
        return ", ".join(name for name, value in given.items() if value)

    def losses(
        self,
        found: Compared,
        keys: Compared,
        scale: Tensor,
        false: tuple[Tensor, Tensor] | None,
        further: Further | None,
        weights: tuple[Tensor | None, Tensor | None],
        row_ids: Sequence[str],
    ) -> tuple[Tensor, Nearest]:
        """(B,) losses of unit vectors, and how near partners are; the arguments are those of `info_nce`."""
        pair = found.images, found.texts, found.present, scale
        tile = self.tile
        if tile is None and len(found.present) > TILE and not self.whole:
            tile = TILE
        if tile is not None:
            weight = self.rule.positive_weight
            return tiled_info_nce(
                *pair, tile, negatives=false, positive_weight=weight, sides=self.sides, ids=found.repeated
            )
        losses, cosines = info_nce(
            *pair,
            further,
            (keys.images, keys.texts),
            self.soft_targets,
            rule=self.rule,
            sides=self.sides,
            negatives=false,
            owner=found.owner,
            weights=weights,
            mixing=None if self.mixing is None else (self.mixing, generator_of(row_ids, self.mixing.seed)),
            ids=found.repeated,
        )
        return losses, nearest(cosines.detach() / scale.detach(), found.present, found.repeated)
