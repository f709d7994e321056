"""Contrast of three sides at once, which learns what no two of them tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mllm_align.contract import EmbeddingHead, Needs, Outcome, Signals, Term
from mllm_align.objectives.host import sent
from mllm_align.objectives.identity import first_places, ids_by_row
from mllm_align.objectives.nearest import nearest, tolerance
from mllm_align.objectives.options import WithOptions
from mllm_align.objectives.padding import rows_of_entries
from mllm_align.objectives.preference import check_positive, check_switches
from mllm_align.objectives.summaries import summaries
from mllm_align.objectives.temperature import bounded_scale, check_temperature, log_scale_of

SIDES = ("image", "text", "third")
NEGATIVES = ("n_squared", "n")
ROOM = 1 << 22  # products, and similarities, that are there at once


def against_all(
    anchors: Tensor, second: Tensor, third: Tensor, scale: Tensor, kinds: Sequence[Tensor] | None = None
) -> Tensor:
    """InfoNCE of anchors among all pairs of the two other sides (Saporta et al., 2024)

    https://arxiv.org/abs/2411.01053: the similarity of three vectors is sum_d x_d y_d z_d, and an anchor's own pair is
    told from the N^2 - 1 others, of which those that are half its own are no less wrong.

    Args:
        anchors: (N, d) vectors of one side.
        second: (N, d) of another, of the same rows.
        third: (N, d) of the third.
        scale: 0-d, one over the temperature.
        kinds: Of the three sides (N,) int64 from 0 to N - 1, equal where the same was read. Of the pairs those are
            left out that are, as what was read, the own pair of a row with the anchor's value. None where all differ.

    Returns:
        (N,) losses. Similarities are there for a few anchors at a time, and computed once more for the gradient.
    """
    few = max(1, ROOM // max(1, len(second) * max(second.shape)))
    again = torch.is_grad_enabled() and few < len(anchors)
    every = torch.arange(len(anchors), device=anchors.device)
    found = [
        checkpoint(_sum_of_pairs, part, second, third, scale, place, kinds, use_reentrant=False)
        if again
        else _sum_of_pairs(part, second, third, scale, place, kinds)
        for part, place in zip(anchors.split(few), every.split(few), strict=True)
    ]
    return torch.cat(found) - scale * (anchors * second * third).sum(dim=1)


def _sum_of_pairs(
    anchors: Tensor,
    second: Tensor,
    third: Tensor,
    scale: Tensor,
    place: Tensor,
    kinds: Sequence[Tensor] | None,
) -> Tensor:
    similarities = scale * (anchors[:, None] * second) @ third.T
    if kinds is not None:
        true = _true_pairs(place, kinds)
        true[torch.arange(len(place), device=place.device), place, place] = False
        similarities = similarities.masked_fill(true, torch.finfo(similarities.dtype).min)
    return similarities.flatten(1).logsumexp(dim=1)


def _true_pairs(place: Tensor, kinds: Sequence[Tensor]) -> Tensor:
    """(n, N, N) bool: of n rows which pairs some row has beside the anchor's value."""
    number = len(kinds[0])
    pair = kinds[1] * number + kinds[2]
    beside = torch.where(kinds[0][place][:, None] == kinds[0], pair, number**2)
    table = torch.zeros(len(place), number**2 + 1, dtype=torch.bool, device=pair.device).scatter_(1, beside, True)
    return table[:, kinds[1][:, None] * number + kinds[2]]


def _true_beside(kinds: Sequence[Tensor], second: Tensor, third: Tensor) -> Tensor:
    """(N, M) bool: which of M pairs, given by their kinds, some row has beside the anchor's value of each row."""
    number = len(kinds[0])
    anchor = kinds[0][:, None] == kinds[0]
    pair = (kinds[1] * number + kinds[2])[:, None] == second * number + third
    return anchor.float() @ pair.float() > 0


def against_shuffled(
    anchors: Tensor,
    second: Tensor,
    third: Tensor,
    scale: Tensor,
    orders: tuple[Sequence[int], Sequence[int]],
    kinds: Sequence[Tensor] | None = None,
) -> Tensor:
    """The same among an anchor's own pair and N - 1 of the others: both sides shuffled, each for itself.

    Args:
        anchors: (N, d) vectors of one side.
        second: (N, d) of another, of the same rows.
        third: (N, d) of the third.
        scale: 0-d, one over the temperature.
        orders: Of both of these, which row's vector stands at each place. The one at the place of the anchor gives way
            to its own; what is an anchor's own at another place is no negative.
        kinds: As of `against_all`.

    Returns:
        (N,) losses.
    """
    one, other = (sent(torch.tensor(order, dtype=torch.long), anchors.device) for order in orders)
    place = torch.arange(len(anchors), device=anchors.device)
    similarities = scale * anchors @ (second[one] * third[other]).T
    kinds = (place, place, place) if kinds is None else kinds
    own = _true_beside(kinds, kinds[1][one], kinds[2][other])
    right = scale * (anchors * second * third).sum(dim=1)
    here = place[:, None] == place[None, :]
    among = torch.where(here, right[:, None], similarities.masked_fill(own, torch.finfo(right.dtype).min))
    return among.logsumexp(dim=1) - right


