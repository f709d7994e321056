"""Training and validation pairs that share no image.

Pairs are joined where they show the same picture: the same pixels, or one that is saved again, resized or mirrored
(`looks`); what hangs together stays together. Published pairs are often split by rows (S-VCO's script shuffles them),
which leaves one image on both sides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence

from mllm_align.data.mine.looks import alike
from mllm_align.data.mine.selection import Candidate, rank


class UnionFind:
    """Disjoint sets of things that are joined two by two."""

    def __init__(self) -> None:
        self.parent: dict[Hashable, Hashable] = {}

    def find(self, item: Hashable) -> Hashable:
        """The one that stands for the set of `item`."""
        path = []
        while (parent := self.parent.setdefault(item, item)) != item:
            path.append(item)
            item = parent
        for passed in path:
            self.parent[passed] = item
        return item

    def join(self, first: Hashable, second: Hashable) -> None:
        """Makes one set of the two that they are in."""
        self.parent[self.find(first)] = self.find(second)


def components(groups: Iterable[Sequence[Hashable]]) -> list[int]:
    """For each row the number of its component, counted from 0 in the order of the rows.

    Args:
        groups: For each row what it shares with others (its images); a row that shares nothing is alone.
    """
    sets, places = UnionFind(), []
    for number, keys in enumerate(groups):
        own: Hashable = ("row", number)
        for key in keys:
            sets.join(("key", key), own)
        places.append(own)
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(sets.find(own), len(numbers)) for own in places]


def split_by_image(
    candidates: Sequence[Candidate], num_validation: int, seed: int = 0
) -> tuple[list[Candidate], list[Candidate]]:
    """Training and validation pairs, no image in both, nor one that is the same to the eye.

    Args:
        candidates: All pairs.
        num_validation: How many are to be for validation. Where components do not add up to it, the nearest number
            that they add up to (of two, the smaller), with something left to train on.
        seed: Of the draw of components.

    Returns:
        (training, validation), each in the order given.
    """
    numbers = groups_of(candidates)
    sizes = Counter(numbers)
    names: dict[int, tuple[str, ...]] = {}
    for number, candidate in zip(numbers, candidates, strict=True):
        names[number] = min(names.get(number, candidate.images), candidate.images)
    order = sorted(sizes, key=lambda number: (rank(seed, names[number]), number))
    chosen = _fitting(order, sizes, num_validation)
    parts: tuple[list[Candidate], list[Candidate]] = ([], [])
    for number, candidate in zip(numbers, candidates, strict=True):
        parts[number in chosen].append(candidate)
    return parts


def groups_of(candidates: Sequence[Candidate]) -> list[int]:
    """For each pair the number of its group: pairs that share an image, directly or through others."""
    same = UnionFind()
    looks = list(dict.fromkeys(look for candidate in candidates for look in candidate.looks))
    for first, second in alike(looks):
        same.join(looks[first], looks[second])
    return components((*item.images, *map(same.find, item.looks)) for item in candidates)


def _fitting(order: Sequence[int], sizes: Mapping[int, int], wanted: int) -> set[int]:
    """Components that add up to `wanted`, or as nearly as they can: in their random order if that succeeds."""
    chosen, total = set(), 0
    for number in order:
        if total + sizes[number] <= wanted and len(chosen) + 1 < len(order):
            chosen.add(number)
            total += sizes[number]
    if total == wanted:
        return chosen
    counts = _nearest(Counter(sizes.values()), wanted)
    found = set()
    for number in order:
        if counts[sizes[number]]:
            counts[sizes[number]] -= 1
            found.add(number)
    return found


def _nearest(available: Mapping[int, int], wanted: int) -> Counter[int]:
    """How many components of each size give the nearest sum: a subset sum on bit sets, one bit for each sum."""
    total = sum(size * count for size, count in available.items())
    limit = min(total - 1, 2 * wanted) if total else 0
    steps: list[tuple[int, int]] = []  # (size, how many at once)
    for size, count in sorted(available.items()):
        power = 1
        while count:
            taken = min(power, count)
            steps.append((size, taken))
            count, power = count - taken, 2 * power
    mask = (1 << (max(limit, 0) + 1)) - 1
    reached = [1]
    for size, taken in steps:
        reached.append((reached[-1] | reached[-1] << size * taken) & mask)
    sums = (number for number in range(max(limit, 0) + 1) if reached[-1] >> number & 1)
    target = min(sums, key=lambda number: (abs(number - wanted), number))
    counts: Counter[int] = Counter()
    for place in range(len(steps), 0, -1):
        size, taken = steps[place - 1]
        if not reached[place - 1] >> target & 1:
            counts[size] += taken
            target -= size * taken
    return counts
