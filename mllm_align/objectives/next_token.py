"""Next-token prediction on responses: maximum likelihood, also known as supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mllm_align.contract import Needs, Outcome, Signals, Term, View
from mllm_align.objectives.preference import check_measured, upcast

OWN = View("image", "chosen")
MATCHED = View("contrast_image", "rejected")


def next_token_loss(logps: Tensor, num_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of responses and the number of tokens to divide it by.

    Args:
        logps: (B,) sums of log-probabilities over response tokens.
        num_tokens: (B,) token counts; a row with 0 has no such response, and its log-probability is not read.

    Returns:
        0-d sum of negative log-probabilities and 0-d int64 count of tokens; their quotient is the token mean.

    Example:
        >>> total, count = next_token_loss(torch.tensor([-4.0, -2.0, 0.0]), torch.tensor([2, 1, 0]))
        >>> (total / count).item()
        2.0
    """
    return -torch.where(num_tokens > 0, upcast(logps), 0.0).sum(), num_tokens.sum()


@dataclass(frozen=True, kw_only=True)
class NextToken:
    """Next-token cross-entropy on responses, as in visual instruction tuning, https://arxiv.org/abs/2304.08485.

    The mean, over all response tokens of the global batch, of -log p(token | image, prompt, tokens before). Long
    responses therefore weigh more than short ones, as in ordinary training. Where a row has a contrast image, its
    rejected response is the right answer for that image, and both matched pairs are trained: this is the control
    that a visual preference objective on the same rows has to be compared with. Of a contrast image that was made of
    the row's own (a crop, noise) no response is the right answer: give matched=False there.

    Args:
        matched: Train (contrast_image, rejected) too on rows that have it; False trains chosen responses alone.

    Needs:
        View (image, chosen); optionally (contrast_image, rejected). No reference. A text-only row is one whose image
        list is empty: its (image, chosen) view is a prompt without images.

    Shapes:
        Log-probs and token counts (B,) per view; one term "next_token" whose count is the number of response tokens
        of both views. Metrics: `nll/<response>|<image>` the mean per token of each row that has the view, and
        `tokens` (B,), the tokens trained on per row.

    Example:
        >>> signals = Signals({OWN: torch.tensor([-4.0, -2.0])}, {OWN: torch.tensor([3, 1])})
        >>> NextToken()(signals, None).loss
        tensor(1.5000)

    Relations:
        Beside `SVCO` or `DPO` in a `Weighted` it keeps a model from drifting; with `DPO` on the same rows and
        matched=False it is RPO, https://arxiv.org/abs/2404.19733. Beside `MDPO`, `CHIP` and others on made contrast
        images it wants matched=False too.

    Deviations:
        Trainers that average each micro-batch give the tokens of short micro-batches more weight; here the mean is
        over the accumulation window of all ranks, whatever its split.
    """

    matched: bool = True

    def __post_init__(self) -> None:
        """Refuses values without a meaning."""
        if not isinstance(self.matched, bool):
            raise ValueError(f"NextToken: matched must be true or false, got {self.matched!r}")

    @property
    def needs(self) -> Needs:
        """The own view, and the other matched one as an optional view."""
        return Needs(views=(OWN,), optional=(MATCHED,) if self.matched else ())

    def __call__(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The term and the metrics of one batch."""
        check_measured(policy, self.needs.views)
        # An optional view that no row of the batch has may not have been measured at all.
        views = self.needs.views + tuple(view for view in self.needs.optional if view in policy.num_tokens)
        sums, metrics = [], {}
        for view in views:
            logps, num_tokens = policy.logps[view], policy.num_tokens[view]
            sums.append(next_token_loss(logps, num_tokens))
            rows = policy.rows_with((view,))
            metrics[f"nll/{view}"] = -upcast(logps.detach())[rows] / num_tokens[rows]
        tokens = torch.stack([policy.num_tokens[view] for view in views]).sum(dim=0)
        metrics["tokens"] = tokens[policy.rows_with(views, any_of=True)].float()
        total, count = (torch.stack(parts).sum() for parts in zip(*sums, strict=True))
        return Outcome((Term("next_token", 1.0, total, count),), metrics)
