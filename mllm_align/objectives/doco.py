"""Contrast between the objects of a document page as the LVLM sees them and as a document model reads them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mllm_align.contract import Feature, Needs, Outcome, Regions, Signals, Teacher, Term, teacher_from
from mllm_align.objectives.columns import IMAGES
from mllm_align.objectives.contrast_kernels import softmax_contrast
from mllm_align.objectives.host import sent
from mllm_align.objectives.options import WithOptions
from mllm_align.objectives.preference import check_positive, check_switches, check_weights
from mllm_align.objectives.projection import Projection
from mllm_align.objectives.region_masks import check_similarity, equal, similar, table_of
from mllm_align.objectives.temperature import bounded_scale, check_temperature, log_scale_of


class DocoLike(WithOptions):
    """Document object contrast, after DoCo (Li et al., 2024), https://arxiv.org/abs/2402.19014

    Pulls what the LVLM sees of an object on a page, the mean of the image tokens that it covers, towards what a
    document model that reads its words makes of it: within a page against its other objects, and for the means of
    pages against the other pages of the batch. Both are InfoNCE in both directions.

    Args:
        teacher: The document model: a name or folder, or a mapping with `model`, `kind`, `size`, `layer`, `revision`.
        column: Image column of the pages, "image" or "contrast_image".
        dim: Of the space in which the two are compared.
        intra_weight: Of the term within pages.
        inter_weight: Of the term between pages.
        temperature: At the start, 1/100 at the least; cosines are divided by it.
        learn_temperature: Whether it is trained (as its logarithm, kept from going below 1/100).
        min_tokens: Objects that cover less than this many tokens are left out: hundreds of them would share one token.
        text_similarity: Objects of a page are not told apart where what the document model makes of them nearly
            agrees: those of a cosine above this behind its head. None for equal texts alone.

    Needs:
        Two features, regions of image tokens and a teacher's of the same ones; no views, no reference. Rows need
        `objects` with boxes and `text`.

    Shapes:
        Features (N, d_lm) and (N, d_teacher), computed in float32 at least; `Signals.regions` tells of each. Term
        "intra": sum over the objects that have another one on their page to be told from, count their number. Term
        "inter": sum over pages with objects where the batch has another such page, count their number. Metrics: for
        each of them whether its partner is nearest, seen from the LVLM, "accuracy/intra" and "accuracy/inter"; for
        every object whether it is "too_small"; "temperature".

    Example:
        >>> from mllm_align.contract import Ragged
        >>> objective = DocoLike(dim=4, inter_weight=0.0)
        >>> objective.set_widths({feature.name: 8 for feature in objective.needs.features})
        >>> values = Ragged(torch.randn(3, 8), torch.zeros(3, dtype=torch.long))
        >>> told = Regions((0,) * 3, (0,) * 3, ((0, 0, 1, 1),) * 3, ("",) * 3, ("Total", "12", "12"), ("",) * 3)
        >>> features = {feature.name: values for feature in objective.needs.features}
        >>> outcome = objective(Signals({}, {}, features=features, sources=("x",), regions={"image": told}), None)
        >>> [(term.name, term.weight, term.count.item()) for term in outcome.terms]
        [('intra', 1.0, 3), ('inter', 0.0, 0)]

    Relations:
        RegionContrast compares regions of the LVLM with each other. Here, too, something before the tokens must train:
        LoRA on the tower or the projector. Heads and temperature are dropped when the model is exported. The teacher
        is asked before training and is not in memory during it.

    Deviations:
        The authors published no code, and what could be read of the paper leaves these open, so they are ours, and the
        name says so: linear heads into 256 dimensions, a learned temperature from .07 on (as CLIP's), equal weights,
        one pair of heads and one temperature for both terms, a page as the mean of its objects. The "N + 1" objects of
        a page in the paper may count the page itself: here there are N. Features are taken behind the projector, where
        the LVLM reads them. Objects of one text on a page are no negatives of each other, nor are pages of the same
        objects (one page asked about twice); objects below half a token are left out. Of these the paper says nothing.
    """

    def __init__(
        self,
        teacher: str | Mapping[str, Any] | Teacher = "microsoft/layoutlmv3-large",
        column: str = "image",
        dim: int = 256,
        intra_weight: float = 1.0,
        inter_weight: float = 1.0,
        temperature: float = 0.07,
        learn_temperature: bool = True,
        min_tokens: float = 0.5,
        text_similarity: float | None = None,
    ) -> None:
        """Refuses values without a meaning."""
        super().__init__()
        check_positive("DocoLike", temperature=temperature)
        check_weights("DocoLike", intra_weight=intra_weight, inter_weight=inter_weight)
        if isinstance(min_tokens, bool) or not isinstance(min_tokens, int | float) or not 0 <= min_tokens < math.inf:
            raise ValueError(f"DocoLike: min_tokens must be a number of at least 0, got {min_tokens!r}")
        check_switches("DocoLike", learn_temperature=learn_temperature)
        check_temperature("DocoLike", temperature)
        check_similarity("DocoLike", text_similarity)
        if dim is None:
            raise ValueError("DocoLike: dim must be a whole number: model and teacher have no space in common")
        if column not in IMAGES:
            raise ValueError(f"DocoLike: column must be {' or '.join(IMAGES)}, got {column!r}")
        self.column, self.min_tokens, self.text_similarity = column, min_tokens, text_similarity
        self.weights = {"intra": float(intra_weight), "inter": float(inter_weight)}
        found = teacher_from(teacher, "DocoLike")
        self.seen = Feature(f"regions:{column}", "projector", column, pooling="regions")
        self.read = Feature(f"teacher:{found}:{column}", "teacher", column, pooling="regions", teacher=found)
        self.heads = Projection("DocoLike", {"seen": (self.seen.name,), "read": (self.read.name,)}, dim)
        self.log_scale = log_scale_of(temperature, learn_temperature)

    @property
    def needs(self) -> Needs:
        """Regions as the model sees them and as the teacher reads them."""
        return Needs(features=(self.seen, self.read))

    def set_widths(self, widths: Mapping[str, int]) -> None:
        """Makes the heads.

        Args:
            widths: Of each feature, by name.
        """
        self.heads.set_widths(widths)

    def forward(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The terms and metrics of one batch."""
        scale = bounded_scale(self.log_scale)
        told = policy.regions.get(self.column, Regions())
        large = [n for n in range(len(told)) if not told.coverage or told.coverage[n] >= self.min_tokens]
        seen, read = policy.features.get(self.seen.name), policy.features.get(self.read.name)
        zero = torch.stack([parameter.flatten()[:0].sum() for parameter in self.parameters()]).sum()
        small = torch.zeros(len(told))
        small[: len(told) - len(large)] = 1
        metrics = {"temperature": 1 / scale.detach()}
        metrics |= {"too_small": sent(small, zero.device)} if told else {}
        if seen is None or read is None or not large:
            nothing = torch.zeros_like(zero).detach()
            return Outcome(tuple(Term(name, weight, zero, nothing) for name, weight in self.weights.items()), metrics)
        index = sent(torch.tensor(large), seen.values.device)
        sides = [self.heads("seen", _upcast(seen.values)[index]), self.heads("read", _upcast(read.values)[index])]
        table = table_of({self.column: told}, index.device).pick(index)
        same_text = equal(table.text) & (table.text != 0)
        compared = {"intra": (sides, equal(table.picture) & ~same_text), "inter": _pages(sides, told, large)}
        terms = []
        for name, weight in self.weights.items():
            limit = self.text_similarity if name == "intra" else None
            pair, other = compared[name]
            losses, anchors, metrics[f"accuracy/{name}"] = self._contrast(pair, other, limit)
            terms.append(Term(name, weight, losses.sum() + zero, anchors.sum()))
        return Outcome(tuple(terms), metrics)

    def _contrast(self, sides: Sequence[Tensor], other: Tensor, limit: float | None) -> tuple[Tensor, Tensor, Tensor]:
        """(N,) losses in both directions; (N,) who has others to be told from; of those that have some which `similar`
        leaves, whether the partner is nearest."""
        seen, read = (F.normalize(side, dim=1) for side in sides)
        similarities = self.log_scale.exp().to(seen.dtype) * seen @ read.T
        own = torch.eye(len(seen), dtype=torch.bool, device=seen.device)
        anchors = (other & ~own).any(dim=1)
        negative = other & ~own & ~similar(read, read, limit)
        both = [softmax_contrast(each, own, negative) for each in (similarities, similarities.T)]
        among = similarities.detach().masked_fill(~(negative | own), torch.finfo(seen.dtype).min)
        nearest = among.argmax(dim=1) == torch.arange(len(seen), device=seen.device)
        return (both[0] + both[1]) / 2, anchors, nearest[negative.any(dim=1)].to(seen.dtype)


def _pages(sides: Sequence[Tensor], told: Regions, places: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """(P, d) twice, the mean of each page's objects; (P, P) bool, which pages are known to hold something else.

    Pages of the same objects are one; where nothing is written, nobody can tell.
    """
    members: dict[Hashable, list[int]] = {}
    for number, place in enumerate(places):
        members.setdefault((told.row[place], told.image[place]), []).append(number)
    weight = torch.zeros(len(members), len(places))
    for page, own in enumerate(members.values()):
        weight[page, own] = 1 / len(own)
    weight = sent(weight, sides[0].device).to(sides[0].dtype)
    written = [[(told.texts[places[n]], told.boxes[places[n]]) for n in own] for own in members.values()]
    known: dict[Hashable, int] = {}
    content = [
        known.setdefault(tuple(own) if any(text for text, _ in own) else page, page)
        for page, own in enumerate(written)
    ]
    return [weight @ side for side in sides], ~equal(sent(torch.tensor(content), weight.device))


def _upcast(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
