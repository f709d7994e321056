"""Values of which each row has another number, as one padded tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mllm_align.contract import Signals
from mllm_align.objectives.host import sent


def padded(values: Tensor, groups: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Some of (N, d) values in G groups, one group of which has entries at the least.

    Args:
        values: The values.
        groups: Which of them are in each, on the host.

    Returns:
        (G, n, d), padded with zeros; and (G, n) bool, which are no padding.
    """
    longest = max(map(len, groups))
    # Padding points behind the last value, where the zeros are.
    index = [[*own, *[len(values)] * (longest - len(own))] for own in groups]
    there = [[True] * len(own) + [False] * (longest - len(own)) for own in groups]
    filled = torch.cat([values, values.new_zeros(1, values.shape[1])])
    return filled[sent(torch.tensor(index), values.device)], sent(torch.tensor(there), values.device)


def places_by_row(rows: Sequence[int], wanted: Sequence[int]) -> list[list[int]]:
    """Of each wanted row the places where it stands in `rows`."""
    found: dict[int, list[int]] = {row: [] for row in wanted}
    for place, row in enumerate(rows):
        if row in found:
            found[row].append(place)
    return list(found.values())


def rows_of_entries(signals: Signals, name: str) -> list[int]:
    """The row of each entry of a feature; where the host knows it, nobody waits for the device."""
    if name in signals.host_feature_rows:
        return list(signals.host_feature_rows[name])
    ragged = signals.features.get(name)
    return [] if ragged is None else ragged.row.tolist()
