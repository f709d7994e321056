"""The tokens in which two responses differ, and the log-probability that lies on them: for dense and segment terms."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from mllm_align.contract import Signals, View
from mllm_align.objectives.host import sent
from mllm_align.objectives.preference import CHOSEN, REJECTED, check_measured, upcast

# As RLHF-V's code has it: shorter runs of equal tokens are chance, and belong to the change around them.
MIN_MATCH = 3

Flags = tuple[bool, ...]


def changed_tokens(first: Sequence[int], second: Sequence[int]) -> tuple[Flags, Flags]:
    """Which tokens of two responses were replaced: those between the runs that both have.

    Runs are `difflib.SequenceMatcher`'s matching blocks of at least three tokens. What stands between two of them
    counts as changed only if it is not empty on either side: a pure insertion or deletion does not.

    Args:
        first: Token ids.
        second: Token ids.

    Returns:
        One flag per token of each.

    Example:
        >>> changed_tokens([1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 9, 9, 5, 6, 7])
        ((False, False, False, True, False, False, False), (False, False, False, True, True, False, False, False))
        >>> changed_tokens([1, 2, 3, 5, 6, 7], [1, 2, 3, 9, 5, 6, 7])[1]
        (False, False, False, False, False, False, False)
    """
    return _changed(tuple(first), tuple(second))


# A batch is looked at twice, once to count and once to train.
@lru_cache(maxsize=1024)
def _changed(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[Flags, Flags]:
    flags = [False] * len(first), [False] * len(second)
    *blocks, end = SequenceMatcher(None, first, second).get_matching_blocks()
    start_first = start_second = 0
    for block in [*(block for block in blocks if block.size >= MIN_MATCH), end]:
        if start_first < block.a and start_second < block.b:
            flags[0][start_first : block.a] = [True] * (block.a - start_first)
            flags[1][start_second : block.b] = [True] * (block.b - start_second)
        start_first, start_second = block.a + block.size, block.b + block.size
    return tuple(flags[0]), tuple(flags[1])


class Changed(NamedTuple):
    """Per view, over the tokens that differ from the other response's: a sum of theirs, and their number."""

    sums: dict[View, Tensor]
    counts: dict[View, Tensor]


def changed_sums(signals: Signals, views: Sequence[View]) -> Changed:
    """Log-probability that lies on the changed tokens, of the responses under the row's image compared.

    Args:
        signals: With per-token log-probabilities and token ids of `views`, (image, chosen) and (image, rejected).
        views: Whose sums are wanted; a response has the same changed tokens under any image.

    Returns:
        Per view (B,) sums, float32 or wider, and (B,) counts. A row that lacks one of the two responses has no
        changed tokens.

    Raises:
        ValueError: If token ids were not measured, or a response has other tokens under another image.
    """
    asked = tuple(dict.fromkeys((CHOSEN, REJECTED, *views)))
    check_measured(signals, asked)
    absent = [str(view) for view in asked if view not in signals.token_logps or view not in signals.host_token_ids]
    if absent:
        raise ValueError(f"token log-probabilities and ids of {', '.join(absent)} were not measured: set Needs.tokens")
    ids = signals.host_token_ids
    pairs = [_of_row(*pair) for pair in zip(ids[CHOSEN], ids[REJECTED], strict=True)]
    flags = {"chosen": [chosen for chosen, _ in pairs], "rejected": [rejected for _, rejected in pairs]}
    sums, counts = {}, {}
    for view in views:
        own = _under(view, flags[view.response], ids[view], ids[View("image", view.response)])
        values, row = signals.token_logps[view]
        which = sent(torch.tensor([flag for each in own for flag in each], dtype=torch.bool), values.device)
        picked = torch.where(which, upcast(values), 0.0)
        sums[view] = picked.new_zeros(len(own)).index_add(0, row, picked)
        counts[view] = sent(torch.tensor([sum(each) for each in own], dtype=torch.long), values.device)
    return Changed(sums, counts)


def changed_log_ratios(policy: Signals, reference: Signals, views: Sequence[View], rows: Tensor) -> Changed:
    """Log-ratios log pi - log pi_ref over the changed tokens alone, per view (N,) on the rows that are kept."""
    own, frozen = changed_sums(policy, views), changed_sums(reference, views)
    ratios = {view: own.sums[view][rows] - frozen.sums[view][rows].detach() for view in views}
    return Changed(ratios, {view: own.counts[view][rows] for view in views})


def _of_row(chosen: Sequence[int], rejected: Sequence[int]) -> tuple[Flags, Flags]:
    if not chosen or not rejected:
        return (False,) * len(chosen), (False,) * len(rejected)
    return changed_tokens(chosen, rejected)


def _under(
    view: View, flags: Sequence[Flags], ids: Sequence[Sequence[int]], own: Sequence[Sequence[int]]
) -> list[Flags]:
    """The flags of a view's rows, from those of the same responses under the row's image."""
    found = []
    for row_flags, row_ids, row_own in zip(flags, ids, own, strict=True):
        if row_ids and row_own and tuple(row_ids) != tuple(row_own):
            raise ValueError(f"{view}: the response has other tokens than under the row's own image")
        found.append(row_flags if row_ids and row_own else (False,) * len(row_ids))
    return found
