"""SigLIP: of every image and every text, whether they belong together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm_align.contract import Embedding, Needs, Outcome, Signals, Term
from mllm_align.objectives.identity import Ids
from mllm_align.objectives.nearest import nearest
from mllm_align.objectives.pairs import Compared, Pairs, nearer_than_listed
from mllm_align.objectives.preference import check_positive, check_switches
from mllm_align.objectives.temperature import bounded_scale, check_temperature, log_scale_of


def sigmoid_losses(
    cosines: Tensor,
    present: Tensor,
    scale: Tensor,
    bias: Tensor,
    false: tuple[Tensor, Tensor] | None = None,
    ids: Ids | None = None,
) -> Tensor:
    """A yes or no for each pair, summed over the texts of an image (SigLIP, equation 1, before its mean).

    Args:
        cosines: (B, B), rows are images; what is on the diagonal belongs together.
        present: (B,) bool, the rows that take part.
        scale: 0-d, one over the temperature.
        bias: 0-d, added to scaled cosines.
        false: (B, M) cosines to further texts, none of which belongs to an image, and (M,) bool, which count.
        ids: What was read twice, of which nothing is asked; None for nothing.

    Returns:
        (B,) losses, 0 where not present.
    """
    own = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    logits = scale.to(cosines.dtype) * cosines + bias.to(cosines.dtype)
    counts = present[None, :] if ids is None else present[None, :] & ~ids.alike()
    losses = -F.logsigmoid(torch.where(own, logits, -logits)).masked_fill(~counts, 0.0).sum(dim=1)
    if false is not None:
        further = scale.to(cosines.dtype) * false[0] + bias.to(cosines.dtype)
        counts = false[1][None, :]
        if ids is not None:
            counts = counts & ~ids.true_of(slice(0, len(cosines)), slice(0, len(false[1])))
        losses = losses - F.logsigmoid(-further).masked_fill(~counts, 0.0).sum(dim=1)
    return torch.where(present, losses, 0.0)


class SigLIP(nn.Module):
    """A sigmoid for every pair of image and text (Zhai et al., 2023), https://arxiv.org/abs/2303.15343

    No denominator joins the pairs of a batch: each is a yes or a no by itself, with a learned temperature and a
    learned bias, which begins where nearly all answers are no.

    Args:
        image: Column of the images, "image" or "contrast_image", or "prompt" (`Pairs`).
        text: Column of the texts, "chosen", "rejected" or another (`Pairs`).
        temperature: At the start, 1/100 at the least; cosines are divided by it.
        bias: At the start.
        learn_temperature: Whether it is trained (as its logarithm, kept from going below 1/100).
        learn_bias: Whether that is trained.
        image_prompt, text_prompt, pooling, layer, dim: What is measured of both sides, and linear heads on it
            (`Pairs`).
        dimensions: Numbers of leading dimensions that shall be embeddings by themselves: the loss is the mean of that
            at each and at all.
        negatives: Whether rows list texts that are false of their image: a further no of every image to each.

    Needs:
        Two features and no views; no reference. With `negatives` a third.

    Shapes:
        Features (N, d), one entry per row at the most, of negatives any number; computed in float32 at least. Term
        "siglip": sum over all pairs of the rows with both, count the number of rows. Metrics as of `InfoNCE`, and
        "bias".

    Example:
        >>> from mllm_align.contract import Ragged
        >>> objective = SigLIP()
        >>> rows = torch.arange(2)
        >>> features = {feature.name: Ragged(torch.eye(2), rows) for feature in objective.needs.features}
        >>> outcome = objective(Signals({}, {}, features=features, sources=("a", "a")), None)
        >>> round(outcome.loss.item(), 4) == round(math.log(2) + math.log1p(math.exp(-10)), 4)
        True

    Relations:
        InfoNCE lets the texts of a batch compete. Of an image and a text of two rows that share one of both nothing is
        asked, nor of a listed text that is the text of a row with that image: neither yes nor no. The negatives are
        those of the batch of all processes (`AlignConfig.gather_negatives`). `embedding` is what stays after training;
        the bias is dropped with the temperature, which changes no order.

    Deviations:
        SigLIP trains two encoders of its own and sums over the pairs of one device at a time, which is the same sum;
        it has no listed texts that are false, and no end of its temperature.
    """

    def __init__(
        self,
        image: str = "image",
        text: str = "chosen",
        temperature: float = 0.1,
        bias: float = -10.0,
        learn_temperature: bool = True,
        learn_bias: bool = True,
        *,
        image_prompt: str | None = None,
        text_prompt: str | None = None,
        pooling: str = "last",
        layer: int | float | None = None,
        dim: int | None = None,
        dimensions: Sequence[int] = (),
        negatives: bool = False,
    ) -> None:
        """Refuses values without a meaning."""
        super().__init__()
        check_positive("SigLIP", temperature=temperature)
        check_switches("SigLIP", learn_temperature=learn_temperature, learn_bias=learn_bias, negatives=negatives)
        check_temperature("SigLIP", temperature)
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not math.isfinite(bias):
            raise ValueError(f"SigLIP: bias must be a number, got {bias!r}")
        self.pairs = Pairs(
            "SigLIP",
            image=image,
            text=text,
            image_prompt=image_prompt,
            text_prompt=text_prompt,
            pooling=pooling,
            layer=layer,
            dim=dim,
            dimensions=dimensions,
            negatives=negatives,
        )
        self.log_scale = log_scale_of(temperature, learn_temperature)
        self.bias = nn.Parameter(torch.tensor(float(bias)), requires_grad=learn_bias)

    @property
    def embedding(self) -> Embedding:
        """How an image and a text are embedded after training."""
        return self.pairs.embedding

    @property
    def needs(self) -> Needs:
        """Both sides, and texts that are false."""
        return Needs(features=self.pairs.features)

    def set_widths(self, widths: Mapping[str, int]) -> None:
        """Makes the heads.

        Args:
            widths: Of each feature, by name.
        """
        self.pairs.set_widths(widths)

    def forward(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The term and metrics of one batch."""
        scale = bounded_scale(self.log_scale)
        found = self.pairs(policy)
        if found is None:
            return Outcome((Term("siglip", 1.0, 0 * scale + 0 * self.bias, 0 * scale.detach()),))
        with torch.autocast(scale.device.type, enabled=False):
            whole = found.at()
            sizes = [size for size in self.pairs.dimensions if size < found.images.shape[1]]
            losses = torch.stack([self._losses(each, scale) for each in (whole, *map(found.at, sizes))]).mean(dim=0)
            near = nearest(whole.images @ whole.texts.T, whole.present, whole.repeated)
        metrics = near.metrics(found.anchors)
        if self.pairs.false is not None:
            metrics["accuracy/negatives"] = nearer_than_listed(near.own, whole)
        metrics |= {"temperature": 1 / scale.detach(), "bias": self.bias.detach()}
        return Outcome((Term("siglip", 1.0, losses.sum(), found.present.sum()),), metrics)

    def _losses(self, now: Compared, scale: Tensor) -> Tensor:
        false = None
        if self.pairs.false is not None:
            false = now.images @ now.negatives.T, now.present[now.owner]
        return sigmoid_losses(now.images @ now.texts.T, now.present, scale, self.bias, false, now.repeated)
