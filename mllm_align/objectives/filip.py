"""FILIP: every image token finds its text token, every text token its image token."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mllm_align.contract import Feature, Needs, Outcome, Signals, Term
from mllm_align.objectives.columns import check_sides
from mllm_align.objectives.padding import padded, places_by_row, rows_of_entries
from mllm_align.objectives.preference import check_positive, check_switches
from mllm_align.objectives.projection import Projection
from mllm_align.objectives.temperature import bounded_scale, check_temperature, log_scale_of

# Similarities of single tokens that exist at one time: 64 MB in float32.
MAX_SIMILARITIES = 2**24


def late_interaction(
    images: Tensor, image_there: Tensor, texts: Tensor, text_there: Tensor, at_once: int = MAX_SIMILARITIES
) -> tuple[Tensor, Tensor]:
    """The two similarities of FILIP, means over tokens of the best match on the other side.

    Args:
        images: (A, n, d) unit vectors of tokens, padded.
        image_there: (A, n) bool, which are no padding; one of each image at the least.
        texts: (B, m, d) likewise.
        text_there: (B, m) likewise.
        at_once: Similarities of single tokens that exist at one time, at the least those of all images to one text;
            they are computed again in the backward pass.

    Returns:
        (A, B) twice: over image tokens, (1/n) sum_i max_j <u_i, w_j>; over text tokens, (1/m) sum_j max_i <u_i, w_j>.
    """
    size = max(1, at_once // max(1, images.shape[0] * images.shape[1] * texts.shape[1]))
    parts = []
    for start in range(0, len(texts), size):
        part = slice(start, start + size)
        given = images, image_there, texts[part], text_there[part]
        again = torch.is_grad_enabled() and size < len(texts)
        parts.append(checkpoint(_interact, *given, use_reentrant=False) if again else _interact(*given))
    of_images, of_texts = zip(*parts, strict=True)
    return torch.cat(of_images, dim=1), torch.cat(of_texts, dim=1)


def _interact(images: Tensor, image_there: Tensor, texts: Tensor, text_there: Tensor) -> tuple[Tensor, Tensor]:
    products = torch.einsum("and,bmd->abnm", images, texts)
    best_text = products.masked_fill(~text_there[None, :, None, :], -torch.inf).amax(dim=3)
    best_image = products.masked_fill(~image_there[:, None, :, None], -torch.inf).amax(dim=2)
    return _mean(best_text, image_there[:, None]), _mean(best_image, text_there[None])


def _mean(values: Tensor, there: Tensor) -> Tensor:
    return values.masked_fill(~there, 0).sum(dim=2) / there.sum(dim=2)


class FILIP(nn.Module):
    """Token-wise contrast between images and texts, FILIP (Yao et al., 2022), https://arxiv.org/abs/2111.07783

    A picture and a text are as similar as their tokens are on average to the best match on the other side. Image
    tokens are those that the language model reads, text tokens its last states, read without the image.

    Args:
        image: Column of the images, "image" or "contrast_image".
        text: Response column of the texts, "chosen" or "rejected".
        temperature: At the start, 1/100 at the least; similarities are divided by it.
        learn_temperature: Whether it is trained (as its logarithm, kept from going below 1/100).
        dim: Width of the two linear heads; None for no heads.

    Needs:
        Two features, all tokens of a row's images and of its text; no views, no reference.

    Shapes:
        Features (N, d), any number a row; computed in float32 at least. Term "filip": sum over the rows with both,
        count their number. Metrics: for each such row whether its partner is the nearest, "accuracy/image_to_text" and
        "accuracy/text_to_image" (N,); "temperature".

    Example:
        >>> from mllm_align.contract import Ragged
        >>> objective = FILIP(dim=None)
        >>> tokens = Ragged(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        >>> features = {feature.name: tokens for feature in objective.needs.features}
        >>> outcome = objective(Signals({}, {}, features=features, sources=("a", "a")), None)
        >>> round(outcome.loss.item(), 4) < 1e-4
        True

    Relations:
        InfoNCE compares one vector of each side. Two rows with one text are each other's negatives: deduplicate. All
        pairs of tokens of a batch are compared (images x texts x image tokens x text tokens), a part at a time.

    Deviations:
        FILIP trains two encoders and keeps, for memory, the quarter of the tokens that match best; here all take part.
        Its re-implementation in DeCLIP lets padded words match; here padding is left out. A state has read the words
        before it, so that later words know more; newline tokens of families that cut images into tiles take part.
    """

    def __init__(
        self,
        image: str = "image",
        text: str = "chosen",
        temperature: float = 0.07,
        learn_temperature: bool = True,
        dim: int | None = 256,
    ) -> None:
        """Refuses values without a meaning."""
        super().__init__()
        check_positive("FILIP", temperature=temperature)
        check_switches("FILIP", learn_temperature=learn_temperature)
        check_temperature("FILIP", temperature)
        check_sides("FILIP", image, text)
        self.image, self.text = image, text
        self.log_scale = log_scale_of(temperature, learn_temperature)
        sides = {"images": (f"image_tokens:{image}",), "texts": (f"text_tokens:{text}",)}
        self.projection = Projection("FILIP", sides, dim)

    def set_widths(self, widths: Mapping[str, int]) -> None:
        """Makes the heads.

        Args:
            widths: Of each feature, by name.
        """
        self.projection.set_widths(widths)

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
        scale = bounded_scale(self.log_scale)
        images, texts = (policy.features.get(feature.name) for feature in self.needs.features)
        rows_of = [rows_of_entries(policy, feature.name) for feature in self.needs.features]
        rows = sorted(set(rows_of[0]) & set(rows_of[1]))
        if images is None or texts is None or not rows:
            zero = 0 * torch.stack([parameter.sum() for parameter in self.parameters()]).sum()
            return Outcome((Term("filip", 1.0, zero, 0 * scale.detach()),))
        with torch.autocast(scale.device.type, enabled=False):
            own = (images, "images", rows_of[0]), (texts, "texts", rows_of[1])
            ends = [padded(self._unit(side, r.values), places_by_row(places, rows)) for r, side, places in own]
            of_images, of_texts = late_interaction(*ends[0], *ends[1])
            scaled = scale.to(of_images.dtype)
            ways = F.log_softmax(scaled * of_images, dim=1), F.log_softmax(scaled * of_texts, dim=0)
            losses = -(ways[0].diagonal() + ways[1].diagonal()) / 2
        partner = torch.arange(len(rows), device=losses.device)
        metrics = {
            "accuracy/image_to_text": (of_images.detach().argmax(dim=1) == partner).float(),
            "accuracy/text_to_image": (of_texts.detach().argmax(dim=0) == partner).float(),
            "temperature": 1 / scale.detach(),
        }
        return Outcome((Term("filip", 1.0, losses.sum(), torch.ones_like(losses).detach().sum()),), metrics)

    def _unit(self, side: str, values: Tensor) -> Tensor:
        return F.normalize(self.projection(side, values.to(torch.promote_types(values.dtype, torch.float32))), dim=1)
