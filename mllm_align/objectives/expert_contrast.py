"""Contrast between objects as a further vision encoder sees them and as the LVLM does, by an adapter that is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mllm_align.contract import (
    Feature,
    KeptExpert,
    Needs,
    ObjectAdapter,
    Outcome,
    Regions,
    Signals,
    Teacher,
    Term,
    teacher_from,
)
from mllm_align.objectives.columns import image_columns
from mllm_align.objectives.contrast_kernels import softmax_contrast
from mllm_align.objectives.options import WithOptions
from mllm_align.objectives.preference import check_positive, check_switches
from mllm_align.objectives.region_contrast import SCOPES, found_among, region_pairs
from mllm_align.objectives.region_masks import table_of
from mllm_align.objectives.temperature import bounded_scale, check_temperature, log_scale_of

# Of 37 x 37 patches, the resolution that it was trained in last.
EXPERT = Teacher("facebook/dinov2-large", size=518)


class ExpertContrast(WithOptions):
    """Object-level contrast with a kept vision expert, after CoLVA (2025), https://arxiv.org/abs/2501.04670

    What an adapter makes of an expert's features of an object is pulled towards what the LVLM sees of the same thing
    in another image of the row, and away from what it sees of other things. The adapted feature is then a token that
    the language model can be given in a prompt (`vision.ObjectPrompts`).

    Args:
        teacher: The expert, a vision model: a name or folder, or a mapping with `model`, `size`, `layer`, `revision`.
        columns: Image columns whose regions take part, as for `RegionContrast`.
        negatives: What an object is pushed away from: "pair", "row" or "batch", as for `RegionContrast`.
        temperature: At the start, 1/100 at the least; similarities are divided by it.
        learn_temperature: Whether it is trained (as its logarithm, kept from going below 1/100).
        normalise: Whether similarity is the cosine; else the dot product.
        overlap: As for `RegionContrast`.
        same_class: Whether things of one class are told apart.
        train_keys: Whether the gradient reaches the LVLM's regions, too; else the adapter alone learns.

    Needs:
        Two features a column, regions of image tokens and the expert's of the same ones; no views, no reference. Rows
        need `objects` (and `contrast_objects`) with ids.

    Shapes:
        Features (N, d_lm) and (N, d_expert), computed in float32 at least; `Signals.regions` tells of each. The loss
        of region n of the expert is log(1 + sum_m exp(<a_n, p_m> - <a_n, p_k>)), with k the same thing in another
        image and m the negatives, all as the LVLM sees them; it is one-sided, and each view takes its turn as anchor.
        Term "expert_contrast": sum over the regions that have a positive and a negative, count their number. Metrics
        as of `RegionContrast`: "accuracy", "gap" and "negatives" (N,), "temperature".

    Example:
        >>> from mllm_align.contract import Ragged
        >>> objective = ExpertContrast(negatives="pair")
        >>> objective.set_widths({feature.name: 2 for feature in objective.needs.features})
        >>> told = Regions((0,) * 4, (0, 0, 1, 1), ((0, 0, 1, 1),) * 4, ("a", "b", "a", "b"), ("",) * 4, ("",) * 4)
        >>> values = Ragged(torch.eye(2).repeat(2, 1), torch.zeros(4, dtype=torch.long))
        >>> features = {feature.name: values for feature in objective.needs.features}
        >>> outcome = objective(Signals({}, {}, features=features, sources=("x",), regions={"image": told}), None)
        >>> [(term.name, term.count.item()) for term in outcome.terms]
        [('expert_contrast', 4)]

    Relations:
        RegionContrast is the same contrast without an expert. The adapter is kept: it is saved beside the model's
        weights, as `vision.load_expert` reads it. The temperature is dropped. With `train_keys=False` alone a LoRA
        adapter gets no gradient and stays the identity; the guard against terms that move nothing lets it pass, since
        what they move stays.

    Deviations:
        `ExpertContrast.colva()` is the paper's loss. The mean over an object is taken before the adapter, not after
        it, so that the expert is asked once, before training; both are the same where an object covers one patch.
        Regions that cover no token are left out, and so are those without another thing to tell them from. The paper's
        expert is RADIO at 1024 pixels; the default here is DINOv2. By default cosines with a learned temperature,
        against the other rows too, and the LVLM trains with it.
    """

    def __init__(
        self,
        teacher: str | Mapping[str, Any] | Teacher = EXPERT,
        columns: Sequence[str] = ("image",),
        negatives: str = "batch",
        temperature: float = 0.07,
        learn_temperature: bool = True,
        normalise: bool = True,
        overlap: float = 0.5,
        same_class: bool = True,
        train_keys: bool = True,
    ) -> None:
        """Refuses values without a meaning."""
        super().__init__()
        check_positive("ExpertContrast", temperature=temperature, overlap=overlap)
        check_switches(
            "ExpertContrast",
            learn_temperature=learn_temperature,
            normalise=normalise,
            same_class=same_class,
            train_keys=train_keys,
        )
        check_temperature("ExpertContrast", temperature)
        if negatives not in SCOPES:
            raise ValueError(f"ExpertContrast: negatives must be one of {', '.join(SCOPES)}, got {negatives!r}")
        named = image_columns("ExpertContrast", columns)
        self.teacher = teacher_from(teacher, "ExpertContrast")
        if self.teacher.kind == "document":
            raise ValueError(f"ExpertContrast: {str(self.teacher)!r} reads words; an expert is a vision model")
        self.columns, self.negatives, self.normalise, self.overlap = named, negatives, normalise, overlap
        self.same_class, self.train_keys = same_class, train_keys
        self.log_scale = log_scale_of(temperature, learn_temperature)
        self.adapter: ObjectAdapter | None = None

    @classmethod
    def colva(
        cls,
        teacher: str | Mapping[str, Any] | Teacher = EXPERT,
        columns: Sequence[str] = ("image",),
        train_keys: bool = False,
    ) -> ExpertContrast:
        """CoLVA's loss: raw dot products at temperature 1, against the other things of the paired image alone, with
        the LVLM frozen."""
        return cls(
            teacher,
            columns,
            "pair",
            temperature=1.0,
            learn_temperature=False,
            normalise=False,
            train_keys=train_keys,
        )

    @property
    def needs(self) -> Needs:
        """Regions of each column, as the LVLM and as the expert sees them."""
        seen = [Feature(self._seen(name), "projector", name, pooling="regions") for name in self.columns]
        expert = [
            Feature(self._expert(name), "teacher", name, pooling="regions", teacher=self.teacher)
            for name in self.columns
        ]
        return Needs(features=(*seen, *expert))

    @property
    def keeps(self) -> tuple[KeptExpert, ...]:
        """The adapter, once it is made."""
        return () if self.adapter is None else (KeptExpert(self.teacher, self.adapter),)

    def set_widths(self, widths: Mapping[str, int]) -> None:
        """Makes the adapter; a second call with the same widths changes nothing.

        Args:
            widths: Of each feature, by name.

        Raises:
            ValueError: If it is made for other widths.
        """
        wanted = (widths[self._expert(self.columns[0])], widths[self._seen(self.columns[0])])
        if self.adapter is None:
            self.adapter = ObjectAdapter(*wanted)
        elif self.adapter.widths != wanted:
            raise ValueError(f"ExpertContrast: its adapter is made for widths {self.adapter.widths}, not {wanted}")

    def forward(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The term and metrics of one batch."""
        if self.adapter is None:
            raise ValueError("ExpertContrast: its adapter is not made: call set_widths, as the trainer does")
        scale = bounded_scale(self.log_scale)
        zero = torch.stack([parameter.flatten()[:0].sum() for parameter in self.parameters()]).sum()
        given = [(name, self._read(policy, name)) for name in self.columns]
        there = [(name, sides) for name, sides in given if sides is not None]
        if not there:
            return Outcome((Term("expert_contrast", 1.0, zero, torch.zeros_like(zero).detach()),))
        keys = torch.cat([seen for _, (seen, _) in there])
        weight = next(self.adapter.parameters())
        adapted = self.adapter(torch.cat([expert for _, (_, expert) in there]).to(weight.dtype)).to(keys.dtype)
        keys = keys if self.train_keys else keys.detach()
        table = table_of({name: policy.regions.get(name, Regions()) for name, _ in there}, keys.device)
        positive, negative = region_pairs(table, self.negatives, self.overlap, same_class=self.same_class)
        if self.normalise:
            adapted, keys = F.normalize(adapted, dim=1), F.normalize(keys, dim=1)
        similarities = adapted @ keys.T
        anchors = positive.any(dim=1) & negative.any(dim=1)
        losses = softmax_contrast(scale.to(keys.dtype) * similarities, positive, negative)
        term = Term("expert_contrast", 1.0, losses.sum() + zero, anchors.sum())
        metrics = found_among(similarities.detach(), positive, negative, anchors)
        return Outcome((term,), metrics | {"temperature": 1 / scale.detach()})

    def _read(self, policy: Signals, column: str) -> tuple[Tensor, Tensor] | None:
        """What the LVLM and the expert see of the regions of a column, in float32 at least; None without any."""
        seen, expert = policy.features.get(self._seen(column)), policy.features.get(self._expert(column))
        if seen is None or expert is None or not seen.row.numel():
            return None
        return _upcast(seen.values), _upcast(expert.values)

    def _seen(self, column: str) -> str:
        return f"regions:{column}"

    def _expert(self, column: str) -> str:
        return f"teacher:{self.teacher}:{column}"


def _upcast(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
