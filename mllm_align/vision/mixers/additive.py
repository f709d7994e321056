"""Features of several encoders added up in front of one projector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mllm_align.vision.mixers.base import Mixer, Sight, Widths
from mllm_align.vision.mixers.options import one_of, per_encoder, switch
from mllm_align.vision.mixers.parts import NORMS, length, normaliser, precise


class AdditiveMoF(Mixer):
    """Additive mixture of features, A-MoF of MMVP (Tong et al., 2024), section 4.1, https://arxiv.org/abs/2401.06209

    F = (1 - share) * base + share * extra, which the model's own projector reads; the number of tokens stays. With
    several further encoders each has its share, and the model's own has what is left.

    Args:
        share: Of the further encoders, 0 to 1: one number is what they have together, in equal parts; a list has a
            number for each, which add up to 1 at most. MMVP's tables go from 0 to 1 and lose instruction following
            above three quarters.
        learned: Whether the shares are trained, from there: softmax over all encoders with the own one's logit held at
            0, so with one further encoder a sigmoid. Shares must then lie strictly between.
        norm: What is done to the vectors before they are weighted: "none", "layer" (LayerNorm), "l2" (all of one
            length, which is learned; at first the root of the width). One word for all, or a list: the model's own,
            then each further one. MMVP does not say what it did, and has published no code for this.
        encoder_dropout: See `Mixer`.

    An encoder that is as wide as the model's own is added as it is; another goes through a linear map first, which
    starts at random. Unless all shares are 0 the projector reads what it was not trained on: it must train too.
    """

    place = "input"
    starts_as_identity = False

    def __init__(
        self,
        widths: Widths,
        *,
        share: float | Sequence[float] = 0.5,
        learned: bool = False,
        norm: str | Sequence[str] = "none",
        encoder_dropout: float = 0.0,
    ) -> None:
        shares = _shares(share, len(widths.extra), strictly=switch("learned", learned))
        kinds = _kinds(norm, len(widths.extra))
        super().__init__(widths, encoder_dropout=encoder_dropout, share=shares, learned=learned, norm=kinds)
        first = torch.tensor(shares)
        self.logits = nn.Parameter((first / (1 - first.sum())).log()) if learned else None
        self.shares = shares
        width = widths.place
        self.maps = nn.ModuleList(nn.Identity() if each == width else nn.Linear(each, width) for each in widths.extra)
        self.norms = nn.ModuleList(normaliser(kind, width) for kind in kinds)

    def forward(self, x: Tensor, sight: Sight) -> Tensor:
        """(V, N, C) to the same."""
        found = self.seen(x, sight)
        shares = self.shares
        if self.logits is not None:
            shares = precise(torch.cat([self.logits.new_zeros(1), self.logits])).softmax(dim=0)[1:].unbind()
        own = self.norms[0](self.own(x))
        rest = 1 - sum(each.weight * shares[each.index] for each in found)
        joined = own * rest
        if self.watched is not None:
            self.watched["norm/0"] = length(own)
            self.watched["share/0"] = torch.as_tensor(rest, device=x.device).detach()
        for each in found:
            branch = self.norms[1 + each.index](self.maps[each.index](each.values))
            part = each.weight * shares[each.index]
            joined = joined + branch * part
            if self.watched is not None:
                self.watched[f"norm/{1 + each.index}"] = length(branch)
                self.watched[f"share/{1 + each.index}"] = torch.as_tensor(part, device=x.device).detach()
        return joined.to(x.dtype)


def _shares(share: object, count: int, strictly: bool) -> list[float]:
    """One for each further encoder."""
    shares = list[float]()
    for each in per_encoder("share", share, count):
        if isinstance(each, bool) or not isinstance(each, int | float) or not 0 <= each <= 1:
            raise ValueError(f"share must be a number from 0 to 1, or a list of them, not {each!r}")
        shares.append(float(each) if isinstance(share, Sequence) else each / count)
    # What a list of decimals adds up to may miss 1 by a rounding.
    if sum(shares) > 1 + 1e-9:
        raise ValueError(f"share adds up to {sum(shares):g}: what all further encoders have is 1 at most")
    if strictly and not (min(shares) > 0 and sum(shares) < 1 - 1e-9):
        raise ValueError("share must start above 0 and, all together, below 1 where it is learned")
    return shares


def _kinds(kind: object, count: int) -> list[str]:
    """The norm of the model's own encoder, then of each further one."""
    return [one_of("norm", each, NORMS) for each in per_encoder("norm", kind, 1 + count, "encoder")]
