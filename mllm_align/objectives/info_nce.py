"""InfoNCE between images and texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm_align.contract import Feature, Needs, Outcome, Ragged, Signals, Term
from mllm_align.objectives.columns import check_sides
from mllm_align.objectives.host import sent
from mllm_align.objectives.memory import Memory, check_size, numbers_of
from mllm_align.objectives.preference import check_positive, check_switches
from mllm_align.objectives.soft_targets import soft_contrast
from mllm_align.objectives.temperature import bounded_scale, check_temperature, log_scale_of


def info_nce(
    images: Tensor,
    texts: Tensor,
    present: Tensor,
    scale: Tensor,
    further: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    keys: tuple[Tensor, Tensor] | None = None,
    soft_targets: float = 0.0,
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

    Returns:
        (B,) losses, the mean of both directions and 0 where not present; (B, B) scaled cosines, rows are images.
    """
    key_images, key_texts = keys or (images, texts)
    other_texts, other_images = further or (None, None)
    scale = scale.to(images.dtype)
    own = torch.arange(len(present), device=present.device)
    sides = []
    for anchors, slow, among, others in (
        (images, key_images, key_texts, other_texts),
        (texts, key_texts, key_images, other_images),
    ):
        counts = present[None, :].expand(len(present), -1)
        if others is not None:
            among, counts = torch.cat([among, others[0]]), torch.cat([counts, others[1]], dim=1)
        similarities = scale * anchors @ among.T
        sides.append(soft_contrast(similarities, scale * slow @ among.T, own, counts, soft_targets))
    return torch.where(present, 0.5 * (sides[0] + sides[1]), 0.0), scale * images @ texts.T


