"""What trains in X-Former's first stage, and its four losses on one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm_align.contract import Ragged, Signals
from mllm_align.trainers.gather import over_ranks
from mllm_align.trainers.x_former import masks
from mllm_align.trainers.x_former.losses import (
    contrast_loss,
    generation_loss,
    hard_negatives,
    matching_loss,
    reconstruction_loss,
    similarities,
)
from mllm_align.trainers.x_former.words import Words
from mllm_align.vision.mixers.x_former import XFormer

LOSSES = ("itc", "itm", "itg", "reconstruction")


class Masked(NamedTuple):
    """What the masked autoencoder makes of B images.

    Attributes:
        latent: (B, 1 + n, d), its class token and the patches that it saw, in its own order.
        masked: (B, N), 1 where it did not see a patch.
        restore: (B, N) int64, the place of each patch in its own order.
        patches: (B, N, p) the true pixels.
    """

    latent: Tensor
    masked: Tensor
    restore: Tensor
    patches: Tensor


class Texts(NamedTuple):
    """Of B texts, each with a place for how it begins in front and the token that ends it.

    Attributes:
        tokens: (B, L) int64.
        present: (B, L) bool, False for padding, which lies at the end.
    """

    tokens: Tensor
    present: Tensor


class StageOne(nn.Module):
    """The X-Former and the words' side; what is frozen (encoders, decoder) is not part of it.

    Where the paper does not say, or we could not verify it, we chose: contrast and matching use the refined queries
    Z', generation has the words read the Q-Former's own queries, as in BLIP-2 (Z' comes behind the layers that words
    take part in, so this loss trains the Q-Former alone); all losses see the autoencoder's masked view, so that it
    runs once; the class token of the autoencoder goes through the first cross-attention, since its decoder reads it,
    and not into the second; wrong partners for matching are this process's, contrast is against all processes'.

    Args:
        mixer: Trained but for its last linear layer, which belongs to the second stage.
        words: Of the mixer's width and depth.
        decode: The frozen decoder: latents (B, 1 + n, d) and `restore` to pixels (B, N, p).
        normalise: Whether the decoder was trained to give normalised patches (`norm_pix_loss`).
        weights: Of the four losses.
        smoothing: Of the contrast's targets.
    """

    def __init__(
        self,
        mixer: XFormer,
        words: Words,
        decode: Callable[[Tensor, Tensor], Tensor],
        *,
        normalise: bool,
        weights: Mapping[str, float] | None = None,
        smoothing: float = 0.1,
    ) -> None:
        super().__init__()
        self.mixer, self.words = mixer, words
        mixer.requires_grad_(True)
        mixer.to_language.requires_grad_(False)
        self.decode, self.normalise, self.smoothing = decode, normalise, smoothing
        self.weights = {name: 1.0 for name in LOSSES} | dict(weights or {})

    @property
    def num_queries(self) -> int:
        """Of the X-Former."""
        return self.mixer.q_former.queries.shape[0]

    def forward(self, base: Tensor, seen: Masked, texts: Texts, pairs: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """The four losses and their weighted sum, "loss".

        Args:
            base: (B, N, C) of the model's own encoder.
            seen: Of the masked autoencoder.
            texts: Of each image.
            pairs: Per row the number of its picture and of its text: rows with one in common are no negatives.
        """
        queries, words = self._read(base, texts, self.words.compare_token, masks.unimodal)
        enriched = self.mixer.dual.enrich(seen.latent, queries)
        refined = self.mixer.dual.refine(queries, enriched[:, 1:])
        images = F.normalize(self.words.queries_to_shared(refined).float(), dim=-1)
        compared = F.normalize(self.words.to_shared(words[:, 0]).float(), dim=-1)
        found = {
            "itc": self._contrast(images, compared, pairs),
            "itm": self._matching(base, seen.latent, texts, images, compared, pairs),
            "itg": self._generation(base, texts),
            "reconstruction": reconstruction_loss(
                self.decode(enriched, seen.restore).float(),
                seen.patches.float(),
                seen.masked.float(),
                normalise=self.normalise,
            ),
        }
        return found | {"loss": torch.stack([self.weights[name] * found[name] for name in LOSSES]).sum()}

    def _read(
        self, base: Tensor, texts: Texts, first: int, mask: Callable[[int, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        embedded = self.words.embed(texts.tokens, first)
        visible = mask(self.num_queries, texts.present)
        return self.mixer.q_former(base, embedded, visible, self.words.feedforwards)

    def _contrast(self, images: Tensor, texts: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
        images, texts, pairs = of_all_ranks(images, texts, pairs)
        found = similarities(images, texts, self.words.scale().float())
        return contrast_loss(found, sharing(pairs, images.device), self.smoothing)

    def _matching(
        self, base: Tensor, latent: Tensor, texts: Texts, images: Tensor, compared: Tensor, pairs: Sequence
    ) -> Tensor:
        """Own pairs, each text with a wrong image, each image with a wrong text."""
        same = sharing(pairs, base.device)
        wrong = hard_negatives(similarities(images, compared, self.words.scale()), same)
        own = torch.arange(len(base), device=base.device)
        some = own[wrong.there]
        image = torch.cat([own, wrong.image[wrong.there], some])
        text = torch.cat([own, some, wrong.text[wrong.there]])
        chosen = Texts(texts.tokens[text], texts.present[text])
        queries, _ = self._read(base[image], chosen, self.words.compare_token, masks.bidirectional)
        refined = self.mixer.dual(queries, latent[image][:, 1:])
        labels = (torch.arange(len(image), device=base.device) < len(own)).long()
        return matching_loss(self.words.match(refined), labels)

    def _generation(self, base: Tensor, texts: Texts) -> Tensor:
        _, words = self._read(base, texts, self.words.generate_token, masks.causal)
        targets = texts.tokens.masked_fill(~texts.present, -100)[:, 1:]
        return generation_loss(self.words.next_logits(words[:, :-1]), targets)


def sharing(pairs: Sequence[tuple[int, int]], device: torch.device | None = None) -> Tensor:
    """(B, B) bool: which rows have the picture or the text in common; each with itself."""
    known = torch.tensor(pairs)
    return (known[:, None] == known[None]).any(dim=-1).to(device)


def of_all_ranks(
    images: Tensor, texts: Tensor, pairs: Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    """What all processes have, rank after rank; a collective. Gradients are those of one process with all rows.

    Args:
        images: (B, Q, d) of this one.
        texts: (B, d) of this one.
        pairs: B pairs of numbers.
    """
    here = torch.arange(len(pairs), device=images.device)
    own = Signals(
        logps={},
        num_tokens={},
        features={"images": Ragged(images, here), "texts": Ragged(texts, here)},
        sources=("",) * len(pairs),
        row_ids=tuple(f"{picture} {text}" for picture, text in pairs),
        host_feature_rows=dict.fromkeys(("images", "texts"), tuple(range(len(pairs)))),
    )
    found = over_ranks(own, images.device)
    known = [tuple(map(int, each.split())) for each in found.row_ids]
    return found.features["images"].values, found.features["texts"].values, [(each[0], each[1]) for each in known]


@torch.no_grad()
def detail_share(mixer: XFormer, base: Tensor, detail: Tensor) -> float:
    """How much of what the queries say depends on the autoencoder: 0 says that it is not read (the collapse).

    Each encoder in turn is shown the next image of the batch; of the two mean changes of Z', the autoencoder's part.
    Without the reconstruction loss the paper saw the model collapse.

    Args:
        mixer: The X-Former.
        base: (B, N, C), B at least 2.
        detail: (B, n, d) patches of the autoencoder.
    """

    def refined(base: Tensor, detail: Tensor) -> Tensor:
        return mixer.dual(mixer.q_former(mixer.own(base))[0], mixer.own(detail)).float()

    usual = refined(base, detail)
    changes = [
        (refined(*other) - usual).norm(dim=-1).mean().item()
        for other in ((base, detail.roll(1, 0)), (base.roll(1, 0), detail))
    ]
    return changes[0] / max(sum(changes), 1e-12)
