"""Which other picture an item gets when it is asked about a wrong one."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from mllm_align_eval.items import Item


def other_images(items: Sequence[Item], seed: int = 0) -> list[int]:
    """For each item the index of the item whose picture it is shown instead.

    A derangement over clusters: every item's picture is used exactly once, and no item gets that of an item of its own
    cluster. The items of one benchmark split swap among themselves, so the wrong picture comes from the same
    distribution. Nothing else is selected for; in particular the other picture may well
    have the same answer, as often as it happens by chance.

    The items, shuffled by `seed` and sorted by cluster (largest first), are turned by the size of the largest
    cluster: no run of one cluster is longer than that, so none meets itself.

    Args:
        items: The items.
        seed: Of the shuffle.

    Raises:
        ValueError: If more than half of the items of a group are of one cluster.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault((item.benchmark, item.split), []).append(index)
    chosen = [0] * len(items)
    for (benchmark, split), members in groups.items():
        sizes = Counter(items[index].cluster for index in members)
        turn = max(sizes.values())
        if 2 * turn > len(members):
            raise ValueError(
                f"{_lack(benchmark, split, turn, len(members))}; evaluate more or leave out image='other'"
            )
        shuffled = sorted(members, key=lambda index: items[index].id)
        random.Random(f"{seed}|{benchmark}|{split}").shuffle(shuffled)
        place = {cluster: number for number, cluster in enumerate(dict.fromkeys(items[i].cluster for i in shuffled))}
        order = sorted(shuffled, key=lambda i: (-sizes[items[i].cluster], place[items[i].cluster]))
        for position, index in enumerate(order):
            chosen[index] = order[(position + turn) % len(order)]
    return chosen


def lacks_other_images(items: Sequence[Item]) -> str:
    """Why there is no other image for each of the items, or ""."""
    groups: dict[tuple[str, str], Counter[str]] = {}
    for item in items:
        groups.setdefault((item.benchmark, item.split), Counter())[item.cluster] += 1
    for (benchmark, split), sizes in groups.items():
        if 2 * max(sizes.values()) > sizes.total():
            return _lack(benchmark, split, max(sizes.values()), sizes.total())
    return ""


def _lack(benchmark: str, split: str, most: int, total: int) -> str:
    where = f"{benchmark}/{split}: {most} of {total} items"
    return f"{where} are about one scene, so there is no other image for each of them"
