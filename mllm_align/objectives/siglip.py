"""SigLIP: of every image and every text, whether they belong together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mllm_align.contract import Embedding, Needs, Outcome, Signals, Term
from mllm_align.objectives.identity import Ids
from mllm_align.objectives.nearest import Nearest, nearest
from mllm_align.objectives.options import WithOptions
from mllm_align.objectives.pairs import Compared, Pairs, nearer_than_listed
from mllm_align.objectives.preference import check_positive, check_switches
from mllm_align.objectives.temperature import bounded_scale, check_temperature, log_scale_of
from mllm_align.objectives.tiled import tiled_nearest
from mllm_align.objectives.two_sided import TILE


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
    every = slice(0, len(cosines))
    losses = _asked(cosines, scale, bias, _counted(present, ids, every, every), diagonal=True)
    if false is not None:
        counts = _not_false(false[1], ids, every, slice(0, len(false[1])))
        losses = losses + _asked(false[0], scale, bias, counts, diagonal=False)
    return torch.where(present, losses, 0.0)


def tiled_sigmoid_losses(
    images: Tensor,
    texts: Tensor,
    present: Tensor,
    scale: Tensor,
    bias: Tensor,
    tile: int,
    *,
    negatives: tuple[Tensor, Tensor] | None = None,
    ids: Ids | None = None,
) -> Tensor:
    """`sigmoid_losses` in memory that grows with the rows, not with their square: exact, and so are its gradients.

    A tile of cosines is made, asked and forgotten, and made once more for the gradient.

    Args:
        images: (B, d) unit vectors.
        texts: (B, d) unit vectors; row b belongs to image b.
        present: (B,) bool, the rows that take part.
        scale: 0-d, one over the temperature.
        bias: 0-d, added to scaled cosines.
        tile: Rows and columns of a tile.
        negatives: (M, d) unit vectors of further texts, none of which belongs to an image, and (M,) bool, which count.
        ids: What was read twice, of which nothing is asked; None for nothing.

    Returns:
        (B,) losses, 0 where not present.
    """

    def ask(
        image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, place: tuple[slice, slice], false: Any
    ) -> Tensor:
        # Found here: what counts, given from without, would be kept of every tile.
        counts = _counted(present, ids, *place) if false is None else _not_false(false, ids, *place)
        return _asked(image @ text.T, scale, bias, counts, diagonal=false is None and place[0] == place[1])

    among = [(*each, None) for each in _cut(texts, tile)]
    if negatives is not None:
        among += [(*each, negatives[1]) for each in _cut(negatives[0], tile)]
    how: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    found = []
    for part, image in _cut(images, tile):
        parts = [
            checkpoint(ask, image, text, scale, bias, (part, other), false, **how) for other, text, false in among
        ]
        found.append(torch.stack(parts).sum(dim=0))
    return torch.where(present, torch.cat(found), 0.0)


def _cut(vectors: Tensor, tile: int) -> Iterator[tuple[slice, Tensor]]:
    """Places and vectors of some rows at a time."""
    # Of a split the gradient is put together once, of slices each would be as large as all vectors.
    for place, part in enumerate(vectors.split(tile)):
        yield slice(place * tile, place * tile + len(part)), part


def _counted(present: Tensor, ids: Ids | None, part: slice, other: slice) -> Tensor:
    """Of which pairs of images and texts something is asked; may be of one line alone."""
    return present[None, other] if ids is None else present[None, other] & ~ids.alike(part, other)


def _not_false(counts: Tensor, ids: Ids | None, part: slice, other: slice) -> Tensor:
    """Likewise of images and further texts."""
    return counts[None, other] if ids is None else counts[None, other] & ~ids.true_of(part, other)


def _asked(cosines: Tensor, scale: Tensor, bias: Tensor, counts: Tensor, *, diagonal: bool) -> Tensor:
    """(N,) sums over (N, M) pairs that count, all of which are to be a no, or with `diagonal` all others."""
    logits = -(scale.to(cosines.dtype) * cosines + bias.to(cosines.dtype))
    if diagonal:
        logits = torch.where(torch.eye(len(cosines), dtype=torch.bool, device=cosines.device), -logits, logits)
    return -F.logsigmoid(logits).masked_fill(~counts, 0.0).sum(dim=1)


class SigLIP(WithOptions):
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
        tile: Rows and columns of a tile of cosines, so that all pairs are never in memory at once; None for 2,048
            where there are more rows.

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
        tile: int | None = None,
    ) -> None:
        """Refuses values without a meaning."""
        super().__init__()
        check_positive("SigLIP", temperature=temperature)
        check_switches("SigLIP", learn_temperature=learn_temperature, learn_bias=learn_bias, negatives=negatives)
        check_temperature("SigLIP", temperature)
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not math.isfinite(bias):
            raise ValueError(f"SigLIP: bias must be a number, got {bias!r}")
        if tile is not None and (isinstance(tile, bool) or not isinstance(tile, int) or tile < 1):
            raise ValueError(f"SigLIP: tile must be a whole number above 0, or nothing, got {tile!r}")
        self.tile = tile
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
            near = self._nearest(whole)
        metrics = near.metrics(found.anchors)
        if self.pairs.false is not None:
            metrics["accuracy/negatives"] = nearer_than_listed(near.own, whole)
        metrics |= {"temperature": 1 / scale.detach(), "bias": self.bias.detach()}
        return Outcome((Term("siglip", 1.0, losses.sum(), found.present.sum()),), metrics)

    def _tile(self, now: Compared) -> int | None:
        """Rows and columns of a tile; None where all pairs are taken at once."""
        return TILE if self.tile is None and len(now.present) > TILE else self.tile

    def _losses(self, now: Compared, scale: Tensor) -> Tensor:
        tile, counts = self._tile(now), None if self.pairs.false is None else now.present[now.owner]
        if tile is not None:
            false = None if counts is None else (now.negatives, counts)
            pair = now.images, now.texts, now.present
            return tiled_sigmoid_losses(*pair, scale, self.bias, tile, negatives=false, ids=now.repeated)
        further = None if counts is None else (now.images @ now.negatives.T, counts)
        return sigmoid_losses(now.images @ now.texts.T, now.present, scale, self.bias, further, now.repeated)

    def _nearest(self, now: Compared) -> Nearest:
        tile = self._tile(now)
        if tile is not None:
            return tiled_nearest(now.images, now.texts, now.present, tile, now.repeated)
        return nearest(now.images.detach() @ now.texts.detach().T, now.present, now.repeated)
