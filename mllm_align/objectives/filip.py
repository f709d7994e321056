"""FILIP: every image token finds its text token, every text token its image token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mllm_align.contract import Feature, Needs, Outcome, Regions, Signals, Term
from mllm_align.objectives.columns import check_sides
from mllm_align.objectives.contrast_kernels import softmax_contrast
from mllm_align.objectives.host import sent
from mllm_align.objectives.options import WithOptions
from mllm_align.objectives.padding import padded, places_by_row, rows_of_entries
from mllm_align.objectives.preference import check_positive, check_switches
from mllm_align.objectives.projection import Projection
from mllm_align.objectives.region_masks import table_of
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


class FILIP(WithOptions):
    """Token-wise contrast between images and texts, FILIP (Yao et al., 2022), https://arxiv.org/abs/2111.07783

    A picture and a text are as similar as their tokens are on average to the best match on the other side. Image
    tokens are those that the language model reads, text tokens its last states, read without the image.

    Args:
        image: Column of the images, "image" or "contrast_image".
        text: Response column of the texts, "chosen" or "rejected"; left out with `regions`.
        temperature: At the start, 1/100 at the least; similarities are divided by it.
        learn_temperature: Whether it is trained (as its logarithm, kept from going below 1/100).
        dim: Width of the two linear heads; None for no heads.
        regions: Whether objects are compared with what they are called, by the image tokens that an object covers and
            the tokens of its text alone, in place of pictures with texts.
        overlap: Of regions, as for `RegionText`.
        same_class: Likewise.

    Needs:
        Two features, all tokens of a row's images and of its text, or of its regions and of their texts; no views, no
        reference. With `regions` rows need `objects` with texts; a region without one takes no part.

    Shapes:
        Features (N, d), any number a row; computed in float32 at least. Term "filip": sum over the rows with both,
        count their number; of regions the sum over those that have a text and a negative, which are the texts of all
        regions of the batch but those that `RegionText` does not tell apart either. Metrics: for each of these whether
        its partner is the nearest, "accuracy/image_to_text" and "accuracy/text_to_image" (N,); "temperature".

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
        RegionText compares a region's mean with its text's last state; with `regions` its tokens are kept one by one,
        so that a batch holds as many vectors as its regions cover tokens.

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
        regions: bool = False,
        overlap: float = 0.5,
        same_class: bool = True,
    ) -> None:
        """Refuses values without a meaning."""
        super().__init__()
        check_positive("FILIP", temperature=temperature, overlap=overlap)
        check_switches("FILIP", learn_temperature=learn_temperature, regions=regions, same_class=same_class)
        check_temperature("FILIP", temperature)
        check_sides("FILIP", image, text)
        if regions and text != "chosen":
            raise ValueError("FILIP: with regions its texts are those of objects: leave text out")
        if not regions and (overlap, same_class) != (0.5, True):
            raise ValueError("FILIP: overlap and same_class say which regions are told apart: set regions, too")
        self.image, self.text = image, text
        self.log_scale = log_scale_of(temperature, learn_temperature)
        self.regions, self.overlap, self.same_class = regions, overlap, same_class
        sides = {"images": (self.needs.features[0].name,), "texts": (self.needs.features[1].name,)}
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
        if self.regions:
            covered = Feature(f"region_tokens:{self.image}", "projector", self.image, pooling="region_tokens")
            said = Feature(f"region_words:{self.image}", "text", self.image, pooling="region_tokens")
            return Needs(features=(covered, said))
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
        groups, alike = self._compared(policy)
        if images is None or texts is None or not groups[0]:
            zero = 0 * torch.stack([parameter.sum() for parameter in self.parameters()]).sum()
            return Outcome((Term("filip", 1.0, zero, 0 * scale.detach()),))
        with torch.autocast(scale.device.type, enabled=False):
            given = zip((images, texts), ("images", "texts"), groups, strict=True)
            ends = [padded(self._unit(side, ragged.values), own) for ragged, side, own in given]
            of_images, of_texts = late_interaction(*ends[0], *ends[1])
            own = torch.eye(len(of_images), dtype=torch.bool, device=of_images.device)
            negative = ~own if alike is None else ~alike
            scaled = scale.to(of_images.dtype)
            ways = [softmax_contrast(scaled * each, own, negative) for each in (of_images, of_texts.T)]
            losses = (ways[0] + ways[1]) / 2
            nearest = [_found(each.detach(), own, negative) for each in (of_images, of_texts.T)]
        count = torch.ones_like(losses).detach()
        if self.regions:
            # A whole image counts where it is alone, too: it finds its text among one.
            anchors = negative.any(dim=1)
            count, nearest = anchors.to(losses.dtype), [each[anchors] for each in nearest]
        named = {"accuracy/image_to_text": nearest[0], "accuracy/text_to_image": nearest[1]}
        return Outcome((Term("filip", 1.0, losses.sum(), count.sum()),), named | {"temperature": 1 / scale.detach()})

    def _compared(self, policy: Signals) -> tuple[list[list[list[int]]], Tensor | None]:
        """Of images, then of texts, the entries of each that has a partner; and (N, N) which are not told apart."""
        if not self.regions:
            rows_of = [rows_of_entries(policy, feature.name) for feature in self.needs.features]
            rows = sorted(set(rows_of[0]) & set(rows_of[1]))
            return [places_by_row(places, rows) for places in rows_of], None
        told = policy.regions.get(self.image, Regions())
        entries = [_runs(told.num_tokens), _runs(told.num_words)]
        named = [place for place, own in enumerate(entries[1]) if own]
        device = self.log_scale.device
        index = sent(torch.tensor(named, dtype=torch.long), device)
        table = table_of({self.image: told}, device).pick(index)
        alike = table.alike(self.overlap, same_class=self.same_class)
        return [[own[place] for place in named] for own in entries], alike

    def _unit(self, side: str, values: Tensor) -> Tensor:
        return F.normalize(self.projection(side, values.to(torch.promote_types(values.dtype, torch.float32))), dim=1)


def _runs(counts: Sequence[int]) -> list[list[int]]:
    """Of entries that come one behind the other those of each, by how many it has."""
    ends = list(accumulate(counts, initial=0))
    return [list(range(*each)) for each in pairwise(ends)]


def _found(similarities: Tensor, own: Tensor, negative: Tensor) -> Tensor:
    """(N,) whether the partner of each is the nearest of those that it is told from."""
    among = similarities.masked_fill(~(own | negative), torch.finfo(similarities.dtype).min)
    return (among.argmax(dim=1) == torch.arange(len(among), device=among.device)).float()
