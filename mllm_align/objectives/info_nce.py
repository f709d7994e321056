"""InfoNCE between images and texts."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm_align.contract import Feature, Needs, Outcome, Ragged, Signals, Term
from mllm_align.objectives.preference import check_positive, check_switches

MAX_SCALE = 100.0
IMAGES, TEXTS = ("image", "contrast_image"), ("chosen", "rejected")


def info_nce(images: Tensor, texts: Tensor, present: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric InfoNCE, van den Oord et al. (2018), https://arxiv.org/abs/1807.03748, as CLIP pairs it.

    Args:
        images: (B, d) unit vectors.
        texts: (B, d) unit vectors; row b belongs to image b.
        present: (B,) bool, the rows that take part; the others are neither anchors nor negatives.
        scale: 0-d, one over the temperature.

    Returns:
        (B,) losses, the mean of both directions and 0 where not present; (B, B) scaled cosines, rows are images.
    """
    cosines = scale.to(images.dtype) * images @ texts.T
    hidden = torch.finfo(cosines.dtype).min
    of_images = F.log_softmax(cosines.masked_fill(~present[None, :], hidden), dim=1).diagonal()
    of_texts = F.log_softmax(cosines.masked_fill(~present[:, None], hidden), dim=0).diagonal()
    return torch.where(present, -0.5 * (of_images + of_texts), 0.0), cosines


class InfoNCE(nn.Module):
    """InfoNCE between images and texts (Radford et al., 2021), https://arxiv.org/abs/2103.00020

    Pulls the mean of an image's tokens, as the language model reads them, towards the last state of its text, read
    without the image, and away from the other texts of the batch; and the other way round.

    Args:
        image: Column of the images, "image" or "contrast_image".
        text: Response column of the texts, "chosen" or "rejected".
        temperature: At the start, 1/100 at the least; cosines are divided by it.
        learn_temperature: Whether it is trained (as its logarithm, kept from going below 1/100, as CLIP's is).

    Needs:
        Two features and no views; no reference.

    Shapes:
        Features (N, d), one entry per row at the most; computed in float32 at least. Term "info_nce": sum over the
        rows with both, count their number. Metrics: for each such row whether its partner is the nearest,
        "accuracy/image_to_text" and "accuracy/text_to_image" (N,); "temperature".

    Example:
        >>> objective = InfoNCE()
        >>> rows = torch.arange(2)
        >>> features = {feature.name: Ragged(torch.eye(2), rows) for feature in objective.needs.features}
        >>> outcome = objective(Signals({}, {}, features=features, sources=("a", "a")), None)
        >>> round(outcome.loss.item(), 4) < 1e-4
        True

    Relations:
        The negatives are those of one process's batch: gradient accumulation adds none, gradient caching
        (`AlignConfig(cache_gradients=True)`) makes room for large batches. Two rows with one text are each other's
        negatives: deduplicate.

    Deviations:
        CLIP gathers the negatives of all processes and trains two encoders of its own; here both sides are read off
        the LVLM, without a projection head.
    """

    def __init__(
        self,
        image: str = "image",
        text: str = "chosen",
        temperature: float = 0.07,
        learn_temperature: bool = True,
    ) -> None:
        """Refuses values without a meaning."""
        super().__init__()
        check_positive("InfoNCE", temperature=temperature)
        check_switches("InfoNCE", learn_temperature=learn_temperature)
        if temperature < 1 / MAX_SCALE:
            raise ValueError(f"InfoNCE: temperature must be at least {1 / MAX_SCALE}, got {temperature!r}")
        for name, value, known in (("image", image, IMAGES), ("text", text, TEXTS)):
            if value not in known:
                raise ValueError(f"InfoNCE: {name} must be {' or '.join(map(repr, known))}, got {value!r}")
        self.image, self.text = image, text
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)), requires_grad=learn_temperature)

    @property
    def needs(self) -> Needs:
        """Image tokens and the text's last state."""
        return Needs(
            features=(
                Feature(f"image:{self.image}", "projector", self.image),
                Feature(f"text:{self.text}", "text", self.text, pooling="last"),
            )
        )

    def forward(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The term and metrics of one batch."""
        with torch.no_grad():
            # The parameter itself: a clamped output has no gradient, and the temperature could never rise again.
            self.log_scale.clamp_(max=math.log(MAX_SCALE))
        scale = self.log_scale.exp()
        pair = [policy.features.get(feature.name) for feature in self.needs.features]
        size = len(policy.sources)
        if not size and any(each is not None and each.row.numel() for each in pair):
            raise ValueError("InfoNCE: the signals do not tell how many rows there are: give sources, one per row")
        if pair[0] is None or pair[1] is None or not size:
            return Outcome((Term("info_nce", 1.0, 0 * scale, 0 * scale.detach()),))
        (images, has_image), (texts, has_text) = (_by_row(each, size) for each in pair if each is not None)
        present = has_image & has_text
        losses, cosines = info_nce(images, texts, present, scale)
        hidden = torch.finfo(cosines.dtype).min
        own = torch.arange(size, device=cosines.device)
        anchors = self._anchors(policy, present)
        metrics = {
            "accuracy/image_to_text": cosines.masked_fill(~present[None, :], hidden).argmax(1) == own,
            "accuracy/text_to_image": cosines.masked_fill(~present[:, None], hidden).argmax(0) == own,
        }
        told = {name: found[anchors].float() for name, found in metrics.items()}
        told["temperature"] = 1 / scale.detach()
        return Outcome((Term("info_nce", 1.0, losses.sum(), present.sum()),), told)

    def _anchors(self, policy: Signals, present: Tensor) -> Tensor:
        """(N,) the rows that take part; where the host knows them, nobody waits for the device."""
        known = [policy.host_feature_rows.get(feature.name) for feature in self.needs.features]
        if known[0] is None or known[1] is None:
            return present.nonzero().flatten()
        rows = torch.tensor(sorted(set(known[0]) & set(known[1])), dtype=torch.long)
        if present.device.type == "cuda":
            rows = rows.pin_memory()
        return rows.to(present.device, non_blocking=True)


def _by_row(ragged: Ragged, size: int) -> tuple[Tensor, Tensor]:
    """(size, d) unit vectors by row, and which rows have one."""
    values = F.normalize(ragged.values.to(torch.promote_types(ragged.values.dtype, torch.float32)), dim=1)
    table = torch.zeros(size, values.shape[1], dtype=values.dtype, device=values.device).index_copy(
        0, ragged.row, values
    )
    has = torch.zeros(size, dtype=torch.bool, device=values.device).index_fill(0, ragged.row, True)
    return table, has