class Symile(WithOptions):
    """Contrast of an image and two texts at once, Symile (Saporta et al., 2024), https://arxiv.org/abs/2411.01053

    Where a fact shows in three sides together only, as of a picture, a question and the answer, no contrast of two of
    them finds it. Each side in turn is the anchor, and is told which pair of the others is its own, by one product.

    Args:
        third: Column of the third side: a text, such as what is written in the picture.
        negatives: "n_squared", all other pairs of the batch's two other sides; or "n", one for each other row, drawn
            anew for each batch.
        temperature: At the start, 1/100 at the least; products are divided by it.
        learn_temperature: Whether it is trained (as its logarithm, kept from going below 1/100).
        seed: Of the draws of "n". They depend on it and on the ids of the batch's rows alone, and so are the same on
            all ranks and in both passes of cached gradients.
        dim: Width of a linear head for each side; None for none.
        **options: Of the sides: image, text (the column "caption"), image_prompt, text_prompt (of both texts), pooling
            "last" or "mean", and layer, as of `Pairs`.

    Needs:
        Embeddings of an image column and of two texts; no views, no reference.

    Shapes:
        Features (N, d), one a row; computed in float32 at least. Term "symile": sum over the rows with all three sides
        of the mean over anchors, count their number. Metrics, for each such row: whether its own is better than all
        others of a side for the two others, "accuracy/image", "accuracy/text" and "accuracy/third" (N,); as good is
        not better; "temperature".

    Example:
        >>> from mllm_align.contract import Ragged
        >>> objective = Symile(third="sign")
        >>> rows = torch.arange(2)
        >>> features = {feature.name: Ragged(torch.eye(2), rows) for feature in objective.needs.features}
        >>> outcome = objective(Signals({}, {}, features=features, sources=("a", "a")), None)
        >>> sorted(features), round(outcome.loss.item(), 4) < 1e-4
        (['image:image', 'text:caption', 'text:sign'], True)

    Relations:
        With a third side of ones, the loss of an anchor of the two others is InfoNCE plus log N. What it trains is the
        product of three, not the cosine of two: for retrieval by one side alone, add InfoNCE. "n_squared" takes time
        with the third power of the batch. A pair that reads as the anchor's own, or as that of a row with the anchor's
        value, is left out of its negatives.

    Deviations:
        The paper trains an encoder for each side; here all are read off the LVLM. Its code may draw an anchor's own
        pair among the negatives of "n"; here that one does not count. The bound on the temperature is CLIP's.
    """

    def __init__(
        self,
        third: str = "third",
        negatives: str = "n_squared",
        temperature: float = 0.07,
        learn_temperature: bool = True,
        seed: int = 0,
        dim: int | None = None,
        **options: Any,
    ) -> None:
        """Refuses values without a meaning."""
        super().__init__()
        check_positive("Symile", temperature=temperature)
        check_temperature("Symile", temperature)
        check_switches("Symile", learn_temperature=learn_temperature)
        if negatives not in NEGATIVES:
            raise ValueError(f"Symile: negatives must be {' or '.join(map(repr, NEGATIVES))}, got {negatives!r}")
        if options.get("pooling") == "query":
            raise ValueError("Symile: pooling must be 'last' or 'mean', got 'query'")
        if dim is not None and (isinstance(dim, bool) or not isinstance(dim, int) or dim < 1):
            raise ValueError(f"Symile: dim must be a whole number above 0, or nothing for no heads, got {dim!r}")
        # The image is in both; heads are for three sides, and so not theirs.
        self.pairs = summaries("Symile", options), summaries("Symile", {**options, "text": third})
        if third == self.pairs[0].text:
            raise ValueError(f"Symile: third must be another column than text, got {third!r} twice")
        self.negatives, self.seed, self.dim = negatives, seed, dim
        self.log_scale = log_scale_of(temperature, learn_temperature)
        self.heads = nn.ModuleDict()

    @property
    def options(self) -> dict[str, Any]:
        """Its own, and those that the two texts have in common."""
        own = super().options
        return own | {name: value for name, value in self.pairs[0].options.items() if name not in own}

    @property
    def needs(self) -> Needs:
        """The three sides."""
        first, second = self.pairs
        return Needs(features=(*first.features, second.sides["text"]))

    def set_widths(self, widths: Mapping[str, int]) -> None:
        """Makes the heads, if there are any; a second call changes nothing.

        Args:
            widths: Of each feature, by name.
        """
        for side, feature in zip(SIDES, self.needs.features, strict=True):
            if self.dim is not None and side not in self.heads:
                self.heads[side] = EmbeddingHead(widths[feature.name], self.dim)

    def forward(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The term and metrics of one batch."""
        if self.dim is not None and not self.heads:
            raise ValueError("Symile: its heads are not made: call set_widths with the width of each feature")
        scale = bounded_scale(self.log_scale)
        first, second = (pairs(policy) for pairs in self.pairs)
        known = [set(rows_of_entries(policy, feature.name)) for feature in self.needs.features]
        rows = sorted(set.intersection(*known))
        if first is None or second is None or not rows:
            zero = 0 * torch.stack([parameter.sum() for parameter in self.parameters()]).sum()
            return Outcome((Term("symile", 1.0, zero, 0 * scale.detach()),))
        index = sent(torch.tensor(rows), scale.device)
        tables = (first.images, first.texts, second.texts)
        sides = [
            F.normalize(self.heads[side](table[index]) if self.heads else table[index], dim=1)
            for side, table in zip(SIDES, tables, strict=True)
        ]
        kinds = self._kinds(policy, rows, sides[0].device)
        with torch.autocast(scale.device.type, enabled=False):
            losses, right = self._by_anchor(sides, scale.to(sides[0].dtype), self._orders(policy, rows), kinds)
        count = torch.full((), len(rows), device=losses.device)
        metrics = {f"accuracy/{side}": best.float() for side, best in zip(SIDES, right, strict=True)}
        metrics["temperature"] = 1 / scale.detach()
        return Outcome((Term("symile", 1.0, losses.sum(), count),), metrics)

    def _by_anchor(
        self,
        sides: list[Tensor],
        scale: Tensor,
        orders: list[tuple[list[int], list[int]]],
        kinds: list[Tensor] | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """(N,) the mean loss of each row over anchors; and for each anchor (N,) bool, whether its own is the best."""
        losses, right = [], []
        for place in range(len(SIDES)):
            anchors, second, third = (sides[(place + step) % len(SIDES)] for step in range(len(SIDES)))
            read = None if kinds is None else [kinds[(place + step) % len(SIDES)] for step in range(len(SIDES))]
            if self.negatives == "n":
                losses.append(against_shuffled(anchors, second, third, scale, orders[place], read))
            else:
                losses.append(against_all(anchors, second, third, scale, read))
            row = torch.arange(len(anchors), device=anchors.device)
            found = (second * third).detach() @ anchors.detach().T
            if read is not None:
                true = _true_beside(read, read[1], read[2]).T & (row[:, None] != row)
                found = found.masked_fill(true, -torch.inf)
            near = nearest(found, torch.ones_like(row, dtype=torch.bool))
            right.append(near.own - near.text > tolerance(found.dtype))
        return torch.stack(losses).mean(dim=0), right

    def _kinds(self, policy: Signals, rows: list[int], device: torch.device) -> list[Tensor] | None:
        """Of each side what was read, as the first of the rows that read it; None where all differ."""
        tables = [ids_by_row(policy, feature.name, len(policy.sources)) for feature in self.needs.features]
        kinds = [first_places([table[row] for row in rows]) for table in tables]
        if all(own == list(range(len(rows))) for own in kinds):
            return None
        return [sent(torch.tensor(own, dtype=torch.long), device) for own in kinds]

    def _orders(self, policy: Signals, rows: list[int]) -> list[tuple[list[int], list[int]]]:
        """For each anchor two orders of the rows, by what rows there are and not by the order they come in."""
        names = [policy.row_ids[row] for row in rows] if policy.row_ids else [""] * len(rows)
        by_name = sorted(range(len(rows)), key=names.__getitem__)
        draw = Random(repr((self.seed, sorted(names))))

        def shuffled() -> list[int]:
            order = [0] * len(rows)
            for place, drawn in zip(by_name, draw.sample(by_name, len(by_name)), strict=True):
                order[place] = drawn
            return order

        return [(shuffled(), shuffled()) for _ in SIDES]