class InfoNCE(nn.Module):
    """InfoNCE between images and texts (Radford et al., 2021), https://arxiv.org/abs/2103.00020

    Pulls the mean of an image's tokens, as the language model reads them, towards the last state of its text, read
    without the image, and away from the other texts of the batch; and the other way round.

    Args:
        image: Column of the images, "image" or "contrast_image".
        text: Response column of the texts, "chosen" or "rejected".
        temperature: At the start, 1/100 at the least; cosines are divided by it.
        learn_temperature: Whether it is trained (as its logarithm, kept from going below 1/100, as CLIP's is).
        memory: Images and texts of earlier batches that are negatives, too (`Memory`); 0 for none.
        momentum: Choose among the features of a slow copy of what trains, which each step brings nearer to it by
            1 - momentum (MoCo, He et al., 2020, https://arxiv.org/abs/1911.05722); None for those of the model itself.
        soft_targets: With `momentum`: share of the target that the slow copy's own similarities make up (ALBEF, Li et
            al., 2021, https://arxiv.org/abs/2107.07651, has .4 and momentum .995).

    Needs:
        Two features and no views; no reference. With `momentum` the same two of the slow copy.

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
        The negatives are those of the batch of all processes (`AlignConfig.gather_negatives`): gradient accumulation
        adds none, gradient caching (`cache_gradients`) makes room for large batches, `memory` adds earlier ones.
        Two rows with one text are each other's negatives: deduplicate.

    Deviations:
        CLIP trains two encoders of its own; here both sides are read off the LVLM, without a projection head. ALBEF
        begins with a queue of random vectors, raises `soft_targets` over the first epoch, and has what a row was in
        earlier epochs for its negative; here the memory is empty at first, the share is constant, and a row that comes
        again does not meet itself.
    """

    def __init__(
        self,
        image: str = "image",
        text: str = "chosen",
        temperature: float = 0.07,
        learn_temperature: bool = True,
        memory: int = 0,
        momentum: float | None = None,
        soft_targets: float = 0.0,
    ) -> None:
        """Refuses values without a meaning."""
        super().__init__()
        check_positive("InfoNCE", temperature=temperature)
        check_switches("InfoNCE", learn_temperature=learn_temperature)
        check_temperature("InfoNCE", temperature)
        check_sides("InfoNCE", image, text)
        check_size("InfoNCE", memory)
        if momentum is not None and not (isinstance(momentum, float | int) and 0 <= momentum < 1):
            raise ValueError(f"InfoNCE: momentum must be from 0 to less than 1, or None, got {momentum!r}")
        if not 0 <= soft_targets <= 1 or (soft_targets and momentum is None):
            raise ValueError(f"InfoNCE: soft_targets must be from 0 to 1 and needs momentum, got {soft_targets!r}")
        self.momentum, self.soft_targets = momentum, soft_targets
        self.image, self.text, self.memory_size = image, text, memory
        self.images_before: Memory | None = None
        self.texts_before: Memory | None = None
        self.log_scale = log_scale_of(temperature, learn_temperature)

    @property
    def needs(self) -> Needs:
        """Image tokens and the text's last state."""
        image = Feature(f"image:{self.image}", "projector", self.image)
        text = Feature(f"text:{self.text}", "text", self.text, pooling="last")
        if self.momentum is None:
            return Needs(features=(image, text))
        slow = (each._replace(name=f"slow {each.name}", momentum=self.momentum) for each in (image, text))
        return Needs(features=(image, text, *slow))

    def set_widths(self, widths: Mapping[str, int]) -> None:
        """Makes room for the memory; before training, when the widths of the features are known."""
        if self.memory_size:
            image, text = self.needs.features[:2]
            self.images_before = Memory(self.memory_size, widths[image.name])
            self.texts_before = Memory(self.memory_size, widths[text.name])

    def forward(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The term and metrics of one batch."""
        scale = bounded_scale(self.log_scale)
        names = [feature.name for feature in self.needs.features]
        pair, slow = ([policy.features.get(name) for name in part] for part in (names[:2], names[2:]))
        size = len(policy.sources)
        if not size and any(each is not None and each.row.numel() for each in pair):
            raise ValueError("InfoNCE: the signals do not tell how many rows there are: give sources, one per row")
        if pair[0] is None or pair[1] is None or not size:
            return Outcome((Term("info_nce", 1.0, 0 * scale, 0 * scale.detach()),))
        (images, has_image), (texts, has_text) = (_by_row(each, size) for each in pair if each is not None)
        present = has_image & has_text
        keys = tuple(_by_row(each, size)[0].detach() for each in slow if each is not None) or (images, texts)
        further = self._remembered(policy, keys[0], keys[1], present) if self.memory_size else None
        losses, cosines = info_nce(images, texts, present, scale, further, (keys[0], keys[1]), self.soft_targets)
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

    def _remembered(self, policy: Signals, images: Tensor, texts: Tensor, present: Tensor) -> Any:
        """Earlier texts and images, each with the rows that it is a negative of; then this batch's are kept."""
        if self.images_before is None or self.texts_before is None:
            raise ValueError("InfoNCE: memory has no room yet: call set_widths, as the trainer does")
        names = policy.row_ids or ("",) * len(present)
        row = sent(numbers_of(names), images.device)
        found = []
        for memory in (self.texts_before, self.images_before):
            counts = memory.filled() & ~((row[:, None] == memory.rows) & (row[:, None] != 0))
            # Its keys are about to be overwritten, while the backward pass still reads them.
            found.append((memory.keys.to(images.dtype).clone(), counts))
        if self.training:
            anchors = self._anchors(policy, present)
            for memory, values in ((self.images_before, images), (self.texts_before, texts)):
                memory.add(values.detach()[anchors], row[anchors])
        return found[0], found[1]

    def _anchors(self, policy: Signals, present: Tensor) -> Tensor:
        """(N,) the rows that take part; where the host knows them, nobody waits for the device."""
        known = [policy.host_feature_rows.get(feature.name) for feature in self.needs.features]
        if known[0] is None or known[1] is None:
            return present.nonzero().flatten()
        rows = torch.tensor(sorted(set(known[0]) & set(known[1])), dtype=torch.long)
        return sent(rows, present.device)


def _by_row(ragged: Ragged, size: int) -> tuple[Tensor, Tensor]:
    """(size, d) unit vectors by row, and which rows have one."""
    values = F.normalize(ragged.values.to(torch.promote_types(ragged.values.dtype, torch.float32)), dim=1)
    table = torch.zeros(size, values.shape[1], dtype=values.dtype, device=values.device).index_copy(
        0, ragged.row, values
    )
    has = torch.zeros(size, dtype=torch.bool, device=values.device).index_fill(0, ragged.row, True)
    return table, has
